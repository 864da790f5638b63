//! `enqueue`: `POST /v1/messages`.

use tidegate::message::NewMessage;
use tidegate::store::{Enqueued, News, Verdicts};
use tidegate::{QueueName, StoreError, StoreErrorKind};
use tidegate_api::{self as api, EnqueueMany, EnqueueResult, EnqueueResults, ProblemType, Verdict};

use crate::RemoteStore;
use crate::batch::Batch;

const ENQUEUE: Batch<NewMessage, EnqueueMany, EnqueueResults, Enqueued> = Batch {
    verb: "enqueue",
    path: "/v1/messages",
    size: |message| message.payload.text().len() + message.headers.values().map(String::len).sum::<usize>(),
    how: |ask, _| ask,
    body: |messages| EnqueueMany { messages: messages.iter().map(api::Enqueue::of).collect() },
    verdicts: |answer, _| answer.results.into_iter().map(verdict).collect(),
};

impl RemoteStore {
    pub(crate) async fn enqueue_all(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError> {
        let queues: Vec<QueueName> = batch.iter().map(|message| message.queue.clone()).collect();
        let verdicts = self.exchange.batch(&ENQUEUE, batch).await?;
        let mut news = News::default();
        for (queue, verdict) in queues.into_iter().zip(&verdicts) {
            if matches!(verdict, Ok(Enqueued::New { .. })) && !news.ready.contains(&queue) {
                news.ready.push(queue);
            }
        }
        self.listeners.tell(&news);
        Ok(verdicts)
    }
}

fn verdict(result: EnqueueResult) -> Result<Enqueued, StoreError> {
    let odd = |what: &str| {
        let what = format!("the server sent a verdict without {what}; the message is stored");
        StoreError::new(StoreErrorKind::Corrupt, what)
            .hint("server and client are of different versions: update the older of the two")
    };
    if let Some(problem) = result.problem {
        // To the store it is a verdict: nothing was done, and nothing went wrong.
        if problem.kind == ProblemType::StaleKey {
            return Ok(Enqueued::Stale);
        }
        return Err(problem.into_store_error());
    }
    let id = result.id.ok_or_else(|| odd("an id"))?;
    Ok(match result.result.ok_or_else(|| odd("a result"))? {
        Verdict::Added => Enqueued::New { id },
        Verdict::Known => {
            let state = result.state.ok_or_else(|| odd("a state"))?;
            Enqueued::Existing { id, state, ignored: result.ignored.iter().filter_map(|word| option(word)).collect() }
        }
        Verdict::Replayed => {
            let answer = result.answer.ok_or_else(|| odd("an answer"))?.into_answer_as_shown();
            Enqueued::Replayed { id, answer }
        }
    })
}

/// An option as the contract calls it. One that only a newer server knows was not in the request.
fn option(word: &str) -> Option<&'static str> {
    ["priority", "delay", "due_at", "deadline", "max_age", "key_time", "version", "headers"]
        .into_iter()
        .find(|known| *known == word)
}
