//! What each verb says over HTTP is what the store itself says.

use tidegate::lifecycle::Outcome;
use tidegate::message::NewMessage;
use tidegate::store::{Enqueued, ExplainFacts, Filter, Settle};
use tidegate::{IdempotencyKey, MessageId, State, Store, Tenant};

use crate::lost::{claim, settlement};
use crate::stage::{Stage, message, queue};

#[tokio::test]
async fn what_was_stored_is_found_listed_and_explained_alike() {
    let stage = Stage::new().await;
    let (local, remote) = (stage.tide.store(), &stage.remote);
    let verdicts = remote.enqueue(vec![message("a"), message("b"), message("a")]).await.unwrap();
    let ids: Vec<MessageId> = (verdicts.iter())
        .map(|verdict| {
            let (Enqueued::New { id } | Enqueued::Existing { id, .. }) = verdict.as_ref().unwrap() else {
                panic!("{verdict:?}")
            };
            *id
        })
        .collect();
    assert_eq!(ids[0], ids[2]);
    let key = || IdempotencyKey::new("b").unwrap();
    assert_eq!(remote.find(Tenant::default(), queue("work"), key()).await.unwrap(), Some(ids[1]));
    assert_eq!(remote.find(Tenant::default(), queue("elsewhere"), key()).await.unwrap(), None);
    assert_eq!(remote.inspect(ids.clone()).await.unwrap(), local.inspect(ids.clone()).await.unwrap());
    assert_eq!(remote.flow(ids[0]).await.unwrap(), local.flow(ids[0]).await.unwrap());
    assert_eq!(remote.flow(MessageId::from_i64(1)).await.unwrap(), []);
    let nobody = MessageId::from_i64(1);
    assert_eq!(remote.inspect(vec![nobody]).await.unwrap(), [None]);
    assert_eq!(remote.explain(nobody).await.unwrap(), None);
    let here = local.explain(ids[1]).await.unwrap().unwrap();
    let there = remote.explain(ids[1]).await.unwrap().unwrap();
    // Of another moment, and otherwise the same.
    let there = ExplainFacts { now: here.now, ..there };
    assert_eq!(there, here);
    assert_eq!((there.ahead, there.paused), (1, false));
}

#[tokio::test]
async fn a_list_is_of_all_tenants_and_as_long_as_it_was_asked_for() {
    let stage = Stage::new().await;
    let theirs = NewMessage { tenant: Tenant::new("acme").unwrap(), ..message("theirs") };
    let many = (0..1200).map(|n| message(&format!("m-{n}"))).chain([theirs]).collect();
    assert!(stage.remote.enqueue(many).await.unwrap().iter().all(Result::is_ok));
    for filter in [
        Filter { limit: u32::MAX, ..Filter::default() },
        Filter { limit: 1100, ..Filter::default() },
        Filter { limit: 0, ..Filter::default() },
        Filter { tenant: Some(Tenant::new("acme").unwrap()), limit: 9, ..Filter::default() },
        Filter { states: vec![State::Dead, State::Parked], limit: 9, ..Filter::default() },
        Filter { queue: Some(queue("elsewhere")), limit: 9, ..Filter::default() },
    ] {
        let (there, here) = (stage.remote.list(filter.clone()).await, stage.tide.store().list(filter.clone()).await);
        assert_eq!(there.unwrap(), here.unwrap(), "{filter:?}");
    }
}

#[tokio::test]
async fn what_follows_from_a_message_goes_on_in_its_trace_though_nobody_said_so() {
    let stage = Stage::new().await;
    let mark = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("traceparent".to_owned(), mark.to_owned())].into();
    stage.remote.enqueue(vec![NewMessage { headers, ..message("parent") }]).await.unwrap().remove(0).unwrap();
    let lease = stage.remote.claim(claim(1)).await.unwrap().leases.remove(0);
    let completed = settlement(&lease, Outcome::Completed { result: "1".into(), orphans: false });
    let settle = Settle { then: vec![message("next")], ..completed };
    let settled = stage.remote.settle(vec![settle]).await.unwrap().remove(0).unwrap();
    let next = stage.tide.store().inspect(settled.follow_ups).await.unwrap().remove(0).unwrap();
    assert_eq!(next.message.headers.get("traceparent").map(String::as_str), Some(mark));
}
