//! The log of a server: an object a line for programs, text for people, and in neither anything that is nobody's business.

#![expect(clippy::disallowed_methods, reason = "deadlines for tests that have to end")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::desk::{Desk, Ran};
use crate::serve::address_of;
use crate::terminal::at_a_terminal;

/// A server whose log goes into a file: a pipe that nobody reads would be full at some time.
struct Logged {
    child: Child,
    log: std::path::PathBuf,
    address: SocketAddr,
}

impl Logged {
    fn start(desk: &Desk, arguments: &[&str]) -> Self {
        let log = desk.path("serve.log");
        let mut command: Command = desk.command(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat());
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let said = std::fs::read_to_string(&log).unwrap();
            if let Some(address) = said.lines().find_map(address_of) {
                return Self { child, log, address };
            }
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "it does not serve: {ended:?} {said}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn ask(&self, request: &str) -> String {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Ends it; what it logged.
    fn ends(mut self) -> String {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn request(line: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
}

fn of_json(log: &str) -> Vec<Value> {
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    log.lines().map(line).collect()
}

/// Every word that a client sends and no log may have.
#[test]
pub(crate) fn no_payload_key_or_token_is_in_a_log_however_much_of_it_is_asked_for() {
    let desk = Desk::new();
    let server = Logged::start(&desk, &["--require-tokens", "--log", "trace", "--log-format", "json"]);
    let made =
        desk.run(&["token", "create", "app", "--scope", "produce", "--scope", "read", "--scope", "reveal", "--json"]);
    let made: Value = serde_json::from_str(&made.ends(0).out).unwrap();
    let token = made["token"].as_str().unwrap();
    let bearer = format!("Authorization: Bearer {token}");
    let json = "Content-Type: application/json";
    let (key, payload) = ("Idempotency-Key: canary-key-1", r#"{"kind":"k","payload":{"card":"canary-payload-1"}}"#);
    let enqueue =
        |payload: &str| request("POST /v1/queues/q/messages", &[&bearer, json, key, "X-Request-Id: mine-1"], payload);
    let answer = server.ask(&enqueue(payload));
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    let id = answer.split("/v1/messages/").nth(1).unwrap()[..17].to_owned();
    assert!(
        server.ask(&enqueue(&payload.replace("canary-payload-1", "canary-payload-2"))).starts_with("HTTP/1.1 422 ")
    );
    assert!(server.ask(&enqueue("{\"kind\":canary-payload-3")).starts_with("HTTP/1.1 400 "));
    assert!(server.ask(&enqueue(&payload.replace("kind", "canary-payload-4"))).starts_with("HTTP/1.1 400 "));
    let many = r#"{"messages":[{"queue":"q","kind":"k","key":"canary-key-2","payload":"canary-payload-5"}]}"#;
    assert!(server.ask(&request("POST /v1/messages", &[&bearer, json], many)).starts_with("HTTP/1.1 200 "));
    let event = ["ce-specversion: 1.0", "ce-type: k", "ce-source: /canary-key-3", "ce-id: canary-key-4"];
    let event = request("POST /v1/queues/q/events", &[&event[..], &[&bearer, json]].concat(), "\"canary-payload-6\"");
    assert!(server.ask(&event).starts_with("HTTP/1.1 202 "));
    for (path, status) in [
        ("GET /v1/queues/q/keys/canary-key-1".to_owned(), "200"),
        ("GET /v1/queues/q/keys/canary-key-9".to_owned(), "404"),
        (format!("GET /v1/messages/{id}?reveal=payload"), "200"),
        (format!("GET /v1/messages/{id}/explanation"), "200"),
        ("GET /v1/messages/canary-key-8".to_owned(), "404"),
        ("GET /v1/messages?kind=canary-key-7".to_owned(), "200"),
        ("GET /canary-key-6".to_owned(), "404"),
        ("CANARY-KEY-5 /v1/messages".to_owned(), "405"),
    ] {
        let answer = server.ask(&request(&path, &[&bearer], ""));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
    let wrong = "Authorization: Bearer canary-token-1";
    assert!(server.ask(&request("GET /v1/messages", &[wrong], "")).starts_with("HTTP/1.1 401 "));
    let log = server.ends();

    let lines = of_json(&log);
    assert!(lines.len() > 15, "one line for each request: {log}");
    for line in &lines {
        for member in ["timestamp", "level", "message", "target"] {
            assert!(line[member].is_string(), "no {member} in {line}");
        }
    }
    let about = |line: &&Value| line["span"]["request.id"] == "mine-1" && line["span"]["message.id"] == *id;
    let told: Vec<&Value> = lines.iter().filter(about).collect();
    assert_eq!(told.len(), 1, "the request and its message are found by their ids: {log}");
    assert_eq!(
        (&told[0]["status"], &told[0]["span"]["http.route"]),
        (&202.into(), &"/v1/queues/{queue}/messages".into())
    );
    let of_message = lines.iter().filter(|line| line["span"]["message.id"] == *id).count();
    assert_eq!(of_message, 3, "also those that name it in their address: {log}");
    let mut secrets = ["canary-key", "canary-payload", "canary-token", token].map(str::to_owned).to_vec();
    // What a store's address has between its user and its host.
    secrets.extend(desk.password());
    for secret in secrets {
        let leak = log.lines().find(|line| line.to_lowercase().contains(&secret));
        assert_eq!(leak, None, "{secret} is in the log");
    }
}

#[test]
fn a_log_is_text_for_people_and_an_object_a_line_for_programs() {
    let desk = Desk::new();
    let failing = || {
        let mut command = desk.command(&["serve", "--tls-cert", "none.pem", "--tls-key", "none.pem"]);
        command.env_remove("TIDEGATE_LOG_FORMAT");
        command
    };
    let told = Ran::of(failing().output().unwrap()).ends(2);
    let lines = of_json(&told.err);
    assert_eq!(lines.len(), 1, "{}", told.err);
    assert_eq!((&lines[0]["level"], &lines[0]["exit_code"]), (&"ERROR".into(), &2.into()), "{}", told.err);
    assert!(lines[0]["message"].as_str().unwrap().contains("none.pem"), "{}", told.err);
    at_a_terminal(failing()).ends(2).says("error:").says("none.pem");
    let mut asked = failing();
    asked.args(["--log-format", "text"]);
    Ran::of(asked.output().unwrap()).ends(2).says("error: ");

    let log = Logged::start(&desk, &["--log-format", "json"]).ends();
    let lines = of_json(&log);
    assert!(lines[0]["message"].as_str().unwrap().starts_with("serving tidegate.db on http://"), "{log}");
    assert_eq!(lines[0]["store"], "tidegate.db", "{log}");
    assert!(lines.iter().any(|line| line["message"].as_str().unwrap().starts_with("told to stop")), "{log}");
    let log = Logged::start(&desk, &["--log-format", "text"]).ends();
    assert!(log.starts_with("serving tidegate.db on http://"), "{log}");
    assert!(log.contains(" INFO told to stop"), "{log}");
}

#[test]
fn requests_are_logged_when_that_is_asked_for() {
    let desk = Desk::new();
    let list = request("GET /v1/messages", &[], "");
    for (arguments, lines) in [(&[][..], 0), (&["--log", "info"][..], 1), (&["--set", "log=warn"][..], 0)] {
        let server = Logged::start(&desk, arguments);
        assert!(server.ask(&list).starts_with("HTTP/1.1 200 "));
        let log = server.ends();
        assert_eq!(log.matches("/v1/messages").count(), lines, "{arguments:?}: {log}");
    }
    desk.run(&["serve", "--log", "tidegate=loud"])
        .ends(2)
        .says("log is \"tidegate=loud\", from --log")
        .says("warn, or");
    desk.run(&["serve", "--log-format", "xml"]).ends(2).says("log_format is \"xml\"").says("auto, text or json");
    let mut command = desk.command(&["config", "print", "--origin"]);
    command.env("TIDEGATE_LOG", "debug");
    let printed = Ran::of(command.output().unwrap()).ends(0);
    printed.shows("log = \"debug\"  # TIDEGATE_LOG\n").shows("log_format = \"text\"  # TIDEGATE_LOG_FORMAT\n");
}
