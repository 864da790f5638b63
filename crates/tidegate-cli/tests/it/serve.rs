//! The server as a process: what it refuses to start with, how it stops, and that a restart under load loses nothing.

#![expect(clippy::disallowed_methods, reason = "deadlines for tests that have to end")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tidegate::store::{Act, NewOperation, Operate, Pace, Selection};
use tidegate::{IdempotencyKey, QueueName, Tenant};

use crate::desk::Desk;
use crate::documents::{blocks, page, words};

/// Where a server says that it listens, in a line for people or for programs.
pub(crate) fn address_of(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("serving ")?.1.split_once(" on http")?;
    let address = rest.split_once("://")?.1.split(['"', '\n', '\r']).next()?;
    address.parse().ok()
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    told: BufReader<std::process::ChildStderr>,
}

impl Server {
    pub(crate) fn start(desk: &Desk, arguments: &[&str]) -> Self {
        Self::of(desk.command(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat()))
    }

    #[expect(clippy::zombie_processes, reason = "it is waited for by `ends`, or when it is dropped")]
    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if told.read_line(&mut line).unwrap() == 0 {
                let ended = child.wait().unwrap();
                panic!("the server ended with {ended}: {said}");
            }
            if let Some(address) = address_of(&line) {
                return Self { child, address, told };
            }
            said.push_str(&line);
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// How it ended, within this time.
    pub(crate) fn ends(mut self, within: Duration) -> (Option<i32>, String) {
        let until = Instant::now() + within;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "it did not end within {within:?}");
            std::thread::park_timeout(Duration::from_millis(5));
        };
        let mut said = String::new();
        self.told.read_to_string(&mut said).unwrap();
        (status.code(), said)
    }

    fn ask(&self, request: &str) -> String {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn post(path: &str, key: &str, token: Option<&str>) -> String {
    let body = "{\"kind\":\"k\",\"payload\":1}";
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{token}Content-Type: application/json\r\nIdempotency-Key: {key}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

const LIST: &str = "GET /v1/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// The guide's file is taken as it stands there; what it says is then tried with numbers that a test reaches.
#[test]
fn a_client_over_the_rate_that_is_set_is_told_to_come_again() {
    let desk = Desk::new();
    let shown = blocks(&page("docs/guides/serve.md")).into_iter().find(|block| block.info == "toml").unwrap();
    desk.write("config.toml", &shown.text);
    let printed = desk.run(&["config", "print", "--config", "config.toml", "--origin"]).ends(0).out;
    for set in ["requests_per_s = 200", "requests_burst = 1000"] {
        assert!(printed.lines().any(|line| line.contains(set) && line.contains("config.toml")), "{printed}");
    }
    let server = Server::start(&desk, &["--set", "limits.requests_per_s=1", "--set", "limits.requests_burst=2"]);
    let refused = (0..60).map(|_| server.ask(LIST)).find(|answer| !answer.starts_with("HTTP/1.1 200 "));
    let refused = refused.expect("nobody asks sixty times in less than a minute").to_lowercase();
    assert!(refused.starts_with("http/1.1 429 ") && refused.contains("retry-after: "), "{refused}");
    assert!(refused.contains("more than 1 requests a second, and 2 at once"), "{refused}");
}

/// Sent without curl, which need not be there, with the words that a shell would hand to it.
#[test]
fn the_first_request_of_the_guide_is_answered_as_it_shows() {
    let blocks = blocks(&page("docs/guides/serve.md"));
    let of = |info: &str, begin: &str| {
        let found = blocks.iter().find(|block| block.info == info && block.text.starts_with(begin));
        found.unwrap_or_else(|| panic!("no block of {info} that begins with {begin}")).text.trim().to_owned()
    };
    let (mut url, mut headers, mut body) = (String::new(), String::new(), String::new());
    let mut typed = words(&of("sh", "curl ").replace("\\\n", " ")).into_iter().skip(1);
    while let Some(word) = typed.next() {
        match word.as_str() {
            "-s" => {}
            "-H" => headers.push_str(&format!("{}\r\n", typed.next().unwrap())),
            "-d" => body = typed.next().unwrap(),
            _ => url = word,
        }
    }
    let path = url.strip_prefix("http://127.0.0.1:7401").unwrap();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    let desk = Desk::new();
    let server = Server::start(&desk, &[]);
    let mut shown: Value = serde_json::from_str(&of("json", "{\"id\"")).unwrap();
    for result in ["added", "known"] {
        let answer = server.ask(&request);
        let told: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
        (shown["id"], shown["result"]) = (told["id"].clone(), result.into());
        assert_eq!(told, shown);
    }
}

#[test]
fn nothing_insecure_is_started_unless_it_is_said_by_name() {
    let desk = Desk::new();
    let beyond = ["serve", "--listen", "0.0.0.0:0"];
    desk.run(&beyond).ends(2).says("can be reached from other machines").says("--insecure-plaintext");
    desk.run(&["serve", "--tls-cert", "cert.pem"]).ends(2).says("tls.key is not");
    desk.run(&["serve", "--tls-cert", "cert.pem", "--tls-key", "key.pem"]).ends(2).says("cert.pem");
    desk.run(&["serve", "--require-tokens", "--insecure-no-tokens"]).ends(2).says("both required and switched off");
    desk.run(&["serve", "--set", "limits.bodi=1"]).ends(2).says("did you mean limits.body?");
    desk.run(&["serve", "--drain", "soon"]).ends(2).says("drain is \"soon\", from --drain");
    assert!(desk.files().is_empty(), "{:?}", desk.files());
    // Said by name it starts, and everybody needs a token, also from here.
    let mut open = Server::of(desk.command(&[&beyond[..], &["--insecure-plaintext"]].concat()));
    open.address = ([127, 0, 0, 1], open.address.port()).into();
    assert!(open.ask(LIST).starts_with("HTTP/1.1 401 "));
}

#[test]
fn a_token_that_the_command_makes_is_let_in_and_one_it_revokes_is_not() {
    let desk = Desk::new();
    let server = Server::start(&desk, &["--require-tokens"]);
    assert!(server.ask(LIST).starts_with("HTTP/1.1 401 "));
    let made = desk.run(&["token", "create", "app", "--scope", "produce:q", "--scope", "read"]).ends(0);
    made.says("the only time");
    let token = desk.run(&["token", "rotate", "app", "--overlap", "0s", "--json"]).ends(0).out;
    let token: Value = serde_json::from_str(&token).unwrap();
    let token = token["token"].as_str().unwrap();
    assert!(server.ask(&post("/v1/queues/q/messages", "a", Some(token))).starts_with("HTTP/1.1 202 "));
    assert!(server.ask(&post("/v1/queues/other/messages", "a", Some(token))).starts_with("HTTP/1.1 403 "));
    desk.run(&["token", "list"]).ends(0).shows("app\tproduce:q read:*");
    desk.run(&["token", "create", "app", "--scope", "read"]).ends(4).says("rotate it");
    desk.run(&["token", "revoke", "app"]).ends(0);
    let until = Instant::now() + Duration::from_secs(5);
    while !server.ask(&post("/v1/queues/q/messages", "a", Some(token))).starts_with("HTTP/1.1 401 ") {
        assert!(Instant::now() < until, "it is still let in");
    }
    desk.run(&["token", "list"]).ends(0).prints("");
    desk.run(&["token", "list", "--all"]).ends(0).shows("revoked");
    desk.run(&["token", "revoke", "nobody"]).ends(3);
    desk.run(&["token", "create", "x", "--scope", "paint"]).ends(2).says("produce, work, read");
    let audit = desk.run(&["audit", "--json"]).ends(0).out;
    assert!(!audit.contains(token), "{audit}");
}

#[test]
fn a_payload_of_the_limit_fits_into_its_request() {
    let desk = Desk::new();
    let server = Server::start(&desk, &[]);
    let (small, payload) = ("\"payload\":1}", format!("\"{}\"", "x".repeat((1 << 20) - 2)));
    let large = small.replace('1', &payload);
    let request = post("/v1/queues/q/messages", "a", None).replace(small, &large);
    let length = |body: usize| format!("Content-Length: {body}\r\n");
    let before = "{\"kind\":\"k\",".len();
    let request = request.replace(&length(before + small.len()), &length(before + large.len()));
    let answer = server.ask(&request);
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
}

#[test]
fn told_to_stop_it_ends_well_and_told_twice_at_once() {
    let desk = Desk::new();
    let server = Server::start(&desk, &[]);
    assert!(server.ask(&post("/v1/queues/q/messages", "a", None)).starts_with("HTTP/1.1 202 "));
    server.signal(Signal::SIGTERM);
    let (code, said) = server.ends(Duration::from_secs(10));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(desk.files(), ["tidegate.db"], "the store is closed: its log is in it");

    // The first bytes of the body give its rest an hour to come, at a byte a second.
    let server = Server::start(&desk, &["--drain", "1h", "--set", "limits.body_rate=1"]);
    let mut held = TcpStream::connect(server.address).unwrap();
    held.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    held.write_all(
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\
          Expect: 100-continue\r\n\r\n",
    )
    .unwrap();
    // A request is under way when its body is asked for.
    let mut told = [0; 25];
    held.read_exact(&mut told).unwrap();
    assert_eq!(told, *b"HTTP/1.1 100 Continue\r\n\r\n");
    held.write_all(&[b' '; 3600]).unwrap();
    server.signal(Signal::SIGTERM);
    let until = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(server.address).is_ok() {
        assert!(Instant::now() < until, "it takes connections still");
    }
    server.signal(Signal::SIGTERM);
    let (code, said) = server.ends(Duration::from_secs(10));
    assert_eq!(code, Some(130), "{said}");
}

#[test]
fn queues_and_limits_are_as_the_file_declares_them() {
    let desk = Desk::new();
    desk.write("tidegate.toml", "[limits]\nbatch = 2\n[queues.q]\nmax_depth = 1\n[queues.\"acme/r\"]\npaused = true\n");
    let server = Server::start(&desk, &["--config", "tidegate.toml"]);
    assert!(server.ask(&post("/v1/queues/q/messages", "a", None)).starts_with("HTTP/1.1 202 "));
    let full = server.ask(&post("/v1/queues/q/messages", "b", None));
    assert!(full.starts_with("HTTP/1.1 429 ") && full.to_lowercase().contains("retry-after:"), "{full}");
    let stats: Value = serde_json::from_str(&desk.run(&["stats", "--json"]).ends(0).out).unwrap();
    assert_eq!(stats["queues"][1]["paused"], true, "{stats}");
    let audit = desk.run(&["audit"]).ends(0);
    audit.shows("configuration\tlimit\tq\tas tidegate.toml says").shows("configuration\tpause\tr");
    drop(server);
    // What is so already is not done again.
    drop(Server::start(&desk, &["--config", "tidegate.toml"]));
    assert_eq!(desk.run(&["audit"]).ends(0).out.lines().count(), 2);
}

#[test]
fn systemd_hears_that_it_is_ready_that_it_lives_and_that_it_stops() {
    let desk = Desk::new();
    let path = desk.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut command = desk.command(&["serve", "--listen", "127.0.0.1:0"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let server = Server::of(command);
    let hear = || {
        let mut heard = [0; 1024];
        let n = socket.recv(&mut heard).expect("it says something in time");
        String::from_utf8_lossy(&heard[..n]).into_owned()
    };
    let first = hear();
    assert!(first.contains("READY=1") && first.contains("STATUS=serving tidegate.db"), "{first}");
    assert!(hear().contains("WATCHDOG=1"));
    assert!(hear().contains("WATCHDOG=1"));
    server.signal(Signal::SIGTERM);
    let stopping = std::iter::repeat_with(hear).find(|heard| !heard.contains("WATCHDOG=1")).unwrap();
    assert!(stopping.contains("STOPPING=1") && stopping.contains("EXTEND_TIMEOUT_USEC="), "{stopping}");
    assert_eq!(server.ends(Duration::from_secs(10)).0, Some(0));
}

#[test]
fn the_program_asks_a_server_itself_whether_it_is_ready() {
    let desk = Desk::new();
    let server = Server::start(&desk, &[]);
    let listen = server.address.to_string();
    let ready = desk.run(&["probe", "--listen", &listen]).ends(0);
    ready.shows("[+] store: answers\n").shows("\nok\n");
    desk.run(&["probe", "--live", "--listen", &listen]).ends(0).prints("ok\n");
    let json = desk.run(&["probe", "--listen", &listen, "--json"]).ends(0).out;
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["ok"], true, "{json}");
    // Where it listens is the same setting as the server's; what listens everywhere listens here.
    let mut everywhere = desk.command(&["probe", "--set", "insecure.plaintext=true"]);
    everywhere.env("TIDEGATE_LISTEN", format!("0.0.0.0:{}", server.address.port()));
    crate::desk::Ran::of(everywhere.output().unwrap()).ends(0);
    drop(server);
    desk.run(&["probe", "--listen", &listen]).ends(5).says("cannot be asked").says("is tidegate serve running");
    desk.run(&["probe", "--listen", "127.0.0.1:0"]).ends(2).says("--listen names");

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = silent.local_addr().unwrap().to_string();
    desk.run(&["probe", "--listen", &listen, "--within", "50ms"]).ends(5).says("did not answer within 50ms");
    let not_ready = std::thread::spawn(move || {
        let (_late, _) = silent.accept().unwrap();
        let (mut connection, _) = silent.accept().unwrap();
        let mut request = [0; 512];
        let n = connection.read(&mut request).unwrap();
        connection.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n[-] store: unavailable\nnot ready\n").unwrap();
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    desk.run(&["probe", "--listen", &listen]).ends(5).shows("[-] store: unavailable\n").says("is not ready");
    assert!(not_ready.join().unwrap().starts_with("GET /readyz?verbose HTTP/1.1\r\n"));
}

#[test]
fn a_server_with_a_certificate_is_asked_over_tls() {
    let desk = Desk::new();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    desk.write("cert.pem", made.cert.pem());
    desk.write("key.pem", made.signing_key.serialize_pem());
    let tls = ["--set", "tls.cert=cert.pem", "--set", "tls.key=key.pem"];
    let server = Server::start(&desk, &tls);
    let listen = server.address.to_string();
    desk.run(&[&["probe", "--listen", &listen], &tls[..]].concat()).ends(0).shows("[+] store: answers\n");
    desk.run(&["probe", "--listen", &listen]).ends(5);
}

/// A server on a socket that this test holds, as systemd holds one.
fn on_socket(desk: &Desk, listener: &TcpListener) -> Server {
    let tidegate = desk.command(&["serve"]);
    let mut command = Command::new("/bin/sh");
    // Descriptor 3, and the number of the process that `exec` keeps.
    command.args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&0 0</dev/null"]);
    command.arg(tidegate.get_program()).args(tidegate.get_args());
    command.current_dir(tidegate.get_current_dir().unwrap()).env_clear().env("TIDEGATE_LOG_FORMAT", "text");
    command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
    Server::of(command)
}

/// Enqueues under one key after the other until it is told to stop; which were acknowledged, and how often a connection
/// was refused. What is not answered is sent again under the same key.
fn produce(address: SocketAddr, producer: usize, stop: &AtomicBool) -> (Vec<String>, usize) {
    let (mut acknowledged, mut refused, mut number) = (Vec::new(), 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let key = format!("p{producer}-{number}");
        let Ok(mut connection) = TcpStream::connect(address) else {
            refused += 1;
            continue;
        };
        connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = String::new();
        let sent = connection.write_all(post("/v1/queues/q/messages", &key, None).as_bytes());
        let heard = sent.and_then(|()| connection.read_to_string(&mut answer));
        if heard.is_ok() && answer.starts_with("HTTP/1.1 202 ") {
            acknowledged.push(key);
            number += 1;
        } else {
            // Draining, or cut off in the middle: nothing was promised.
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
        }
    }
    (acknowledged, refused)
}

#[test]
fn restarts_under_load_lose_no_acknowledged_request_and_refuse_no_connection() {
    let desk = Desk::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stop = AtomicBool::new(false);
    let (acknowledged, refused) = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn({
                    let stop = &stop;
                    move || produce(address, n, stop)
                })
            })
            .collect();
        let mut server = on_socket(&desk, &listener);
        let answered = || TcpStream::connect(address).is_ok();
        for _ in 0..3 {
            let until = Instant::now() + Duration::from_secs(1);
            while Instant::now() < until && answered() {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            server.signal(Signal::SIGTERM);
            let (code, said) = server.ends(Duration::from_secs(30));
            assert_eq!(code, Some(0), "{said}");
            server = on_socket(&desk, &listener);
        }
        stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        let mut refused = 0;
        for (producer, thread) in producers.into_iter().enumerate() {
            let (acknowledged, times) = thread.join().unwrap();
            all.insert(producer, acknowledged);
            refused += times;
        }
        server.signal(Signal::SIGTERM);
        assert_eq!(server.ends(Duration::from_secs(30)).0, Some(0));
        (all, refused)
    });
    let keys: Vec<String> = acknowledged.into_values().flatten().collect();
    assert!(keys.len() > 40, "only {} were acknowledged: was there a load?", keys.len());
    assert_eq!(refused, 0, "of the connections");
    desk.prepare(async |bench| {
        for key in &keys {
            let found =
                bench.store.find(Tenant::default(), QueueName::new("q").unwrap(), IdempotencyKey::new(key).unwrap());
            assert!(found.await.unwrap().is_some(), "{key} was acknowledged and is not there");
        }
    });
}

#[test]
fn the_development_server_prints_a_request_that_works_as_it_stands() {
    let desk = Desk::new();
    let mut command = desk.command(&["dev", "--listen", "127.0.0.1:0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut printed = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("-d '") {
        assert!(printed.read_line(&mut text).unwrap() > 0, "{text}");
    }
    let curl = &text[text.find("curl ").unwrap()..];
    let ran = Command::new("/bin/sh").args(["-c", curl]).output().unwrap();
    let answer = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "is curl installed? {}", String::from_utf8_lossy(&ran.stderr));
    let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
    assert_eq!(answer["result"], "added", "{answer}");
    let store = text.lines().find_map(|line| line.strip_prefix("store ")).unwrap().trim();
    let store = std::path::PathBuf::from(store.split("  (").next().unwrap());
    assert!(store.exists(), "{}", store.display());
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut warned = String::new();
    child.stderr.take().unwrap().read_to_string(&mut warned).unwrap();
    assert!(!warned.contains("there is none yet"), "it has made a token: {warned}");
    assert!(!store.exists(), "it is gone with the server");
    assert!(desk.files().is_empty(), "{:?}", desk.files());
    desk.run(&["dev", "--listen", "0.0.0.0:0"]).ends(2).says("tidegate serve is for that");
}

#[test]
pub(crate) fn an_operation_that_nobody_drives_is_taken_up_by_a_server_that_starts_and_holds_up_none_that_stops() {
    let desk = Desk::new();
    desk.prepare(async |bench| {
        for key in ["dep-1", "dep-2", "dep-3"] {
            bench.dead(key).await;
        }
        let pace = Pace { canary: 2, ..Pace::default() };
        let act = Act { actor: "test".into(), reason: "repaired".into() };
        let name = "fix-1".to_owned();
        let new = NewOperation { name, selection: Selection::default(), again: false, pace, act };
        bench.store.operate(Operate::Begin(Box::new(new))).await.unwrap();
    });
    let server = Server::start(&desk, &[]);
    let until = Instant::now() + Duration::from_secs(30);
    let operation = || -> Value {
        serde_json::from_str(&desk.run(&["dead", "operations", "fix-1", "--json"]).ends(0).out).unwrap()
    };
    while operation()["redriven"] != 2 {
        assert!(Instant::now() < until, "nobody drives it: {}", operation());
    }
    // Its canary waits for a worker that never comes.
    server.signal(Signal::SIGTERM);
    let (code, said) = server.ends(Duration::from_secs(20));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((&operation()["state"], &operation()["redriven"]), (&"running".into(), &2.into()));
}

// --- config ----------------------------------------------------------------------------------------------------------

#[test]
fn settings_are_printed_with_where_they_come_from_and_read_back_as_a_file() {
    let desk = Desk::new();
    desk.write("a.toml", "drain = \"5s\"\n[limits]\nbatch = 7\n[queues.q]\nmax_depth = 3\n");
    let mut command = desk.command(&["config", "print", "--origin", "--config", "a.toml", "--set", "limits.page=9"]);
    command.env("TIDEGATE_LIMITS_WAIT", "3s").env("TIDEGATE_STORE", "postgres://u:secret@h/d");
    let printed = crate::desk::Ran::of(command.output().unwrap()).ends(0);
    for line in [
        "drain = \"5s\"  # a.toml",
        "batch = 7  # a.toml",
        "page = 9  # --set limits.page",
        "wait = \"3s\"  # TIDEGATE_LIMITS_WAIT",
        "idle = \"60s\"  # default",
        "[queues.\"q\"]",
        "max_depth = 3",
    ] {
        assert!(printed.out.contains(line), "{line}: {}", printed.out);
    }
    assert!(!printed.out.contains("secret"), "{}", printed.out);
    let plain = desk.run(&["config", "print", "--config", "a.toml"]).ends(0).out;
    desk.write("b.toml", &plain);
    assert_eq!(desk.run(&["config", "print", "--config", "b.toml"]).ends(0).out, plain);
    desk.run(&["config", "check", "--config", "b.toml"]).ends(0).says("b.toml was read");
}

#[test]
fn everything_that_is_wrong_with_the_settings_is_told_at_once() {
    let desk = Desk::new();
    desk.write("c.toml", "dran = \"5s\"\n[limits]\nbatch = \"many\"\n");
    let checked = desk.run(&["config", "check", "--config", "c.toml"]).ends(1);
    checked.says("there is no setting dran").says("did you mean drain?").says("limits.batch is \"many\"");
    desk.run(&["config", "check", "--config", "no.toml"]).ends(1).says("no.toml cannot be read");
    desk.run(&["serve", "--config", "c.toml"]).ends(2).says("1 more with: tidegate config check");
    let listed = desk.run(&["config", "list", "--json"]).ends(0).out;
    let first: Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    assert_eq!((first["key"].as_str(), first["variable"].as_str()), (Some("store"), Some("TIDEGATE_STORE")));
}
