//! `groups`: `GET /v1/groups`.

use tidegate::StoreError;
use tidegate::store::{FailureGroup, Filter};
use tidegate_api::Groups;

use crate::RemoteStore;
use crate::exchange::Ask;
use crate::list::filtered;

/// The most groups that a server tells of.
const MOST: u32 = 10_000;

impl RemoteStore {
    pub(crate) async fn groups_of(&self, filter: Filter) -> Result<Vec<FailureGroup>, StoreError> {
        if filter.limit == 0 {
            return Ok(Vec::new());
        }
        // Neither is looked at by the contract, and a server has no such member.
        let filter = Filter { group: None, discarded: false, ..filter };
        let mut query = filtered(&filter);
        query.add("limit", filter.limit.min(MOST));
        let mut ask = Ask::get("groups", format!("/v1/groups{query}"));
        if let Some(tenant) = &filter.tenant {
            ask = ask.of(tenant);
        }
        let told: Groups = self.exchange.ask(ask).await?;
        Ok(told.groups.into_iter().map(FailureGroup::from).collect())
    }
}
