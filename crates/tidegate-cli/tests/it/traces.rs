//! Traces as a collector receives them: one deposit is one trace, whatever happened to it, and a collector that is away
//! costs nothing but spans.

#![expect(clippy::disallowed_methods, reason = "deadlines for tests that have to end")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use serde_json::Value;

use crate::desk::Desk;
use crate::serve::Server;

/// How long something may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// A span, as far as a test looks at it.
#[derive(Debug, Clone)]
struct Seen {
    service: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    kind: SpanKind,
    failed: bool,
    attributes: BTreeMap<String, String>,
}

impl Seen {
    fn says(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// A value as text, of the sorts that ours are.
fn text(value: Option<AnyValue>) -> String {
    let value = value.and_then(|value| value.value);
    if let Some(Any::StringValue(text)) = value {
        return text;
    }
    if let Some(Any::IntValue(number)) = value {
        return number.to_string();
    }
    let Some(Any::BoolValue(switch)) = value else { panic!("{value:?} is of no sort that ours are") };
    switch.to_string()
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

fn spans_of(body: &[u8]) -> Vec<Seen> {
    let mut seen = Vec::new();
    for of_resource in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
        let resource = attributes(of_resource.resource.unwrap().attributes);
        for span in of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
            seen.push(Seen {
                service: resource["service.name"].clone(),
                kind: span.kind(),
                failed: span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error),
                trace: span.trace_id,
                id: span.span_id,
                parent: span.parent_span_id,
                name: span.name,
                attributes: attributes(span.attributes),
            });
        }
    }
    seen
}

#[derive(Debug, Default)]
struct Received {
    spans: Mutex<Vec<Seen>>,
    more: Condvar,
}

/// A collector on this machine: takes what it is sent, and keeps it.
struct Collector {
    address: SocketAddr,
    received: Arc<Received>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, received) = (listener.local_addr().unwrap(), Arc::new(Received::default()));
        let for_thread = Arc::clone(&received);
        // Both end with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let received = Arc::clone(&for_thread);
                std::thread::spawn(move || take(connection, &received));
            }
        });
        Self { address, received }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything it has, as soon as that is enough.
    fn wait(&self, is_enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let until = Instant::now() + PATIENCE;
        let mut spans = self.received.spans.lock().unwrap();
        while !is_enough(&spans) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not enough after {PATIENCE:?}: {spans:#?}");
            spans = self.received.more.wait_timeout(spans, left).unwrap().0;
        }
        spans.clone()
    }
}

/// Requests of one connection, until it is closed.
fn take(mut connection: TcpStream, received: &Received) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    loop {
        let mut length = 0;
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
            head.push_str(&line.to_ascii_lowercase());
        }
        assert!(head.starts_with("post /v1/traces "), "{head}");
        assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
        assert!(head.contains("x-api-key: of-the-collector\r\n"), "{head}");
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        received.spans.lock().unwrap().extend(spans_of(&body));
        received.more.notify_all();
        let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
        if connection.write_all(answer).is_err() {
            return;
        }
    }
}

/// A process of the deposits application.
struct Role {
    child: Child,
    address: SocketAddr,
    /// It has a last word, which must not find the pipe closed.
    _told: BufReader<ChildStdout>,
}

impl Role {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = String::new();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        told.read_line(&mut said).unwrap();
        let address = said.trim().strip_prefix("listening ").and_then(|address| address.parse().ok());
        let Some(address) = address else { panic!("it does not listen: {said:?}, {:?}", child.wait()) };
        Self { child, address, _told: told }
    }

    fn gateway(desk: &Desk, script: &str) -> Self {
        desk.write("script.json", script);
        Self::start(desk.at_home(&["role", "gateway", "--ledger", "gateway.ledger", "--script", "script.json"]))
    }

    /// How long it waits for the gateway follows from its lease.
    fn service(desk: &Desk, gateway: &Self, collector: &str, lease_ms: u32, more: &[&str]) -> Self {
        let (gateway, lease_ms) = (format!("http://{}", gateway.address), lease_ms.to_string());
        let words = ["role", "service", "--database", "tidegate.db", "--lease-ms", &lease_ms, "--gateway", &gateway];
        let mut command = desk.at_home(&[&words, more].concat());
        command.env("TIDEGATE_OTLP_ENDPOINT", collector).env("TIDEGATE_OTLP_HEADERS", "x-api-key=of-the-collector");
        command.env("OTEL_SERVICE_NAME", "deposits");
        Self::start(command)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// How it ended, in time.
    fn ends(mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it did not end within {PATIENCE:?}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What nobody may find in a span.
const CANARY: &str = "canary";

fn ask(server: &Server, request: &str) -> String {
    let mut connection = TcpStream::connect(server.address).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

fn deposit(server: &Server, name: &str, headers: &str) -> String {
    let body =
        format!(r#"{{"kind":"authorise","payload":{{"deposit":"{name}","account":"{CANARY}-account","cents":700}}}}"#);
    let length = body.len();
    let answer = ask(
        server,
        &format!(
            "POST /v1/queues/authorise/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
             Content-Type: application/json\r\nIdempotency-Key: {name}\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    );
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let told: Value = serde_json::from_str(body).unwrap();
    told["id"].as_str().unwrap().to_owned()
}

/// The attempts of a message, by its claim: whose span says so, and what it came to.
fn attempts<'a>(spans: &'a [Seen], kind: &str) -> Vec<(&'a str, &'a str, &'a str)> {
    let is_attempt = |span: &&Seen| span.name.starts_with("attempt ") || span.name.starts_with("sweep ");
    let mut found: Vec<_> = spans.iter().filter(is_attempt).filter(|span| span.says("tidegate.kind") == kind).collect();
    found.sort_by_key(|span| span.says("tidegate.claim").parse::<u32>().unwrap());
    let of = |span: &'a Seen| {
        let verb = span.name.split(' ').next().unwrap();
        (span.says("tidegate.claim"), verb, span.says("tidegate.outcome"))
    };
    found.into_iter().map(of).collect()
}

#[test]
fn one_deposit_is_one_trace_through_a_crash_and_a_retry() {
    let (desk, collector) = (Desk::new(), Collector::start());
    let flags = ["--otlp-endpoint", &collector.url(), "--set", "otlp.headers=x-api-key=of-the-collector"];
    let server = Server::start(&desk, &flags);
    let name = format!("{CANARY}-deposit");
    let id = deposit(&server, &name, "");

    // The first worker dies before it can say what came of its attempt, and its span dies with it.
    let gateway = Role::gateway(&desk, "{}");
    let dies = ["--failpoint", "attempt.before_settle:1:kill"];
    let first = Role::service(&desk, &gateway, &collector.url(), 600, &dies);
    assert_eq!(first.ends(), None, "it was killed");
    drop(gateway);
    let swept = collector.wait(|spans| spans.iter().any(|span| span.name == "sweep authorise"));
    let swept = swept.iter().find(|span| span.name == "sweep authorise").unwrap();
    assert_eq!((swept.service.as_str(), swept.failed), ("tidegate", true), "{swept:?}");
    assert_eq!(swept.says("messaging.client.id"), "service");

    // The next one is refused by the gateway at first, and tries again.
    let script = r#"{"windows":[{"from_ms":0,"to_ms":500,"faults":{"unavailable":1.0}}]}"#;
    let gateway = Role::gateway(&desk, script);
    let second = Role::service(&desk, &gateway, &collector.url(), 5000, &[]);
    let done = |spans: &[Seen]| spans.iter().any(|span| span.name == "attempt notify" && !span.failed);
    collector.wait(done);
    second.signal(Signal::SIGTERM);
    assert_eq!(second.ends(), Some(0));
    server.signal(Signal::SIGTERM);
    let (code, said) = server.ends(PATIENCE);
    assert_eq!(code, Some(0), "{said}");

    let spans = collector.wait(done);
    let traces: BTreeSet<_> = spans.iter().map(|span| &span.trace).collect();
    assert_eq!(traces.len(), 1, "{spans:#?}");
    let known: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
    assert_eq!(known.len(), spans.len(), "each is told once");
    let roots: Vec<_> = spans.iter().filter(|span| span.parent.is_empty()).map(|span| span.name.as_str()).collect();
    assert_eq!(roots, ["POST /v1/queues/{queue}/messages"]);
    for span in &spans {
        assert!(span.parent.is_empty() || known.contains(&span.parent), "no parent of {span:#?}");
        for (name, value) in &span.attributes {
            assert!(!value.contains(CANARY) && !span.name.contains(CANARY), "{name}={value} in {}", span.name);
        }
    }

    let tries = attempts(&spans, "authorise");
    assert_eq!(tries.first(), Some(&("1", "sweep", "lease_expired")), "{tries:?}");
    assert_eq!(tries.last().map(|(_, verb, outcome)| (*verb, *outcome)), Some(("attempt", "completed")), "{tries:?}");
    assert!(tries.len() > 2, "refused by the gateway at least once: {tries:?}");
    for (number, (claim, ..)) in tries.iter().enumerate() {
        assert_eq!(*claim, (number + 1).to_string(), "every attempt is there once: {tries:?}");
    }
    for kind in ["capture", "credit", "notify"] {
        assert_eq!(attempts(&spans, kind), [("1", "attempt", "completed")]);
    }

    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let enqueued = named("enqueue authorise")[0];
    assert_eq!((enqueued.kind, enqueued.says("tidegate.verdict")), (SpanKind::Producer, "new"));
    assert_eq!((enqueued.says("messaging.message.id"), enqueued.says("messaging.operation.type")), (&*id, "send"));
    let completed = *named("attempt authorise").last().unwrap();
    assert_eq!(completed.kind, SpanKind::Consumer);
    for (name, expected) in [
        ("messaging.system", "tidegate"),
        ("messaging.destination.name", "authorise"),
        ("messaging.operation.name", "attempt"),
        ("messaging.operation.type", "process"),
        ("messaging.message.id", &id),
        ("tidegate.state", "completed"),
    ] {
        assert_eq!(completed.says(name), expected, "{name}");
    }
    assert_eq!(completed.parent, enqueued.id);
    let refused = named("attempt authorise")[0];
    assert!(refused.failed && !refused.says("error.type").is_empty(), "{refused:?}");
    // What follows begins where it was asked for.
    assert_eq!(named("attempt capture")[0].parent, completed.id);
    let effect = named("effect capture")[0];
    assert_eq!((effect.says("tidegate.effect.policy"), effect.says("tidegate.effect.answer")), ("keyed", "confirmed"));
    assert_eq!(named("send capture")[0].parent, effect.id);
    assert_eq!(named("effect credit")[0].says("tidegate.effect.policy"), "transactional");
    assert!(named("settle notify").iter().all(|span| span.kind == SpanKind::Client));
}

#[test]
fn a_trace_that_was_begun_elsewhere_is_continued_and_only_sent_if_it_is_there() {
    let (desk, collector) = (Desk::new(), Collector::start());
    let mut command = desk.command(&["serve", "--listen", "127.0.0.1:0", "--set", "otlp.ratio=0"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=of-the-collector");
    let server = Server::of(command);
    let parent = |flags: &str| format!("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}\r\n");
    let unseen = deposit(&server, "unseen", "");
    deposit(&server, "unsampled", &parent("00"));
    deposit(&server, "sampled", &parent("01"));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ends(PATIENCE).0, Some(0));
    let spans = collector.wait(|spans| spans.len() >= 2);
    let told: BTreeMap<_, _> = spans.iter().map(|span| (span.name.as_str(), span)).collect();
    assert_eq!(spans.len(), 2, "{spans:#?}");
    let request = told["POST /v1/queues/{queue}/messages"];
    assert_eq!((request.kind, request.says("http.response.status_code")), (SpanKind::Server, "202"));
    assert_eq!(request.parent, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
    assert_eq!(told["enqueue authorise"].parent, request.id);
    // What is not sent is marked all the same: whoever runs it must not begin to.
    let shown: Value = serde_json::from_str(&desk.run(&["get", &unseen, "--json"]).ends(0).out).unwrap();
    let mark = shown["headers"]["traceparent"].as_str().unwrap_or_default();
    assert!(mark.ends_with("-00"), "{shown}");
}

#[test]
fn a_message_that_nobody_marked_is_one_trace_from_its_first_attempt_on() {
    let (desk, collector) = (Desk::new(), Collector::start());
    let payload = r#"{"deposit":"dep-1","account":"ada","cents":700}"#;
    desk.run(&["enqueue", "--kind", "authorise", "--key", "dep-1", "--payload", payload]).ends(0);
    let script = r#"{"windows":[{"from_ms":0,"to_ms":500,"faults":{"unavailable":1.0}}]}"#;
    let gateway = Role::gateway(&desk, script);
    let service = Role::service(&desk, &gateway, &collector.url(), 5000, &[]);
    let spans = collector.wait(|spans| spans.iter().any(|span| span.name == "attempt notify" && !span.failed));
    service.signal(Signal::SIGTERM);
    assert_eq!(service.ends(), Some(0));
    let traces: BTreeSet<_> = spans.iter().map(|span| &span.trace).collect();
    assert_eq!(traces.len(), 1, "{spans:#?}");
    assert!(attempts(&spans, "authorise").len() > 1, "{spans:#?}");
}

fn post(server: &Server, path: &str, body: &str) -> String {
    let length = body.len();
    let answer = ask(
        server,
        &format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        ),
    );
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer
}

#[test]
fn a_worker_over_http_is_seen_in_the_trace_of_its_message() {
    let (desk, collector) = (Desk::new(), Collector::start());
    let flags = ["--otlp-endpoint", &collector.url(), "--set", "otlp.headers=x-api-key=of-the-collector"];
    let server = Server::start(&desk, &flags);
    let id = deposit(&server, &format!("{CANARY}-deposit"), "");
    let nonce = "ca11ab1eca11ab1eca11ab1eca11ab1e";
    let queues = r#""queues":{"authorise":1},"kinds":{"authorise":1}"#;
    let claim = format!(r#"{{"worker":"w",{queues},"nonce":"{nonce}","lease_ms":30000}}"#);
    post(&server, "/v1/leases", &claim);
    let effect = format!(r#""token":"1.{nonce}","effect":"capture""#);
    let reach = format!(r#"{{{effect},"policy":"keyed","window_ms":604800000,"request":"{CANARY}"}}"#);
    post(&server, &format!("/v1/messages/{id}/effects"), &reach);
    let answer = format!(r#"{{{effect},"seq":0,"answer":"confirmed","value":"{CANARY}"}}"#);
    post(&server, &format!("/v1/messages/{id}/effects/answer"), &answer);
    let settle = format!(
        r#"{{"settlements":[{{"id":"{id}","token":"1.{nonce}","outcome":"retryable","code":"busy","detail":"{CANARY}"}}]}}"#
    );
    let settled = post(&server, "/v1/leases/settle", &settle);
    assert!(settled.contains(r#""state":"ready""#), "{settled}");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ends(PATIENCE).0, Some(0));
    let spans = collector.wait(|spans| spans.iter().any(|span| span.name == "settle authorise"));
    let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "POST /v1/queues/{queue}/messages",
        "answer capture",
        "claim authorise",
        "enqueue authorise",
        "reach capture",
        "settle authorise",
    ];
    assert_eq!(names, expected, "what a worker asks for all day is no trace of its own");
    assert_eq!(spans.iter().map(|span| &span.trace).collect::<BTreeSet<_>>().len(), 1);
    let settled = spans.iter().find(|span| span.name == "settle authorise").unwrap();
    assert_eq!((settled.failed, settled.says("error.type")), (true, "busy"));
    assert_eq!((settled.says("tidegate.outcome"), settled.says("tidegate.state")), ("retryable", "ready"));
    assert!(spans.iter().flat_map(|span| span.attributes.values()).all(|value| !value.contains(CANARY)));
}

#[test]
fn what_follows_goes_on_at_the_settlement_of_a_worker_over_http_whoever_marked_its_message() {
    for is_marked in [false, true] {
        let (desk, collector) = (Desk::new(), Collector::start());
        if !is_marked {
            desk.run(&["enqueue", "--kind", "authorise", "--key", "dep-1", "--payload", "{}"]).ends(0);
        }
        let flags = ["--otlp-endpoint", &collector.url(), "--set", "otlp.headers=x-api-key=of-the-collector"];
        let server = Server::start(&desk, &flags);
        if is_marked {
            deposit(&server, "dep-1", "");
        }
        // A claim under a nonce that was used brings what it brought before.
        let nonce = |number: u32| format!("{number:032x}");
        let claim = |kind: &str, nonce: &str| {
            let kinds = format!(r#""queues":{{"{kind}":1}},"kinds":{{"{kind}":1}}"#);
            let claim = format!(r#"{{"worker":"w",{kinds},"nonce":"{nonce}","lease_ms":30000}}"#);
            let answer = post(&server, "/v1/leases", &claim);
            let told: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
            told["leases"][0]["message"]["id"].as_str().unwrap_or_else(|| panic!("{told}")).to_owned()
        };
        let id = claim("authorise", &nonce(1));
        // Whether its key is made for it or not.
        let then = r#"[{"queue":"capture","kind":"capture","payload":1},{"queue":"line","kind":"line","payload":1,"key":"a"}]"#;
        let settlement = format!(
            r#"{{"id":"{id}","token":"1.{}","outcome":"completed","result":1,"orphans":false,"then":{then}}}"#,
            nonce(1)
        );
        post(&server, "/v1/leases/settle", &format!(r#"{{"settlements":[{settlement}]}}"#));
        claim("capture", &nonce(2));
        claim("line", &nonce(3));
        server.signal(Signal::SIGTERM);
        assert_eq!(server.ends(PATIENCE).0, Some(0));
        let spans = collector.wait(|spans| spans.iter().any(|span| span.name == "claim line"));
        assert_eq!(spans.iter().map(|span| &span.trace).collect::<BTreeSet<_>>().len(), 1, "{spans:#?}");
        let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{spans:#?}"));
        for follow_up in ["claim capture", "claim line"] {
            assert_eq!(named(follow_up).parent, named("settle authorise").id, "{follow_up}, {is_marked}");
        }
    }
}

#[test]
fn a_command_that_enqueues_begins_a_trace() {
    let (desk, collector) = (Desk::new(), Collector::start());
    let mut command = desk.at_home(&["enqueue", "--kind", "greet", "--key", "a", "--payload", "{}"]);
    command.env("TIDEGATE_OTLP_ENDPOINT", format!("{}/v1/traces", collector.url()));
    desk.write("headers", "x-api-key=of-the-collector\n");
    command.env("TIDEGATE_OTLP_HEADERS_FILE", desk.path("headers"));
    assert!(command.output().unwrap().status.success());
    let spans = collector.wait(|spans| !spans.is_empty());
    assert_eq!(spans.len(), 1, "{spans:#?}");
    assert_eq!((spans[0].name.as_str(), spans[0].kind), ("enqueue greet", SpanKind::Producer));
    // Nobody is there: it is stored all the same.
    let mut command = desk.at_home(&["enqueue", "--kind", "greet", "--key", "b", "--payload", "{}"]);
    command.env("TIDEGATE_OTLP_ENDPOINT", "nonsense");
    let output = command.output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no traces") && said.contains("otlp.endpoint"), "{said}");
}

/// Connects are refused there, and nobody else gets the port.
fn nobody() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[test]
fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    for is_there in [false, true] {
        let desk = Desk::new();
        // One that takes connections into its backlog and never answers, or none at all.
        let (listener, url) = nobody();
        let silent = is_there.then_some(listener);
        let flags = ["--otlp-endpoint", &url, "--set", "otlp.queue=1", "--set", "otlp.timeout=2s"];
        let server = Server::start(&desk, &flags);
        let gateway = Role::gateway(&desk, "{}");
        let service = Role::service(&desk, &gateway, &url, 5000, &[]);
        let id = deposit(&server, "dep-1", "");
        let until = Instant::now() + PATIENCE;
        loop {
            let flow =
                ask(&server, &format!("GET /v1/flows/{id} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
            if flow.matches(r#""state":"completed""#).count() == 4 {
                break;
            }
            assert!(Instant::now() < until, "{flow}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let scrape = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        for number in 0.. {
            deposit(&server, &format!("more-{number}"), "");
            let metrics = ask(&server, scrape);
            assert!(metrics.contains("tidegate_trace_spans_total{fate=\"sent\"} 0"), "{metrics}");
            if !metrics.contains("tidegate_trace_spans_total{fate=\"dropped\"} 0") {
                break;
            }
            assert!(Instant::now() < until, "{metrics}");
        }
        let told = Instant::now();
        service.signal(Signal::SIGTERM);
        server.signal(Signal::SIGTERM);
        assert_eq!(service.ends(), Some(0));
        let (code, said) = server.ends(PATIENCE);
        assert_eq!(code, Some(0), "{said}");
        // Of a collector that is silent nobody knows before its time is up, and the process does not wait for that.
        assert!(is_there || said.contains("does not take spans"), "{said}");
        assert!(told.elapsed() < Duration::from_secs(30), "{:?} is no end in time", told.elapsed());
        drop(silent);
    }
}
