//! A pgbouncer in front of a cluster, pooling by transaction: what a connection sets or prepares is gone, or somebody
//! else's, after each transaction.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::Error;
use crate::cluster::{Address, Cluster, as_user, directory, free_port, pause};
use crate::programs::{self, Programs};
use crate::watchdog::Watchdog;

/// A pgbouncer. Its process and its directory go with it; the cluster behind it stays.
#[derive(Debug)]
pub struct Pooler {
    address: Address,
    process: Child,
    _watchdog: Watchdog,
}

impl Pooler {
    /// Starts one with a few server connections for any number of clients; returns when it answers.
    ///
    /// # Errors
    /// There is no pgbouncer here, with what to install; or it does not start, with what it said.
    pub fn start(cluster: &Cluster) -> Result<Self, Error> {
        let program = programs::pgbouncer()?;
        let psql = Programs::find()?.psql;
        let (directory, user) = directory(None, "tidegate-pooler")?;
        let watchdog = Watchdog::over(&directory, &directory.join("pid"))?;
        let server = cluster.address();
        let address = Address { host: "127.0.0.1".to_owned(), port: free_port()?, ..server.clone() };
        let at = directory.display();
        let configuration = format!(
            "[databases]\n* = host={host} port={server_port}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {at}/users\npidfile = {at}/pid\n\
             pool_mode = transaction\ndefault_pool_size = 5\nmax_client_conn = 200\n",
            host = server.host,
            server_port = server.port,
            port = address.port,
        );
        let write = |name: &str, text: &str| {
            std::fs::write(directory.join(name), text).map_err(|e| Error::new(format!("cannot write {at}/{name}: {e}")))
        };
        write("pgbouncer.ini", &configuration)?;
        write("users", &format!("\"{}\" \"{}\"\n", server.user, server.password))?;
        let log: PathBuf = directory.join("log");
        let file =
            std::fs::File::create(&log).map_err(|e| Error::new(format!("cannot make {}: {e}", log.display())))?;
        let mut command = as_user(&program, user.as_ref(), &directory);
        command.arg(directory.join("pgbouncer.ini")).stdout(Stdio::null()).stderr(file);
        let mut process =
            command.spawn().map_err(|e| Error::new(format!("cannot start {}: {e}", program.display())))?;
        for _ in 0..1000 {
            if address.sql(&psql, "postgres", "select 1").is_ok() {
                return Ok(Self { address, process, _watchdog: watchdog });
            }
            if process.try_wait().is_ok_and(|status| status.is_some()) {
                break;
            }
            pause();
        }
        let _killed = process.kill();
        let _status = process.wait();
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        Err(Error::new(format!("pgbouncer does not answer:\n{}", said.trim())))
    }

    /// The URL of a database behind it.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.address.url(database)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _status = self.process.wait();
    }
}
