//! A router in this process, a transport that hands requests to it, and one that loses what it is told to lose.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tidegate::message::{NewMessage, Payload};
use tidegate::{Clock, IdempotencyKey, Kind, QueueName, Tidegate, Timestamp};
use tidegate_remote::{NoAnswer, Options, RemoteStore, ServerUrl, Transport};
use tidegate_server::{Demand, Guard, Serving, router};
use tower::ServiceExt;

/// Hands requests to a router.
#[derive(Clone)]
pub(crate) struct InProcess(pub(crate) Router);

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}

#[async_trait]
impl Transport for InProcess {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, NoAnswer> {
        let answer = self.0.clone().oneshot(request.map(Body::from)).await.unwrap();
        let (head, body) = answer.into_parts();
        Ok(Response::from_parts(head, body.collect().await.unwrap().to_bytes()))
    }
}

/// What happens to a request.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    /// It never leaves.
    NotSent,
    /// It arrives, and its answer does not.
    ReplyLost,
    /// Neither it nor its answer arrives, and nobody can know that.
    Swallowed,
    /// Nothing comes back, for ever.
    Silent,
    /// Something else answers.
    Answered(u16, &'static [(&'static str, &'static str)], &'static str),
}

/// Lets requests through, but for those whose fate was told before.
#[derive(Debug, Clone)]
pub(crate) struct Fateful {
    inner: InProcess,
    fates: Arc<Mutex<VecDeque<Fate>>>,
    /// Of every request that was tried.
    pub(crate) sent: Arc<Mutex<Vec<String>>>,
}

impl Fateful {
    pub(crate) fn will(&self, fates: impl IntoIterator<Item = Fate>) {
        self.fates.lock().unwrap().extend(fates);
    }

    /// Nothing more happens to requests than to be carried out.
    pub(crate) fn clear(&self) {
        self.fates.lock().unwrap().clear();
    }

    /// How many requests were tried since this was asked last.
    pub(crate) fn tries(&self) -> usize {
        std::mem::take(&mut *self.sent.lock().unwrap()).len()
    }
}

#[async_trait]
impl Transport for Fateful {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, NoAnswer> {
        self.sent.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
        let fate = self.fates.lock().unwrap().pop_front();
        match fate {
            None => self.inner.send(request).await,
            Some(Fate::NotSent) => Err(NoAnswer { not_sent: true, why: "connection refused".to_owned() }),
            Some(Fate::ReplyLost) => {
                self.inner.send(request).await.unwrap();
                Err(NoAnswer { not_sent: false, why: "connection reset".to_owned() })
            }
            Some(Fate::Swallowed) => Err(NoAnswer { not_sent: false, why: "connection reset".to_owned() }),
            Some(Fate::Silent) => std::future::pending().await,
            Some(Fate::Answered(status, headers, body)) => {
                let mut answer = Response::builder().status(status);
                for (name, value) in headers {
                    answer = answer.header(*name, *value);
                }
                Ok(answer.body(Bytes::from(body)).unwrap())
            }
        }
    }
}

/// Measures with the runtime's own clock, so that pauses are measured where they are paused.
#[derive(Debug)]
pub(crate) struct RuntimeClock(tokio::time::Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000)
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A store of this process, and the same one over HTTP.
pub(crate) struct Stage {
    pub(crate) tide: Tidegate,
    pub(crate) remote: RemoteStore,
    pub(crate) wire: Fateful,
    _directory: tempfile::TempDir,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(Demand::Never, |_| {}).await
    }

    pub(crate) async fn with(demand: Demand, change: impl FnOnce(&mut Options)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tide = Tidegate::builder().housekeeping(false).open(directory.path().join("tidegate.db")).await.unwrap();
        let wire = Fateful { inner: InProcess(served(&tide, demand)), fates: Arc::default(), sent: Arc::default() };
        let mut options = Options::default();
        options.reveal = true;
        options.clock = Arc::new(RuntimeClock(tokio::time::Instant::now()));
        change(&mut options);
        let remote = RemoteStore::over(Arc::new(wire.clone()), &url(), options).unwrap();
        Self { tide, remote, wire, _directory: directory }
    }
}

pub(crate) fn url() -> ServerUrl {
    "http://127.0.0.1:7401".parse().unwrap()
}

/// The server's own router over a store.
pub(crate) fn served(tide: &Tidegate, demand: Demand) -> Router {
    let mut serving = Serving::new(tide.clone());
    serving.guard = Guard::new(Arc::clone(tide.store()), demand);
    router(serving)
}

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::new(name).unwrap()
}

pub(crate) fn message(key: &str) -> NewMessage {
    let payload = Payload::from_json(format!("{{ \"of\" : \"{key}\" }}")).unwrap();
    NewMessage::new(queue("work"), Kind::new("work").unwrap(), IdempotencyKey::new(key).unwrap(), payload)
}
