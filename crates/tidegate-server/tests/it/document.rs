//! The document, the pages, and whether they say what the router does.

use std::collections::BTreeSet;

use http::Method;
use serde_json::Value;
use tidegate_api::ProblemType;

use crate::stage::Stage;

const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH];

/// Some value for each hole of an address.
fn filled(template: &str) -> String {
    let mut parts = Vec::new();
    for part in template.split('/') {
        parts.push(match part {
            "{id}" => "msg_01jcz4t6q8000",
            "{slug}" => "queue-full",
            "{file}" => "style.css",
            hole if hole.starts_with('{') => "some",
            fixed => fixed,
        });
    }
    parts.join("/")
}

#[tokio::test]
async fn every_address_of_the_document_is_there_with_its_methods_and_no_others() {
    let stage = Stage::new().await;
    let document = stage.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 10, "{}", paths.len());
    for (template, item) in paths {
        let documented: BTreeSet<String> = item.as_object().unwrap().keys().cloned().collect();
        for method in METHODS {
            let reply = stage.send(method.clone(), &filled(template), &[], "").await;
            let is_documented = documented.contains(&method.as_str().to_lowercase());
            assert_eq!(reply.status != 405, is_documented, "{method} {template} answers {}", reply.status);
            if !is_documented {
                reply.problem("method-not-allowed");
                let allowed = reply.header("allow").unwrap_or_default().to_owned();
                for known in &documented {
                    assert!(allowed.to_lowercase().contains(known), "{template} allows {allowed:?}, not {known}");
                }
            }
        }
    }
}

#[tokio::test]
async fn the_document_is_whole_and_the_same_as_the_one_made_without_a_server() {
    let stage = Stage::new().await;
    let served = stage.get("/openapi.json").await;
    assert_eq!(served.header("content-type"), Some("application/json"));
    let document = served.json();
    assert_eq!(document, serde_json::to_value(tidegate_server::openapi()).unwrap());
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    // No reference leads nowhere, no two operations share a name, each is explained.
    let mut references = BTreeSet::new();
    references_in(&document, &mut references);
    assert!(references.len() > 10, "{references:?}");
    for reference in references {
        assert!(document.pointer(&reference[1..]).is_some(), "{reference} is not in the document");
    }
    let mut names = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(names.insert(operation["operationId"].to_string()), "{method} {path} has the name of another");
            assert!(operation["summary"].is_string(), "{method} {path} is not explained");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let content = response["content"].as_object().unwrap_or_else(|| panic!("{method} {path} {status}"));
                let is_problem = content.contains_key("application/problem+json");
                assert_eq!(is_problem, status.as_str() >= "400", "{method} {path} {status}");
            }
        }
    }
}

fn references_in(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                found.insert(reference.clone());
            }
            members.values().for_each(|member| references_in(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references_in(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn every_problem_type_has_a_page_for_people_and_one_for_programs() {
    let stage = Stage::new().await;
    let all = stage.get("/problems").await.of(200);
    assert_eq!(all.as_array().unwrap().len(), ProblemType::ALL.len());
    for kind in ProblemType::ALL {
        let about = stage.get(&kind.path()).await.of(200);
        assert_eq!((&about["type"], about["status"].as_u64()), (&Value::from(kind.path()), Some(kind.status().into())));
        assert!(about["about"].as_str().unwrap().len() > 30, "{about}");
        let accept = [("accept", "text/html,application/xhtml+xml,*/*;q=0.8")];
        let page = stage.send(Method::GET, &kind.path(), &accept, "").await;
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        assert!(page.text().contains(kind.title()), "{}", page.text());
    }
}

#[tokio::test]
async fn the_page_comes_whole_from_this_server() {
    let stage = Stage::new().await;
    let page = stage.get("/docs").await;
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for (file, media_type) in [("docs/style.css", "text/css"), ("docs/script.js", "text/javascript")] {
        assert!(page.text().contains(file), "the page does not load {file}");
        let part = stage.get(&format!("/{file}")).await;
        assert!(part.header("content-type").unwrap().starts_with(media_type));
        assert_eq!(part.header("x-content-type-options"), Some("nosniff"));
    }
}

#[tokio::test]
async fn what_only_wants_the_head_gets_no_body() {
    let stage = Stage::new().await;
    let request = "HEAD /docs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = stage.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}
