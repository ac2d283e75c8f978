//! Blobs of servers without ranges: one download a blob, from its start, whose bytes serve all who wait for them and go
//! into the cache as they pass. It goes on only as far as somebody wants.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use reqwest::Response;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::answer::{ended_early, transport_failure};
use super::connections::Leave;
use super::retry::Failure;
use super::traffic::Traffic;
use crate::blob::Passing;
use crate::error::{Error, ErrorKind};
use crate::oci::{Descriptor, Digest};

/// A download that nobody wants more of is kept open for so long.
const IDLE: Duration = Duration::from_secs(30);
/// Bytes given to the cache at once.
const STEP: usize = 256 << 10;
/// What has passed just now is kept for those who come a little late: at most so much, and all tails have a part of the
/// memory.
const TAIL: usize = 1 << 20;
const SHARE_OF_MEMORY: usize = 8;
/// From this distance on the cost is told.
const FAR: u64 = 16 << 20;

pub(super) struct Downloads {
    /// Bytes of the tail of one.
    tail: usize,
    downloads: Mutex<HashMap<Digest, Arc<Download>>>,
    /// Who keeps what passes.
    cache: OnceLock<Weak<dyn Passing>>,
    told: OnceLock<()>,
}

struct Download {
    state: Mutex<State>,
    /// Told when there are more wishes.
    wanted: Notify,
    tail: usize,
}

struct State {
    /// All before it has passed.
    at: u64,
    /// The last of it.
    tail: BytesMut,
    /// The furthest byte that anybody wanted.
    target: u64,
    waiting: Vec<Waiting>,
    ended: bool,
}

struct Waiting {
    range: Range<u64>,
    bytes: BytesMut,
    answer: oneshot::Sender<Result<Bytes, Failure>>,
}

impl Downloads {
    /// `most`: downloads at once. `memory`: of the whole process, in bytes.
    pub fn new(most: usize, memory: u64) -> Self {
        let share = usize::try_from(memory).unwrap_or(usize::MAX) / SHARE_OF_MEMORY;
        // A tail grows to twice its length before it is cut.
        let tail = (share / most.max(1) / 2).min(TAIL);
        let (downloads, cache, told) = (Mutex::default(), OnceLock::new(), OnceLock::new());
        Self { tail, downloads, cache, told }
    }

    /// Ends a download that nobody wants more of, so that another request has its connection.
    pub fn make_room(&self) {
        let downloads = self.downloads();
        // One is enough.
        let _ = downloads.values().any(|download| download.end_if_idle());
    }

    pub fn keep_in(&self, cache: Weak<dyn Passing>) {
        // Set once, when the registry gets its cache.
        let _ = self.cache.set(cache);
    }

    fn downloads(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Download>>> {
        self.downloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> Option<Arc<dyn Passing>> {
        self.cache.get()?.upgrade()
    }

    /// A range from the download that is under way; `None` if there is none.
    pub async fn read(&self, blob: &Descriptor, range: &Range<u64>) -> Option<Result<Bytes, Failure>> {
        let download = self.downloads().get(&blob.digest).cloned()?;
        // What has passed already is in the cache, if it has room.
        let kept = async || self.cache()?.kept(blob, range).await;
        if let Some(bytes) = kept().await {
            return Some(Ok(bytes));
        }
        match download.wait_for(blob, range) {
            Some(answer) => Some(answer.await.unwrap_or_else(|_| Err(ended_early(blob)))),
            None => Some(kept().await.ok_or_else(|| Failure::Passing { error: passed(blob), not_before: None })),
        }
    }

    /// Makes an answer with the whole blob the blob's download, unless there is one. Tells what it costs.
    pub fn start(
        self: &Arc<Self>,
        blob: &Descriptor,
        wanted: &Range<u64>,
        answer: Response,
        leave: Leave,
        traffic: &Arc<Traffic>,
    ) {
        if self.told.set(()).is_ok() {
            tracing::warn!(
                "{}: the registry does not support range requests: layers are downloaded from their start to what is read",
                blob.digest
            );
        }
        let mut downloads = self.downloads();
        if downloads.contains_key(&blob.digest) {
            return;
        }
        tell_cost(blob, wanted, 0);
        let state = State { at: 0, tail: BytesMut::new(), target: wanted.end, waiting: Vec::new(), ended: false };
        let download = Arc::new(Download { state: Mutex::new(state), wanted: Notify::new(), tail: self.tail });
        downloads.insert(blob.digest.clone(), Arc::clone(&download));
        drop(downloads);
        let (all, blob, traffic) = (Arc::downgrade(self), blob.clone(), Arc::clone(traffic));
        let cache = self.cache();
        tokio::spawn(async move {
            let _leave = leave.for_a_download();
            let ended = download.run(&blob, answer, cache, &traffic).await;
            if let Some(all) = all.upgrade() {
                all.downloads().remove(&blob.digest);
            }
            download.end(&blob, ended);
        });
    }
}

impl Download {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it has passed already.
    fn wait_for(&self, blob: &Descriptor, range: &Range<u64>) -> Option<oneshot::Receiver<Result<Bytes, Failure>>> {
        let mut state = self.state();
        let late = state.at.saturating_sub(range.start);
        if state.ended || late > state.tail.len() as u64 {
            drop(state);
            // Nobody else needs it: the next attempt begins another from the start.
            self.end_if_idle();
            return None;
        }
        let (answer, answered) = oneshot::channel();
        let length = range.end.saturating_sub(range.start) as usize;
        let mut bytes = BytesMut::with_capacity(length);
        let from = state.tail.len().saturating_sub(late as usize);
        let here = state.tail.get(from..from.saturating_add(length).min(state.tail.len()));
        bytes.extend_from_slice(here.unwrap_or_default());
        if bytes.len() == length {
            // It is awaited just below.
            let _ = answer.send(Ok(bytes.freeze()));
            return Some(answered);
        }
        tell_cost(blob, range, state.target);
        state.waiting.push(Waiting { range: range.clone(), bytes, answer });
        state.target = state.target.max(range.end);
        drop(state);
        self.wanted.notify_one();
        Some(answered)
    }

    /// Whether nobody wants more of it.
    fn end_if_idle(&self) -> bool {
        let mut state = self.state();
        let idle = !state.ended && state.waiting.is_empty() && state.at >= state.target;
        if idle {
            state.ended = true;
            self.wanted.notify_one();
        }
        idle
    }

    async fn run(
        &self,
        blob: &Descriptor,
        answer: Response,
        cache: Option<Arc<dyn Passing>>,
        traffic: &Traffic,
    ) -> Result<(), Failure> {
        let mut body = answer.bytes_stream();
        let mut collected = BytesMut::new();
        loop {
            let (at, enough, ended) = {
                let state = self.state();
                (state.at, state.at >= state.target, state.ended)
            };
            if ended || at >= blob.size {
                return Ok(());
            }
            if enough {
                if timeout(IDLE, self.wanted.notified()).await.is_err() {
                    let mut state = self.state();
                    state.ended = state.at >= state.target;
                }
                continue;
            }
            let piece = match body.next().await {
                Some(piece) => piece.map_err(|error| transport_failure(blob.digest.as_str(), &error))?,
                None => return Err(ended_early(blob)),
            };
            traffic.received(piece.len()).await;
            let rest = usize::try_from(blob.size.saturating_sub(at)).unwrap_or(usize::MAX);
            let piece = piece.slice(..piece.len().min(rest));
            let next = at.saturating_add(piece.len() as u64);
            collected.extend_from_slice(&piece);
            // Before anybody is told: who comes later finds it there.
            if let Some(cache) = &cache
                && (collected.len() >= STEP || next >= blob.size || next >= self.state().target)
            {
                let first = next.saturating_sub(collected.len() as u64);
                // What ends inside a chunk waits for the rest of it.
                collected = cache.pass(blob, first, collected.split().freeze()).await;
            }
            self.pass(next, &piece);
            if cache.is_none() {
                collected.clear();
            }
        }
    }

    fn pass(&self, next: u64, piece: &Bytes) {
        let mut state = self.state();
        let at = state.at;
        let mut left = Vec::new();
        for mut waiting in std::mem::take(&mut state.waiting) {
            let from = usize::try_from(waiting.range.start.saturating_sub(at)).unwrap_or(usize::MAX);
            let to = usize::try_from(waiting.range.end.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            waiting.bytes.extend_from_slice(piece.get(from..to).unwrap_or_default());
            if waiting.range.end <= next {
                // Nobody may be there any more.
                let _ = waiting.answer.send(Ok(waiting.bytes.freeze()));
            } else if !waiting.answer.is_closed() {
                left.push(waiting);
            }
        }
        state.waiting = left;
        state.tail.extend_from_slice(piece);
        if state.tail.len() > 2 * self.tail {
            let old = state.tail.len() - self.tail;
            state.tail.advance(old);
        }
        state.at = next;
    }

    fn end(&self, blob: &Descriptor, ended: Result<(), Failure>) {
        let error = match ended {
            Err(failure) => failure.into_error(),
            Ok(()) => passed(blob),
        };
        let mut state = self.state();
        state.ended = true;
        for waiting in state.waiting.drain(..) {
            let _ = waiting.answer.send(Err(Failure::Passing { error: error.clone(), not_before: None }));
        }
    }
}

fn tell_cost(blob: &Descriptor, wanted: &Range<u64>, from: u64) {
    let cost = wanted.end.saturating_sub(from);
    if cost > FAR {
        let (cost, size) = (bytesize::ByteSize(cost), bytesize::ByteSize(blob.size));
        tracing::warn!("{}: reading at byte {} downloads {cost} of {size} first", blob.digest, wanted.start);
    }
}

fn passed(blob: &Descriptor) -> Error {
    let cause = "the registry gives only whole layers, and this part has passed already";
    Error::new(ErrorKind::Unreachable, &blob.digest, cause).hint("allow more with --cache-size or --memory")
}
