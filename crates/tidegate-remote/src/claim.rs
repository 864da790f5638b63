//! `claim`: `POST /v1/leases`. Sent again under its nonce, it comes back with the same leases.

use tidegate::StoreError;
use tidegate::store::{ClaimRequest, Claimed};
use tidegate_api::{self as api, Claim};

use crate::RemoteStore;
use crate::exchange::Ask;

impl RemoteStore {
    pub(crate) async fn claim_some(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let claimed: api::Claimed = self.exchange.ask(Ask::post("claim", "/v1/leases", &Claim::of(request))).await?;
        claimed.into_claimed()
    }
}
