//! Tokens, as they are asked for and told of. The token itself is told once, to whoever had it made.

use serde::{Deserialize, Serialize};
use tidegate::token::{Glob, Scope, TokenHash, TokenRecord};
use tidegate::{Timestamp, TokenName};
use utoipa::ToSchema;

use crate::schema;

/// Asks for a token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// Its name: who acts, in the audit.
    #[schema(value_type = schema::Name)]
    pub name: TokenName,
    /// What it allows: an action (produce, work, read, reveal, operate, admin) and a pattern of queues each.
    #[schema(value_type = Vec<String>, examples(json!(["produce:payments.*", "read"])))]
    pub scopes: Vec<Scope>,
    /// For which tenants: a pattern; empty is the tenant that needs no name.
    #[serde(default)]
    #[schema(value_type = String, examples(""))]
    pub tenant: Glob,
    /// When it ends by itself; never, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Time>)]
    pub expires_at: Option<Timestamp>,
    /// The SHA-256, in hexadecimal, of a token that the client made itself from 256 random bits: then none is made here, and
    /// none travels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Sha256>)]
    pub sha256: Option<TokenHash>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

/// Asks for another token in the place of one.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct RotateToken {
    /// How long the old one goes on, in milliseconds; a day, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap_ms: Option<u64>,
    /// When the new one ends by itself; never, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Time>)]
    pub expires_at: Option<Timestamp>,
    /// The SHA-256, in hexadecimal, of a token that the client made itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Sha256>)]
    pub sha256: Option<TokenHash>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

/// What is known of a token. The token itself is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its name.
    #[schema(value_type = schema::Name)]
    pub name: TokenName,
    /// The SHA-256 of it, in hexadecimal.
    #[schema(value_type = schema::Sha256)]
    pub sha256: TokenHash,
    /// What it allows.
    #[schema(value_type = Vec<String>)]
    pub scopes: Vec<Scope>,
    /// For which tenants.
    #[schema(value_type = String)]
    pub tenant: Glob,
    /// When it was made.
    #[schema(value_type = schema::Time)]
    pub created_at: Timestamp,
    /// When it ends by itself.
    #[schema(value_type = Option<schema::Time>)]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[schema(value_type = Option<schema::Time>)]
    pub revoked_at: Option<Timestamp>,
}

impl From<TokenRecord> for Token {
    fn from(record: TokenRecord) -> Self {
        let TokenRecord { name, hash, scopes, tenant, created_at, expires_at, revoked_at } = record;
        Self { name, sha256: hash, scopes, tenant, created_at, expires_at, revoked_at }
    }
}

impl From<Token> for TokenRecord {
    fn from(token: Token) -> Self {
        let Token { name, sha256, scopes, tenant, created_at, expires_at, revoked_at } = token;
        Self { name, hash: sha256, scopes, tenant, created_at, expires_at, revoked_at }
    }
}

/// Tokens.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Tokens {
    /// By name and age.
    pub tokens: Vec<Token>,
}

/// A token that was made, and everything kept under its name.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MadeToken {
    /// The token, told this once; none if the client made it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// By age.
    pub tokens: Vec<Token>,
}
