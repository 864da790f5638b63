//! Opens a store: reads its URL, connects, and refuses a server on which "stored" would not mean "durable and once".

use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tidegate_core::error::{StoreError, StoreErrorKind};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::Options;
use crate::conn::{Conn, Statements, Texts};
use crate::copied;
use crate::group::Limits;
use crate::listen::{Line, Tls};
use crate::migrate;
use crate::row;
use crate::shared::{NoConnection, Shared};
use crate::trouble::{Class, Trouble, class, said};

/// The oldest server with what the statements use.
const LEAST_SERVER: i32 = 140_000;

/// How long to wait for a connection before it is tried again, or given up.
const WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// What a URL says beyond what the driver reads.
#[derive(Debug, Clone, PartialEq)]
struct Url {
    config: Config,
    root_cert: Option<String>,
    statements: Option<Statements>,
    schema: Option<String>,
    pool_size: Option<usize>,
}

impl Url {
    /// Reads `postgres://…?statements=unnamed&schema=…&pool_size=…&sslrootcert=…`; the rest is the driver's.
    fn parse(url: &str) -> Result<Self, StoreError> {
        let (mut root_cert, mut statements, mut schema, mut pool_size) = (None, None, None, None);
        let mut kept = Vec::new();
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslrootcert", path)) => root_cert = Some(path.replace("%2F", "/").replace("%2f", "/")),
                Some(("schema", name)) => schema = Some(name.to_owned()),
                Some(("pool_size", text)) => {
                    let number = text.parse().ok().filter(|number| (1..=1000).contains(number));
                    pool_size = Some(number.ok_or_else(|| {
                        StoreError::invalid(format!("pool_size={text} in the URL"))
                            .hint("how many connections a process may have, 1 to 1000")
                    })?);
                }
                Some(("statements", "unnamed")) => statements = Some(Statements::Unnamed),
                Some(("statements", "prepared")) => statements = Some(Statements::Prepared),
                Some(("statements", other)) => {
                    return Err(StoreError::invalid(format!("statements={other} in the URL"))
                        .hint("statements=unnamed behind a proxy that pools transactions, else statements=prepared"));
                }
                _ => kept.push(pair),
            }
        }
        let plain = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
        // Nothing of the URL: it may hold a password.
        let config = Config::from_str(&plain).map_err(|e| {
            StoreError::invalid(format!("the PostgreSQL URL cannot be read: {e}"))
                .hint("it looks like postgres://user:password@host:5432/database")
                .source(e)
        })?;
        Ok(Self { config, root_cert, statements, schema, pool_size })
    }
}

/// Whether a name can be written into a statement as it is.
fn check_schema(schema: &str) -> Result<(), StoreError> {
    let first = schema.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let rest = schema.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if first && rest && schema.len() <= 63 && !schema.starts_with("pg_") {
        return Ok(());
    }
    Err(StoreError::invalid(format!("invalid schema name {schema:?}"))
        .hint("1 to 63 of the characters a-z 0-9 _, the first one no digit, and not pg_…"))
}

/// How every connection of this process is made, and what it calls itself unless the URL says that.
fn connecting(mut config: Config, root_cert: Option<&str>, name: &str) -> Result<(Config, Tls), StoreError> {
    if config.get_application_name().is_none() {
        config.application_name(name);
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(std::time::Duration::from_secs(5));
    }
    // A server that is gone without a word must not keep a worker silent for hours.
    config.keepalives(true);
    config.keepalives_idle(std::time::Duration::from_secs(10));
    config.keepalives_interval(std::time::Duration::from_secs(5));
    config.keepalives_retries(3);
    config.tcp_user_timeout(std::time::Duration::from_secs(30));
    let tls = if config.get_ssl_mode() == SslMode::Disable { Tls::None } else { Tls::Checked(tls(root_cert)?) };
    Ok((config, tls))
}

/// One connection to the server of a URL, as the store's own are made but for nothing of the store's: for an application
/// that keeps tables of its own in the same database. What carries it runs on the runtime of the caller.
///
/// # Errors
/// `Invalid` when the URL cannot be read; `Unavailable` when the server cannot be reached.
///
/// # Cancel safety
/// Safe: nothing is done but connecting.
pub async fn connect(url: &str) -> Result<tokio_postgres::Client, StoreError> {
    let url = Url::parse(url)?;
    let (config, tls) = connecting(url.config, url.root_cert.as_deref(), "tidegate-application")?;
    let unreachable = |e: tokio_postgres::Error| {
        StoreError::unavailable(format!("the PostgreSQL server cannot be reached: {}", said(&e))).source(e)
    };
    match tls {
        Tls::None => {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(unreachable)?;
            // Its end is told to whoever uses the client.
            tokio::spawn(async { drop(connection.await) });
            Ok(client)
        }
        Tls::Checked(tls) => {
            let (client, connection) = config.connect(tls).await.map_err(unreachable)?;
            tokio::spawn(async { drop(connection.await) });
            Ok(client)
        }
    }
}

/// The schema that the URL of a store names, or the usual one.
///
/// # Errors
/// `Invalid` when the URL cannot be read, or the name is none.
pub fn schema_of(url: &str) -> Result<String, StoreError> {
    let schema = Url::parse(url)?.schema.unwrap_or_else(|| Options::default().schema);
    check_schema(&schema)?;
    Ok(schema)
}

/// Makes the pool; nothing is sent yet.
fn pool(config: Config, tls: Tls, size: usize) -> Result<Pool, StoreError> {
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = match tls {
        Tls::None => Manager::from_config(config, tokio_postgres::NoTls, recycling),
        Tls::Checked(tls) => Manager::from_config(config, tls, recycling),
    };
    Pool::builder(manager)
        .max_size(size)
        .runtime(deadpool_postgres::Runtime::Tokio1)
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(WAIT))
        .build()
        .map_err(|e| StoreError::unavailable(format!("no pool of connections: {e}")).source(e))
}

/// TLS with the server's certificate checked: against the file that the URL names, or the public authorities.
fn tls(root_cert: Option<&str>) -> Result<MakeRustlsConnect, StoreError> {
    let Some(path) = root_cert else { return Ok(MakeRustlsConnect::with_webpki_roots()) };
    let unreadable = |what: String| {
        StoreError::invalid(format!("the certificates of {path} cannot be read: {what}"))
            .hint("sslrootcert names a PEM file with the authority that signed the server's certificate")
    };
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(path).map_err(|e| unreadable(e.to_string()))? {
        roots.add(cert.map_err(|e| unreadable(e.to_string()))?).map_err(|e| unreadable(e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| unreadable(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// Reads the URL into what the tasks share, and how other processes are talked to; nothing is sent yet.
pub(crate) fn prepare(url: &str, options: &Options) -> Result<(Arc<Shared>, Line), StoreError> {
    let url = Url::parse(url)?;
    let schema = url.schema.unwrap_or_else(|| options.schema.clone());
    check_schema(&schema)?;
    let statements = url.statements.unwrap_or(options.statements);
    let texts = Arc::new(Texts::new(&schema, statements));
    let limits = Limits { max_payload: options.max_payload, retention: options.retention };
    let (config, tls) = connecting(url.config, url.root_cert.as_deref(), &migrate::session_name(&schema))?;
    let listens = statements == Statements::Prepared;
    let line = Line { config: config.clone(), tls: tls.clone(), schema, listens };
    // Each writer keeps one; reads and operators' verbs share the others.
    let size = url.pool_size.unwrap_or(options.pool_size);
    let pool = pool(config, tls, size.max(options.writers.max(1) + 2))?;
    Ok((Arc::new(Shared::new(pool, texts, limits, options.clock.clone())), line))
}

/// Connects, checks the server, and makes the tables if there are none.
pub(crate) async fn open(shared: Arc<Shared>, options: Options) -> Result<(), StoreError> {
    let conn = shared.connect().await.map_err(|NoConnection { error, .. }| error)?;
    check_server(&conn, options.allow_unsafe).await.map_err(Trouble::into_store_error)?;
    let misses = can_miss_clients(&conn).await.map_err(Trouble::into_store_error)?;
    shared.misses_clients.store(misses, Ordering::Relaxed);
    let now = now(&shared, &conn).await.map_err(Trouble::into_store_error)?;
    migrate::bring_up(&shared, &conn, options.migrate, now).await.map_err(Trouble::into_store_error)?;
    let uuid = uuid(&conn).await.map_err(Trouble::into_store_error)?;
    // A store is opened once.
    let _known = shared.uuid.set(uuid);
    copied::arrive(&shared, &conn).await.map_err(Trouble::into_store_error)
}

/// Whether the server looks after its clients when a transaction asks for it. Where its system cannot tell it that a
/// connection was closed it refuses to, and a dead process holds what it had locked for as long as its last statement waits.
async fn can_miss_clients(conn: &Conn) -> Result<bool, Trouble> {
    const ASK: &str = concat!("-- open: whether it notices that a client is gone\n select ", misses_clients!());
    match conn.query(ASK, &[]).await {
        Ok(_) => Ok(true),
        Err(error) if class(&error) == Class::Lost => Err(error.into()),
        Err(_) => Ok(false),
    }
}

/// Has the server look twice a second whether whoever it works for is still there: not only between statements, when it
/// reads, but also while one waits for a lock. Since PostgreSQL 14.
macro_rules! misses_clients {
    () => {
        "set_config('client_connection_check_interval', '500', true)"
    };
}
pub(crate) use misses_clients;

/// By what a store knows itself.
async fn uuid(conn: &Conn) -> Result<[u8; 16], Trouble> {
    const UUID: &str = "-- open: which store it is
        select uuid from tidegate.store";
    match conn.query_opt(UUID, &[]).await? {
        Some(row) => row::bytes16(&row, "uuid", "store"),
        None => Err(StoreError::corrupt("store", "its one row is not there").into()),
    }
}

/// The store's time.
pub(crate) async fn now(shared: &Shared, conn: &Conn) -> Result<tidegate_core::Timestamp, Trouble> {
    const NOW: &str = "-- open: what time it is
        select (extract(epoch from clock_timestamp()) * 1000)::bigint";
    let rows = conn.query(NOW, &[]).await?;
    let server = rows.first().map_or(Ok(tidegate_core::Timestamp::EPOCH), |row| row::time(row, 0, "clock"))?;
    Ok(shared.time(server))
}

/// What a server must be, and what it should.
async fn check_server(conn: &Conn, allow_unsafe: bool) -> Result<(), Trouble> {
    const SERVER: &str = "-- open: what the server is
        select current_setting('server_version_num')::integer, pg_is_in_recovery(),
            current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',
            current_setting('synchronous_commit'), current_setting('server_encoding'),
            current_setting('server_version')";
    let rows = conn.query(SERVER, &[]).await?;
    let Some(row) = rows.first() else { return Err(Trouble::Again("the server did not say what it is")) };
    let of = "server";
    let version: i32 = row::column(row, 0, of)?;
    if version < LEAST_SERVER {
        let shown: &str = row::column(row, 6, of)?;
        return Err(StoreError::invalid(format!("PostgreSQL {shown} is too old"))
            .hint("it must be 14 or newer")
            .into());
    }
    let encoding: &str = row::column(row, 5, of)?;
    if encoding != "UTF8" {
        return Err(StoreError::invalid(format!("the database's encoding is {encoding}"))
            .hint("make one with: create database … encoding 'UTF8'")
            .into());
    }
    if row::column::<bool, _>(row, 1, of)? {
        return Err(StoreError::unavailable("this server is a standby: it only reads")
            .hint("give the URL of the primary, or several hosts with target_session_attrs=read-write")
            .into());
    }
    for (at, setting, loses) in [
        (2, "fsync", "a power cut loses what was acknowledged, or the whole database"),
        (3, "full_page_writes", "a power cut in the middle of a page loses what was acknowledged"),
    ] {
        if row::column::<bool, _>(row, at, of)? {
            continue;
        }
        if !allow_unsafe {
            return Err(StoreError::new(
                StoreErrorKind::Unavailable,
                format!("{setting} is off on this server: {loses}"),
            )
            .hint(format!("set {setting} = on; only where nothing may be lost can it be allowed"))
            .into());
        }
        tracing::warn!(setting, "{loses}");
    }
    let synchronous: &str = row::column(row, 4, of)?;
    if synchronous == "off" {
        tracing::warn!(
            "synchronous_commit is off by default on this server; the store's own transactions switch it on"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_with_what_the_driver_does_not_know() {
        let url =
            Url::parse("postgres://u@h/d?statements=unnamed&schema=pay&sslmode=require&sslrootcert=%2Fa").unwrap();
        assert_eq!((url.statements, url.schema.as_deref()), (Some(Statements::Unnamed), Some("pay")));
        assert_eq!((url.root_cert.as_deref(), url.config.get_ssl_mode()), (Some("/a"), SslMode::Require));
        assert_eq!(url.config.get_dbname(), Some("d"));
        assert_eq!(Url::parse("postgres://u@h/d?pool_size=20").unwrap().pool_size, Some(20));
        for wrong in ["statements=maybe", "pool_size=0", "pool_size=many"] {
            assert!(Url::parse(&format!("postgres://u@h/d?{wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_error_about_a_url_does_not_show_its_password() {
        let error = Url::parse("postgres://u:secret@h/d?nonsense=1").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn a_schema_is_a_name_that_needs_no_quotes() {
        for bad in ["", "Tidegate", "1st", "a-b", "a.b", "pg_x", "a\"b"] {
            assert!(check_schema(bad).is_err(), "{bad}");
        }
        assert!(check_schema("tidegate_2").is_ok());
    }
}
