//! `GET /v1/audit`, `POST /v1/audit`: what operators did, and notes of acts that changed nothing.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tidegate::MessageId;
use tidegate::store::{self, AuditEntry};
use tidegate_api::{AuditPage, Note, Noted, ProblemType, schema};

use crate::acting::{Batch, Whereabouts, whereabouts};
use crate::body::JsonBody;
use crate::enqueue_many::enough;
use crate::paging;
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Named, Problem};
use crate::serving::Serving;
use crate::url::UrlQuery;
use crate::whose::Whose;

/// So many where nothing else is asked for.
const USUAL: u32 = 100;

/// Which acts.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Only acts after this one: `next` of the page before.
    #[serde(default)]
    #[param(value_type = Option<u64>)]
    after: u64,
    /// On queues of every tenant that this token may read, and not only of the one that the request is about.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    all_tenants: bool,
    /// At most so many, and at most 1000; 100 where it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// List what operators did
///
/// The oldest first. Acts on queues that this token may not read are left out, so that a page may hold fewer than were asked
/// for; `next` says whether more follow. Acts on no queue in particular (tokens, redrives of many at once) are listed for
/// tokens that may read every queue of every tenant.
#[utoipa::path(
    get,
    path = "/v1/audit",
    tag = "operators",
    params(Asked, ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "On whose queues")),
    responses((status = 200, description = "A page of acts", body = AuditPage), Common),
)]
pub(crate) async fn audit(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlQuery(asked): UrlQuery<Asked>,
) -> Result<Json<AuditPage>, Problem> {
    let limit = paging::limit(asked.limit, USUAL, serving.limits.page)?;
    let whose = Whose { all_tenants: asked.all_tenants };
    whose.demand(&caller, None)?;
    let whole = caller.principal.may_all(Action::Read);
    let found = serving.tide.store().audit(asked.after, limit).await?;
    let next = found.last().map(|last| last.seq).filter(|_| paging::is_full(found.len(), limit));
    let places = places(&serving, &found).await?;
    let seen = |entry: &AuditEntry| {
        let place = entry.tenant.as_ref().zip(entry.queue.as_ref());
        let place = place.or_else(|| places.get(&entry.message?).map(|(tenant, queue)| (tenant, queue)));
        match place {
            Some((tenant, queue)) => whose.includes(&caller, tenant, queue),
            None => whole,
        }
    };
    let entries = found.into_iter().filter(seen).map(Into::into).collect();
    Ok(Json(AuditPage { entries, next }))
}

/// Where the messages are of acts that do not say on which queue they were.
async fn places(serving: &Serving, entries: &[AuditEntry]) -> Result<HashMap<MessageId, Whereabouts>, Problem> {
    let mut ids: Vec<MessageId> =
        entries.iter().filter(|entry| entry.queue.is_none()).filter_map(|entry| entry.message).collect();
    ids.sort_unstable();
    ids.dedup();
    let found = whereabouts(serving, &ids).await?;
    Ok(ids.into_iter().zip(found).filter_map(|(id, found)| Some((id, found?))).collect())
}

/// What the store writes itself when it is done: nobody says of himself that he did it.
const OWN: [&str; 10] =
    ["redrive", "operation", "edit", "discard", "cancel", "pause", "resume", "limit", "resolve", "token"];

/// Note an act
///
/// One that changed nothing and is to be known all the same, such as that contents were copied elsewhere. One row for each
/// message it names, or one in all. The actor is the token.
#[utoipa::path(
    post,
    path = "/v1/audit",
    tag = "operators",
    request_body = Note,
    responses((status = 200, description = "It is noted", body = Noted), Common, Named, Bodied),
)]
pub(crate) async fn note(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(note): JsonBody<Note>,
) -> Result<Json<Noted>, Problem> {
    is_word(&note.what)?;
    enough(note.messages.len(), serving.limits.batch)?;
    let act = caller.act(note.reason, note.actor.as_deref());
    if note.messages.is_empty() {
        caller.may_all(Action::Operate)?;
    }
    let noted = note.messages.len().max(1);
    let batch = Batch::of(&serving, &caller, note.messages.clone()).await?;
    // One note is one act: all of it, or nothing.
    if let Some(problem) = batch.first_refused() {
        return Err(problem);
    }
    let (what, messages, detail) = (note.what, note.messages, note.detail);
    serving.tide.store().note(store::Note { what, messages, detail, act }).await?;
    Ok(Json(Noted { noted }))
}

/// A word that stands in every list as it is, and is no act of the store's own.
fn is_word(what: &str) -> Result<(), Problem> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !(1..=100).contains(&what.len()) || !what.chars().all(is_plain) {
        let short: String = what.chars().take(40).collect();
        return Err(Problem::new(ProblemType::Invalid, format!("{short:?} is no word for an act"))
            .fix("1 to 100 of A-Z a-z 0-9 . _ -, such as export"));
    }
    if OWN.contains(&what) {
        return Err(Problem::new(ProblemType::Invalid, format!("{what} is an act of the store's own"))
            .fix("do it, and it is written down; name a note otherwise"));
    }
    Ok(())
}
