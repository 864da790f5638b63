//! Who cleans up: a process of its own that waits for this one to end, however it ends.
//!
//! It holds the reading end of a pipe of which only this process has the other. A value that is dropped closes it, and so
//! does the kernel when the process is killed. Then the watchdog ends the server and removes its directory. It runs in a
//! process group of its own, so that Ctrl-C in a terminal does not reach it before it has done its work.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Error;

/// `$1`: the directory to remove. `$2`: the file whose first line is the server's process id, if the server runs.
/// A number in a file may be that of another process by now: only one that was started on this directory is ended.
const SCRIPT: &str = r#"
cat >/dev/null
pid=
[ -r "$2" ] && read -r pid <"$2"
ours() {
    [ -n "$pid" ] || return 1
    { tr '\0' ' ' <"/proc/$pid/cmdline" || ps -p "$pid" -o args=; } 2>/dev/null | grep -qF -- "$1/"
}
if ours "$1"; then
    kill -QUIT "$pid"
    tries=0
    while ours "$1" && [ "$tries" -lt 100 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    if ours "$1"; then kill -KILL "$pid"; fi
fi
# A server that was just ended may still have a last file to write.
tries=0
while ! rm -rf -- "$1" 2>/dev/null && [ "$tries" -lt 40 ]; do
    sleep 0.05
    tries=$((tries + 1))
done
"#;

#[derive(Debug)]
pub(crate) struct Watchdog {
    process: Child,
    directory: PathBuf,
}

impl Watchdog {
    /// Watches over a directory and the server whose process id stands in a file of it.
    pub(crate) fn over(directory: &Path, pid_file: &Path) -> Result<Self, Error> {
        let process = Command::new("sh")
            .args(["-c", SCRIPT, "tidegate-pgcluster"])
            .args([directory, pid_file])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| Error::new(format!("cannot start sh: {e}")))?;
        Ok(Self { process, directory: directory.to_owned() })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // Without it there is nothing to wait for, and its directory was named in the error that made us drop it.
        let _cleaned_up = self.process.wait();
    }
}
