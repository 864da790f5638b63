//! Whose things somebody looks at: those of the tenant that the request is about, or of every one that its token may read.

use serde::Deserialize;
use tidegate::{QueueName, Tenant};

use crate::principal::{Action, Caller};
use crate::problem::Problem;

/// Whose.
#[derive(Debug, Clone, Copy, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Whose {
    /// Of every tenant that this token may read, and not only of the one that the request is about.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    pub(crate) all_tenants: bool,
}

impl Whose {
    /// Demands the right to look; at one queue, if one is named. Of all tenants it is asked for each item besides.
    pub(crate) fn demand(self, caller: &Caller, queue: Option<&QueueName>) -> Result<(), Problem> {
        match queue {
            queue if self.all_tenants => caller.may_anywhere(Action::Read, queue),
            Some(queue) => caller.may(Action::Read, &caller.tenant, queue),
            None => caller.may_somewhere(Action::Read),
        }
    }

    /// Whether it is asked for, and may be seen.
    pub(crate) fn includes(self, caller: &Caller, tenant: &Tenant, queue: &QueueName) -> bool {
        self.is(caller, tenant) && caller.sees(Action::Read, tenant, queue)
    }

    /// Whether something of this tenant is asked for.
    pub(crate) fn is(self, caller: &Caller, tenant: &Tenant) -> bool {
        self.all_tenants || *tenant == caller.tenant
    }

    /// The tenant of which alone something is asked for.
    pub(crate) fn only(self, caller: &Caller) -> Option<Tenant> {
        (!self.all_tenants).then(|| caller.tenant.clone())
    }
}
