//! A schema of a PostgreSQL server for one run of the demo or the torture: it must be new, and it goes with the run.

use anyhow::{Context, ensure};
use tidegate::{Server, postgres};

use crate::books;

/// Refuses a schema that is there already.
///
/// # Errors
/// It is there, or the server cannot be asked.
///
/// # Cancel safety
/// Safe: it only reads.
pub async fn is_unused(server: &Server) -> anyhow::Result<()> {
    const THERE: &str = "select to_regnamespace($1) is not null";
    let schema = postgres::schema_of(server.reveal())?;
    let client = postgres::connect(server.reveal()).await.with_context(|| format!("cannot connect to {server}"))?;
    let there: bool = client.query_one(THERE, &[&schema]).await.context("cannot look at the schemas")?.get(0);
    ensure!(
        !there,
        "schema {schema} of {server} is there already; hint: a run makes a store of its own: name a schema that there is \
         not, or none"
    );
    Ok(())
}

/// Takes the store and the wallet of a run away.
///
/// # Errors
/// The server refuses, or cannot be asked.
///
/// # Cancel safety
/// Dropped, they may have been taken away.
pub async fn remove(server: &Server) -> anyhow::Result<()> {
    let schema = postgres::schema_of(server.reveal())?;
    let client = postgres::connect(server.reveal()).await.with_context(|| format!("cannot connect to {server}"))?;
    for schema in [books::schema_of_wallet(&schema), schema] {
        client
            .batch_execute(&format!("drop schema if exists \"{schema}\" cascade"))
            .await
            .with_context(|| format!("cannot remove schema {schema}"))?;
    }
    Ok(())
}
