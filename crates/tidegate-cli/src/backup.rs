//! `tidegate backup`: copies a store that is in use into a file of its own.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tidegate::Timestamp;
use tidegate::sqlite::SqliteStore;

use crate::exit::{Code, Problem};
use crate::open::{Access, with_sqlite};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate backup backup.db
  tidegate --store /var/lib/shop/tidegate.db backup /mnt/backup/tidegate-monday.db";

const RESTORED: &str = "\
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
    with_sqlite(store, Access::Existing, |store: Arc<SqliteStore>| async move {
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
