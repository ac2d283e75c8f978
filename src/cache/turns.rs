//! Calls to a disk that may hang (a dead NFS server, a failing drive): each keeps a thread until it ends, so only so
//! many are begun, and none while those under way do not end. Whoever waits for one goes on without it after a while.

use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Duration, Instant, timeout};

use crate::error::Result;

/// Calls at once, and how long they may take before it is done without.
const READS: usize = 16;
const READ_PATIENCE: Duration = Duration::from_secs(1);
const WRITES: usize = 4;
/// Longer: making room is one call, and so is what a memory card takes.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// A disk that sleeps wakes in this time: for whoever has nothing to go on with.
pub const WAKING: Duration = Duration::from_secs(10);

/// Those of the disk of a cache folder, for whatever is kept there.
#[derive(Clone)]
pub struct FolderTurns {
    pub reads: Arc<Turns>,
    pub writes: Arc<Turns>,
}

pub struct Turns {
    permits: Arc<Semaphore>,
    /// A disk on which no call has ended for so long hangs.
    patience: Duration,
    /// What the log calls the disk.
    name: String,
    state: Mutex<State>,
}

struct State {
    under_way: usize,
    /// When one ended last, or the first of those under way began.
    since: Instant,
    told: bool,
}

/// Leave for one call, which ends when it is dropped.
pub struct Turn {
    turns: Arc<Turns>,
    _permit: OwnedSemaphorePermit,
}

impl FolderTurns {
    pub fn new(folder: &Path) -> Self {
        let name = folder.display().to_string();
        Self { reads: Turns::new(name.clone(), READS, READ_PATIENCE), writes: Turns::new(name, WRITES, WRITE_PATIENCE) }
    }

    /// Gives what a call that writes gives. `None`: it takes too long, or reading does.
    pub async fn write<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if self.reads.hangs() { None } else { self.writes.run(call).await }
    }
}

impl Turns {
    /// `calls`: most at once.
    fn new(name: String, calls: usize, patience: Duration) -> Arc<Self> {
        let state = State { under_way: 0, since: Instant::now(), told: false };
        Arc::new(Self { permits: Arc::new(Semaphore::new(calls)), patience, name, state: Mutex::new(state) })
    }

    /// Begins a call when it is its turn. `None`: the disk hangs.
    pub async fn begin<T: Send + 'static>(
        self: &Arc<Self>,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<JoinHandle<T>> {
        Some(self.turn().await?.spend(call))
    }

    /// Gives what the call gives. `None`: it takes too long.
    pub async fn run<T: Send + 'static>(self: &Arc<Self>, call: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        self.run_within(self.patience, call).await
    }

    /// The same, with a patience of its own.
    pub async fn run_within<T: Send + 'static>(
        self: &Arc<Self>,
        patience: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let under_way = self.begin(call).await?;
        timeout(patience, under_way).await.ok()?.ok()
    }

    /// Gives what the call gives, to a thread that may wait: not to one of the runtime's. `None`: the disk would have to be
    /// waited for longer than one that sleeps. A queue that gets shorter is waited for.
    pub fn wait_for<T: Send + 'static>(self: &Arc<Self>, call: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, ended) = mpsc::channel();
        let turns = Arc::clone(self);
        tokio::spawn(async move { drop(done.send(turns.run_awake(call).await)) });
        ended.recv().ok().flatten()
    }

    async fn run_awake<T: Send + 'static>(self: &Arc<Self>, call: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let mut coming = pin!(self.turn_at_last());
        let turn = loop {
            let patience = WAKING.checked_sub(self.silence()).filter(|patience| !patience.is_zero())?;
            if let Ok(turn) = timeout(patience, &mut coming).await {
                break turn?;
            }
        };
        let patience = WAKING.saturating_sub(self.silence());
        timeout(patience, turn.spend(call)).await.ok()?.ok()
    }

    /// Begins a call that nobody waits for, if there is a turn.
    pub fn begin_if_free(self: &Arc<Self>, call: impl FnOnce() + Send + 'static) {
        if !self.hangs()
            && let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned()
        {
            self.taken(permit).spend(call);
        }
    }

    /// The bytes that a call finds. Where it finds none, or takes too long, those of `otherwise`; and where these fail,
    /// those of the call after all.
    pub async fn read_or<M: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce() -> Result<Bytes, M> + Send + 'static,
        otherwise: impl FnOnce(Option<M>) -> BoxFuture<'static, Result<Bytes>>,
    ) -> Result<Bytes> {
        let late = match self.turn().await {
            None => match otherwise(None).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => (self.turn_at_last().await.map(|turn| turn.spend(look)), error),
            },
            Some(turn) => {
                let mut looking = turn.spend(look);
                match timeout(self.patience, &mut looking).await {
                    Ok(Ok(Ok(bytes))) => return Ok(bytes),
                    Ok(Ok(Err(missing))) => return otherwise(Some(missing)).await,
                    // A panic, which was told.
                    Ok(Err(_)) => return otherwise(None).await,
                    Err(_) => match otherwise(None).await {
                        Ok(bytes) => return Ok(bytes),
                        Err(error) => (Some(looking), error),
                    },
                }
            }
        };
        match late {
            (Some(looking), error) => looking.await.ok().and_then(|found| found.ok()).ok_or(error),
            (None, error) => Err(error),
        }
    }

    #[cfg(test)]
    pub fn is_busy(&self) -> bool {
        self.state().under_way > 0
    }

    async fn turn(self: &Arc<Self>) -> Option<Turn> {
        while !self.hangs() {
            if let Ok(permit) = timeout(self.patience, Arc::clone(&self.permits).acquire_owned()).await {
                return permit.ok().map(|permit| self.taken(permit));
            }
        }
        None
    }

    async fn turn_at_last(self: &Arc<Self>) -> Option<Turn> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        permit.map(|permit| self.taken(permit))
    }

    fn taken(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Turn {
        let mut state = self.state();
        if state.under_way == 0 {
            state.since = Instant::now();
        }
        state.under_way += 1;
        drop(state);
        Turn { turns: Arc::clone(self), _permit: permit }
    }

    /// For how long no call has ended.
    fn silence(&self) -> Duration {
        let state = self.state();
        if state.under_way > 0 { state.since.elapsed() } else { Duration::ZERO }
    }

    /// Whether that is too long.
    pub fn hangs(&self) -> bool {
        let hangs = self.silence() >= self.patience;
        if hangs && !std::mem::replace(&mut self.state().told, true) {
            tracing::warn!("{}: the disk does not answer; going on without it until it does", self.name);
        }
        hangs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    fn spend<T: Send + 'static>(self, call: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        spawn_blocking(move || {
            let given = call();
            drop(self);
            given
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.under_way -= 1;
        (state.since, state.told) = (Instant::now(), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_gets_shorter_is_waited_for_and_one_that_does_not_is_not() {
        let turns = Turns::new("x".to_owned(), 1, WRITE_PATIENCE);
        let held = turns.turn().await.unwrap();
        let queued: Vec<_> = (0..3)
            .map(|_| {
                let turns = Arc::clone(&turns);
                tokio::spawn(async move { turns.turn_at_last().await })
            })
            .collect();
        tokio::task::yield_now().await;
        let waiting = {
            let turns = Arc::clone(&turns);
            tokio::spawn(async move { turns.run_awake(|| 7).await })
        };
        let mut last = held;
        for next in queued {
            tokio::time::sleep(Duration::from_secs(6)).await;
            drop(last);
            last = next.await.unwrap().unwrap();
        }
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(!waiting.is_finished());
        drop(last);
        assert_eq!(waiting.await.unwrap(), Some(7));
        let _held = turns.turn().await.unwrap();
        assert_eq!(turns.run_awake(|| 7).await, None);
    }
}
