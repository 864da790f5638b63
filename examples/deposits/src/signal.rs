//! When a process of this application is asked to stop: SIGTERM from the demo, or Ctrl-C from a person.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for the first SIGTERM or SIGINT.
///
/// # Errors
/// The handler of a signal could not be installed.
///
/// # Cancel safety
/// Safe: a signal that arrives while nobody waits is seen by nobody, and the next one is.
pub async fn terminated() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
