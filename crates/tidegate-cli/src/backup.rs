//! `tidegate backup`: copies a store that is in use into a file of its own.

use std::path::PathBuf;

use serde::Serialize;
use tidegate::{Engine, Timestamp};

use crate::exit::{Code, Problem};
use crate::open::{Access, place, with_engine};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate backup backup.db
  tidegate --store /var/lib/shop/tidegate.db backup /mnt/backup/tidegate-monday.db";

const RESTORED: &str = "\
A file only: a PostgreSQL server has pg_dump and base backups, and this command says what follows from them.

The copy is marked as one. When it is put to work in place of the store, each effect of an older message that it
knows nothing of counts as one that may have happened, and is cleared up by its policy before anything is sent.";

/// Copy the store while it is in use; never overwrites a file
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = RESTORED)]
pub(crate) struct Args {
    /// The file to make
    target: PathBuf,
}

#[derive(Serialize)]
struct Report {
    backup: String,
    bytes: u64,
    incarnation: u32,
    at: Timestamp,
}

pub(crate) async fn run(args: Args, store: &str, output: &Output) -> Result<Code, Problem> {
    if place(store)?.server().is_some() {
        return Err(on_a_server());
    }
    with_engine(store, Access::Existing, |engine: Engine| async move {
        let Engine::Sqlite(store) = engine else { return Err(on_a_server()) };
        let copied = store.backup(&args.target).await?;
        let report = Report {
            backup: copied.path.display().to_string(),
            bytes: copied.bytes,
            incarnation: copied.incarnation,
            at: copied.at,
        };
        if output.json {
            output.object(&report)?;
        } else {
            output.fields(&[
                ("backup", report.backup),
                ("bytes", report.bytes.to_string()),
                ("incarnation", report.incarnation.to_string()),
                ("at", output.time(report.at)),
            ])?;
        }
        output.next("keep it on another disk; docs/operations/backup-and-restore.md says how to restore it");
        Ok(Code::Done)
    })
    .await
}

/// A server is copied with its own means, and says itself that it is a copy.
fn on_a_server() -> Problem {
    Problem::new(Code::Conflict, "a store on a PostgreSQL server is copied with PostgreSQL's own means").hint(
        "pg_dump of the schema, or a base backup with its log. A store that was restored or promoted is noticed by the \
         server's identity and timeline when it is next opened: each effect of an older message that it knows nothing of \
         then counts as one that may have happened",
    )
}
