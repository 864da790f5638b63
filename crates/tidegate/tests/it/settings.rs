//! The page of the settings says what the program does.

use std::time::Duration;

use tidegate::{Policy, Priority, canonical, id, journal, message, retry, sqlite, store};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/settings.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_defaults_on_the_page_are_those_of_the_program() {
    let seconds = |duration: Duration| format!("{} s", duration.as_secs());
    let hours = |duration: Duration| format!("{} h", duration.as_secs() / 3600);
    let days = |duration: Duration| format!("{} days", duration.as_secs() / 86_400);
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let (policy, room) = (Policy::default(), sqlite::Room::default());
    let expected = [
        ("`max_age`", days(message::DEFAULT_MAX_AGE)),
        ("priority,", Priority::default().get().to_string()),
        ("`max_attempts` |", policy.max_attempts.to_string()),
        ("time-out of one run", seconds(policy.timeout)),
        ("crashes while alone", policy.crash_limit.to_string()),
        ("first greatest pause", seconds(policy.backoff.base)),
        ("| greatest pause", seconds(policy.backoff.cap)),
        ("longest `Retry-After`", hours(retry::MAX_FLOOR)),
        ("a person's", seconds(journal::DEFAULT_QUARANTINE)),
        ("a missing answer is cleared up", hours(journal::MAX_RECONCILE)),
        ("an answer and its key are kept", days(store::DEFAULT_RETENTION)),
        ("largest payload", format!("{} MiB", message::DEFAULT_MAX_PAYLOAD >> 20)),
        ("free disk nothing new is accepted", mib(room.accept)),
        ("nothing is claimed either", mib(room.claim)),
        ("reserve kept beside the store", mib(room.reserve)),
        ("a name has at most", id::MAX_NAME.to_string()),
        ("a key at most", id::MAX_KEY.to_string()),
        ("JSON is at most", canonical::MAX_DEPTH.to_string()),
    ];
    let page = page();
    for (what, value) in expected {
        let line = page.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("no line about {what}"));
        assert!(line.contains(&format!("**{value}**")), "{what} is {value}: {line}");
    }
}
