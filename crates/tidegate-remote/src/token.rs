//! `tokens`, `change_token`: `/v1/tokens`. A token itself never travels: the client makes it, and sends its digest.

use std::time::Duration;

use tidegate::StoreError;
use tidegate::store::ChangeToken;
use tidegate::token::{TokenChange, TokenRecord};
use tidegate_api::{MadeToken, NewToken, RotateToken, Tokens};

use crate::RemoteStore;
use crate::exchange::{Ask, Query, part};

impl RemoteStore {
    pub(crate) async fn all_tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let told: Tokens = self.exchange.ask(Ask::get("tokens", "/v1/tokens")).await?;
        Ok(told.tokens.into_iter().map(TokenRecord::from).collect())
    }

    pub(crate) async fn change(&self, request: ChangeToken) -> Result<Vec<TokenRecord>, StoreError> {
        const VERB: &str = "change_token";
        let ChangeToken { name, change, act } = request;
        let (reason, actor) = (act.reason, Some(act.actor));
        let address = format!("/v1/tokens/{}", part(name.as_str()));
        let kept = match change {
            TokenChange::Add { hash, scopes, tenant, expires_at } => {
                let body = NewToken { name, scopes, tenant, expires_at, sha256: Some(hash), reason, actor };
                self.exchange.ask::<MadeToken>(Ask::post(VERB, "/v1/tokens", &body)).await?.tokens
            }
            TokenChange::Rotate { hash, overlap, expires_at } => {
                let overlap_ms = Some(u64::try_from(overlap.min(LONGEST).as_millis()).unwrap_or(u64::MAX));
                let body = RotateToken { overlap_ms, expires_at, sha256: Some(hash), reason, actor };
                self.exchange.ask::<MadeToken>(Ask::post(VERB, format!("{address}/rotate"), &body)).await?.tokens
            }
            TokenChange::Revoke => {
                let mut query = Query::default();
                query.add("reason", reason);
                query.add_some("actor", actor);
                self.exchange.ask::<Tokens>(Ask::delete(VERB, format!("{address}{query}"))).await?.tokens
            }
        };
        Ok(kept.into_iter().map(TokenRecord::from).collect())
    }
}

/// Longer than anything lasts, and a number of milliseconds all the same.
const LONGEST: Duration = Duration::from_secs(1 << 40);
