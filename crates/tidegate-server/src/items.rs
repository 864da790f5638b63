//! The items of a batch: each is read by itself and has a verdict of its own, and one that is wrong holds no other back.

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tidegate::StoreError;
use tidegate::store::Verdicts;

use crate::body::malformed;
use crate::enqueue_many::enough;
use crate::problem::Problem;
use crate::serving::Serving;
use crate::strict::{self, Wrong};

/// Reads the items that stand under a member of the body.
///
/// # Errors
/// `too-large` for all of them, when there are too many.
pub(crate) fn each<T: DeserializeOwned>(
    serving: &Serving,
    member: &str,
    raw: Vec<Box<RawValue>>,
) -> Result<Vec<Result<T, Problem>>, Problem> {
    enough(raw.len(), serving.limits.batch)?;
    let read = |(index, raw): (usize, Box<RawValue>)| {
        strict::read(raw.get().as_bytes(), serving.limits.depth).map_err(|wrong| {
            let path = wrong.path.replacen('$', &format!("$.{member}[{index}]"), 1);
            malformed(&Wrong { path, ..wrong })
        })
    };
    Ok(raw.into_iter().enumerate().map(read).collect())
}

/// Takes out what a store is to be asked about, and leaves a place for each verdict.
pub(crate) fn taken<T>(items: Vec<Result<T, Problem>>) -> (Vec<T>, Vec<Result<(), Problem>>) {
    let mut good = Vec::with_capacity(items.len());
    let places = items.into_iter().map(|item| item.map(|item| good.push(item))).collect();
    (good, places)
}

/// Puts the verdicts of a store at the places of the items that it was asked about.
pub(crate) fn at_their_places<T>(places: Vec<Result<(), Problem>>, verdicts: Verdicts<T>) -> Vec<Result<T, Problem>> {
    let mut verdicts = verdicts.into_iter();
    let no_verdict = || Err(StoreError::unavailable("the store gave no verdict"));
    let verdict = |place: Result<(), Problem>| {
        place.and_then(|()| verdicts.next().unwrap_or_else(no_verdict).map_err(Problem::from))
    };
    places.into_iter().map(verdict).collect()
}
