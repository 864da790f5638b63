//! `POST /v1/messages/inspect`: many messages at once, as a store shows them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::MessageId;
use tidegate::store::{MessageView, Note};
use tidegate_api::{Inspect, Inspected, Message, Revealed, Show};

use crate::body::JsonBody;
use crate::enqueue_many::enough;
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;

/// The most of one request: each is read whole, with its payload and its journal.
const MOST: usize = 100;

/// Read many messages
///
/// At most 100, in the order of the request; null for one that is not there or that this token may not read. Contents are
/// masked unless they are asked for, and stay so for messages that this token may read and not reveal. What is revealed is
/// written down.
#[utoipa::path(
    post,
    path = "/v1/messages/inspect",
    tag = "operators",
    request_body = Inspect,
    responses((status = 200, description = "The messages", body = Inspected), Common, Bodied),
)]
pub(crate) async fn inspect(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(asked): JsonBody<Inspect>,
) -> Result<Json<Inspected>, Problem> {
    enough(asked.ids.len(), MOST.min(serving.limits.batch))?;
    let sees = |view: &MessageView| caller.sees(Action::Read, &view.message.tenant, &view.message.queue);
    let views: Vec<Option<MessageView>> =
        serving.tide.store().inspect(asked.ids).await?.into_iter().map(|view| view.filter(sees)).collect();
    let show = |view: &MessageView| show(&caller, view, asked.reveal);
    let revealed = views.iter().flatten().filter(|view| show(view).contents).map(|view| view.message.id).collect();
    note(&serving, &caller, revealed).await?;
    let messages = views.iter().map(|view| view.as_ref().map(|view| Message::of(view, show(view)))).collect();
    Ok(Json(Inspected { messages }))
}

/// What of a message this caller sees.
fn show(caller: &Caller, view: &MessageView, reveal: Option<Revealed>) -> Show {
    let sees = |action| caller.sees(action, &view.message.tenant, &view.message.queue);
    match reveal {
        Some(Revealed::Payload) if sees(Action::Reveal) => Show::ALL,
        Some(Revealed::Payload) | None => Show { contents: false, result: sees(Action::Produce) },
    }
}

/// Writes down whose contents are shown, before they are. Whoever needs no token could as well open the file.
pub(crate) async fn note(serving: &Serving, caller: &Caller, messages: Vec<MessageId>) -> Result<(), Problem> {
    if messages.is_empty() || caller.principal.is_anyone() {
        return Ok(());
    }
    let act = caller.act("", None);
    serving.tide.store().note(Note { what: "reveal".to_owned(), messages, detail: String::new(), act }).await?;
    Ok(())
}
