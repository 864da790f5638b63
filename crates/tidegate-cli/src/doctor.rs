//! `tidegate doctor`: looks a store over, without changing it.
//!
//! What is checked is the engine's to say; this file prints it. The exit code is 1 when anything was found, so that a cron
//! job needs no more than the command.

use serde::Serialize;
use tidegate::clock::SystemClock;
use tidegate::doctor::Check;
use tidegate::engine;
use tidegate::sqlite::Doctor;

use crate::exit::{Code, Problem};
use crate::open::place;
use crate::output::{Output, Paint};

const EXAMPLES: &str = "\
Examples:
  tidegate doctor
  tidegate doctor --store backup.db --json";

const COLUMNS: &str = "\
When piped: a line for each check (ok or found, name, what it looks at), then one for each finding
(check, table, row or message, what is wrong); a blank line between. At most 100 findings of a check are listed.";

/// Look the store over: the file, and what its rows promise one another
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = COLUMNS)]
pub(crate) struct Args {
    /// The largest write-ahead log of a file, in MiB, that is no finding
    #[arg(long, value_name = "MIB", default_value_t = Doctor::LARGEST_WAL >> 20)]
    largest_wal: u64,
}

#[derive(Serialize)]
struct Report<'a> {
    store: String,
    ok: bool,
    checks: &'a [Check],
}

pub(crate) async fn run(args: Args, store: &str, output: &Output) -> Result<Code, Problem> {
    let place = place(store)?;
    if let Some(path) = place.file()
        // An empty file is what an interrupted creation leaves.
        && path.metadata().map_or(0, |about| about.len()) == 0
    {
        return Err(Problem::new(Code::NotFound, format!("no store at {}", path.display()))
            .hint("--store PATH or TIDEGATE_STORE names another one"));
    }
    // It reads the whole store; Ctrl-C gets through meanwhile.
    let checks = engine::doctor(&place, &SystemClock::new(), args.largest_wal << 20).await?;
    let ok = checks.iter().all(|check| check.ok);
    if output.json {
        output.object(&Report { store: place.to_string(), ok, checks: &checks })?;
    } else {
        print(&checks, output)?;
    }
    if !ok {
        output.next("docs/operations/doctor.md says what each finding means; stop nothing and repair nothing by hand");
    }
    Ok(if ok { Code::Done } else { Code::Failed })
}

fn print(checks: &[Check], output: &Output) -> Result<(), Problem> {
    let rows: Vec<Vec<String>> = (checks.iter())
        .map(|check| {
            let verdict = if check.ok { output.paint(Paint::Good, "ok") } else { format!("found {}", check.found) };
            vec![verdict, check.name.to_owned(), check.what.to_owned()]
        })
        .collect();
    output.rows(&["verdict", "check", "what it looks at"], &rows)?;
    let findings: Vec<Vec<String>> = (checks.iter())
        .flat_map(|check| check.findings.iter().map(move |finding| (check, finding)))
        .map(|(check, finding)| {
            let row = finding.message.map_or_else(|| finding.row.clone(), |message| message.to_string());
            vec![check.name.to_owned(), finding.table.clone(), row, finding.what.clone()]
        })
        .collect();
    if findings.is_empty() {
        return Ok(());
    }
    output.data("\n")?;
    output.rows(&["check", "table", "row", "what is wrong"], &findings)
}
