//! One request of a verb and its answer: who asks, what is sent again, and what an answer that is none means.
//!
//! Every verb of the contract is safe to repeat (by key, nonce, token or effect), so every request is sent again when
//! its answer was lost or its server had no time, as long as patience lasts; but for an intent, whose second writing is
//! refused. What is left then is said as it is: *not sent*, or *nobody knows*, which no later try takes back. An answer that
//! is a refusal is the store's own error again; where it answers a repetition, the first try may be what it is refused for,
//! and the error says that as well ([`doubted`]).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidegate::clock::{Clock, Random};
use tidegate::store::Verdicts;
use tidegate::{StoreError, StoreErrorKind, Tenant};
use tidegate_api::{PROBLEM_JSON, Problem, ProblemType, Refusal, VERSION_HEADER};

use crate::transport::{NoAnswer, Transport};
use crate::url::ServerUrl;

/// So often a connection that is refused is tried: a server that is being restarted is back by then, and one that is not
/// there is told of at once.
const REFUSED_TRIES: u32 = 4;
/// The first pause before a request is sent again, and the longest, where the server names none.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What stays as it is in a part of an address.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A name or a key as a part of an address.
pub(crate) fn part(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, PLAIN)
}

/// The query of an address, begun with `?` where there is any.
#[derive(Debug, Default)]
pub(crate) struct Query(String);

impl Query {
    pub(crate) fn add(&mut self, name: &str, value: impl fmt::Display) {
        let sign = if self.0.is_empty() { '?' } else { '&' };
        self.0.push_str(&format!("{sign}{name}={}", part(&value.to_string())));
    }

    pub(crate) fn add_some(&mut self, name: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request before it has an address.
#[derive(Debug)]
pub(crate) struct Ask {
    /// The verb of the contract: what errors call it, because an address may have a key in it.
    verb: &'static str,
    method: Method,
    path: String,
    tenant: Option<Tenant>,
    body: Option<Bytes>,
    /// Not sent again once it may have arrived.
    once: bool,
    /// How long one try may take, and all of them, where that is shorter than usual.
    within: Option<Duration>,
}

impl Ask {
    pub(crate) fn get(verb: &'static str, path: impl Into<String>) -> Self {
        Self { verb, method: Method::GET, path: path.into(), tenant: None, body: None, once: false, within: None }
    }

    pub(crate) fn post<T: Serialize>(verb: &'static str, path: impl Into<String>, body: &T) -> Self {
        Self::with(verb, Method::POST, path, body)
    }

    pub(crate) fn with<T: Serialize>(verb: &'static str, method: Method, path: impl Into<String>, body: &T) -> Self {
        let body = serde_json::to_vec(body).expect("a wire form is plain data");
        Self { body: Some(body.into()), method, ..Self::get(verb, path) }
    }

    pub(crate) fn delete(verb: &'static str, path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(verb, path) }
    }

    /// Whose messages it is about.
    pub(crate) fn of(mut self, tenant: &Tenant) -> Self {
        // The tenant without a name is the one that is meant where none is named.
        self.tenant = (!tenant.as_str().is_empty()).then(|| tenant.clone());
        self
    }

    /// What was done already would be refused the second time.
    pub(crate) fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// An answer that comes later is of no use.
    pub(crate) fn within(mut self, within: Duration) -> Self {
        self.within = Some(within);
        self
    }
}

/// Sends requests to one server.
pub(crate) struct Exchange {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) url: ServerUrl,
    /// `Bearer …`; marked as one that is not to be shown.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) patience: Duration,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("url", &self.url).field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// How one try ended that was no success.
pub(crate) enum Ended {
    Answered(Response<Bytes>),
    NoAnswer(NoAnswer),
}

impl Ended {
    /// Whether it may be done or under way, here or behind what answered.
    fn may_have_arrived(&self) -> bool {
        match self {
            Self::Answered(answer) => answer.status().is_server_error() && !is_turned_away(answer),
            Self::NoAnswer(no_answer) => !no_answer.not_sent,
        }
    }
}

impl Exchange {
    /// Sends a request until it is answered or patience is over, and reads the answer.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, ask: Ask) -> Result<T, StoreError> {
        Ok(self.read(&ask).await?.0)
    }

    /// The same for a verb that answers a verdict for each item.
    pub(crate) async fn verdicts<A, T>(
        &self,
        ask: Ask,
        of: impl FnOnce(A) -> Verdicts<T> + Send,
    ) -> Result<Verdicts<T>, StoreError>
    where
        A: DeserializeOwned + Send,
        T: Send,
    {
        let (answer, repeated) = self.read::<A>(&ask).await?;
        let verdicts = of(answer).into_iter();
        let in_doubt = |verdict: Result<T, StoreError>| verdict.map_err(|error| doubted(ask.verb, error));
        Ok(if repeated { verdicts.map(in_doubt).collect() } else { verdicts.collect() })
    }

    /// Reads the answer, and says whether an earlier try may have arrived as well.
    async fn read<T: DeserializeOwned>(&self, ask: &Ask) -> Result<(T, bool), StoreError> {
        let (answer, repeated) = self.answer(ask).await?;
        let read = serde_json::from_slice(answer.body()).map_err(|error| self.unreadable(ask, &answer, &error))?;
        Ok((read, repeated))
    }

    /// The same where the answer may be that it is not there.
    pub(crate) async fn find<T: DeserializeOwned>(&self, ask: Ask) -> Result<Option<T>, StoreError> {
        match self.ask(ask).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The answer, and whether an earlier try may have arrived as well, where that makes a difference.
    async fn answer(&self, ask: &Ask) -> Result<(Response<Bytes>, bool), StoreError> {
        let started = self.clock.monotonic();
        let patience = ask.within.map_or(self.patience, |within| within.min(self.patience));
        let mut may_have_arrived = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let repeated = may_have_arrived && ask.method != Method::GET;
            let ended = match self.send(ask, self.request(ask)?).await {
                Ok(answer) if answer.status().is_success() && is_ours(answer.headers()) => {
                    return Ok((answer, repeated));
                }
                Ok(answer) => Ended::Answered(answer),
                // What an earlier try sent may be done, whatever becomes of this one.
                Err(NoAnswer { not_sent, why }) => {
                    Ended::NoAnswer(NoAnswer { not_sent: not_sent && !may_have_arrived, why })
                }
            };
            may_have_arrived |= ended.may_have_arrived();
            let is_over = ask.once && may_have_arrived;
            let waited = self.clock.monotonic().saturating_sub(started);
            match pause(&ended, tries, self.random.unit(), self.clock.now()) {
                Some(pause) if !is_over && fits(waited, pause, patience) => {
                    tracing::debug!(verb = ask.verb, tries, pause_ms = millis(pause), "a request is sent again");
                    tokio::time::sleep(pause).await;
                }
                Some(_) | None => return Err(self.error(ask, ended, tries, repeated)),
            }
        }
    }

    /// One try. The transport's own time is a connection's; a request may have less.
    async fn send(&self, ask: &Ask, request: Request<Bytes>) -> Result<Response<Bytes>, NoAnswer> {
        let sending = self.transport.send(request);
        let Some(within) = ask.within else { return sending.await };
        let late = || NoAnswer { not_sent: false, why: format!("no answer within {} s", within.as_secs_f64()) };
        tokio::time::timeout(within, sending).await.unwrap_or_else(|_| Err(late()))
    }

    fn request(&self, ask: &Ask) -> Result<Request<Bytes>, StoreError> {
        let unsendable = |error: http::Error| StoreError::invalid(format!("{} cannot be sent: {error}", ask.verb));
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(self.url.at(&ask.path).map_err(unsendable)?)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(tenant) = &ask.tenant {
            request = request.header("tidegate-tenant", tenant.as_str());
        }
        for (name, value) in tidegate::trace::headers() {
            request = request.header(name, value);
        }
        if ask.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request.body(ask.body.clone().unwrap_or_default()).map_err(unsendable)
    }

    // --- what an answer that is none means ----------------------------------------------------------------------------

    /// `repeated`: an earlier try than the last one may have arrived.
    fn error(&self, ask: &Ask, ended: Ended, tries: u32, repeated: bool) -> StoreError {
        let (url, verb) = (&self.url, ask.verb);
        let times = if tries == 1 { String::new() } else { format!(", tried {tries} times") };
        match ended {
            Ended::NoAnswer(NoAnswer { not_sent: true, why }) => {
                StoreError::unavailable(format!("cannot reach the server at {url}{times}: {why}"))
                    .hint("nothing was sent; is it running, and is this its address?")
            }
            Ended::NoAnswer(NoAnswer { not_sent: false, why }) if ask.method == Method::GET => {
                StoreError::unavailable(format!("the server at {url} gave no answer to {verb}{times}: {why}"))
                    .hint("nothing is changed by it; ask again")
            }
            Ended::NoAnswer(NoAnswer { not_sent: false, why }) => StoreError::unavailable(format!(
                "the server at {url} gave no answer to {verb}{times}: {why}; whether it was done is not known"
            ))
            .hint(again(ask)),
            Ended::Answered(answer) if repeated => doubted(verb, self.refused(ask, &answer, repeated)),
            Ended::Answered(answer) => self.refused(ask, &answer, repeated),
        }
    }

    fn refused(&self, ask: &Ask, answer: &Response<Bytes>, repeated: bool) -> StoreError {
        let url = &self.url;
        let (status, headers) = (answer.status(), answer.headers());
        if let Some(problem) = problem(answer) {
            let is_unknown_address = status == StatusCode::NOT_FOUND && problem.detail.starts_with("nothing is at ");
            if is_unknown_address || status == StatusCode::METHOD_NOT_ALLOWED {
                return self.of_another_version(ask, headers, repeated);
            }
            return problem.into_store_error();
        }
        let media_type = media_type(headers);
        let said = if media_type.is_empty() { status.to_string() } else { format!("{status} as {media_type}") };
        // What stands before a server says so itself when it does not get through, in whatever words it has; and of a
        // write that somebody calls done, nobody can say that it was refused.
        let is_called_done = status.is_success() && ask.method != Method::GET;
        if is_called_done || repeated || status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
            return StoreError::unavailable(format!(
                "what stands before the server at {url} answered {said}; whether {} was done is not known",
                ask.verb
            ))
            .hint(format!("{}; if this stays so, check the address", again(ask)));
        }
        StoreError::invalid(format!("what answers at {url} is no Tidegate server: it said {said}"))
            .hint("check the address: scheme, host, port, and the prefix under which the server is mounted")
    }

    fn of_another_version(&self, ask: &Ask, headers: &HeaderMap, repeated: bool) -> StoreError {
        let done = if repeated { "look whether it was done" } else { "nothing was done" };
        let server = headers.get(VERSION_HEADER).and_then(|version| version.to_str().ok()).unwrap_or("unknown");
        StoreError::invalid(format!(
            "the server at {} has no {}: it is Tidegate {server}, and this program is {}",
            self.url,
            ask.verb,
            env!("CARGO_PKG_VERSION"),
        ))
        .hint(format!("update the older of the two; {done}"))
    }

    fn unreadable(&self, ask: &Ask, answer: &Response<Bytes>, error: &serde_json::Error) -> StoreError {
        let server = answer.headers().get(VERSION_HEADER).and_then(|version| version.to_str().ok());
        let done = if ask.method == Method::GET { "" } else { "; it was done" };
        StoreError::new(
            StoreErrorKind::Corrupt,
            format!(
                "the server at {} (Tidegate {}) answered {} with what this program ({}) cannot read: {error}{done}",
                self.url,
                server.unwrap_or("unknown"),
                ask.verb,
                env!("CARGO_PKG_VERSION"),
            ),
        )
        .hint("server and client are of different versions: update the older of the two")
    }
}

/// Whether a server took nothing in: it says so before it looks at a request.
fn is_turned_away(answer: &Response<Bytes>) -> bool {
    matches!(problem(answer), Some(Told { kind: Known::Type(ProblemType::Busy), .. }))
}

/// Whether an answer is a Tidegate server's.
fn is_ours(headers: &HeaderMap) -> bool {
    headers.contains_key(VERSION_HEADER)
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// A refusal of what was sent before and may have been done then: perhaps that is what it is refused for. A settlement that
/// was stored is lost to its token as soon as another worker has the message.
fn doubted(verb: &str, error: StoreError) -> StoreError {
    if !may_follow_from_itself(&error) {
        return error;
    }
    let error = error.moreover(format!("whether an earlier try of this {verb} was done is not known"));
    if error.hint_text().is_some() { error } else { error.hint("look where it stands before anything else is done") }
}

/// Whether the same request may be refused in this way the second time and not the first time.
fn may_follow_from_itself(error: &StoreError) -> bool {
    match error.kind() {
        // Whatever is refused by what it says, or is not there, was refused the first time. A token may have ended since.
        StoreErrorKind::KeyConflict | StoreErrorKind::NotFound => false,
        StoreErrorKind::Invalid => matches!(
            Refusal::of(error).and_then(|refusal| refusal.kind),
            Some(ProblemType::Unauthorized | ProblemType::Forbidden)
        ),
        // One that says so itself.
        StoreErrorKind::Unavailable => Refusal::of(error).is_some(),
        StoreErrorKind::LeaseLost | StoreErrorKind::Conflict | StoreErrorKind::QueueFull | StoreErrorKind::Corrupt => {
            true
        }
    }
}

/// What to do when nobody knows whether it was done.
fn again(ask: &Ask) -> &'static str {
    if ask.once {
        "it is not sent again, because it would be refused if it was done: take it back with the settlement"
    } else {
        "do the same again: under the same key, token or name nothing is done twice"
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// --- sending again ---------------------------------------------------------------------------------------------------

/// Whether a pause is over before patience is. A server may name any time, also one that no clock reaches.
pub(crate) fn fits(waited: Duration, pause: Duration, patience: Duration) -> bool {
    waited.saturating_add(pause) <= patience
}

/// How long to wait before the request is sent again; none where that would change nothing.
pub(crate) fn pause(ended: &Ended, tries: u32, unit: f64, now: tidegate::Timestamp) -> Option<Duration> {
    let usual = || {
        let ceiling = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(tries.saturating_sub(1).min(16)));
        // At least half of it: a herd is spread, and nobody comes back at once.
        ceiling.min(LONGEST_PAUSE).mul_f64(0.5 + unit / 2.0)
    };
    match ended {
        Ended::NoAnswer(NoAnswer { not_sent: true, .. }) => (tries < REFUSED_TRIES).then(usual),
        Ended::NoAnswer(NoAnswer { not_sent: false, .. }) => Some(usual()),
        Ended::Answered(answer) => {
            let asked = tidegate::http::retry_after(answer.headers(), now);
            match problem(answer).map(|problem| problem.kind) {
                // A queue that is full is the caller's to slow down for, and no other answer comes by itself.
                Some(Known::Type(ProblemType::QueueFull)) => None,
                Some(Known::Type(kind)) => kind.is_retryable().then(|| asked.unwrap_or_else(usual)),
                Some(Known::Other) | None => {
                    matches!(answer.status().as_u16(), 429 | 502 | 503 | 504).then(|| asked.unwrap_or_else(usual))
                }
            }
        }
    }
}

// --- problems --------------------------------------------------------------------------------------------------------

/// A sort of problem; a newer server has some that this program does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Type(ProblemType),
    Other,
}

/// A problem as far as this program can read it.
pub(crate) struct Told {
    kind: Known,
    detail: String,
    problem: Result<Problem, Loose>,
}

/// A problem of a sort that this program does not know: its status says what to do.
#[derive(Debug, Deserialize)]
struct Loose {
    #[serde(default)]
    title: String,
    status: u16,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    fix: Option<String>,
    #[serde(default)]
    retry_after_s: Option<u64>,
}

pub(crate) fn problem(answer: &Response<Bytes>) -> Option<Told> {
    if media_type(answer.headers()) != PROBLEM_JSON {
        return None;
    }
    if let Ok(problem) = serde_json::from_slice::<Problem>(answer.body()) {
        return Some(Told { kind: Known::Type(problem.kind), detail: problem.detail.clone(), problem: Ok(problem) });
    }
    let loose: Loose = serde_json::from_slice(answer.body()).ok()?;
    Some(Told { kind: Known::Other, detail: loose.detail.clone(), problem: Err(loose) })
}

impl Told {
    pub(crate) fn into_store_error(self) -> StoreError {
        match self.problem {
            Ok(problem) => problem.into_store_error(),
            Err(loose) => {
                let kind = match loose.status {
                    404 => StoreErrorKind::NotFound,
                    // Said as well by what stands before a server and has passed the request on.
                    408 => StoreErrorKind::Unavailable,
                    409 => StoreErrorKind::Conflict,
                    429 => StoreErrorKind::QueueFull,
                    400..=499 => StoreErrorKind::Invalid,
                    _ => StoreErrorKind::Unavailable,
                };
                let mut error = StoreError::new(kind, loose.detail);
                if let Some(fix) = loose.fix {
                    error = error.hint(fix);
                }
                if let Some(seconds) = loose.retry_after_s {
                    error = error.retry_after(Duration::from_secs(seconds));
                }
                error.source(Refusal { status: loose.status, kind: None, title: loose.title })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate::Timestamp;

    use super::*;

    fn answered(status: u16, headers: &[(&str, &str)], body: &str) -> Ended {
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        Ended::Answered(answer.body(Bytes::from(body.to_owned())).unwrap())
    }

    fn of_type(kind: ProblemType, headers: &[(&str, &str)]) -> Ended {
        let body = serde_json::to_string(&Problem::new(kind, "x")).unwrap();
        let headers = [&[("content-type", PROBLEM_JSON)], headers].concat();
        answered(kind.status(), &headers, &body)
    }

    fn paused(ended: &Ended, tries: u32) -> Option<u64> {
        pause(ended, tries, 1.0, Timestamp::from_millis(1_700_000_000_000)).map(millis)
    }

    #[test]
    fn only_what_another_try_can_mend_is_sent_again() {
        let lost = Ended::NoAnswer(NoAnswer { not_sent: false, why: "reset".into() });
        let refused = Ended::NoAnswer(NoAnswer { not_sent: true, why: "refused".into() });
        let after = [("retry-after", "3")];
        #[rustfmt::skip]
        let table = [
            (&lost, 1, Some(100)),
            (&lost, 3, Some(400)),
            (&lost, 30, Some(2000)),
            (&refused, 1, Some(100)),
            (&refused, REFUSED_TRIES, None),
            (&of_type(ProblemType::Busy, &after), 1, Some(3000)),
            (&of_type(ProblemType::Unavailable, &[]), 1, Some(100)),
            (&of_type(ProblemType::TooManyRequests, &after), 1, Some(3000)),
            (&of_type(ProblemType::InFlight, &[]), 1, Some(100)),
            (&of_type(ProblemType::QueueFull, &after), 1, None),
            (&of_type(ProblemType::Unauthorized, &[]), 1, None),
            (&of_type(ProblemType::Conflict, &[]), 1, None),
            (&of_type(ProblemType::Internal, &[]), 1, None),
            (&answered(502, &[("content-type", "text/html")], "bad gateway"), 1, Some(100)),
            (&answered(503, &after, ""), 1, Some(3000)),
            (&answered(404, &[("content-type", "text/html")], "no"), 1, None),
            (&answered(503, &[("content-type", PROBLEM_JSON), ("retry-after", "Tue, 14 Nov 2023 22:13:30 GMT")],
                r#"{"type":"/problems/of-tomorrow","status":503}"#), 1, Some(10_000)),
        ];
        for (row, (ended, tries, expected)) in table.into_iter().enumerate() {
            assert_eq!(paused(ended, tries), expected, "row {row}");
        }
    }

    #[test]
    fn a_time_that_no_clock_reaches_is_longer_than_any_patience() {
        let never = format!("{}", u64::MAX);
        let busy = of_type(ProblemType::Busy, &[("retry-after", &*never)]);
        let pause = pause(&busy, 1, 1.0, Timestamp::EPOCH).unwrap();
        assert!(!fits(Duration::from_secs(1), pause, Duration::from_secs(20)));
        assert!(fits(Duration::from_secs(1), Duration::from_secs(19), Duration::from_secs(20)));
    }

    #[test]
    fn a_pause_is_never_shorter_than_half_of_what_it_may_be() {
        let lost = Ended::NoAnswer(NoAnswer { not_sent: false, why: "reset".into() });
        let least = pause(&lost, 1, 0.0, Timestamp::EPOCH).unwrap();
        assert_eq!(least, FIRST_PAUSE / 2);
    }

    #[test]
    fn a_sort_of_problem_that_is_not_known_is_taken_by_its_status() {
        for (status, kind) in [
            (404, StoreErrorKind::NotFound),
            (408, StoreErrorKind::Unavailable),
            (409, StoreErrorKind::Conflict),
            (418, StoreErrorKind::Invalid),
            (507, StoreErrorKind::Unavailable),
        ] {
            let body = format!(r#"{{"type":"/problems/new","status":{status},"detail":"it is so","fix":"wait"}}"#);
            let Ended::Answered(answer) = answered(status, &[("content-type", PROBLEM_JSON)], &body) else { panic!() };
            let error = problem(&answer).unwrap().into_store_error();
            assert_eq!((error.kind(), error.what(), error.hint_text()), (kind, "it is so", Some("wait")), "{status}");
        }
    }

    #[test]
    fn a_part_of_an_address_has_no_sign_that_means_something_there() {
        assert_eq!(part("a/b?c=d&e #%").to_string(), "a%2Fb%3Fc%3Dd%26e%20%23%25");
        assert_eq!(part("deposit-7231_a.b~").to_string(), "deposit-7231_a.b~");
        let mut query = Query::default();
        query.add("queue", "a b");
        query.add_some("kind", None::<&str>);
        query.add("limit", 3);
        assert_eq!(query.to_string(), "?queue=a%20b&limit=3");
    }
}
