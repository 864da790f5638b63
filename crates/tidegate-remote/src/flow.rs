//! `flow`: `GET /v1/flows/{id}`.

use tidegate::store::Summary;
use tidegate::{MessageId, StoreError};
use tidegate_api::Flow;

use crate::RemoteStore;
use crate::exchange::Ask;

impl RemoteStore {
    pub(crate) async fn flow_of(&self, root: MessageId) -> Result<Vec<Summary>, StoreError> {
        let found = self.exchange.find::<Flow>(Ask::get("flow", format!("/v1/flows/{root}"))).await?;
        Ok(found.map(|flow| flow.messages.into_iter().map(Summary::from).collect()).unwrap_or_default())
    }
}
