//! Chunks in memory, and behind them those on disk: in memory the least recently used go first, and all who want the same
//! missing chunk wait for one request.

mod answers;
mod fetch;
mod memory;
mod on_disk;
mod passing;
mod whole;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use futures_util::stream::BoxStream;
use tokio::sync::Semaphore;

use super::CHUNK;
use super::blob_file::{BlobFile, Missing};
use super::counters::{Counters, add};
use super::cut::{COST, chunk_numbers, cut_out, overlap};
use super::disk::DiskCache;
use crate::blob::BlobSource;
use crate::error::Result;
use crate::oci::{Descriptor, Digest};
use memory::Chunks;
pub use memory::MemoryReservation;
use on_disk::OnDisk;
use whole::Whole;

/// Chunks that are fetched together by who fetches all of a blob.
pub const LONGEST_RUN: u64 = 16;
/// Most chunks in one request.
const LONGEST_REQUEST: u64 = 32;
/// Bytes on their way that keep a line busy.
const MUCH: u64 = 1 << 20;
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

    /// Bytes that could be asked for now without waiting for others, and come soon.
    pub fn room(&self) -> u64 {
        let room = self.shared.in_flight.available_permits() as u64 / COST;
        room.min(self.shared.source.soon())
    }

    /// Whether so much is on its way that the line has no bytes to spare.
    pub fn is_fetching(&self) -> bool {
        let all = (self.shared.memory / 4).min(u32::MAX.into());
        all.saturating_sub(self.shared.in_flight.available_permits() as u64) > MUCH * COST
    }

    /// Long answers that there may be at once.
    pub fn long_answers(&self) -> usize {
        self.shared.source.long_answers()
    }

    /// Starts to fetch what is missing of `range`, if there is memory to spare, and does not wait for it. Up to `until`
    /// all will be wanted, and may come in one answer, which waits for memory.
    pub fn prefetch(&self, blob: &Descriptor, range: Range<u64>, until: Option<u64>) {
        // Behind the end of the blob there is nothing.
        if range.start >= range.end || self.shared.must_be_checked_at_once(blob) {
            return;
        }
        let looked_at = range.start..until.unwrap_or(range.end);
        if let Some(on_disk) = self.shared.on_disk_at_once(blob, &looked_at) {
            return self.shared.fetch_ahead(blob, &range, until, &on_disk);
        }
        let (shared, blob) = (Arc::clone(&self.shared), blob.clone());
        tokio::spawn(async move {
            let on_disk = shared.on_disk(&blob, &looked_at).await;
            shared.fetch_ahead(&blob, &range, until, &on_disk);
        });
    }

    fn read_range(&self, blob: &Descriptor, range: Range<u64>) -> BoxFuture<'static, Result<Bytes>> {
        if range.start >= range.end {
            return std::future::ready(Ok(Bytes::new())).boxed();
        }
        if self.shared.must_be_checked_at_once(blob) {
            return self.read_checked(blob, range);
        }
        self.read_as_it_is(blob, range)
    }

    fn read_as_it_is(&self, blob: &Descriptor, range: Range<u64>) -> BoxFuture<'static, Result<Bytes>> {
        let shared = Arc::clone(&self.shared);
        if let Some(bytes) = shared.in_memory(blob, &range) {
            add(&shared.counters.memory, bytes.len() as u64);
            return std::future::ready(Ok(bytes)).boxed();
        }
        let at_once = match shared.read_at_once(blob, &range) {
            None => Some(None),
            Some(Ok(bytes)) => {
                add(&shared.counters.disk, bytes.len() as u64);
                return std::future::ready(Ok(bytes)).boxed();
            }
            Some(Err(Missing::Unknown)) => None,
            Some(Err(_)) => shared.on_disk_at_once(blob, &range),
        };
        match (at_once, &shared.disk) {
            (None, Some(disk)) => Arc::clone(&shared).read_of_disk(Arc::clone(disk), blob.clone(), range).boxed(),
            (on_disk, _) => shared.gather(blob.clone(), range, on_disk.flatten()).boxed(),
        }
    }
}

impl BlobSource for ChunkCache {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        self.read_range(blob, range)
    }

    fn stream<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxStream<'a, Result<Bytes>> {
        self.pass_on(blob, range)
    }
}

impl SharedState {
    fn chunks(&self) -> MutexGuard<'_, Chunks> {
        // A panic elsewhere leaves the maps whole: each change is one call.
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A range whose chunks are in different places. What is missing is asked for before this returns; where it comes slowly, only
    /// the first of it, or the last would use up its time while it waits for the others.
    fn gather(
        self: &Arc<Self>,
        blob: Descriptor,
        range: Range<u64>,
        on_disk: Option<OnDisk>,
    ) -> impl Future<Output = Result<Bytes>> + Send + use<> {
        let shared = Arc::clone(self);
        let mut numbers = chunk_numbers(&range);
        let mut found = self.find(&blob, self.soon(&numbers), &on_disk);
        async move {
            let mut chunks = Vec::new();
            while !numbers.is_empty() {
                for found in found {
                    shared.count(&found, numbers.next().map_or(0, |number| overlap(number, &range)));
                    chunks.push(shared.chunk(&blob, found).await?);
                }
                found = shared.find(&blob, shared.soon(&numbers), &on_disk);
            }
            Ok(cut_out(&chunks, &range))
        }
    }

    /// The first of these chunks, which come soon.
    fn soon(&self, numbers: &Range<u64>) -> Range<u64> {
        let most = (self.source.soon() / CHUNK).max(1);
        numbers.start..numbers.end.min(numbers.start.saturating_add(most))
    }

    /// Runs of chunks that are neither kept, nor coming, nor on disk.
    fn missing(
        &self,
        chunks: &Chunks,
        blob: &Descriptor,
        numbers: Range<u64>,
        on_disk: &Option<OnDisk>,
    ) -> Vec<Range<u64>> {
        let missing = numbers.filter(|number| {
            let key = (self.space, blob.digest.clone(), *number);
            let on_disk = on_disk.as_ref().is_some_and(|on_disk| on_disk.has(*number));
            !on_disk && !chunks.contains(&key) && !chunks.coming.contains_key(&key)
        });
        let mut runs: Vec<Range<u64>> = Vec::new();
        for number in missing {
            match runs.last_mut() {
                Some(run) if run.end == number && number - run.start < self.longest => run.end += 1,
                _ => runs.push(number..number + 1),
            }
        }
        runs
    }

    /// Every one of these chunks: kept, already coming, on disk, or asked for now, one request a run.
    fn find(self: &Arc<Self>, blob: &Descriptor, numbers: Range<u64>, on_disk: &Option<OnDisk>) -> Vec<Found> {
        let mut chunks = self.chunks();
        for run in self.missing(&chunks, blob, numbers.clone(), on_disk) {
            self.ask_for(&mut chunks, blob, run, false);
        }
        numbers
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
                    None => on_disk.as_ref().map(|on_disk| Found::OnDisk(Arc::clone(&on_disk.file), number)),
                }
            })
            .collect()
    }

    async fn chunk(self: &Arc<Self>, blob: &Descriptor, found: Found) -> Result<Bytes> {
        match found {
            Found::Kept(chunk) => Ok(chunk),
            Found::OnDisk(file, number) => self.chunk_of_disk(blob, file, number).await,
            Found::Coming(coming, number) => coming.chunk(number).await,
        }
    }

    /// A chunk that is neither kept nor on disk.
    async fn fetched(self: &Arc<Self>, blob: &Descriptor, number: u64) -> Result<Bytes> {
        let coming = {
            let mut chunks = self.chunks();
            let known = chunks.coming.get(&(self.space, blob.digest.clone(), number)).cloned();
            known.unwrap_or_else(|| self.ask_for(&mut chunks, blob, number..number + 1, false))
        };
        coming.chunk(number).await
    }
}

impl Coming {
    async fn chunk(self, number: u64) -> Result<Bytes> {
        let run = self.run.await?;
        let place = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
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
        cache.prefetch(&blob, 9 * CHUNK..size, None);
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
