//! `discard`: `POST /v1/messages/discard`.

use tidegate::store::{Discard, Verdicts};
use tidegate::{MessageId, StoreError};
use tidegate_api::{self as api, ActResult, ActResults};

use crate::RemoteStore;
use crate::exchange::Ask;

impl RemoteStore {
    pub(crate) async fn discard_all(&self, request: Discard) -> Result<Verdicts<MessageId>, StoreError> {
        let Discard { ids, act } = request;
        let body = api::Discard { ids, reason: act.reason, actor: Some(act.actor) };
        let ask = Ask::post("discard", "/v1/messages/discard", &body);
        let of = |told: ActResults| told.results.into_iter().map(ActResult::into_verdict).collect();
        self.exchange.verdicts(ask, of).await
    }
}
