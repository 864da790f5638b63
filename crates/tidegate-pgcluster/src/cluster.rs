//! One cluster: made, started, asked whether it is ready, ended in several ways, started again.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::Error;
use crate::programs::Programs;
use crate::watchdog::Watchdog;

/// The variable that names a server for the tests of several processes, by its URL: of a superuser, because tests end the
/// connections of others.
pub const TEST_POSTGRES: &str = "TIDEGATE_TEST_POSTGRES";

const SUPERUSER: &str = "tidegate";
/// How often a condition at the border to another process is looked at.
const POLL: Duration = Duration::from_millis(10);
/// How often at most: a minute's worth. A server after a crash reads its log first.
const POLLS: u32 = 6000;
/// How many ports are tried: each was free a moment before.
const PORTS: u32 = 5;

/// What a cluster is to be like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Every commit is on the disk before it is answered, as in production. Off: faster, for tests of nothing durable.
    pub durable: bool,
    /// Lines for `postgresql.conf`, such as `max_connections = 50`; the last of a name holds.
    pub configuration: Vec<String>,
    /// The directory in which the cluster's own is made; the system's one for temporary files unless it is named.
    pub within: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { durable: true, configuration: Vec::new(), within: None }
    }
}

/// A PostgreSQL cluster. Its directory and its processes go with it.
#[derive(Debug)]
pub struct Cluster {
    address: Address,
    /// None for a cluster that somebody else started.
    own: Option<Own>,
    psql: PathBuf,
}

/// Where a server is and how to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
}

#[derive(Debug)]
struct Own {
    programs: Programs,
    user: Option<User>,
    /// The server, when it runs.
    server: Mutex<Option<Child>>,
    watchdog: Watchdog,
}

/// Whom the server runs as: PostgreSQL refuses to run as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl Cluster {
    /// Makes a cluster and starts it; returns when it answers.
    ///
    /// # Errors
    /// There is no PostgreSQL here, with what to install; or it does not start, with what it said.
    pub fn start(settings: Settings) -> Result<Self, Error> {
        Self::start_with(Programs::find()?, settings)
    }

    /// The same with programs that were found, or installed, before.
    ///
    /// # Errors
    /// It does not start, with what it said.
    #[expect(clippy::needless_pass_by_value, reason = "settings are for one cluster")]
    pub fn start_with(programs: Programs, settings: Settings) -> Result<Self, Error> {
        let (directory, user) = directory(settings.within.as_deref(), "tidegate-pg")?;
        let data = directory.join("data");
        // Before anything else runs: whatever happens from here on, the directory goes.
        let watchdog = Watchdog::over(&directory, &data.join("postmaster.pid"))?;
        let password = secret()?;
        initialise(&programs, user.as_ref(), &directory, &password)?;
        configure(&data, &directory, &settings)?;
        let address = Address { host: "127.0.0.1".to_owned(), port: 0, user: SUPERUSER.to_owned(), password };
        let psql = programs.psql.clone();
        let own = Own { programs, user, server: Mutex::new(None), watchdog };
        let mut cluster = Self { address, own: Some(own), psql };
        for _ in 0..PORTS {
            cluster.address.port = free_port()?;
            match cluster.start_again() {
                Err(error) if error.what.contains("could not bind") => {}
                started => return started.map(|()| cluster),
            }
        }
        Err(Error::new(format!("{PORTS} ports that were free were taken a moment later")))
    }

    /// The cluster of this test process: made by the first who asks, or the one that [`TEST_POSTGRES`] names. It ends with
    /// the process.
    ///
    /// Others use it at the same time: do not restart it, and use a schema or a [`Cluster::database`] of your own.
    ///
    /// # Panics
    /// When there is none, with what to install: a test without its server has failed.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| {
            let cluster = Self::named().unwrap_or_else(|| Self::start(Settings::default()));
            cluster.unwrap_or_else(|error| panic!("this test needs a PostgreSQL server: {error}"))
        })
    }

    /// The cluster that the environment names, if it names one.
    #[must_use]
    pub fn named() -> Option<Result<Self, Error>> {
        #[expect(clippy::disallowed_methods, reason = "how one process tells the tests of many which server is theirs")]
        let url = std::env::var(TEST_POSTGRES).ok()?;
        Some(Self::at(&url))
    }

    /// A cluster that runs already and stays when this value goes.
    ///
    /// # Errors
    /// The URL is none, or nobody answers there.
    pub fn at(url: &str) -> Result<Self, Error> {
        let address = Address::parse(url)?;
        let cluster = Self { address, own: None, psql: Programs::find()?.psql };
        cluster.sql("postgres", "select 1")?;
        Ok(cluster)
    }

    /// The URL of the database `postgres` as its superuser.
    #[must_use]
    pub fn url(&self) -> String {
        self.address.url("postgres")
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The URL of a database, which is made if it is not there yet.
    ///
    /// # Errors
    /// What the server says.
    pub fn database(&self, name: &str) -> Result<String, Error> {
        let quoted = name.replace('"', "\"\"");
        let literal = name.replace('\'', "''");
        let known = self.sql("postgres", &format!("select 1 from pg_database where datname = '{literal}'"))?;
        if known.trim().is_empty() {
            self.sql("postgres", &format!("create database \"{quoted}\"")).or_else(|error| {
                // Another process was quicker.
                if error.what.contains("already exists") { Ok(String::new()) } else { Err(error) }
            })?;
        }
        Ok(self.address.url(name))
    }

    /// Runs statements through `psql` and returns what they print: a line per row, columns divided by `|`.
    ///
    /// # Errors
    /// What the server says.
    pub fn sql(&self, database: &str, statements: &str) -> Result<String, Error> {
        self.address.sql(&self.psql, database, statements)
    }

    /// The directory of the cluster, with its `log`; none if somebody else started it.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.watchdog.directory())
    }

    /// Ends it in good order: every connection is closed, and nothing is left to recover.
    ///
    /// # Errors
    /// It is not ours, does not run, or does not end.
    pub fn stop(&self) -> Result<(), Error> {
        self.end("INT")
    }

    /// Ends every process of it at once, as an immediate shutdown does, and starts it again: it recovers from its log.
    ///
    /// # Errors
    /// It is not ours, does not run, or does not come back.
    pub fn restart_immediately(&self) -> Result<(), Error> {
        self.end("QUIT")?;
        self.start_again()
    }

    /// Kills the server's first process, as when memory ran out; the others notice and go. [`Cluster::start_again`] after it.
    ///
    /// # Errors
    /// It is not ours or does not run.
    pub fn kill(&self) -> Result<(), Error> {
        self.end("KILL")
    }

    /// Starts it where it was, on the same port; returns when it answers.
    ///
    /// # Errors
    /// It is not ours, or does not start, with what it said.
    pub fn start_again(&self) -> Result<(), Error> {
        let own = self.ours()?;
        let mut server = own.server.lock().unwrap_or_else(PoisonError::into_inner);
        if server.is_some() {
            return Err(Error::new("the cluster runs already"));
        }
        for _ in 0..POLLS {
            let log_began = own.log_length();
            let mut process = own.spawn(self.address.port)?;
            match self.ready(&mut process)? {
                Ready::Yes => {
                    *server = Some(process);
                    return Ok(());
                }
                Ready::Ended => {
                    let said = own.log_since(log_began);
                    // The processes of a server that was killed go by themselves, each when it next looks up.
                    if !(said.contains("still in use") || said.contains("is another postmaster")) {
                        return Err(Error::new(format!("the server ended while it started:\n{said}")));
                    }
                    pause();
                }
            }
        }
        Err(Error::new("the processes of the server that was killed do not go"))
    }

    /// Waits until the server answers a query, or has ended.
    fn ready(&self, process: &mut Child) -> Result<Ready, Error> {
        let mut last = None;
        for _ in 0..POLLS {
            if process.try_wait().map_err(|e| Error::new(format!("cannot wait for postgres: {e}")))?.is_some() {
                return Ok(Ready::Ended);
            }
            match self.sql("postgres", "select 1") {
                Ok(_) => return Ok(Ready::Yes),
                Err(error) => last = Some(error),
            }
            pause();
        }
        let _killed = process.kill();
        let _status = process.wait();
        Err(last.unwrap_or_else(|| Error::new("the server does not answer")))
    }

    fn end(&self, signal: &str) -> Result<(), Error> {
        let own = self.ours()?;
        let mut server = own.server.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process = server.take().ok_or_else(|| Error::new("the cluster does not run"))?;
        let sent = Command::new("sh")
            .args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &process.id().to_string()])
            .status()
            .map_err(|e| Error::new(format!("cannot start sh: {e}")))?;
        if !sent.success() {
            *server = Some(process);
            return Err(Error::new(format!("cannot send {signal} to the server")));
        }
        process.wait().map(drop).map_err(|e| Error::new(format!("cannot wait for postgres: {e}")))
    }

    fn ours(&self) -> Result<&Own, Error> {
        self.own.as_ref().ok_or_else(|| {
            Error::new(format!("the cluster at port {} was started by somebody else", self.address.port))
                .hint("a test that restarts its server starts one of its own: Cluster::start")
        })
    }
}

enum Ready {
    Yes,
    Ended,
}

impl Own {
    fn log(&self) -> PathBuf {
        self.watchdog.directory().join("log")
    }

    fn log_length(&self) -> u64 {
        fs::metadata(self.log()).map_or(0, |meta| meta.len())
    }

    fn log_since(&self, began: u64) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let began = usize::try_from(began).unwrap_or(0).min(text.len());
        String::from_utf8_lossy(&text[began..]).into_owned()
    }

    fn spawn(&self, port: u16) -> Result<Child, Error> {
        let directory = self.watchdog.directory();
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log())
            .map_err(|e| Error::new(format!("cannot open {}: {e}", self.log().display())))?;
        let mut command = as_user(&self.programs.postgres, self.user.as_ref(), directory);
        command.arg("-D").arg(directory.join("data")).args(["-p", &port.to_string()]);
        command.stdout(Stdio::null()).stderr(log);
        command.spawn().map_err(|e| Error::new(format!("cannot start {}: {e}", self.programs.postgres.display())))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(own) = self.own.take() {
            // It ends the server and returns when that is done; then there is somebody to be waited for.
            drop(own.watchdog);
            if let Some(mut server) = own.server.into_inner().unwrap_or_else(PoisonError::into_inner) {
                let _killed = server.kill();
                let _status = server.wait();
            }
        }
    }
}

impl Address {
    pub(crate) fn url(&self, database: &str) -> String {
        let Self { host, port, user, password } = self;
        format!("postgres://{user}:{password}@{host}:{port}/{database}")
    }

    /// Of a URL with user, password, host and port, as `cargo xtask pg` prints it.
    fn parse(url: &str) -> Result<Self, Error> {
        let parts = || {
            let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"))?;
            let (login, place) = rest.split_once('@')?;
            let (user, password) = login.split_once(':')?;
            let (host, port) = place.split('/').next()?.rsplit_once(':')?;
            let port = port.parse().ok()?;
            Some(Self { host: host.to_owned(), port, user: user.to_owned(), password: password.to_owned() })
        };
        parts().ok_or_else(|| {
            Error::new(format!("{TEST_POSTGRES} is not the URL of a server"))
                .hint("postgres://USER:PASSWORD@HOST:PORT/postgres, as `cargo xtask pg` prints it")
        })
    }

    pub(crate) fn sql(&self, psql: &Path, database: &str, statements: &str) -> Result<String, Error> {
        let output = Command::new(psql)
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", &self.host, "-p", &self.port.to_string()])
            .args(["-U", &self.user, "-d", database, "-c", statements])
            .envs([("PGPASSWORD", self.password.as_str()), ("PGCONNECT_TIMEOUT", "10"), ("LC_ALL", "C")])
            .stdin(Stdio::null())
            .output()
            .map_err(|e| Error::new(format!("cannot start {}: {e}", psql.display())))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::new(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// Makes a directory that only its owner may enter, and says who that is when it is not this process's user.
pub(crate) fn directory(within: Option<&Path>, name: &str) -> Result<(PathBuf, Option<User>), Error> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let within = within.map_or_else(std::env::temp_dir, Path::to_owned);
    for _ in 0..1000 {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        // Short: the path of a socket has a hundred bytes.
        let path = within.join(format!("{name}-{}-{number}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {
                let user = unprivileged(&path)?;
                if let Some(user) = &user {
                    std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid))
                        .map_err(|e| Error::new(format!("cannot give {} to {}: {e}", path.display(), user.name)))?;
                }
                return Ok((path, user));
            }
            // Left by a process of this number that was killed together with its watchdog.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::new(format!("cannot make {}: {e}", path.display()))),
        }
    }
    Err(Error::new(format!("a thousand clusters of earlier processes lie in {}", within.display())))
}

/// Another user to run as, when the owner of what this process makes is root.
fn unprivileged(made: &Path) -> Result<Option<User>, Error> {
    let owner = fs::metadata(made).map_err(|e| Error::new(format!("cannot look at {}: {e}", made.display())))?.uid();
    if owner != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(|e| Error::new(format!("cannot read /etc/passwd: {e}")))?;
    ["postgres", "nobody"].into_iter().find_map(|name| user(&users, name)).map(Some).ok_or_else(|| {
        Error::new("PostgreSQL does not run as root, and there is no user `postgres` or `nobody`")
            .hint("run this as another user, or: useradd --system postgres")
    })
}

fn user(users: &str, name: &str) -> Option<User> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next().filter(|found| *found == name)?;
        let uid = fields.nth(1)?.parse().ok()?;
        Some(User { name: found.to_owned(), uid, gid: fields.next()?.parse().ok()? })
    })
}

/// A program that runs as a user, in a directory that user may enter, in a process group of its own: what stops a test
/// from a terminal does not stop its server before the test.
pub(crate) fn as_user(program: &Path, user: Option<&User>, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).stdin(Stdio::null()).env("LC_ALL", "C").process_group(0);
    for name in ["PGDATA", "PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGSERVICE", "PGTZ"] {
        command.env_remove(name);
    }
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// Makes the cluster's files. Text is ordered as a language orders it, as with most providers, where that can be had: a
/// query that relies on the order of bytes has to say so.
fn initialise(programs: &Programs, user: Option<&User>, directory: &Path, password: &str) -> Result<(), Error> {
    let secret = directory.join("secret");
    write(&secret, password)?;
    if let Some(user) = user {
        std::os::unix::fs::chown(&secret, Some(user.uid), Some(user.gid))
            .map_err(|e| Error::new(format!("cannot give {} to {}: {e}", secret.display(), user.name)))?;
    }
    let attempt = |order: &[&str]| {
        let mut command = as_user(&programs.initdb, user, directory);
        command.arg("-D").arg(directory.join("data")).args(["-U", SUPERUSER]).arg("--pwfile").arg(&secret);
        command.args(["-A", "scram-sha-256", "-E", "UTF8", "--data-checksums", "--no-sync"]).args(order);
        command.output().map_err(|e| Error::new(format!("cannot start {}: {e}", programs.initdb.display())))
    };
    let by_language = ["--locale=C", "--locale-provider=icu", "--icu-locale=en-US"];
    let mut output = if programs.version >= 15 { attempt(&by_language)? } else { attempt(&["--locale=C"])? };
    if !output.status.success() && programs.version >= 15 {
        // A server that was built without ICU.
        output = attempt(&["--locale=C"])?;
    }
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(format!("`initdb` ended with {}\n{}", output.status, said.trim())).hint(format!(
        "the user it runs as ({}) must be able to enter {}; TMPDIR chooses another place",
        user.map_or("this one", |user| user.name.as_str()),
        directory.display()
    )))
}

fn configure(data: &Path, directory: &Path, settings: &Settings) -> Result<(), Error> {
    let file = data.join("postgresql.conf");
    let mut text = fs::read_to_string(&file).map_err(|e| Error::new(format!("cannot read {}: {e}", file.display())))?;
    let sockets = directory.display().to_string().replace('\'', "''");
    // A server that is told to end does not as long as a connection waits for its client's first word. One of a process that
    // is stopped just then says nothing for as long as it may: a minute, unless this says less.
    write!(
        text,
        "\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{sockets}'\nmax_connections = 200\n\
         authentication_timeout = 10s\nlog_min_messages = warning\nlogging_collector = off\n"
    )
    .expect("a string takes what it is given");
    if !settings.durable {
        text.push_str("fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n");
    }
    for line in &settings.configuration {
        text.push_str(line);
        text.push('\n');
    }
    write(&file, &text)
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    fs::write(file, text).map_err(|e| Error::new(format!("cannot write {}: {e}", file.display())))
}

/// Sixteen bytes of chance as hexadecimal digits: other users of this machine reach the loopback interface as well.
fn secret() -> Result<String, Error> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| Error::new(format!("cannot read /dev/urandom: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A port that nobody listens on at this moment.
pub(crate) fn free_port() -> Result<u16, Error> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|e| Error::new(format!("no port of the loopback interface is free: {e}")))
}

#[expect(clippy::disallowed_methods, reason = "between two looks at another process, which cannot be told to signal")]
pub(crate) fn pause() {
    std::thread::sleep(POLL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_a_server_is_read_back_from_what_is_printed() {
        let address =
            Address { host: "127.0.0.1".into(), port: 5433, user: "tidegate".into(), password: "0af3".into() };
        assert_eq!(Address::parse(&address.url("postgres")), Ok(address));
        for wrong in ["", "localhost", "postgres://host/db", "postgres://u:p@host", "mysql://u:p@h:1/d"] {
            let error = Address::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("hint: postgres://USER:PASSWORD@HOST:PORT/postgres"), "{error}");
        }
    }

    #[test]
    fn the_user_to_run_as_is_read_from_the_list_of_users() {
        let users = "root:x:0:0:root:/:/bin/sh\npostgresql:x:7:7::/:\npostgres:x:101:104:PostgreSQL:/var:/bin/sh\n";
        assert_eq!(user(users, "postgres"), Some(User { name: "postgres".into(), uid: 101, gid: 104 }));
        assert_eq!(user(users, "nobody"), None);
    }
}
