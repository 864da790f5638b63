//! `operate`, `operations`: `/v1/operations`. Whoever asks takes the steps, as at a store of its own; the server goes on by
//! itself with what nobody steps any more.

use http::Method;
use tidegate::store::{NewOperation, Operate, Operation, Stepped};
use tidegate::{StoreError, StoreErrorKind};
use tidegate_api::{self as api, ActOnOperation, OperationAct, Operations};

use crate::RemoteStore;
use crate::exchange::{Ask, part};

/// The most operations that a server lists at once.
const MOST: u32 = 200;

impl RemoteStore {
    pub(crate) async fn operate_one(&self, request: Operate) -> Result<Stepped, StoreError> {
        const VERB: &str = "operate";
        let on = |name: &str, act, reason, actor| {
            let body = ActOnOperation { act, drive: false, reason, actor };
            Ask::with(VERB, Method::PATCH, format!("/v1/operations/{}", part(name)), &body)
        };
        let ask = match request {
            Operate::Begin(new) => {
                let NewOperation { name, selection, again, pace, act } = *new;
                let body = api::NewOperation {
                    name: Some(name),
                    selection: selection.into(),
                    again,
                    pace: pace.into(),
                    drive: false,
                    reason: act.reason,
                    actor: Some(act.actor),
                };
                Ask::post(VERB, "/v1/operations", &body)
            }
            Operate::Step { name } => on(&name, OperationAct::Step, String::new(), None),
            Operate::Cancel { name, act } => on(&name, OperationAct::Cancel, act.reason, Some(act.actor)),
            Operate::Resume { name, act } => on(&name, OperationAct::Resume, act.reason, Some(act.actor)),
        };
        let stepped = self.exchange.ask::<api::Stepped>(ask).await.map_err(|error| {
            // The server says it in words of HTTP.
            let is_unknown = error.kind() == StoreErrorKind::NotFound;
            if is_unknown { error.hint("operations are listed by: tidegate dead operations") } else { error }
        })?;
        Ok(stepped.into())
    }

    pub(crate) async fn operations_of(&self, name: Option<String>, limit: u32) -> Result<Vec<Operation>, StoreError> {
        const VERB: &str = "operations";
        if limit == 0 {
            return Ok(Vec::new());
        }
        if let Some(name) = name {
            let found = self.exchange.find::<api::Stepped>(Ask::get(VERB, format!("/v1/operations/{}", part(&name))));
            return Ok(found.await?.map(|stepped| stepped.operation.into()).into_iter().collect());
        }
        let ask = Ask::get(VERB, format!("/v1/operations?all_tenants=true&limit={}", limit.min(MOST)));
        let told: Operations = self.exchange.ask(ask).await?;
        Ok(told.operations.into_iter().map(Operation::from).collect())
    }
}
