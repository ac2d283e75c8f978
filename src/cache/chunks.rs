//! Chunks in memory: least recently used go first, and all who want the same missing chunk wait for one request.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest};

/// Bytes of a chunk. A read of 4 KiB may lie across two, because members of an archive begin anywhere:
/// it fetches 128 KiB at most.
const CHUNK: u64 = 64 << 10;
/// Most chunks in one request.
const LONGEST_RUN: u64 = 16;

/// A decorator of a source; see the module.
pub struct ChunkCache {
    shared: Arc<SharedState>,
}

struct SharedState {
    source: Arc<dyn BlobSource>,
    memory: u64,
    /// Bytes that requests under way may still take.
    in_flight: Arc<Semaphore>,
    chunks: Mutex<Chunks>,
}

struct Chunks {
    kept: LruCache<Key, Bytes>,
    bytes: u64,
    limit: u64,
    coming: HashMap<Key, Coming>,
}

/// Blob and number of the chunk in it.
type Key = (Digest, u64);

/// A run of chunks that has been asked for.
#[derive(Clone)]
struct Coming {
    first: u64,
    run: Shared<BoxFuture<'static, Result<Arc<[Bytes]>>>>,
}

/// What a read finds for each of its chunks.
enum Found {
    Kept(Bytes),
    Coming(Coming, u64),
}

impl ChunkCache {
    /// `memory`: bytes of all chunks, kept and under way.
    pub fn new(source: Arc<dyn BlobSource>, memory: u64) -> Self {
        let in_flight = memory / 4;
        let chunks =
            Chunks { kept: LruCache::unbounded(), bytes: 0, limit: memory - in_flight, coming: HashMap::new() };
        let permits = usize::try_from(in_flight).unwrap_or(usize::MAX).min(u32::MAX as usize);
        let in_flight = Arc::new(Semaphore::new(permits));
        Self { shared: Arc::new(SharedState { source, memory, in_flight, chunks: Mutex::new(chunks) }) }
    }

    pub fn memory(&self) -> u64 {
        self.shared.memory
    }

    /// Starts to fetch what is missing of `range`, if there is memory to spare, and does not wait for it.
    pub fn prefetch(&self, blob: &Descriptor, range: Range<u64>) {
        let missing: u64 = self.shared.chunks().missing_runs(blob, &range).map(|run| run_cost(&run)).sum();
        if missing < self.shared.in_flight.available_permits() as u64 {
            self.shared.find(blob, &range);
        }
    }

    fn read_range(&self, blob: &Descriptor, range: Range<u64>) -> BoxFuture<'static, Result<Bytes>> {
        if range.start >= range.end {
            return std::future::ready(Ok(Bytes::new())).boxed();
        }
        let found = self.shared.find(blob, &range);
        async move {
            let mut chunks = Vec::with_capacity(found.len());
            for found in found {
                chunks.push(match found {
                    Found::Kept(chunk) => chunk,
                    Found::Coming(coming, number) => {
                        let run = coming.run.await?;
                        let place = usize::try_from(number.saturating_sub(coming.first)).unwrap_or(usize::MAX);
                        run.get(place).cloned().unwrap_or_default()
                    }
                });
            }
            Ok(cut_out(&chunks, &range))
        }
        .boxed()
    }
}

impl BlobSource for ChunkCache {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        self.read_range(blob, range)
    }
}

impl SharedState {
    fn chunks(&self) -> MutexGuard<'_, Chunks> {
        // A panic elsewhere leaves the maps whole: each change is one call.
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every chunk of `range`: kept, already coming, or asked for now, one request a run.
    fn find(self: &Arc<Self>, blob: &Descriptor, range: &Range<u64>) -> Vec<Found> {
        let mut chunks = self.chunks();
        let runs: Vec<_> = chunks.missing_runs(blob, range).collect();
        for run in runs {
            let fetch = tokio::spawn(Arc::clone(self).fetch(blob.clone(), run.clone()));
            let object = blob.digest.clone();
            let coming = Coming {
                first: run.start,
                run: async move { fetch.await.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, object, panic))) }
                    .boxed()
                    .shared(),
            };
            for number in run {
                chunks.coming.insert((blob.digest.clone(), number), coming.clone());
            }
        }
        chunk_numbers(range)
            .filter_map(|number| {
                let key = (blob.digest.clone(), number);
                match chunks.kept.get(&key) {
                    Some(chunk) => Some(Found::Kept(chunk.clone())),
                    None => chunks.coming.get(&key).map(|coming| Found::Coming(coming.clone(), number)),
                }
            })
            .collect()
    }

    /// One request. Its chunks are kept, and no longer coming, when it ends, however it ends.
    async fn fetch(self: Arc<Self>, blob: Descriptor, run: Range<u64>) -> Result<Arc<[Bytes]>> {
        let cleared = ClearComing { state: &self, blob: &blob.digest, run: run.clone() };
        let _memory = self.acquire(run_cost(&run)).await;
        let bytes = self.source.read(&blob, run.start * CHUNK..(run.end * CHUNK).min(blob.size)).await?;
        // Copies, so that one kept chunk does not hold the memory of its whole run.
        let run_chunks: Arc<[Bytes]> = bytes.chunks(CHUNK as usize).map(Bytes::copy_from_slice).collect();
        let mut chunks = self.chunks();
        for (number, chunk) in run.zip(run_chunks.iter()) {
            chunks.keep((blob.digest.clone(), number), chunk.clone());
        }
        drop(chunks);
        drop(cleared);
        Ok(run_chunks)
    }

    async fn acquire(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.in_flight).acquire_many_owned(permits).await.ok()
    }
}

struct ClearComing<'a> {
    state: &'a SharedState,
    blob: &'a Digest,
    run: Range<u64>,
}

impl Drop for ClearComing<'_> {
    fn drop(&mut self) {
        let mut chunks = self.state.chunks();
        for number in self.run.clone() {
            chunks.coming.remove(&(self.blob.clone(), number));
        }
    }
}

impl Chunks {
    /// Neighbouring chunks that are neither kept nor coming.
    fn missing_runs(&self, blob: &Descriptor, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for number in chunk_numbers(range) {
            let key = (blob.digest.clone(), number);
            if self.kept.contains(&key) || self.coming.contains_key(&key) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == number && number - run.start < LONGEST_RUN => run.end += 1,
                _ => runs.push(number..number + 1),
            }
        }
        runs.into_iter()
    }

    fn keep(&mut self, key: Key, chunk: Bytes) {
        self.bytes += chunk.len() as u64;
        if let Some(old) = self.kept.put(key, chunk) {
            self.bytes -= old.len() as u64;
        }
        while self.bytes > self.limit {
            let Some((_, old)) = self.kept.pop_lru() else { break };
            self.bytes -= old.len() as u64;
        }
    }
}

fn chunk_numbers(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK..range.end.div_ceil(CHUNK)
}

/// Bytes in flight for a run: the answer, and its copy in chunks.
fn run_cost(run: &Range<u64>) -> u64 {
    (run.end - run.start) * CHUNK * 2
}

/// `range` of the blob out of the chunks that cover it.
fn cut_out(chunks: &[Bytes], range: &Range<u64>) -> Bytes {
    let start = (range.start % CHUNK) as usize;
    let length = (range.end - range.start) as usize;
    match chunks {
        [chunk] => chunk.slice(start.min(chunk.len())..(start + length).min(chunk.len())),
        chunks => {
            let mut bytes = BytesMut::with_capacity(length);
            let mut skip = start;
            for chunk in chunks {
                let rest = chunk.get(skip..).unwrap_or_default();
                bytes.extend_from_slice(rest.get(..length - bytes.len()).unwrap_or(rest));
                skip = 0;
            }
            bytes.freeze()
        }
    }
}
