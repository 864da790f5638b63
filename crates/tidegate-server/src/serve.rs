//! Takes connections and answers on them, until it is told to stop: what `tidegate serve` does beside everything that the
//! router does.
//!
//! Each connection is a task with the times of [`Pace`]; too many of them, or of one peer, are told so. Told to drain, it
//! takes no more connections, lets the requests that are under way end, closes what is idle, and gives up after a time.
//! Told to stop at once, it does that at once.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tidegate_api::{PROBLEM_JSON, Problem, ProblemType};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use crate::metrics::{HttpMetrics, Rejected};
use crate::pace::{Answering, Overdue, Pace, Paced, PacedBody, Turn};
use crate::peers::{Admitted, Peers, Refused};
use crate::tls::Tls;

/// The most bytes that the head of a request may have before nobody reads on. What is over the limit of the headers but
/// below this is answered as a problem.
const HEAD: usize = 32 << 10;
/// How long no connection is taken after the system refused one, such as for want of descriptors.
const BREATHER: Duration = Duration::from_millis(50);
/// How many refused connections are told why at a time; the others are closed.
const TOLD_AT_A_TIME: usize = 64;
/// How long a refused connection is listened to, so that it hears why.
const FAREWELL: Duration = Duration::from_secs(1);

/// How connections are served.
#[derive(Debug, Clone)]
pub struct Serve {
    /// How slow clients may be.
    pub pace: Pace,
    /// The most connections.
    pub connections: usize,
    /// The most connections of one peer: an address of IPv4, a /64 of IPv6.
    pub connections_per_peer: usize,
    /// How long a request may take in all; longer than every wait that a request can ask for.
    pub request: Duration,
    /// How long requests under way are waited for when it stops.
    pub drain: Duration,
    /// With which certificate; without one nothing is encrypted.
    pub tls: Option<Arc<Tls>>,
    /// Where connections are counted; the one of [`Serving`](crate::Serving), so that its metrics tell them.
    pub http: Arc<HttpMetrics>,
}

impl Default for Serve {
    fn default() -> Self {
        Self {
            pace: Pace::default(),
            connections: 8192,
            connections_per_peer: 1024,
            request: Duration::from_secs(120),
            drain: Duration::from_secs(25),
            tls: None,
            http: Arc::default(),
        }
    }
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Go on.
    No,
    /// Take nothing new, and let what is under way end.
    Drain,
    /// End.
    AtOnce,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Connections that were cut off with a request under way.
    pub cut_off: usize,
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cut_off {
            0 => f.write_str("every request under way was answered"),
            1 => f.write_str("1 request was cut off"),
            n => write!(f, "{n} requests were cut off"),
        }
    }
}

struct Shared {
    router: Router,
    settings: Serve,
    peers: Arc<Peers>,
    /// How many of those that are refused may still be told.
    farewells: Arc<Semaphore>,
}

/// Serves `router` on these sockets until `stop` says otherwise, or whoever could say so is gone.
///
/// # Cancel safety
/// Dropped, connections are cut off.
pub async fn serve(
    listeners: Vec<TcpListener>,
    router: Router,
    settings: Serve,
    stop: watch::Receiver<Stop>,
) -> Served {
    let peers = Peers::new(settings.connections, settings.connections_per_peer);
    let farewells = Arc::new(Semaphore::new(TOLD_AT_A_TIME));
    let shared = Arc::new(Shared { router, settings, peers, farewells });
    let mut loops = JoinSet::new();
    for listener in listeners {
        loops.spawn(accept(listener, Arc::clone(&shared), stop.clone()));
    }
    let mut cut_off = 0;
    while let Some(ended) = loops.join_next().await {
        match ended {
            Ok(n) => cut_off += n,
            Err(error) => warn!("a loop that takes connections ended: {error}"),
        }
    }
    Served { cut_off }
}

/// Takes connections of one socket, and waits for the last of them.
async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stop: watch::Receiver<Stop>) -> usize {
    let mut connections: JoinSet<()> = JoinSet::new();
    while *stop.borrow_and_update() == Stop::No {
        tokio::select! {
            biased;
            changed = stop.changed() => if changed.is_err() { break },
            Some(_ended) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => take(stream, address, &shared, &stop, &mut connections),
                Err(error) => refused_by_the_system(&error).await,
            },
        }
    }
    // From here on the system refuses new ones; a socket that somebody else holds as well gathers them for the next one.
    drop(listener);
    wait_for(connections, shared.settings.drain, stop).await
}

/// Lets connections end; how many did not in time.
async fn wait_for(mut connections: JoinSet<()>, drain: Duration, mut stop: watch::Receiver<Stop>) -> usize {
    let over = tokio::time::sleep(drain);
    tokio::pin!(over);
    while !connections.is_empty() && *stop.borrow_and_update() != Stop::AtOnce {
        tokio::select! {
            biased;
            _ended = connections.join_next() => {}
            () = &mut over => break,
            changed = stop.changed() => if changed.is_err() { over.as_mut().await; break },
        }
    }
    let cut_off = connections.len();
    connections.shutdown().await;
    cut_off
}

/// A failed accept says something about this program or one client, never that there will be no more.
async fn refused_by_the_system(error: &io::Error) {
    let of_one_client = matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    );
    if !of_one_client {
        warn!("no connection can be taken at this moment: {error}");
        tokio::time::sleep(BREATHER).await;
    }
}

fn take(
    stream: TcpStream,
    address: SocketAddr,
    shared: &Arc<Shared>,
    stop: &watch::Receiver<Stop>,
    connections: &mut JoinSet<()>,
) {
    match shared.peers.admit(address.ip()) {
        Ok(admitted) => {
            connections.spawn(connection(stream, address, Arc::clone(shared), stop.clone(), admitted));
        }
        Err(refused) => {
            debug!(peer = %address.ip(), ?refused, "a connection is one too many");
            shared.settings.http.rejected(Rejected::TooManyConnections);
            // Over TLS it could be told only after a handshake, which is what there is no room for.
            if shared.settings.tls.is_none()
                && let Ok(turn) = Arc::clone(&shared.farewells).try_acquire_owned()
            {
                connections.spawn(async move {
                    let _turn = turn;
                    let _told = tokio::time::timeout(FAREWELL, tell(stream, refused)).await;
                });
            }
        }
    }
}

/// Says why a connection is not taken, and waits until it was heard.
async fn tell(mut stream: TcpStream, refused: Refused) -> io::Result<()> {
    let (kind, what) = match refused {
        Refused::Full => (ProblemType::Busy, "the server has as many connections as it takes"),
        Refused::Peer => (ProblemType::TooManyRequests, "this address has as many connections as one may have"),
    };
    let response = problem(kind, what);
    let (head, body) = response.into_parts();
    let reason = head.status.canonical_reason().unwrap_or_default();
    let mut text = format!("HTTP/1.1 {} {reason}\r\n", head.status.as_str());
    for (name, value) in &head.headers {
        text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
    }
    text.push_str("\r\n");
    text.push_str(&body);
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    // Closed with something unread, the system would take the answer back.
    let mut unread = [0; 1024];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// A problem of the connection rather than of a request.
fn problem(kind: ProblemType, what: &str) -> Response<String> {
    let retry_after_s = 1;
    let problem = Problem { retry_after_s: Some(retry_after_s), ..Problem::new(kind, what) };
    let body = serde_json::to_string(&problem).expect("a problem is plain data");
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let length = response.body().len().to_string();
    let headers: [(HeaderName, &str); 4] =
        [(CONTENT_TYPE, PROBLEM_JSON), (RETRY_AFTER, "1"), (CONNECTION, "close"), (CONTENT_LENGTH, &length)];
    for (name, value) in headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Receiver<Stop>,
    _admitted: Admitted,
) {
    // An answer is one write: waiting for more to send would only delay it.
    let _delay = stream.set_nodelay(true);
    let _open = shared.settings.http.connection();
    let Some(tls) = &shared.settings.tls else { return talk(stream, address, &shared, stop).await };
    match tokio::time::timeout(shared.settings.pace.head, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => talk(stream, address, &shared, stop).await,
        Ok(Err(error)) => {
            shared.settings.http.rejected(Rejected::Handshake);
            debug!(peer = %address.ip(), "no TLS with this client: {error}");
        }
        Err(_) => {
            shared.settings.http.rejected(Rejected::Handshake);
            debug!(peer = %address.ip(), "the client was too slow with TLS");
        }
    }
}

async fn talk<S>(stream: S, address: SocketAddr, shared: &Shared, mut stop: watch::Receiver<Stop>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let pace = shared.settings.pace.spread();
    let turn = Turn::new(pace);
    let service = service_fn(|request: Request<Incoming>| {
        let under_way = turn.begin();
        let answer = answer(request, address, shared, pace);
        async move { Ok::<_, Infallible>(answer.await.map(|body| Answering::new(body, under_way))) }
    });
    let io = TokioIo::new(Paced::new(stream, Arc::clone(&turn)));
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        // `Turn` keeps the times: this one would also end a connection that is idle.
        .header_read_timeout(None::<Duration>)
        .max_buf_size(HEAD)
        .serve_connection(io, service);
    let mut conversation = pin!(conversation);
    let mut draining = false;
    loop {
        if !draining && *stop.borrow_and_update() != Stop::No {
            draining = true;
            conversation.as_mut().graceful_shutdown();
        }
        tokio::select! {
            biased;
            // Before the conversation: an answer that is made now is to say that it is the last one.
            changed = stop.changed(), if !draining => if changed.is_err() { draining = true },
            ended = conversation.as_mut() => {
                if turn.was_stalled() {
                    shared.settings.http.rejected(Rejected::SlowClient);
                }
                if let Err(error) = ended {
                    debug!(peer = %address.ip(), "a connection ended: {error}");
                }
                return;
            }
            overdue = turn.overdue() => {
                if overdue == Overdue::Head {
                    shared.settings.http.rejected(Rejected::SlowClient);
                    debug!(peer = %address.ip(), "the client was too slow");
                }
                return;
            }
        }
    }
}

async fn answer(request: Request<Incoming>, address: SocketAddr, shared: &Shared, pace: Pace) -> Response<Body> {
    let mut request = request.map(|body| Body::new(PacedBody::new(body, pace)));
    request.extensions_mut().insert(ConnectInfo(address));
    let answer = shared.router.clone().oneshot(request);
    match tokio::time::timeout(shared.settings.request, answer).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            problem(ProblemType::Unavailable, "the request took too long; it may have taken effect").map(Body::from)
        }
    }
}
