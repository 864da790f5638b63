//! `inspect`: `GET /v1/messages/{id}`.

use tidegate::store::MessageView;
use tidegate::{MessageId, StoreError};
use tidegate_api::Message;

use crate::RemoteStore;
use crate::exchange::{Ask, Query};

impl RemoteStore {
    pub(crate) async fn inspect_all(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError> {
        let mut views = Vec::with_capacity(ids.len());
        for id in ids {
            let mut query = Query::default();
            query.add_some("reveal", self.reveal());
            let found = self.exchange.find::<Message>(Ask::get("inspect", format!("/v1/messages/{id}{query}"))).await?;
            views.push(found.map(Message::into_view_as_shown).transpose()?);
        }
        Ok(views)
    }
}
