//! `tidegate enqueue`: one message from arguments, or many from a file or standard input.
//!
//! Many are stored in batches, each one call of the store and durable when it returned; a file that was taken half can be
//! given again and adds nothing twice. A line that is refused is named with its number and its reason, and the rest goes on.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tidegate::clock::SystemRandom;
use tidegate::message::{Due, NewMessage, Payload, Priority};
use tidegate::store::Enqueued;
use tidegate::{IdempotencyKey, Kind, MessageId, QueueName, Store, StoreError, StoreErrorKind, Timestamp, trace};
use tokio::sync::mpsc;
use tracing::{Instrument as _, Span};

use crate::exit::{Code, Problem};
use crate::input::{self, Batch, Defaults, Format, Shape, duration};
use crate::open::{Access, Asked, with_store};
use crate::output::{Output, Paint};
use crate::view::AnswerView;

const EXAMPLES: &str = "\
Examples:
  tidegate enqueue --kind greet --key greet-ada --payload '{\"name\":\"Ada\"}'
  tidegate enqueue --kind deposit --key-field id deposits.ndjson
  tidegate enqueue --kind deposit --key-field id --json-field cents deposits.csv
  produce | tidegate enqueue --kind deposit --key-field id -";

const FILES: &str = "\
Files:
  With --key-field NAME a line (NDJSON) or row (CSV) is the payload, with every field it has,
  and the field NAME, a text or a whole number, is the key. Cells of a CSV file are texts;
  --json-field names columns that hold JSON: numbers, true, objects; there an empty cell is
  null.

  Without it a line is an envelope: {\"key\":…,\"payload\":…} and, where a line differs from the
  options given here, queue, kind, version, priority, delay, deadline, max_age, key_time and
  headers. An envelope with any other member is refused.

  Empty lines are skipped. A line that is refused is named on standard error; the others are
  taken, and the command ends with 1. The same file may be given again: what is known is not
  added twice.";

/// Store messages; each is on disk when the command says so
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = FILES)]
pub(crate) struct Args {
    /// A file of messages; `-` is standard input. Without it, the options say the one message
    file: Option<PathBuf>,
    /// The line to wait in [default: the kind]
    #[arg(long)]
    queue: Option<QueueName>,
    /// Which handler it is for
    #[arg(long)]
    kind: Option<Kind>,
    /// Names what is to happen once: the same key never does so twice
    #[arg(long, conflicts_with = "file", value_parser = key)]
    key: Option<IdempotencyKey>,
    /// Make a key nobody else has: every run of this command is new work
    #[arg(long, conflicts_with_all = ["file", "key"])]
    unique_key: bool,
    /// JSON for the handler; `-` reads it from standard input
    #[arg(long, value_name = "JSON", conflicts_with = "file")]
    payload: Option<String>,
    /// From 0, claimed first, to 9, claimed last
    #[arg(long, default_value = "5", value_parser = priority)]
    priority: Priority,
    /// Not before so long from now, such as 30s, 5m, 2h or 1d
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    /// After this no attempt begins, such as 2026-11-23T10:00:00Z
    #[arg(long, value_name = "TIME")]
    deadline: Option<Timestamp>,
    /// The version of the payload's shape
    #[arg(long = "version", value_name = "N", default_value_t = 1, id = "payload_version")]
    version: u32,
    /// How the file holds messages [default: by its name, else NDJSON]
    #[arg(long, requires = "file")]
    format: Option<Format>,
    /// The whole line is the payload, and this field of it the key
    #[arg(long, value_name = "NAME", requires = "file")]
    key_field: Option<String>,
    /// A CSV column that holds JSON instead of text; may be given several times
    #[arg(long = "json-field", value_name = "NAME", requires = "file")]
    json_fields: Vec<String>,
}

/// A key of the command line.
pub(crate) fn key(text: &str) -> Result<IdempotencyKey, StoreError> {
    IdempotencyKey::new(text)
}

fn priority(text: &str) -> Result<Priority, String> {
    let number: u8 = text.parse().map_err(|_| "0 (claimed first) to 9 (claimed last)".to_owned())?;
    Priority::new(number).map_err(|error| error.to_string())
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    match &args.file {
        None => one(args, store, output).await,
        Some(file) => {
            let (file, shape) = (file.clone(), shape(&args, file));
            many(&file, shape, store, output).await
        }
    }
}

// --- one message -----------------------------------------------------------------------------------------------------

async fn one(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    let message = message(args)?;
    let shown = (message.queue.clone(), message.key.clone());
    with_store(store, Access::Create, |store: Arc<dyn Store>| async move {
        let mut message = message;
        let span = trace::enqueue(&mut message);
        let verdict = store.enqueue(vec![message]).instrument(span.clone()).await?.pop();
        let enqueued = verdict.unwrap_or_else(|| Err(StoreError::unavailable("the store gave no verdict")));
        trace::enqueued(&span, &enqueued);
        let enqueued = enqueued.map_err(|error| {
            let id = error.conflicting_id();
            let problem = Problem::from(error);
            match (id, &problem.hint) {
                (Some(id), Some(hint)) => {
                    let hint = format!("{hint}; the known one: tidegate get {id}");
                    problem.hint(hint)
                }
                _ => problem,
            }
        })?;
        tell(&enqueued, &shown, output)
    })
    .await
}

/// The message the options say. Everything is checked before a store is opened, or even made.
fn message(args: Args) -> Result<NewMessage, Problem> {
    let missing =
        |what: &str| Problem::usage(format!("{what} is missing")).hint("tidegate enqueue --help has examples");
    let kind = args.kind.ok_or_else(|| missing("--kind"))?;
    let key = match args.key {
        Some(key) => key,
        None if args.unique_key => IdempotencyKey::unique(&SystemRandom),
        None => {
            return Err(Problem::usage("a message needs a key: --key, --key-field for a file")
                .hint("the key names what is to happen once; --unique-key if it may happen any number of times"));
        }
    };
    let payload =
        match args.payload.ok_or_else(|| missing("--payload"))?.as_str() {
            "-" => {
                let mut text = String::new();
                // One byte more than is ever allowed, so that the store sees that it is too long and says by how much.
                io::stdin().lock().take(16 << 20).read_to_string(&mut text).map_err(|error| {
                    Problem::usage(format!("the payload on standard input cannot be read: {error}"))
                })?;
                text
            }
            text => text.to_owned(),
        };
    let queue = args.queue.map_or_else(|| QueueName::new(kind.as_str()), Ok)?;
    Ok(NewMessage {
        version: args.version,
        priority: args.priority,
        due: args.delay.map_or(Due::Now, Due::In),
        deadline: args.deadline,
        ..NewMessage::new(queue, kind, key, Payload::from_json(payload.trim())?)
    })
}

/// The verdict on one message, for a program.
#[derive(Serialize)]
struct Verdict<'a> {
    result: &'static str,
    id: MessageId,
    queue: &'a QueueName,
    key: &'a IdempotencyKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "<[&str]>::is_empty")]
    ignored: &'a [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<AnswerView<'a>>,
}

fn tell(enqueued: &Enqueued, shown: &(QueueName, IdempotencyKey), output: &Output) -> Result<Code, Problem> {
    let (queue, key) = shown;
    let verdict = |result, id| Verdict { result, id, queue, key, state: None, ignored: &[], answer: None };
    let verdict = match enqueued {
        Enqueued::New { id } => verdict("added", *id),
        Enqueued::Existing { id, state, ignored } => {
            Verdict { state: Some(state.as_str()), ignored, ..verdict("known", *id) }
        }
        Enqueued::Replayed { id, answer } => Verdict {
            state: Some(AnswerView::state(answer)),
            answer: Some(AnswerView::of(answer)),
            ..verdict("replayed", *id)
        },
        Enqueued::Stale => return Err(stale()),
    };
    if output.json {
        output.object(&verdict)?;
        return Ok(Code::Done);
    }
    output.rows(
        &["id", "result", "state"],
        &[vec![verdict.id.to_string(), verdict.result.to_owned(), verdict.state.unwrap_or("ready").to_owned()]],
    )?;
    if !verdict.ignored.is_empty() {
        output.say(format!("ignored, because the first enqueue of this key decided: {}", verdict.ignored.join(", ")));
    }
    match enqueued {
        Enqueued::New { id } => output.next(format!("tidegate explain {id}")),
        Enqueued::Existing { id, .. } => output.next(format!("it is no new work; tidegate explain {id}")),
        Enqueued::Replayed { id, .. } => output.next(format!("it was answered before; tidegate get {id}")),
        Enqueued::Stale => {}
    }
    Ok(Code::Done)
}

fn stale() -> Problem {
    Problem::new(Code::Conflict, "the key is older than the retention and unknown: it may have been done and forgotten")
        .hint("find out whether it was done; a new key is new work")
}

// --- many messages ---------------------------------------------------------------------------------------------------

fn shape(args: &Args, file: &Path) -> Shape {
    let by_name = match file.extension().and_then(|ending| ending.to_str()) {
        Some(ending) if ending.eq_ignore_ascii_case("csv") => Format::Csv,
        _ => Format::Ndjson,
    };
    Shape {
        format: args.format.unwrap_or(by_name),
        key_field: args.key_field.clone(),
        json_fields: args.json_fields.clone(),
        defaults: Defaults {
            queue: args.queue.clone(),
            kind: args.kind.clone(),
            version: args.version,
            priority: args.priority,
            delay: args.delay,
            deadline: args.deadline,
        },
    }
}

/// What became of the lines.
#[derive(Debug, Default, Serialize)]
struct Summary {
    lines: u64,
    added: u64,
    known: u64,
    replayed: u64,
    refused: u64,
    /// The first of them; all of them were named on standard error.
    refusals: Vec<Refusal>,
}

#[derive(Debug, Serialize)]
struct Refusal {
    line: u64,
    reason: String,
}

/// So many refusals are repeated in the summary for programs.
const REFUSALS_KEPT: usize = 1000;

async fn many(file: &Path, shape: Shape, store: &Asked, output: &Output) -> Result<Code, Problem> {
    check_shape(&shape)?;
    let (source, length) = source(file)?;
    let bar = progress(length, output);
    let (give, batches) = mpsc::channel::<Batch>(4);
    let source = bar.wrap_read(source);
    let reader = tokio::task::spawn_blocking(move || {
        input::read(source, &shape, &mut |batch| give.blocking_send(batch).is_ok())
    });
    stored(store, batches, reader, output, &bar).await
}

/// What is wrong with the options is said before a line is read.
fn check_shape(shape: &Shape) -> Result<(), Problem> {
    if shape.format == Format::Csv && shape.key_field.is_none() {
        return Err(Problem::usage("a CSV file has no key unless a column is named")
            .hint("--key-field COLUMN says which column is it"));
    }
    if shape.format == Format::Ndjson && !shape.json_fields.is_empty() {
        return Err(Problem::usage("--json-field is for CSV files; NDJSON has types already"));
    }
    if shape.key_field.is_some() && shape.defaults.kind.is_none() {
        return Err(
            Problem::usage("--kind is missing").hint("with --key-field the line is all payload and cannot say it")
        );
    }
    Ok(())
}

fn source(file: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>), Problem> {
    if file == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(Problem::usage("standard input is the terminal").hint("redirect a file or a program into it"));
        }
        return Ok((Box::new(io::stdin()), None));
    }
    let cannot = |error: &io::Error| {
        let code = if error.kind() == io::ErrorKind::NotFound {
            Code::NotFound
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            Code::NotAllowed
        } else {
            Code::Failed
        };
        Problem::new(code, format!("cannot read {}: {error}", file.display()))
    };
    let opened = File::open(file).map_err(|e| cannot(&e))?;
    let about = opened.metadata().map_err(|e| cannot(&e))?;
    if about.is_dir() {
        return Err(Problem::usage(format!("{} is a directory", file.display())));
    }
    Ok((Box::new(opened), about.is_file().then_some(about.len())))
}

/// A bar for a person who watches; nothing for anybody else.
fn progress(length: Option<u64>, output: &Output) -> ProgressBar {
    if !output.talk_terminal || output.json {
        return ProgressBar::hidden();
    }
    let (bar, template) = match length {
        Some(length) => (ProgressBar::new(length), "{bar:30} {percent:>3} %  {msg}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

type Reader = tokio::task::JoinHandle<Result<(), Problem>>;

/// Stores what the reader hands on. The store is opened for the first batch: a file in which nothing can be a message
/// makes no store.
async fn stored(
    store: &Asked,
    mut batches: mpsc::Receiver<Batch>,
    reader: Reader,
    output: &Output,
    bar: &ProgressBar,
) -> Result<Code, Problem> {
    let mut summary = Summary::default();
    let mut next = batches.recv().await;
    while let Some(batch) = next.take_if(|batch| batch.iter().all(|line| line.message.is_err())) {
        summary.take(batch, Vec::new(), output, bar);
        next = batches.recv().await;
    }
    let mut stopped = None;
    if next.is_some() {
        let (summary, stopped) = (&mut summary, &mut stopped);
        with_store(store, Access::Create, |store: Arc<dyn Store>| async move {
            while let Some(batch) = next {
                if let Err(problem) = store_batch(&*store, batch, summary, output, bar).await {
                    *stopped = Some(problem);
                    break;
                }
                next = batches.recv().await;
            }
            Ok(Code::Done)
        })
        .await?;
    }
    bar.finish_and_clear();
    let ended = match stopped {
        // Not waited for: it may be reading a pipe into which nothing comes any more.
        Some(problem) => Err(problem),
        None => reader.await.unwrap_or_else(|error| {
            Err(Problem::new(Code::Failed, format!("the reader of the file panicked: {error}")))
        }),
    };
    finish(&summary, ended, output)
}

async fn store_batch(
    store: &dyn Store,
    batch: Batch,
    summary: &mut Summary,
    output: &Output,
    bar: &ProgressBar,
) -> Result<(), Problem> {
    let mut messages: Vec<NewMessage> = batch.iter().filter_map(|line| line.message.as_ref().ok().cloned()).collect();
    let spans: Vec<Span> = messages.iter_mut().map(trace::enqueue).collect();
    let (from, to) = (batch.first().map_or(0, |line| line.number), batch.last().map_or(0, |line| line.number));
    let verdicts = if messages.is_empty() {
        Vec::new()
    } else {
        store.enqueue(messages).await.map_err(|error| {
            let problem = Problem::from(error);
            let what = format!("lines {from} to {to}: {}", problem.what);
            let again = "give the same file again later: what was stored is not added twice";
            let hint = problem.hint.as_ref().map_or_else(|| again.to_owned(), |hint| format!("{hint}; {again}"));
            Problem { what, hint: Some(hint), ..problem }
        })?
    };
    for (span, verdict) in spans.iter().zip(&verdicts) {
        trace::enqueued(span, verdict);
    }
    drop(spans);
    match summary.take(batch, verdicts, output, bar) {
        None => Ok(()),
        Some(full) => Err(full),
    }
}

impl Summary {
    /// Counts a batch and names its refusals; returns why to stop, if there is no point in going on.
    fn take(
        &mut self,
        batch: Batch,
        verdicts: Vec<Result<Enqueued, StoreError>>,
        output: &Output,
        bar: &ProgressBar,
    ) -> Option<Problem> {
        let mut verdicts = verdicts.into_iter();
        let mut stop = None;
        for line in batch {
            self.lines += 1;
            let verdict = match line.message {
                Err(reason) => Err(reason),
                Ok(_) => match verdicts.next() {
                    Some(Ok(Enqueued::New { .. })) => Ok(&mut self.added),
                    Some(Ok(Enqueued::Existing { .. })) => Ok(&mut self.known),
                    Some(Ok(Enqueued::Replayed { .. })) => Ok(&mut self.replayed),
                    Some(Ok(Enqueued::Stale)) => Err(stale().sentence()),
                    Some(Err(error)) if error.kind() == StoreErrorKind::QueueFull => {
                        self.refused += 1;
                        // The others that did not fit say the same.
                        if stop.is_some() {
                            continue;
                        }
                        let problem = Problem::from(error);
                        let what = format!("line {}: {}", line.number, problem.what);
                        let again = "give the same file again later: what was stored is not added twice";
                        let hint = problem.hint.as_ref().map_or_else(String::new, |hint| format!("{hint}; "));
                        stop = Some(Problem { what, hint: Some(hint + again), ..problem.clone() });
                        // Said at the end, as the reason why the command stops.
                        if self.refusals.len() < REFUSALS_KEPT {
                            self.refusals.push(Refusal { line: line.number, reason: problem.what });
                        }
                        continue;
                    }
                    Some(Err(error)) => Err(Problem::from(error).sentence()),
                    None => Err("the store gave no verdict".to_owned()),
                },
            };
            match verdict {
                Ok(counter) => *counter += 1,
                Err(reason) => self.refuse(line.number, reason, output, bar),
            }
        }
        bar.set_message(format!("{} lines", self.lines));
        stop
    }

    fn refuse(&mut self, line: u64, reason: String, output: &Output, bar: &ProgressBar) {
        self.refused += 1;
        bar.suspend(|| output.say(format!("line {line}: {reason}")));
        if self.refusals.len() < REFUSALS_KEPT {
            self.refusals.push(Refusal { line, reason });
        }
    }
}

fn finish(summary: &Summary, ended: Result<(), Problem>, output: &Output) -> Result<Code, Problem> {
    if summary.lines == 0 && ended.is_err() {
        // There is nothing to sum up.
    } else if output.json {
        output.object(summary)?;
    } else {
        let Summary { lines, added, known, replayed, refused, .. } = summary;
        let counts =
            [("lines", lines), ("added", added), ("known", known), ("replayed", replayed), ("refused", refused)];
        output.fields(&counts.map(|(name, n)| {
            let text = n.to_string();
            (name, if name == "refused" && *n > 0 { output.paint(Paint::Bad, &text) } else { text })
        }))?;
    }
    ended?;
    if summary.refused > 0 {
        output.next("repair the refused lines and give the file again; what was taken is not added twice");
        return Ok(Code::Failed);
    }
    Ok(Code::Done)
}
