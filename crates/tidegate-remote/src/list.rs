//! `list`: `GET /v1/messages`, as many pages as were asked for.

use tidegate::StoreError;
use tidegate::lifecycle::State;
use tidegate::store::{Filter, Summary};
use tidegate_api::Page;

use crate::RemoteStore;
use crate::exchange::{Ask, Query};

/// The most messages that a page of a server holds. One that allows less says so, and is asked for that.
const PAGE: u32 = 1000;

impl RemoteStore {
    pub(crate) async fn list_all(&self, filter: Filter) -> Result<Vec<Summary>, StoreError> {
        let mut found: Vec<Summary> = Vec::new();
        let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
        let mut after = filter.after;
        while found.len() < limit {
            let left = u32::try_from(limit - found.len()).unwrap_or(u32::MAX);
            let mut query = filtered(&filter);
            query.add_some("after", after);
            query.add("limit", left.min(PAGE));
            let mut ask = Ask::get("list", format!("/v1/messages{query}"));
            if let Some(tenant) = &filter.tenant {
                ask = ask.of(tenant);
            }
            let page: Page = self.exchange.ask(ask).await?;
            found.extend(page.messages.into_iter().map(Summary::from));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(found)
    }
}

/// What a filter says that every list takes.
pub(crate) fn filtered(filter: &Filter) -> Query {
    let mut query = Query::default();
    if filter.tenant.is_none() {
        query.add("all_tenants", true);
    }
    query.add_some("queue", filter.queue.as_ref());
    query.add_some("kind", filter.kind.as_ref());
    if !filter.states.is_empty() {
        let states: Vec<&str> = filter.states.iter().copied().map(State::as_str).collect();
        query.add("state", states.join(","));
    }
    query.add_some("code", filter.code.as_ref());
    query.add_some("group", filter.group);
    if filter.discarded {
        query.add("discarded", true);
    }
    query
}
