//! The suite that every engine passes, over HTTP: the server's router on SQLite with the clock of the case beneath, and this
//! crate in front of it. Whatever the contract says, a server and a client say together.
//!
//! No case is left out. One thing does not travel, and is put back here so that whole rows can be compared: the secret half
//! of the token of a lease that somebody else holds, in the rows of the journal that were written under it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use tidegate::journal::EffectRow;
use tidegate::lifecycle::Cancellation;
use tidegate::message::NewMessage;
use tidegate::store::{
    AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, CommitListener, Discard, Edit, Edited,
    Enqueued, ExplainFacts, Extend, Extended, FailureGroup, Filter, Journal, MessageView, Note, Operate, Operation,
    Progress, Redrive, Resolve, Resolved, Settle, Settled, Stats, Stepped, Summary, SweepRequest, Swept, Verdicts,
};
use tidegate::token::TokenRecord;
use tidegate::{Clock, IdempotencyKey, Kind, MessageId, Nonce, Policy, QueueName, Store, StoreError, Tenant, Tidegate};
use tidegate_remote::{Options, RemoteStore};
use tidegate_server::Demand;
use tidegate_testkit::engine::contend_in_threads;
use tidegate_testkit::{Claimer, Engine, Place, Taken};

use crate::stage::{InProcess, served, url};

/// The nonces of leases, by message and claim: of all handles on one place.
type Nonces = Arc<Mutex<HashMap<(MessageId, u32), Nonce>>>;

/// A server's store on a file, each handle with a server of its own.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    nonces: Mutex<HashMap<String, Nonces>>,
}

#[async_trait]
impl Engine for Remote {
    async fn fresh(&self) -> Place {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tidegate.db");
        Place::new(path.to_str().unwrap(), directory)
    }

    async fn open(&self, place: &Place, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
        let nonces = Arc::clone(self.nonces.lock().unwrap().entry(place.address().to_owned()).or_default());
        let remote = open(place.address(), clock).await?;
        Ok(Arc::new(Remembering { remote, nonces }))
    }

    async fn contend(&self, place: &Place, claimers: Vec<Claimer>) -> Vec<Vec<Taken>> {
        let mut handles: Vec<(Claimer, Arc<dyn Store>)> = Vec::new();
        for claimer in claimers {
            let clock = Arc::new(tidegate::SystemClock::new());
            handles.push((claimer, Arc::new(open(place.address(), clock).await.unwrap())));
        }
        contend_in_threads(handles)
    }
}

async fn open(path: &str, clock: Arc<dyn Clock>) -> Result<RemoteStore, StoreError> {
    // A case sweeps when it wants to.
    let tide = Tidegate::builder().clock(clock).housekeeping(false).open(path).await?;
    let mut options = Options::default();
    options.reveal = true;
    RemoteStore::over(Arc::new(InProcess(served(&tide, Demand::Never))), &url(), options)
}

/// Puts the nonces of leases back.
#[derive(Debug)]
struct Remembering {
    remote: RemoteStore,
    nonces: Nonces,
}

impl Remembering {
    fn put_back(&self, id: MessageId, rows: &mut [EffectRow]) {
        let nonces = self.nonces.lock().unwrap();
        for row in rows {
            if let Some(nonce) = nonces.get(&(id, row.token.claims)) {
                row.token.nonce = *nonce;
            }
        }
    }

    fn known(&self, mut view: MessageView) -> MessageView {
        self.put_back(view.message.id, &mut view.journal);
        view
    }
}

macro_rules! as_it_is {
    ($($verb:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Remembering {
            $(async fn $verb(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                self.remote.$verb($($argument),*).await
            })*

            async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StoreError> {
                let mut claimed = self.remote.claim(request).await?;
                for lease in &mut claimed.leases {
                    let (id, token) = (lease.message.id, lease.token);
                    self.nonces.lock().unwrap().insert((id, token.claims), token.nonce);
                    self.put_back(id, &mut lease.journal);
                }
                Ok(claimed)
            }

            async fn journal(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
                let ids: Vec<MessageId> = batch.iter().map(|journal| journal.id).collect();
                let mut verdicts = self.remote.journal(batch).await?;
                for (id, verdict) in ids.into_iter().zip(&mut verdicts) {
                    verdict.iter_mut().for_each(|row| self.put_back(id, std::slice::from_mut(row)));
                }
                Ok(verdicts)
            }

            async fn inspect(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError> {
                let views = self.remote.inspect(ids).await?;
                Ok(views.into_iter().map(|view| view.map(|view| self.known(view))).collect())
            }

            async fn explain(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError> {
                let facts = self.remote.explain(id).await?;
                Ok(facts.map(|facts| ExplainFacts { view: self.known(facts.view.clone()), ..facts }))
            }

            fn on_commit(&self, listener: Weak<dyn CommitListener>) {
                self.remote.on_commit(listener);
            }
        }
    };
}

as_it_is! {
    enqueue(batch: Vec<NewMessage>) -> Verdicts<Enqueued>;
    declare(policies: Vec<(Kind, Policy)>) -> ();
    extend(batch: Vec<Extend>) -> Verdicts<Extended>;
    settle(batch: Vec<Settle>) -> Verdicts<Settled>;
    sweep(request: SweepRequest) -> Swept;
    redrive(request: Redrive) -> Verdicts<MessageId>;
    operate(request: Operate) -> Stepped;
    operations(name: Option<String>, limit: u32) -> Vec<Operation>;
    edit(request: Edit) -> Edited;
    discard(request: Discard) -> Verdicts<MessageId>;
    cancel(request: Cancel) -> Verdicts<Cancellation>;
    pause(request: ChangeQueue) -> ();
    resolve(request: Resolve) -> Resolved;
    find(tenant: Tenant, queue: QueueName, key: IdempotencyKey) -> Option<MessageId>;
    progress(ids: Vec<MessageId>) -> Vec<Option<Progress>>;
    flow(root: MessageId) -> Vec<Summary>;
    list(filter: Filter) -> Vec<Summary>;
    groups(filter: Filter) -> Vec<FailureGroup>;
    audit(after: u64, limit: u32) -> Vec<AuditEntry>;
    note(note: Note) -> ();
    tokens() -> Vec<TokenRecord>;
    change_token(request: ChangeToken) -> Vec<TokenRecord>;
    stats() -> Stats;
}

tidegate_testkit::conformance!(Remote::default());
