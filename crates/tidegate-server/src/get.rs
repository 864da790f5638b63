//! `GET /v1/messages/{id}`: everything about one message, at once or when it has ended.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tidegate::lifecycle::State as MessageState;
use tidegate::store::{MessageView, Note};
use tidegate::{MessageId, Tidegate};
use tidegate_api::{Message, Show, schema};

use crate::principal::{Action, Caller};
use crate::problem::{Common, Named, Problem};
use crate::serving::Serving;
use crate::url::{UrlPath, UrlQuery};
use crate::wait::{self, Span};

/// What may be asked for along with a message.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Answer when the message has ended or is parked, or after this time, whichever comes first. When the time is up, the
    /// answer says where the message stands; nothing is cancelled. At most 60 s.
    #[param(value_type = Option<schema::Wait>)]
    wait: Option<Span>,
    /// `payload` shows what is masked otherwise: the payload, the result, the values of effects. Needs the right to reveal,
    /// and is written down.
    #[param(value_type = Option<Reveal>, inline)]
    reveal: Option<Reveal>,
}

/// What may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reveal {
    /// Everything.
    Payload,
}

/// Read one message, or wait for its answer
///
/// Contents are masked unless they are asked for; the result of a message is shown to whoever may produce on its queue,
/// because it is their answer. Reading takes the scope `read`; a token that may only produce gets the answer by enqueueing the
/// same under the same key again. A message that this token may not read is answered as one that is not there.
#[utoipa::path(
    get,
    path = "/v1/messages/{id}",
    tag = "messages",
    params(("id" = schema::Id, Path, description = "Which message"), Asked),
    responses((status = 200, description = "The message", body = Message), Common, Named),
)]
pub(crate) async fn get(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(id): UrlPath<MessageId>,
    UrlQuery(asked): UrlQuery<Asked>,
) -> Result<Json<Message>, Problem> {
    let wait = wait::allowed(asked.wait, &serving.limits)?;
    let mut view = visible(&serving.tide, &caller, id).await?;
    let show = show(&serving, &caller, &view, asked.reveal).await?;
    if !has_ended(view.state) && !wait.is_zero() {
        ended(&serving, id, wait).await?;
        view = visible(&serving.tide, &caller, id).await?;
    }
    Ok(Json(Message::of(&view, show)))
}

/// The message of an id, if this caller may read it. Whoever may produce on its queue is told what it takes to read it, and
/// nobody else that it is there.
pub(crate) async fn visible(tide: &Tidegate, caller: &Caller, id: MessageId) -> Result<MessageView, Problem> {
    let view = tide.store().inspect(vec![id]).await?.pop().flatten().ok_or_else(|| Problem::no_message(id))?;
    let (tenant, queue) = (&view.message.tenant, &view.message.queue);
    if caller.sees(Action::Read, tenant, queue) {
        return Ok(view);
    }
    if caller.sees(Action::Produce, tenant, queue) {
        caller.may(Action::Read, tenant, queue)?;
    }
    Err(Problem::no_message(id))
}

/// What of a message this caller sees.
pub(crate) async fn show(
    serving: &Serving,
    caller: &Caller,
    view: &MessageView,
    reveal: Option<Reveal>,
) -> Result<Show, Problem> {
    let (tenant, queue) = (&view.message.tenant, &view.message.queue);
    match reveal {
        None => Ok(Show { contents: false, result: caller.sees(Action::Produce, tenant, queue) }),
        Some(Reveal::Payload) => {
            caller.may(Action::Reveal, tenant, queue)?;
            // Written down before it is shown. Whoever needs no token could as well open the file.
            if !caller.principal.is_anyone() {
                let (messages, act) = (vec![view.message.id], caller.act("", None));
                let note = Note { what: "reveal".to_owned(), messages, detail: String::new(), act };
                serving.tide.store().note(note).await?;
            }
            Ok(Show::ALL)
        }
    }
}

/// Waits for the end of a message; also ends when the time is up, or the server is being stopped.
async fn ended(serving: &Serving, id: MessageId, wait: Duration) -> Result<(), Problem> {
    tokio::select! {
        answered = serving.tide.wait(id, wait) => match answered {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        },
        () = serving.stopping.stopped() => Ok(()),
    }
}

/// Whether waiting any longer changes nothing: only a person does.
pub(crate) fn has_ended(state: MessageState) -> bool {
    state.is_terminal() || state == MessageState::Parked
}
