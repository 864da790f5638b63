//! A store in production: before the first act on it, a person says that this is the place.
//!
//! It stands in front of the store itself, so that no command can forget to ask; whoever only looks is not asked.

use std::fmt;
use std::io::{self, BufRead as _, IsTerminal as _};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use tidegate::journal::EffectRow;
use tidegate::lifecycle::Cancellation;
use tidegate::message::NewMessage;
use tidegate::store::{
    AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, CommitListener, Discard, Edit, Edited,
    Enqueued, ExplainFacts, Extend, Extended, FailureGroup, Filter, Journal, MessageView, Note, Operate, Operation,
    Progress, Redrive, Resolve, Resolved, Settle, Settled, Stats, Stepped, Store, Summary, SweepRequest, Swept,
    Verdicts,
};
use tidegate::token::TokenRecord;
use tidegate::{IdempotencyKey, Kind, MessageId, Policy, QueueName, StoreError, Tenant};
use tokio::sync::OnceCell;

use crate::output::Output;

/// A store that asks before it acts.
pub(crate) struct Production {
    store: Arc<dyn Store>,
    /// Its name, and where it is.
    name: String,
    place: String,
    output: Output,
    /// Asked once: a command is one act to a person, however many calls it is.
    answered: OnceCell<()>,
}

impl Production {
    pub(crate) fn new(store: Arc<dyn Store>, name: String, place: String, output: Output) -> Self {
        Self { store, name, place, output, answered: OnceCell::new() }
    }

    async fn ask(&self) -> Result<(), StoreError> {
        self.answered.get_or_try_init(|| self.confirmed()).await.copied()
    }

    async fn confirmed(&self) -> Result<(), StoreError> {
        let Self { name, place, .. } = self;
        let refused = |why: &str| {
            StoreError::invalid(format!("context {name} is production ({place}), and {why}; nothing was done"))
                .hint("--yes acts without asking")
        };
        if !io::stdin().is_terminal() {
            return Err(refused("nobody can be asked: standard input is no terminal"));
        }
        self.output.say(format!("This acts on production: {place}. Type {name} to do it:"));
        let typed = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map(|_| line)
        });
        let typed = typed.await.map_err(|_| refused("the answer could not be read"))?;
        let typed = typed.map_err(|error| refused(&format!("the answer could not be read: {error}")))?;
        if typed.trim() == name { Ok(()) } else { Err(refused("that was not confirmed")) }
    }
}

impl fmt::Debug for Production {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Production").field("name", &self.name).field("store", &self.store).finish_non_exhaustive()
    }
}

macro_rules! verbs {
    (
        looks { $($look:ident($($looked:ident: $look_type:ty),*) -> $found:ty;)* }
        acts { $($act:ident($acted:ident: $act_type:ty) -> $done:ty;)* }
    ) => {
        #[async_trait]
        impl Store for Production {
            $(async fn $look(&self, $($looked: $look_type),*) -> Result<$found, StoreError> {
                self.store.$look($($looked),*).await
            })*

            $(async fn $act(&self, $acted: $act_type) -> Result<$done, StoreError> {
                self.ask().await?;
                self.store.$act($acted).await
            })*

            fn on_commit(&self, listener: Weak<dyn CommitListener>) {
                self.store.on_commit(listener);
            }
        }
    };
}

verbs! {
    looks {
        operations(name: Option<String>, limit: u32) -> Vec<Operation>;
        inspect(ids: Vec<MessageId>) -> Vec<Option<MessageView>>;
        find(tenant: Tenant, queue: QueueName, key: IdempotencyKey) -> Option<MessageId>;
        progress(ids: Vec<MessageId>) -> Vec<Option<Progress>>;
        flow(root: MessageId) -> Vec<Summary>;
        list(filter: Filter) -> Vec<Summary>;
        groups(filter: Filter) -> Vec<FailureGroup>;
        explain(id: MessageId) -> Option<ExplainFacts>;
        audit(after: u64, limit: u32) -> Vec<AuditEntry>;
        tokens() -> Vec<TokenRecord>;
        stats() -> Stats;
    }
    acts {
        enqueue(batch: Vec<NewMessage>) -> Verdicts<Enqueued>;
        claim(request: ClaimRequest) -> Claimed;
        declare(policies: Vec<(Kind, Policy)>) -> ();
        extend(batch: Vec<Extend>) -> Verdicts<Extended>;
        journal(batch: Vec<Journal>) -> Verdicts<EffectRow>;
        settle(batch: Vec<Settle>) -> Verdicts<Settled>;
        sweep(request: SweepRequest) -> Swept;
        redrive(request: Redrive) -> Verdicts<MessageId>;
        operate(request: Operate) -> Stepped;
        edit(request: Edit) -> Edited;
        discard(request: Discard) -> Verdicts<MessageId>;
        cancel(request: Cancel) -> Verdicts<Cancellation>;
        pause(request: ChangeQueue) -> ();
        resolve(request: Resolve) -> Resolved;
        note(note: Note) -> ();
        change_token(request: ChangeToken) -> Vec<TokenRecord>;
    }
}
