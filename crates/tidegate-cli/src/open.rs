//! Opening what a command works on: the store that `--store` or `TIDEGATE_STORE` names, else `tidegate.db`; or the one that
//! a server keeps ([`target`](crate::target) decides which).
//!
//! Only a command that is there to store something may create a store; every other one says that there is none. What the
//! system forbids about a file is found out before SQLite is asked, because SQLite answers "cannot open" to all of it.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{AccessFlags, Uid, User, access};
use tidegate::engine::Opening;
use tidegate::store::Act;
use tidegate::{Address, Engine, Store, StoreErrorKind};
use tidegate_remote::RemoteStore;

use crate::exit::{Code, Problem};
use crate::output::Output;
use crate::production::Production;
use crate::target::{Server, Target};

/// Whether a store that is not there is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Existing,
    Create,
}

/// What a `--store` names. The password of a server may also come from the environment, where other users of the machine
/// do not see it as they see a command line.
pub(crate) fn place(named: &str) -> Result<Address, Problem> {
    let address = Address::of(named).map_err(|error| {
        Problem::usage(error.what())
            .hint("--store PATH or --store postgres://HOST/DATABASE, or the environment variable TIDEGATE_STORE")
    })?;
    Ok(match address {
        Address::File(path) => Address::File(path),
        Address::Server(server) => Address::Server(match password() {
            Some(password) => server.with_password(&password),
            None => server,
        }),
    })
}

#[expect(clippy::disallowed_methods, reason = "the command is the one place that reads the environment")]
fn password() -> Option<String> {
    std::env::var("PGPASSWORD").ok().filter(|password| !password.is_empty())
}

/// What a command works on, and how it asks about it.
pub(crate) struct Asked {
    pub(crate) target: Target,
    /// Acts without asking, however many messages there are and wherever they are.
    pub(crate) yes: bool,
    pub(crate) output: Output,
}

impl Asked {
    /// Whether contents are masked unless they are asked for.
    pub(crate) fn masks(&self) -> bool {
        match &self.target {
            Target::Store(_) => false,
            Target::Server(server) => !server.options.reveal,
        }
    }

    fn server(&self, server: &Server) -> Result<Engine, Problem> {
        let store: Arc<dyn Store> = Arc::new(RemoteStore::new(&server.url, server.options.clone())?);
        Ok(Engine::Other(match &server.production {
            Some(name) if !self.yes => {
                Arc::new(Production::new(store, name.clone(), server.url.to_string(), self.output.clone()))
            }
            Some(_) | None => store,
        }))
    }
}

/// Opens the store, lets `work` use it, and closes it whatever the work came to.
pub(crate) async fn with_store<F, Fut>(asked: &Asked, access: Access, work: F) -> Result<Code, Problem>
where
    F: FnOnce(Arc<dyn Store>) -> Fut + Send,
    Fut: Future<Output = Result<Code, Problem>> + Send,
{
    with_any_engine(asked, access, |engine| work(engine.store())).await
}

/// The same with what keeps it.
pub(crate) async fn with_any_engine<F, Fut>(asked: &Asked, access: Access, work: F) -> Result<Code, Problem>
where
    F: FnOnce(Engine) -> Fut + Send,
    Fut: Future<Output = Result<Code, Problem>> + Send,
{
    match &asked.target {
        Target::Store(named) => with_engine(named, access, work).await,
        Target::Server(server) => work(asked.server(server)?).await,
    }
}

/// The same for what is an engine's to do, and no server's.
pub(crate) async fn with_engine<F, Fut>(named: &str, access: Access, work: F) -> Result<Code, Problem>
where
    F: FnOnce(Engine) -> Fut + Send,
    Fut: Future<Output = Result<Code, Problem>> + Send,
{
    let engine = open(&place(named)?, access).await?;
    let ended = work(engine.clone()).await;
    engine.close().await;
    ended
}

/// Opens a store.
async fn open(address: &Address, access: Access) -> Result<Engine, Problem> {
    open_with(address, access, Opening::default()).await
}

/// Opens a store as it is said; whether it is made is said by the access.
pub(crate) async fn open_with(address: &Address, access: Access, mut opening: Opening) -> Result<Engine, Problem> {
    if let Address::File(path) = address {
        check(path, access)?;
    }
    opening.create = access == Access::Create;
    opening.busy_timeout = busy_timeout()?;
    Engine::open(address, opening).await.map_err(|error| {
        // The arguments are in order; it is the store that this program cannot work on.
        let is_another = error.kind() == StoreErrorKind::Invalid;
        let problem = Problem::from(error);
        if is_another { Problem { code: Code::Conflict, ..problem } } else { problem }
    })
}

/// How long a file that another process holds is tried again, if the environment says so.
#[expect(clippy::disallowed_methods, reason = "the command is the one place that reads the environment")]
fn busy_timeout() -> Result<Option<Duration>, Problem> {
    let Some(value) = std::env::var_os("TIDEGATE_BUSY_MS") else { return Ok(None) };
    match value.to_str().and_then(|text| text.parse().ok()) {
        Some(milliseconds) => Ok(Some(Duration::from_millis(milliseconds))),
        None => {
            Err(Problem::usage(format!("TIDEGATE_BUSY_MS is {value:?}")).hint("a number of milliseconds, such as 5000"))
        }
    }
}

/// What can be known about the place without opening it.
pub(crate) fn check(path: &Path, access: Access) -> Result<(), Problem> {
    let shown = path.display();
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if path.is_dir() {
        return Err(Problem::usage(format!("store {shown} is a directory")).hint("name a file in it: --store PATH"));
    }
    if !directory.is_dir() {
        return Err(Problem::new(Code::NotFound, format!("no directory {}", directory.display()))
            .hint("make it first; a store creates its file, not the directories above it"));
    }
    // An empty file is what an interrupted creation leaves; whoever only looks must not make a store of it.
    let has_content = path.metadata().is_ok_and(|about| about.len() > 0);
    if !has_content && access == Access::Existing {
        let what =
            if path.exists() { format!("{shown} is empty, and no store yet") } else { format!("no store at {shown}") };
        return Err(Problem::new(Code::NotFound, what)
            .hint("--store PATH or TIDEGATE_STORE names another one; `tidegate enqueue` creates it"));
    }
    // The write-ahead log and its index are files of their own beside the store, even for a reader.
    for (place, what) in [(path, "store"), (directory, "directory of the store,")] {
        if place.exists() && !may_write(place) {
            return Err(Problem::new(Code::NotAllowed, format!("{what} {} may not be written", place.display())).hint(
                "the file and its directory must be writable for this user; to look only, copy the file and its -wal",
            ));
        }
    }
    Ok(())
}

fn may_write(place: &Path) -> bool {
    access(place, AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
}

/// Who acts and why. The actor is the operating system's user, not what the environment says of itself.
pub(crate) fn act(reason: Option<&str>) -> Act {
    let uid = Uid::current();
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    Act { actor: name.unwrap_or_else(|| format!("uid {uid}")), reason: reason.unwrap_or_default().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_path_or_an_address() {
        let file = |named: &str| {
            let place = place(named).map_err(|problem| (problem.code, problem.what))?;
            Ok(place.file().map(|path| path.display().to_string()))
        };
        assert_eq!(file("a/b.db"), Ok(Some("a/b.db".to_owned())));
        assert_eq!(file("sqlite://a/b.db"), Ok(Some("a/b.db".to_owned())));
        assert_eq!(file("sqlite:///var/b.db"), Ok(Some("/var/b.db".to_owned())));
        for server in ["postgres://u:secret@host/db", "postgresql://host/db"] {
            assert_eq!(file(server), Ok(None));
            assert!(!place(server).unwrap().to_string().contains("secret"));
        }
        for refused in ["", "sqlite://", "mysql://u:secret@host/db"] {
            let (code, what) = file(refused).unwrap_err();
            assert_eq!(code, Code::Usage);
            assert!(what.contains(refused.split_once("://").map_or("\"\"", |(scheme, _)| scheme)), "{what}");
            assert!(!what.contains("secret"), "{what}");
        }
    }

    #[test]
    fn somebody_acts() {
        assert!(!act(None).actor.is_empty());
        assert_eq!(act(Some("because")).reason, "because");
    }
}
