//! Clients that are slow, and too many of them: each is closed in its time, and the others do not wait for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::Tidegate;
use tidegate_server::{Pace, Rejected, Serve, Served, Serving, Stop, router, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A server whose loop is in the test's hands.
struct Loop {
    address: SocketAddr,
    http: Arc<tidegate_server::HttpMetrics>,
    stop: watch::Sender<Stop>,
    serving: tokio::task::JoinHandle<Served>,
    stopping: tidegate_server::Stopping,
    tide: Tidegate,
    _directory: tempfile::TempDir,
}

impl Loop {
    async fn new(how: Serve) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tide = Tidegate::open(directory.path().join("tidegate.db")).await.unwrap();
        let listener = listener();
        let address = listener.local_addr().unwrap();
        let mut serving = Serving::new(tide.clone());
        serving.http = Arc::clone(&how.http);
        let http = Arc::clone(&how.http);
        let stopping = serving.stopping.clone();
        let (stop, told) = watch::channel(Stop::No);
        let serving = tokio::spawn(serve(vec![listener], router(serving), how, told));
        Self { address, http, stop, serving, stopping, tide, _directory: directory }
    }

    /// How many clients were cut off for being slow.
    fn slow(&self) -> u64 {
        self.http.how_many_rejected(Rejected::SlowClient)
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

fn listener() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.listen(4096).unwrap()
}

/// A tenth of a second where the usual times are seconds.
fn quick() -> Pace {
    Pace {
        head: Duration::from_millis(200),
        idle: Duration::from_millis(600),
        body_grace: Duration::from_millis(200),
        body_rate: 1000,
        stall: Duration::from_millis(400),
    }
}

/// Reads until the server closes; what came, and how long it took.
async fn until_closed(connection: &mut TcpStream) -> (String, Duration) {
    let began = Instant::now();
    let mut all = Vec::new();
    let mut some = [0; 4096];
    loop {
        match tokio::time::timeout(Duration::from_secs(20), connection.read(&mut some)).await.expect("it is closed") {
            Ok(0) | Err(_) => return (String::from_utf8_lossy(&all).into_owned(), began.elapsed()),
            Ok(n) => all.extend_from_slice(&some[..n]),
        }
    }
}

/// Reads one answer whose length is known.
async fn answer(connection: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut some = [0; 4096];
    loop {
        let n = connection.read(&mut some).await.unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&some[..n]);
        let text = String::from_utf8_lossy(&all).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return text;
        }
    }
}

const REQUEST: &str = "GET /problems/forbidden HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test]
async fn a_head_that_drips_is_cut_off_in_its_time_however_often_a_byte_comes() {
    let server = Loop::new(Serve { pace: quick(), ..Serve::default() }).await;
    for beginning in ["", "GET /docs HTTP/1.1\r\nX: "] {
        // The server counts from when it takes the connection.
        let began = Instant::now();
        let mut connection = server.connect().await;
        connection.write_all(beginning.as_bytes()).await.unwrap();
        let (mut reading, mut writing) = connection.split();
        let drip = async {
            // Fails when the server has closed, which is what is waited for.
            while writing.write_all(b"x").await.is_ok() && !beginning.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            std::future::pending::<()>().await;
        };
        let mut byte = [0];
        tokio::select! {
            read = reading.read(&mut byte) => assert!(!matches!(read, Ok(n) if n > 0), "it is answered"),
            () = drip => {}
        }
        assert!(began.elapsed() >= Duration::from_millis(190), "{:?} {beginning:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?} {beginning:?}", began.elapsed());
    }
    assert_eq!(server.slow(), 2);
}

#[tokio::test]
async fn a_connection_is_kept_between_requests_and_closed_when_it_was_idle_for_long() {
    let pace = Pace { head: Duration::from_millis(100), idle: Duration::from_secs(3), ..quick() };
    let server = Loop::new(Serve { pace, ..Serve::default() }).await;
    let mut connection = server.connect().await;
    let mut asked_last = Instant::now();
    for _ in 0..3 {
        asked_last = Instant::now();
        connection.write_all(REQUEST.as_bytes()).await.unwrap();
        assert!(answer(&mut connection).await.starts_with("HTTP/1.1 200 "));
        // Longer than the head of a request may take.
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(until_closed(&mut connection).await.0, "");
    let took = asked_last.elapsed();
    assert!(took >= Duration::from_millis(2900) && took < Duration::from_secs(15), "{took:?}");
    assert_eq!(server.slow(), 0, "whoever asks for nothing more is not slow");
}

#[tokio::test]
async fn a_body_that_drips_is_answered_as_a_problem_and_one_that_comes_fast_enough_is_taken() {
    let server = Loop::new(Serve { pace: quick(), ..Serve::default() }).await;
    let body = format!(r#"{{"kind":"k","payload":"{}"}}"#, "x".repeat(5000));
    let head = |key: &str| {
        format!(
            "POST /v1/queues/q/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Idempotency-Key: {key}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )
    };
    let began = Instant::now();
    let mut slow = server.connect().await;
    slow.write_all(head("slow").as_bytes()).await.unwrap();
    slow.write_all(&body.as_bytes()[..5]).await.unwrap();
    let (told, _) = until_closed(&mut slow).await;
    let took = began.elapsed();
    assert!(told.starts_with("HTTP/1.1 408 ") && told.contains("/problems/request-timeout"), "{told}");
    assert!(took >= Duration::from_millis(190) && took < Duration::from_secs(5), "{took:?}");
    // What comes with the head has four seconds for the rest, and the rest takes longer than the grace.
    let (first, rest) = body.split_at(4000);
    let mut fine = server.connect().await;
    fine.write_all(format!("{}{first}", head("fine")).as_bytes()).await.unwrap();
    for part in rest.as_bytes().chunks(100) {
        tokio::time::sleep(Duration::from_millis(30)).await;
        fine.write_all(part).await.unwrap();
    }
    let (told, _) = until_closed(&mut fine).await;
    assert!(told.starts_with("HTTP/1.1 202 "), "{told}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answers_is_cut_off() {
    let server = Loop::new(Serve { pace: quick(), ..Serve::default() }).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut connection = socket.connect(server.address).await.unwrap();
    let (_reading, mut writing) = connection.split();
    let began = Instant::now();
    // Asked for more than buffers hold, and none of it read: at last the server takes no more requests, and then closes.
    let ask = async {
        loop {
            if writing.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n").await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ask).await.expect("it is cut off");
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    assert_eq!(server.slow(), 1);
}

#[tokio::test]
async fn a_peer_with_too_many_connections_is_told_so_and_served_again_when_one_is_gone() {
    let server = Loop::new(Serve { connections_per_peer: 2, ..Serve::default() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut connection = server.connect().await;
        connection.write_all(REQUEST.as_bytes()).await.unwrap();
        assert!(answer(&mut connection).await.starts_with("HTTP/1.1 200 "));
        held.push(connection);
    }
    let mut third = server.connect().await;
    third.write_all(REQUEST.as_bytes()).await.unwrap();
    let (told, _) = until_closed(&mut third).await;
    assert!(told.starts_with("HTTP/1.1 429 ") && told.contains("\r\nretry-after: 1\r\n"), "{told}");
    assert!(told.contains("/problems/too-many-requests"), "{told}");
    drop(held.pop());
    let began = Instant::now();
    loop {
        let mut again = server.connect().await;
        again.write_all(REQUEST.as_bytes()).await.unwrap();
        if answer(&mut again).await.starts_with("HTTP/1.1 200 ") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn when_there_are_too_many_connections_in_all_the_next_one_is_told_to_come_again() {
    let server = Loop::new(Serve { connections: 1, ..Serve::default() }).await;
    let mut held = server.connect().await;
    held.write_all(REQUEST.as_bytes()).await.unwrap();
    assert!(answer(&mut held).await.starts_with("HTTP/1.1 200 "));
    let mut second = server.connect().await;
    let (told, _) = until_closed(&mut second).await;
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("/problems/busy"), "{told}");
}

#[tokio::test]
async fn told_to_drain_it_answers_what_is_under_way_closes_what_is_idle_and_takes_nothing_new() {
    let server = Loop::new(Serve::default()).await;
    let mut idle = server.connect().await;
    idle.write_all(REQUEST.as_bytes()).await.unwrap();
    answer(&mut idle).await;
    let mut waiting = server.connect().await;
    let enqueue = "POST /v1/queues/q/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
        Idempotency-Key: a\r\nContent-Length: 24\r\n\r\n{\"kind\":\"k\",\"payload\":1}";
    waiting.write_all(enqueue.as_bytes()).await.unwrap();
    let stored = answer(&mut waiting).await;
    let id = stored.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap();
    let wait = format!("GET /v1/messages/{id}?wait=30s HTTP/1.1\r\nHost: localhost\r\n\r\n");
    waiting.write_all(wait.as_bytes()).await.unwrap();
    // It is under way when the server has read it: the store is asked.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    server.stop.send_replace(Stop::Drain);
    server.stopping.stop();
    let told = answer(&mut waiting).await;
    assert!(told.starts_with("HTTP/1.1 200 ") && told.contains("\"state\":\"ready\""), "{told}");
    assert!(told.to_lowercase().contains("connection: close"), "{told}");
    assert_eq!(until_closed(&mut idle).await.0, "");
    let served = tokio::time::timeout(Duration::from_secs(10), server.serving).await.expect("it ends").unwrap();
    assert_eq!(served.cut_off, 0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
    server.tide.close().await;
}

#[tokio::test]
async fn what_does_not_end_within_the_drain_is_cut_off_and_counted() {
    let server = Loop::new(Serve { drain: Duration::from_millis(200), ..Serve::default() }).await;
    let mut slow = server.connect().await;
    slow.write_all(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop.send_replace(Stop::Drain);
    let served = tokio::time::timeout(Duration::from_secs(10), server.serving).await.expect("it ends").unwrap();
    assert_eq!(served.cut_off, 1);
}

// --- drips beside an honest client -----------------------------------------------------------------------------------

/// How many slow connections: few here. With thousands, the program itself is measured by the example `slow_clients` of
/// `tidegate-bench`.
const DRIPS: usize = 200;

/// Enqueues one after the other on one connection; how long each took.
async fn honest(server: &Loop, round: &str, requests: usize) -> Vec<Duration> {
    let mut connection = server.connect().await;
    connection.set_nodelay(true).unwrap();
    let mut times = Vec::with_capacity(requests);
    for n in 0..requests {
        let request = format!(
            "POST /v1/queues/q/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Idempotency-Key: {round}-{n}\r\nContent-Length: 24\r\n\r\n{{\"kind\":\"k\",\"payload\":1}}"
        );
        let began = Instant::now();
        connection.write_all(request.as_bytes()).await.unwrap();
        let reply = answer(&mut connection).await;
        times.push(began.elapsed());
        assert!(reply.starts_with("HTTP/1.1 202 "), "{reply}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    times.sort_unstable();
    times
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// One slow client after the other on one place: a head, a body or an idle connection that drips, until it is cut off.
async fn drip(address: SocketAddr, number: usize, up: Arc<AtomicUsize>) {
    loop {
        let Ok(mut connection) = TcpStream::connect(address).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let beginning = match number % 3 {
            0 => "GET /docs HTTP/1.1\r\nX-Slow: ".to_owned(),
            1 => "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
                .to_owned(),
            _ => REQUEST.to_owned(),
        };
        if connection.write_all(beginning.as_bytes()).await.is_err() {
            continue;
        }
        up.fetch_add(1, Ordering::Relaxed);
        let (mut reading, mut writing) = connection.split();
        let mut some = [0; 1024];
        loop {
            tokio::select! {
                read = reading.read(&mut some) => if !matches!(read, Ok(n) if n > 0) { break },
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    if number % 3 < 2 && writing.write_all(b"1").await.is_err() {
                        break;
                    }
                }
            }
        }
        up.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts that many slow clients, and waits until most of them are connected; with what counts them.
async fn dripping(address: SocketAddr, count: usize) -> (JoinSet<()>, Arc<AtomicUsize>) {
    let up = Arc::new(AtomicUsize::new(0));
    let mut drips = JoinSet::new();
    for number in 0..count {
        drips.spawn(drip(address, number, Arc::clone(&up)));
    }
    let began = Instant::now();
    while up.load(Ordering::Relaxed) < count * 9 / 10 {
        assert!(began.elapsed() < Duration::from_secs(60), "only {} of {count} are up", up.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (drips, up)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_that_drip_do_not_slow_an_honest_client_down() {
    let count = DRIPS;
    let server =
        Loop::new(Serve { connections: count + 100, connections_per_peer: count + 100, ..Serve::default() }).await;
    let requests = 300;
    // Three requests that are late make a p99, and a machine that does other things as well is late with three now and
    // then: the drips are to blame when that happens each time.
    let mut unbearable = Vec::new();
    for round in 0..5 {
        honest(&server, &format!("warm-{round}"), 100).await;
        let alone = honest(&server, &format!("alone-{round}"), requests).await;
        let (mut drips, up) = dripping(server.address, count).await;
        let beside = honest(&server, &format!("beside-{round}"), requests).await;
        let up_at_the_end = up.load(Ordering::Relaxed);
        drips.shutdown().await;
        let (before, after) = (percentile(&alone, 99), percentile(&beside, 99));
        println!(
            "{count} slow connections: p50 {:?} and p99 {before:?} alone, p50 {:?} and p99 {after:?} beside them, \
             {up_at_the_end} up at the end",
            percentile(&alone, 50),
            percentile(&beside, 50),
        );
        // A debug build: what is under some milliseconds is its noise.
        if after <= (before * 2).max(before + Duration::from_millis(40)) {
            return;
        }
        unbearable.push((before, after));
    }
    panic!("p99 alone and beside them, each time: {unbearable:?}");
}
