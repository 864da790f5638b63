//! Enqueueing in a transaction of the caller's: stored when that commits, never there when it rolls back.
//!
//! One statement with one document, answered by one document, both of them text: whoever can send a statement in a
//! transaction can enqueue in it, with any driver and any version of it. What is stored, and what a known key means, is
//! decided by a function in the database (`migrations/0002_enqueue_function.sql`), because the caller's connection is not
//! ours. Commits of such transactions are not heard of: workers find the messages when they next look.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::id::{Hex, MessageId};
use tidegate_core::lifecycle::State;
use tidegate_core::message::{Answer, Due, Failure, NewMessage};
use tidegate_core::store::{Enqueued, Verdicts};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use crate::shared::Shared;

/// How long a caller waits before it tries a full queue again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Messages, ready to be enqueued by a statement in the caller's own transaction. tokio-postgres and sqlx have adapters:
/// [`PostgresStore::enqueue_in`](crate::PostgresStore::enqueue_in) and, with the feature `sqlx`, `enqueue_in_sqlx`.
///
/// Send [`EnqueueSql::statement`] with [`EnqueueSql::parameter`] as its one parameter, a text; it returns one row with one
/// column, a text, which [`EnqueueSql::verdicts`] reads:
///
/// ```text
/// let enqueue = store.enqueue_sql(vec![message]);
/// let answer: String = tx.query_one(enqueue.statement(), &[enqueue.parameter()])?.get(0);    // by any driver
/// let verdicts = enqueue.verdicts(&answer)?;
/// tx.commit().await?;
/// ```
///
/// A verdict that is an error leaves the transaction as it was, with nothing of that message in it.
#[derive(Debug)]
pub struct EnqueueSql {
    statement: String,
    parameter: String,
    batch: Vec<Result<NewMessage, StoreError>>,
}

#[derive(Serialize)]
struct Request {
    store: Option<String>,
    retention: i64,
    /// Only a test's; else it is the server's.
    now: Option<i64>,
    messages: Vec<Item>,
}

/// A message as the function reads it: times in milliseconds, what is JSON inside a text.
#[derive(Serialize)]
struct Item {
    tenant: String,
    queue: String,
    kind: String,
    version: u32,
    priority: u8,
    key: String,
    hash: String,
    fingerprint: String,
    payload: String,
    headers: Option<String>,
    due_at: Option<i64>,
    due_in: Option<i64>,
    deadline: Option<i64>,
    max_age: Option<i64>,
    key_time: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Verdicts(Vec<Found>),
    Refused(String),
}

#[derive(Deserialize)]
struct Found {
    verdict: Verdict,
    message: Option<i64>,
    state: Option<String>,
    body: Option<String>,
    code: Option<String>,
    ignored: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    New,
    Existing,
    Replayed,
    Stale,
    Late,
    Full,
    KeyConflict,
}

impl EnqueueSql {
    pub(crate) fn of(batch: Vec<NewMessage>, store: &Shared) -> Self {
        let limits = store.limits;
        let batch: Vec<_> =
            batch.into_iter().map(|message| message.check(limits.max_payload).map(|()| message)).collect();
        let request = Request {
            store: store.uuid.get().map(|uuid| Hex(uuid).to_string()),
            retention: millis(limits.retention),
            now: store.clock.as_ref().map(|clock| clock.now().as_millis()),
            messages: batch.iter().flatten().map(Item::of).collect(),
        };
        let parameter = serde_json::to_string(&request).expect("names, numbers and texts are plain data");
        Self { statement: format!("select {}.enqueue_batch($1)", store.texts.schema()), parameter, batch }
    }

    /// The statement: a `select` with one parameter and one row of one column, all of them of type `text`.
    #[must_use]
    pub fn statement(&self) -> &str {
        &self.statement
    }

    /// Its parameter. It carries payloads: do not log it.
    #[must_use]
    pub fn parameter(&self) -> &str {
        &self.parameter
    }

    /// Sends it on a transaction of this engine's driver.
    pub(crate) async fn send(
        self,
        transaction: &tokio_postgres::Transaction<'_>,
    ) -> Result<Verdicts<Enqueued>, StoreError> {
        let sent = match self.asks_nothing() {
            Ok(refused) => return Ok(refused),
            Err(sent) => sent,
        };
        let failed = |error: tokio_postgres::Error| failed(error.code().map(SqlState::code)).source(error);
        // Unnamed, so that it works behind a proxy that gives each transaction another connection.
        let rows = transaction.query_typed(&sent.statement, &[(&sent.parameter, Type::TEXT)]).await.map_err(failed)?;
        let answer = rows.first().map(|row| row.try_get::<_, &str>(0)).transpose().map_err(failed)?;
        sent.verdicts(answer.unwrap_or_default())
    }

    /// Sends it on a transaction of sqlx.
    #[cfg(feature = "sqlx")]
    pub(crate) async fn send_sqlx(
        self,
        transaction: &mut sqlx::Transaction<'_, sqlx::Postgres>,
    ) -> Result<Verdicts<Enqueued>, StoreError> {
        let sent = match self.asks_nothing() {
            Ok(refused) => return Ok(refused),
            Err(sent) => sent,
        };
        let failed = |error: sqlx::Error| {
            let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
            failed(code.as_deref()).source(error)
        };
        // The schema's name was checked when the store was opened, and nothing else of the statement varies.
        let statement = sqlx::AssertSqlSafe(sent.statement.clone());
        // Not kept by the connection, for the same reason as above.
        let asked = sqlx::query_scalar(statement).persistent(false).bind(&sent.parameter);
        let answer: String = asked.fetch_one(&mut **transaction).await.map_err(failed)?;
        sent.verdicts(&answer)
    }

    /// The verdicts at once, where nothing is left that could be sent.
    fn asks_nothing(self) -> Result<Verdicts<Enqueued>, Self> {
        if self.batch.iter().any(Result::is_ok) {
            return Err(self);
        }
        Ok(self.batch.into_iter().filter_map(Result::err).map(Err).collect())
    }

    /// What became of each message, in the order in which they were given: true once the caller's transaction commits.
    ///
    /// # Errors
    /// `Invalid` for a connection on which a commit would not mean "stored in this store"; nothing was stored.
    pub fn verdicts(self, answer: &str) -> Result<Verdicts<Enqueued>, StoreError> {
        let unread = || StoreError::corrupt("enqueue_batch", "its answer is none that this program knows");
        let found = match serde_json::from_str(answer).map_err(|e| unread().source(e))? {
            Reply::Verdicts(found) => found,
            Reply::Refused(why) => return Err(refused(&why)),
        };
        let mut found = found.into_iter();
        let read = |message: Result<NewMessage, StoreError>| match message {
            Ok(message) => found.next().ok_or_else(unread).and_then(|found| found.read(&message)),
            Err(refused) => Err(refused),
        };
        Ok(self.batch.into_iter().map(read).collect())
    }
}

/// What a failure of the statement means, by its SQLSTATE; the caller's transaction is over.
fn failed(code: Option<&str>) -> StoreError {
    let is = |state: &SqlState| code == Some(state.code());
    if is(&SqlState::LOCK_NOT_AVAILABLE) {
        StoreError::unavailable("a key is being enqueued by another transaction that has not ended: it is in flight")
            .hint("roll back, and repeat the transaction when the other one has ended")
            .retry_after(FULL_RETRY)
            .in_flight()
    } else if is(&SqlState::UNDEFINED_FUNCTION) || is(&SqlState::INVALID_SCHEMA_NAME) {
        StoreError::invalid("this connection is on a database without this tidegate store")
            .hint("begin the transaction in the database of this store")
    } else {
        StoreError::unavailable("the transaction failed before the messages were enqueued")
            .hint("roll back; repeating the transaction is safe")
    }
}

fn refused(why: &str) -> StoreError {
    match why {
        "store" => StoreError::invalid("this connection is on another tidegate store")
            .hint("begin the transaction in the database of this store"),
        other => StoreError::invalid(format!("the store refuses this connection: {other}")),
    }
}

impl Item {
    fn of(message: &NewMessage) -> Self {
        let (due_at, due_in) = match message.due {
            Due::Now => (None, None),
            Due::In(delay) => (None, Some(millis(delay))),
            Due::At(at) => (Some(at.as_millis()), None),
        };
        Self {
            tenant: message.tenant.as_str().to_owned(),
            queue: message.queue.as_str().to_owned(),
            kind: message.kind.as_str().to_owned(),
            version: message.version,
            priority: message.priority.get(),
            key: message.key.as_str().to_owned(),
            hash: Hex(&message.key.hash()).to_string(),
            fingerprint: Hex(&message.fingerprint().0).to_string(),
            payload: message.payload.text().to_owned(),
            headers: (!message.headers.is_empty())
                .then(|| serde_json::to_string(&message.headers).expect("a map of strings is plain data")),
            due_at,
            due_in,
            deadline: message.deadline.map(Timestamp::as_millis),
            max_age: message.max_age.map(millis),
            key_time: message.key_time.map(Timestamp::as_millis),
        }
    }
}

impl Found {
    fn read(self, message: &NewMessage) -> Result<Enqueued, StoreError> {
        let unread = || StoreError::corrupt("enqueue_batch", "a verdict without what it needs");
        let id = self.message.map(MessageId::from_i64).ok_or_else(unread);
        match self.verdict {
            Verdict::New => Ok(Enqueued::New { id: id? }),
            Verdict::Existing => {
                let state = self.state.as_deref().and_then(|name| name.parse::<State>().ok()).ok_or_else(unread)?;
                let known = ["priority", "due", "deadline", "max_age"];
                let ignored = known.into_iter().filter(|name| self.ignored.iter().any(|told| told == name)).collect();
                Ok(Enqueued::Existing { id: id?, state, ignored })
            }
            Verdict::Replayed => {
                let body = self.body.unwrap_or_default();
                let answer = match self.state.as_deref() {
                    Some("completed") => Answer::Completed(Arc::from(body)),
                    Some("failed") => Answer::Failed(Failure { code: self.code.unwrap_or_default(), detail: body }),
                    _ => return Err(unread()),
                };
                Ok(Enqueued::Replayed { id: id?, answer })
            }
            Verdict::Stale => Ok(Enqueued::Stale),
            Verdict::Late => {
                let what = "the deadline is over before the message is due";
                Err(StoreError::invalid(what).hint("give it a later deadline, or none"))
            }
            Verdict::Full => {
                let limit = self.code.unwrap_or_default();
                let what = format!("queue {} holds its {limit} messages", message.queue);
                Err(StoreError::new(StoreErrorKind::QueueFull, what)
                    .hint("slow down and repeat it under the same key, or raise the limit: tidegate queue limit")
                    .retry_after(FULL_RETRY))
            }
            Verdict::KeyConflict => {
                let id = id?;
                let what =
                    format!("key {:?} is known in queue {} with another payload: {id}", message.key, message.queue);
                Err(StoreError::new(StoreErrorKind::KeyConflict, what)
                    .hint("a key names one intended effect for as long as it is kept; give another operation a key of its own")
                    .message_id(id))
            }
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
