//! What is kept of tokens: read by whoever lets clients in, changed with an audit row in the same commit.

use rusqlite::{Connection, params};
use tidegate_core::id::TokenName;
use tidegate_core::store::ChangeToken;
use tidegate_core::token::{self, TokenChange, TokenHash, TokenRecord};

use crate::group::Group;
use crate::row;
use crate::seal;
use crate::trouble::Trouble;

/// All of them, by name and age.
pub(crate) fn tokens(conn: &Connection) -> Result<Vec<TokenRecord>, Trouble> {
    const TOKENS: &str = "-- tokens: as many as there are clients
        select * from tide_token order by name, created_at, hash";
    let mut statement = conn.prepare_cached(TOKENS)?;
    let mut rows = statement.query([])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(row::token(row)?);
    }
    Ok(records)
}

/// Has the core decide, and keeps what it decided.
pub(crate) fn change(group: &mut Group<'_>, request: &ChangeToken) -> Result<Vec<TokenRecord>, Trouble> {
    const STORE: &str = "-- tokens: all of a name's, read and written in one transaction
        insert or replace into tide_token (hash, name, scopes, tenant, created_at, expires_at, revoked_at, seal)
        values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let known = known(group.conn, &request.name, &request.change)?;
    let changed = token::change(&known, &request.name, &request.change, group.now)?;
    let Some(done) = &changed.done else { return Ok(changed.records) };
    for record in changed.records.iter().filter(|record| !known.contains(record)) {
        let scopes = serde_json::to_string(&record.scopes).expect("scopes are plain data");
        let values = params![
            record.hash.as_bytes(),
            record.name.as_str(),
            scopes,
            record.tenant.as_str(),
            record.created_at.as_millis(),
            record.expires_at.map(|at| at.as_millis()),
            record.revoked_at.map(|at| at.as_millis()),
        ];
        seal::execute(&mut group.conn.prepare_cached(STORE)?, seal::TOKEN, values)?;
    }
    group.audit(&request.act, "token", None, None, done)?;
    Ok(changed.records)
}

/// What is kept under the name, and under the digest.
fn known(conn: &Connection, name: &TokenName, change: &TokenChange) -> Result<Vec<TokenRecord>, Trouble> {
    const KNOWN: &str = "-- tokens: of this name, and whoever has this digest
        select * from tide_token where name = ?1 or hash = ?2";
    let hash = match change {
        TokenChange::Add { hash, .. } | TokenChange::Rotate { hash, .. } => Some(TokenHash::as_bytes(hash)),
        TokenChange::Revoke => None,
    };
    let mut statement = conn.prepare_cached(KNOWN)?;
    let mut rows = statement.query(params![name.as_str(), hash])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(row::token(row)?);
    }
    Ok(records)
}
