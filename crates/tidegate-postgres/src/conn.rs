//! A connection, and how statements are sent on it.
//!
//! Statements are constants that name the tables of the default schema; those of another one are made of them once. They
//! are prepared once per connection, or sent unnamed where a proxy gives each transaction another connection. Several
//! statements can be sent together: they run in their order, and cost one round trip.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io::Cursor;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use deadpool_postgres::Object;
use futures_util::SinkExt as _;
use futures_util::future::{MaybeDone, join, join_all, maybe_done};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Row};

use crate::copy::Rows;
use crate::row::Tid;
use crate::writes::{self, Part, Writes};

/// A value that is bound to a statement, with the type it has there.
pub(crate) trait Param: Send + Sync {
    /// PostgreSQL's type.
    fn ty(&self) -> Type;
    /// As the driver wants it.
    fn sql(&self) -> &(dyn ToSql + Sync);
}

macro_rules! params {
    ($($ty:ty => $pg:ident),* $(,)?) => { $(
        impl Param for $ty {
            fn ty(&self) -> Type {
                Type::$pg
            }
            fn sql(&self) -> &(dyn ToSql + Sync) {
                self
            }
        }
    )* };
}

params! {
    i64 => INT8, Option<i64> => INT8, i32 => INT4, bool => BOOL,
    String => TEXT, Option<String> => TEXT, &str => TEXT, Option<&str> => TEXT,
    Vec<u8> => BYTEA, &[u8] => BYTEA, Option<&[u8]> => BYTEA, [u8; 16] => BYTEA, [u8; 32] => BYTEA,
    Vec<i64> => INT8_ARRAY, Vec<Option<i64>> => INT8_ARRAY, Vec<i32> => INT4_ARRAY, Vec<Option<i32>> => INT4_ARRAY, &[i64] => INT8_ARRAY,
    Vec<bool> => BOOL_ARRAY,
    Vec<String> => TEXT_ARRAY, Vec<Option<String>> => TEXT_ARRAY, Vec<&str> => TEXT_ARRAY,
    Vec<Option<&str>> => TEXT_ARRAY,
    Vec<&[u8]> => BYTEA_ARRAY, Vec<Option<&[u8]>> => BYTEA_ARRAY, Vec<[u8; 16]> => BYTEA_ARRAY, Vec<[u8; 32]> => BYTEA_ARRAY,
    Vec<Option<[u8; 16]>> => BYTEA_ARRAY, Vec<Tid> => TID_ARRAY,
}

/// How statements are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Statements {
    /// Prepared once for each connection: the fastest.
    #[default]
    Prepared,
    /// Unnamed, for proxies that give each transaction another connection of theirs.
    Unnamed,
}

/// The schema that the statements' constants name.
pub(crate) const SCHEMA: &str = "tidegate";

/// The statements' texts for the schema of this store.
#[derive(Debug)]
pub(crate) struct Texts {
    schema: String,
    pub(crate) statements: Statements,
    /// By address and length of the constant; empty for the default schema.
    made: Mutex<HashMap<(usize, usize), Arc<str>>>,
}

impl Texts {
    pub(crate) fn new(schema: &str, statements: Statements) -> Self {
        Self { schema: schema.to_owned(), statements, made: Mutex::default() }
    }

    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// A text in which the default schema is named, for this store's.
    pub(crate) fn in_schema(&self, sql: &str) -> String {
        sql.replace("tidegate.", &format!("{}.", self.schema))
    }

    fn of(&self, sql: &'static str) -> Text {
        if self.schema == SCHEMA {
            return Text::Constant(sql);
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let text = made.entry((sql.as_ptr().addr(), sql.len())).or_insert_with(|| self.in_schema(sql).into());
        Text::Made(Arc::clone(text))
    }
}

enum Text {
    Constant(&'static str),
    Made(Arc<str>),
}

impl Text {
    fn as_str(&self) -> &str {
        match self {
            Self::Constant(text) => text,
            Self::Made(text) => text,
        }
    }
}

/// A statement and what is bound to it.
pub(crate) type Step<'a> = (&'static str, &'a [&'a dyn Param]);

/// What is sent at the end of a step: rows that are copied, or a statement.
#[derive(Clone, Copy)]
pub(crate) enum Sent<'a> {
    Rows(&'a Rows),
    Statement(Step<'a>),
}

/// A pooled connection with the texts of its store.
pub(crate) struct Conn {
    client: Object,
    texts: Arc<Texts>,
    /// Rows that were copied were refused: what the server answers from then on is not told apart.
    broken: AtomicBool,
    /// What is to be sent in front of whatever is sent next.
    waiting: Mutex<Vec<Writes>>,
}

type Sending<'a> = Pin<Box<MaybeDone<Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>>>>;

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn").field("closed", &self.client.is_closed()).finish_non_exhaustive()
    }
}

impl Conn {
    pub(crate) fn new(client: Object, texts: Arc<Texts>) -> Self {
        Self { client, texts, broken: AtomicBool::new(false), waiting: Mutex::default() }
    }

    /// Whether nothing more may be sent on it.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Whether rows can be copied: not through a proxy that gives the next transaction another connection.
    pub(crate) fn copies(&self) -> bool {
        self.texts.statements == Statements::Prepared
    }

    pub(crate) fn texts(&self) -> &Texts {
        &self.texts
    }

    /// The driver's client, for what has no parameters.
    pub(crate) fn client(&self) -> &tokio_postgres::Client {
        &self.client
    }

    /// The same, for a transaction that the driver looks after.
    pub(crate) fn client_mut(&mut self) -> &mut tokio_postgres::Client {
        &mut self.client
    }

    /// A transaction on it may be open and cannot be ended: nobody else may get it.
    pub(crate) fn discard(self) {
        let _closed_when_dropped = Object::take(self.client);
    }

    /// Sends this with whatever is sent next, in front of it: nobody waits for its answer in between.
    pub(crate) fn put_off(&self, writes: Writes) {
        self.waiting().push(writes);
    }

    /// What was put off is not sent any more.
    pub(crate) fn forget_what_was_put_off(&self) {
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Writes>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one statement.
    pub(crate) async fn query(&self, sql: &'static str, params: &[&dyn Param]) -> Result<Vec<Row>, Error> {
        if self.waiting().is_empty() {
            return self.query_now(sql, params).await;
        }
        self.prepare(std::iter::once((sql, params))).await?;
        let (before, rows) = self.behind(&[], self.query_now(sql, params)).await?;
        before?;
        rows.unwrap_or_else(|| Ok(Vec::new()))
    }

    async fn query_now(&self, sql: &'static str, params: &[&dyn Param]) -> Result<Vec<Row>, Error> {
        let text = self.texts.of(sql);
        if self.texts.statements == Statements::Unnamed {
            let typed: Vec<_> = params.iter().map(|param| (param.sql(), param.ty())).collect();
            return self.client.query_typed(text.as_str(), &typed).await;
        }
        let types: Vec<Type> = params.iter().map(|param| param.ty()).collect();
        let statement = self.client.prepare_typed_cached(text.as_str(), &types).await?;
        let values: Vec<_> = params.iter().map(|param| param.sql()).collect();
        self.client.query(&statement, &values).await
    }

    /// Sends one statement that gives a row at most.
    pub(crate) async fn query_opt(&self, sql: &'static str, params: &[&dyn Param]) -> Result<Option<Row>, Error> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Sends one statement; answers how many rows it changed.
    pub(crate) async fn execute(&self, sql: &'static str, params: &[&dyn Param]) -> Result<u64, Error> {
        if self.waiting().is_empty() {
            return self.execute_now(sql, params).await;
        }
        self.prepare(std::iter::once((sql, params))).await?;
        let (before, changed) = self.behind(&[], self.execute_now(sql, params)).await?;
        before?;
        changed.unwrap_or(Ok(0))
    }

    async fn execute_now(&self, sql: &'static str, params: &[&dyn Param]) -> Result<u64, Error> {
        let text = self.texts.of(sql);
        if self.texts.statements == Statements::Unnamed {
            let typed: Vec<_> = params.iter().map(|param| (param.sql(), param.ty())).collect();
            return self.client.execute_typed(text.as_str(), &typed).await;
        }
        let types: Vec<Type> = params.iter().map(|param| param.ty()).collect();
        let statement = self.client.prepare_typed_cached(text.as_str(), &types).await?;
        let values: Vec<_> = params.iter().map(|param| param.sql()).collect();
        self.client.execute(&statement, &values).await
    }

    /// Sends several statements in one round trip; they run in this order. The first error is the one that counts: in a
    /// transaction all after it failed for its sake.
    pub(crate) async fn many(&self, steps: &[Step<'_>]) -> Result<Vec<Vec<Row>>, Error> {
        self.prepare(steps.iter().copied()).await?;
        // Polled in order, each sends its statement at its first poll: all are prepared by now.
        let answers = join_all(steps.iter().map(|(sql, params)| self.query_now(sql, params)));
        if self.waiting().is_empty() {
            return answers.await.into_iter().collect();
        }
        let (before, answers) = self.behind(&[], answers).await?;
        before?;
        answers.unwrap_or_default().into_iter().collect()
    }

    /// Copies rows into a table.
    async fn copy(&self, rows: &Rows) -> Result<(), Error> {
        let copied = async {
            let statement = self.client.prepare_typed_cached(self.texts.of(rows.sql).as_str(), &[]).await?;
            let sink = self.client.copy_in::<_, Cursor<Arc<[u8]>>>(&statement).await?;
            let mut sink = pin!(sink);
            sink.send(Cursor::new(Arc::clone(&rows.data))).await?;
            sink.finish().await
        };
        // Refused before it began, a copy is answered twice: the driver sends two ends of it, and the server reads over the
        // first one only while it takes rows. From then on each answer would be taken for the next one's.
        copied.await.map(drop).inspect_err(|error| {
            if !refuses_a_row(error) {
                self.broken.store(true, Ordering::Relaxed);
            }
        })
    }

    async fn statement(&self, (sql, params): Step<'_>) -> Result<(), Error> {
        self.query_now(sql, params).await.map(drop)
    }

    /// Has everything on its way, in this order; whether something of it could not even be sent.
    async fn on_its_way<'a>(&'a self, items: &'a [Sent<'a>]) -> Result<(Vec<Sending<'a>>, bool), Error> {
        self.prepare(items.iter().map(|item| match item {
            Sent::Rows(rows) => (rows.sql, &[][..]),
            Sent::Statement(step) => *step,
        }))
        .await?;
        let mut sent: Vec<Sending<'a>> = Vec::with_capacity(items.len());
        for item in items {
            let sending: Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>> = match item {
                Sent::Rows(rows) => Box::pin(self.copy(rows)),
                Sent::Statement(step) => Box::pin(self.statement(*step)),
            };
            sent.push(Box::pin(maybe_done(sending)));
        }
        let mut unsent = false;
        for sending in &mut sent {
            // All are prepared, so that the first poll sends it, or fails.
            poll_fn(|context| Poll::Ready(sending.as_mut().poll(context).is_ready())).await;
            unsent |= sending.as_mut().output_mut().is_some_and(|outcome| outcome.is_err());
        }
        Ok((sent, unsent))
    }

    /// Sends what was put off, then these, then `then`; how that ended is told apart from how the others did. It is not sent
    /// where one of the others could not be.
    async fn behind<T: Send>(
        &self,
        items: &[Sent<'_>],
        then: impl Future<Output = T> + Send,
    ) -> Result<(Result<(), Error>, Option<T>), Error> {
        let waited = std::mem::take(&mut *self.waiting());
        let laid: Vec<(Vec<Rows>, Vec<Part<'_>>)> = waited.iter().map(|writes| writes.parts(self.copies())).collect();
        let params: Vec<_> = laid.iter().map(|(_, parts)| writes::bound(parts)).collect();
        let mut all: Vec<Sent<'_>> = Vec::new();
        for ((rows, parts), params) in laid.iter().zip(&params) {
            all.extend(writes::sent(rows, parts, params));
        }
        all.extend(items.iter().copied());
        let (mut sent, unsent) = self.on_its_way(&all).await?;
        let then = async { if unsent { None } else { Some(then.await) } };
        let (_, then) = join(join_all(sent.iter_mut().map(Pin::as_mut)), then).await;
        Ok((outcome(&mut sent), then))
    }

    /// Sends what was put off, and waits for it.
    pub(crate) async fn send(&self) -> Result<(), Error> {
        let (sent, _) = self.behind(&[], async {}).await?;
        sent
    }

    /// Sends rows and statements, and then a last statement, together; how the last one ended is told apart from how the others
    /// did. It is not sent where one of the others could not be: it may be the commit. Statements cost one round trip in
    /// all, and rows one for each table.
    pub(crate) async fn all_then(
        &self,
        items: &[Sent<'_>],
        last: &str,
    ) -> (Result<(), Error>, Option<Result<(), Error>>) {
        match self.behind(items, self.client.batch_execute(last)).await {
            Ok(ended) => ended,
            Err(error) => (Err(error), None),
        }
    }

    /// Prepares what is not prepared yet, so that sending it is a single message.
    pub(crate) async fn prepare<'a>(&self, steps: impl Iterator<Item = Step<'a>>) -> Result<(), Error> {
        if self.texts.statements == Statements::Unnamed {
            return Ok(());
        }
        for (sql, params) in steps {
            let types: Vec<Type> = params.iter().map(|param| param.ty()).collect();
            self.client.prepare_typed_cached(self.texts.of(sql).as_str(), &types).await?;
        }
        Ok(())
    }
}

/// Whether an error is about a row that the server had read: a copy that has come so far is answered once. What it says of the
/// data otherwise, as that a column is not there, it says before.
fn refuses_a_row(error: &Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("23"))
}

/// The first thing that went wrong.
fn outcome(sent: &mut [Sending<'_>]) -> Result<(), Error> {
    sent.iter_mut().filter_map(|sending| sending.as_mut().take_output()).collect()
}
