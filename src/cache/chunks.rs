//! Chunks in memory, and behind them those on disk: in memory the least recently used go first, and all who want the same
//! missing chunk wait for one request.

mod fetch;
mod memory;
mod passing;
mod whole;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;

use super::CHUNK;
use super::blob_file::BlobFile;
use super::counters::{Counters, add};
use super::cut::{COST, chunk_numbers, cut_out, overlap, run_cost};
use super::disk::DiskCache;
use crate::blob::BlobSource;
use crate::error::Result;
use crate::oci::{Descriptor, Digest};
use memory::Chunks;
pub use memory::MemoryReservation;
use whole::Whole;

/// Chunks that are fetched together by who fetches all of a blob.
pub const LONGEST_RUN: u64 = 16;
/// Most chunks in one request.
const LONGEST_REQUEST: u64 = 32;
/// More requests than ever are under way.
const WRITES: u32 = 1 << 16;

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
    /// Most chunks in one request: it must fit, and leave room for others.
    longest: u64,
    /// One for each request whose chunks are not on disk yet.
    unwritten: Arc<Semaphore>,
    whole: Arc<Whole>,
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

/// Blob and number of the chunk in it.
type Key = (Space, Digest, u64);

/// A run of chunks that has been asked for.
#[derive(Clone)]
struct Coming {
    first: u64,
    /// Nobody has asked for it yet.
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
        Self::with(source, disk, memory, Whole::default())
    }

    /// Gives out bytes only of blobs that were fetched whole and have their digest.
    pub fn of_checked(source: Arc<dyn BlobSource>, disk: Arc<DiskCache>, memory: u64) -> Self {
        Self::with(source, Some(disk), memory, Whole::of_all())
    }

    fn with(source: Arc<dyn BlobSource>, disk: Option<Arc<DiskCache>>, memory: u64, whole: Whole) -> Self {
        let in_flight = memory / 4;
        let counters: Arc<Counters> = Arc::default();
        let shared = SharedState {
            source,
            disk,
            space: Space::Blob,
            memory,
            in_flight: semaphore(in_flight),
            longest: longest_request(in_flight),
            unwritten: semaphore(u64::from(WRITES)),
            whole: Arc::new(whole),
            chunks: Arc::new(Mutex::new(Chunks::new(memory - in_flight, Arc::clone(&counters)))),
            counters,
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
            longest: longest_request(memory / 8),
            unwritten: semaphore(u64::from(WRITES)),
            whole: Arc::default(),
            chunks: Arc::clone(&self.shared.chunks),
            counters: Arc::clone(&self.shared.counters),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What [`Self::keep_segment`] kept, if it is still there.
    pub fn segment(&self, blob: &Digest, number: u64) -> Option<Bytes> {
        self.shared.chunks().get(&(Space::Segment, blob.clone(), number))
    }

    /// Keeps a piece of content of any length as long as there is memory, like a chunk.
    pub fn keep_segment(&self, blob: &Digest, number: u64, content: Bytes) {
        self.shared.chunks().keep((Space::Segment, blob.clone(), number), content, false);
    }

    /// Takes memory away from the chunks for as long as the reservation lives. `None`: too much of it is taken already.
    pub fn reserve(&self, bytes: u64) -> Option<MemoryReservation> {
        memory::reserve(&self.shared.chunks, bytes, self.shared.memory / 4)
    }

    pub fn memory(&self) -> u64 {
        self.shared.memory
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    pub fn disk(&self) -> Option<&Arc<DiskCache>> {
        self.shared.disk.as_ref()
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

    /// Gives up all that is kept of a blob, because some of it has proven wrong: what is wanted again is fetched again.
    pub fn drop_wrong(&self, blob: &Descriptor) {
        self.shared.chunks().forget(&blob.digest);
        if let Some(Err(error)) = self.disk().and_then(|disk| disk.existing(blob)).map(|file| file.drop_all()) {
            tracing::warn!("{}: {error}", blob.digest);
        }
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
        if missing.iter().map(run_cost).sum::<u64>() >= self.shared.in_flight.available_permits() as u64 {
            return;
        }
        for run in missing {
            self.shared.ask_for(&mut chunks, blob, run, true);
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
            for (number, found) in chunk_numbers(&range).zip(found) {
                shared.count(&found, overlap(number, &range));
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
            add(&self.counters.memory, bytes.len() as u64);
            return Some(bytes);
        }
        let file = self.disk.as_ref()?.blob(blob)?;
        let bytes = file.read(range.clone())?;
        add(&self.counters.disk, bytes.len() as u64);
        self.look_whether_whole(blob, &file);
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

    fn in_memory(&self, blob: &Descriptor, range: &Range<u64>) -> Option<Bytes> {
        let mut chunks = self.chunks();
        let kept: Option<Vec<Bytes>> =
            chunk_numbers(range).map(|number| chunks.get(&(self.space, blob.digest.clone(), number))).collect();
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
            !on_disk && !chunks.contains(&key) && !chunks.coming.contains_key(&key)
        });
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (number, _) in missing {
            match runs.last_mut() {
                Some(run) if run.end == number && number - run.start < self.longest => run.end += 1,
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
                            add(&self.counters.ahead_used, overlap(number, &(0..blob.size)));
                        }
                        Some(Found::Coming(coming.clone(), number))
                    }
                    None => on_disk.as_ref().map(|(file, _)| Found::OnDisk(Arc::clone(file), number)),
                }
            })
            .collect()
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
}

/// Chunks, where so many bytes may be in flight.
fn longest_request(in_flight: u64) -> u64 {
    (in_flight / 2 / COST / CHUNK).clamp(1, LONGEST_REQUEST)
}

fn semaphore(bytes: u64) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(usize::try_from(bytes).unwrap_or(usize::MAX).min(u32::MAX as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    #[tokio::test]
    async fn read_ahead_past_the_end_of_a_blob_on_disk_fetches_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(DiskCache::new(dir.path().to_owned(), 1 << 30, 0, Arc::default()));
        let cache = ChunkCache::new(Arc::new(Nothing), Some(disk), 1 << 24);
        let annotations = Default::default();
        let size = 3 * CHUNK + 1;
        let blob = Descriptor { digest: Digest::sha256_of(b""), size, media_type: String::new(), annotations };
        cache.prefetch(&blob, 9 * CHUNK..size);
        cache.settle().await;
        assert_eq!(cache.counters().ahead().fetched, 0);
    }

    struct Nothing;

    impl BlobSource for Nothing {
        fn read<'a>(&'a self, _: &'a Descriptor, _: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
            std::future::ready(Err(Error::new(ErrorKind::Io, "nothing", "asked"))).boxed()
        }
    }
}
