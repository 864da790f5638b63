//! A store that a Tidegate server keeps elsewhere: the contract of a store, over the HTTP API.
//!
//! [`RemoteStore`] is to commands and applications what an engine is, and decides as little as one: a verb is a request,
//! in the file of its name, and its verdicts are the server's. What may be lost on the way is dealt with in one place,
//! `exchange.rs`: every verb but an intent is safe to repeat, so it is repeated; what nobody knows is said to be unknown.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use tidegate::Store;
//! use tidegate_remote::{Options, RemoteStore};
//!
//! let mut options = Options::default();
//! options.token = Some("tg_…".to_owned());
//! let store = RemoteStore::new(&"https://tidegate.example.com".parse()?, options)?;
//! println!("{} queues", store.stats().await?.queues.len());
//! # Ok(())
//! # }
//! ```

mod audit;
mod batch;
mod cancel;
mod claim;
mod discard;
mod edit;
mod enqueue;
mod exchange;
mod explain;
mod extend;
mod find;
mod flow;
mod groups;
mod inspect;
mod journal;
mod list;
mod news;
mod operate;
mod pause;
mod policy;
mod redrive;
mod resolve;
mod settle;
mod stats;
mod sweep;
mod token;
mod transport;
mod url;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderValue;
use tidegate::clock::{Clock, Random, SystemClock, SystemRandom};
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

pub use transport::{NoAnswer, Transport, connections};
pub use url::ServerUrl;

#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;

use crate::exchange::Exchange;
use crate::news::Listeners;

/// How a server is reached.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// Says who asks. Sent only where nobody on the way can read it: see [`Options::plaintext`].
    pub token: Option<String>,
    /// A PEM file of authorities that are trusted beside those of the system.
    pub ca: Option<PathBuf>,
    /// Sends the token to another machine in the clear as well, where it can be read on the way.
    pub plaintext: bool,
    /// Asks for contents: without it, payloads, results and values of effects are masked in what is read. Needs a token
    /// that may reveal, and is written down by the server.
    pub reveal: bool,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long one try may take.
    pub timeout: Duration,
    /// How long a request is sent again whose answer was lost, or for which the server had no time. No pause that would end
    /// later is begun.
    pub patience: Duration,
    /// What pauses are measured with.
    pub clock: Arc<dyn Clock>,
    /// What spreads them.
    pub random: Arc<dyn Random>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            ca: None,
            plaintext: false,
            reveal: false,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            patience: Duration::from_secs(20),
            clock: Arc::new(SystemClock::new()),
            random: Arc::new(SystemRandom),
        }
    }
}

/// Without the token.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("ca", &self.ca)
            .field("reveal", &self.reveal)
            .field("timeout", &self.timeout)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// A store that a server keeps. Connections are made when they are needed, and kept.
#[derive(Debug)]
pub struct RemoteStore {
    pub(crate) exchange: Exchange,
    pub(crate) reveal: bool,
    pub(crate) listeners: Listeners,
}

impl RemoteStore {
    /// The store of a server. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` when the token cannot be one, or would be readable on its way; when the authorities cannot be read.
    pub fn new(url: &ServerUrl, options: Options) -> Result<Self, StoreError> {
        let Options { ca, connect_timeout, timeout, .. } = &options;
        let transport = transport::Http::new(url, ca.as_deref(), *connect_timeout, *timeout)?;
        Self::over(Arc::new(transport), url, options)
    }

    /// The store of a server that is reached in another way, such as a router in this process.
    ///
    /// # Errors
    /// As [`RemoteStore::new`].
    pub fn over(transport: Arc<dyn Transport>, url: &ServerUrl, options: Options) -> Result<Self, StoreError> {
        let Options { token, plaintext, reveal, patience, clock, random, .. } = options;
        if token.is_some() && !url.is_encrypted() && !url.is_loopback() && !plaintext {
            return Err(StoreError::invalid(format!("the token could be read by anybody on the way to {url}"))
                .hint("use https://; only where nobody can listen (a tunnel, a mesh), say --plaintext"));
        }
        let authorization = token.map(|token| authorization(&token)).transpose()?;
        let exchange = Exchange { transport, url: url.clone(), authorization, patience, clock, random };
        Ok(Self { exchange, reveal, listeners: Listeners::default() })
    }

    /// Where the server is.
    #[must_use]
    pub fn url(&self) -> &ServerUrl {
        &self.exchange.url
    }

    /// What is asked for along with a read.
    pub(crate) fn reveal(&self) -> Option<&'static str> {
        self.reveal.then_some("payload")
    }
}

fn authorization(token: &str) -> Result<HeaderValue, StoreError> {
    let is_plain = |c: char| c.is_ascii_graphic();
    if token.is_empty() || !token.chars().all(is_plain) {
        // The text is not repeated: it may be a token but for a line's end.
        return Err(StoreError::invalid("the token is empty, or has a sign in it that no token has")
            .hint("a token is one word that begins with tg_; make one: tidegate token create"));
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).expect("visible ASCII");
    value.set_sensitive(true);
    Ok(value)
}

#[async_trait]
impl Store for RemoteStore {
    async fn enqueue(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError> {
        self.enqueue_all(batch).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StoreError> {
        self.claim_some(&request).await
    }

    async fn declare(&self, policies: Vec<(Kind, Policy)>) -> Result<(), StoreError> {
        self.declare_all(policies).await
    }

    async fn extend(&self, batch: Vec<Extend>) -> Result<Verdicts<Extended>, StoreError> {
        self.extend_all(batch).await
    }

    async fn journal(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
        self.journal_all(batch).await
    }

    async fn settle(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError> {
        self.settle_all(batch).await
    }

    async fn sweep(&self, request: SweepRequest) -> Result<Swept, StoreError> {
        self.sweep_once(&request).await
    }

    async fn redrive(&self, request: Redrive) -> Result<Verdicts<MessageId>, StoreError> {
        self.redrive_all(request).await
    }

    async fn operate(&self, request: Operate) -> Result<Stepped, StoreError> {
        self.operate_one(request).await
    }

    async fn operations(&self, name: Option<String>, limit: u32) -> Result<Vec<Operation>, StoreError> {
        self.operations_of(name, limit).await
    }

    async fn edit(&self, request: Edit) -> Result<Edited, StoreError> {
        self.edit_one(request).await
    }

    async fn discard(&self, request: Discard) -> Result<Verdicts<MessageId>, StoreError> {
        self.discard_all(request).await
    }

    async fn cancel(&self, request: Cancel) -> Result<Verdicts<Cancellation>, StoreError> {
        self.cancel_all(request).await
    }

    async fn pause(&self, request: ChangeQueue) -> Result<(), StoreError> {
        self.change_queue(request).await
    }

    async fn resolve(&self, request: Resolve) -> Result<Resolved, StoreError> {
        self.resolve_one(request).await
    }

    async fn inspect(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError> {
        self.inspect_all(ids).await
    }

    async fn find(
        &self,
        tenant: Tenant,
        queue: QueueName,
        key: IdempotencyKey,
    ) -> Result<Option<MessageId>, StoreError> {
        self.find_key(&tenant, &queue, &key).await
    }

    async fn progress(&self, ids: Vec<MessageId>) -> Result<Vec<Option<Progress>>, StoreError> {
        self.progress_of(ids).await
    }

    async fn flow(&self, root: MessageId) -> Result<Vec<Summary>, StoreError> {
        self.flow_of(root).await
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Summary>, StoreError> {
        self.list_all(filter).await
    }

    async fn groups(&self, filter: Filter) -> Result<Vec<FailureGroup>, StoreError> {
        self.groups_of(filter).await
    }

    async fn explain(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError> {
        self.facts(id).await
    }

    async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        self.audit_after(after, limit).await
    }

    async fn note(&self, note: Note) -> Result<(), StoreError> {
        self.note_one(note).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.all_tokens().await
    }

    async fn change_token(&self, request: ChangeToken) -> Result<Vec<TokenRecord>, StoreError> {
        self.change(request).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.figures().await
    }

    fn on_commit(&self, listener: Weak<dyn CommitListener>) {
        self.listeners.add(listener);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(url: &str, change: impl FnOnce(&mut Options)) -> Result<RemoteStore, StoreError> {
        let mut options = Options::default();
        change(&mut options);
        RemoteStore::new(&url.parse().unwrap(), options)
    }

    #[test]
    fn a_token_does_not_travel_where_it_can_be_read() {
        let with_token = |options: &mut Options| options.token = Some("tg_secret".to_owned());
        for fine in ["http://127.0.0.1:7401", "http://[::1]:7401", "http://localhost:7401"] {
            assert!(store(fine, with_token).is_ok(), "{fine}");
        }
        let error = store("http://tidegate:7401", with_token).unwrap_err().to_string();
        assert!(error.contains("could be read") && error.contains("--plaintext"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        assert!(store("http://tidegate:7401", |_| {}).is_ok(), "without a token there is nothing to read");
        let plain = |options: &mut Options| {
            with_token(options);
            options.plaintext = true;
        };
        assert!(store("http://tidegate:7401", plain).is_ok());
    }

    #[test]
    fn a_token_is_shown_by_nothing() {
        let with = |token: &'static str| store("http://127.0.0.1:1", |options| options.token = Some(token.to_owned()));
        assert!(!format!("{:?}", with("tg_secret").unwrap()).contains("secret"));
        let options = Options { token: Some("tg_secret".to_owned()), ..Options::default() };
        assert!(!format!("{options:?}").contains("secret"));
        for odd in ["", "tg_secret\n", "tg secret", "tg_sécret"] {
            let error = with(odd).unwrap_err().to_string();
            assert!(error.contains("tg_") && !error.contains("cret"), "{error}");
        }
    }
}
