//! `settle`: `POST /v1/leases/settle`.

use tidegate::lifecycle::Outcome;
use tidegate::store::{News, Settle, Settled, Verdicts};
use tidegate::{MessageId, QueueName, State, StoreError};
use tidegate_api::{SettleLeases, SettleResult, SettleResults, Settlement};

use crate::RemoteStore;
use crate::batch::Batch;
use crate::journal;

/// A settlement as it is written, and what it is of.
struct Written {
    id: MessageId,
    settlement: Settlement,
    size: usize,
    /// Where what follows goes, by how it ends.
    then: Vec<QueueName>,
    compensate: Vec<QueueName>,
}

const SETTLE: Batch<Written, SettleLeases, SettleResults, Settled> = Batch {
    verb: "settle",
    path: "/v1/leases/settle",
    size: |written| written.size,
    how: |ask, _| ask,
    body: |all| SettleLeases { settlements: all.iter().map(|written| written.settlement.clone()).collect() },
    verdicts: |answer, _| answer.results.into_iter().map(SettleResult::into_verdict).collect(),
};

impl RemoteStore {
    pub(crate) async fn settle_all(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError> {
        // One that cannot even be written is refused alone, in its place.
        let mut places = Vec::with_capacity(batch.len());
        let mut written = Vec::with_capacity(batch.len());
        for settle in &batch {
            places.push(match of(settle) {
                Ok(one) => {
                    written.push(one);
                    Ok(())
                }
                Err(error) => Err(error),
            });
        }
        let queues: Vec<_> = written.iter().map(|one| (one.id, one.then.clone(), one.compensate.clone())).collect();
        let verdicts = self.exchange.batch(&SETTLE, written).await?;
        self.tell_settled(queues, &verdicts);
        let mut verdicts = verdicts.into_iter();
        let no_verdict = || Err(StoreError::unavailable("the server gave no verdict"));
        Ok(places.into_iter().map(|place| place.and_then(|()| verdicts.next().unwrap_or_else(no_verdict))).collect())
    }

    fn tell_settled(&self, of: Vec<(MessageId, Vec<QueueName>, Vec<QueueName>)>, verdicts: &Verdicts<Settled>) {
        let mut news = News::default();
        for ((id, then, compensate), verdict) in of.into_iter().zip(verdicts) {
            match verdict.as_ref().map(|settled| settled.state) {
                Ok(State::Completed) => {
                    news.ready.extend(then);
                    news.ended.push(id);
                }
                Ok(State::Failed | State::Dead) => {
                    news.ready.extend(compensate);
                    news.ended.push(id);
                }
                Ok(State::Cancelled | State::Parked) => news.ended.push(id),
                Ok(State::Ready | State::Leased) | Err(_) => {}
            }
        }
        self.listeners.tell(&news);
    }
}

fn of(settle: &Settle) -> Result<Written, StoreError> {
    let queues = |messages: &[tidegate::message::NewMessage]| messages.iter().map(|m| m.queue.clone()).collect();
    let result = if let Outcome::Completed { result, .. } = &settle.outcome { result.len() } else { 0 };
    let follow_ups: usize = settle.then.iter().chain(&settle.compensate).map(|m| m.payload.text().len() + 512).sum();
    Ok(Written {
        id: settle.id,
        settlement: Settlement::of(settle)?,
        size: result + follow_ups + settle.journal.iter().map(journal::size).sum::<usize>(),
        then: queues(&settle.then),
        compensate: queues(&settle.compensate),
    })
}
