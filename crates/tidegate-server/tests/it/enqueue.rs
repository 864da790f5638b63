//! One message.

use serde_json::json;

use crate::stage::Stage;

const DEPOSITS: &str = "/v1/queues/deposits/messages";

#[tokio::test]
async fn a_message_is_stored_byte_for_byte_before_it_is_answered() {
    let stage = Stage::new().await;
    let body = r#"{"kind":"capture","payload":{ "cents" : 9007199254740993, "f": 1.50 }}"#;
    let reply = stage.post_under("\"d-1\"", DEPOSITS, body).await;
    let sent = reply.of(202);
    assert_eq!((&sent["result"], &sent["state"]), (&json!("added"), &json!("ready")));
    assert_eq!(reply.header("location").unwrap(), format!("/v1/messages/{}", sent["id"].as_str().unwrap()));
    assert!(reply.header("idempotency-replayed").is_none());
    let id = sent["id"].as_str().unwrap().parse().unwrap();
    let stored = stage.tide.store().inspect(vec![id]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(&*stored.message.payload, r#"{ "cents" : 9007199254740993, "f": 1.50 }"#);
    assert_eq!((stored.message.queue.as_str(), stored.message.key.as_str()), ("deposits", "d-1"));
}
