//! `redrive`: `POST /v1/messages/redrive`. Sent again under its operation, it redrives nothing twice.

use tidegate::store::{Redrive, Verdicts};
use tidegate::{MessageId, StoreError};
use tidegate_api::{self as api, ActResult, Redriven};

use crate::RemoteStore;
use crate::exchange::Ask;

impl RemoteStore {
    pub(crate) async fn redrive_all(&self, request: Redrive) -> Result<Verdicts<MessageId>, StoreError> {
        let Redrive { ids, again, operation, act } = request;
        let (reason, actor) = (act.reason, Some(act.actor));
        let body = api::Redrive { ids, again, operation: Some(operation), reason, actor };
        let ask = Ask::post("redrive", "/v1/messages/redrive", &body);
        let of = |told: Redriven| told.results.into_iter().map(ActResult::into_verdict).collect();
        self.exchange.verdicts(ask, of).await
    }
}
