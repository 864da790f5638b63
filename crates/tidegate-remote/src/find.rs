//! `find`: `GET /v1/queues/{queue}/keys/{key}`.

use serde::Deserialize;
use tidegate::{IdempotencyKey, MessageId, QueueName, StoreError, Tenant};

use crate::RemoteStore;
use crate::exchange::{Ask, part};

/// Of the message no more than what was asked for.
#[derive(Deserialize)]
struct Found {
    id: MessageId,
}

impl RemoteStore {
    pub(crate) async fn find_key(
        &self,
        tenant: &Tenant,
        queue: &QueueName,
        key: &IdempotencyKey,
    ) -> Result<Option<MessageId>, StoreError> {
        let path = format!("/v1/queues/{}/keys/{}", part(queue.as_str()), part(key.as_str()));
        let found = self.exchange.find::<Found>(Ask::get("find", path).of(tenant)).await?;
        Ok(found.map(|found| found.id))
    }
}
