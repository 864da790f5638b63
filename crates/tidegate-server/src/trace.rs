//! The trace a request belongs to (W3C Trace Context), on its way into the messages it brings.

use std::collections::BTreeMap;

use http::HeaderMap;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// The longest list of states that is carried along.
const LONGEST_STATE: usize = 512;

/// `traceparent` and `tracestate` of a request. One that is not valid is left out without a word, as the standard wants it:
/// whoever reads it next begins a trace of its own.
pub(crate) fn of(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut parents = headers.get_all(PARENT).iter();
    let (Some(parent), None) = (parents.next().and_then(|parent| parent.to_str().ok()), parents.next()) else {
        return BTreeMap::new();
    };
    with_state(parent, headers.get_all(STATE).iter().filter_map(|state| state.to_str().ok()))
}

/// The two, if the first is valid.
pub(crate) fn with_state<'a>(parent: &str, states: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let mut trace = BTreeMap::new();
    if !is_valid(parent) {
        return trace;
    }
    trace.insert(PARENT.to_owned(), parent.to_owned());
    let state = states.map(str::trim).filter(|state| !state.is_empty()).collect::<Vec<_>>().join(",");
    if !state.is_empty() && state.len() <= LONGEST_STATE {
        trace.insert(STATE.to_owned(), state);
    }
    trace
}

/// Whether a text is a `traceparent` that can be continued.
pub(crate) fn is_valid(parent: &str) -> bool {
    let hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let mut parts = parent.split('-');
    let (Some(version), Some(trace), Some(span), Some(flags)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    // Version 00 ends here; a later one may say more.
    let ends = version != "00" || parts.next().is_none();
    let zero = |text: &str| text.bytes().all(|b| b == b'0');
    let sound = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    ends && sound && !zero(trace) && !zero(span) && parent.len() <= 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_parent_is_carried_along() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_valid(good));
        assert!(is_valid("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-has-to-say"));
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        ] {
            assert!(!is_valid(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_state_comes_with_its_parent_or_not_at_all() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut headers = HeaderMap::new();
        headers.insert(STATE, "a=1".parse().unwrap());
        assert!(of(&headers).is_empty());
        headers.insert(PARENT, good.parse().unwrap());
        headers.append(STATE, "b=2".parse().unwrap());
        assert_eq!(of(&headers)[STATE], "a=1,b=2");
        headers.append(PARENT, good.parse().unwrap());
        assert!(of(&headers).is_empty(), "of two parents neither is believed");
    }
}
