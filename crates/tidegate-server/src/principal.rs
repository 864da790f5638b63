//! Who asks, and what they may do.
//!
//! [`authenticate`] puts a [`Principal`] into every request; an endpoint takes the extractor [`Caller`] and asks it for
//! each item, each time. A request without a principal is a mistake of this program and is answered as one, so that a
//! router that was put together wrongly is closed, not open.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::request::Parts;
use tidegate::store::Act;
use tidegate::{QueueName, Tenant};
use tidegate_api::ProblemType;

use crate::problem::Problem;
use crate::serving::Serving;

/// The header that says whose messages a request is about.
pub(crate) const TENANT: &str = "tidegate-tenant";

/// A sort of act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Enqueue, and read the answers to what was enqueued.
    Produce,
    /// Claim, extend, journal, settle, declare policies.
    Work,
    /// Read everything that says nothing about contents.
    Read,
    /// Read payloads, results and values of effects.
    Reveal,
    /// Dead letters, parked messages, queues, operations.
    Operate,
    /// Tokens, sweeps, configuration.
    Admin,
}

impl Action {
    /// The word for it in scopes and problems.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Produce => "produce",
            Self::Work => "work",
            Self::Read => "read",
            Self::Reveal => "reveal",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Principal {
    name: Arc<str>,
}

impl Principal {
    /// Whoever reaches a server without tokens: may do everything.
    #[must_use]
    pub fn anyone() -> Self {
        Self { name: "http".into() }
    }

    /// Whether it may do this with messages of this queue.
    #[must_use]
    pub fn may(&self, _action: Action, _tenant: &Tenant, _queue: &QueueName) -> bool {
        true
    }

    /// Whether it came without a token, as one who could as well open the file.
    #[must_use]
    pub fn is_anyone(&self) -> bool {
        true
    }

    /// Its name in the log of what operators did.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Puts the principal into the request.
pub(crate) async fn authenticate(State(_serving): State<Arc<Serving>>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Principal::anyone());
    next.run(request).await
}

/// Who asks, and whose messages the request is about.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who asks.
    pub principal: Principal,
    /// Whose messages: the header `Tidegate-Tenant`, or the tenant that needs no name.
    pub tenant: Tenant,
}

impl Caller {
    /// Demands a right.
    ///
    /// # Errors
    /// `forbidden`, with what was asked for.
    pub fn may(&self, action: Action, tenant: &Tenant, queue: &QueueName) -> Result<(), Problem> {
        if self.principal.may(action, tenant, queue) {
            return Ok(());
        }
        let of = if tenant.as_str().is_empty() { String::new() } else { format!(" of tenant {}", tenant.as_str()) };
        let (name, action) = (self.principal.name(), action.as_str());
        Err(Problem::new(ProblemType::Forbidden, format!("{name} may not {action} on queue {queue}{of}")))
    }

    /// Whether something of this queue is there for this caller: what is not is answered as if it were not there.
    #[must_use]
    pub fn sees(&self, action: Action, tenant: &Tenant, queue: &QueueName) -> bool {
        self.principal.may(action, tenant, queue)
    }

    /// An act of this caller. Without a token, who acts is who the request says; with one, it is the token, and whom the
    /// request names stands beside it.
    #[must_use]
    pub fn act(&self, reason: impl Into<String>, actor: Option<&str>) -> Act {
        let name = self.principal.name();
        let actor = match actor {
            None => name.to_owned(),
            Some(actor) if self.principal.is_anyone() => actor.to_owned(),
            Some(actor) => format!("{name} ({actor})"),
        };
        Act { actor, reason: reason.into() }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(principal) = parts.extensions.get::<Principal>().cloned() else {
            tracing::error!("a request for {} came through without a principal", parts.uri.path());
            return Err(Problem::new(ProblemType::Internal, "nobody asked who asks"));
        };
        let mut named = parts.headers.get_all(TENANT).iter();
        let tenant = match (named.next(), named.next()) {
            (None, _) => Tenant::default(),
            (Some(name), None) => {
                let not_ascii = |_| Problem::new(ProblemType::Malformed, "the header Tidegate-Tenant is not ASCII");
                Tenant::new(name.to_str().map_err(not_ascii)?)?
            }
            (Some(_), Some(_)) => {
                let what = "the header Tidegate-Tenant is there more than once";
                return Err(Problem::new(ProblemType::Malformed, what));
            }
        };
        Ok(Self { principal, tenant })
    }
}
