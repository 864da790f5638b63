//! `explain`: `GET /v1/messages/{id}/explanation`, with the facts it is concluded from.

use tidegate::store::ExplainFacts;
use tidegate::{MessageId, StoreError};
use tidegate_api::Explanation;

use crate::RemoteStore;
use crate::exchange::{Ask, Query};

impl RemoteStore {
    pub(crate) async fn facts(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError> {
        let mut query = Query::default();
        query.add("facts", true);
        query.add_some("reveal", self.reveal());
        let path = format!("/v1/messages/{id}/explanation{query}");
        let found = self.exchange.find::<Explanation>(Ask::get("explain", path)).await?;
        found.and_then(|explanation| explanation.facts).map(tidegate_api::Facts::into_facts).transpose()
    }
}
