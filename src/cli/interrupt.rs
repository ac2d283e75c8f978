//! Ending a verb that transfers: not in the middle of a chunk that is sent, if that can be waited for, and with a word on what is
//! left.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::failure::Failure;
use crate::error::{Error, ErrorKind};

/// After a signal; a second one ends it at once.
const ARRIVING: Duration = Duration::from_secs(5);

/// What a registry has of blobs that were being sent.
pub const SENT: &str = "layers that have arrived are kept, the others as far as the registry keeps them";

/// `object`, `kept`: what the line names that a signal causes, and what it says of the next call. `stop`: for work that sends; it
/// lets chunks that are on their way arrive, because some registries forget an upload one of whose requests breaks off.
pub async fn until_signal<T>(
    object: &str,
    kept: &str,
    stop: Option<&AtomicBool>,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    let [mut interrupt, mut terminate] = match signals {
        [Ok(interrupt), Ok(terminate)] => [interrupt, terminate],
        [Err(error), _] | [_, Err(error)] => return Err(Failure::system("signals", error)),
    };
    let mut work = pin!(work);
    let (ended_by, name) = tokio::select! {
        done = &mut work => return Ok(done),
        _ = interrupt.recv() => (SignalKind::interrupt(), "SIGINT"),
        _ = terminate.recv() => (SignalKind::terminate(), "SIGTERM"),
    };
    if let Some(stop) = stop {
        stop.store(true, Ordering::Relaxed);
        tokio::select! {
            _ = timeout(ARRIVING, work) => {}
            _ = interrupt.recv() => {}
        }
    }
    let stopped = Error::new(ErrorKind::Io, object, format!("stopped by {name}; {kept}"));
    let line = stopped.hint("the same command goes on").to_string();
    Err(Failure { line: Some(line), ..Failure::signal(ended_by.as_raw_value()) })
}
