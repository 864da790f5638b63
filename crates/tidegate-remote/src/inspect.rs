//! `inspect`, `progress`: `POST /v1/messages/inspect`, `POST /v1/messages/progress`.

use tidegate::store::{MessageView, Progress};
use tidegate::{MessageId, StoreError};
use tidegate_api::{Inspect, Inspected, Message, ProgressList, Revealed};

use crate::RemoteStore;
use crate::exchange::Ask;

/// So many are one request.
const INSPECTED: usize = 100;
const WATCHED: usize = 1000;

impl RemoteStore {
    pub(crate) async fn inspect_all(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError> {
        let mut views = Vec::with_capacity(ids.len());
        for part in ids.chunks(INSPECTED) {
            let told: Inspected =
                self.exchange.ask(Ask::post("inspect", "/v1/messages/inspect", &self.body(part))).await?;
            enough(part.len(), told.messages.len(), "inspect")?;
            for message in told.messages {
                views.push(message.map(Message::into_view_as_shown).transpose()?);
            }
        }
        Ok(views)
    }

    pub(crate) async fn progress_of(&self, ids: Vec<MessageId>) -> Result<Vec<Option<Progress>>, StoreError> {
        let mut found = Vec::with_capacity(ids.len());
        for part in ids.chunks(WATCHED) {
            let told: ProgressList =
                self.exchange.ask(Ask::post("progress", "/v1/messages/progress", &self.body(part))).await?;
            enough(part.len(), told.messages.len(), "progress")?;
            found.extend(told.messages.into_iter().map(|progress| progress.map(as_shown)));
        }
        Ok(found)
    }

    fn body(&self, ids: &[MessageId]) -> Inspect {
        Inspect { ids: ids.to_vec(), reveal: self.reveal.then_some(Revealed::Payload) }
    }
}

fn as_shown(progress: tidegate_api::Progress) -> Progress {
    let tidegate_api::Progress { state, reason, answer } = progress;
    Progress { state, reason, answer: answer.map(tidegate_api::Answer::into_answer_as_shown) }
}

fn enough(asked: usize, told: usize, verb: &str) -> Result<(), StoreError> {
    if asked == told {
        return Ok(());
    }
    Err(StoreError::unavailable(format!("the server told {verb} of {told} messages, and was asked of {asked}"))
        .hint("ask again; nothing is changed by it"))
}
