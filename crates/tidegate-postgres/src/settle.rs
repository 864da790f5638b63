//! Ends runs: result, state, follow-ups and journal in one commit, under the lease token.

use tidegate_core::effect::EffectRow;
use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::{Outcome, Transition};
use tidegate_core::store::{Settle, Settled, Verdicts};

use crate::enqueue;
use crate::group::Group;
use crate::names::{Lane, LaneName};
use crate::row::{LastSettlement, LeaseRow};
use crate::trouble::Trouble;

/// A settlement that was hashed and whose follow-ups were checked, on its caller's thread.
#[derive(Debug)]
pub(crate) struct Prepared {
    settle: Settle,
    digest: [u8; 16],
    then: Vec<Result<enqueue::Prepared, StoreError>>,
    compensate: Vec<Result<enqueue::Prepared, StoreError>>,
}

impl Prepared {
    pub(crate) fn of(mut settle: Settle, max_payload: usize) -> Self {
        let digest = settle.digest();
        let prepare = |messages: Vec<_>| {
            messages.into_iter().map(|message| enqueue::Prepared::of(message, max_payload)).collect()
        };
        let then = prepare(std::mem::take(&mut settle.then));
        let compensate = prepare(std::mem::take(&mut settle.compensate));
        Self { settle, digest, then, compensate }
    }

    /// Lanes its follow-ups need.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = LaneName> {
        self.then.iter().chain(&self.compensate).flatten().map(enqueue::Prepared::lane)
    }
}

/// Settles a batch.
pub(crate) async fn settle(_group: &mut Group, _batch: &[&Prepared]) -> Result<Verdicts<Settled>, Trouble> {
    Err(StoreError::unavailable("settle is not written yet").into())
}

/// Moves a leased message to where the transition says, with its history and counters.
#[expect(clippy::too_many_arguments, reason = "the whole of what a run's end consists of; two callers")]
pub(crate) async fn move_on(
    _group: &mut Group,
    _lane: &Lane,
    _lease: &LeaseRow,
    _id: MessageId,
    _outcome: &Outcome,
    _transition: &Transition,
    _rows: &[EffectRow],
    _last: Option<LastSettlement>,
) -> Result<(), Trouble> {
    Err(StoreError::unavailable("settle is not written yet").into())
}
