//! What the figures depend on that is nobody's merit: how long the disk takes to fsync, and what else the machine does.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use crate::run::timed_quietly;

/// Times of so many writes of a page, each followed by an `fdatasync`, in milliseconds.
const PROBES: usize = 100;
const PAGE: [u8; 4096] = [7; 4096];

/// How long the disk takes, by a probe of our own.
pub(super) fn fsyncs(dir: &Path) -> Result<Vec<f64>, String> {
    let path = dir.join("probe");
    let failed = |e: std::io::Error| format!("cannot probe {}: {e}", path.display());
    let mut file = File::create(&path).map_err(failed)?;
    // The second write of a page changes data only, as in a log that is written over.
    file.write_all(&PAGE).and_then(|()| file.sync_all()).map_err(failed)?;
    let mut times = Vec::with_capacity(PROBES);
    for _ in 0..PROBES {
        let (done, took) = timed_quietly(|| {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&PAGE)?;
            file.sync_data()
        });
        done.map_err(failed)?;
        times.push(took.as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(times)
}

/// The load average of the last minute; nothing where the system does not tell.
pub(super) fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// The processor's name; nothing where the system does not tell.
pub(super) fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_takes_time_and_leaves_nothing_behind() {
        let dir = std::env::temp_dir().join(format!("tidegate-probe-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let times = fsyncs(&dir).unwrap();
        assert_eq!(times.len(), PROBES);
        assert!(times.iter().all(|&time| time > 0.0));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir(&dir).unwrap();
        assert!(fsyncs(&dir).unwrap_err().contains("cannot probe"));
    }
}
