//! Enqueueing in the caller's transaction means all that enqueueing means: the suite's cases for it, and random commands
//! beside the reference model, on a store whose every enqueue goes through a transaction of somebody else's, by each
//! driver that has an adapter.

use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use tidegate_core::effect::EffectRow;
use tidegate_core::lifecycle::Cancellation;
use tidegate_core::message::NewMessage;
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, CommitListener, Discard, Edit, Edited,
    Enqueued, ExplainFacts, Extend, Extended, FailureGroup, Filter, Journal, MessageView, Note, Operate, Operation,
    Progress, Redrive, Resolve, Resolved, Settle, Settled, Stats, Stepped, Store, Summary, SweepRequest, Swept,
    Verdicts,
};
use tidegate_core::token::TokenRecord;
use tidegate_core::{Clock, IdempotencyKey, Kind, MessageId, QueueName, StoreError, Tenant};
use tidegate_postgres::tokio_postgres::{Client, NoTls};
use tidegate_postgres::{Options, PostgresStore};
use tidegate_testkit::check::{Check, assert_agrees};
use tidegate_testkit::conformance::{CASES, enqueue};
use tidegate_testkit::{Claimer, Engine, Place, Taken};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::engine::{Postgres, database};

/// The caller's own connections live here: the kit's runtime has no I/O.
fn callers() -> &'static Runtime {
    static CALLERS: OnceLock<Runtime> = OnceLock::new();
    CALLERS.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made")
    })
}

/// A store and a connection of its caller's.
#[derive(Debug)]
struct Through {
    store: Arc<PostgresStore>,
    caller: Caller,
}

/// Whose transactions they are.
#[derive(Debug)]
enum Caller {
    TokioPostgres(Mutex<Client>),
    #[cfg(feature = "sqlx")]
    Sqlx(Arc<Mutex<sqlx::PgConnection>>),
}

/// The engine whose stores they are.
#[derive(Debug, Clone, Copy)]
enum InTransactions {
    TokioPostgres,
    #[cfg(feature = "sqlx")]
    Sqlx,
}

impl InTransactions {
    async fn connect(self) -> Caller {
        match self {
            Self::TokioPostgres => {
                let (client, connection) =
                    tokio_postgres::connect(&database(), NoTls).await.expect("the server answers");
                tokio::spawn(connection);
                Caller::TokioPostgres(Mutex::new(client))
            }
            #[cfg(feature = "sqlx")]
            Self::Sqlx => {
                use sqlx::Connection as _;
                let connection = sqlx::PgConnection::connect(&database()).await;
                Caller::Sqlx(Arc::new(Mutex::new(connection.expect("the server answers"))))
            }
        }
    }
}

#[async_trait]
impl Engine for InTransactions {
    async fn fresh(&self) -> Place {
        Postgres.fresh().await
    }

    async fn open(&self, place: &Place, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
        let store = PostgresStore::open(place.address(), Options { clock: Some(clock), ..Options::default() }).await?;
        let caller = callers().spawn(self.connect()).await.expect("no panic");
        Ok(Arc::new(Through { store, caller }))
    }

    async fn contend(&self, place: &Place, claimers: Vec<Claimer>) -> Vec<Vec<Taken>> {
        Postgres.contend(place, claimers).await
    }
}

#[async_trait]
impl Store for Through {
    async fn enqueue(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError> {
        match &self.caller {
            Caller::TokioPostgres(client) => {
                let lost = |error| StoreError::unavailable("the caller's connection").source(error);
                let mut client = client.lock().await;
                let transaction = client.transaction().await.map_err(lost)?;
                let verdicts = self.store.enqueue_in(&transaction, batch).await?;
                transaction.commit().await.map_err(lost)?;
                Ok(verdicts)
            }
            #[cfg(feature = "sqlx")]
            Caller::Sqlx(connection) => {
                use sqlx::Connection as _;
                let (store, connection) = (Arc::clone(&self.store), Arc::clone(connection));
                // It waits with the timers of the runtime that it is polled in, which the kit's has not.
                let enqueued = callers().spawn(async move {
                    let lost = |error| StoreError::unavailable("the caller's connection").source(error);
                    let mut connection = connection.lock().await;
                    let mut transaction = connection.begin().await.map_err(lost)?;
                    let verdicts = store.enqueue_in_sqlx(&mut transaction, batch).await?;
                    transaction.commit().await.map_err(lost)?;
                    Ok(verdicts)
                });
                enqueued.await.expect("no panic")
            }
        }
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StoreError> {
        self.store.claim(request).await
    }

    async fn declare(&self, policies: Vec<(Kind, Policy)>) -> Result<(), StoreError> {
        self.store.declare(policies).await
    }

    async fn extend(&self, batch: Vec<Extend>) -> Result<Verdicts<Extended>, StoreError> {
        self.store.extend(batch).await
    }

    async fn journal(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
        self.store.journal(batch).await
    }

    async fn settle(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError> {
        self.store.settle(batch).await
    }

    async fn sweep(&self, request: SweepRequest) -> Result<Swept, StoreError> {
        self.store.sweep(request).await
    }

    async fn redrive(&self, request: Redrive) -> Result<Verdicts<MessageId>, StoreError> {
        self.store.redrive(request).await
    }

    async fn operate(&self, request: Operate) -> Result<Stepped, StoreError> {
        self.store.operate(request).await
    }

    async fn operations(&self, name: Option<String>, limit: u32) -> Result<Vec<Operation>, StoreError> {
        self.store.operations(name, limit).await
    }

    async fn edit(&self, request: Edit) -> Result<Edited, StoreError> {
        self.store.edit(request).await
    }

    async fn discard(&self, request: Discard) -> Result<Verdicts<MessageId>, StoreError> {
        self.store.discard(request).await
    }

    async fn cancel(&self, request: Cancel) -> Result<Verdicts<Cancellation>, StoreError> {
        self.store.cancel(request).await
    }

    async fn pause(&self, request: ChangeQueue) -> Result<(), StoreError> {
        self.store.pause(request).await
    }

    async fn resolve(&self, request: Resolve) -> Result<Resolved, StoreError> {
        self.store.resolve(request).await
    }

    async fn inspect(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError> {
        self.store.inspect(ids).await
    }

    async fn find(
        &self,
        tenant: Tenant,
        queue: QueueName,
        key: IdempotencyKey,
    ) -> Result<Option<MessageId>, StoreError> {
        self.store.find(tenant, queue, key).await
    }

    async fn progress(&self, ids: Vec<MessageId>) -> Result<Vec<Option<Progress>>, StoreError> {
        self.store.progress(ids).await
    }

    async fn flow(&self, root: MessageId) -> Result<Vec<Summary>, StoreError> {
        self.store.flow(root).await
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Summary>, StoreError> {
        self.store.list(filter).await
    }

    async fn groups(&self, filter: Filter) -> Result<Vec<FailureGroup>, StoreError> {
        self.store.groups(filter).await
    }

    async fn explain(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError> {
        self.store.explain(id).await
    }

    async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        self.store.audit(after, limit).await
    }

    async fn note(&self, note: Note) -> Result<(), StoreError> {
        self.store.note(note).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.store.tokens().await
    }

    async fn change_token(&self, request: ChangeToken) -> Result<Vec<TokenRecord>, StoreError> {
        self.store.change_token(request).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.store.stats().await
    }

    fn on_commit(&self, listener: Weak<dyn CommitListener>) {
        self.store.on_commit(listener);
    }
}

macro_rules! through {
    ($driver:expr; $($case:ident)*) => {
        #[test]
        fn random_commands_mean_the_same_when_messages_are_enqueued_in_their_callers_transactions() {
            assert_agrees(&$driver, &Check { scripts: 4, ..Check::default() });
        }

        $(
            #[test]
            fn $case() {
                tidegate_testkit::run(enqueue::$case(&$driver));
            }
        )*

        #[test]
        fn no_case_of_enqueueing_is_left_out() {
            let (_, all) = CASES.iter().find(|(verb, _)| *verb == "enqueue").expect("a verb of the contract");
            assert_eq!(*all, [$(stringify!($case)),*]);
        }
    };
}

macro_rules! cases {
    ($($case:ident)*) => {
        mod tokio_postgres_transactions {
            use super::*;
            through! { InTransactions::TokioPostgres; $($case)* }
        }

        #[cfg(feature = "sqlx")]
        mod sqlx_transactions {
            use super::*;
            through! { InTransactions::Sqlx; $($case)* }
        }
    };
}

cases! {
    a_new_message_is_stored_as_given_and_ready
    ids_grow_even_when_the_clock_goes_back
    a_message_survives_that_the_store_is_closed
    a_message_is_seen_by_another_handle
    a_known_key_that_waits_or_runs_is_told_as_existing
    a_completed_key_is_answered_byte_for_byte
    a_failed_key_gets_its_failure_replayed
    dead_parked_and_cancelled_keys_never_answer_and_start_no_work
    a_key_with_another_payload_is_refused
    a_key_with_another_kind_is_refused
    payloads_are_compared_by_their_value
    ignored_options_are_listed
    another_payload_version_is_no_conflict
    a_key_on_another_queue_or_of_another_tenant_is_another_key
    a_uuid_is_a_key_like_any_other
    an_unknown_key_older_than_the_retention_is_stale
    a_full_queue_refuses_and_says_when_to_come_again
    a_queue_takes_again_when_a_message_ended_or_its_limit_was_lifted
    a_batch_fills_a_queue_up_to_its_limit
    a_duplicate_is_answered_even_when_the_queue_is_full
    a_bad_item_of_a_batch_is_refused_alone
    a_duplicate_within_a_batch_is_told_as_existing
    an_empty_batch_is_answered_with_nothing
    a_deadline_that_is_over_before_the_message_is_due_is_refused
    a_duplicate_after_its_deadline_still_gets_its_answer
    a_due_time_in_the_past_means_at_once
    every_verdict_is_counted
}
