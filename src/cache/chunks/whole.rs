//! Whole blobs: one whose chunks are all on disk is hashed against its digest. One that was wrong is given out again only when
//! it was fetched anew and is right; with `--verify=blob` that is so for every blob from the start.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Shared};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use super::{CHUNK, ChunkCache, Found, LONGEST_RUN, SharedState, Space, WRITES, chunk_numbers};
use crate::cache::blob_file::BlobFile;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest};

/// Bytes fetched or hashed at once.
const STEP: u64 = LONGEST_RUN * CHUNK;
/// Steps fetched at once.
const STEPS: usize = 8;
/// Attempts to have all chunks of a blob on disk: others may evict some.
const ATTEMPTS: u32 = 3;

/// What is known of whole blobs beside the flags in their maps.
#[derive(Default)]
pub struct Whole {
    /// Every blob is checked before it is read.
    all: bool,
    state: Mutex<State>,
    on_wrong: Mutex<Vec<OnWrong>>,
}

#[derive(Default)]
struct State {
    /// Had another digest, and were not right since.
    distrusted: HashSet<Digest>,
    /// Being hashed because they happen to be whole.
    hashing: HashSet<Digest>,
    /// Being fetched and checked because somebody waits for it.
    coming: HashMap<Digest, Check>,
}

type OnWrong = Box<dyn Fn(&Digest) + Send + Sync>;
type Check = Shared<BoxFuture<'static, Result<()>>>;

impl Whole {
    pub fn of_all() -> Self {
        Self { all: true, ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_wrong(&self) -> MutexGuard<'_, Vec<OnWrong>> {
        self.on_wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChunkCache {
    /// Bytes of these ranges of the blob that are on disk, and whether it is whole there and has its digest.
    pub async fn kept_on_disk(&self, blob: &Descriptor, ranges: Vec<Range<u64>>) -> (u64, bool) {
        let Some(disk) = self.shared.disk.clone() else { return (0, false) };
        let (reads, blob) = (Arc::clone(&disk.reads), blob.clone());
        let look = move || {
            let file = disk.existing(&blob)?;
            Some((ranges.iter().map(|range| file.cached_bytes(range)).sum(), file.is_blob_checked()))
        };
        reads.run(look).await.flatten().unwrap_or_default()
    }

    /// Bytes of a range of the blob that are on disk. Blocks on it.
    pub fn cached_bytes(&self, blob: &Descriptor, range: &Range<u64>) -> u64 {
        let file = self.shared.disk.as_ref().and_then(|disk| disk.existing(blob));
        file.map_or(0, |file| file.cached_bytes(range))
    }

    /// Ends when all that has been fetched is on disk, and blobs that became whole by it are checked.
    pub async fn settle(&self) {
        self.shared.settle().await;
    }

    /// Whether the blob had another digest when it was checked last, and was not right since.
    pub fn is_wrong(&self, blob: &Descriptor) -> bool {
        self.shared.whole.state().distrusted.contains(&blob.digest)
    }

    /// Has this called with the digest of each blob that turns out to be another, when nothing of it is given out any more.
    pub fn on_wrong(&self, call: impl Fn(&Digest) + Send + Sync + 'static) {
        self.shared.whole.on_wrong().push(Box::new(call));
    }

    pub(super) fn read_checked(&self, blob: &Descriptor, range: Range<u64>) -> BoxFuture<'static, Result<Bytes>> {
        let (cache, blob) = (Self { shared: Arc::clone(&self.shared) }, blob.clone());
        async move {
            if cache.shared.must_be_checked(&blob).await {
                cache.shared.checked(&blob).await?;
            }
            cache.read_as_it_is(&blob, range).await
        }
        .boxed()
    }
}

impl SharedState {
    fn is_to_be_checked(&self, blob: &Descriptor) -> bool {
        self.space == Space::Blob
            && blob.size > 0
            && (self.whole.all || self.whole.state().distrusted.contains(&blob.digest))
    }

    /// Whether nothing of it may be given out yet; also where only the disk can tell.
    pub(super) fn must_be_checked_at_once(&self, blob: &Descriptor) -> bool {
        let known = || self.disk.as_ref()?.at_hand(blob)??.is_blob_checked_at_once();
        self.is_to_be_checked(blob) && known() != Some(true)
    }

    pub(super) async fn must_be_checked(&self, blob: &Descriptor) -> bool {
        if !self.must_be_checked_at_once(blob) {
            return false;
        }
        let Some(disk) = self.disk.clone() else { return true };
        let (reads, blob) = (Arc::clone(&disk.reads), blob.clone());
        !reads.run(move || disk.blob(&blob).is_some_and(|file| file.is_blob_checked())).await.unwrap_or(false)
    }

    async fn settle(&self) {
        // Whoever has fetched something meanwhile waits behind this.
        let _all = self.unwritten.acquire_many(WRITES).await;
    }

    /// All who want a blob checked wait for one attempt, which goes on if they give up.
    fn checked(self: &Arc<Self>, blob: &Descriptor) -> Check {
        let mut whole = self.whole.state();
        if let Some(check) = whole.coming.get(&blob.digest) {
            return check.clone();
        }
        let (state, of) = (Arc::clone(self), blob.clone());
        let work = tokio::spawn(async move {
            let checked = state.fetch_and_check(&of).await;
            let mut whole = state.whole.state();
            whole.coming.remove(&of.digest);
            if checked.is_ok() {
                whole.distrusted.remove(&of.digest);
            }
            checked
        });
        let (state, digest) = (Arc::clone(self), blob.digest.clone());
        let check = async move {
            work.await.unwrap_or_else(|panic| {
                state.whole.state().coming.remove(&digest);
                Err(Error::new(ErrorKind::Io, &digest, panic))
            })
        };
        whole.coming.entry(blob.digest.clone()).or_insert(check.boxed().shared()).clone()
    }

    async fn fetch_and_check(self: &Arc<Self>, blob: &Descriptor) -> Result<()> {
        let no_room = || {
            let cause = format!("the cache folder has no room to check it whole: it has {} bytes", blob.size);
            Error::new(ErrorKind::NoSpace, &blob.digest, cause).hint("allow more with --cache-size")
        };
        let disk = self.disk.as_ref().filter(|disk| blob.size <= disk.limit() / 2).ok_or_else(no_room)?;
        for _ in 0..ATTEMPTS {
            // What is kept in memory alone would not be fetched, and so not be written.
            self.chunks().forget(&blob.digest);
            let (opening, of) = (Arc::clone(disk), blob.clone());
            let file = disk.reads.run(move || opening.blob(&of)).await.flatten().ok_or_else(no_room)?;
            let steps = (0..blob.size).step_by(STEP as usize).map(|at| at..(at + STEP).min(blob.size));
            let fetched = stream::iter(steps).map(|range| Ok(self.fetch_step(blob, range)));
            fetched.try_buffer_unordered(STEPS).try_collect::<Vec<()>>().await?;
            self.settle().await;
            let (state, of) = (Arc::clone(self), blob.clone());
            let check = move || {
                let hashed = if file.seems_whole() { hash(&of, &file) } else { Hashed::Changed };
                if let Hashed::Wrong(error) = &hashed {
                    state.drop_wrong(&of, &file, error);
                }
                hashed
            };
            match tokio::task::spawn_blocking(check).await {
                Ok(Hashed::Right) => return Ok(()),
                Ok(Hashed::Wrong(error)) => return Err(error),
                Ok(Hashed::Changed) => {}
                Err(panic) => return Err(Error::new(ErrorKind::Io, &blob.digest, panic)),
            }
        }
        Err(no_room())
    }

    /// Has the chunks of a range on disk, or on their way to it.
    async fn fetch_step(self: &Arc<Self>, blob: &Descriptor, range: Range<u64>) -> Result<()> {
        let on_disk = self.on_disk(blob, &range).await;
        for found in self.find(blob, chunk_numbers(&range), &on_disk) {
            if let Found::Coming(..) = found {
                self.chunk(blob, found).await?;
            }
        }
        Ok(())
    }

    /// Once for each time that a blob is opened: an earlier process may have ended before it was hashed.
    pub(super) fn look_whether_whole(self: &Arc<Self>, blob: &Descriptor, file: &Arc<BlobFile>) {
        if file.is_first_look() {
            let (state, blob, file) = (Arc::clone(self), blob.clone(), Arc::clone(file));
            tokio::spawn(async move { state.check_if_whole(blob, file).await });
        }
    }

    /// Hashes a blob that has become whole, unless that was done.
    pub(super) async fn check_if_whole(self: &Arc<Self>, blob: Descriptor, file: Arc<BlobFile>) {
        // Each may take long, and for ever on a disk that hangs.
        let Some(disk) = &self.disk else { return };
        let Ok(_turn) = disk.hashes.acquire().await else { return };
        let state = Arc::clone(self);
        // A panic there was told.
        let _ = tokio::task::spawn_blocking(move || state.hash_if_whole(&blob, &file)).await;
    }

    fn hash_if_whole(&self, blob: &Descriptor, file: &BlobFile) {
        // Who waits for a blob checks it there.
        if self.whole.all || !file.seems_whole() || file.is_blob_checked() {
            return;
        }
        let mut whole = self.whole.state();
        if whole.distrusted.contains(&blob.digest) || !whole.hashing.insert(blob.digest.clone()) {
            return;
        }
        drop(whole);
        let hashed = hash(blob, file);
        let mut whole = self.whole.state();
        whole.hashing.remove(&blob.digest);
        if let Hashed::Wrong(error) = hashed {
            // From here on nothing of it is given out.
            whole.distrusted.insert(blob.digest.clone());
            drop(whole);
            self.drop_wrong(blob, file, &error);
        }
    }

    fn drop_wrong(&self, blob: &Descriptor, file: &BlobFile, error: &Error) {
        tracing::error!("{error}; it is dropped, and read again only when it was fetched anew and is right");
        self.chunks().forget(&blob.digest);
        if let Err(error) = file.drop_all() {
            tracing::warn!("{}: {error}", blob.digest);
        }
        for call in self.whole.on_wrong().iter() {
            call(&blob.digest);
        }
    }
}

enum Hashed {
    Right,
    Wrong(Error),
    /// Chunks were given up or found damaged meanwhile, or the mark could not be made.
    Changed,
}

/// Hashes a blob on disk. One that has its digest is marked.
fn hash(blob: &Descriptor, file: &BlobFile) -> Hashed {
    let Ok(generation) = file.generation() else { return Hashed::Changed };
    let mut hasher = blob.digest.hasher();
    for at in (0..blob.size).step_by(STEP as usize) {
        match file.read(at..(at + STEP).min(blob.size)) {
            Some(bytes) => hasher.update(&bytes),
            None => return Hashed::Changed,
        }
    }
    let hashed = hasher.check(&blob.digest);
    if !file.generation().is_ok_and(|now| now == generation) {
        return Hashed::Changed;
    }
    match hashed {
        Ok(()) if file.set_blob_checked(generation).is_ok() => Hashed::Right,
        Ok(()) => Hashed::Changed,
        Err(error) => Hashed::Wrong(error),
    }
}
