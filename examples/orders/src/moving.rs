//! From a file to PostgreSQL: the file's store is asked first for as long as it keeps answers.

use tidegate::error::StoreError;
use tidegate::{Options, Sent, Tidegate, Worker};

use crate::{Ship, ship};

/// Ships an order once, whichever of the two stores was asked to.
///
/// Nothing new comes into the old store any more, so what it says between the look and the enqueue stays true.
///
/// # Errors
/// As [`Tidegate::enqueue`]'s. What became of it is not known then: ask again.
pub async fn place(old: &Tidegate, new: &Tidegate, order: i64) -> Result<Sent<Ship>, StoreError> {
    let message = Ship { order };
    let asked = old.prepare(&message, &Options::default())?;
    match old.store().find(asked.tenant, asked.queue, asked.key).await? {
        Some(id) => Ok(old.sent(id)),
        None => new.enqueue(message).await,
    }
}

/// A worker for each store: what the old one has is finished where it began.
///
/// # Errors
/// A worker's that could not start.
pub async fn work(old: &Tidegate, new: &Tidegate) -> Result<[Worker; 2], StoreError> {
    Ok([old.worker().handle(ship).start().await?, new.worker().handle(ship).start().await?])
}
