//! `journal`: `POST /v1/leases/journal`. An intent is not sent again once it may have arrived: what is sent at most once would
//! find its own intent there, and wait for a person. The run ends instead, and its settlement says that nothing was sent.

use tidegate::StoreError;
use tidegate::journal::EffectRow;
use tidegate::store::{Journal, JournalWrite, Verdicts};
use tidegate_api::{JournalItem, JournalResults, WriteJournal};

use crate::RemoteStore;
use crate::batch::Batch;

const JOURNAL: Batch<Journal, WriteJournal, JournalResults, EffectRow> = Batch {
    verb: "journal",
    path: "/v1/leases/journal",
    size: |journal| journal.before.iter().chain([&journal.write]).map(size).sum(),
    how: |ask, writes| if writes.iter().any(intends) { ask.once() } else { ask },
    body: |writes| WriteJournal { writes: writes.iter().map(JournalItem::from).collect() },
    // A row that was written under this lease has the whole of its token.
    verdicts: |answer, writes| {
        let results = answer.results.into_iter().zip(writes);
        results.map(|(result, write)| result.into_verdict(write.token)).collect()
    },
};

impl RemoteStore {
    pub(crate) async fn journal_all(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
        self.exchange.batch(&JOURNAL, batch).await
    }
}

fn intends(journal: &Journal) -> bool {
    journal.before.iter().chain([&journal.write]).any(|write| matches!(write, JournalWrite::Intent { .. }))
}

/// About how long a write is.
pub(crate) fn size(write: &JournalWrite) -> usize {
    serde_json::to_vec(write).map_or(0, |text| text.len())
}
