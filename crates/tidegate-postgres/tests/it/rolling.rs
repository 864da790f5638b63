//! What a worker cannot read yet costs its claims nothing: another kind or version is another lane, which it does not ask.

use tidegate_core::Store as _;
use tidegate_core::id::Kind;
use tidegate_core::message::NewMessage;

use crate::engine::sql;
use crate::fixture::{Place, claim, message, open, run};

/// Messages in a lane that nobody serves.
const BACKLOG: usize = 10_000;
const CLAIMS: usize = 40;

/// Pages that a store of its own looked at for so many claims of one message each.
async fn pages_of_claims(place: &Place, prefix: &str) -> u64 {
    let store = open(&place.schema.url()).await;
    let batch = (0..CLAIMS).map(|n| message(&format!("{prefix}-{n}"))).collect();
    store.enqueue(batch).await.expect("answered");
    store.close().await;
    // What a session has seen is told at its end.
    let before = pages(place);
    let store = open(&place.schema.url()).await;
    for _ in 0..CLAIMS {
        assert_eq!(claim(&store, 1).await.len(), 1);
    }
    store.close().await;
    pages(place) - before
}

/// Pages of the tables of what waits that anybody looked at, once every other session has ended.
fn pages(place: &Place) -> u64 {
    let of = |schema: &str| {
        format!(
            "select coalesce(sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit), 0)
             from pg_statio_user_tables where schemaname = '{schema}' and relname in ('ready', 'sched', 'lane')"
        )
    };
    let ask = of(place.schema.name());
    // Sessions end a moment after they were closed.
    let (mut last, mut same) = (sql(&ask), 0);
    for _ in 0..200 {
        let now = sql(&format!("select pg_sleep(0.02); {ask}"));
        let now = now.lines().last().unwrap_or_default().to_owned();
        same = if now.trim() == last.trim() { same + 1 } else { 0 };
        last = now;
        if same == 25 {
            return last.trim().parse().expect("a number");
        }
    }
    panic!("somebody else is at work in {}", place.schema.name());
}

#[test]
fn a_backlog_of_another_kind_or_a_newer_version_costs_the_claims_of_others_nothing() {
    run(async {
        let place = Place::new().await;
        for table in ["ready", "sched", "lane"] {
            // What it looks at would be counted with what claims do.
            sql(&format!("alter table {} set (autovacuum_enabled = off)", place.name(table)));
        }
        let alone = pages_of_claims(&place, "alone").await;

        let other_kind = |n: usize| NewMessage { kind: Kind::new("fresh").unwrap(), ..message(&format!("fresh-{n}")) };
        let newer = |n: usize| NewMessage { version: 2, ..message(&format!("newer-{n}")) };
        for chunk in 0..BACKLOG / 1000 {
            let range = chunk * 500..(chunk + 1) * 500;
            place.store.enqueue(range.clone().map(other_kind).collect()).await.unwrap();
            place.store.enqueue(range.map(newer).collect()).await.unwrap();
        }
        place.store.close().await;
        let beside = pages_of_claims(&place, "beside").await;
        println!("{CLAIMS} claims looked at {alone} pages alone, and at {beside} beside a backlog");
        // Two pages more for each: the index of a larger table is a level deeper, and so may be that of its keys.
        assert!(beside <= alone + alone / 10 + 2 * CLAIMS as u64, "{beside} pages beside a backlog, {alone} without");
    });
}
