//! Where a server is: `https://HOST[:PORT][/PREFIX]`, or `http://` on a machine of one's own.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use http::uri::{Authority, Scheme};
use tidegate::StoreError;

/// The address of a server.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    scheme: Scheme,
    authority: Authority,
    /// Where its router is mounted; empty at the root.
    prefix: String,
}

const EXAMPLES: &str = "such as https://tidegate.example.com or http://127.0.0.1:7401";

impl ServerUrl {
    /// Whether what is sent there can be read by nobody on the way.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Whether it is on this machine, so that nothing travels.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        let address = host.parse::<std::net::IpAddr>();
        host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    }

    /// The name or address of its machine, without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    /// The address of something there, by its path.
    ///
    /// # Errors
    /// When the path is none.
    pub fn at(&self, path: &str) -> Result<Uri, http::Error> {
        let whole = format!("{}{path}", self.prefix);
        Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query(whole).build()
    }
}

impl FromStr for ServerUrl {
    type Err = StoreError;

    /// # Errors
    /// `Invalid`. What may be a password is not repeated.
    fn from_str(text: &str) -> Result<Self, StoreError> {
        let wrong = |what: String| StoreError::invalid(what).hint(EXAMPLES);
        if text.contains('@') {
            return Err(wrong("the address of a server has a user or a password in it".to_owned())
                .hint("leave it out, and give a token: --token, TIDEGATE_TOKEN or --token-file"));
        }
        if !text.contains("://") {
            return Err(wrong(format!("{text:?} is no address of a server: it has no scheme")));
        }
        let uri: Uri = text.parse().map_err(|error| wrong(format!("{text:?} is no address of a server: {error}")))?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(wrong(format!("{text:?} is no address of a server: it names no host")));
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(wrong(format!("{text:?} is no address of a server: the scheme is neither http nor https")));
        }
        let path = parts.path_and_query.as_ref();
        if path.is_some_and(|path| path.query().is_some()) {
            return Err(wrong("the address of a server has a query".to_owned()));
        }
        let prefix = path.map_or("", |path| path.path()).trim_end_matches('/').to_owned();
        Ok(Self { scheme, authority, prefix })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.prefix)
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_perhaps_a_prefix() {
        let at = |text: &str| text.parse::<ServerUrl>().unwrap().at("/v1/messages?limit=1").unwrap().to_string();
        assert_eq!(at("http://127.0.0.1:7401"), "http://127.0.0.1:7401/v1/messages?limit=1");
        assert_eq!(at("https://example.com/"), "https://example.com/v1/messages?limit=1");
        assert_eq!(at("https://example.com/queues/"), "https://example.com/queues/v1/messages?limit=1");
        assert_eq!(at("http://[::1]:7401"), "http://[::1]:7401/v1/messages?limit=1");
    }

    #[test]
    fn what_is_no_address_is_refused_and_no_password_repeated() {
        for (text, part) in [
            ("127.0.0.1:7401", "no scheme"),
            ("ftp://host", "neither http nor https"),
            ("https://", "no address"),
            ("https://host/?token=x", "a query"),
            ("https://ada:secret@host", "a user or a password"),
            ("", "no scheme"),
        ] {
            let error = text.parse::<ServerUrl>().unwrap_err();
            assert!(error.what().contains(part), "{text}: {error}");
            assert!(error.hint_text().is_some() && !error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (text, expected) in [
            ("http://127.0.0.1:1", true),
            ("http://127.8.8.8:1", true),
            ("http://[::1]:1", true),
            ("http://LocalHost", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1.example.com", false),
        ] {
            assert_eq!(text.parse::<ServerUrl>().unwrap().is_loopback(), expected, "{text}");
        }
    }
}
