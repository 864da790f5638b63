//! The wallet: what customers have, as a double-entry ledger in SQLite or PostgreSQL.
//!
//! Each credit is two entries: what the gateway owes us, and what the customer has. Both sides of the demo keep these
//! tables, the twin in a file of its own, the Tidegate side in the store's database, so that a credit commits together with
//! its confirmation. No unique index protects them: a second credit is to show in the books, not to be hidden by an
//! error.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rusqlite::{Connection, OpenFlags, params};
use serde::{Deserialize, Serialize};
use tidegate::postgres::{self, PostgresStore};
use tidegate::sqlite::SqliteStore;
use tidegate::{Address, Engine, HandlerError, Server, Tidegate, Transactional};

use crate::gateway::{LedgerEntry, LedgerResult, OperationBody};

/// The other side of every customer's credit: what the gateway owes us.
pub const CLEARING: &str = "gateway-clearing";

const SCHEMA: &str = "
create table if not exists wallet_entries (
    id      integer primary key,
    deposit text    not null,
    account text    not null,
    side    text    not null check (side in ('debit', 'credit')),
    cents   integer not null check (cents > 0)
) strict;
create table if not exists wallet_closed (account text primary key) strict, without rowid;
";

const IS_CLOSED: &str = "select exists (select 1 from wallet_closed where account = ?1)";

const INSERT_ENTRY: &str = "insert into wallet_entries (deposit, account, side, cents) values (?1, ?2, ?3, ?4)";

const SUM: &str = "
select coalesce(sum(cents) filter (where side = 'debit'), 0),
       coalesce(sum(cents) filter (where side = 'credit'), 0),
       coalesce(sum(case side when 'credit' then cents else -cents end) filter (where account <> ?1), 0)
from wallet_entries";

const CREDITED: &str = "
select deposit, count(*), sum(cents) from wallet_entries where side = 'credit' and account <> ?1 group by deposit";

/// Another process may be writing; that takes milliseconds, unless the disk is in trouble.
const BUSY: Duration = Duration::from_secs(30);

/// What became of a credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credited {
    /// It is booked; the number of the customer's entry.
    Entry(i64),
    /// The customer's account is closed: nothing was booked, and nothing ever will be.
    AccountClosed,
}

/// The sums of a wallet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sums {
    /// The sum of all debit entries.
    pub debits: i64,
    /// The sum of all credit entries.
    pub credits: i64,
    /// What all customers together have.
    pub wallet_total: i64,
}

/// What was credited for one deposit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// How often.
    pub times: u32,
    /// How much altogether.
    pub cents: i64,
}

/// A wallet's sums and the credits of each deposit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Of all entries.
    pub sums: Sums,
    /// By deposit; one that was never credited is not in it.
    pub credited: BTreeMap<String, Credit>,
}

/// Adds the wallet's tables to a database, and closes these accounts.
///
/// # Errors
/// The file cannot be opened or written.
pub fn prepare(path: &Path, closed: &[String]) -> anyhow::Result<Connection> {
    let context = || format!("cannot prepare the wallet in {}", path.display());
    let connection = Connection::open(path).with_context(context)?;
    connection.busy_timeout(BUSY).with_context(context)?;
    connection.execute_batch("pragma journal_mode = wal; pragma synchronous = full;").with_context(context)?;
    connection.execute_batch(SCHEMA).with_context(context)?;
    for account in closed {
        connection
            .execute("insert into wallet_closed (account) values (?1) on conflict do nothing", [account])
            .with_context(context)?;
    }
    Ok(connection)
}

/// Adds the wallet's tables to a store's database, and closes these accounts.
///
/// # Errors
/// The database cannot be opened or written.
///
/// # Cancel safety
/// Safe: it can be done again.
pub async fn prepare_at(database: &Address, closed: &[String]) -> anyhow::Result<()> {
    match database {
        Address::File(path) => prepare(path, closed).map(drop),
        Address::Server(server) => {
            let wallet = schema_of_wallet(&postgres::schema_of(server.reveal())?);
            server::prepare(&postgres::connect(server.reveal()).await?, &wallet, closed).await
        }
    }
}

/// Books a deposit, in the caller's transaction.
///
/// # Errors
/// The database's.
pub fn credit(transaction: &Connection, deposit: &str, account: &str, cents: i64) -> Result<Credited, rusqlite::Error> {
    let closed: bool = transaction.prepare_cached(IS_CLOSED)?.query_row([account], |row| row.get(0))?;
    if closed {
        return Ok(Credited::AccountClosed);
    }
    let mut insert = transaction.prepare_cached(INSERT_ENTRY)?;
    insert.execute(params![deposit, CLEARING, "debit", cents])?;
    insert.execute(params![deposit, account, "credit", cents])?;
    Ok(Credited::Entry(transaction.last_insert_rowid()))
}

/// The wallet of a store: in the store's own database, so that a credit commits together with its confirmation.
#[derive(Clone, Debug)]
pub enum Wallet {
    /// In the store's file.
    Sqlite(Arc<SqliteStore>),
    /// Beside the store's schema.
    Postgres(Arc<PostgresStore>),
}

/// The wallet's tables on a server, in a schema of their own beside the store's: they are the application's.
mod server {
    use tidegate::postgres::tokio_postgres::{Client, Transaction};
    use tidegate::{Server, postgres};

    use super::{Books, CLEARING, Context, Credit, Credited, Sums};

    /// Several processes may prepare one database at once.
    const SCHEMA: &str = "begin;
        select pg_advisory_xact_lock(hashtext('deposits wallet'));
        create schema if not exists wallet;
        create table if not exists wallet.wallet_entries (
            id      bigint generated always as identity primary key,
            deposit text   not null,
            account text   not null,
            side    text   not null check (side in ('debit', 'credit')),
            cents   bigint not null check (cents > 0)
        );
        create table if not exists wallet.wallet_closed (account text primary key);
        commit;";

    const CLOSE: &str = "insert into wallet.wallet_closed (account) select unnest($1::text[]) on conflict do nothing";

    const IS_CLOSED: &str = "select exists (select 1 from wallet.wallet_closed where account = $1)";

    const INSERT: &str = "insert into wallet.wallet_entries (deposit, account, side, cents)
        values ($1, $2, 'debit', $3), ($1, $4, 'credit', $3) returning id";

    const SUM: &str = "
        select coalesce(sum(cents) filter (where side = 'debit'), 0)::bigint,
            coalesce(sum(cents) filter (where side = 'credit'), 0)::bigint,
            coalesce(sum(case side when 'credit' then cents else -cents end) filter (where account <> $1), 0)::bigint
        from wallet.wallet_entries";

    const CREDITED: &str = "select deposit, count(*), sum(cents)::bigint from wallet.wallet_entries
        where side = 'credit' and account <> $1 group by deposit";

    /// A statement for the wallet beside this store.
    pub(super) fn of(sql: &str, wallet: &str) -> String {
        sql.replace("wallet.wallet_", &format!("\"{wallet}\".wallet_"))
            .replace("if not exists wallet;", &format!("if not exists \"{wallet}\";"))
    }

    pub(super) async fn prepare(client: &Client, wallet: &str, closed: &[String]) -> anyhow::Result<()> {
        let context = || format!("cannot prepare the wallet in schema {wallet}");
        client.batch_execute(&of(SCHEMA, wallet)).await.with_context(context)?;
        client.execute(&of(CLOSE, wallet), &[&closed]).await.with_context(context)?;
        Ok(())
    }

    /// Books a deposit, in the transaction of its effect.
    pub(super) async fn credit(
        transaction: &Transaction<'_>,
        wallet: String,
        (deposit, account, cents): (String, String, i64),
    ) -> Result<Credited, postgres::WorkError> {
        if transaction.query_one(&of(IS_CLOSED, &wallet), &[&account]).await?.get(0) {
            return Ok(Credited::AccountClosed);
        }
        let entries = transaction.query(&of(INSERT, &wallet), &[&deposit, &CLEARING, &cents, &account]).await?;
        Ok(Credited::Entry(entries.last().map_or(0, |entry| entry.get(0))))
    }

    pub(super) async fn read(server: &Server, wallet: &str) -> anyhow::Result<Books> {
        let mut client = postgres::connect(server.reveal()).await?;
        // One snapshot, so that the sums and the credits are of one moment.
        let level = postgres::tokio_postgres::IsolationLevel::RepeatableRead;
        let transaction = client.build_transaction().isolation_level(level).read_only(true).start().await?;
        let sums = transaction.query_one(&of(SUM, wallet), &[&CLEARING]).await.context("cannot sum the wallet")?;
        let sums = Sums { debits: sums.get(0), credits: sums.get(1), wallet_total: sums.get(2) };
        let rows = transaction.query(&of(CREDITED, wallet), &[&CLEARING]).await?;
        let credited = rows.into_iter().map(|row| {
            let times: i64 = row.get(1);
            anyhow::Ok((row.get(0), Credit { times: u32::try_from(times)?, cents: row.get(2) }))
        });
        Ok(Books { sums, credited: credited.collect::<Result<_, _>>()? })
    }
}

/// The schema of the wallet beside the store in this one.
pub(crate) fn schema_of_wallet(schema: &str) -> String {
    format!("{schema}_wallet")
}

impl Wallet {
    /// The wallet of a store.
    ///
    /// # Errors
    /// The store's database is not to be had: it was opened elsewhere.
    pub fn of(tide: &Tidegate) -> anyhow::Result<Self> {
        match tide.engine() {
            Engine::Sqlite(store) => Ok(Self::Sqlite(Arc::clone(store))),
            Engine::Postgres(store) => Ok(Self::Postgres(Arc::clone(store))),
            Engine::Other(_) => anyhow::bail!(
                "deposits are credited in the store's own database, and this store shows none; hint: open a file, or \
                 postgres://HOST/DATABASE"
            ),
        }
    }

    /// Books a deposit, as the effect that it is.
    ///
    /// # Errors
    /// As [`Transactional::in_store`].
    ///
    /// # Cancel safety
    /// As [`Transactional::in_store`].
    pub async fn credit(&self, effect: Transactional, request: &OperationBody) -> Result<Credited, HandlerError> {
        let OperationBody { deposit, account, cents, .. } = request.clone();
        match self {
            Self::Sqlite(store) => {
                effect.in_store(store, move |transaction| credit(transaction, &deposit, &account, cents)).await
            }
            Self::Postgres(store) => {
                let wallet = schema_of_wallet(store.schema());
                effect
                    .in_database(store, move |transaction| {
                        Box::pin(server::credit(transaction, wallet, (deposit, account, cents)))
                    })
                    .await
            }
        }
    }
}

impl Sums {
    /// Sums a wallet.
    ///
    /// # Errors
    /// The database's.
    pub fn read(connection: &Connection) -> anyhow::Result<Self> {
        connection
            .query_row(SUM, [CLEARING], |row| {
                Ok(Self { debits: row.get(0)?, credits: row.get(1)?, wallet_total: row.get(2)? })
            })
            .context("cannot sum the wallet")
    }
}

impl Books {
    /// Reads a wallet's books from its database, without writing to it.
    ///
    /// # Errors
    /// The database is missing, or has no wallet in it.
    pub fn read(database: impl Into<Address>) -> anyhow::Result<Self> {
        match database.into() {
            Address::File(path) => Self::read_file(&path),
            Address::Server(server) => Self::read_server(&server),
        }
    }

    /// On a thread of its own, with a runtime of its own: whoever compares books has time, and may have a runtime already.
    fn read_server(server: &Server) -> anyhow::Result<Self> {
        let context = || format!("cannot read the books in {server}");
        let wallet = schema_of_wallet(&postgres::schema_of(server.reveal())?);
        let from = server.clone();
        let reading = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(server::read(&from, &wallet))
        });
        match reading.join() {
            Ok(read) => read.with_context(context),
            Err(_) => anyhow::bail!("the look at the books in {server} panicked"),
        }
    }

    fn read_file(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot read the books in {}", path.display());
        // Not read-only: a file in WAL mode whose last user was killed has to be recovered by whoever opens it next.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).with_context(context)?;
        connection.busy_timeout(BUSY).with_context(context)?;
        Self::read_from(&connection).with_context(context)
    }

    fn read_from(connection: &Connection) -> anyhow::Result<Self> {
        // One transaction, so that the sums and the credits are of one moment.
        let transaction = connection.unchecked_transaction()?;
        let sums = Sums::read(&transaction)?;
        let mut statement = transaction.prepare(CREDITED)?;
        let rows = statement.query_map([CLEARING], |row| {
            Ok((row.get::<_, String>(0)?, Credit { times: row.get(1)?, cents: row.get(2)? }))
        })?;
        let credited = rows.collect::<Result<_, rusqlite::Error>>()?;
        Ok(Self { sums, credited })
    }
}

/// What the gateway took for good, by its ledger: captured minus refunded.
#[must_use]
pub fn taken(ledger: &[LedgerEntry]) -> i64 {
    let cents = |entry: &LedgerEntry| match entry.result {
        LedgerResult::Captured => entry.cents,
        LedgerResult::Refunded => -entry.cents,
        LedgerResult::Authorised | LedgerResult::Declined | LedgerResult::Receipt => 0,
    };
    ledger.iter().map(cents).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credit_is_two_entries_and_the_books_show_a_second_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wallet.db");
        let connection = prepare(&path, &[]).unwrap();
        for (deposit, cents) in [("dep-1", 100), ("dep-2", 250), ("dep-2", 250)] {
            assert!(matches!(credit(&connection, deposit, "acct-1", cents).unwrap(), Credited::Entry(_)));
        }
        let books = Books::read(&path).unwrap();
        assert_eq!(books.sums, Sums { debits: 600, credits: 600, wallet_total: 600 });
        assert_eq!(books.credited["dep-1"], Credit { times: 1, cents: 100 });
        assert_eq!(books.credited["dep-2"], Credit { times: 2, cents: 500 });
    }

    #[test]
    fn a_closed_account_is_not_credited() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wallet.db");
        let connection = prepare(&path, &["acct-9".to_owned()]).unwrap();
        assert_eq!(credit(&connection, "dep-1", "acct-9", 100).unwrap(), Credited::AccountClosed);
        assert_eq!(Books::read(&path).unwrap(), Books::default());
    }

    #[test]
    fn preparing_a_wallet_twice_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wallet.db");
        let connection = prepare(&path, &["acct-9".to_owned()]).unwrap();
        credit(&connection, "dep-1", "acct-1", 100).unwrap();
        prepare(&path, &["acct-9".to_owned()]).unwrap();
        assert_eq!(Books::read(&path).unwrap().credited.len(), 1);
    }

    #[test]
    fn a_file_without_a_wallet_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing.db");
        let error = format!("{:#}", Books::read(&path).unwrap_err());
        assert!(error.contains("missing.db"), "{error}");
    }
}
