//! How a request gets to a server and its answer back: connections that are kept, TLS, and how long is waited.
//!
//! A [`Transport`] sends once. Whether a request is sent again is `exchange.rs`'s to say; what it needs to know is told
//! in [`NoAnswer`]: whether the request may have arrived.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tidegate::StoreError;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::url::ServerUrl;

/// The largest answer that is taken: a page of messages with the largest payloads is far below.
const LARGEST_ANSWER: usize = 256 << 20;
/// A connection that was idle for longer is not used again; a server closes its end after a minute.
const IDLE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, Clone)]
pub struct NoAnswer {
    /// Nothing was sent, so that nothing can have happened.
    pub not_sent: bool,
    /// What was seen instead of an answer.
    pub why: String,
}

/// Sends a request once, and gives back the whole answer.
#[async_trait]
pub trait Transport: Send + Sync + fmt::Debug {
    /// Sends a request.
    ///
    /// # Errors
    /// When no whole answer came.
    ///
    /// # Cancel safety
    /// Dropped, the request may have arrived.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, NoAnswer>;
}

/// Connections of one's own to an address that speaks HTTP and is no Tidegate server: those that it trusts, and how long is
/// waited, as for one. A connection may take as long as a request.
///
/// # Errors
/// `Invalid` when no certificate could be checked; `Unavailable` when there is no thread for them.
pub fn connections(url: &ServerUrl, timeout: Duration) -> Result<Arc<dyn Transport>, StoreError> {
    Ok(Arc::new(Http::new(url, None, timeout, timeout)?))
}

/// Connections to one server.
///
/// They live in a small runtime of their own: leases are extended from a thread that has no I/O, and a handler that blocks
/// the runtime of its worker must not keep an extension from being sent.
pub(crate) struct Http {
    client: Client<Connector, Full<Bytes>>,
    timeout: Duration,
    /// Taken when this is dropped, which may be inside of a runtime, where none may be waited for.
    runtime: Option<Runtime>,
}

impl Http {
    pub(crate) fn new(
        url: &ServerUrl,
        ca: Option<&Path>,
        connect_timeout: Duration,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_timeout));
        let tls = if url.is_encrypted() { Some(tls(url, ca)?) } else { None };
        let connector = Connector { tcp, tls, timeout: connect_timeout };
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE).pool_timer(TokioTimer::new());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("tidegate-remote")
            .enable_all()
            .build()
            .map_err(|error| StoreError::unavailable("cannot start the runtime of the connections").source(error))?;
        Ok(Self { client: builder.build(connector), timeout, runtime: Some(runtime) })
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

#[async_trait]
impl Transport for Http {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, NoAnswer> {
        let (client, timeout) = (self.client.clone(), self.timeout);
        let exchange = async move {
            let answer = client.request(request.map(Full::new)).await;
            let answer = answer.map_err(|error| NoAnswer { not_sent: error.is_connect(), why: chain(&error) })?;
            let (head, body) = answer.into_parts();
            // From here on the request has arrived, whatever becomes of the answer.
            let cut = |error: Box<dyn std::error::Error + Send + Sync>| NoAnswer {
                not_sent: false,
                why: format!("the answer broke off: {}", chain(&*error)),
            };
            let body = Limited::new(body, LARGEST_ANSWER).collect().await.map_err(cut)?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        let exchange = async move {
            let late = || NoAnswer { not_sent: false, why: format!("no answer within {} s", timeout.as_secs_f64()) };
            tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| Err(late()))
        };
        let cut_off = |why: String| NoAnswer { not_sent: false, why };
        let Some(runtime) = &self.runtime else { return Err(cut_off("the connections are closed".to_owned())) };
        runtime.spawn(exchange).await.unwrap_or_else(|ended| Err(cut_off(format!("the request was cut off: {ended}"))))
    }
}

/// An error and what is beneath it, once each.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

// --- TLS -------------------------------------------------------------------------------------------------------------

#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

/// Trusts what the system trusts, and the authorities of the file besides.
fn tls(url: &ServerUrl, ca: Option<&Path>) -> Result<Tls, StoreError> {
    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    // One that cannot be read is one that cannot be trusted: whoever needs it is refused below.
    let (_taken, _odd) = roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca {
        let unreadable = |what: String| {
            StoreError::invalid(format!("the authorities of {} cannot be read: {what}", path.display()))
                .hint("--ca names a PEM file with the authority that signed the server's certificate")
        };
        let mut found = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| unreadable(e.to_string()))? {
            let certificate = certificate.map_err(|e| unreadable(e.to_string()))?;
            roots.add(certificate).map_err(|e| unreadable(e.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(unreadable("there is no certificate in it".to_owned()));
        }
    }
    if roots.is_empty() {
        let why: Vec<String> = system.errors.iter().map(ToString::to_string).collect();
        return Err(StoreError::invalid(format!("this system trusts no authority: {}", why.join("; ")))
            .hint("install its certificates (ca-certificates), or name a file of authorities: --ca FILE"));
    }
    let host = url.host().to_owned();
    let name = ServerName::try_from(host)
        .map_err(|error| StoreError::invalid(format!("{} can have no certificate: {error}", url.host())))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::invalid(format!("no TLS: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Tls { connector: TlsConnector::from(Arc::new(config)), name })
}

/// Makes connections.
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector,
    tls: Option<Tls>,
    /// How long the handshake of TLS may take.
    timeout: Duration,
}

impl tower_service::Service<Uri> for Connector {
    type Response = Wire;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, io::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        tower_service::Service::poll_ready(&mut self.tcp, context).map_err(io::Error::other)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = tower_service::Service::call(&mut self.tcp, uri);
        let (tls, timeout) = (self.tls.clone(), self.timeout);
        Box::pin(async move {
            let tcp = connecting.await.map_err(io::Error::other)?;
            let Some(Tls { connector, name }) = tls else { return Ok(Wire::Plain(tcp)) };
            let handshake = connector.connect(name, tcp.into_inner());
            match tokio::time::timeout(timeout, handshake).await {
                Ok(connected) => Ok(Wire::Tls(Box::new(TokioIo::new(connected?)))),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long")),
            }
        })
    }
}

/// A connection, encrypted or not.
enum Wire {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_read(context, into),
            Self::Tls(wire) => Pin::new(wire).poll_read(context, into),
        }
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_write(context, bytes),
            Self::Tls(wire) => Pin::new(wire).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_flush(context),
            Self::Tls(wire) => Pin::new(wire).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(wire) => Pin::new(wire).poll_shutdown(context),
            Self::Tls(wire) => Pin::new(wire).poll_shutdown(context),
        }
    }
}
