//! How long a request waits for an answer: `?wait=20s`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use tidegate_api::ProblemType;

use crate::limits::Limits;
use crate::problem::Problem;

/// A duration as it is written in an address: a whole number and `ms`, `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let short: String = text.chars().take(40).collect();
        let wrong = || format!("not a duration: {short:?}; such as 500ms, 20s, 5m, 2h or 1d");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(millis).map(|millis| Self(Duration::from_millis(millis))).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How long to wait, if it is not longer than a request may.
pub(crate) fn allowed(asked: Option<Span>, limits: &Limits) -> Result<Duration, Problem> {
    let asked = asked.map_or(Duration::ZERO, |span| span.0);
    if asked > limits.wait {
        let most = limits.wait.as_secs();
        let what = format!("a wait of {} s is over the limit of {most} s", asked.as_secs());
        return Err(Problem::new(ProblemType::Invalid, what).fix("ask again when the wait is over: nothing is lost"));
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_written_as_people_write_them() {
        for (text, millis) in [("0s", 0), ("500ms", 500), ("20s", 20_000), ("5m", 300_000), ("2h", 7_200_000)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))));
        }
        for wrong in ["", "20", "s", "-1s", "1.5s", "1 s", "20sec", "99999999999999999d", "٣s"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _unused = text.parse::<Span>();
        }
    }
}
