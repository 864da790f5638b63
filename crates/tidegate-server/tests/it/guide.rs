//! The requests of the guide for operators are sent as they stand there, one after the other, to a server with what the guide
//! speaks of.

use std::path::Path;

use http::Method;

use crate::operators::{kill, put};
use crate::stage::{Reply, Stage};

const GUIDE: &str = "docs/guides/operate-over-http.md";
const RUN: &str = "<!-- run by crates/tidegate-server/tests/it/guide.rs -->";

/// The blocks that this test runs, each a list of requests: method, address, body.
fn requests(page: &str) -> Vec<(Method, String, String)> {
    let mut requests = Vec::new();
    for block in page.split(RUN).skip(1) {
        let block = block.trim_start().strip_prefix("```http\n").expect("a block of requests follows");
        let (block, _) = block.split_once("```").unwrap();
        for request in block.split("\n\n") {
            let (first, body) = request.trim().split_once('\n').unwrap_or((request.trim(), ""));
            let (method, path) = first.split_once(' ').unwrap();
            requests.push((method.parse().unwrap(), path.to_owned(), body.to_owned()));
        }
    }
    requests
}

/// What the answer has to be: the guide says of some that they may be refused, and why.
fn expected(method: &Method, path: &str, body: &str) -> &'static [u16] {
    match (method.as_str(), path) {
        ("POST", "/v1/operations") => &[202],
        // It has not stopped here, or is done before the guide comes to call it off.
        ("PATCH", path) if path.starts_with("/v1/operations/") && !body.contains("step") => &[200, 409],
        (_, _) => &[200],
    }
}

#[tokio::test]
async fn the_requests_of_the_guide_for_operators_are_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join(GUIDE)).unwrap();
    let stage = Stage::new().await;
    put(&stage.tide, "", "deposit", 1).await;
    let dead = kill(&stage.tide, "", "payout", 3, "missing field `currency`").await;
    let groups = stage.get("/v1/groups").await.of(200);
    let group = groups["groups"][0]["id"].as_str().unwrap();
    let requests = requests(&page);
    assert!(requests.len() >= 15, "only {} requests: has their form changed?", requests.len());
    for (method, path, body) in requests {
        let fill = |text: &str| text.replace("GROUP", group).replace("ID", &dead[0].to_string());
        let (path, body) = (fill(&path), fill(&body));
        let headers = [("content-type", "application/json")];
        let headers = if body.is_empty() { &headers[..0] } else { &headers[..] };
        let reply: Reply = stage.send(method.clone(), &path, headers, body.clone()).await;
        let (status, of) = (reply.status.as_u16(), expected(&method, &path, &body));
        assert!(of.contains(&status), "{method} {path} {body} answers {status}: {}", reply.text());
    }
}
