//! The servers that this user knows by name: a file of contexts, `tidegate/contexts.toml` under `$XDG_CONFIG_HOME` (else
//! `~/.config`), readable by its owner alone, because it may hold tokens.
//!
//! ```toml
//! current = "staging"
//!
//! [contexts.staging]
//! url = "https://tidegate.staging.example.com"
//! token_file = "/home/ada/.tidegate-staging"
//! ```

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_remote::ServerUrl;

use crate::exit::{Code, Problem};
use crate::settings::{line_of, nearest};

/// How one server is reached.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    pub(crate) url: String,
    /// Says who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// A file with the token in it, instead of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    /// A PEM file of authorities that are trusted beside those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// Sends the token in the clear as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) plaintext: bool,
    /// Asks before it acts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) production: bool,
}

/// All of them, and which is meant where none is named.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// What is in the file; nothing where there is none.
    pub(crate) fn read(path: &Path) -> Result<Self, Problem> {
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(Problem::new(Code::NotAllowed, format!("the contexts in {shown} cannot be read: {error}"))
                    .hint("make it readable for this user, or name a server with --url or a store with --store"));
            }
        };
        let read: Self = toml::from_str(&text).map_err(|error| {
            // Not the text around the place: it may be a token.
            let place = line_of(&error, &text);
            Problem::usage(format!("{shown}{place} is no file of contexts: {}", unquoted(error.message())))
                .hint("repair it, or remove it and begin anew: tidegate context set NAME --url URL")
        })?;
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 && read.contexts.values().any(|context| context.token.is_some()) {
            return Err(Problem::new(
                Code::NotAllowed,
                format!("{shown} has tokens in it and may be read by others (mode {:o})", mode & 0o777),
            )
            .hint(format!("chmod 600 {shown}; if others may have seen it, rotate the tokens: tidegate token rotate")));
        }
        Ok(read)
    }

    /// Writes the file whole, or leaves it as it was.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Problem> {
        let text = toml::to_string(self).map_err(|error| Problem::new(Code::Failed, error.to_string()))?;
        let cannot = |error: io::Error| {
            let code = if error.kind() == io::ErrorKind::PermissionDenied { Code::NotAllowed } else { Code::Failed };
            Problem::new(code, format!("the contexts cannot be written to {}: {error}", path.display()))
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(cannot)?;
        }
        let beside = path.with_extension(format!("toml.{}", std::process::id()));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, path)
        };
        write().map_err(|error| {
            // What is half written is of no use to anybody.
            let _removed = fs::remove_file(&beside);
            cannot(error)
        })
    }

    /// The context of a name.
    pub(crate) fn named(&self, name: &str) -> Result<&Context, Problem> {
        self.contexts.get(name).ok_or_else(|| {
            let hint = match nearest(name, self.contexts.keys().map(String::as_str)) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("tidegate context list shows them; tidegate context set {name} --url URL makes it"),
            };
            Problem::new(Code::NotFound, format!("there is no context {name}")).hint(hint)
        })
    }

    /// The one by which a server is known as production, if it is: also to whoever names only its address.
    pub(crate) fn production_at(&self, url: &ServerUrl) -> Option<&str> {
        let is =
            |context: &Context| context.production && context.url.parse().is_ok_and(|known: ServerUrl| known == *url);
        self.contexts.iter().find(|(_, context)| is(context)).map(|(name, _)| name.as_str())
    }
}

/// A message without what it quotes: a token may stand where something else belongs.
fn unquoted(message: &str) -> String {
    let parts = message.split('"').enumerate().map(|(at, part)| if at % 2 == 0 { part } else { "…" });
    parts.collect::<Vec<_>>().join("\"")
}

/// Where the file is.
pub(crate) fn place(variables: &BTreeMap<String, String>) -> Option<PathBuf> {
    Some(crate::config::usual_file(variables)?.with_file_name("contexts.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(url: &str) -> Context {
        Context { url: url.to_owned(), ..Context::default() }
    }

    #[test]
    fn what_is_written_is_read_back_and_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tidegate").join("contexts.toml");
        let mut contexts = Contexts { current: Some("prod".to_owned()), ..Contexts::default() };
        let prod = Context { token: Some("tg_x".to_owned()), production: true, ..context("https://example.com") };
        contexts.contexts.insert("prod".to_owned(), prod);
        contexts.contexts.insert("here".to_owned(), context("http://127.0.0.1:7401"));
        contexts.write(&path).unwrap();
        assert!(Contexts::read(&path).unwrap() == contexts);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        contexts.current = None;
        contexts.write(&path).unwrap();
        assert!(Contexts::read(&path).unwrap() == contexts);
    }

    #[test]
    fn a_file_with_tokens_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("contexts.toml");
        let read = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Contexts::read(&path).map(drop).map_err(|problem| problem.to_string())
        };
        let with_token = "[contexts.a]\nurl = \"https://example.com\"\ntoken = \"tg_secret\"";
        let refused = read(with_token, 0o644).unwrap_err();
        assert!(
            refused.contains("mode 644") && refused.contains("chmod 600") && !refused.contains("secret"),
            "{refused}"
        );
        assert_eq!(read(with_token, 0o600), Ok(()));
        assert_eq!(read("[contexts.a]\nurl = \"https://example.com\"", 0o644), Ok(()));
    }

    #[test]
    fn a_file_that_is_none_is_refused_and_nothing_of_it_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("contexts.toml");
        for (text, part) in [
            ("[contexts.a]\nurl = \"u\"\ntokn = \"tg_secret\"", "line 3"),
            ("[contexts.a]\ntoken = \"tg_secret\"", "url"),
            ("[contexts.a]\nurl = \"u\"\ntoken = \"tg_secret", "line 3"),
            ("[contexts.a]\nurl = \"u\"\nproduction = \"tg_secret\"", "line 3"),
        ] {
            fs::write(&path, text).unwrap();
            let refused = Contexts::read(&path).map(drop).unwrap_err().to_string();
            assert!(refused.contains(part) && !refused.contains("secret"), "{text}: {refused}");
        }
    }

    #[test]
    fn a_name_that_is_not_there_is_told_with_the_one_it_looks_like() {
        let contexts = Contexts { contexts: [("production".to_owned(), context("u"))].into(), ..Contexts::default() };
        let hint = |name: &str| contexts.named(name).map(drop).unwrap_err().hint.unwrap();
        assert_eq!(hint("prodution"), "did you mean production?");
        assert!(hint("x").contains("tidegate context set x --url URL"));
    }
}
