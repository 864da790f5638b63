//! `orders postgres://…`: places order 1 by each driver, and waits until it is on its way.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::time::Duration;

use anyhow::Context as _;
use orders::{Ship, TABLE, ship, with_sqlx, with_tokio_postgres};
use tidegate::Tidegate;
use tidegate::postgres::{self, sqlx::PgPool};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::args().nth(1).context("usage: orders postgres://user@host/database")?;
    let mut client = postgres::connect(&url).await?;
    client.batch_execute(TABLE).await?;
    let tide = Tidegate::open(&url).await?; // makes the schema `tidegate` if it is not there
    let worker = tide.worker().handle(ship).start().await?;

    match with_tokio_postgres::place(&tide, &mut client, 1, 1200).await {
        Ok(()) => println!("order 1 is placed"),
        Err(error) => println!("order 1 was not placed: {error}"),
    }
    // The id is taken, so its transaction rolls back, and the message that it had enqueued was never there.
    if let Err(error) = with_sqlx::place(&tide, &PgPool::connect(&url).await?, 1, 9900).await {
        println!("not placed a second time: {error}");
    }
    let sent = tide.enqueue(Ship { order: 1 }).await?; // known already: this only finds it
    println!("{}", sent.answer(Duration::from_secs(5)).await?.completed()?);
    worker.stop().await?;
    tide.close().await;
    Ok(())
}
