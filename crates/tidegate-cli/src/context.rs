//! `tidegate context`: servers by name: how each is reached, and which one is meant where none is named.

use std::io::{self, IsTerminal, Read as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tidegate_remote::ServerUrl;

use crate::contexts::{self, Context, Contexts};
use crate::exit::{Code, Problem};
use crate::output::Output;
use crate::target::Reach;

const EXAMPLES: &str = "\
Examples:
  tidegate context set staging --url https://tidegate.staging.example.com --token-file ~/.tidegate-staging --use
  tidegate context set prod --url https://tidegate.example.com --token - --production < token
  tidegate context list
  tidegate context use staging
  tidegate context use --none";

const FILES: &str = "\
The file is tidegate/contexts.toml under $XDG_CONFIG_HOME (else ~/.config), and readable by its owner alone. Where neither
--store nor --url nor --context says what to work on, nor TIDEGATE_STORE, TIDEGATE_URL or TIDEGATE_CONTEXT, it is the
context in use, and without one the file tidegate.db.";

/// Servers by name: list, use, set, remove
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = FILES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List contexts; the one in use is marked
    #[command(after_help = COLUMNS)]
    List,
    Use(UseArgs),
    Set(SetArgs),
    Remove(RemoveArgs),
}

const COLUMNS: &str = "\
Columns when piped, separated by tabs:
  * if it is in use, name, address, where its token is, whether it asks before it acts";

/// Work with this server from now on, where nothing else is named
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate context use staging\n  tidegate context use --none")]
#[command(group(clap::ArgGroup::new("which").required(true).args(["name", "none"])))]
struct UseArgs {
    /// Which
    name: Option<String>,
    /// None: the file tidegate.db again
    #[arg(long)]
    none: bool,
}

/// Make a context, or change what is given of one; --url, --token, --token-file, --ca and --plaintext are kept in it
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Examples:\n  tidegate context set prod --url https://tidegate.example.com --token-file token --production"
)]
struct SetArgs {
    /// Its name
    name: String,
    /// Ask before each act
    #[arg(long, conflicts_with = "no_production")]
    production: bool,
    /// Do not ask any more
    #[arg(long)]
    no_production: bool,
    /// Forget its token
    #[arg(long)]
    no_token: bool,
    /// Work with it from now on
    #[arg(long = "use")]
    is_used: bool,
}

/// Forget a context
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate context remove staging")]
struct RemoveArgs {
    /// Which
    name: String,
}

/// A context without its token.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    current: bool,
    url: &'a str,
    /// Whether there is one, and in which file.
    token: bool,
    token_file: Option<&'a Path>,
    ca: Option<&'a Path>,
    plaintext: bool,
    production: bool,
}

/// `typed`: what the command line says of a server, without what the environment says.
pub(crate) fn run(args: Args, typed: &Reach, file: Option<PathBuf>, output: &Output) -> Result<Code, Problem> {
    let path = file.ok_or_else(|| {
        Problem::usage("neither XDG_CONFIG_HOME nor HOME says where the contexts are")
            .hint("set one of them, or do without contexts: --url and --token-file")
    })?;
    let contexts = Contexts::read(&path)?;
    match args.command {
        Command::List => list(&contexts, output),
        Command::Use(args) => use_one(contexts, args.name, &path, output),
        Command::Set(args) => set(contexts, args, typed, &path, output),
        Command::Remove(args) => remove(contexts, &args.name, &path, output),
    }
}

fn list(contexts: &Contexts, output: &Output) -> Result<Code, Problem> {
    if output.json {
        for (name, context) in &contexts.contexts {
            let current = contexts.current.as_deref() == Some(name);
            output.object(&shown(name, context, current))?;
        }
        return Ok(Code::Done);
    }
    let row = |(name, context): (&String, &Context)| {
        let is_current = contexts.current.as_ref() == Some(name);
        let token = match (&context.token, &context.token_file) {
            (Some(_), _) => "kept here".to_owned(),
            (None, Some(file)) => file.display().to_string(),
            (None, None) => output.nothing(),
        };
        let asks = if context.production { "production".to_owned() } else { output.nothing() };
        let mark = if is_current { "*".to_owned() } else { output.nothing() };
        vec![mark, name.clone(), context.url.clone(), token, asks]
    };
    let rows: Vec<Vec<String>> = contexts.contexts.iter().map(row).collect();
    output.rows(&["used", "name", "address", "token", "asks"], &rows)?;
    if rows.is_empty() && output.terminal {
        output.say("no contexts");
        output.next("tidegate context set NAME --url URL --token-file FILE");
    }
    Ok(Code::Done)
}

fn shown<'a>(name: &'a str, context: &'a Context, current: bool) -> Shown<'a> {
    Shown {
        name,
        current,
        url: &context.url,
        token: context.token.is_some() || context.token_file.is_some(),
        token_file: context.token_file.as_deref(),
        ca: context.ca.as_deref(),
        plaintext: context.plaintext,
        production: context.production,
    }
}

fn use_one(mut contexts: Contexts, name: Option<String>, path: &Path, output: &Output) -> Result<Code, Problem> {
    if let Some(name) = &name {
        contexts.named(name)?;
    }
    contexts.current = name;
    contexts.write(path)?;
    match &contexts.current {
        Some(name) => output.say(format!("commands work with {name} now")),
        None => output.say("commands work with the file tidegate.db now, unless they are told otherwise"),
    }
    Ok(Code::Done)
}

fn set(mut contexts: Contexts, args: SetArgs, typed: &Reach, path: &Path, output: &Output) -> Result<Code, Problem> {
    let name = checked(&args.name)?;
    if args.no_token && typed.names_token() {
        return Err(Problem::usage("a token is given, and --no-token forgets it").hint("leave out one of them"));
    }
    let known = contexts.contexts.remove(&name);
    let is_new = known.is_none();
    let mut context = known.unwrap_or_default();
    let address = match &typed.url {
        Some(url) => url,
        None if is_new => {
            return Err(Problem::usage(format!("context {name} is new, and has no address"))
                .hint(format!("tidegate context set {name} --url https://HOST --token-file FILE")));
        }
        None => &context.url,
    };
    let url: ServerUrl = address.parse().map_err(|error: tidegate::StoreError| Problem::from(error))?;
    // The token of one server is not another one's.
    if !is_new && context.url.parse().is_ok_and(|before: ServerUrl| before != url) {
        if (context.token.is_some() || context.token_file.is_some()) && !typed.names_token() && !args.no_token {
            return Err(Problem::usage(format!("context {name} would send its token to another server, {url}"))
                .hint("give the token of that server as well, or say --no-token"));
        }
        (context.token, context.token_file) = (None, None);
    }
    context.url = url.to_string();
    if args.no_token {
        (context.token, context.token_file) = (None, None);
    }
    if let Some(token) = &typed.token {
        (context.token, context.token_file) = (Some(given(token)?), None);
    }
    if let Some(file) = &typed.token_file {
        (context.token, context.token_file) = (None, Some(std::path::absolute(file)?));
    }
    if let Some(ca) = &typed.ca {
        context.ca = Some(std::path::absolute(ca)?);
    }
    context.plaintext |= typed.plaintext;
    context.production = (context.production || args.production) && !args.no_production;
    // Everything that would be found wrong at its first use is found now.
    Reach::of(&context).options()?;
    contexts.contexts.insert(name.clone(), context);
    if args.is_used {
        contexts.current = Some(name.clone());
    }
    contexts.write(path)?;
    let context = contexts.named(&name)?;
    if output.json {
        output.object(&shown(&name, context, contexts.current.as_deref() == Some(&name)))?;
    } else {
        output.say(format!("context {name} is {url}, kept in {}", path.display()));
        if contexts.current.as_deref() != Some(&name) {
            output.next(format!("tidegate context use {name}"));
        }
    }
    Ok(Code::Done)
}

fn remove(mut contexts: Contexts, name: &str, path: &Path, output: &Output) -> Result<Code, Problem> {
    contexts.named(name)?;
    contexts.contexts.remove(name);
    if contexts.current.as_deref() == Some(name) {
        contexts.current = None;
        output.say("it was in use; commands work with the file tidegate.db now, unless they are told otherwise");
    }
    contexts.write(path)?;
    Ok(Code::Done)
}

fn checked(name: &str) -> Result<String, Problem> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 100 || !name.chars().all(is_plain) {
        return Err(Problem::usage(format!("{name:?} is no name of a context")).hint("letters, digits, - _ and ."));
    }
    Ok(name.to_owned())
}

/// The token itself, or what is on standard input.
fn given(token: &str) -> Result<String, Problem> {
    if token != "-" {
        return Ok(token.to_owned());
    }
    if io::stdin().is_terminal() {
        return Err(Problem::usage("standard input is the terminal").hint("redirect a file with the token into it"));
    }
    let mut text = String::new();
    io::stdin().lock().take(64 << 10).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Where the contexts of this user are.
pub(crate) fn file() -> Option<PathBuf> {
    contexts::place(&crate::config::variables())
}
