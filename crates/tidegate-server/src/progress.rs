//! `POST /v1/messages/progress`: where many messages stand, as cheaply as can be.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::MessageId;
use tidegate::message::Answer;
use tidegate_api::{Inspect, Progress, ProgressList, Revealed};

use crate::acting::{Whereabouts, whereabouts};
use crate::body::JsonBody;
use crate::enqueue_many::enough;
use crate::inspect::note;
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;

/// Ask where many messages stand
///
/// At most 1000, in the order of the request; null for one that is not there or that this token may not read. Results are
/// shown to whoever may produce on the queue; to others when they are asked for and may be revealed, which is written down.
#[utoipa::path(
    post,
    path = "/v1/messages/progress",
    tag = "operators",
    request_body = Inspect,
    responses((status = 200, description = "Where they stand", body = ProgressList), Common, Bodied),
)]
pub(crate) async fn progress(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(asked): JsonBody<Inspect>,
) -> Result<Json<ProgressList>, Problem> {
    enough(asked.ids.len(), serving.limits.batch)?;
    let ids = asked.ids;
    let sights = sights(&serving, &caller, &ids, asked.reveal).await?;
    let found = serving.tide.store().progress(ids.clone()).await?;
    let has_result = |progress: &tidegate::store::Progress| matches!(progress.answer, Some(Answer::Completed(_)));
    let mut revealed = Vec::new();
    let mut messages = Vec::with_capacity(ids.len());
    for ((id, sight), progress) in ids.into_iter().zip(sights).zip(found) {
        let progress = progress.filter(|_| sight != Sight::Nothing);
        if sight == Sight::Revealed && progress.as_ref().is_some_and(has_result) {
            revealed.push(id);
        }
        let shows = matches!(sight, Sight::Result | Sight::Revealed);
        messages.push(progress.map(|progress| Progress::of(&progress, shows)));
    }
    note(&serving, &caller, revealed).await?;
    Ok(Json(ProgressList { messages }))
}

/// What a caller sees of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// It is not there.
    Nothing,
    /// Where it stands.
    State,
    /// The result as well: it is theirs.
    Result,
    /// The result as well, and that is written down.
    Revealed,
}

async fn sights(
    serving: &Serving,
    caller: &Caller,
    ids: &[MessageId],
    reveal: Option<Revealed>,
) -> Result<Vec<Sight>, Problem> {
    let sight = |sees: &dyn Fn(Action) -> bool| match reveal {
        _ if !sees(Action::Read) => Sight::Nothing,
        _ if sees(Action::Produce) => Sight::Result,
        Some(Revealed::Payload) if sees(Action::Reveal) => Sight::Revealed,
        Some(Revealed::Payload) | None => Sight::State,
    };
    // Of whoever may read all, nothing has to be asked of each message: this is what waiting clients do all the time.
    if caller.principal.may_all(Action::Read) {
        let one = sight(&|action| caller.principal.may_all(action));
        if one != Sight::State {
            return Ok(vec![one; ids.len()]);
        }
    }
    let of = |found: Option<Whereabouts>| {
        found.map_or(Sight::Nothing, |(tenant, queue)| sight(&|action| caller.sees(action, &tenant, &queue)))
    };
    Ok(whereabouts(serving, ids).await?.into_iter().map(of).collect())
}
