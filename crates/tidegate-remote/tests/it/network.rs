//! Over sockets: connections are kept, replies are lost where a network loses them, TLS trusts whom it is told to trust.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tidegate::store::{Enqueued, Filter};
use tidegate::{Store, StoreErrorKind, Tidegate};
use tidegate_remote::{Options, RemoteStore};
use tidegate_server::{Demand, Serve, Stop, Tls, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};

use crate::stage::{message, served};

/// A server on a port of its own, and a proxy in front of it that counts connections and loses replies.
pub(crate) struct Net {
    pub(crate) tide: Tidegate,
    server: SocketAddr,
    pub(crate) proxy: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// So many replies are lost from now on.
    pub(crate) lose: Arc<AtomicUsize>,
    directory: tempfile::TempDir,
    _stop: tokio::sync::watch::Sender<Stop>,
}

impl Net {
    pub(crate) async fn new(tls: Option<&str>) -> Self {
        Self::with_lease(tls, Duration::from_secs(30)).await
    }

    /// Its sweeper was asleep when a third of this lease went by without it, and then takes nothing over.
    pub(crate) async fn with_lease(tls: Option<&str>, lease: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tls = tls.map(|name| certificate(&directory, name));
        let tide = Tidegate::builder().lease(lease).open(directory.path().join("tidegate.db")).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let (stop, told) = tokio::sync::watch::channel(Stop::No);
        tokio::spawn(serve(vec![listener], served(&tide, Demand::Never), Serve { tls, ..Serve::default() }, told));
        let (connections, lose) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        tokio::spawn(between(listener, server, Arc::clone(&connections), Arc::clone(&lose)));
        Self { tide, server, proxy, connections, lose, directory, _stop: stop }
    }

    pub(crate) fn store(&self, url: &str, change: impl FnOnce(&mut Options)) -> RemoteStore {
        let mut options = Options::default();
        change(&mut options);
        RemoteStore::new(&url.parse().unwrap(), options).unwrap()
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }
}

/// A certificate for a name, that is its own authority.
fn certificate(directory: &tempfile::TempDir, name: &str) -> Arc<Tls> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate, cert.pem()).unwrap();
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    Tls::load(certificate, key).unwrap()
}

/// Hands bytes on in both directions. A reply that is to be lost is waited for, so that the server has done its part, and
/// then both connections end.
async fn between(listener: TcpListener, server: SocketAddr, connections: Arc<AtomicUsize>, lose: Arc<AtomicUsize>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        connections.fetch_add(1, Ordering::SeqCst);
        let lose = Arc::clone(&lose);
        tokio::spawn(async move {
            let upstream = TcpStream::connect(server).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = upstream.into_split();
            let up = tokio::spawn(async move {
                let _ended = copy(&mut from_client, &mut to_server).await;
            });
            let mut bytes = vec![0; 64 << 10];
            while let Ok(n @ 1..) = from_server.read(&mut bytes).await {
                let lost = lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if lost.is_ok() || to_client.write_all(&bytes[..n]).await.is_err() {
                    break;
                }
            }
            up.abort();
        });
    }
}

#[tokio::test]
async fn one_connection_is_kept_for_all_requests() {
    let net = Net::new(None).await;
    let store = net.store(&format!("http://{}", net.proxy), |_| {});
    for n in 0..20 {
        store.enqueue(vec![message(&format!("m-{n}"))]).await.unwrap();
    }
    assert_eq!(net.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_reply_that_a_network_loses_leaves_one_message_and_no_doubt() {
    let net = Net::new(None).await;
    let store = net.store(&format!("http://{}", net.proxy), |_| {});
    for n in 0..10 {
        net.lose.store(2, Ordering::SeqCst);
        let verdict = store.enqueue(vec![message(&format!("m-{n}"))]).await.unwrap().pop().unwrap().unwrap();
        assert!(matches!(verdict, Enqueued::Existing { .. }), "{verdict:?}");
    }
    let all = net.tide.store().list(Filter { limit: 100, ..Filter::default() }).await.unwrap();
    assert_eq!(all.len(), 10);
    // When no reply gets through, that is what is said.
    net.lose.store(usize::MAX, Ordering::SeqCst);
    let store = net.store(&format!("http://{}", net.proxy), |options| options.patience = Duration::from_millis(500));
    let error = store.enqueue(vec![message("last")]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.what().contains("whether it was done is not known"), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_after_the_time_for_one_try() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = Options::default();
    options.timeout = Duration::from_millis(100);
    options.patience = Duration::from_millis(50);
    let url = format!("http://{}", listener.local_addr().unwrap());
    let store = RemoteStore::new(&url.parse().unwrap(), options).unwrap();
    let error = store.enqueue(vec![message("a")]).await.unwrap_err();
    assert!(error.what().contains("no answer within 0.1 s") && error.what().contains("not known"), "{error}");
    drop(listener);
    let error = store.enqueue(vec![message("a")]).await.unwrap_err();
    assert!(error.what().contains("cannot reach the server at"), "{error}");
    assert!(error.hint_text().unwrap().contains("nothing was sent"), "{error}");
}

#[tokio::test]
async fn tls_trusts_the_authority_it_is_told_to_trust_and_checks_the_name() {
    let net = Net::new(Some("localhost")).await;
    let url = format!("https://localhost:{}", net.server.port());
    let trusting = |options: &mut Options| {
        options.ca = Some(net.ca());
        options.token = Some("tg_x".to_owned());
    };
    let store = net.store(&url, trusting);
    store.enqueue(vec![message("a")]).await.unwrap();
    // By another name, it is another server.
    let other = net.store(&format!("https://127.0.0.1:{}", net.server.port()), trusting);
    let error = other.enqueue(vec![message("b")]).await.unwrap_err();
    assert!(error.what().contains("cannot reach") && error.what().contains("certificate"), "{error}");
    // Whoever is not told trusts only what the system trusts.
    let strange = net.store(&url, |_| {});
    let error = strange.enqueue(vec![message("c")]).await.unwrap_err();
    assert!(error.what().contains("certificate") && error.hint_text().unwrap().contains("nothing was sent"), "{error}");
    let all = net.tide.store().list(Filter { limit: 100, ..Filter::default() }).await.unwrap();
    assert_eq!(all.len(), 1);
    // A file that has no authority in it is told when the store is made.
    let mut options = Options::default();
    options.ca = Some(net.directory.path().join("key.pem"));
    let error = RemoteStore::new(&url.parse().unwrap(), options).unwrap_err();
    assert!(error.what().contains("key.pem") && error.what().contains("no certificate"), "{error}");
}
