//! Which messages of a batch a caller may act on. The store is asked for those that the caller may, and the verdicts are
//! put together in the order of the request.

use tidegate::store::MessageView;
use tidegate::{MessageId, QueueName, StoreError, Tenant};
use tidegate_api::ActResult;

use crate::principal::{Action, Caller};
use crate::problem::Problem;
use crate::serving::Serving;

/// The messages of a batch, each with why it is not acted on, if it is not.
pub(crate) struct Batch {
    places: Vec<(MessageId, Result<(), Problem>)>,
}

impl Batch {
    /// Looks which of these messages the caller may operate.
    pub(crate) async fn of(serving: &Serving, caller: &Caller, ids: Vec<MessageId>) -> Result<Self, Problem> {
        // What is not there the store says itself.
        if caller.principal.may_all(Action::Operate) {
            return Ok(Self { places: ids.into_iter().map(|id| (id, Ok(()))).collect() });
        }
        let found = whereabouts(serving, &ids).await?;
        let place = |(id, found): (MessageId, Option<Whereabouts>)| (id, operable(caller, id, found.as_ref()));
        Ok(Self { places: ids.into_iter().zip(found).map(place).collect() })
    }

    /// Those that the store is asked to act on.
    pub(crate) fn allowed(&self) -> Vec<MessageId> {
        self.places.iter().filter(|(_, place)| place.is_ok()).map(|(id, _)| *id).collect()
    }

    /// Why the first is not acted on that is not.
    pub(crate) fn first_refused(self) -> Option<Problem> {
        self.places.into_iter().find_map(|(_, place)| place.err())
    }

    /// A verdict for each message of the request: the store's, or why it was not asked.
    pub(crate) fn results<T>(
        self,
        serving: &Serving,
        verdicts: Vec<Result<T, StoreError>>,
        done: impl Fn(MessageId, T) -> ActResult,
    ) -> Vec<ActResult> {
        let mut verdicts = verdicts.into_iter();
        let no_verdict = || Err(StoreError::unavailable("the store gave no verdict"));
        let result = |(id, place): (MessageId, Result<(), Problem>)| {
            let verdict = place.and_then(|()| verdicts.next().unwrap_or_else(no_verdict).map_err(Problem::from));
            match verdict {
                Ok(verdict) => done(id, verdict),
                Err(problem) => ActResult::refused(id, serving.wire(problem)),
            }
        };
        self.places.into_iter().map(result).collect()
    }
}

/// The tenant and the queue of a message.
pub(crate) type Whereabouts = (Tenant, QueueName);

/// Messages are looked at so many at once: each is read with all its contents.
pub(crate) const AT_ONCE: usize = 100;

/// Where messages are; none for one that is not there.
pub(crate) async fn whereabouts(serving: &Serving, ids: &[MessageId]) -> Result<Vec<Option<Whereabouts>>, Problem> {
    let mut found = Vec::with_capacity(ids.len());
    for chunk in ids.chunks(AT_ONCE) {
        let views = serving.tide.store().inspect(chunk.to_vec()).await?;
        found.extend(views.into_iter().map(|view| view.map(|view| (view.message.tenant, view.message.queue))));
    }
    Ok(found)
}

/// Whether a caller may act on a message. One that it may not even read is told as one that is not there.
pub(crate) fn operable(caller: &Caller, id: MessageId, found: Option<&Whereabouts>) -> Result<(), Problem> {
    let Some((tenant, queue)) = found else { return Err(Problem::no_message(id)) };
    if caller.sees(Action::Operate, tenant, queue) {
        Ok(())
    } else if caller.sees(Action::Read, tenant, queue) {
        caller.may(Action::Operate, tenant, queue)
    } else {
        Err(Problem::no_message(id))
    }
}

/// The message of an id, if this caller may act on it.
pub(crate) async fn one(serving: &Serving, caller: &Caller, id: MessageId) -> Result<MessageView, Problem> {
    let view = serving.tide.store().inspect(vec![id]).await?.pop().flatten();
    let view = view.ok_or_else(|| Problem::no_message(id))?;
    operable(caller, id, Some(&(view.message.tenant.clone(), view.message.queue.clone())))?;
    Ok(view)
}
