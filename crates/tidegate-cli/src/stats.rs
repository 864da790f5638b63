//! `tidegate stats`: depths, ages and counters of a store, exact as of one moment.

use serde::Serialize;
use tidegate::Engine;
use tidegate::sqlite::{Disk, Room, RoomFor};
use tidegate::store::Stats;

use crate::exit::{Code, Problem};
use crate::open::{Access, Asked, with_any_engine};
use crate::output::{Output, Paint};
use crate::queue;

const EXAMPLES: &str = "\
Examples:
  tidegate stats
  tidegate stats --json | jq '.tallies[] | select(.what == \"dead\")'";

const COLUMNS: &str = "\
When piped: the lines of `queue list`, then the counters (queue, kind, what, code, how often), then
`open effects` and their number, the disk of a file, and what it has room for; blank lines between.";

/// Show depths, ages and counters
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = COLUMNS)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    stats: &'a Stats,
    /// Of a file. The disk of a server is its own to watch.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<Disk>,
}

pub(crate) async fn run(_: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    with_any_engine(store, Access::Existing, |engine: Engine| async move {
        let stats = engine.store().stats().await?;
        let disk = match &engine {
            Engine::Sqlite(store) => Some((store.disk(), store.room())),
            Engine::Postgres(_) | Engine::Other(_) => None,
        };
        if output.json {
            output.object(&Shown { stats: &stats, disk: disk.map(|(disk, _)| disk) })?;
            return Ok(Code::Done);
        }
        queue::print(&stats.queues, output)?;
        output.data("\n")?;
        let rows: Vec<Vec<String>> = (stats.tallies.iter())
            .map(|tally| {
                vec![
                    tally.queue.to_string(),
                    tally.kind.to_string(),
                    tally.what.as_str().to_owned(),
                    tally.code.clone(),
                    tally.n.to_string(),
                ]
            })
            .collect();
        output.rows(&["queue", "kind", "counted", "code", "times"], &rows)?;
        output.data("\n")?;
        let open = stats.open_effects.to_string();
        let open = if stats.open_effects > 0 { output.paint(Paint::Waits, &open) } else { open };
        let Some((disk, room)) = disk else {
            output.fields(&[("open effects", open)])?;
            return Ok(Code::Done);
        };
        print_disk(open, disk, room, output)?;
        Ok(Code::Done)
    })
    .await
}

fn print_disk(open: String, disk: Disk, room: Room, output: &Output) -> Result<(), Problem> {
    let scarce = disk.room_for != RoomFor::Accepting;
    let room_for = disk.room_for.as_str();
    let room_for = if scarce { output.paint(Paint::Waits, room_for) } else { room_for.to_owned() };
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let disk = format!("{} free, {} in reserve", mib(disk.free), mib(disk.reserve));
    output.fields(&[("open effects", open), ("disk", disk), ("room for", room_for)])?;
    if scarce {
        let (accept, claim) = (mib(room.accept), mib(room.claim));
        output.next(format!(
            "nothing new is accepted below {accept}, nothing claimed below {claim}: docs/operations/disk-full.md"
        ));
    }
    Ok(())
}
