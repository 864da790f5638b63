//! Who is let in: a token is looked up among those that the store keeps, and a look at the store is good for seconds.
//!
//! Without tokens a server is open to its own machine alone: to a client whose address is a loopback one, that calls the
//! server by such a name (a page in a browser that had its own name point here does not), and that is not spoken for by a
//! proxy. As soon as the store has ever had a token, or where that is demanded, everybody needs one.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::ConnectInfo;
use http::{HeaderMap, HeaderName, header, request::Parts};
use subtle::ConstantTimeEq as _;
use tidegate::token::{TOKEN_PREFIX, TokenHash, TokenRecord};
use tidegate::{Clock, Store, SystemClock};
use tidegate_api::ProblemType;
use tokio::sync::Mutex;

use crate::principal::Principal;
use crate::problem::Problem;

/// How long a look at the store is good: a revocation is noticed after this at the latest.
const GOOD_FOR: Duration = Duration::from_secs(2);
/// A token that is not known is looked for anew, at most so often: whoever sends one has to wait for it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Whether tokens are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Not by clients on this machine, as long as the store never had a token.
    Unless,
    /// By everybody.
    Always,
    /// By nobody: whoever reaches the server may do everything.
    Never,
}

/// Knows the tokens.
pub struct Guard {
    demand: Demand,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    known: RwLock<Option<Known>>,
    /// One looks at a time.
    looking: Mutex<()>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("demand", &self.demand).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Known {
    /// By the first bytes of the digest: of those nothing can be learnt, whoever sends a token knows them. The rest is
    /// compared in constant time.
    tokens: Arc<HashMap<[u8; 8], Vec<Arc<TokenRecord>>>>,
    looked: Duration,
}

impl Guard {
    /// A guard of a store.
    pub fn new(store: Arc<dyn Store>, demand: Demand) -> Self {
        Self::with_clock(store, demand, Arc::new(SystemClock::new()))
    }

    /// The same, by another clock.
    pub fn with_clock(store: Arc<dyn Store>, demand: Demand, clock: Arc<dyn Clock>) -> Self {
        Self { demand, store, clock, known: RwLock::default(), looking: Mutex::default() }
    }

    /// Forgets what it saw, so that the next request looks anew.
    pub fn forget(&self) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Who sends this request.
    pub(crate) async fn principal(&self, parts: &Parts) -> Result<Principal, Problem> {
        if self.demand == Demand::Never {
            return Ok(Principal::anyone());
        }
        if let Some(token) = bearer(&parts.headers)? {
            return self.of_token(token).await;
        }
        match self.demand {
            Demand::Unless if !self.known(GOOD_FOR).await?.tokens.is_empty() => {
                Err(unauthorized("the request carries no token, and this store has tokens"))
            }
            Demand::Unless => match why_not_local(parts) {
                None => Ok(Principal::anyone()),
                Some(why) => Err(unauthorized(format!("the request carries no token, and {why}"))),
            },
            Demand::Always | Demand::Never => Err(unauthorized("the request carries no token")),
        }
    }

    async fn of_token(&self, token: &str) -> Result<Principal, Problem> {
        let hash = TokenHash::of(token);
        let mut found = self.known(GOOD_FOR).await?.find(hash);
        if found.is_none() && token.starts_with(TOKEN_PREFIX) {
            // It may have been made a moment ago.
            let looked = self.seen(GOOD_FOR).map(|known| self.clock.monotonic().saturating_sub(known.looked));
            tokio::time::sleep(LOOK_AGAIN.saturating_sub(looked.unwrap_or(LOOK_AGAIN))).await;
            found = self.known(LOOK_AGAIN).await?.find(hash);
        }
        match found.filter(|record| record.is_live(self.clock.now())) {
            Some(record) => Ok(Principal::of(record)),
            // Unknown, expired and revoked are told alike: nobody learns that a token was one once.
            None => Err(unauthorized("the token is not valid")),
        }
    }

    /// What a look that is no older than this saw.
    async fn known(&self, good_for: Duration) -> Result<Known, Problem> {
        if let Some(known) = self.seen(good_for) {
            return Ok(known);
        }
        let _turn = self.looking.lock().await;
        // Whoever had the turn before may have looked.
        if let Some(known) = self.seen(good_for) {
            return Ok(known);
        }
        let looked = self.clock.monotonic();
        let mut tokens: HashMap<[u8; 8], Vec<Arc<TokenRecord>>> = HashMap::new();
        for record in self.store.tokens().await? {
            tokens.entry(first(record.hash)).or_default().push(Arc::new(record));
        }
        let known = Known { tokens: Arc::new(tokens), looked };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(known.clone());
        Ok(known)
    }

    fn seen(&self, good_for: Duration) -> Option<Known> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        (self.clock.monotonic().saturating_sub(known.looked) < good_for).then_some(known)
    }
}

impl Known {
    fn find(&self, hash: TokenHash) -> Option<Arc<TokenRecord>> {
        let with_these = self.tokens.get(&first(hash))?;
        let is = |record: &&Arc<TokenRecord>| bool::from(record.hash.as_bytes().ct_eq(hash.as_bytes()));
        with_these.iter().find(is).cloned()
    }
}

fn first(hash: TokenHash) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    [a, b, c, d, e, f, g, h]
}

fn unauthorized(what: impl Into<String>) -> Problem {
    Problem::new(ProblemType::Unauthorized, what)
}

/// The token that a request carries.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut sent = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), further) = (sent.next(), sent.next()) else { return Ok(None) };
    if further.is_some() {
        return Err(unauthorized("the header Authorization is there more than once"));
    }
    let not_bearer = || unauthorized("the header Authorization is not: Bearer and a token");
    let value = value.to_str().map_err(|_| not_bearer())?;
    let (scheme, token) = value.split_once(' ').ok_or_else(not_bearer)?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
        return Err(not_bearer());
    }
    Ok(Some(token.trim()))
}

/// Headers that a proxy adds for those it speaks for.
static SPOKEN_FOR: [HeaderName; 4] =
    [header::FORWARDED, header::VIA, HeaderName::from_static("x-forwarded-for"), HeaderName::from_static("x-real-ip")];

/// Why a request is not taken for one of this machine.
fn why_not_local(parts: &Parts) -> Option<&'static str> {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical());
    match peer {
        None => return Some("where it comes from is not known to this server"),
        Some(address) if !address.is_loopback() => return Some("it comes from another machine"),
        Some(_) => {}
    }
    if SPOKEN_FOR.iter().any(|name| parts.headers.contains_key(name)) {
        return Some("it comes through a proxy");
    }
    let named = parts.headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    match named.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str)) {
        Some(host) if !is_loopback_name(host) => Some("it calls this server by a name that is not localhost"),
        Some(_) | None => None,
    }
}

pub(crate) fn is_loopback_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(host: &str, peer: Option<&str>, extra: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri("/v1/messages").header("host", host);
        for (name, value) in extra {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        if let Some(peer) = peer {
            parts.extensions.insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        }
        parts
    }

    #[test]
    fn only_a_request_of_this_machine_is_taken_for_one() {
        let here = Some("127.0.0.1:50000");
        for host in ["127.0.0.1:7401", "localhost", "LOCALHOST:7401", "[::1]:7401", "127.1.2.3"] {
            assert_eq!(why_not_local(&parts(host, here, &[])), None, "{host}");
        }
        assert_eq!(why_not_local(&parts("localhost", Some("[::ffff:127.0.0.1]:5"), &[])), None);
        #[rustfmt::skip]
        let table = [
            (parts("localhost", None, &[]), "not known"),
            (parts("localhost", Some("192.0.2.1:5"), &[]), "another machine"),
            (parts("evil.example:7401", here, &[]), "not localhost"),
            (parts("localhost.evil.example", here, &[]), "not localhost"),
            (parts("127.0.0.1.evil.example", here, &[]), "not localhost"),
            (parts("localhost", here, &[("x-forwarded-for", "192.0.2.1")]), "proxy"),
            (parts("localhost", here, &[("forwarded", "for=192.0.2.1")]), "proxy"),
        ];
        for (parts, expected) in table {
            let why = why_not_local(&parts).unwrap();
            assert!(why.contains(expected), "{why} for {parts:?}");
        }
    }

    #[test]
    fn a_token_is_read_from_one_bearer_header_and_from_nothing_else() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers).map(|token| token.map(str::to_owned)).map_err(|problem| problem.kind())
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["Bearer tg_x"]), Ok(Some("tg_x".to_owned())));
        assert_eq!(of(&["bearer  tg_x "]), Ok(Some("tg_x".to_owned())));
        for wrong in [&["Basic dGc6eA=="][..], &["tg_x"], &["Bearer"], &["Bearer "], &["Bearer a", "Bearer b"]] {
            assert_eq!(of(wrong), Err(ProblemType::Unauthorized), "{wrong:?}");
        }
    }
}
