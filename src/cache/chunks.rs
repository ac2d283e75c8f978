//! Chunks in memory, and behind them those on disk: in memory the least recently used go first, and all who want the same
//! missing chunk wait for one request.

mod memory;
mod whole;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::CHUNK;
use super::blob_file::BlobFile;
use super::disk::DiskCache;
use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest};
use memory::Chunks;
pub use memory::MemoryReservation;
use whole::Whole;

/// Most chunks in one request.
const LONGEST_RUN: u64 = 16;
/// More requests than ever are under way.
const WRITES: u32 = 1 << 16;

/// A byte in flight is there twice: in the answer, and in its copy in chunks.
const COST: u64 = 2;

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
    /// One for each request whose chunks are not on disk yet.
    unwritten: Arc<Semaphore>,
    whole: Arc<Whole>,
    chunks: Arc<Mutex<Chunks>>,
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

/// Blob and number of the chunk in it.
type Key = (Space, Digest, u64);

/// A run of chunks that has been asked for.
#[derive(Clone)]
struct Coming {
    first: u64,
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
        Self::with(source, disk, memory, Whole::default())
    }

    /// Gives out bytes only of blobs that were fetched whole and have their digest.
    pub fn of_checked(source: Arc<dyn BlobSource>, disk: Arc<DiskCache>, memory: u64) -> Self {
        Self::with(source, Some(disk), memory, Whole::of_all())
    }

    fn with(source: Arc<dyn BlobSource>, disk: Option<Arc<DiskCache>>, memory: u64, whole: Whole) -> Self {
        let in_flight = memory / 4;
        let shared = SharedState {
            source,
            disk,
            space: Space::Blob,
            memory,
            in_flight: semaphore(in_flight),
            unwritten: semaphore(u64::from(WRITES)),
            whole: Arc::new(whole),
            chunks: Arc::new(Mutex::new(Chunks::new(memory - in_flight))),
        };
        Self { shared: Arc::new(shared) }
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
        let shared = SharedState {
            source,
            disk: None,
            space: Space::Content,
            memory,
            in_flight,
            unwritten: semaphore(u64::from(WRITES)),
            whole: Arc::default(),
            chunks: Arc::clone(&self.shared.chunks),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What [`Self::keep_segment`] kept, if it is still there.
    pub fn segment(&self, blob: &Digest, number: u64) -> Option<Bytes> {
        self.shared.chunks().kept.get(&(Space::Segment, blob.clone(), number)).cloned()
    }

    /// Keeps a piece of content of any length as long as there is memory, like a chunk.
    pub fn keep_segment(&self, blob: &Digest, number: u64, content: Bytes) {
        self.shared.chunks().keep((Space::Segment, blob.clone(), number), content);
    }

    /// Takes memory away from the chunks for as long as the reservation lives. `None`: too much of it is taken already.
    pub fn reserve(&self, bytes: u64) -> Option<MemoryReservation> {
        memory::reserve(&self.shared.chunks, bytes, self.shared.memory / 4)
    }

    pub fn memory(&self) -> u64 {
        self.shared.memory
    }

    /// A range that was read before, without a request. Leaves no trace of blobs that were not.
    pub fn kept(&self, blob: &Descriptor, range: &Range<u64>) -> Option<Bytes> {
        if range.start >= range.end {
            return None;
        }
        let in_memory = self.shared.in_memory(blob, range);
        in_memory.or_else(|| self.shared.disk.as_ref()?.existing(blob)?.read(range.clone()))
    }

    /// Bytes that a request could have now without waiting for others.
    pub fn room(&self) -> u64 {
        self.shared.in_flight.available_permits() as u64 / COST
    }

    /// Starts to fetch what is missing of `range`, if there is memory to spare, and does not wait for it.
    pub fn prefetch(&self, blob: &Descriptor, range: Range<u64>) {
        // Behind the end of the blob there is nothing.
        if range.start >= range.end || self.shared.must_be_checked(blob) {
            return;
        }
        let on_disk = self.shared.on_disk(blob, &range);
        let mut chunks = self.shared.chunks();
        let missing = self.shared.missing(&chunks, blob, &range, &on_disk);
        if missing.iter().map(run_cost).sum::<u64>() < self.shared.in_flight.available_permits() as u64 {
            for run in missing {
                self.shared.ask_for(&mut chunks, blob, run);
            }
        }
    }

    fn read_range(&self, blob: &Descriptor, range: Range<u64>) -> BoxFuture<'static, Result<Bytes>> {
        if range.start >= range.end {
            return std::future::ready(Ok(Bytes::new())).boxed();
        }
        if self.shared.must_be_checked(blob) {
            return self.read_checked(blob, range);
        }
        self.read_as_it_is(blob, range)
    }

    fn read_as_it_is(&self, blob: &Descriptor, range: Range<u64>) -> BoxFuture<'static, Result<Bytes>> {
        if let Some(bytes) = self.shared.at_hand(blob, &range) {
            return std::future::ready(Ok(bytes)).boxed();
        }
        let found = self.shared.find(blob, &range);
        let (shared, blob) = (Arc::clone(&self.shared), blob.clone());
        async move {
            let mut chunks = Vec::with_capacity(found.len());
            for found in found {
                chunks.push(shared.chunk(&blob, found).await?);
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

    /// A range that is all in memory, or all on disk.
    fn at_hand(self: &Arc<Self>, blob: &Descriptor, range: &Range<u64>) -> Option<Bytes> {
        if let Some(bytes) = self.in_memory(blob, range) {
            return Some(bytes);
        }
        let file = self.disk.as_ref()?.blob(blob)?;
        let bytes = file.read(range.clone())?;
        self.look_whether_whole(blob, &file);
        Some(bytes)
    }

    fn in_memory(&self, blob: &Descriptor, range: &Range<u64>) -> Option<Bytes> {
        let mut chunks = self.chunks();
        let kept: Option<Vec<Bytes>> = chunk_numbers(range)
            .map(|number| chunks.kept.get(&(self.space, blob.digest.clone(), number)).cloned())
            .collect();
        drop(chunks);
        Some(cut_out(&kept?, range))
    }

    /// The blob on disk, and which chunks are there.
    fn on_disk(&self, blob: &Descriptor, range: &Range<u64>) -> Option<(Arc<BlobFile>, Vec<bool>)> {
        let file = self.disk.as_ref()?.blob(blob)?;
        let present = file.present(chunk_numbers(range));
        Some((file, present))
    }

    /// Runs of chunks that are neither kept, nor coming, nor on disk.
    fn missing(
        &self,
        chunks: &Chunks,
        blob: &Descriptor,
        range: &Range<u64>,
        on_disk: &Option<(Arc<BlobFile>, Vec<bool>)>,
    ) -> Vec<Range<u64>> {
        let on_disk = on_disk.iter().flat_map(|(_, present)| present.iter().copied()).chain(std::iter::repeat(false));
        let missing = chunk_numbers(range).zip(on_disk).filter(|(number, on_disk)| {
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
        runs
    }

    /// Every chunk of `range`: kept, already coming, on disk, or asked for now, one request a run.
    fn find(self: &Arc<Self>, blob: &Descriptor, range: &Range<u64>) -> Vec<Found> {
        // Not while all others wait for the chunks in memory.
        let on_disk = self.on_disk(blob, range);
        let mut chunks = self.chunks();
        for run in self.missing(&chunks, blob, range, &on_disk) {
            self.ask_for(&mut chunks, blob, run);
        }
        chunk_numbers(range)
            .filter_map(|number| {
                let key = (self.space, blob.digest.clone(), number);
                if let Some(chunk) = chunks.kept.get(&key) {
                    return Some(Found::Kept(chunk.clone()));
                }
                match chunks.coming.get(&key) {
                    Some(coming) => Some(Found::Coming(coming.clone(), number)),
                    None => on_disk.as_ref().map(|(file, _)| Found::OnDisk(Arc::clone(file), number)),
                }
            })
            .collect()
    }

    fn ask_for(self: &Arc<Self>, chunks: &mut Chunks, blob: &Descriptor, run: Range<u64>) -> Coming {
        let fetch = tokio::spawn(Arc::clone(self).fetch(blob.clone(), run.clone()));
        let object = blob.digest.clone();
        let coming = Coming {
            first: run.start,
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
                (known.unwrap_or_else(|| self.ask_for(&mut chunks, blob, number..number + 1)), number)
            }
        };
        let run = coming.run.await?;
        let place = usize::try_from(number.saturating_sub(coming.first)).unwrap_or(usize::MAX);
        Ok(run.get(place).cloned().unwrap_or_default())
    }

    /// One request. Its chunks are kept, and no longer coming, when it ends, however it ends.
    async fn fetch(self: Arc<Self>, blob: Descriptor, run: Range<u64>) -> Result<Arc<[Bytes]>> {
        let cleared = ClearComing { state: &self, blob: &blob.digest, run: run.clone() };
        let memory = self.acquire(run_cost(&run)).await;
        let bytes = self.source.read(&blob, run.start * CHUNK..(run.end * CHUNK).min(blob.size)).await?;
        // Copies, so that one kept chunk does not hold the memory of its whole run.
        let run_chunks: Arc<[Bytes]> = bytes.chunks(CHUNK as usize).map(Bytes::copy_from_slice).collect();
        drop(bytes);
        // Before it is no longer coming: who waits until all is written must not miss it.
        let unwritten = Arc::clone(&self.unwritten).acquire_owned().await.ok();
        self.keep(&blob, &run, &run_chunks);
        drop(cleared);
        if let Some(disk) = self.disk.clone() {
            let (state, blob, run_chunks) = (Arc::clone(&self), blob.clone(), Arc::clone(&run_chunks));
            tokio::task::spawn_blocking(move || {
                let file = disk.write(&blob, run.start, &run_chunks);
                drop(run_chunks);
                // Not before: a slow disk must slow the requests down.
                drop((memory, unwritten));
                if let Some(file) = file {
                    state.check_if_whole(&blob, &file);
                }
            });
        }
        Ok(run_chunks)
    }

    fn keep(&self, blob: &Descriptor, run: &Range<u64>, run_chunks: &[Bytes]) {
        let mut chunks = self.chunks();
        for (number, chunk) in run.clone().zip(run_chunks) {
            chunks.keep((self.space, blob.digest.clone(), number), chunk.clone());
        }
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

fn semaphore(bytes: u64) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(usize::try_from(bytes).unwrap_or(usize::MAX).min(u32::MAX as usize)))
}

fn chunk_numbers(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK..range.end.div_ceil(CHUNK)
}

/// Bytes in flight for a run.
fn run_cost(run: &Range<u64>) -> u64 {
    (run.end - run.start) * CHUNK * COST
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
