//! Ending a verb that sends: not in the middle of a chunk, if that can be waited for.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::failure::Failure;

/// After a signal; a second one ends it at once.
const ARRIVING: Duration = Duration::from_secs(5);

/// A signal lets chunks that are on their way arrive: some registries forget an upload one of whose requests breaks
/// off.
pub async fn until_signal<T>(stop: &AtomicBool, work: impl Future<Output = T>) -> Result<T, Failure> {
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    let [mut interrupt, mut terminate] = match signals {
        [Ok(interrupt), Ok(terminate)] => [interrupt, terminate],
        [Err(error), _] | [_, Err(error)] => return Err(Failure::system("signals", error)),
    };
    let mut work = pin!(work);
    let ended_by = tokio::select! {
        done = &mut work => return Ok(done),
        _ = interrupt.recv() => SignalKind::interrupt(),
        _ = terminate.recv() => SignalKind::terminate(),
    };
    stop.store(true, Ordering::Relaxed);
    tokio::select! {
        _ = timeout(ARRIVING, work) => {}
        _ = interrupt.recv() => {}
    }
    Err(Failure::signal(ended_by.as_raw_value()))
}
