//! Finds the programs of PostgreSQL, or installs them, or says what to install.
//!
//! Distributions keep `initdb` and `postgres` off the path, each in a directory of its version; the newest is taken.
//! Installing is done for `cargo xtask` alone: a test that finds nothing fails and says what to do.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;

/// The oldest release that Tidegate supports.
const OLDEST: u32 = 14;

/// Where packages put a version's programs, before and after the version.
const DIRECTORIES: [(&str, &str); 6] = [
    ("/usr/lib/postgresql", "bin"),
    ("/usr/pgsql-*", "bin"),
    ("/usr/libexec/postgresql*", ""),
    ("/opt/homebrew/opt/postgresql@*", "bin"),
    ("/usr/local/opt/postgresql@*", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "bin"),
];

const HINT: &str = "`cargo xtask pg` installs it where it can (as root, with apt-get); elsewhere install the server yourself: \
                    on Debian apt-get install postgresql, on Fedora dnf install postgresql-server, on Alpine apk add postgresql, \
                    on macOS brew install postgresql";
const POOLER_HINT: &str = "`cargo xtask pg` installs it where it can (as root, with apt-get); elsewhere install pgbouncer yourself: \
                           on Debian apt-get install pgbouncer, on Fedora dnf install pgbouncer, on macOS brew install pgbouncer";

/// The programs of one PostgreSQL.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Makes a cluster.
    pub initdb: PathBuf,
    /// Serves it.
    pub postgres: PathBuf,
    /// Asks it.
    pub psql: PathBuf,
    /// The major version of all of them.
    pub version: u32,
}

impl Programs {
    /// On the path, where `pg_config` says, and in the directories of the usual packages.
    ///
    /// # Errors
    /// There is none, or only one that is too old; with what to install.
    pub fn find() -> Result<Self, Error> {
        let mut too_old = None;
        for directory in places() {
            let postgres = directory.join("postgres");
            let initdb = directory.join("initdb");
            let (Some(version), Some(_)) = (version_of(&postgres), version_of(&initdb)) else { continue };
            if version < OLDEST {
                too_old = Some(version);
                continue;
            }
            let Some(psql) =
                [directory.join("psql"), PathBuf::from("psql")].into_iter().find(|psql| version_of(psql).is_some())
            else {
                return Err(Error::new(format!("PostgreSQL {version} is here but its `psql` is not"))
                    .hint("install the client as well, on Debian: apt-get install postgresql-client"));
            };
            return Ok(Self { initdb, postgres, psql, version });
        }
        Err(match too_old {
            Some(version) => Error::new(format!("PostgreSQL {version} is too old: {OLDEST} or newer is needed")),
            None => Error::new("no PostgreSQL: `initdb` and `postgres` were not found"),
        }
        .hint(HINT))
    }

    /// The same, after an attempt to install the server when it is missing.
    ///
    /// # Errors
    /// It is missing and cannot be installed from here.
    pub fn find_or_install() -> Result<Self, Error> {
        Self::find().or_else(|missing| {
            install(&["postgresql", "postgresql-client"], &missing)?;
            Self::find()
        })
    }
}

/// The program `pgbouncer`.
///
/// # Errors
/// There is none; with what to install.
pub fn pgbouncer() -> Result<PathBuf, Error> {
    ["pgbouncer", "/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer", "/opt/homebrew/bin/pgbouncer"]
        .into_iter()
        .map(PathBuf::from)
        .find(|program| output(program, &["--version"]).is_some())
        .ok_or_else(|| Error::new("no pgbouncer: it was not found").hint(POOLER_HINT))
}

/// The same, after an attempt to install it when it is missing.
///
/// # Errors
/// It is missing and cannot be installed from here.
pub fn pgbouncer_or_install() -> Result<PathBuf, Error> {
    pgbouncer().or_else(|missing| {
        install(&["pgbouncer"], &missing)?;
        pgbouncer()
    })
}

/// The directories to look in, in their order. The empty one stands for the path.
fn places() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::new()];
    if let Some(said) = output(Path::new("pg_config"), &["--bindir"]) {
        places.push(PathBuf::from(said.trim()));
    }
    for (versions, bin) in DIRECTORIES {
        places.extend(newest_first(Path::new(versions)).into_iter().map(|version| version.join(bin)));
    }
    places.push(PathBuf::from("/usr/local/pgsql/bin"));
    places
}

/// The directories of versions: those in a directory, or beside each other with a common beginning (`…*`).
fn newest_first(versions: &Path) -> Vec<PathBuf> {
    let beginning = versions.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_suffix('*'));
    let (parent, beginning) = match beginning {
        Some(beginning) => (versions.parent().unwrap_or(versions), beginning),
        None => (versions, ""),
    };
    let mut found: Vec<(u32, PathBuf)> = (std::fs::read_dir(parent).into_iter().flatten().flatten())
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(beginning)?;
            Some((version.split('.').next()?.parse().ok()?, entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The major version that a program says it has.
fn version_of(program: &Path) -> Option<u32> {
    major(&output(program, &["--version"])?)
}

/// From "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)" or "initdb (PostgreSQL) 18beta1".
fn major(said: &str) -> Option<u32> {
    let (_, number) = said.split_once("(PostgreSQL) ")?;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    (output.status.success()).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Has Debian's packages installed, without the cluster and the services they would start by themselves.
fn install(packages: &[&str], missing: &Error) -> Result<(), Error> {
    if output(Path::new("apt-get"), &["--version"]).is_none() {
        return Err(missing.clone());
    }
    if output(Path::new("id"), &["-u"]).is_none_or(|id| id.trim() != "0") {
        return Err(missing.clone());
    }
    let list = packages.join(" ");
    say(&format!("{}; installing {list} with apt-get", missing.what));
    let script = "\
        set -e
        export DEBIAN_FRONTEND=noninteractive
        apt-get update
        # The package's own cluster would listen on the usual port for ever.
        if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
            mkdir -p /etc/postgresql-common
            echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
        fi
        apt-get install --yes --no-install-recommends -o Dpkg::Options::=--force-confold \"$@\"";
    let status = Command::new("sh")
        .args(["-c", script, "sh"])
        .args(packages)
        .stdin(Stdio::null())
        .status()
        .map_err(|e| Error::new(format!("cannot start apt-get: {e}")))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(format!("apt-get install {list} ended with {status}"))
        .hint(missing.hint.clone().unwrap_or_else(|| format!("install {list} yourself"))))
}

#[expect(
    clippy::print_stderr,
    reason = "who runs a chore wants to know why it takes so long, and what it changes here"
)]
fn say(what: &str) {
    eprintln!("{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_a_program_says() {
        for (said, expected) in [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some(15)),
            ("initdb (PostgreSQL) 18beta1\n", Some(18)),
            ("psql (PostgreSQL) 14\n", Some(14)),
            ("pgbouncer 1.18.0\n", None),
        ] {
            assert_eq!(major(said), expected, "{said}");
        }
    }

    #[test]
    fn versions_are_ordered_by_number_and_the_newest_is_first() {
        let directory = std::env::temp_dir().join(format!("tidegate-pgcluster-versions-{}", std::process::id()));
        for name in ["9.6", "14", "100", "pgsql-15", "pgsql-9", "other"] {
            std::fs::create_dir_all(directory.join(name)).unwrap();
        }
        let names = |path: &Path| -> Vec<String> {
            newest_first(path).iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(&directory), ["100", "14", "9.6"]);
        assert_eq!(names(&directory.join("pgsql-*")), ["pgsql-15", "pgsql-9"]);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
