//! Where a store is: a file of this machine, or a database of a PostgreSQL server.
//!
//! One text names either, in an application as on the command line. The address of a server may hold a password, so that an
//! address never shows all of itself by accident: only [`Address::reveal`] does.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tidegate_core::error::StoreError;

/// Where a store is.
#[derive(Clone, PartialEq, Eq)]
pub enum Address {
    /// A file of this machine.
    File(PathBuf),
    /// A database of a server.
    Server(Server),
}

/// The address of a PostgreSQL server and what is in it: `postgres://user@host/database?schema=tidegate`.
#[derive(Clone, PartialEq, Eq)]
pub struct Server(String);

impl Address {
    /// What a text names: a path, `sqlite://PATH`, or `postgres://…`.
    ///
    /// # Errors
    /// `Invalid` when it names nothing, or an engine that there is not. What follows the scheme is not repeated then: it may
    /// hold a password.
    pub fn of(text: &str) -> Result<Self, StoreError> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("sqlite", text));
        match scheme {
            "sqlite" if rest.is_empty() => Err(StoreError::invalid(format!("store {text:?} names no file"))
                .hint("a path, sqlite://PATH, or postgres://HOST/DATABASE")),
            "sqlite" => Ok(Self::File(PathBuf::from(rest))),
            "postgres" | "postgresql" => Ok(Self::Server(Server(text.to_owned()))),
            _ => Err(StoreError::invalid(format!("store {scheme:.40}://…: no engine of that name"))
                .hint("a path, sqlite://PATH, or postgres://HOST/DATABASE")),
        }
    }

    /// What a path names. Text that is no UTF-8 can only be a path.
    pub(crate) fn of_path(path: &Path) -> Result<Self, StoreError> {
        match path.to_str() {
            // The engine says what is wrong with a path of nothing, as of any other.
            Some(text) if text.contains("://") => Self::of(text),
            Some(_) | None => Ok(Self::File(path.to_owned())),
        }
    }

    /// The file, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Server(_) => None,
        }
    }

    /// The server, if it is one.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        match self {
            Self::File(_) => None,
            Self::Server(server) => Some(server),
        }
    }

    /// The text that names it, with its password: for a child process, never for a log.
    ///
    /// # Errors
    /// `Invalid` when it is a path that is no UTF-8.
    pub fn reveal(&self) -> Result<&str, StoreError> {
        match self {
            Self::File(path) => {
                path.to_str().ok_or_else(|| StoreError::invalid(format!("the path {} is not UTF-8", path.display())))
            }
            Self::Server(server) => Ok(server.reveal()),
        }
    }
}

impl Server {
    /// The address with its password: for whoever connects, never for a log.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether the address has a password in it.
    #[must_use]
    pub fn has_password(&self) -> bool {
        let (_, rest) = self.parts();
        let in_front = rest.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
        in_front || parameters(rest).any(hides)
    }

    /// The same with a password, unless there is one in it.
    #[must_use]
    pub fn with_password(self, password: &str) -> Self {
        if self.has_password() {
            return self;
        }
        let separator = if self.0.contains('?') { '&' } else { '?' };
        Self(format!("{}{separator}password={}", self.0, encoded(password)))
    }

    /// The same with a parameter, unless there is one of that name in it.
    #[must_use]
    pub fn with(self, name: &str, value: &str) -> Self {
        if self.parameter(name).is_some() {
            return self;
        }
        let separator = if self.0.contains('?') { '&' } else { '?' };
        Self(format!("{}{separator}{name}={}", self.0, encoded(value)))
    }

    /// The value of a parameter, as it is written.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let (_, rest) = self.parts();
        parameters(rest).find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='))
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once("://").unwrap_or((&self.0, ""))
    }
}

/// The parts of the query. A password that was written as it is may look like one; that does no harm.
fn parameters(rest: &str) -> impl Iterator<Item = &str> {
    rest.split(['?', '&']).skip(1).filter(|parameter| !parameter.is_empty())
}

fn hides(parameter: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default();
    name.to_ascii_lowercase().contains("pass")
}

fn encoded(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

impl FromStr for Address {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        Self::of(text)
    }
}

/// A path names a file, whatever is in it.
impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&PathBuf> for Address {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<&Self> for Address {
    fn from(address: &Self) -> Self {
        address.clone()
    }
}

/// Without its password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Server(server) => server.fmt(f),
        }
    }
}

/// Without its password.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.parts();
        write!(f, "{scheme}://")?;
        // The last `@`: a password that was written as it is may have one in it.
        let shown = match rest.rsplit_once('@') {
            Some((user, behind)) => {
                match user.split_once(':') {
                    Some((user, _)) => write!(f, "{}:…@", masked(user))?,
                    None => write!(f, "{}@", masked(user))?,
                }
                behind
            }
            None => rest,
        };
        f.write_str(&masked(shown))
    }
}

/// A part of an address without the values of its parameters that are secret.
fn masked(part: &str) -> String {
    let pieces = part.split_inclusive(['?', '&']).map(|piece| match piece.split_once('=').filter(|_| hides(piece)) {
        Some((name, value)) => {
            let separator = value.chars().last().filter(|last| ['?', '&'].contains(last));
            format!("{name}=…{}", separator.map(String::from).unwrap_or_default())
        }
        None => piece.to_owned(),
    });
    pieces.collect()
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_names_a_file_or_a_server() {
        let file = |text: &str| Address::of(text).map(|address| address.file().map(|path| path.display().to_string()));
        assert_eq!(file("a/b.db"), Ok(Some("a/b.db".to_owned())));
        assert_eq!(file("sqlite://a/b.db"), Ok(Some("a/b.db".to_owned())));
        assert_eq!(file("sqlite:///var/b.db"), Ok(Some("/var/b.db".to_owned())));
        assert_eq!(file("postgres://host/db"), Ok(None));
        assert_eq!(file("postgresql://host/db"), Ok(None));
        for refused in ["", "sqlite://", "mysql://u:secret@host/db", "postgre://u:secret@host/db"] {
            let error = Address::of(refused).unwrap_err().to_string();
            assert!(error.contains("hint") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn no_password_is_shown_however_it_was_written() {
        let cases = [
            ("postgres://host/db", "postgres://host/db"),
            ("postgres://ada@host:5433/db", "postgres://ada@host:5433/db"),
            ("postgres://ada:secret@host/db?schema=shop", "postgres://ada:…@host/db?schema=shop"),
            ("postgres://ada:se?c/r@et@host/db", "postgres://ada:…@host/db"),
            ("postgres://ada:secret?x=1@host/db?a=b", "postgres://ada:…@host/db?a=b"),
            ("postgres://host/db?user=ada&password=secret", "postgres://host/db?user=ada&password=…"),
            ("postgres://host/db?sslpassword=secret&x=1", "postgres://host/db?sslpassword=…&x=1"),
            ("postgres://host/db?user=a@b&password=secret&c=d", "postgres://host/db?user=a@b&password=…&c=d"),
            ("postgres:///db?host=/tmp", "postgres:///db?host=/tmp"),
        ];
        for (text, shown) in cases {
            let address = Address::of(text).unwrap();
            assert_eq!(address.to_string(), shown);
            assert!(!format!("{address:?}").contains("secret"), "{address:?}");
            assert_eq!(address.reveal().unwrap(), text);
        }
    }

    #[test]
    fn a_password_from_elsewhere_is_taken_unless_the_address_has_one() {
        let server = |text: &str| Address::of(text).unwrap().server().unwrap().clone();
        let with = |text: &str| server(text).with_password("p&s s").reveal().to_owned();
        assert_eq!(with("postgres://ada@host/db"), "postgres://ada@host/db?password=p%26s%20s");
        assert_eq!(with("postgres://host/db?schema=shop"), "postgres://host/db?schema=shop&password=p%26s%20s");
        for has in ["postgres://ada:secret@host/db", "postgres://host/db?password=secret"] {
            assert_eq!(with(has), has);
        }
        assert_eq!(server("postgres://host/db?schema=shop").parameter("schema"), Some("shop"));
        assert_eq!(server("postgres://host/db?schema=shop").parameter("sche"), None);
    }
}
