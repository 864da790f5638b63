//! How much of a list one request gets.

use tidegate_api::ProblemType;

use crate::problem::Problem;

/// The limit that was asked for, or the usual one; refused where it is none of 1 to `most`.
pub(crate) fn limit(asked: Option<u32>, usual: u32, most: u32) -> Result<u32, Problem> {
    let limit = asked.unwrap_or(usual.min(most));
    if (1..=most).contains(&limit) {
        return Ok(limit);
    }
    let what = format!("a limit of {limit} is not one of 1 to {most}");
    Err(Problem::new(ProblemType::Invalid, what).fix("ask for less, and go on where the page ended"))
}

/// Whether a page is as long as was asked for, so that more may follow.
pub(crate) fn is_full(found: usize, limit: u32) -> bool {
    u32::try_from(found).unwrap_or(u32::MAX) >= limit
}
