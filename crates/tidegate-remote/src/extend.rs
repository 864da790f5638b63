//! `extend`: `POST /v1/leases/extend`. It is given up early: over one connection on which nothing comes back, all leases of a
//! worker would lapse, while the next extension has a connection of its own.

use std::time::Duration;

use tidegate::StoreError;
use tidegate::store::{Extend, Extended, Verdicts};
use tidegate_api::{ExtendLease, ExtendLeases, ExtendResult, ExtendResults};

use crate::RemoteStore;
use crate::batch::Batch;

/// So much time an extension has, however short its leases are.
const LEAST: Duration = Duration::from_secs(1);

const EXTEND: Batch<Extend, ExtendLeases, ExtendResults, Extended> = Batch {
    verb: "extend",
    path: "/v1/leases/extend",
    size: |_| 0,
    how: |ask, leases| ask.within(in_time(leases)),
    body: |leases| ExtendLeases { leases: leases.iter().map(ExtendLease::from).collect() },
    verdicts: |answer, _| answer.results.into_iter().map(ExtendResult::into_verdict).collect(),
};

impl RemoteStore {
    pub(crate) async fn extend_all(&self, batch: Vec<Extend>) -> Result<Verdicts<Extended>, StoreError> {
        self.exchange.batch(&EXTEND, batch).await
    }
}

/// Short enough that a second extension is still in time for the shortest lease.
fn in_time(leases: &[Extend]) -> Duration {
    let shortest = leases.iter().map(|extend| extend.lease).min().unwrap_or_default();
    (shortest / 6).max(LEAST)
}
