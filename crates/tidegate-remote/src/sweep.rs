//! `sweep`: `POST /v1/sweeps`. A server sweeps by itself; a client needs it to try the contract, and may do it for all.

use tidegate::store::{News, SweepRequest, Swept};
use tidegate::{State, StoreError};
use tidegate_api::{self as api, Sweep};

use crate::RemoteStore;
use crate::exchange::Ask;

impl RemoteStore {
    pub(crate) async fn sweep_once(&self, request: &SweepRequest) -> Result<Swept, StoreError> {
        let swept: api::Swept = self.exchange.ask(Ask::post("sweep", "/v1/sweeps", &Sweep::from(request))).await?;
        let swept = Swept::from(swept);
        let mut news = News::default();
        for taken in &swept.taken_over {
            match taken.state {
                State::Ready => news.ready.push(taken.queue.clone()),
                State::Completed | State::Failed | State::Dead | State::Cancelled | State::Parked => {
                    news.ended.push(taken.id);
                }
                State::Leased => {}
            }
        }
        self.listeners.tell(&news);
        Ok(swept)
    }
}
