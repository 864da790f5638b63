//! `edit`: `PATCH /v1/messages/{id}`.

use http::Method;
use tidegate::StoreError;
use tidegate::store::{Edit, Edited};
use tidegate_api as api;

use crate::RemoteStore;
use crate::exchange::{Ask, Query};

impl RemoteStore {
    pub(crate) async fn edit_one(&self, request: Edit) -> Result<Edited, StoreError> {
        let Edit { id, payload, act } = request;
        let mut query = Query::default();
        query.add_some("reveal", self.reveal());
        let body = api::Edit::of(&payload, &act.reason, Some(&act.actor));
        let ask = Ask::with("edit", Method::PATCH, format!("/v1/messages/{id}{query}"), &body);
        let told: api::Edited = self.exchange.ask(ask).await?;
        // What it is now is known to whoever sent it; what it was is masked unless it was asked for.
        let after = payload.text().into();
        let before = if told.changed { told.before.as_shown() } else { std::sync::Arc::clone(&after) };
        Ok(Edited { before, after })
    }
}
