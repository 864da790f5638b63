//! What this process has used so far: processor time, and that of one thread where the system tells it.
//!
//! Time on the wall says as much about the neighbours of a machine as about a program. Processor time does not.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// User and system time of all threads of this process.
pub(crate) fn processor_time() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("the system does not tell this process's use of it")?;
    Ok(duration(usage.user_time()) + duration(usage.system_time()))
}

/// The most memory this process ever had resident.
pub(crate) fn peak_rss_mib() -> anyhow::Result<f64> {
    // Not what getrusage says where there is a better source: that peak outlives exec, so that a process started by a
    // large one tells the large one's.
    if let Some(mib) = status_mib("VmHWM") {
        return Ok(mib);
    }
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("the system does not tell this process's use of it")?;
    let told = u64::try_from(usage.max_rss()).unwrap_or_default();
    // In bytes there, in KiB elsewhere.
    let bytes = if cfg!(target_vendor = "apple") { told } else { told * 1024 };
    Ok(crate::ratio(bytes, 1 << 20))
}

/// A line of what Linux tells of this process's memory, such as `RssAnon`; `None` elsewhere.
pub(crate) fn status_mib(name: &str) -> Option<f64> {
    let told = fs::read_to_string("/proc/self/status").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(crate::ratio(kib, 1 << 10))
}

fn duration(time: TimeVal) -> Duration {
    let part = |n: i64| u64::try_from(n).unwrap_or_default();
    Duration::from_secs(part(time.tv_sec())) + Duration::from_micros(part(time.tv_usec()))
}

/// Processor time of this process's threads of a name; `None` where it is not told (it is on Linux).
pub(crate) fn thread_time(name: &str) -> Option<Duration> {
    let mut time = None;
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).ok();
        // A thread that ended between the listing and the look has nothing more to tell.
        if read("comm").as_deref().map(str::trim_end) != Some(name) {
            continue;
        }
        let nanoseconds = read("schedstat").and_then(|text| text.split_whitespace().next()?.parse().ok());
        time = Some(time.unwrap_or(Duration::ZERO) + Duration::from_nanos(nanoseconds?));
    }
    time
}
