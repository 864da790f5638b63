//! `tidegate restored`: says that a store on a server was restored from a copy that does not show it.

use serde::Serialize;
use tidegate::Engine;

use crate::exit::{Code, Problem};
use crate::open::{Access, act, place, with_engine};
use crate::output::Output;
use crate::redrive::reason;

const EXAMPLES: &str = "\
Examples:
  tidegate restored --reason \"snapshot of Monday put in place, ticket 4711\"
  tidegate --store postgres://db.internal/shop restored --reason \"base backup, ticket 4711\"";

const WHEN: &str = "\
Stop everything that uses the old store, say this, then start the workers. What runs is given back, and the first run of
each older message clears its effects up as if they had been sent. Saying it twice is harmless.

Only for a snapshot of a disk, or the files of a base backup, that was started without recovering to some moment: such a
server looks like the original after a crash. A dump that was restored, a server that was promoted or recovered to some
moment, and the file of a backup are recognised without it.";

/// Say that a store on PostgreSQL was restored from a snapshot
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = WHEN)]
pub(crate) struct Args {
    /// From what, and why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: String,
}

#[derive(Serialize)]
struct Report {
    incarnation: u32,
    released: u64,
    unsure: u64,
}

pub(crate) async fn run(args: Args, store: &str, output: &Output) -> Result<Code, Problem> {
    if place(store)?.server().is_none() {
        return Err(a_file());
    }
    with_engine(store, Access::Existing, |engine: Engine| async move {
        let Engine::Postgres(store) = engine else { return Err(a_file()) };
        let restored = store.restored(act(Some(&args.reason))).await?;
        let report = Report { incarnation: restored.incarnation, released: restored.released, unsure: restored.unsure };
        if output.json {
            output.object(&report)?;
        } else {
            output.fields(&[
                ("incarnation", report.incarnation.to_string()),
                ("released", report.released.to_string()),
                ("unsure", report.unsure.to_string()),
            ])?;
        }
        output.next("start the workers; what a person has to find out is then in: tidegate parked list");
        Ok(Code::Done)
    })
    .await
}

/// The mark is in the file itself.
fn a_file() -> Problem {
    Problem::new(Code::Conflict, "the store is a file, and a backup of it knows that it is one").hint(
        "put a copy that `tidegate backup` made where the store was; a file that was copied by other means has no mark, \
         and must not be put to work",
    )
}
