//! `resolve`: `POST /v1/messages/{id}/effects/resolve`.

use tidegate::StoreError;
use tidegate::store::{Resolve, Resolved};
use tidegate_api as api;

use crate::RemoteStore;
use crate::exchange::Ask;

impl RemoteStore {
    pub(crate) async fn resolve_one(&self, request: Resolve) -> Result<Resolved, StoreError> {
        let Resolve { id, effect, resolution, act } = request;
        let body = api::Resolve::of(effect, &resolution, &act.reason, Some(&act.actor));
        let told: api::Resolved =
            self.exchange.ask(Ask::post("resolve", format!("/v1/messages/{id}/effects/resolve"), &body)).await?;
        Ok(told.into())
    }
}
