//! `tidegate probe`: whether the server on this machine is ready, for supervisors that have no program to ask with.
//!
//! An image without a shell has no `curl` either, so the program asks itself. Where the server listens it finds in the same
//! settings. Nothing secret is sent, and whoever could answer in the server's place could do so in the clear as well: over TLS
//! any certificate will do, also one that was renewed on disk and not read yet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{Named, gather};
use crate::exit::{Code, Problem};
use crate::input::duration;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate probe
  tidegate probe --live --within 1s";

/// The longest answer that is read: a line for each check.
const LONGEST: u64 = 16 << 10;

/// Ask the server on this machine whether it is ready; exit code 5 if it is not
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = "The address is the one that serve would listen on with the same settings.")]
pub(crate) struct Args {
    /// Ask whether it lives, whatever its store does
    #[arg(long)]
    live: bool,
    /// How long an answer may take
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "3s")]
    within: Duration,
    /// Where it listens, if the settings do not say so
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    #[command(flatten)]
    named: Named,
}

pub(crate) async fn run(args: Args, store: Option<&str>, output: &Output) -> Result<Code, Problem> {
    let flags = args.listen.iter().map(|listen| ("listen", listen.clone(), "--listen".to_owned())).collect();
    let settings = gather(&args.named, store, flags);
    if let Some(problem) = settings.problem() {
        return Err(problem);
    }
    let address = reachable(settings.listen());
    if address.port() == 0 {
        return Err(Problem::usage("port 0 is any free one: it does not say where the server listens")
            .hint("--listen names the address that it printed"));
    }
    let path = if args.live { "/livez" } else { "/readyz?verbose" };
    let answer = ask(address, path, settings.path("tls.cert").is_some());
    let no_answer =
        |what: String| Problem::new(Code::Later, what).hint("is tidegate serve running, with these settings?");
    let answer = match tokio::time::timeout(args.within, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(no_answer(format!("{address} cannot be asked: {error}"))),
        Err(_) => return Err(no_answer(format!("{address} did not answer within {:?}", args.within))),
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let is_well = match head.split(' ').nth(1) {
        Some("200") => true,
        Some("503") => false,
        _ => return Err(no_answer(format!("{address} answers {:?}", head.lines().next().unwrap_or_default()))),
    };
    if output.json {
        output.object(&Probed { address, ok: is_well, said: body.lines().collect() })?;
    } else {
        output.data(body)?;
    }
    if is_well { Ok(Code::Done) } else { Err(Problem::new(Code::Later, format!("{address} is not ready"))) }
}

#[derive(Serialize)]
struct Probed<'a> {
    address: SocketAddr,
    ok: bool,
    said: Vec<&'a str>,
}

/// What listens everywhere also listens on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let address = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(address, listen.port())
}

async fn ask(address: SocketAddr, path: &str, is_tls: bool) -> std::io::Result<String> {
    let connection = TcpStream::connect(address).await?;
    if !is_tls {
        return talk(connection, path).await;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = ServerName::from(address.ip());
    talk(TlsConnector::from(Arc::new(config)).connect(name, connection).await?, path).await
}

async fn talk(mut connection: impl AsyncRead + AsyncWrite + Unpin + Send, path: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    (&mut connection).take(LONGEST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Takes whatever certificate there is.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
