//! `declare`: `PUT /v1/kinds/{kind}/policy`, one after the other.

use http::Method;
use serde::de::IgnoredAny;
use tidegate::{Kind, Policy, StoreError};
use tidegate_api::KindPolicy;

use crate::RemoteStore;
use crate::exchange::{Ask, part};

impl RemoteStore {
    pub(crate) async fn declare_all(&self, policies: Vec<(Kind, Policy)>) -> Result<(), StoreError> {
        for (kind, policy) in policies {
            let path = format!("/v1/kinds/{}/policy", part(kind.as_str()));
            let ask = Ask::with("declare", Method::PUT, path, &KindPolicy::from(&policy));
            let _whole: IgnoredAny = self.exchange.ask(ask).await?;
        }
        Ok(())
    }
}
