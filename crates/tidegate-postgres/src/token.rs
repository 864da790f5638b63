//! What is kept of tokens: read by whoever lets clients in, changed with an audit row in the same commit.

use tidegate_core::store::ChangeToken;
use tidegate_core::token::{self, TokenChange, TokenHash, TokenRecord};

use crate::group::Group;
use crate::read::Snapshot;
use crate::row;
use crate::trouble::Trouble;

/// All of them, by name and age.
pub(crate) async fn tokens(snapshot: &Snapshot) -> Result<Vec<TokenRecord>, Trouble> {
    const TOKENS: &str = "-- tokens: as many as there are clients
        select * from tidegate.token order by name collate \"C\", created_at, hash";
    snapshot.conn.query(TOKENS, &[]).await?.iter().map(row::token).collect()
}

/// Has the core decide, and keeps what it decided.
pub(crate) async fn change(group: &mut Group, request: &ChangeToken) -> Result<Vec<TokenRecord>, Trouble> {
    const TURN: &str = "-- tokens: a name that is not there yet has no row to lock
        select pg_advisory_xact_lock(hashtextextended('tidegate.token', $1))";
    const KNOWN: &str = "-- tokens: of this name, and whoever has this digest
        select * from tidegate.token where name = $1 or hash = $2";
    const STORE: &str = "-- tokens: all of a name's, read and written in one transaction
        insert into tidegate.token (hash, name, scopes, tenant, created_at, expires_at, revoked_at)
        values ($1, $2, $3, $4, $5, $6, $7)
        on conflict (hash) do update set expires_at = excluded.expires_at, revoked_at = excluded.revoked_at";
    let hash = match &request.change {
        TokenChange::Add { hash, .. } | TokenChange::Rotate { hash, .. } => Some(&TokenHash::as_bytes(hash)[..]),
        TokenChange::Revoke => None,
    };
    group.conn.query(TURN, &[&0_i64]).await?;
    let known = group.conn.query(KNOWN, &[&request.name.as_str(), &hash]).await?;
    let known: Vec<TokenRecord> = known.iter().map(row::token).collect::<Result<_, _>>()?;
    let changed = token::change(&known, &request.name, &request.change, group.now)?;
    let Some(done) = &changed.done else { return Ok(changed.records) };
    for record in changed.records.iter().filter(|record| !known.contains(record)) {
        let scopes = serde_json::to_string(&record.scopes).expect("scopes are plain data");
        let expires_at = record.expires_at.map(|at| at.as_millis());
        let revoked_at = record.revoked_at.map(|at| at.as_millis());
        group
            .conn
            .execute(
                STORE,
                &[
                    record.hash.as_bytes(),
                    &record.name.as_str(),
                    &scopes,
                    &record.tenant.as_str(),
                    &record.created_at.as_millis(),
                    &expires_at,
                    &revoked_at,
                ],
            )
            .await?;
    }
    group.audit(&request.act, "token", None, None, done);
    Ok(changed.records)
}
