//! `GET /v1/tokens`, `POST /v1/tokens`, `POST /v1/tokens/{name}/rotate`, `DELETE /v1/tokens/{name}`: who may do what.
//!
//! Whoever may administer a part of the store makes tokens for that part, and for nothing beyond it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use tidegate::store::ChangeToken;
use tidegate::token::{Glob, Scope, Secret, TokenChange, TokenRecord};
use tidegate::{StoreError, StoreErrorKind, TokenName};
use tidegate_api::{MadeToken, NewToken, RotateToken, Tokens, schema};

use crate::body::JsonBody;
use crate::principal::{Action, Caller};
use crate::problem::{Acting, Bodied, Common, Named, Problem};
use crate::serving::Serving;
use crate::url::{UrlPath, UrlQuery};

/// How long the old token of a rotation goes on unless the request says otherwise.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);

/// List tokens
///
/// What they allow and whether they live, never the token itself. Only those are listed that the caller could have made.
#[utoipa::path(
    get,
    path = "/v1/tokens",
    tag = "tokens",
    responses((status = 200, description = "Tokens, by name and age", body = Tokens), Common),
)]
pub(crate) async fn list_tokens(State(serving): State<Arc<Serving>>, caller: Caller) -> Result<Json<Tokens>, Problem> {
    administers_something(&caller)?;
    let records = serving.tide.store().tokens().await?.into_iter();
    let tokens = records.filter(|record| could_have_made(&caller, record)).map(Into::into).collect();
    Ok(Json(Tokens { tokens }))
}

/// Make a token
///
/// It is told in the answer and never again. Its scopes and tenants must be within what the caller administers.
#[utoipa::path(
    post,
    path = "/v1/tokens",
    tag = "tokens",
    request_body = NewToken,
    responses(
        (status = 201, description = "It is made", body = MadeToken, headers(("Cache-Control" = String, description = "`no-store`"))),
        Common, Bodied, Acting,
    ),
)]
pub(crate) async fn create_token(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(new): JsonBody<NewToken>,
) -> Result<Response, Problem> {
    administers(&caller, &new.tenant, &new.scopes)?;
    let (secret, hash) = secret_or(&serving, new.sha256);
    let NewToken { name, scopes, tenant, expires_at, reason, actor, .. } = new;
    // A name of somebody else's part of the store is taken, and no more than that is said of it.
    let change = TokenChange::Add { hash, scopes, tenant, expires_at };
    let act = caller.act(reason, actor.as_deref());
    made(&serving, secret, ChangeToken { name, change, act }).await
}

/// Make a second token of the same name
///
/// With the same scopes. The one before goes on for a while, so that clients can be moved from one to the other.
#[utoipa::path(
    post,
    path = "/v1/tokens/{name}/rotate",
    tag = "tokens",
    params(("name" = schema::Name, Path, description = "Which")),
    request_body = RotateToken,
    responses(
        (status = 201, description = "It is made", body = MadeToken, headers(("Cache-Control" = String, description = "`no-store`"))),
        Common, Bodied, Named, Acting,
    ),
)]
pub(crate) async fn rotate_token(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(name): UrlPath<TokenName>,
    JsonBody(asked): JsonBody<RotateToken>,
) -> Result<Response, Problem> {
    administers_name(&serving, &caller, &name).await?;
    let (secret, hash) = secret_or(&serving, asked.sha256);
    let overlap = asked.overlap_ms.map_or(OVERLAP, Duration::from_millis);
    let change = TokenChange::Rotate { hash, overlap, expires_at: asked.expires_at };
    let act = caller.act(asked.reason, asked.actor.as_deref());
    made(&serving, secret, ChangeToken { name, change, act }).await
}

/// Why a token is revoked.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Why {
    /// Why.
    #[serde(default)]
    #[param(required = false)]
    reason: String,
    /// Who asks; stands beside the token's name in the audit.
    actor: Option<String>,
}

/// Revoke the tokens of a name
///
/// All of them end now; every server notices within seconds. Repeating it is harmless.
#[utoipa::path(
    delete,
    path = "/v1/tokens/{name}",
    tag = "tokens",
    params(("name" = schema::Name, Path, description = "Which"), Why),
    responses((status = 200, description = "They have ended", body = Tokens), Common, Named),
)]
pub(crate) async fn revoke_token(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(name): UrlPath<TokenName>,
    UrlQuery(why): UrlQuery<Why>,
) -> Result<Json<Tokens>, Problem> {
    administers_name(&serving, &caller, &name).await?;
    let act = caller.act(why.reason, why.actor.as_deref());
    let kept = serving.tide.store().change_token(ChangeToken { name, change: TokenChange::Revoke, act }).await?;
    // This server at least notices at once.
    serving.guard.forget();
    Ok(Json(Tokens { tokens: kept.into_iter().map(Into::into).collect() }))
}

/// A fresh secret, unless the client made one itself.
fn secret_or(
    serving: &Serving,
    sha256: Option<tidegate::token::TokenHash>,
) -> (Option<Secret>, tidegate::token::TokenHash) {
    match sha256 {
        Some(hash) => (None, hash),
        None => {
            let secret = Secret::new(&*serving.random);
            let hash = secret.hash();
            (Some(secret), hash)
        }
    }
}

async fn made(serving: &Serving, secret: Option<Secret>, request: ChangeToken) -> Result<Response, Problem> {
    let kept = serving.tide.store().change_token(request).await?;
    serving.guard.forget();
    let token = secret.map(|secret| secret.reveal().to_owned());
    let body = Json(MadeToken { token, tokens: kept.into_iter().map(Into::into).collect() });
    // Nobody on the way is to keep it.
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], body).into_response())
}

fn administers_something(caller: &Caller) -> Result<(), Problem> {
    caller.may_somewhere(Action::Admin)
}

/// Whether the caller administers everything that a token would allow.
fn administers(caller: &Caller, tenant: &Glob, scopes: &[Scope]) -> Result<(), Problem> {
    administers_something(caller)?;
    match scopes.iter().find(|scope| !caller.principal.may_wherever(Action::Admin, tenant, &scope.queues)) {
        None => Ok(()),
        Some(scope) => {
            let what =
                format_args!("{} of tenants {tenant:?}, and so makes no token for {scope}", scope.queues).to_string();
            Err(caller.forbidden(Action::Admin, format_args!("{what}")))
        }
    }
}

fn could_have_made(caller: &Caller, record: &TokenRecord) -> bool {
    record.scopes.iter().all(|scope| caller.principal.may_wherever(Action::Admin, &record.tenant, &scope.queues))
}

/// A name that the caller does not administer is answered as one that is not there.
async fn administers_name(serving: &Serving, caller: &Caller, name: &TokenName) -> Result<(), Problem> {
    administers_something(caller)?;
    let kept = serving.tide.store().tokens().await?;
    let mut of_name = kept.iter().filter(|record| record.name == *name).peekable();
    if of_name.peek().is_some() && of_name.all(|record| could_have_made(caller, record)) {
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::NotFound, format!("no live token named {name}")).into())
}
