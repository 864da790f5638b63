//! What a command works on: a store of its own, or the one that a server keeps; and who says so.
//!
//! The command line is stronger than the environment, and that than the context in use. Whatever names a store and a
//! server with equal strength is refused rather than guessed about: the same command in the wrong place is an accident.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;
use tidegate_remote::{Options, RemoteStore, ServerUrl};

use crate::contexts::{Context, Contexts};
use crate::exit::{Code, Problem};

const REACH: &str = "Options to work with a server instead of a store";

/// How a server is reached.
#[derive(Clone, Default, clap::Args)]
pub(crate) struct Reach {
    /// The server: https://HOST, or http://127.0.0.1:7401
    #[arg(long, global = true, value_name = "URL", env = "TIDEGATE_URL", hide_env_values = true, help_heading = REACH)]
    pub(crate) url: Option<String>,
    /// The server of this name: tidegate context list
    #[arg(long, global = true, value_name = "NAME", env = "TIDEGATE_CONTEXT", hide_env_values = true, help_heading = REACH)]
    pub(crate) context: Option<String>,
    /// A file with the token that says who asks
    #[arg(long, global = true, value_name = "FILE", env = "TIDEGATE_TOKEN_FILE", hide_env_values = true, help_heading = REACH)]
    pub(crate) token_file: Option<PathBuf>,
    /// The token itself; others on this machine can read a command line, not a file or a variable
    #[arg(long, global = true, value_name = "TOKEN", env = "TIDEGATE_TOKEN", hide_env_values = true, help_heading = REACH)]
    pub(crate) token: Option<String>,
    /// A PEM file of authorities that are trusted beside those of the system
    #[arg(long, global = true, value_name = "FILE", env = "TIDEGATE_CA", hide_env_values = true, help_heading = REACH)]
    pub(crate) ca: Option<PathBuf>,
    /// Send the token to another machine in the clear, where it can be read on the way
    #[arg(long, global = true, help_heading = REACH)]
    pub(crate) plaintext: bool,
    /// Show contents, which a server masks otherwise; it writes down who saw them
    #[arg(long, global = true, help_heading = REACH)]
    pub(crate) reveal: bool,
}

/// Without the token.
impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach").field("url", &self.url).field("context", &self.context).finish_non_exhaustive()
    }
}

impl Reach {
    /// How the server of a context is reached.
    pub(crate) fn of(context: &Context) -> Self {
        Self {
            url: Some(context.url.clone()),
            token: context.token.clone(),
            token_file: context.token_file.clone(),
            ca: context.ca.clone(),
            plaintext: context.plaintext,
            ..Self::default()
        }
    }

    pub(crate) fn names_token(&self) -> bool {
        self.token.is_some() || self.token_file.is_some()
    }

    /// The same without variables that are set to nothing: to be set to nothing is not to be set.
    pub(crate) fn without_empty(self) -> Self {
        let text = |given: Option<String>| given.filter(|text| !text.is_empty());
        let path = |given: Option<PathBuf>| given.filter(|path| !path.as_os_str().is_empty());
        Self {
            url: text(self.url),
            context: text(self.context),
            token: text(self.token),
            token_file: path(self.token_file),
            ca: path(self.ca),
            ..self
        }
    }

    /// The same without what only the environment says.
    pub(crate) fn typed(&self, matches: &ArgMatches) -> Self {
        let is_typed = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
        Self {
            url: self.url.clone().filter(|_| is_typed("url")),
            context: self.context.clone().filter(|_| is_typed("context")),
            token_file: self.token_file.clone().filter(|_| is_typed("token_file")),
            token: self.token.clone().filter(|_| is_typed("token")),
            ca: self.ca.clone().filter(|_| is_typed("ca")),
            plaintext: self.plaintext,
            reveal: self.reveal,
        }
    }

    /// What a store over the network is made with.
    pub(crate) fn options(&self) -> Result<(ServerUrl, Options), Problem> {
        let url: ServerUrl = self.url.as_deref().unwrap_or_default().parse()?;
        let mut options = Options::default();
        options.token = match (&self.token, &self.token_file) {
            (Some(_), Some(file)) => {
                return Err(Problem::usage(format!("a token is given, and {} as well", file.display()))
                    .hint("give one of --token and --token-file (TIDEGATE_TOKEN, TIDEGATE_TOKEN_FILE)"));
            }
            (Some(token), None) => Some(token.clone()),
            (None, Some(file)) => Some(token_in(file)?),
            (None, None) => None,
        };
        options.ca = self.ca.clone();
        options.plaintext = self.plaintext;
        options.reveal = self.reveal;
        // Whatever is wrong is said before anything is done.
        RemoteStore::new(&url, options.clone())?;
        Ok((url, options))
    }
}

fn token_in(file: &Path) -> Result<String, Problem> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound { Code::NotFound } else { Code::NotAllowed };
        Problem::new(code, format!("the token in {} cannot be read: {error}", file.display()))
            .hint("--token-file names a file with one token in it, readable by this user")
    })?;
    Ok(text.trim().to_owned())
}

/// A server to work with.
pub(crate) struct Server {
    pub(crate) url: ServerUrl,
    pub(crate) options: Options,
    /// The context by which it is production.
    pub(crate) production: Option<String>,
}

/// What a command works on.
pub(crate) enum Target {
    /// A file or a database, as `--store` names it.
    Store(String),
    Server(Box<Server>),
}

/// Everything that says what a command works on.
pub(crate) struct Named<'a> {
    pub(crate) store: &'a str,
    /// Who says which store.
    pub(crate) store_source: Option<ValueSource>,
    pub(crate) reach: &'a Reach,
    pub(crate) typed: &'a Reach,
}

impl Target {
    /// Decides between them. `contexts` is asked for only where it matters.
    pub(crate) fn of(named: &Named<'_>, contexts: impl FnOnce() -> Result<Contexts, Problem>) -> Result<Self, Problem> {
        let Named { store, store_source, reach, typed } = named;
        let store_is_typed = *store_source == Some(ValueSource::CommandLine);
        let store_is_set = *store_source == Some(ValueSource::EnvVariable);
        let is_typed = typed.url.is_some() || typed.context.is_some();
        let is_set = reach.url.is_some() || reach.context.is_some();
        match (store_is_typed, is_typed) {
            (true, true) => {
                return Err(Problem::usage("a store and a server are named, and one command works on one of them")
                    .hint("leave out --store, or --url and --context"));
            }
            (true, false) => return Ok(Self::Store((*store).to_owned())),
            (false, true) => return Self::server(typed, reach, contexts),
            (false, false) => {}
        }
        match (store_is_set, is_set) {
            (true, true) => {
                Err(Problem::usage("TIDEGATE_STORE names a store, and TIDEGATE_URL or TIDEGATE_CONTEXT a server")
                    .hint("unset one of them, or say which is meant: --store, --url or --context"))
            }
            (true, false) => Ok(Self::Store((*store).to_owned())),
            (false, true) => Self::server(reach, reach, contexts),
            (false, false) => {
                let contexts = contexts()?;
                match &contexts.current {
                    None => Ok(Self::Store((*store).to_owned())),
                    Some(name) => Self::of_context(name, &contexts, reach),
                }
            }
        }
    }

    /// `which` names the server; `reach` has everything else.
    fn server(
        which: &Reach,
        reach: &Reach,
        contexts: impl FnOnce() -> Result<Contexts, Problem>,
    ) -> Result<Self, Problem> {
        let contexts = contexts()?;
        match (&which.url, &which.context) {
            (Some(url), Some(name)) => {
                Err(Problem::usage(format!("the address {url} and the context {name} are both named"))
                    .hint("leave out --url or --context (TIDEGATE_URL, TIDEGATE_CONTEXT)"))
            }
            (None, Some(name)) => Self::of_context(name, &contexts, reach),
            (url, None) => {
                // No context is asked for its token: it is another server's.
                let reach = Reach { url: url.clone(), ..reach.clone() };
                let (url, options) = reach.options()?;
                let production = contexts.production_at(&url).map(str::to_owned);
                Ok(Self::Server(Box::new(Server { url, options, production })))
            }
        }
    }

    fn of_context(name: &str, contexts: &Contexts, reach: &Reach) -> Result<Self, Problem> {
        let context = contexts.named(name)?;
        let mut whole = Reach::of(context);
        if reach.names_token() {
            (whole.token, whole.token_file) = (reach.token.clone(), reach.token_file.clone());
        }
        whole.ca = reach.ca.clone().or(whole.ca);
        whole.plaintext |= reach.plaintext;
        whole.reveal = reach.reveal;
        let (url, options) = whole.options()?;
        let production = context.production.then(|| name.to_owned());
        Ok(Self::Server(Box::new(Server { url, options, production })))
    }

    /// The store, for a command that works on nothing else; `instead` says what to do about a server.
    pub(crate) fn store(&self, command: &str, instead: &str) -> Result<&str, Problem> {
        match self {
            Self::Store(store) => Ok(store),
            Self::Server(server) => {
                Err(Problem::usage(format!("{command} works on a store itself, and {} is a server", server.url))
                    .hint(instead))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts() -> Contexts {
        let context = |url: &str, production| Context {
            url: url.to_owned(),
            token: Some("tg_of_context".to_owned()),
            production,
            ..Context::default()
        };
        Contexts {
            current: Some("staging".to_owned()),
            contexts: [
                ("staging".to_owned(), context("https://staging.example.com", false)),
                ("prod".to_owned(), context("https://example.com", true)),
            ]
            .into(),
        }
    }

    fn at(url: &str) -> Reach {
        Reach { url: Some(url.to_owned()), ..Reach::default() }
    }

    fn in_context(name: &str) -> Reach {
        Reach { context: Some(name.to_owned()), ..Reach::default() }
    }

    /// What it comes to, in a line.
    fn told(store_source: Option<ValueSource>, reach: &Reach, is_typed: bool) -> String {
        let nothing = Reach::default();
        let typed = if is_typed { reach } else { &nothing };
        let named = Named { store: "s.db", store_source, reach, typed };
        match Target::of(&named, || Ok(contexts())) {
            Ok(Target::Store(store)) => store,
            Ok(Target::Server(server)) => {
                let token = server.options.token.unwrap_or_default();
                format!("{} {token} {}", server.url, server.production.unwrap_or_default())
            }
            Err(problem) => format!("refused: {}", problem.what),
        }
    }

    #[test]
    fn the_command_line_is_stronger_than_the_environment_and_that_than_the_context_in_use() {
        use ValueSource::{CommandLine, DefaultValue, EnvVariable};
        let nothing = Reach::default();
        let given = Reach { token: Some("tg_given".to_owned()), ..in_context("prod") };
        let two = Reach { url: Some("https://a".into()), ..in_context("prod") };
        #[rustfmt::skip]
        let table: [(ValueSource, &Reach, bool, &str); 13] = [
            (DefaultValue, &nothing, false, "https://staging.example.com tg_of_context "),
            (EnvVariable, &nothing, false, "s.db"),
            (CommandLine, &nothing, false, "s.db"),
            (CommandLine, &at("https://a"), false, "s.db"),
            (CommandLine, &at("https://a"), true, "refused: a store and a server are named, and one command works on one of them"),
            (EnvVariable, &at("https://a"), true, "https://a  "),
            (EnvVariable, &at("https://a"), false, "refused: TIDEGATE_STORE names a store, and TIDEGATE_URL or TIDEGATE_CONTEXT a server"),
            (DefaultValue, &at("https://a"), false, "https://a  "),
            (DefaultValue, &at("https://example.com"), true, "https://example.com  prod"),
            (DefaultValue, &in_context("prod"), true, "https://example.com tg_of_context prod"),
            (DefaultValue, &given, true, "https://example.com tg_given prod"),
            (DefaultValue, &in_context("pord"), true, "refused: there is no context pord"),
            (DefaultValue, &two, true, "refused: the address https://a and the context prod are both named"),
        ];
        for (row, (source, reach, is_typed, expected)) in table.into_iter().enumerate() {
            assert_eq!(told(Some(source), reach, is_typed), expected, "row {row}");
        }
    }

    #[test]
    fn the_token_of_a_context_goes_to_its_own_server_alone() {
        let told = told(None, &at("https://elsewhere.example.com"), true);
        assert_eq!(told, "https://elsewhere.example.com  ");
    }

    #[test]
    fn a_token_comes_from_one_place() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "tg_in_file\n").unwrap();
        let mut reach = Reach { token_file: Some(file), ..at("https://a") };
        assert_eq!(reach.options().unwrap().1.token.as_deref(), Some("tg_in_file"));
        reach.token = Some("tg_given".to_owned());
        assert!(reach.options().unwrap_err().what.contains("a token is given"));
        let missing = Reach { token_file: Some("no/such".into()), ..at("https://a") };
        assert!(missing.options().unwrap_err().what.contains("no/such"));
    }
}
