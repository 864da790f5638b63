//! `POST /v1/operations/preview`, `GET` and `POST /v1/operations`, `GET` and `PATCH /v1/operations/{name}`: redrives of many.
//!
//! An operation belongs to the messages it selects: whoever may operate all of them may begin it and act on it, whoever may
//! read all of them sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tidegate::id::Hex;
use tidegate::journal::JournalFacts;
use tidegate::lifecycle::{self, Redriving, State as MessageState};
use tidegate::store::{self, Filter, MessageView, Operate, OperationState};
use tidegate::{Clock as _, MessageId, QueueName, StoreError, StoreErrorKind, SystemClock, Tenant};
use tidegate_api::{
    ActOnOperation, NewOperation, OperationAct, Operations, Preview, PreviewOperation, ProblemType, QueueCount,
    RefusedMessage, Stepped, schema,
};

use crate::acting::{AT_ONCE, operable, whereabouts};
use crate::body::JsonBody;
use crate::drive::Places;
use crate::enqueue_many::enough;
use crate::principal::{Action, Caller};
use crate::problem::{Acting, Bodied, Common, Named, Problem};
use crate::serving::Serving;
use crate::url::{UrlPath, UrlQuery};
use crate::whose::Whose;
use crate::{groups, paging};

/// So many are listed where nothing else is asked for.
const USUAL: u32 = 20;
/// The most that are listed: an operation may name thousands of messages.
const MOST: u32 = 200;
/// The longest name that is taken, in characters.
const LONGEST_NAME: usize = 200;
/// A preview looks at so many, and counts so many.
const PREVIEWED: (usize, usize) = (10_000, 100_000);
/// A preview names so many of those that would be refused.
const REFUSED: usize = 100;
/// What stands in a path as it is.
const PLAIN: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

// --- preview ---------------------------------------------------------------------------------------------------------

/// Say what an operation would do
///
/// How many messages it selects, what they have in common, and which of them could not be redriven. Nothing is done, and the
/// store decides again when it is. At most 10,000 messages are looked at one by one.
#[utoipa::path(
    post,
    path = "/v1/operations/preview",
    tag = "operators",
    request_body = PreviewOperation,
    responses((status = 200, description = "What it would do", body = Preview), Common, Named, Bodied),
)]
pub(crate) async fn preview_operation(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(asked): JsonBody<PreviewOperation>,
) -> Result<Json<Preview>, Problem> {
    let selection = asked.selection.into_selection(&caller.tenant)?;
    may_select(&serving, &caller, &selection).await?;
    let ids = match &selection.ids[..] {
        [] => dead(&serving, filter(&selection)).await?,
        ids => ids.iter().copied().collect::<BTreeSet<_>>().into_iter().collect(),
    };
    let mut preview = Preview {
        selected: ids.len() as u64,
        looked_at: 0,
        would_redrive: 0,
        would_refuse: 0,
        refused: Vec::new(),
        queues: Vec::new(),
        groups: Vec::new(),
    };
    let mut queues: BTreeMap<(Tenant, QueueName), u64> = BTreeMap::new();
    let mut redriven: BTreeSet<MessageId> = BTreeSet::new();
    for chunk in ids.get(..ids.len().min(PREVIEWED.0)).unwrap_or_default().chunks(AT_ONCE) {
        for (id, view) in chunk.iter().zip(serving.tide.store().inspect(chunk.to_vec()).await?) {
            preview.looked_at += 1;
            if let Some(view) = &view {
                *queues.entry((view.message.tenant.clone(), view.message.queue.clone())).or_default() += 1;
            }
            match would_redrive(*id, view.as_ref(), asked.again) {
                Ok(()) => drop(redriven.insert(*id)),
                Err(error) => {
                    preview.would_refuse += 1;
                    if preview.refused.len() < REFUSED {
                        preview.refused.push(RefusedMessage { id: *id, problem: serving.wire(error.into()) });
                    }
                }
            }
        }
    }
    preview.would_redrive = redriven.len() as u64;
    preview.queues = queues.into_iter().map(|((tenant, queue), n)| QueueCount { tenant, queue, n }).collect();
    if selection.ids.is_empty() {
        let all = Filter { code: None, limit: 10_000, ..filter(&selection) };
        let mut found = groups::of(&serving, &caller, Action::Operate, all).await?;
        found.retain(|group| selection.group.is_none_or(|wanted| group.id == wanted));
        found.retain(|group| selection.code.is_none() || redriven.contains(&group.sample));
        preview.groups = found.into_iter().map(Into::into).collect();
    }
    Ok(Json(preview))
}

/// What the rule of the store says to a message now.
fn would_redrive(id: MessageId, view: Option<&MessageView>, again: bool) -> Result<(), StoreError> {
    let Some(view) = view else { return Err(StoreError::not_found(id)) };
    let facts = JournalFacts::of(&view.journal, SystemClock::new().now());
    let how = Redriving { again, compensated: view.compensated };
    lifecycle::redrive(view.state, view.counters, &facts, how).map(|_| ())
}

fn filter(selection: &store::Selection) -> Filter {
    let store::Selection { tenant, queue, kind, code, group, ids: _ } = selection.clone();
    Filter { tenant, queue, kind, code, group, states: vec![MessageState::Dead], ..Filter::default() }
}

/// The dead letters of a filter, in order.
async fn dead(serving: &Serving, filter: Filter) -> Result<Vec<MessageId>, Problem> {
    const PAGE: u32 = 1000;
    let mut ids: Vec<MessageId> = Vec::new();
    let mut next = Filter { limit: PAGE, ..filter };
    loop {
        let page = serving.tide.store().list(next.clone()).await?;
        ids.extend(page.iter().map(|summary| summary.id));
        if !paging::is_full(page.len(), PAGE) || ids.len() >= PREVIEWED.1 {
            return Ok(ids);
        }
        next.after = ids.last().copied();
    }
}

// --- begin -----------------------------------------------------------------------------------------------------------

/// Begin a redrive of many
///
/// Of dead letters that are selected by what they have in common, or of messages that are named. A canary of a few is
/// watched to its end first; a rate spares what was just repaired; too many bad ends stop it. The server drives it on, also
/// when whoever began it has left, and after a restart. Begun again under the same name with the same selection it is the
/// same operation.
#[utoipa::path(
    post,
    path = "/v1/operations",
    tag = "operators",
    request_body = NewOperation,
    responses(
        (status = 202, description = "It is begun, or was before", body = Stepped, headers(("Location" = String, description = "Where it is"))),
        Common, Named, Bodied, Acting,
    ),
)]
pub(crate) async fn begin_operation(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(asked): JsonBody<NewOperation>,
) -> Result<Response, Problem> {
    let NewOperation { name, selection, again, pace, drive, reason, actor } = asked;
    let name = match name {
        Some(name) => checked(name)?,
        None => made_name(&serving),
    };
    let selection = selection.into_selection(&caller.tenant)?;
    may_select(&serving, &caller, &selection).await?;
    let act = caller.act(reason, actor.as_deref());
    let new = store::NewOperation { name: name.clone(), selection, again, pace: pace.into(), act };
    let begun = serving.tide.store().operate(Operate::Begin(Box::new(new))).await?;
    if begun.operation.state == OperationState::Running {
        serving.driver.begun(&name, drive);
    }
    let location: (HeaderName, String) = (header::LOCATION, serving.address(address(&name)));
    Ok((StatusCode::ACCEPTED, [location], Json(wire(&serving, begun))).into_response())
}

fn address(name: &str) -> String {
    format!("/v1/operations/{}", utf8_percent_encode(name, &PLAIN))
}

/// A name that stands in a log and a list as it is.
pub(crate) fn checked(name: String) -> Result<String, Problem> {
    let length = name.chars().count();
    if (1..=LONGEST_NAME).contains(&length) && !name.chars().any(char::is_control) {
        return Ok(name);
    }
    let short: String = name.chars().take(40).collect();
    Err(Problem::new(ProblemType::Invalid, format!("{short:?} is no name of an operation"))
        .fix(format!("1 to {LONGEST_NAME} characters, none of them a control character")))
}

/// A name nobody else's operation has.
pub(crate) fn made_name(serving: &Serving) -> String {
    let mut bytes = [0; 4];
    serving.random.fill(&mut bytes);
    format!("redrive-{}-{}", SystemClock::new().now().as_millis(), Hex(&bytes))
}

fn wire(serving: &Serving, stepped: store::Stepped) -> Stepped {
    let store::Stepped { operation, refused, waits } = stepped;
    let one = |(id, error): (MessageId, StoreError)| RefusedMessage { id, problem: serving.wire(error.into()) };
    Stepped {
        operation: operation.into(),
        refused: refused.into_iter().map(one).collect(),
        waits: waits.map(Into::into),
    }
}

// --- list, get -------------------------------------------------------------------------------------------------------

/// How many operations.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Also operations on messages of other tenants that this token may read.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    all_tenants: bool,
    /// At most so many; 20 where it is left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
}

/// List operations
///
/// The newest first. Operations with messages that this token may not read are left out.
#[utoipa::path(
    get,
    path = "/v1/operations",
    tag = "operators",
    params(Asked, ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "On whose messages")),
    responses((status = 200, description = "Operations, the newest first", body = Operations), Common),
)]
pub(crate) async fn list_operations(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlQuery(asked): UrlQuery<Asked>,
) -> Result<Json<Operations>, Problem> {
    let limit = paging::limit(asked.limit, USUAL, MOST.min(serving.limits.page))?;
    let whose = Whose { all_tenants: asked.all_tenants };
    whose.demand(&caller, None)?;
    let mut operations = Vec::new();
    for operation in serving.tide.store().operations(None, limit).await? {
        let of = operation.selection.tenant.as_ref();
        let is_asked_for = of.is_none_or(|of| whose.is(&caller, of));
        if is_asked_for && may(&serving, &caller, Action::Read, &operation).await? {
            operations.push(operation.into());
        }
    }
    Ok(Json(Operations { operations }))
}

/// Read how far an operation has come
///
/// With what it waits for, and which messages could not be redriven, as far as this server has seen: of those the store keeps
/// the number.
#[utoipa::path(
    get,
    path = "/v1/operations/{name}",
    tag = "operators",
    params(("name" = String, Path, description = "Which operation, percent-encoded")),
    responses((status = 200, description = "The operation", body = Stepped), Common, Named),
)]
pub(crate) async fn get_operation(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<Stepped>, Problem> {
    let operation = visible(&serving, &caller, &name).await?;
    let (refused, waits) = serving.driver.told(&name);
    let waits = waits.filter(|_| operation.state == OperationState::Running);
    Ok(Json(wire(&serving, store::Stepped { operation, refused, waits })))
}

/// The operation of a name, if this caller may read or operate its messages.
async fn visible(serving: &Serving, caller: &Caller, name: &str) -> Result<store::Operation, Problem> {
    // What cannot be a name is the name of nothing.
    let found = match checked(name.to_owned()) {
        Ok(name) => serving.tide.store().operations(Some(name), 1).await?.pop(),
        Err(_) => None,
    };
    if let Some(operation) = found {
        for action in [Action::Read, Action::Operate] {
            if may(serving, caller, action, &operation).await? {
                return Ok(operation);
            }
        }
    }
    let short: String = name.chars().take(LONGEST_NAME).collect();
    Err(Problem::from(StoreError::new(StoreErrorKind::NotFound, format!("no operation {short:?}")))
        .fix("the operations there are: GET /v1/operations"))
}

// --- act -------------------------------------------------------------------------------------------------------------

/// Step, call off, or resume an operation
///
/// The server takes the steps itself; a client that wants to see each of them takes them, and the server leaves them to it
/// for as long as it does. Called off, what was redriven stays redriven. One that stopped by itself goes on with a reason.
#[utoipa::path(
    patch,
    path = "/v1/operations/{name}",
    tag = "operators",
    params(("name" = String, Path, description = "Which operation, percent-encoded")),
    request_body = ActOnOperation,
    responses((status = 200, description = "The operation after it", body = Stepped), Common, Named, Bodied, Acting),
)]
pub(crate) async fn act_on_operation(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(name): UrlPath<String>,
    JsonBody(asked): JsonBody<ActOnOperation>,
) -> Result<Json<Stepped>, Problem> {
    let operation = visible(&serving, &caller, &name).await?;
    if !may(&serving, &caller, Action::Operate, &operation).await? {
        return Err(caller.forbidden(Action::Operate, format_args!("all messages of operation {name:?}")));
    }
    let act = caller.act(asked.reason, asked.actor.as_deref());
    let request = match asked.act {
        OperationAct::Step => Operate::Step { name: name.clone() },
        OperationAct::Cancel => Operate::Cancel { name: name.clone(), act },
        OperationAct::Resume => Operate::Resume { name: name.clone(), act },
    };
    let stepped = serving.tide.store().operate(request).await?;
    match asked.act {
        OperationAct::Step => serving.driver.stepped(&stepped),
        OperationAct::Cancel => serving.driver.ended(&name),
        OperationAct::Resume => serving.driver.begun(&name, asked.drive),
    }
    Ok(Json(wire(&serving, stepped)))
}

// --- whose it is -----------------------------------------------------------------------------------------------------

/// Whether a caller may operate all that is selected.
async fn may_select(serving: &Serving, caller: &Caller, selection: &store::Selection) -> Result<(), Problem> {
    if caller.principal.may_all(Action::Operate) {
        return Ok(());
    }
    if selection.ids.is_empty() {
        if groups::may_on_all(caller, Action::Operate, &filter(selection)) {
            return Ok(());
        }
        let queue = selection.queue.as_ref().map_or_else(|| "every queue".to_owned(), |queue| format!("queue {queue}"));
        let tenant = selection.tenant.as_ref().map_or_else(|| "every tenant".to_owned(), |of| format!("tenant {of:?}"));
        return Err(caller
            .forbidden(Action::Operate, format_args!("{queue} of {tenant}"))
            .fix("select messages of a queue that the token may operate"));
    }
    // Each has to be looked at.
    enough(selection.ids.len(), serving.limits.batch)?;
    let found = whereabouts(serving, &selection.ids).await?;
    selection.ids.iter().zip(found).try_for_each(|(id, found)| operable(caller, *id, found.as_ref()))
}

/// Whether a caller may do this with all messages of an operation.
async fn may(
    serving: &Serving,
    caller: &Caller,
    action: Action,
    operation: &store::Operation,
) -> Result<bool, Problem> {
    let selection = &operation.selection;
    if caller.principal.may_all(action) {
        return Ok(true);
    }
    if selection.ids.is_empty() {
        return Ok(groups::may_on_all(caller, action, &filter(selection)));
    }
    let Some(places) = places(serving, operation).await? else { return Ok(false) };
    Ok(!places.is_empty() && places.iter().all(|(tenant, queue)| caller.sees(action, tenant, queue)))
}

/// Where the messages are that an operation names; none for more of them than a token of some queues may name.
async fn places(serving: &Serving, operation: &store::Operation) -> Result<Option<Places>, Problem> {
    if let Some(places) = serving.driver.places(&operation.name) {
        return Ok(Some(places));
    }
    let ids = &operation.selection.ids;
    if ids.len() > serving.limits.batch {
        return Ok(None);
    }
    let places: Places = Arc::new(whereabouts(serving, ids).await?.into_iter().flatten().collect());
    serving.driver.set_places(&operation.name, &places);
    Ok(Some(places))
}
