//! `tidegate config`: what a server here would be set to, where each value comes from, and whether that is in order.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;
use tidegate::Address;

use crate::exit::{Code, Problem};
use crate::output::Output;
use crate::settings::{Setting, Settings, Sort, Sources, TABLE, Value};

const EXAMPLES: &str = "\
Examples:
  tidegate config print --origin
  tidegate config check --config /etc/tidegate/config.toml
  tidegate config list";

const FILES: &str = "\
A setting is taken from a flag, else a variable TIDEGATE_…, else the file, else its default. The file is what --config or
TIDEGATE_CONFIG names, else tidegate/config.toml under $XDG_CONFIG_HOME (else ~/.config), if it is there.";

/// What a server would be set to: print it, check it, list all there is to set
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = FILES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Print(PrintArgs),
    Check(CheckArgs),
    List(ListArgs),
}

/// Print every setting as a file would say it; passwords are left out
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate config print\n  tidegate config print --origin")]
struct PrintArgs {
    /// Say where each value comes from
    #[arg(long)]
    origin: bool,
    #[command(flatten)]
    named: Named,
}

/// Say everything that is wrong with the settings; exit code 1 if anything is
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate config check --config tidegate.toml")]
struct CheckArgs {
    #[command(flatten)]
    named: Named,
}

/// List all there is to set: key, variable, default, what for
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate config list")]
struct ListArgs {}

/// How settings are given on a command line.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Named {
    /// The file of settings
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// Sets one setting, such as limits.batch=100; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) set: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// Gathers the settings of this process. Flags that are settings of their own are stronger than `--set`.
pub(crate) fn gather(named: &Named, store: Option<&str>, flags: Vec<(&'static str, String, String)>) -> Settings {
    let variables = variables();
    let file = match &named.config {
        Some(path) => Some((path.clone(), true)),
        None => usual_file(&variables).map(|path| (path, false)),
    };
    let mut all: Vec<(&str, String, String)> =
        named.set.iter().map(|(key, value)| (key.as_str(), value.clone(), format!("--set {key}"))).collect();
    all.extend(store.map(|store| ("store", store.to_owned(), "--store".to_owned())));
    all.extend(flags);
    Settings::gather(&Sources { file, variables, flags: all })
}

/// The settings as a command finds them that has no option for any.
pub(crate) fn of_environment() -> Settings {
    let config = variables().get("TIDEGATE_CONFIG").map(PathBuf::from);
    gather(&Named { config, set: Vec::new() }, None, Vec::new())
}

#[expect(clippy::disallowed_methods, reason = "the command is the one place that reads the environment")]
pub(crate) fn variables() -> BTreeMap<String, String> {
    // What is no text can be no setting of ours.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Where the file is if nobody says so.
pub(crate) fn usual_file(variables: &BTreeMap<String, String>) -> Option<PathBuf> {
    let there = |name: &str| variables.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = there("XDG_CONFIG_HOME").or_else(|| Some(there("HOME")?.join(".config")))?;
    Some(base.join("tidegate").join("config.toml"))
}

pub(crate) fn run(args: Args, store: Option<&str>, output: &Output) -> Result<Code, Problem> {
    match args.what {
        What::Print(PrintArgs { origin, named }) => print(&gather(&named, store, Vec::new()), origin, output),
        What::Check(CheckArgs { named }) => check(&gather(&named, store, Vec::new()), output),
        What::List(ListArgs {}) => list(output),
    }
}

#[derive(Serialize)]
struct Printed<'a> {
    key: &'static str,
    value: Option<&'a str>,
    origin: Option<String>,
}

fn print(settings: &Settings, origin: bool, output: &Output) -> Result<Code, Problem> {
    if let Some(problem) = settings.problem() {
        return Err(problem);
    }
    let shown: Vec<(&Setting, Option<String>, Option<&Value>)> =
        settings.all().map(|(setting, value)| (setting, value.map(|value| shown(setting, value)), value)).collect();
    if output.json {
        for (setting, text, value) in &shown {
            let origin = value.map(|value| value.origin.to_string());
            output.object(&Printed { key: setting.key, value: text.as_deref(), origin })?;
        }
        return Ok(Code::Done);
    }
    let mut text = String::new();
    let mut table = "";
    for (setting, value, from) in &shown {
        let (of, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
        if of != table {
            text.push_str(&format!("\n[{of}]\n"));
            table = of;
        }
        let from = match from.filter(|_| origin) {
            Some(value) => format!("  # {}", value.origin),
            None => String::new(),
        };
        match value {
            Some(value) => text.push_str(&format!("{name} = {}{from}\n", as_toml(setting.sort, value))),
            None => text.push_str(&format!("# {name} is not set: {}\n", setting.about)),
        }
    }
    for queue in &settings.queues {
        let of = if queue.tenant.as_str().is_empty() { String::new() } else { format!("{}/", queue.tenant.as_str()) };
        text.push_str(&format!("\n[queues.\"{of}{}\"]\n", queue.queue));
        if let Some(most) = queue.max_depth {
            text.push_str(&format!("max_depth = {}\n", most.unwrap_or(0)));
        }
        if let Some(paused) = queue.paused {
            text.push_str(&format!("paused = {paused}\n"));
        }
    }
    output.data(&text)?;
    for odd in &settings.odd {
        output.say(odd);
    }
    Ok(Code::Done)
}

/// A value as it may be shown: an address hides its password.
fn shown(setting: &Setting, value: &Value) -> String {
    match setting.sort {
        Sort::Store => value.text.parse::<Address>().map_or_else(|_| "…".to_owned(), |address| address.to_string()),
        Sort::Path
        | Sort::Listen
        | Sort::Switch
        | Sort::Count
        | Sort::Size
        | Sort::Span
        | Sort::Filter
        | Sort::Format
        | Sort::Collector
        | Sort::Name
        | Sort::Share => value.text.clone(),
        Sort::Headers => "…".to_owned(),
    }
}

fn as_toml(sort: Sort, text: &str) -> String {
    match sort {
        Sort::Switch => if matches!(text, "1" | "true") { "true" } else { "false" }.to_owned(),
        Sort::Count | Sort::Share => text.to_owned(),
        Sort::Store
        | Sort::Path
        | Sort::Listen
        | Sort::Size
        | Sort::Span
        | Sort::Filter
        | Sort::Format
        | Sort::Collector
        | Sort::Headers
        | Sort::Name => toml::Value::String(text.to_owned()).to_string(),
    }
}

#[derive(Serialize)]
struct Checked<'a> {
    ok: bool,
    file: Option<String>,
    wrong: &'a [Problem],
    odd: &'a [String],
}

fn check(settings: &Settings, output: &Output) -> Result<Code, Problem> {
    let ok = settings.wrong.is_empty();
    let file = settings.file.as_ref().map(|path| path.display().to_string());
    if output.json {
        output.object(&Checked { ok, file, wrong: &settings.wrong, odd: &settings.odd })?;
    } else {
        for problem in &settings.wrong {
            output.problem(problem);
        }
        for odd in &settings.odd {
            output.say(odd);
        }
        let file = file.map_or_else(|| "no file was read".to_owned(), |file| format!("{file} was read"));
        output.say(if ok { format!("in order; {file}") } else { file });
    }
    Ok(if ok { Code::Done } else { Code::Failed })
}

#[derive(Serialize)]
struct Listed {
    key: &'static str,
    variable: String,
    default: Option<&'static str>,
    about: &'static str,
    value: &'static str,
}

fn list(output: &Output) -> Result<Code, Problem> {
    if output.json {
        for setting in TABLE {
            let Setting { key, default, sort, about } = *setting;
            output.object(&Listed { key, variable: setting.variable(), default, about, value: sort.example() })?;
        }
        return Ok(Code::Done);
    }
    let row = |setting: &Setting| {
        let default = setting.default.map_or_else(|| output.nothing(), str::to_owned);
        vec![setting.key.to_owned(), setting.variable(), default, setting.about.to_owned()]
    };
    output.rows(&["setting", "variable", "default", "what for"], &TABLE.iter().map(row).collect::<Vec<_>>())?;
    Ok(Code::Done)
}
