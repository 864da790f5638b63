//! Noting acts that change nothing.

use tidegate_core::MessageId;
use tidegate_core::store::{Act, NOTED_ONCE_WITHIN, Note};

use super::stage::*;
use crate::Engine;

/// One row for each message, with its queue; the message is as it was.
pub async fn a_note_leaves_an_audit_row_for_each_of_its_messages_and_changes_nothing(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let first = stage.put(message("first")).await;
    let second = stage.put(message("second")).await;
    let before = stage.view(first).await;
    let note =
        Note { what: "reveal".into(), messages: vec![first, second], detail: "payload".into(), act: act("looked") };
    stage.store.note(note).await.expect("noted");
    stage.reopen().await;
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    let told: Vec<_> = audit.iter().map(|row| (row.act.as_str(), row.message, row.queue.clone())).collect();
    assert_eq!(told, [("reveal", Some(first), Some(queue("work"))), ("reveal", Some(second), Some(queue("work")))]);
    assert!(audit.iter().all(|row| row.actor == "tester" && row.reason == "looked" && row.detail == "payload"));
    assert!(audit.iter().all(|row| row.tenant == Some(tidegate_core::Tenant::default())));
    assert_eq!(stage.view(first).await, before);
}

/// A note on nothing in particular, and one on what is gone.
pub async fn a_note_on_no_message_or_on_one_that_is_gone_is_kept_as_well(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let nobody = MessageId::from_i64(7);
    for messages in [vec![], vec![nobody]] {
        let note = Note { what: "export".into(), messages, detail: String::new(), act: act("asked") };
        stage.store.note(note).await.expect("noted");
    }
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    let told: Vec<_> = audit.iter().map(|row| (row.act.as_str(), row.message, row.queue.clone())).collect();
    assert_eq!(told, [("export", None, None), ("export", Some(nobody), None)]);
}

/// The same note again, as after a lost reply, is one note. Another text, another actor or another message is another; and
/// so is the same one later: whoever looks again looks again.
pub async fn a_note_that_is_repeated_stands_in_the_audit_once(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let first = stage.put(message("first")).await;
    let second = stage.put(message("second")).await;
    let note = |messages: Vec<MessageId>, detail: &str, actor: &str| Note {
        what: "reveal".into(),
        messages,
        detail: detail.into(),
        act: Act { actor: actor.to_owned(), reason: "looked".to_owned() },
    };
    for (messages, detail, actor) in [
        (vec![first], "payload", "ada"),
        (vec![first], "payload", "ada"),
        (vec![first, second], "payload", "ada"),
        (vec![second, first], "payload", "ada"),
        (vec![first], "value", "ada"),
        (vec![first], "payload", "bob"),
        (vec![], "payload", "bob"),
        (vec![], "payload", "bob"),
    ] {
        stage.store.note(note(messages, detail, actor)).await.expect("noted");
        stage.clock.advance(MILLI);
    }
    stage.reopen().await;
    stage.store.note(note(vec![first], "payload", "ada")).await.expect("noted");
    let told = async |stage: &Stage<'_>| -> Vec<(Option<MessageId>, String, String)> {
        let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
        audit.into_iter().map(|row| (row.message, row.detail, row.actor)).collect()
    };
    let row = |message, detail: &str, actor: &str| (message, detail.to_owned(), actor.to_owned());
    let mut expected = vec![
        row(Some(first), "payload", "ada"),
        row(Some(second), "payload", "ada"),
        row(Some(first), "value", "ada"),
        row(Some(first), "payload", "bob"),
        row(None, "payload", "bob"),
    ];
    assert_eq!(told(&stage).await, expected);
    stage.clock.advance(NOTED_ONCE_WITHIN);
    stage.store.note(note(vec![first], "payload", "ada")).await.expect("noted");
    expected.push(row(Some(first), "payload", "ada"));
    assert_eq!(told(&stage).await, expected);
}
