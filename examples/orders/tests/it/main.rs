//! What the guide shows is what is run here, by each driver: stored together, or not at all.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use orders::{Ship, TABLE, moving, ship, with_sqlx, with_tokio_postgres};
use tidegate::Tidegate;
use tidegate::postgres::{self, sqlx::PgPool};
use tidegate::store::Filter;
use tidegate_pgcluster::Cluster;

/// A database of its own, with the application's table and the store in it.
async fn database(name: &str) -> (String, Tidegate) {
    let url = Cluster::shared().database(name).unwrap();
    sql(name, "drop schema if exists tidegate cascade; drop table if exists orders");
    sql(name, TABLE);
    let tide = Tidegate::open(&url).await.unwrap();
    (url, tide)
}

fn sql(database: &str, statements: &str) -> String {
    Cluster::shared().sql(database, statements).unwrap_or_else(|error| panic!("{error}"))
}

/// How many rows there are of the application's, and of the store's.
fn rows(database: &str) -> (String, String) {
    let count = |table| sql(database, &format!("select count(*) from {table}")).trim().to_owned();
    let of_the_store = ["message", "key", "ready", "depth", "tally"].map(|table| count(format!("tidegate.{table}")));
    (count("orders".to_owned()), of_the_store.join(" "))
}

fn nothing() -> (String, String) {
    ("0".to_owned(), "0 0 0 0 0".to_owned())
}

/// Has the worker ship what is there, and says what came of this order.
async fn shipped(tide: &Tidegate, order: i64) -> String {
    let worker = tide.worker().handle(ship).start().await.unwrap();
    let sent = tide.enqueue(Ship { order }).await.unwrap();
    let answer = sent.answer(Duration::from_secs(60)).await.unwrap().completed().unwrap();
    worker.stop().await.unwrap();
    answer
}

/// Refuses what costs too much, at the last moment.
const TOO_DEAR: &str = "alter table orders add check (cents < 5000)";

#[tokio::test]
async fn with_tokio_postgres_an_order_is_placed_with_its_message_or_not_at_all() {
    let name = "orders_tokio_postgres";
    let (url, tide) = database(name).await;
    sql(name, TOO_DEAR);
    let mut client = postgres::connect(&url).await.unwrap();
    with_tokio_postgres::place(&tide, &mut client, 7, 9900).await.unwrap_err();
    assert_eq!(rows(name), nothing());
    with_tokio_postgres::place(&tide, &mut client, 7, 1200).await.unwrap();
    assert_eq!(rows(name).0, "1");
    assert_eq!(shipped(&tide, 7).await, "order 7 is on its way");
    tide.close().await;
}

#[tokio::test]
async fn with_sqlx_an_order_is_placed_with_its_message_or_not_at_all() {
    let name = "orders_sqlx";
    let (url, tide) = database(name).await;
    sql(name, TOO_DEAR);
    let pool = PgPool::connect(&url).await.unwrap();
    with_sqlx::place(&tide, &pool, 7, 9900).await.unwrap_err();
    assert_eq!(rows(name), nothing());
    with_sqlx::place(&tide, &pool, 7, 1200).await.unwrap();
    assert_eq!(rows(name).0, "1");
    assert_eq!(shipped(&tide, 7).await, "order 7 is on its way");
    pool.close().await;
    tide.close().await;
}

#[tokio::test]
async fn in_sql_an_order_is_placed_with_its_message_or_not_at_all() {
    let name = "orders_sql";
    let (_, tide) = database(name).await;
    let script = source("order.sql");
    sql(name, &script.replace("commit;", "rollback;"));
    assert_eq!(rows(name), nothing());
    let printed = sql(name, &script);
    assert!(printed.contains("msg_") && printed.contains("ready"), "{printed}");
    assert_eq!(rows(name).0, "1");
    assert_eq!(shipped(&tide, 7).await, "order 7 is on its way");
    tide.close().await;
}

/// Orders 1 and 2 were placed in the file: one is shipped, the other waits. What is placed again later is shipped once.
#[tokio::test]
async fn a_store_moves_from_a_file_to_postgresql_and_no_order_is_shipped_twice() {
    let name = "orders_moved";
    let directory = tempfile::tempdir().unwrap();
    let old = Tidegate::open(directory.path().join("orders.db")).await.unwrap();
    let first = shipped(&old, 1).await;
    old.enqueue(Ship { order: 2 }).await.unwrap();

    let (_, new) = database(name).await;
    let mut sent = Vec::new();
    for order in [1, 2, 3, 3, 2, 1] {
        sent.push(moving::place(&old, &new, order).await.unwrap());
    }
    let ids: Vec<_> = sent.iter().map(tidegate::Sent::id).collect();
    assert_eq!(ids[..3], [ids[5], ids[4], ids[3]], "the same message, whenever it is asked for");
    let workers = moving::work(&old, &new).await.unwrap();
    for (sent, order) in sent.iter().zip([1, 2, 3, 3, 2, 1]) {
        let answer = sent.answer(Duration::from_secs(60)).await.unwrap().completed().unwrap();
        assert_eq!(answer, format!("order {order} is on its way"));
    }
    assert_eq!(first, "order 1 is on its way");
    for worker in workers {
        worker.stop().await.unwrap();
    }
    // One message each, and none of them in both.
    let in_old = old.store().list(Filter { limit: 10, ..Filter::default() }).await.unwrap().len();
    assert_eq!((in_old, rows(name).1.split(' ').next().unwrap()), (2, "1"));
    old.close().await;
    new.close().await;
}

#[tokio::test]
async fn the_program_places_its_order_once() {
    let name = "orders_program";
    let (url, tide) = database(name).await;
    tide.close().await;
    let output = Command::new(env!("CARGO_BIN_EXE_orders")).arg(&url).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((lines[0], lines[2]), ("order 1 is placed", "order 1 is on its way"));
    assert!(lines[1].starts_with("not placed a second time: "), "{printed}");
    assert_eq!(rows(name).0, "1");
}

fn source(of: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(of)).unwrap()
}

/// Every line that a guide shows stands in a file that is run here, in that order and without another one between.
fn shows_what_is_run(guide: &str, files: &[&str]) -> usize {
    let run: Vec<String> = files.iter().map(|file| bare(&source(file))).collect();
    let guide = source(guide);
    let blocks = guide.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let shown: Vec<&str> = blocks.filter(|(info, _)| ["rust", "sql"].contains(info)).map(|(_, text)| text).collect();
    for text in &shown {
        assert!(run.iter().any(|run| run.contains(&bare(text))), "nobody runs this:\n{text}");
    }
    shown.len()
}

#[test]
fn the_guides_show_what_is_run() {
    let files = ["src/lib.rs", "src/with_tokio_postgres.rs", "src/with_sqlx.rs", "order.sql"];
    let shown = shows_what_is_run("../../docs/guides/enqueue-in-your-transaction.md", &files);
    assert_eq!(shown, 4, "a message, and one way for each driver");
    assert_eq!(shows_what_is_run("../../docs/guides/move-to-postgresql.md", &["src/moving.rs"]), 2);
}

/// Without layout and comments.
fn bare(text: &str) -> String {
    let code = text.lines().filter(|line| !line.trim().starts_with("//") && !line.trim().starts_with("--"));
    code.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}
