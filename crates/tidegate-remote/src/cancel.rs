//! `cancel`: `POST /v1/messages/cancel`.

use tidegate::StoreError;
use tidegate::lifecycle::Cancellation;
use tidegate::store::{Cancel, News, Verdicts};
use tidegate_api::{self as api, ActResult, ActResults};

use crate::RemoteStore;
use crate::exchange::Ask;

/// So many are one request.
const MOST: usize = 1000;

impl RemoteStore {
    pub(crate) async fn cancel_all(&self, request: Cancel) -> Result<Verdicts<Cancellation>, StoreError> {
        let Cancel { ids, release_key, act } = request;
        let mut verdicts = Vec::with_capacity(ids.len());
        for part in ids.chunks(MOST) {
            let (reason, actor) = (act.reason.clone(), Some(act.actor.clone()));
            let body = api::Cancel { ids: part.to_vec(), release_key, reason, actor };
            let ask = Ask::post("cancel", "/v1/messages/cancel", &body);
            let of = |told: ActResults| told.results.into_iter().map(ActResult::into_cancellation).collect();
            verdicts.extend(self.exchange.verdicts(ask, of).await?);
        }
        let ended = ids.iter().zip(&verdicts).filter(|(_, verdict)| matches!(verdict, Ok(Cancellation::Now)));
        self.listeners.tell(&News { ended: ended.map(|(id, _)| *id).collect(), ..News::default() });
        Ok(verdicts)
    }
}
