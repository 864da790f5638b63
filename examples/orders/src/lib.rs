//! An order and the message that ships it, stored together or not at all: one way for each driver. And how the store moves
//! from a file to PostgreSQL.

pub mod moving;
#[cfg(feature = "sqlx")]
pub mod with_sqlx;
pub mod with_tokio_postgres;

use serde::{Deserialize, Serialize};
use tidegate::{Context, Handled, Message};

/// The table of the application, in the database that the store is in.
pub const TABLE: &str = "create table if not exists orders (id bigint primary key, cents bigint not null)";

/// Ships an order.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ship {
    /// Which one.
    pub order: i64,
}

impl Message for Ship {
    const KIND: &'static str = "ship";
    type Answer = String;
    fn key(&self) -> String {
        format!("order-{}", self.order)
    }
}

/// The handler.
///
/// # Errors
/// Never: nothing is really shipped.
pub async fn ship(_: Context, message: Ship) -> Handled<String> {
    Ok(format!("order {} is on its way", message.order))
}
