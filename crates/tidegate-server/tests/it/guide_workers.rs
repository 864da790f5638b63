//! The guide for workers over HTTP is done as it is written: each request is sent, each answer has what the page shows of it.
//!
//! What a server makes up (ids, tokens, keys) stands on the page as an example. The first answer that shows it says what it is
//! this time, and every later request is sent with that.

use std::collections::BTreeMap;

use http::Method;
use serde_json::Value;

use crate::stage::Stage;
use crate::thin::enqueue;

const PAGE: &str = include_str!("../../../../docs/guides/workers-over-http.md");

/// The blocks of the page, with what stands behind their fences.
fn blocks() -> Vec<(String, String)> {
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in PAGE.lines() {
        match line.strip_prefix("```") {
            Some(info) if !inside => {
                blocks.push((info.to_owned(), String::new()));
                inside = true;
            }
            Some(_) => inside = false,
            None if inside => blocks.last_mut().unwrap().1.push_str(&format!("{line}\n")),
            None => {}
        }
    }
    blocks
}

/// Whether a text is one that a server makes up.
fn is_made_up(text: &str) -> bool {
    let is_hex = |text: &str| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    text.starts_with("msg_") || is_hex(text) || text.split_once('.').is_some_and(|(_, nonce)| is_hex(nonce))
}

/// Fails unless all that is expected is there; learns what was made up.
fn compare(expected: &Value, got: &Value, path: &str, made_up: &mut BTreeMap<String, String>) {
    match (expected, got) {
        (Value::Object(expected), Value::Object(got)) => {
            for (name, value) in expected {
                let member = got.get(name).unwrap_or_else(|| panic!("{path}.{name} is not in {got:?}"));
                compare(value, member, &format!("{path}.{name}"), made_up);
            }
        }
        (Value::Array(expected), Value::Array(got)) => {
            assert_eq!(expected.len(), got.len(), "{path}: {got:?}");
            for (index, (expected, got)) in expected.iter().zip(got).enumerate() {
                compare(expected, got, &format!("{path}[{index}]"), made_up);
            }
        }
        (Value::String(expected), Value::String(got)) if is_made_up(expected) => {
            let known = made_up.entry(expected.clone()).or_insert_with(|| got.clone());
            assert_eq!(known, got, "{path}: {expected} stands for two things");
        }
        (expected, got) => assert_eq!(expected, got, "{path}"),
    }
}

#[tokio::test]
async fn the_guide_for_workers_is_done_as_it_is_written() {
    let stage = Stage::new().await;
    enqueue(&stage, "capture", "dep-1").await;
    let mut made_up = BTreeMap::new();
    let (mut answer, mut sent, mut compared) = (Value::Null, 0, 0);
    for (info, text) in blocks() {
        match info.as_str() {
            "http" => {
                // The longest first: a key is not to be found in a token.
                let mut known: Vec<(&String, &String)> = made_up.iter().collect();
                known.sort_by_key(|(example, _)| std::cmp::Reverse(example.len()));
                let text = known.into_iter().fold(text, |text, (example, now)| text.replace(example, now));
                let (head, body) = text.split_once("\n\n").unwrap();
                let (method, path) = head.split_once(' ').unwrap();
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                let headers = [("content-type", "application/json")];
                answer = stage.send(method, path, &headers, body.trim().to_owned()).await.of(200);
                sent += 1;
            }
            "json" => {
                compare(&serde_json::from_str(&text).unwrap(), &answer, "$", &mut made_up);
                compared += 1;
            }
            other => panic!("nobody does {other:?}"),
        }
    }
    assert!(sent > 8 && compared > 7, "{sent} requests and {compared} answers: has the page changed its form?");
    let states: Vec<_> = stage.everything().await.iter().map(|message| message.state.as_str()).collect();
    assert_eq!(states, ["completed", "ready"], "the deposit is captured, and its credit follows");
}
