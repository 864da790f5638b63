//! With tokio-postgres, of the version that the engine has.

use anyhow::bail;
use tidegate::postgres::tokio_postgres::Client;
use tidegate::{Engine, Options, Tidegate};

use crate::Ship;

/// Stores an order and has it shipped, or neither.
///
/// # Errors
/// Nothing was stored.
pub async fn place(tide: &Tidegate, client: &mut Client, order: i64, cents: i64) -> anyhow::Result<()> {
    let Engine::Postgres(store) = tide.engine() else { bail!("the store is not on PostgreSQL") };
    let ship = tide.prepare(&Ship { order }, &Options::default())?;

    let transaction = client.transaction().await?;
    store.enqueue_in(&transaction, vec![ship]).await?.remove(0)?;
    transaction.execute("insert into orders (id, cents) values ($1, $2)", &[&order, &cents]).await?;
    transaction.commit().await?;
    Ok(())
}
