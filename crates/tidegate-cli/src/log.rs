//! What is logged on standard error, and how it is written.
//!
//! A server's log is text for a person at a terminal and an object a line for a program; every other command says warnings
//! as text. Our own lines hold no payload, key or token. What libraries below us say at their lower levels may (a driver
//! tells the parameters of a statement): of others nothing below `info` is told, whatever was asked for.

use std::io;
use std::str::FromStr;

use tidegate::trace::TARGET;
use tracing::{Level, Metadata, error, warn};
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::exit::{Code, Problem};
use crate::otlp;
use crate::output::Output;
use crate::settings::Settings;

/// The variable that says what commands log; for a server it is one of its settings.
const VARIABLE: &str = "TIDEGATE_LOG";
/// How the targets of our own lines begin.
const OURS: &str = "tidegate";

/// How a log is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    Text,
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("it is no format of a log".to_owned()),
        }
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    Text,
    Json,
}

/// How a log is asked for on the command line of a server.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct LogArgs {
    /// What is logged: a level, or levels of parts; `info` has a line for each request
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How the log is written; `auto` is text on a terminal and json elsewhere
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Send traces to an OpenTelemetry collector, by OTLP over HTTP
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
}

impl LogArgs {
    /// As settings: key, value, flag.
    pub(crate) fn flags(&self) -> Vec<(&'static str, String, String)> {
        let flags = [
            ("log", "--log", &self.log),
            ("log_format", "--log-format", &self.log_format),
            ("otlp.endpoint", "--otlp-endpoint", &self.otlp_endpoint),
        ];
        flags.into_iter().filter_map(|(key, flag, text)| Some((key, text.as_ref()?.clone(), flag.to_owned()))).collect()
    }
}

/// Reads what is to be logged.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(text).map_err(|e| e.to_string())
}

/// Begins the log of a server, and its traces. Once for a process.
///
/// # Errors
/// Traces that cannot begin.
pub(crate) fn begin(settings: &Settings, output: &Output) -> Result<Written, Problem> {
    let traces = otlp::begin(settings)?;
    let written = match settings.log_format() {
        Format::Text => Written::Text,
        Format::Json => Written::Json,
        Format::Auto if output.talk_terminal => Written::Text,
        Format::Auto => Written::Json,
    };
    // Settings are checked before anything begins.
    let filter = filter(settings.log()).unwrap_or_else(|_| EnvFilter::new("info"));
    start(filter, written, traces, output);
    Ok(written)
}

/// Begins the log of a command that does its work and ends: from this level on, unless the environment asks for another.
/// One that stores or runs messages belongs to their traces, if settings say where those are sent.
pub(crate) fn for_a_command(level: LevelFilter, traces: Option<&Settings>, output: &Output) {
    let filter = EnvFilter::builder().with_env_var(VARIABLE).with_default_directive(level.into()).from_env_lossy();
    let traces = traces.map_or(Ok(None), otlp::begin);
    let (traces, missing) = traces.map_or_else(|problem| (None, Some(problem)), |traces| (traces, None));
    start(filter, Written::Text, traces, output);
    // What the command is for is worth more than to be seen in a trace.
    if let Some(problem) = missing {
        warn!("no traces: {}", problem.sentence());
    }
}

fn start(filter: EnvFilter, written: Written, traces: Option<otlp::Traces>, output: &Output) {
    let filter = filter.and(filter_fn(may_be_told));
    let log = tracing_subscriber::registry().with(traces);
    match written {
        Written::Text => {
            let lines = fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(output.talks_in_colour());
            log.with(lines.with_filter(filter)).init();
        }
        Written::Json => {
            let lines = fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(io::stderr);
            log.with(lines.with_filter(filter)).init();
        }
    }
}

/// Whether nothing that must not be in a log can be in a line from there. Spans of traces have their own way out.
fn may_be_told(line: &Metadata<'_>) -> bool {
    if line.target() == TARGET {
        return false;
    }
    *line.level() <= Level::INFO || line.target().starts_with(OURS)
}

/// How a server ended, told in the form of its log.
pub(crate) fn told(written: Written, ended: Result<Code, Problem>) -> Result<Code, Problem> {
    match (written, ended) {
        (Written::Json, Err(problem)) => {
            let hint = problem.hint.as_deref().unwrap_or_default();
            error!(kind = problem.kind, hint, exit_code = problem.code as u8, "{}", problem.what);
            Ok(problem.code)
        }
        (_, ended) => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_levels_of_parts() {
        for text in ["warn", "off", "info,tidegate_server::requests=warn", "tidegate=debug"] {
            assert!(filter(text).is_ok(), "{text}");
        }
        for text in ["tidegate=loud", "a=b=c"] {
            assert!(filter(text).is_err(), "{text}");
        }
    }
}
