//! How much a message writes into the server's log, batched: counted, so that it is the same on every machine.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use tidegate_core::Store as _;
use tidegate_core::id::IdempotencyKey;
use tidegate_core::message::{NewMessage, Payload};
use tidegate_pgcluster::{Cluster, Settings};
use tidegate_postgres::{Options, PostgresStore};

use crate::fixture::{claim, completion, kind, queue, run};

const BATCH: u32 = 250;
const BATCHES: u32 = 24;
/// What is promised, with everything: key, body, lease, result, counts and commits.
const MOST_BYTES: u64 = 1300;

/// As clients send them that want their keys to be neighbours: a time, a counter, and chance behind; 200 bytes of payload.
fn new(number: u32) -> NewMessage {
    let chance = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let key = format!("018bcfe5-{:04x}-7{:03x}-8000-{:012x}", number >> 12, number & 0xfff, chance >> 16);
    let around = "{\"key\":\"\",\"filler\":\"\"}".len() + key.len();
    let payload = format!("{{\"key\":\"{key}\",\"filler\":\"{}\"}}", "x".repeat(200 - around));
    NewMessage::new(queue(), kind(), IdempotencyKey::new(key).unwrap(), Payload::from_json(payload).unwrap())
}

async fn lives(store: &PostgresStore, first: u32) {
    for verdict in store.enqueue((first..first + BATCH).map(new).collect()).await.unwrap() {
        verdict.unwrap();
    }
    let leases = claim(store, BATCH).await;
    assert_eq!(leases.len(), BATCH as usize);
    for verdict in store.settle(leases.iter().map(completion).collect()).await.unwrap() {
        verdict.unwrap();
    }
}

#[test]
fn a_message_in_a_batch_writes_no_more_into_the_servers_log_than_is_promised() {
    run(async {
        // Alone on its server, and far from a checkpoint: what is written whole after one depends on how far apart they are.
        let configuration = ["checkpoint_timeout = '1h'", "max_wal_size = '4GB'", "autovacuum = off"];
        let settings =
            Settings { durable: true, configuration: configuration.map(str::to_owned).to_vec(), within: None };
        let cluster = Cluster::start(settings).unwrap();
        let store = PostgresStore::open(&cluster.url(), Options::default()).await.unwrap();
        let mut number = 0;
        for _ in 0..BATCHES {
            lives(&store, number).await;
            number += BATCH;
        }
        let position = || {
            let ask = "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint";
            cluster.sql("postgres", ask).unwrap().trim().parse::<u64>().unwrap()
        };
        let before = position();
        for _ in 0..BATCHES {
            lives(&store, number).await;
            number += BATCH;
        }
        let bytes = (position() - before) / u64::from(BATCH * BATCHES);
        store.close().await;
        println!("{bytes} bytes a message");
        assert!(bytes <= MOST_BYTES, "{bytes} bytes a message; {MOST_BYTES} are promised");
        assert!(bytes > 300, "{bytes} bytes a message: less than its payload twice cannot be");
    });
}
