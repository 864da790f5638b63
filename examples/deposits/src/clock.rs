//! The one place of this application that reads the clocks of the machine.
//!
//! The gateway, the load generator and the twin simulate the outside world, so they run on real time. The library under
//! proof takes its time from an injected clock and never from here.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "the application's one reading of the wall clock")]
#[must_use]
pub fn wall_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the application's one reading of the monotonic clock")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Whole milliseconds since an instant.
#[must_use]
pub fn ms_since(start: Instant) -> u64 {
    u64::try_from(now().saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX)
}
