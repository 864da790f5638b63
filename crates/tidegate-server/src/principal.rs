//! Who asks, and what they may do.
//!
//! [`authenticate`] finds out who sends a request and puts that into it; an endpoint takes the extractor [`Caller`] and asks
//! it for each item, each time. An endpoint that takes no caller is open to everybody: the test of scopes lists those by
//! name. A request that nobody looked at is a mistake of this program and is answered as one, so that a router that was put
//! together wrongly is closed, not open.

use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::request::Parts;
use tidegate::store::Act;
pub use tidegate::token::Action;
use tidegate::token::{Glob, TokenRecord};
use tidegate::{QueueName, Tenant};
use tidegate_api::ProblemType;

use crate::problem::Problem;
use crate::serving::Serving;

/// The header that says whose messages a request is about.
pub(crate) const TENANT: &str = "tidegate-tenant";

/// Who asks.
#[derive(Debug, Clone)]
pub struct Principal {
    name: Arc<str>,
    grant: Grant,
}

#[derive(Debug, Clone)]
enum Grant {
    /// Came without a token where none is needed.
    Everything,
    Token(Arc<TokenRecord>),
}

impl Principal {
    /// Whoever reaches a server without tokens: may do everything.
    #[must_use]
    pub fn anyone() -> Self {
        Self { name: "http".into(), grant: Grant::Everything }
    }

    /// Whoever has this token.
    #[must_use]
    pub fn of(record: Arc<TokenRecord>) -> Self {
        Self { name: format!("token:{}", record.name).into(), grant: Grant::Token(record) }
    }

    /// Whether it may do this with messages of this queue.
    #[must_use]
    pub fn may(&self, action: Action, tenant: &Tenant, queue: &QueueName) -> bool {
        match &self.grant {
            Grant::Everything => true,
            Grant::Token(record) => record.allows(action, tenant, queue),
        }
    }

    /// Whether it may do this on some queue of the tenant.
    #[must_use]
    pub fn may_somewhere(&self, action: Action, tenant: &Tenant) -> bool {
        match &self.grant {
            Grant::Everything => true,
            Grant::Token(record) => record.allows_some(action, tenant),
        }
    }

    /// Whether it may do this on some queue of some tenant; of this name, if one is named.
    #[must_use]
    pub fn may_anywhere(&self, action: Action, queue: Option<&QueueName>) -> bool {
        match &self.grant {
            Grant::Everything => true,
            Grant::Token(record) => record
                .scopes
                .iter()
                .any(|scope| scope.action == action && queue.is_none_or(|queue| scope.queues.matches(queue.as_str()))),
        }
    }

    /// Whether it may do this on every queue of every tenant: what concerns the whole store, and whoever may do it need not
    /// be asked item by item.
    #[must_use]
    pub fn may_all(&self, action: Action) -> bool {
        self.may_wherever(action, &Glob::all(), &Glob::all())
    }

    /// Whether it may do this on all that the patterns name.
    #[must_use]
    pub fn may_wherever(&self, action: Action, tenants: &Glob, queues: &Glob) -> bool {
        match &self.grant {
            Grant::Everything => true,
            Grant::Token(record) => {
                let covers = |scope: &tidegate::token::Scope| scope.action == action && scope.queues.covers(queues);
                record.tenant.covers(tenants) && record.scopes.iter().any(covers)
            }
        }
    }

    /// Whether it came without a token, as one who could as well open the file.
    #[must_use]
    pub fn is_anyone(&self) -> bool {
        match self.grant {
            Grant::Everything => true,
            Grant::Token(_) => false,
        }
    }

    /// Whoever sends a request under a token; none without one, or with one that is not valid.
    pub(crate) fn with_token(request: &Request) -> Option<&Self> {
        let principal = request.extensions().get::<Asked>()?.0.as_ref().ok()?;
        (!principal.is_anyone()).then_some(principal)
    }

    /// Its name, to be kept.
    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Its name in the log of what operators did.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What was found out about who sends a request.
#[derive(Debug, Clone)]
struct Asked(Result<Principal, Problem>);

/// Finds out who sends a request. Whether anybody has to be somebody is the endpoint's to say.
pub(crate) async fn authenticate(State(serving): State<Arc<Serving>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let asked = Asked(serving.guard.principal(&parts).await);
    parts.extensions.insert(asked);
    next.run(Request::from_parts(parts, body)).await
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
        let fix = format!(
            "use a token with the scope {action}:{queue}, or make one: tidegate token create NAME --scope {action}:{queue}"
        );
        Err(self.forbidden(action, format_args!("queue {queue}{}", of(tenant))).fix(fix))
    }

    /// Demands a right that concerns the whole store.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn may_all(&self, action: Action) -> Result<(), Problem> {
        if self.principal.may_all(action) {
            return Ok(());
        }
        Err(self.forbidden(action, format_args!("every queue of every tenant")))
    }

    /// Demands a right on some queue of the tenant that the request is about: each item is asked for besides.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn may_somewhere(&self, action: Action) -> Result<(), Problem> {
        if self.principal.may_somewhere(action, &self.tenant) {
            return Ok(());
        }
        Err(self.forbidden(action, format_args!("any queue{}", of(&self.tenant))))
    }

    /// Demands a right on some queue of some tenant: each item is asked for besides.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn may_anywhere(&self, action: Action, queue: Option<&QueueName>) -> Result<(), Problem> {
        if self.principal.may_anywhere(action, queue) {
            return Ok(());
        }
        Err(match queue {
            Some(queue) => self.forbidden(action, format_args!("queue {queue} of any tenant")),
            None => self.forbidden(action, format_args!("any queue of any tenant")),
        })
    }

    pub(crate) fn forbidden(&self, action: Action, what: std::fmt::Arguments<'_>) -> Problem {
        Problem::new(ProblemType::Forbidden, format!("{} may not {action} on {what}", self.principal.name()))
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

fn of(tenant: &Tenant) -> String {
    if tenant.as_str().is_empty() { String::new() } else { format!(" of tenant {}", tenant.as_str()) }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(Asked(asked)) = parts.extensions.get::<Asked>().cloned() else {
            // Its path may hold a key, which no log may.
            let route = parts.extensions.get::<MatchedPath>().map_or("no route", MatchedPath::as_str);
            tracing::error!(http.route = route, "a request came through without a principal");
            return Err(Problem::new(ProblemType::Internal, "nobody asked who asks"));
        };
        let principal = asked?;
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
