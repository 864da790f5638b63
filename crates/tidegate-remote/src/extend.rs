//! `extend`: `POST /v1/leases/extend`.

use tidegate::StoreError;
use tidegate::store::{Extend, Extended, Verdicts};
use tidegate_api::{ExtendLease, ExtendLeases, ExtendResult, ExtendResults};

use crate::RemoteStore;
use crate::batch::Batch;

const EXTEND: Batch<Extend, ExtendLeases, ExtendResults, Extended> = Batch {
    verb: "extend",
    path: "/v1/leases/extend",
    size: |_| 0,
    body: |leases| ExtendLeases { leases: leases.iter().map(ExtendLease::from).collect() },
    verdicts: |answer, _| answer.results.into_iter().map(ExtendResult::into_verdict).collect(),
};

impl RemoteStore {
    pub(crate) async fn extend_all(&self, batch: Vec<Extend>) -> Result<Verdicts<Extended>, StoreError> {
        self.exchange.batch(&EXTEND, batch).await
    }
}
