//! Verbs that take batches: in requests that a server takes, with a verdict for each item, in its order.

use std::collections::VecDeque;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate::StoreError;
use tidegate::store::Verdicts;
use tidegate_api::{ProblemType, Refusal};

use crate::exchange::{Ask, Exchange};

/// So many items, and about so many bytes of them, are one request. A server may take less and says so; then it is halved.
const MOST: usize = 500;
const BYTES: usize = 512 << 10;
/// What stands around an item.
const AROUND: usize = 512;

/// A batch verb: where it is asked, and how its items and their verdicts are written.
pub(crate) struct Batch<I, B, A, T> {
    pub(crate) verb: &'static str,
    pub(crate) path: &'static str,
    /// About how long an item is, beside what stands around each.
    pub(crate) size: fn(&I) -> usize,
    /// How these items are asked for, where not as usual.
    pub(crate) how: fn(Ask, &[I]) -> Ask,
    pub(crate) body: fn(&[I]) -> B,
    /// Gets an answer and the items it is about.
    pub(crate) verdicts: fn(A, &[I]) -> Verdicts<T>,
}

impl Exchange {
    /// Asks for a verdict on each item. What was asked for in one request failed or was done as a whole.
    pub(crate) async fn batch<I, B, A, T>(
        &self,
        batch: &Batch<I, B, A, T>,
        items: Vec<I>,
    ) -> Result<Verdicts<T>, StoreError>
    where
        I: Send + Sync,
        B: Serialize + Send,
        A: DeserializeOwned + Send,
        T: Send,
    {
        let mut verdicts = Vec::with_capacity(items.len());
        let mut parts: VecDeque<Vec<I>> = parts(items, batch.size).into();
        while let Some(part) = parts.pop_front() {
            let ask = (batch.how)(Ask::post(batch.verb, batch.path, &(batch.body)(&part)), &part);
            match self.verdicts(ask, |answer| (batch.verdicts)(answer, &part)).await {
                Ok(told) => {
                    if told.len() != part.len() {
                        let (asked, told) = (part.len(), told.len());
                        let what = format!("the server gave {told} verdicts on {asked} items of {}", batch.verb);
                        return Err(StoreError::unavailable(what).hint("do the same again: nothing is done twice"));
                    }
                    verdicts.extend(told);
                }
                // Nothing of it was done.
                Err(error) if is_too_large(&error) && part.len() > 1 => {
                    let mut first = part;
                    let second = first.split_off(first.len() / 2);
                    parts.push_front(second);
                    parts.push_front(first);
                }
                Err(error) if is_too_large(&error) => verdicts.push(Err(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(verdicts)
    }
}

/// The items in requests that are not too large, in their order.
fn parts<I>(items: Vec<I>, size: fn(&I) -> usize) -> Vec<Vec<I>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = size(&item) + AROUND;
        if !part.is_empty() && (part.len() >= MOST || bytes + more > BYTES) {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += more;
        part.push(item);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

fn is_too_large(error: &StoreError) -> bool {
    Refusal::of(error).is_some_and(|refusal| refusal.kind == Some(ProblemType::TooLarge))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_parted_by_number_and_by_size_and_keeps_its_order() {
        let lengths = |sizes: &[usize]| -> Vec<usize> {
            let items: Vec<(usize, usize)> = sizes.iter().copied().enumerate().collect();
            let parts = parts(items, |item| item.1);
            let order: Vec<usize> = parts.iter().flatten().map(|item| item.0).collect();
            assert_eq!(order, (0..sizes.len()).collect::<Vec<_>>());
            parts.iter().map(Vec::len).collect()
        };
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[1; 1001]), [500, 500, 1]);
        assert_eq!(lengths(&[300 << 10, 300 << 10, 1, 600 << 10, 1]), [1, 2, 1, 1]);
    }
}
