//! When a process of this application is asked to stop: SIGTERM from the demo, Ctrl-C from a person, or the end of its
//! standard input, which whoever started it holds open.

use std::io::Read;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

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

/// Watches standard input from now on; the future ends when that does. For a child that must not outlive its parent.
///
/// # Errors
/// The thread that reads could not be started.
pub fn input_ended() -> std::io::Result<impl Future<Output = ()> + Send> {
    let (end, ended) = oneshot::channel::<()>();
    // A thread of its own: the runtime would wait for its own blocked read before it ends.
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut buffer = [0; 64];
        let mut stdin = std::io::stdin().lock();
        while matches!(stdin.read(&mut buffer), Ok(read) if read > 0) {}
        // An error means that the process is about to end already.
        end.send(()).unwrap_or_default();
    })?;
    Ok(async move { ended.await.unwrap_or_default() })
}
