//! `enqueue`: `POST /v1/messages`, in requests that a server takes.

use std::collections::VecDeque;

use tidegate::message::NewMessage;
use tidegate::store::{Enqueued, News, Verdicts};
use tidegate::{QueueName, StoreError, StoreErrorKind};
use tidegate_api::{self as api, EnqueueMany, EnqueueResult, EnqueueResults, ProblemType, Verdict};

use crate::RemoteStore;
use crate::exchange::{Ask, Refusal, store_error};

/// So many messages, and so many bytes of them, are one request. A server may take less and says so; then it is halved.
const MOST: usize = 500;
const BYTES: usize = 512 << 10;

impl RemoteStore {
    pub(crate) async fn enqueue_all(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError> {
        let mut verdicts = Vec::with_capacity(batch.len());
        let mut parts: VecDeque<Vec<NewMessage>> = parts(batch).into();
        while let Some(part) = parts.pop_front() {
            let queues: Vec<QueueName> = part.iter().map(|message| message.queue.clone()).collect();
            let body = EnqueueMany { messages: part.iter().map(api::Enqueue::of).collect() };
            match self.exchange.ask::<EnqueueResults>(Ask::post("enqueue", "/v1/messages", &body)).await {
                Ok(answer) if answer.results.len() == part.len() => {
                    let told: Vec<_> = answer.results.into_iter().map(verdict).collect();
                    self.tell(&queues, &told);
                    verdicts.extend(told);
                }
                Ok(answer) => {
                    let (asked, told) = (part.len(), answer.results.len());
                    return Err(StoreError::unavailable(format!("{told} verdicts on {asked} messages came back"))
                        .hint("send them again: under the same keys nothing is done twice"));
                }
                // Nothing of it was stored.
                Err(error) if is_too_large(&error) && part.len() > 1 => {
                    let mut first = part;
                    let second = first.split_off(first.len() / 2);
                    parts.push_front(second);
                    parts.push_front(first);
                }
                Err(error) if is_too_large(&error) => verdicts.push(Err(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(verdicts)
    }

    fn tell(&self, queues: &[QueueName], verdicts: &[Result<Enqueued, StoreError>]) {
        let mut news = News::default();
        for (queue, verdict) in queues.iter().zip(verdicts) {
            if matches!(verdict, Ok(Enqueued::New { .. })) && !news.ready.contains(queue) {
                news.ready.push(queue.clone());
            }
        }
        self.listeners.tell(&news);
    }
}

/// The batch in requests that are not too large, in its order.
fn parts(batch: Vec<NewMessage>) -> Vec<Vec<NewMessage>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = 0;
    for message in batch {
        let size = message.payload.text().len() + 512;
        if !part.is_empty() && (part.len() >= MOST || bytes + size > BYTES) {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += size;
        part.push(message);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

fn is_too_large(error: &StoreError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Refusal>());
    source.is_some_and(|refusal| refusal.kind == Some(ProblemType::TooLarge))
}

fn verdict(result: EnqueueResult) -> Result<Enqueued, StoreError> {
    let odd = |what: &str| {
        StoreError::new(
            StoreErrorKind::Corrupt,
            format!("the server sent a verdict without {what}; the message is stored"),
        )
        .hint("server and client are of different versions: update the older of the two")
    };
    if let Some(problem) = result.problem {
        // To the store it is a verdict: nothing was done, and nothing went wrong.
        if problem.kind == ProblemType::StaleKey {
            return Ok(Enqueued::Stale);
        }
        return Err(store_error(problem));
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

#[cfg(test)]
mod tests {
    use tidegate::message::Payload;
    use tidegate::{IdempotencyKey, Kind};

    use super::*;

    fn message(key: usize, bytes: usize) -> NewMessage {
        let payload = Payload::from_json(format!("\"{}\"", "x".repeat(bytes))).unwrap();
        let (queue, kind) = (QueueName::new("q").unwrap(), Kind::new("k").unwrap());
        NewMessage::new(queue, kind, IdempotencyKey::new(format!("k-{key}")).unwrap(), payload)
    }

    #[test]
    fn a_batch_is_parted_by_number_and_by_size_and_keeps_its_order() {
        let lengths = |sizes: &[usize]| -> Vec<usize> {
            let batch = sizes.iter().enumerate().map(|(key, bytes)| message(key, *bytes)).collect();
            let parts = parts(batch);
            let keys: Vec<String> = parts.iter().flatten().map(|message| message.key.to_string()).collect();
            assert_eq!(keys, (0..sizes.len()).map(|key| format!("k-{key}")).collect::<Vec<_>>());
            parts.iter().map(Vec::len).collect()
        };
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[1; 1001]), [500, 500, 1]);
        assert_eq!(lengths(&[300 << 10, 300 << 10, 1, 600 << 10, 1]), [1, 2, 1, 1]);
    }
}
