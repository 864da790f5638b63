//! TLS: nothing in the clear, and a certificate that is read again without a connection being lost.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tidegate::Tidegate;
use tidegate_server::{Pace, Serve, Serving, Stop, Tls, router, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

/// Writes a certificate of its own into two files, and gives it back.
fn certificate(directory: &std::path::Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(directory.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

fn trusting(certificate: &CertificateDer<'static>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

const REQUEST: &[u8] = b"GET /problems/forbidden HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test]
async fn a_certificate_is_read_again_without_a_connection_being_lost() {
    let directory = tempfile::tempdir().unwrap();
    let first = certificate(directory.path());
    let tls = Tls::load(directory.path().join("cert.pem"), directory.path().join("key.pem")).unwrap();
    let tide = Tidegate::open(directory.path().join("tidegate.db")).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_stop, told) = tokio::sync::watch::channel(Stop::No);
    let pace = Pace { head: Duration::from_millis(500), ..Pace::default() };
    let how = Serve { tls: Some(Arc::clone(&tls)), pace, ..Serve::default() };
    tokio::spawn(serve(vec![listener], router(Serving::new(tide)), how, told));

    let connect = async |certificate: &CertificateDer<'static>| {
        let stream = TcpStream::connect(address).await.unwrap();
        trusting(certificate).connect(ServerName::try_from("localhost").unwrap(), stream).await
    };
    let mut old = connect(&first).await.unwrap();
    let mut some = [0; 4096];
    old.write_all(REQUEST).await.unwrap();
    let n = old.read(&mut some).await.unwrap();
    assert!(some[..n].starts_with(b"HTTP/1.1 200 "));

    let second = certificate(directory.path());
    assert!(connect(&second).await.is_err(), "not before it is told");
    tls.reload().unwrap();
    connect(&second).await.unwrap();
    assert!(connect(&first).await.is_err(), "it is another one now");
    old.write_all(REQUEST).await.unwrap();
    let n = old.read(&mut some).await.unwrap();
    assert!(some[..n].starts_with(b"HTTP/1.1 200 "), "what was there goes on");

    // What cannot be used is refused, and what there was stays.
    std::fs::write(directory.path().join("key.pem"), "no key").unwrap();
    let refused = tls.reload().unwrap_err().to_string();
    assert!(refused.contains("key.pem"), "{refused}");
    connect(&second).await.unwrap();

    // In the clear nobody is answered, and a handshake that does not come ends.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    let _closed = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/"), "{:?}", String::from_utf8_lossy(&answer));
    let mut silent = TcpStream::connect(address).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), silent.read(&mut some)).await.expect("it is closed");
    assert!(!matches!(ended, Ok(n) if n > 0));
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificate(one.path());
    certificate(two.path());
    let refused = Tls::load(one.path().join("cert.pem"), two.path().join("key.pem")).unwrap_err().to_string();
    assert!(refused.contains("does not fit"), "{refused}");
    let refused = Tls::load(one.path().join("no.pem"), one.path().join("key.pem")).unwrap_err().to_string();
    assert!(refused.contains("no.pem"), "{refused}");
    let refused = Tls::load(one.path().join("key.pem"), one.path().join("key.pem")).unwrap_err().to_string();
    assert!(refused.contains("no certificate"), "{refused}");
}
