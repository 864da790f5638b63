//! Without tokens a server is its own machine's alone.

use std::sync::Arc;

use http::{Method, StatusCode};
use tidegate_server::{Demand, Guard};

use crate::scopes::token;
use crate::stage::Stage;

#[tokio::test]
async fn a_client_of_this_machine_needs_no_token_until_there_is_one() {
    let stage = Stage::new().await;
    assert_eq!(stage.get("/v1/messages").await.status, StatusCode::OK);
    let token = token(&stage.tide, "first", &["read"], "").await;
    let bearer = format!("Bearer {token}");
    let with = [("authorization", &*bearer)];
    assert_eq!(stage.send(Method::GET, "/v1/messages", &with, "").await.status, StatusCode::OK);
    let began = tokio::time::Instant::now();
    while stage.get("/v1/messages").await.status == StatusCode::OK {
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "nobody asks for it");
        tokio::task::yield_now().await;
    }
    stage.get("/v1/messages").await.problem("unauthorized");
}

#[tokio::test]
async fn a_page_whose_name_was_made_to_point_here_is_not_taken_for_this_machine() {
    let stage = Stage::new().await;
    for headers in ["Host: evil.example", "Host: localhost\r\nX-Forwarded-For: 192.0.2.1"] {
        let reply =
            stage.raw(format!("GET /v1/messages HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert!(reply.starts_with("HTTP/1.1 401 "), "{headers}: {reply}");
    }
    let reply = stage.raw(b"GET /v1/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
}

#[tokio::test]
async fn nobody_is_asked_where_tokens_are_switched_off() {
    let stage = Stage::with(|mut serving| {
        serving.guard = Guard::new(Arc::clone(serving.tide.store()), Demand::Never);
        serving
    })
    .await;
    token(&stage.tide, "first", &["read"], "").await;
    let reply = stage.raw(b"GET /v1/messages HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
}
