//! `audit`, `note`: `/v1/audit`.

use serde::de::IgnoredAny;
use tidegate::StoreError;
use tidegate::store::{AuditEntry, Note};
use tidegate_api::{self as api, AuditPage};

use crate::RemoteStore;
use crate::exchange::Ask;

/// The most entries of one page.
const PAGE: usize = 1000;

impl RemoteStore {
    pub(crate) async fn audit_after(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let mut entries: Vec<AuditEntry> = Vec::new();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut after = Some(after);
        while let Some(from) = after.filter(|_| entries.len() < limit) {
            let left = (limit - entries.len()).min(PAGE);
            let ask = Ask::get("audit", format!("/v1/audit?after={from}&limit={left}&all_tenants=true"));
            let page: AuditPage = self.exchange.ask(ask).await?;
            entries.extend(page.entries.into_iter().map(AuditEntry::from));
            after = page.next;
        }
        Ok(entries)
    }

    pub(crate) async fn note_one(&self, note: Note) -> Result<(), StoreError> {
        let Note { what, messages, detail, act } = note;
        let body = api::Note { what, messages, detail, reason: act.reason, actor: Some(act.actor) };
        let _noted: IgnoredAny = self.exchange.ask(Ask::post("note", "/v1/audit", &body)).await?;
        Ok(())
    }
}
