//! With sqlx, of the version that the engine has: the feature `sqlx` of the crate `tidegate`.

use anyhow::bail;
use tidegate::postgres::sqlx::{self, PgPool};
use tidegate::{Engine, Options, Tidegate};

use crate::Ship;

/// Stores an order and has it shipped, or neither.
///
/// # Errors
/// Nothing was stored.
pub async fn place(tide: &Tidegate, pool: &PgPool, order: i64, cents: i64) -> anyhow::Result<()> {
    let Engine::Postgres(store) = tide.engine() else { bail!("the store is not on PostgreSQL") };
    let ship = tide.prepare(&Ship { order }, &Options::default())?;

    let mut transaction = pool.begin().await?;
    store.enqueue_in_sqlx(&mut transaction, vec![ship]).await?.remove(0)?;
    let insert = sqlx::query("insert into orders (id, cents) values ($1, $2)").bind(order).bind(cents);
    insert.execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}
