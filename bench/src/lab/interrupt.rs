//! Ctrl-C and friends, noticed between steps so that what was made can be removed in order.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use super::LabError;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP no longer end the process but are noticed by [`check`].
///
/// # Errors
/// When signals cannot be watched.
pub fn watch() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    // Registered before this returns, so that no signal falls between.
    let signals = runtime.block_on(async {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        kinds.into_iter().map(signal).collect::<io::Result<Vec<_>>>()
    })?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let Ok([mut interrupt, mut terminate, mut hangup]) = <[_; 3]>::try_from(signals) else { return };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            INTERRUPTED.store(true, Ordering::Relaxed);
        });
    })?;
    Ok(())
}

/// Fails once a signal came.
///
/// # Errors
/// [`LabError::Interrupted`].
pub fn check() -> Result<(), LabError> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(LabError::Interrupted) } else { Ok(()) }
}
