//! `explain`: `GET /v1/messages/{id}/explanation`, with the facts it is concluded from.

use tidegate::store::ExplainFacts;
use tidegate::{MessageId, StoreError};
use tidegate_api::Explanation;

use crate::RemoteStore;
use crate::exchange::Ask;

impl RemoteStore {
    pub(crate) async fn facts(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError> {
        let path = format!("/v1/messages/{id}/explanation?facts=true");
        let found = self.exchange.find::<Explanation>(Ask::get("explain", path)).await?;
        found.and_then(|explanation| explanation.facts).map(tidegate_api::Facts::into_facts).transpose()
    }
}
