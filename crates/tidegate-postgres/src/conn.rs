//! A connection, and how statements are sent on it.
//!
//! Statements are constants that name the tables of the default schema; those of another one are made of them once. They
//! are prepared once per connection, or sent unnamed where a proxy gives each transaction another connection. Several
//! statements can be sent together: they run in their order, and cost one round trip.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use deadpool_postgres::Object;
use futures_util::future::{join, join_all, maybe_done};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Row};

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
    Vec<i64> => INT8_ARRAY, Vec<Option<i64>> => INT8_ARRAY, Vec<i32> => INT4_ARRAY, &[i64] => INT8_ARRAY,
    Vec<bool> => BOOL_ARRAY,
    Vec<String> => TEXT_ARRAY, Vec<Option<String>> => TEXT_ARRAY, Vec<&str> => TEXT_ARRAY,
    Vec<Option<&str>> => TEXT_ARRAY,
    Vec<&[u8]> => BYTEA_ARRAY, Vec<Option<&[u8]>> => BYTEA_ARRAY, Vec<[u8; 16]> => BYTEA_ARRAY, Vec<[u8; 32]> => BYTEA_ARRAY,
    Vec<Option<[u8; 16]>> => BYTEA_ARRAY,
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

/// A pooled connection with the texts of its store.
pub(crate) struct Conn {
    client: Object,
    texts: Arc<Texts>,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn").field("closed", &self.client.is_closed()).finish_non_exhaustive()
    }
}

impl Conn {
    pub(crate) fn new(client: Object, texts: Arc<Texts>) -> Self {
        Self { client, texts }
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

    /// Sends one statement.
    pub(crate) async fn query(&self, sql: &'static str, params: &[&dyn Param]) -> Result<Vec<Row>, Error> {
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
        join_all(steps.iter().map(|(sql, params)| self.query(sql, params))).await.into_iter().collect()
    }

    /// Sends several statements and then a last one in one round trip; how the last one ended is told apart from how the
    /// others did. It is not sent where one of the others could not be: it may be the commit.
    pub(crate) async fn many_then(
        &self,
        steps: &[Step<'_>],
        last: &str,
    ) -> (Result<(), Error>, Option<Result<(), Error>>) {
        if let Err(error) = self.prepare(steps.iter().copied()).await {
            return (Err(error), None);
        }
        let mut sent: Vec<_> =
            steps.iter().map(|(sql, params)| Box::pin(maybe_done(self.query(sql, params)))).collect();
        let mut unsent = false;
        for step in &mut sent {
            // All are prepared, so that the first poll sends the statement, or fails.
            poll_fn(|context| Poll::Ready(step.as_mut().poll(context).is_ready())).await;
            unsent |= step.as_mut().output_mut().is_some_and(|outcome| outcome.is_err());
        }
        let ended = async { if unsent { None } else { Some(self.client.batch_execute(last).await) } };
        let (_, ended) = join(join_all(sent.iter_mut().map(std::pin::Pin::as_mut)), ended).await;
        let mut outcomes = sent.iter_mut().filter_map(|step| step.as_mut().take_output());
        (outcomes.try_for_each(|outcome| outcome.map(drop)), ended)
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
