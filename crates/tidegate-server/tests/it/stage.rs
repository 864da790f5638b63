//! A server on a port of its own, and a client that holds it to its document: an answer whose status, media type or shape
//! the document does not promise fails the test that got it, whatever the test was about.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tidegate::lifecycle::Outcome;
use tidegate::store::{ClaimRequest, Filter, QueueSlots, Settle, Summary};
use tidegate::{Kind, Nonce, QueueName, SystemRandom, Tenant, Tidegate, WorkerId};
use tidegate_server::{Serve, Serving, Stop, Stopping, router, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct Stage {
    pub(crate) tide: Tidegate,
    pub(crate) stopping: Stopping,
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    _serving: Server,
    /// Drives operations on.
    driving: Server,
    /// Removed with the stage; none where the store has no file.
    _directory: Option<tempfile::TempDir>,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(|serving| serving).await
    }

    /// A server that is set up otherwise.
    pub(crate) async fn with(set: impl FnOnce(Serving) -> Serving) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tide = Tidegate::open(directory.path().join("tidegate.db")).await.unwrap();
        Self { _directory: Some(directory), ..Self::over(tide, set).await }
    }

    /// A server over a store that is open already.
    pub(crate) async fn over(tide: Tidegate, set: impl FnOnce(Serving) -> Serving) -> Self {
        let serving = set(Serving::new(tide.clone()));
        let stopping = serving.stopping.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let driving = Server(tokio::spawn(serving.drive()));
        let app = router(serving);
        let (stop, told) = tokio::sync::watch::channel(Stop::No);
        let serving = tokio::spawn(async move {
            let _stop = stop;
            serve(vec![listener], app, Serve::default(), told).await;
        });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { tide, stopping, address, client, _serving: Server(serving), driving, _directory: None }
    }

    /// Stops what runs beside the requests, and waits for its end, as a server that is told to stop does.
    pub(crate) async fn drained(&mut self) {
        self.stopping.stop();
        tokio::time::timeout(Duration::from_secs(30), &mut self.driving.0).await.unwrap().unwrap();
    }

    /// Every message there is.
    pub(crate) async fn everything(&self) -> Vec<Summary> {
        self.tide.store().list(Filter { limit: 5000, discarded: true, ..Filter::default() }).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], "").await
    }

    /// A body of JSON.
    pub(crate) async fn post(&self, path: &str, body: &str) -> Reply {
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_owned()).await
    }

    /// A body of JSON that changes what is there.
    pub(crate) async fn patch(&self, path: &str, body: &str) -> Reply {
        self.send(Method::PATCH, path, &[("content-type", "application/json")], body.to_owned()).await
    }

    /// The same with a token; without a body where that is empty.
    pub(crate) async fn ask(&self, token: &str, method: Method, path: &str, body: &str) -> Reply {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer), ("content-type", "application/json")];
        let headers = if body.is_empty() { &headers[..1] } else { &headers[..] };
        self.send(method, path, headers, body.to_owned()).await
    }

    /// A body of JSON with a key.
    pub(crate) async fn post_under(&self, key: &str, path: &str, body: &str) -> Reply {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        self.send(Method::POST, path, &headers, body.to_owned()).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut request = Request::builder().method(method.clone()).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let answer = self.client.request(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let reply = Reply { status: parts.status, headers: parts.headers, body };
        promised(&method, path, &reply);
        reply
    }

    /// What is no part of the document, and so not held to it: for supervisors and scrapes.
    pub(crate) async fn send_plain(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.client.request(request.body(Full::default()).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Bytes as they are, then the end of what this side says; and all that comes back.
    pub(crate) async fn half(&self, bytes: &[u8]) -> String {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        connection.write_all(bytes).await.unwrap();
        connection.shutdown().await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(30), connection.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Bytes as they are; the client stays for as long as what is returned lives.
    pub(crate) async fn begin(&self, bytes: &[u8]) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        connection.write_all(bytes).await.unwrap();
        connection
    }

    /// Bytes as they are, and all that comes back until the server closes the connection or half a minute is over.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        connection.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(30), connection.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Ends with its stage.
struct Server(tokio::task::JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Claims the next message of a queue and settles it as completed, as a worker would.
pub(crate) async fn answer_next(tide: &Tidegate, queue: &str, kind: &str, result: &str) {
    let random = SystemRandom;
    let claim = ClaimRequest {
        worker: WorkerId::new("test").unwrap(),
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: QueueName::new(queue).unwrap(), slots: 1 }],
        kinds: vec![(Kind::new(kind).unwrap(), 9)],
        nonce: Nonce::new(&random),
        lease: Duration::from_secs(30),
    };
    let lease = tide.store().claim(claim).await.unwrap().leases.pop().expect("there is a message to claim");
    let settle = Settle {
        id: lease.message.id,
        token: lease.token,
        outcome: Outcome::Completed { result: result.into(), orphans: false },
        journal: Vec::new(),
        then: Vec::new(),
        compensate: Vec::new(),
        unit: 0.5,
    };
    tide.store().settle(vec![settle]).await.unwrap().pop().unwrap().unwrap();
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Its status and body, if it is one; the test ends here otherwise.
    pub(crate) fn of(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self.json()
    }

    /// The problem it holds; the test ends here unless it is one of this type.
    pub(crate) fn problem(&self, slug: &str) -> Value {
        let problem = self.json();
        assert_eq!(problem["type"], format!("/problems/{slug}"), "{problem}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(problem["status"], self.status.as_u16(), "{problem}");
        assert!(!problem["fix"].as_str().unwrap().is_empty(), "{problem}");
        problem
    }
}

// --- the document ----------------------------------------------------------------------------------------------------

fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| serde_json::to_value(tidegate_server::openapi()).unwrap())
}

/// Fails where an answer is not one of those the document promises for the address and the method.
fn promised(method: &Method, path: &str, reply: &Reply) {
    let path = path.split('?').next().unwrap();
    let Some(operation) = operation(method, path) else {
        let expected = [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED];
        assert!(expected.contains(&reply.status), "{method} {path} is in no document and answers {}", reply.status);
        return;
    };
    let status = reply.status.as_u16().to_string();
    let response = resolve(&operation["responses"][&status]);
    assert!(
        !response.is_null(),
        "{method} {path} answers {status}, which its document does not promise: {}",
        reply.text()
    );
    let sent = reply.header(header::CONTENT_TYPE.as_str()).unwrap_or_default();
    let media_type = sent.split(';').next().unwrap();
    let Some(content) = response["content"].get(media_type) else {
        panic!("{method} {path} answers {status} as {media_type:?}, the document promises {}", response["content"]);
    };
    if media_type.ends_with("json") {
        let mut wrong = Vec::new();
        check(&reply.json(), &content["schema"], "$", &mut wrong);
        assert!(wrong.is_empty(), "{method} {path} answers {status} in another shape: {wrong:?} in {}", reply.text());
    }
}

fn operation(method: &Method, path: &str) -> Option<&'static Value> {
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |template: &str| {
        let template: Vec<&str> = template.split('/').collect();
        let same = |(of, part): (&&str, &&str)| of == part || (of.starts_with('{') && !part.is_empty());
        template.len() == parts.len() && template.iter().zip(&parts).all(same)
    };
    let paths = document()["paths"].as_object().unwrap();
    let mut found: Vec<_> = paths.iter().filter(|(template, _)| fits(template)).collect();
    // The one with fewer holes is the one that is meant.
    found.sort_by_key(|(template, _)| template.matches('{').count());
    // HEAD is GET without its body, as HTTP has it; it is no operation of the document.
    found.first().and_then(|(_, item)| item.get(method.as_str().to_lowercase()))
}

fn resolve(value: &'static Value) -> &'static Value {
    match value.get("$ref") {
        Some(reference) => resolve(document().pointer(&reference.as_str().unwrap()[1..]).unwrap()),
        None => value,
    }
}

/// What of a value is not as its schema has it: as much of JSON Schema as the document uses.
fn check(value: &Value, schema: &'static Value, path: &str, wrong: &mut Vec<String>) {
    let schema = resolve(schema);
    for word in ["oneOf", "anyOf"] {
        if let Some(all) = schema.get(word).and_then(Value::as_array) {
            let fits = |each: &'static Value| {
                let mut wrong = Vec::new();
                check(value, each, path, &mut wrong);
                wrong.is_empty()
            };
            if !all.iter().any(fits) {
                wrong.push(format!("{path}: {value} is none of {word}"));
            }
        }
    }
    if let Some(all) = schema.get("allOf").and_then(Value::as_array) {
        for each in all {
            check(value, each, path, wrong);
        }
    }
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the document has the type {other:?}"),
    };
    let fits = match schema.get("type") {
        None => true,
        Some(Value::String(name)) => is(name),
        Some(names) => names.as_array().unwrap().iter().any(|name| is(name.as_str().unwrap())),
    };
    if !fits {
        wrong.push(format!("{path}: {value} is not {}", schema["type"]));
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        wrong.push(format!("{path}: {value} is not one of {allowed:?}"));
    }
    if let Some(object) = value.as_object() {
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if !object.contains_key(required.as_str().unwrap()) {
                wrong.push(format!("{path}: {required} is missing"));
            }
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, of) in properties.into_iter().flatten() {
            if let Some(member) = object.get(name) {
                check(member, of, &format!("{path}.{name}"), wrong);
            }
        }
        // A member that the document does not know is one that nobody can rely on.
        if let Some(known) = properties
            && schema.get("additionalProperties").is_none()
        {
            for name in object.keys().filter(|name| !known.contains_key(*name)) {
                wrong.push(format!("{path}: {name:?} is not in the document"));
            }
        }
    }
    if let Some(items) = value.as_array()
        && let Some(of) = schema.get("items")
    {
        for (index, item) in items.iter().enumerate() {
            check(item, of, &format!("{path}[{index}]"), wrong);
        }
    }
}
