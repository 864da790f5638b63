//! `stats`: `GET /v1/stats`.

use tidegate::StoreError;
use tidegate::store::Stats;
use tidegate_api as api;

use crate::RemoteStore;
use crate::exchange::Ask;

impl RemoteStore {
    pub(crate) async fn figures(&self) -> Result<Stats, StoreError> {
        self.exchange.ask::<api::Stats>(Ask::get("stats", "/v1/stats?all_tenants=true")).await?.into_stats()
    }
}
