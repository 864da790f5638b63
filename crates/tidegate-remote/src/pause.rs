//! `pause`: `PATCH /v1/queues/{queue}`.

use http::Method;
use serde::de::IgnoredAny;
use tidegate::StoreError;
use tidegate::store::{ChangeQueue, News, QueueChange};
use tidegate_api as api;

use crate::RemoteStore;
use crate::exchange::{Ask, part};

impl RemoteStore {
    pub(crate) async fn change_queue(&self, request: ChangeQueue) -> Result<(), StoreError> {
        let ChangeQueue { tenant, queue, change, act } = request;
        let body = api::ChangeQueue { reason: act.reason, actor: Some(act.actor), ..api::ChangeQueue::of(change) };
        let ask = Ask::with("pause", Method::PATCH, format!("/v1/queues/{}", part(queue.as_str())), &body);
        let _now: IgnoredAny = self.exchange.ask(ask.of(&tenant)).await?;
        if change == QueueChange::Resume {
            self.listeners.tell(&News { ready: vec![queue], ..News::default() });
        }
        Ok(())
    }
}
