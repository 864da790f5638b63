//! `GET /livez`, `/readyz`, `/startupz`: what a supervisor asks. Plain text, no token: they tell nothing but how it is.
//!
//! `/livez` asks nobody: a process whose store is away must not be killed for it. `/readyz` says whether requests should be sent
//! here: the store answers, its tables are those of this program, and the process is not about to end. With `?verbose` each
//! check has a line.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CACHE_CONTROL;
use tidegate::{Address, MessageId, Tidegate};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::serving::Serving;

/// How long a check waits for the store.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long an answer of the store is passed on: probes, however many, are no load.
const STORE_IS_NEWS: Duration = Duration::from_secs(1);
/// Tables change seldom, and looking opens the store anew.
const TABLES_ARE_NEWS: Duration = Duration::from_secs(30);

/// How a process is, for those who ask. Set by whoever serves.
#[derive(Default)]
pub struct Health {
    started: AtomicBool,
    /// Where the store is, if its tables are to be looked at.
    address: Option<Address>,
    store: Mutex<Option<News>>,
    tables: Mutex<Option<News>>,
}

#[derive(Clone)]
struct News {
    at: Instant,
    said: Result<String, String>,
}

impl Health {
    /// Not started yet. With an address the tables of the store are looked at while it is used: another program may change
    /// them.
    #[must_use]
    pub fn new(address: Option<Address>) -> Self {
        Self { address, ..Self::default() }
    }

    /// The listeners stand.
    pub fn started(&self) {
        self.started.store(true, Ordering::Release);
    }

    async fn checks(&self, tide: &Tidegate, is_stopping: bool) -> [(&'static str, Result<String, String>); 4] {
        let started = self.started.load(Ordering::Acquire);
        let (store, tables) = tokio::join!(self.store(tide), self.tables());
        [
            ("started", if started { Ok("yes".to_owned()) } else { Err("not yet".to_owned()) }),
            ("draining", if is_stopping { Err("about to end".to_owned()) } else { Ok("no".to_owned()) }),
            ("store", store),
            ("migrations", tables),
        ]
    }

    async fn store(&self, tide: &Tidegate) -> Result<String, String> {
        let mut news = self.store.lock().await;
        if let Some(news) = news.as_ref().filter(|news| news.at.elapsed() < STORE_IS_NEWS) {
            return news.said.clone();
        }
        // No message has this id; finding that out is a read like any other.
        let asked = tide.store().progress(vec![MessageId::from_i64(0)]);
        let said = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(_)) => Ok("answers".to_owned()),
            Ok(Err(error)) => Err(error.kind().as_str().to_owned()),
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        };
        *news = Some(News { at: Instant::now(), said: said.clone() });
        said
    }

    async fn tables(&self) -> Result<String, String> {
        let Some(address) = &self.address else { return Ok("as when it was opened".to_owned()) };
        let mut news = self.tables.lock().await;
        if let Some(news) = news.as_ref().filter(|news| news.at.elapsed() < TABLES_ARE_NEWS) {
            return news.said.clone();
        }
        let said = match tokio::time::timeout(PATIENCE, tidegate::engine::steps(address)).await {
            Ok(Ok(steps)) => match steps.iter().filter(|step| step.applied_at.is_none()).count() {
                0 => Ok(format!("all {} taken", steps.len())),
                missing => Err(format!("{missing} of {} not taken; hint: tidegate migrate up", steps.len())),
            },
            Ok(Err(error)) => Err(error.kind().as_str().to_owned()),
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        };
        *news = Some(News { at: Instant::now(), said: said.clone() });
        said
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("started", &self.started).finish_non_exhaustive()
    }
}

pub(crate) fn routes() -> Router<Arc<Serving>> {
    Router::new().route("/livez", get(live)).route("/readyz", get(ready)).route("/startupz", get(started))
}

async fn live() -> Response {
    told(true, "ok\n".to_owned())
}

async fn started(State(serving): State<Arc<Serving>>) -> Response {
    let started = serving.health.started.load(Ordering::Acquire);
    told(started, if started { "ok\n" } else { "not started\n" }.to_owned())
}

async fn ready(State(serving): State<Arc<Serving>>, RawQuery(query): RawQuery) -> Response {
    let checks = serving.health.checks(&serving.tide, serving.stopping.is_stopping()).await;
    let is_ready = checks.iter().all(|(_, said)| said.is_ok());
    let is_verbose =
        query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part == "verbose=true"));
    let mut text = String::new();
    for (name, said) in &checks {
        match said {
            Ok(said) if is_verbose => text.push_str(&format!("[+] {name}: {said}\n")),
            Ok(_) => {}
            Err(why) => text.push_str(&format!("[-] {name}: {why}\n")),
        }
    }
    text.push_str(if is_ready { "ok\n" } else { "not ready\n" });
    told(is_ready, text)
}

fn told(is_well: bool, text: String) -> Response {
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(CACHE_CONTROL, "no-store")], text).into_response()
}
