//! The SQL function of every other language: it must mean what the engine means, to the byte.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tidegate_core::canonical::{Fingerprint, canonicalize};
use tidegate_core::id::{IdempotencyKey, Kind, MessageId};
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::{Due, Failure, NewMessage, Priority};
use tidegate_core::store::Enqueued;
use tidegate_core::{Store as _, StoreErrorKind, Timestamp};
use tokio_postgres::{Client, Row};

use crate::engine::sql;
use crate::fixture::{Place, claim, connect, end, kind_of, message, ready, run, with_payload};

/// Calls the function with the fixture's queue and kind, a key and a payload, and further arguments.
async fn enqueue(
    client: &Client,
    place: &Place,
    key: &str,
    payload: &str,
    more: &str,
) -> Result<Row, tokio_postgres::Error> {
    let call = format!("select * from {}('work', 'work', $1, $2::text{more})", place.name("enqueue"));
    client.query_one(&call, &[&key, &payload]).await
}

fn id(row: &Row) -> MessageId {
    row.get::<_, String>("id").parse().expect("an id as the command prints it")
}

/// JSON values whose texts both readers take: PostgreSQL has no character zero.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let text = "[^\u{0}]{0,8}";
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Into::into),
        text.prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::btree_map("[^\u{0}]{0,5}", inner, 0..5)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

#[test]
fn it_finds_the_canonical_text_and_the_fingerprint_that_rust_finds() {
    run(async {
        let place = Place::new().await;
        let client = connect().await;
        let canonical = format!("select {}($1::text::json)", place.name("canonical"));
        let canonical = client.prepare(&canonical).await.unwrap();
        let fingerprint =
            format!("select {}(convert_to('work', 'UTF8'), convert_to($1::text, 'UTF8'))", place.name("digest16"));
        let fingerprint = client.prepare(&fingerprint).await.unwrap();
        let kind = Kind::new("work").unwrap();
        let mut runner = TestRunner::default();
        let compare = async |text: &str| {
            let ours = canonicalize(text).unwrap();
            let theirs: String = client.query_one(&canonical, &[&text]).await.unwrap().get(0);
            assert_eq!(theirs, ours, "{text}");
            let theirs: Vec<u8> = client.query_one(&fingerprint, &[&ours]).await.unwrap().get(0);
            assert_eq!(theirs, Fingerprint::of(&kind, &ours).0, "{text}");
        };
        for _ in 0..400 {
            let value = json().new_tree(&mut runner).unwrap().current();
            compare(&value.to_string()).await;
            compare(&serde_json::to_string_pretty(&value).unwrap()).await;
        }
        let long = format!("1{}", "0".repeat(500));
        for text in [
            "1e23",
            "5e-324",
            "-0.0",
            "0e-400",
            "1.50",
            "15e-1",
            "0.15E+1",
            "1e2",
            "1e-20",
            "1.5e-21",
            "1.5e-22",
            "9007199254740993",
            "-12345678901234567890123",
            "1.7976931348623157e308",
            long.as_str(),
            " [ ] ",
            "{ }",
            r#""\u00e4\/\n\u0041\ud83d\ude00""#,
            "\"\u{7f}\u{80}\u{2028}\"",
            "\"\\u0001\\t\\\\\\\"\"",
            r#"{"b":1,"a":2,"B":3,"ä":4,"":5,"aa":6,"\ud83d\ude00":7,"\uffff":8}"#,
        ] {
            compare(text).await;
        }
        let deep = |n: usize| "[".repeat(n) + "1" + &"]".repeat(n);
        compare(&deep(64)).await;
        for refused in [
            deep(65).as_str(),
            r#"{"x":{"a":1,"b":2,"a":1}}"#,
            r#"{"a":1,"\u0061":2}"#,
            "[0.1000000000000000055]",
            "1e400",
            "1e-400",
            "9007199254740993.0",
            "",
            "{",
            "[1,]",
            "01",
            "1.",
            "nan",
            "\"\\ud800\"",
            "1 2",
        ] {
            assert!(canonicalize(refused).is_err(), "{refused}");
            client.query_one(&canonical, &[&refused]).await.expect_err(refused);
        }
    });
}

#[test]
fn it_finds_the_key_that_rust_finds() {
    run(async {
        let place = Place::new().await;
        let client = connect().await;
        let hash = client.prepare(&format!("select {}($1::text)", place.name("key_hash"))).await.unwrap();
        let uuid = "0190d6a0-7b1c-7def-8123-456789abcdef";
        let (loud, dense) = (uuid.to_uppercase(), uuid.replace('-', ""));
        let mut keys: Vec<String> = [uuid, &loud, &dense, "k", "deposit-17", "~!\"'\\"].map(str::to_owned).to_vec();
        let mut runner = TestRunner::default();
        keys.extend((0..200).map(|_| "[!-~]{1,255}".new_tree(&mut runner).unwrap().current()));
        for key in keys {
            let theirs: Vec<u8> = client.query_one(&hash, &[&key]).await.unwrap().get(0);
            assert_eq!(theirs, IdempotencyKey::new(key.as_str()).unwrap().hash(), "{key}");
        }
    });
}

#[test]
fn a_message_of_the_function_and_one_of_the_engine_meet_under_their_key() {
    run(async {
        let place = Place::new().await;
        let client = connect().await;
        let row = enqueue(&client, &place, "by-sql", " { \"cents\" : 12e2 } ", "").await.unwrap();
        assert!(row.get::<_, bool>("is_new"));
        let known = place.store.enqueue(vec![message("by-sql")]).await.unwrap().remove(0).unwrap();
        assert!(matches!(known, Enqueued::Existing { id: found, .. } if found == id(&row)), "{known:?}");
        let other = place.store.enqueue(vec![with_payload("by-sql", "{\"cents\": 1201}")]).await.unwrap().remove(0);
        assert_eq!(kind_of(other), StoreErrorKind::KeyConflict);

        let Enqueued::New { id: by_rust } =
            place.store.enqueue(vec![message("by-rust")]).await.unwrap().remove(0).unwrap()
        else {
            panic!("it is new");
        };
        let row = enqueue(&client, &place, "by-rust", "{\"cents\":1200.0}", ", priority => 1, due_in => '1 hour'")
            .await
            .unwrap();
        assert_eq!((id(&row), row.get::<_, bool>("is_new")), (by_rust, false));
        assert_eq!((row.get("state"), row.get("ignored")), ("ready", vec!["priority", "due"]));
        let error = enqueue(&client, &place, "by-rust", "{\"cents\":1}", "").await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!((error.code().code(), error.detail()), ("TGKEY", Some(by_rust.to_string().as_str())));
    });
}

#[test]
fn what_the_function_stores_is_what_the_engine_would_have_stored() {
    run(async {
        let place = Place::new().await;
        let client = connect().await;
        let due = Timestamp::from_millis(4_102_444_800_000);
        let deadline = Timestamp::from_millis(4_102_444_900_000);
        let given = NewMessage {
            version: 1,
            priority: Priority::new(2).unwrap(),
            due: Due::At(due),
            deadline: Some(deadline),
            max_age: Some(std::time::Duration::from_secs(90)),
            headers: [("traceparent".to_owned(), "00-ab\"c".to_owned())].into(),
            ..message("by-rust")
        };
        let Enqueued::New { id: by_rust } = place.store.enqueue(vec![given]).await.unwrap().remove(0).unwrap() else {
            panic!("it is new");
        };
        let more = ", priority => 2, due_at => '2100-01-01 00:00:00+00', deadline => '2100-01-01 00:01:40+00', \
                    max_age => '90 s', headers => '{\"traceparent\": \"00-ab\\\"c\"}'";
        let row = enqueue(&client, &place, "by-sql", "{\"cents\": 1200}", more).await.unwrap();
        let views = place.store.inspect(vec![by_rust, id(&row)]).await.unwrap();
        let [Some(ours), Some(theirs)] = &views[..] else { panic!("both are there") };
        let (mut ours, mut theirs) = (ours.message.clone(), theirs.message.clone());
        assert!(theirs.id > ours.id && theirs.enqueued_at >= ours.enqueued_at);
        assert_eq!((theirs.flow, theirs.key.as_str()), (theirs.id, "by-sql"));
        for message in [&mut ours, &mut theirs] {
            message.id = MessageId::from_i64(1);
            message.flow = message.id;
            message.key = IdempotencyKey::new("either").unwrap();
            message.enqueued_at = Timestamp::EPOCH;
        }
        assert_eq!(theirs, ours);
        // And a plain one can be claimed.
        enqueue(&client, &place, "plain", "1", "").await.unwrap();
        let lease = claim(&place.store, 5).await.remove(0);
        assert_eq!((lease.message.key.as_str(), &*lease.message.payload), ("plain", "1"));
        let stats = place.store.stats().await.unwrap();
        let queue = &stats.queues[0];
        assert_eq!((queue.ready, queue.scheduled, queue.leased), (0, 2, 1));
    });
}

#[test]
fn a_transaction_that_rolls_back_leaves_nothing() {
    run(async {
        let place = Place::new().await;
        let mut client = connect().await;
        let tx = client.transaction().await.unwrap();
        tx.batch_execute(&format!("create table {} (id bigint)", place.name("orders"))).await.unwrap();
        tx.query_one(&format!("select {}('work', 'work', 'k', '1')", place.name("enqueue")), &[]).await.unwrap();
        tx.rollback().await.unwrap();
        let stats = place.store.stats().await.unwrap();
        assert!(stats.queues.is_empty() && stats.tallies.is_empty(), "{stats:?}");
        let tx = client.transaction().await.unwrap();
        tx.query_one(&format!("select {}('work', 'work', 'k', '1')", place.name("enqueue")), &[]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(ready(&place.store).await, 1);
    });
}

#[test]
fn a_key_that_has_its_answer_is_told_it_byte_for_byte() {
    run(async {
        let place = Place::new().await;
        let client = connect().await;
        enqueue(&client, &place, "good", "1", "").await.unwrap();
        end(&place.store, Outcome::Completed { result: " {\"id\" : 1.50} ".into(), orphans: false }).await;
        let row = enqueue(&client, &place, "good", "1", "").await.unwrap();
        assert_eq!(
            (row.get("is_new"), row.get("state"), row.get("result")),
            (false, "completed", Some(" {\"id\" : 1.50} "))
        );
        assert_eq!(row.get::<_, Option<&str>>("failed_code"), None);

        enqueue(&client, &place, "bad", "1", "").await.unwrap();
        let failure = Failure::new("declined", "no funds");
        let declined = Outcome::Permanent { failure, compensated: false, orphans: false };
        end(&place.store, declined).await;
        let row = enqueue(&client, &place, "bad", "1", "").await.unwrap();
        assert_eq!((row.get("state"), row.get::<_, Option<&str>>("result")), (State::Failed.as_str(), None));
        assert_eq!((row.get("failed_code"), row.get("failed_detail")), (Some("declined"), Some("no funds")));
    });
}

#[test]
fn what_is_refused_is_an_error_with_a_code_and_a_hint() {
    run(async {
        let place = Place::new().await;
        let client = connect().await;
        let function = place.name("enqueue");
        #[rustfmt::skip]
        let table = [
            ("'a b', 'k', 'key', '1'",                                  "TGINV", "invalid queue name \"a b\""),
            ("'q', '', 'key', '1'",                                     "TGINV", "invalid kind \"\""),
            ("'q', 'k', 'a key', '1'",                                  "TGINV", "invalid idempotency key \"a key\""),
            ("'q', 'k', E'key\\n', '1'",                                "TGINV", "invalid idempotency key"),
            ("'q', 'k', null, '1'",                                     "TGINV", "invalid idempotency key"),
            ("'q', 'k', 'key', '{'",                                    "TGINV", "payload refused"),
            ("'q', 'k', 'key', '\"\\u0000\"'",                          "TGINV", "payload refused"),
            ("'q', 'k', 'key', '1e400'",                                "TGINV", "payload refused"),
            ("'q', 'k', 'key', '[0.1000000000000000055]'",              "TGINV", "does not survive a double at $[0]"),
            ("'q', 'k', 'key', '\"' || repeat('x', 1048576) || '\"'",   "TGINV", "over the limit of 1048576"),
            ("'q', 'k', 'key', '1', priority => 10",                    "TGINV", "invalid priority 10"),
            ("'q', 'k', 'key', '1', version => 0",                      "TGINV", "invalid payload version 0"),
            ("'q', 'k', 'key', '1', max_age => '0'",                    "TGINV", "invalid max_age"),
            ("'q', 'k', 'key', '1', due_in => '1 s', due_at => now()",  "TGINV", "due_at and due_in"),
            ("'q', 'k', 'key', '1', deadline => '2000-01-01'",          "TGINV", "is over before the message is due"),
            ("'q', 'k', 'key', '1', key_time => '2000-01-01'",          "TGSTA", "may have been done and forgotten"),
        ];
        for (arguments, code, expected) in table {
            let refused = client.query(&format!("select {function}({arguments})"), &[]).await;
            let error = refused.expect_err(arguments);
            let error = error.as_db_error().unwrap();
            assert_eq!(error.code().code(), code, "{arguments}: {error}");
            assert!(error.message().contains(expected), "{arguments}: {error}");
        }
        assert_eq!(ready(&place.store).await, 0);
        sql(&format!("update {} set max_depth = 1", place.name("queue")));
        client.query(&format!("select {function}('q', 'k', 'a', '1')"), &[]).await.unwrap();
        sql(&format!("update {} set max_depth = 1", place.name("queue")));
        let error = client.query(&format!("select {function}('q', 'k', 'b', '1')"), &[]).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!((error.code().code(), error.message()), ("TGFUL", "queue q holds its 1 messages"));
        assert!(error.hint().is_some_and(|hint| hint.contains("tidegate queue limit")), "{error}");
        // A known one is told all the same.
        client.query(&format!("select {function}('q', 'k', 'a', '1')"), &[]).await.unwrap();
    });
}

#[test]
fn an_application_needs_no_right_on_the_tables() {
    run(async {
        let place = Place::new().await;
        let mut client = connect().await;
        let role = place.name("app").replace('.', "_");
        let schema = place.schema.name().to_owned();
        client.batch_execute(&format!("create role {role}; grant usage on schema {schema} to {role}")).await.unwrap();
        let tx = client.transaction().await.unwrap();
        tx.batch_execute(&format!("set local role {role}")).await.unwrap();
        tx.query_one(&format!("select {schema}.enqueue('work', 'work', 'k', jsonb_build_object('cents', 1200))"), &[])
            .await
            .unwrap();
        place.store.enqueue_in(&tx, vec![message("m")]).await.unwrap().remove(0).unwrap();
        tx.commit().await.unwrap();
        assert_eq!(ready(&place.store).await, 2);
        let tx = client.transaction().await.unwrap();
        tx.batch_execute(&format!("set local role {role}")).await.unwrap();
        let error = tx.query(&format!("select * from {schema}.message"), &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501");
        tx.rollback().await.unwrap();
        client.batch_execute(&format!("drop owned by {role}; drop role {role}")).await.unwrap();
    });
}
