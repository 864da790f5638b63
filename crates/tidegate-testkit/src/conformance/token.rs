//! Tokens: what is kept of them, and how they change. What a change means is decided by the core and tested there.

use tidegate_core::store::{ChangeToken, Note};
use tidegate_core::token::{Glob, TokenChange, TokenHash, TokenRecord};
use tidegate_core::{StoreError, StoreErrorKind, TokenName};

use super::stage::*;
use crate::Engine;

async fn change(stage: &Stage<'_>, name: &str, change: TokenChange) -> Result<Vec<TokenRecord>, StoreError> {
    let name = TokenName::new(name).expect("the kit's names are valid");
    stage.store.change_token(ChangeToken { name, change, act: act("asked for") }).await
}

fn add(stage: &Stage<'_>, secret: &str) -> TokenChange {
    TokenChange::Add {
        hash: TokenHash::of(secret),
        scopes: vec!["produce:work".parse().expect("a scope"), "read".parse().expect("a scope")],
        tenant: Glob::new("acme-*").expect("a pattern"),
        expires_at: Some(stage.now().after(DAY)),
    }
}

/// All of it is there after a restart, and for every handle.
pub async fn a_token_is_kept_as_it_was_given(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    assert_eq!(stage.store.tokens().await, Ok(vec![]));
    let made = stage.now();
    let added = change(&stage, "app", add(&stage, "tg_one")).await.expect("a new name");
    let other = stage.other_handle().await;
    assert_eq!(other.tokens().await.expect("answered"), added);
    stage.reopen().await;
    let kept = stage.store.tokens().await.expect("answered").remove(0);
    assert_eq!(kept.hash, TokenHash::of("tg_one"));
    assert_eq!((kept.created_at, kept.expires_at, kept.revoked_at), (made, Some(made.after(DAY)), None));
    assert_eq!(kept.scopes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["produce:work", "read:*"]);
    assert_eq!(kept.tenant.as_str(), "acme-*");
    assert!(kept.is_live(made) && !kept.is_live(made.after(DAY)));
}

/// Two live at a time; a revocation ends both. By name, then by age.
pub async fn tokens_are_rotated_revoked_and_told_in_order(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    change(&stage, "b", add(&stage, "tg_b")).await.expect("a new name");
    change(&stage, "a", add(&stage, "tg_a1")).await.expect("a new name");
    stage.clock.advance(MINUTE);
    let rotate = TokenChange::Rotate { hash: TokenHash::of("tg_a2"), overlap: HOUR, expires_at: None };
    let both = change(&stage, "a", rotate).await.expect("a live one");
    assert_eq!(both.iter().map(|record| record.hash).collect::<Vec<_>>(), ["tg_a1", "tg_a2"].map(TokenHash::of));
    assert_eq!(both[0].expires_at, Some(stage.now().after(HOUR)));
    let all = stage.store.tokens().await.expect("answered");
    assert_eq!(all.iter().map(|record| record.hash).collect::<Vec<_>>(), ["tg_a1", "tg_a2", "tg_b"].map(TokenHash::of));
    change(&stage, "a", TokenChange::Revoke).await.expect("live ones");
    let live = |record: &TokenRecord| record.is_live(stage.now());
    let left: Vec<TokenRecord> = stage.store.tokens().await.expect("answered").into_iter().filter(live).collect();
    assert_eq!(left.iter().map(|record| record.name.as_str()).collect::<Vec<_>>(), ["b"]);
}

/// One audit row for each change, in its commit, and neither token nor digest in it.
pub async fn each_change_of_a_token_leaves_one_audit_row_however_often_it_is_repeated(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for _ in 0..3 {
        change(&stage, "app", add(&stage, "tg_one")).await.expect("the same again");
    }
    for _ in 0..3 {
        change(&stage, "app", TokenChange::Revoke).await.expect("the same again");
    }
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    assert_eq!(audit.iter().map(|row| row.act.as_str()).collect::<Vec<_>>(), ["token", "token"]);
    assert!(audit[0].detail.contains("app: added") && audit[0].detail.contains("produce:work"), "{audit:?}");
    assert!(audit[1].detail.contains("app: revoked"), "{audit:?}");
    let digest = TokenHash::of("tg_one").to_string();
    assert!(audit.iter().all(|row| !row.detail.contains("tg_one") && !row.detail.contains(&digest)), "{audit:?}");
}

/// What is refused changes nothing and leaves no row.
pub async fn a_change_of_a_token_that_is_refused_changes_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let known = change(&stage, "app", add(&stage, "tg_one")).await.expect("a new name");
    let rows = stage.store.audit(0, 100).await.expect("answered").len();
    let table = [
        ("app", add(&stage, "tg_two"), StoreErrorKind::Conflict),
        ("other", add(&stage, "tg_one"), StoreErrorKind::Conflict),
        ("nobody", TokenChange::Revoke, StoreErrorKind::NotFound),
    ];
    for (name, wish, expected) in table {
        assert_eq!(change(&stage, name, wish).await.expect_err("refused").kind(), expected, "{name}");
    }
    assert_eq!(stage.store.tokens().await, Ok(known));
    assert_eq!(stage.store.audit(0, 100).await.expect("answered").len(), rows);
}

/// Of several that add one name at the same moment one is told that it did.
pub async fn one_name_added_at_the_same_moment_has_one_token(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let other = stage.other_handle().await;
    let name = || TokenName::new("app").expect("the kit's names are valid");
    let of = |secret: &str| ChangeToken { name: name(), change: add(&stage, secret), act: act("asked for") };
    let (one, two) = (of("tg_one"), of("tg_two"));
    let note = Note { what: "x".into(), messages: vec![], detail: String::new(), act: act("asked") };
    let (first, second, noted) = tokio::join!(stage.store.change_token(one), other.change_token(two), other.note(note));
    noted.expect("noted");
    assert_eq!([first.is_ok(), second.is_ok()].into_iter().filter(|done| *done).count(), 1, "{first:?} {second:?}");
    assert_eq!(stage.store.tokens().await.expect("answered").len(), 1);
}
