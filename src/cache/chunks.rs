//! Chunks in memory, and behind them those on disk: in memory the least recently used go first, and all who want the same
//! missing chunk wait for one request.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::CHUNK;
use super::blob_file::BlobFile;
use super::counters::{Counters, add};
use super::cut::{chunk_numbers, cut_out, overlap, run_cost};
use super::disk::DiskCache;
use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest};

/// Most chunks in one request.
pub const LONGEST_RUN: u64 = 16;

/// A decorator of a source; see the module.
pub struct ChunkCache {
    shared: Arc<SharedState>,
}

struct SharedState {
    source: Arc<dyn BlobSource>,
    disk: Option<Arc<DiskCache>>,
    space: Space,
    memory: u64,
    /// Bytes that requests under way may still take.
    in_flight: Arc<Semaphore>,
    chunks: Arc<Mutex<Chunks>>,
    counters: Arc<Counters>,
}

/// What a digest's chunks are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Space {
    Blob,
    /// What a compressed blob unpacks to.
    Content,
    /// A longer piece of it, by its first byte: what is decoded at once.
    Segment,
}

struct Chunks {
    kept: LruCache<Key, Kept>,
    bytes: u64,
    limit: u64,
    coming: HashMap<Key, Coming>,
    /// Bytes that content under way may still take; there is none before there is compressed content.
    content_in_flight: Option<Arc<Semaphore>>,
    counters: Arc<Counters>,
}

struct Kept {
    bytes: Bytes,
    /// Fetched ahead, and no reader has come to it yet.
    ahead: bool,
}

/// Blob and number of the chunk in it.
type Key = (Space, Digest, u64);

/// A run of chunks that has been asked for.
#[derive(Clone)]
struct Coming {
    first: u64,
    /// As [`Kept::ahead`].
    ahead: bool,
    run: Shared<BoxFuture<'static, Result<Arc<[Bytes]>>>>,
}

/// What a read finds for each of its chunks.
enum Found {
    Kept(Bytes),
    OnDisk(Arc<BlobFile>, u64),
    Coming(Coming, u64),
}

impl ChunkCache {
    /// `memory`: bytes of all chunks, kept and under way.
    pub fn new(source: Arc<dyn BlobSource>, disk: Option<Arc<DiskCache>>, memory: u64) -> Self {
        let in_flight = memory / 4;
        let counters: Arc<Counters> = Arc::default();
        let chunks = Chunks {
            kept: LruCache::unbounded(),
            bytes: 0,
            limit: memory - in_flight,
            coming: HashMap::new(),
            content_in_flight: None,
            counters: Arc::clone(&counters),
        };
        let (in_flight, chunks) = (semaphore(in_flight), Arc::new(Mutex::new(chunks)));
        let space = Space::Blob;
        Self { shared: Arc::new(SharedState { source, disk, space, memory, in_flight, chunks, counters }) }
    }

    /// The same cache for the content of compressed blobs, in the same memory. What is under way has an eighth of its
    /// own: whoever unpacks waits for blobs, and must not be waited for.
    pub fn of_content(&self, source: Arc<dyn BlobSource>) -> Self {
        let memory = self.shared.memory;
        let mut chunks = self.shared.chunks();
        if chunks.content_in_flight.is_none() {
            chunks.limit = chunks.limit.saturating_sub(memory / 8);
            chunks.evict();
        }
        let in_flight = Arc::clone(chunks.content_in_flight.get_or_insert_with(|| semaphore(memory / 8)));
        let (space, counters) = (Space::Content, Arc::clone(&self.shared.counters));
        let chunks = Arc::clone(&self.shared.chunks);
        Self { shared: Arc::new(SharedState { source, disk: None, space, memory, in_flight, chunks, counters }) }
    }

    /// What [`Self::keep_segment`] kept, if it is still there.
    pub fn segment(&self, blob: &Digest, number: u64) -> Option<Bytes> {
        self.shared.chunks().kept.get(&(Space::Segment, blob.clone(), number)).map(|kept| kept.bytes.clone())
    }

    /// Keeps a piece of content of any length as long as there is memory, like a chunk.
    pub fn keep_segment(&self, blob: &Digest, number: u64, content: Bytes) {
        self.shared.chunks().keep((Space::Segment, blob.clone(), number), content, false);
    }

    /// Takes memory away from the chunks for as long as the reservation lives. `None`: too much of it is taken already.
    pub fn reserve(&self, bytes: u64) -> Option<MemoryReservation> {
        let mut chunks = self.shared.chunks();
        let left = chunks.limit.checked_sub(bytes).filter(|left| *left >= self.shared.memory / 4)?;
        chunks.limit = left;
        chunks.evict();
        Some(MemoryReservation { chunks: Arc::clone(&self.shared.chunks), bytes })
    }

    pub fn memory(&self) -> u64 {
        self.shared.memory
    }

    /// Starts to fetch what is missing of `range`, if there is memory to spare, and does not wait for it.
    pub fn prefetch(&self, blob: &Descriptor, range: Range<u64>) {
        // Read-ahead may have come to the blob's end.
        if range.start >= range.end {
            return;
        }
        let mut chunks = self.shared.chunks();
        let (missing, _) = self.shared.missing(&chunks, blob, &range);
        if missing.iter().map(run_cost).sum::<u64>() < self.shared.in_flight.available_permits() as u64 {
            for run in missing {
                self.shared.ask_for(&mut chunks, blob, run, true);
            }
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    pub fn disk(&self) -> Option<&Arc<DiskCache>> {
        self.shared.disk.as_ref()
    }

    /// Waits until what was fetched so far is on disk, as far as it can be kept there.
    pub async fn written(&self) {
        // Whoever fetches has its memory until then.
        let all = self.shared.memory / 4;
        drop(self.shared.acquire(all.min(u64::from(u32::MAX))).await);
    }

    fn read_range(&self, blob: &Descriptor, range: Range<u64>) -> BoxFuture<'static, Result<Bytes>> {
        if range.start >= range.end {
            return std::future::ready(Ok(Bytes::new())).boxed();
        }
        if let Some(bytes) = self.shared.at_hand(blob, &range) {
            return std::future::ready(Ok(bytes)).boxed();
        }
        let found = self.shared.find(blob, &range);
        let (shared, blob) = (Arc::clone(&self.shared), blob.clone());
        async move {
            let mut chunks = Vec::with_capacity(found.len());
            for (number, found) in chunk_numbers(&range).zip(found) {
                shared.count(&found, overlap(number, &range));
                chunks.push(shared.chunk(&blob, found).await?);
            }
            Ok(cut_out(&chunks, &range))
        }
        .boxed()
    }
}

/// Memory that is not for chunks, given back on drop.
pub struct MemoryReservation {
    chunks: Arc<Mutex<Chunks>>,
    bytes: u64,
}

impl MemoryReservation {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).limit += self.bytes;
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

    /// A range that is all in memory, or all on disk.
    fn at_hand(&self, blob: &Descriptor, range: &Range<u64>) -> Option<Bytes> {
        let mut chunks = self.chunks();
        let kept: Option<Vec<Bytes>> =
            chunk_numbers(range).map(|number| chunks.get(&(self.space, blob.digest.clone(), number))).collect();
        drop(chunks);
        let (bytes, counter) = match kept {
            Some(kept) => (cut_out(&kept, range), &self.counters.memory),
            None => (self.disk.as_ref()?.blob(blob)?.read(range.clone())?, &self.counters.disk),
        };
        add(counter, bytes.len() as u64);
        Some(bytes)
    }

    /// Content that is unpacked now comes from its blob, which is counted there.
    fn count(&self, found: &Found, bytes: u64) {
        match found {
            Found::Kept(_) => add(&self.counters.memory, bytes),
            Found::OnDisk(..) => add(&self.counters.disk, bytes),
            Found::Coming(..) if self.space == Space::Blob => add(&self.counters.network, bytes),
            Found::Coming(..) => {}
        }
    }

    /// Runs of chunks that are neither kept, nor coming, nor on disk; and the blob on disk.
    fn missing(
        &self,
        chunks: &Chunks,
        blob: &Descriptor,
        range: &Range<u64>,
    ) -> (Vec<Range<u64>>, Option<Arc<BlobFile>>) {
        let numbers = chunk_numbers(range);
        let file = self.disk.as_ref().and_then(|disk| disk.blob(blob));
        let on_disk = file.as_ref().map_or_else(Vec::new, |file| file.present(numbers.clone()));
        let on_disk = on_disk.into_iter().chain(std::iter::repeat(false));
        let missing = numbers.zip(on_disk).filter(|(number, on_disk)| {
            let key = (self.space, blob.digest.clone(), *number);
            !on_disk && !chunks.kept.contains(&key) && !chunks.coming.contains_key(&key)
        });
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (number, _) in missing {
            match runs.last_mut() {
                Some(run) if run.end == number && number - run.start < LONGEST_RUN => run.end += 1,
                _ => runs.push(number..number + 1),
            }
        }
        (runs, file)
    }

    /// Every chunk of `range`: kept, already coming, on disk, or asked for now, one request a run.
    fn find(self: &Arc<Self>, blob: &Descriptor, range: &Range<u64>) -> Vec<Found> {
        let mut chunks = self.chunks();
        let (missing, file) = self.missing(&chunks, blob, range);
        for run in missing {
            self.ask_for(&mut chunks, blob, run, false);
        }
        chunk_numbers(range)
            .filter_map(|number| {
                let key = (self.space, blob.digest.clone(), number);
                if let Some(chunk) = chunks.get(&key) {
                    return Some(Found::Kept(chunk));
                }
                match chunks.coming.get_mut(&key) {
                    Some(coming) => {
                        if std::mem::take(&mut coming.ahead) {
                            let whole = 0..blob.size;
                            add(&self.counters.ahead_used, overlap(number, &whole));
                        }
                        Some(Found::Coming(coming.clone(), number))
                    }
                    None => Some(Found::OnDisk(Arc::clone(file.as_ref()?), number)),
                }
            })
            .collect()
    }

    fn ask_for(self: &Arc<Self>, chunks: &mut Chunks, blob: &Descriptor, run: Range<u64>, ahead: bool) -> Coming {
        let fetch = tokio::spawn(Arc::clone(self).fetch(blob.clone(), run.clone(), ahead));
        let object = blob.digest.clone();
        let coming = Coming {
            first: run.start,
            ahead,
            run: async move { fetch.await.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, object, panic))) }
                .boxed()
                .shared(),
        };
        for number in run {
            chunks.coming.insert((self.space, blob.digest.clone(), number), coming.clone());
        }
        coming
    }

    async fn chunk(self: &Arc<Self>, blob: &Descriptor, found: Found) -> Result<Bytes> {
        let (coming, number) = match found {
            Found::Kept(chunk) => return Ok(chunk),
            Found::Coming(coming, number) => (coming, number),
            Found::OnDisk(file, number) => {
                let range = number * CHUNK..((number + 1) * CHUNK).min(blob.size);
                if let Some(chunk) = file.read(range) {
                    return Ok(chunk);
                }
                // Evicted since it was found, or damaged.
                let mut chunks = self.chunks();
                let known = chunks.coming.get(&(self.space, blob.digest.clone(), number)).cloned();
                (known.unwrap_or_else(|| self.ask_for(&mut chunks, blob, number..number + 1, false)), number)
            }
        };
        let run = coming.run.await?;
        let place = usize::try_from(number.saturating_sub(coming.first)).unwrap_or(usize::MAX);
        Ok(run.get(place).cloned().unwrap_or_default())
    }

    /// One request. Its chunks are kept, and no longer coming, when it ends, however it ends.
    async fn fetch(self: Arc<Self>, blob: Descriptor, run: Range<u64>, ahead: bool) -> Result<Arc<[Bytes]>> {
        let cleared = ClearComing { state: &self, blob: &blob.digest, run: run.clone() };
        let memory = self.acquire(run_cost(&run)).await;
        let bytes = self.source.read(&blob, run.start * CHUNK..(run.end * CHUNK).min(blob.size)).await?;
        // Copies, so that one kept chunk does not hold the memory of its whole run.
        let run_chunks: Arc<[Bytes]> = bytes.chunks(CHUNK as usize).map(Bytes::copy_from_slice).collect();
        if ahead {
            add(&self.counters.ahead_fetched, bytes.len() as u64);
        }
        drop(bytes);
        let mut chunks = self.chunks();
        for (number, chunk) in run.clone().zip(run_chunks.iter()) {
            let key = (self.space, blob.digest.clone(), number);
            let ahead = chunks.coming.get(&key).is_some_and(|coming| coming.ahead);
            chunks.keep(key, chunk.clone(), ahead);
        }
        drop(chunks);
        drop(cleared);
        if let Some(disk) = self.disk.clone() {
            let (blob, run_chunks) = (blob.clone(), Arc::clone(&run_chunks));
            tokio::task::spawn_blocking(move || {
                disk.write(&blob, run.start, &run_chunks);
                // Not before: a slow disk must slow the requests down.
                drop(memory);
            });
        }
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
            chunks.coming.remove(&(self.state.space, self.blob.clone(), number));
        }
    }
}

impl Chunks {
    /// For a reader.
    fn get(&mut self, key: &Key) -> Option<Bytes> {
        let kept = self.kept.get_mut(key)?;
        if std::mem::take(&mut kept.ahead) {
            add(&self.counters.ahead_used, kept.bytes.len() as u64);
        }
        Some(kept.bytes.clone())
    }

    fn keep(&mut self, key: Key, bytes: Bytes, ahead: bool) {
        self.bytes += bytes.len() as u64;
        if let Some(old) = self.kept.put(key, Kept { bytes, ahead }) {
            self.bytes -= old.bytes.len() as u64;
        }
        self.evict();
    }

    fn evict(&mut self) {
        while self.bytes > self.limit {
            let Some((_, old)) = self.kept.pop_lru() else { break };
            self.bytes -= old.bytes.len() as u64;
            if old.ahead {
                add(&self.counters.ahead_wasted, old.bytes.len() as u64);
            }
        }
    }
}

fn semaphore(bytes: u64) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(usize::try_from(bytes).unwrap_or(usize::MAX).min(u32::MAX as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn read_ahead_past_the_end_of_a_blob_on_disk_fetches_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(DiskCache::new(dir.path().to_owned(), 1 << 30, 0, Arc::default()));
        let cache = ChunkCache::new(Arc::new(Nothing), Some(disk), 1 << 24);
        let annotations = Default::default();
        let size = 3 * CHUNK + 1;
        let blob = Descriptor { digest: Digest::sha256_of(b""), size, media_type: String::new(), annotations };
        cache.prefetch(&blob, 9 * CHUNK..size);
        cache.written().await;
        assert_eq!(cache.counters().ahead().fetched, 0);
    }

    struct Nothing;

    impl BlobSource for Nothing {
        fn read<'a>(&'a self, _: &'a Descriptor, _: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
            std::future::ready(Err(Error::new(ErrorKind::Io, "nothing", "asked"))).boxed()
        }
    }
}
