//! How many requests a second one client may send.
//!
//! A client is a token, both secrets of a rotation together; who came without one is its address, as it is counted for
//! connections. Each has a bucket that fills evenly and lets so many through at once. Workers have another one for what
//! they ask for work, so that whoever produces under the same token, or on the same machine, does not keep them waiting.
//!
//! What is written under a lease is never refused: to extend, to journal, to settle. There is no more of it than there are
//! leases, which the claims bound; and a lease that is lost because its holder was told to slow down would be a fault of
//! our own making, which costs an attempt and leaves effects open. Nor is what says how the server fares: probes, metrics,
//! the document and its pages, which touch no message.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tidegate::{Clock, SystemClock};
use tidegate_api::ProblemType;

use crate::metrics::Rejected;
use crate::peers::Peer;
use crate::principal::Principal;
use crate::problem::Problem;
use crate::serving::Serving;

/// The most buckets that are kept; clients beyond share one. Only one that is not full is kept, so that it takes as many
/// clients at a time.
const MOST: usize = 16_384;
/// Full buckets are looked for so often, where there are as many as may be.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How much one client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests a second, in the long run.
    pub per_s: NonZeroU32,
    /// Requests at once, after a while without any.
    pub burst: NonZeroU32,
}

impl Rate {
    /// After how long one more may be sent.
    fn each(self) -> Duration {
        Duration::from_secs(1) / self.per_s.get()
    }
}

/// Whose bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Client {
    /// The name of a token.
    Token(Arc<str>),
    Peer(Peer),
    /// Who has no address that is known, and everybody where there are too many.
    Others,
}

/// What is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Bucket {
    /// A worker asks for work.
    Work,
    Rest,
}

/// In which bucket a request to this route counts, if in any.
fn bucket(route: &str) -> Option<Bucket> {
    // From the end: a router may be mounted below a prefix.
    let (_, route) = route.rsplit_once("/v1/")?;
    match route {
        "leases/extend" | "leases/settle" | "leases/journal" => None,
        "messages/{id}/effects" | "messages/{id}/effects/answer" => None,
        "leases" | "kinds/{kind}/policy" => Some(Bucket::Work),
        _ => Some(Bucket::Rest),
    }
}

/// What clients have sent of late.
pub struct Rates {
    clock: Arc<dyn Clock>,
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    /// When each bucket is full again; one that is not there is full.
    full_at: HashMap<(Client, Bucket), Duration>,
    looked: Duration,
}

impl Rates {
    /// By another clock than the machine's.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self { clock, counted: Mutex::default() }
    }

    /// Counts a request; otherwise says after how long it may be sent again.
    fn take(&self, client: Client, bucket: Bucket, rate: Rate) -> Result<(), Duration> {
        let now = self.clock.monotonic();
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let whose = counted.place((client, bucket), now);
        let full_at = counted.full_at.get(&whose).map_or(now, |full_at| now.max(*full_at));
        let then = full_at.saturating_add(rate.each());
        let room = now.saturating_add(rate.each().saturating_mul(rate.burst.get()));
        match then.checked_sub(room) {
            None | Some(Duration::ZERO) => {
                counted.full_at.insert(whose, then);
                Ok(())
            }
            Some(early) => Err(early),
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self::with_clock(Arc::new(SystemClock::new()))
    }
}

impl fmt::Debug for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rates").finish_non_exhaustive()
    }
}

impl Counted {
    /// Where a client is counted: there is room for so many.
    fn place(&mut self, whose: (Client, Bucket), now: Duration) -> (Client, Bucket) {
        if self.full_at.len() < MOST || self.full_at.contains_key(&whose) {
            return whose;
        }
        if now.saturating_sub(self.looked) >= LOOK_EVERY {
            self.looked = now;
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        if self.full_at.len() < MOST { whose } else { (Client::Others, whose.1) }
    }
}

/// Refuses a request that is one too many.
pub(crate) async fn limit(State(serving): State<Arc<Serving>>, request: Request, next: Next) -> Response {
    let bucket = request.extensions().get::<MatchedPath>().and_then(|route| bucket(route.as_str()));
    let (Some(rate), Some(bucket)) = (serving.limits.rate, bucket) else { return next.run(request).await };
    let client = client(&request);
    let Err(early) = serving.rates.take(client, bucket, rate) else { return next.run(request).await };
    let what = format!("more than {} requests a second, and {} at once", rate.per_s, rate.burst);
    let mut response = Problem::new(ProblemType::TooManyRequests, what).retry_after(early).into_response();
    response.extensions_mut().insert(Rejected::TooManyRequests);
    response
}

/// Who sends a request. A header that names an address is not believed: whoever sends it could name any.
fn client(request: &Request) -> Client {
    if let Some(principal) = Principal::with_token(request) {
        return Client::Token(principal.shared_name());
    }
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>();
    address.map_or(Client::Others, |ConnectInfo(address)| Client::Peer(address.ip().into()))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use tidegate::testing::VirtualClock;

    use super::*;

    fn rate(per_s: u32, burst: u32) -> Rate {
        Rate { per_s: NonZeroU32::new(per_s).unwrap(), burst: NonZeroU32::new(burst).unwrap() }
    }

    fn rates() -> (Rates, Arc<VirtualClock>) {
        let clock = Arc::new(VirtualClock::default());
        (Rates::with_clock(Arc::clone(&clock) as Arc<dyn Clock>), clock)
    }

    fn token(name: &str) -> Client {
        Client::Token(name.into())
    }

    fn peer(n: u32) -> Client {
        Client::Peer(IpAddr::from(n.to_be_bytes()).into())
    }

    #[test]
    fn so_many_pass_at_once_and_then_as_many_a_second() {
        let (rates, clock) = rates();
        let passed = |n: usize| (0..n).filter(|_| rates.take(token("a"), Bucket::Rest, rate(10, 3)).is_ok()).count();
        assert_eq!(passed(9), 3);
        clock.advance(Duration::from_millis(99));
        assert_eq!(passed(9), 0);
        clock.advance(Duration::from_millis(1));
        assert_eq!(passed(9), 1);
        clock.advance(Duration::from_secs(3600));
        assert_eq!(passed(9), 3, "a quiet hour saves up no more than a burst");
    }

    #[test]
    fn each_client_and_each_sort_of_request_has_a_bucket_of_its_own() {
        let (rates, _clock) = rates();
        for client in [token("a"), token("b"), peer(1), peer(2), Client::Others] {
            for bucket in [Bucket::Rest, Bucket::Work] {
                assert!(rates.take(client.clone(), bucket, rate(1, 1)).is_ok(), "{client:?} {bucket:?}");
                assert!(rates.take(client.clone(), bucket, rate(1, 1)).is_err(), "{client:?} {bucket:?}");
            }
        }
    }

    #[test]
    fn there_are_so_many_buckets_and_no_more_and_who_has_one_keeps_it() {
        let (rates, clock) = rates();
        let many = u32::try_from(MOST).unwrap();
        for n in 0..many * 2 {
            // Whoever comes when all are taken shares one, of which it may be that nothing is left.
            let _shared = rates.take(peer(n), Bucket::Rest, rate(1, 1));
        }
        let kept = || rates.counted.lock().unwrap().full_at.len();
        assert_eq!(kept(), MOST + 1);
        assert!(rates.take(peer(0), Bucket::Rest, rate(1, 1)).is_err(), "its own bucket is empty");
        clock.advance(Duration::from_secs(1));
        assert!(rates.take(peer(many * 3), Bucket::Rest, rate(1, 1)).is_ok());
        assert_eq!(kept(), 1, "full ones are forgotten");
    }

    #[test]
    fn what_is_written_under_a_lease_counts_nowhere_and_neither_does_what_touches_no_message() {
        #[rustfmt::skip]
        let table = [
            ("/v1/leases/extend", None),
            ("/v1/leases/settle", None),
            ("/v1/leases/journal", None),
            ("/v1/messages/{id}/effects", None),
            ("/v1/messages/{id}/effects/answer", None),
            ("/livez", None),
            ("/metrics", None),
            ("/problems/{slug}", None),
            ("/openapi.json", None),
            ("/queues/v1/leases/extend", None),
            ("/v1/leases", Some(Bucket::Work)),
            ("/v1/kinds/{kind}/policy", Some(Bucket::Work)),
            ("/v1/queues/{queue}/messages", Some(Bucket::Rest)),
            ("/v1/messages/{id}", Some(Bucket::Rest)),
            ("/v1/messages/{id}/effects/resolve", Some(Bucket::Rest)),
            ("/queues/v1/sweeps", Some(Bucket::Rest)),
        ];
        let document = crate::openapi();
        for (route, expected) in table {
            assert_eq!(bucket(route), expected, "{route}");
            // A route that is called otherwise one day must not be forgotten here.
            let known = route.trim_start_matches("/queues");
            let is_known = document.paths.paths.contains_key(known) || ["/livez", "/metrics"].contains(&known);
            assert!(is_known, "{route} is no route");
        }
    }

    proptest! {
        #[test]
        fn in_no_while_does_more_pass_than_the_rate_and_one_burst(
            per_s in 1..2000_u32,
            burst in 1..50_u32,
            pauses in prop::collection::vec(0..200_u64, 1..200),
        ) {
            let (rates, clock) = rates();
            let mut passed: Vec<Duration> = Vec::new();
            for pause in pauses {
                clock.advance(Duration::from_millis(pause));
                match rates.take(token("a"), Bucket::Rest, rate(per_s, burst)) {
                    Ok(()) => passed.push(clock.monotonic()),
                    Err(early) => {
                        // Who waits as long as it was told passes; and it was not told to wait longer than it has to.
                        prop_assert!(early <= rate(per_s, burst).each());
                        clock.advance(early);
                        prop_assert!(rates.take(token("a"), Bucket::Rest, rate(per_s, burst)).is_ok());
                        passed.push(clock.monotonic());
                    }
                }
            }
            for (n, first) in passed.iter().enumerate() {
                for (m, last) in passed.iter().enumerate().skip(n) {
                    let allowed = u128::from(burst) + (*last - *first).as_nanos() / rate(per_s, burst).each().as_nanos();
                    let count = (m - n + 1) as u128;
                    prop_assert!(count <= allowed, "{} passed in {:?}", count, *last - *first);
                }
            }
        }
    }
}
