//! Chunks on disk: blobs with holes, by digest, shared by all mounts and processes of the user.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use tokio::sync::Semaphore;

use super::blob_file::{BlobFile, GROUP, LARGEST};
use super::eviction::{BLOBS, Bounds, Room};
use super::own_file::is_read_only;
use super::turns::{FolderTurns, Turns};
use crate::oci::{Descriptor, Digest};

/// Blobs held open at once, two files each, and a quarter of those that a process may have (`ulimit -n`, usually 1,024),
/// connections included.
const OPEN_BLOBS: u64 = 128;
/// Bytes of them all: for each MiB of an open one three bytes are held in memory.
const OPEN_BYTES: u64 = 4 << 40;
/// Of the limit: what may be written between two looks at what is used. Eight processes that write at once stay below
/// the limit together, because eviction begins a quarter before it, and a process writes twice this much at most while
/// somebody evicts.
const SHARE_UNSEEN: u64 = 64;
/// Without writing, after the disk refused.
const REST: Duration = Duration::from_secs(30);
/// Without writing, while all that is kept is being read.
const PAUSE: Duration = Duration::from_millis(200);
/// Whole blobs hashed at once.
const HASHES: usize = 2;

pub struct DiskCache {
    /// The whole cache folder; blobs are below `blobs`.
    folder: PathBuf,
    bounds: Bounds,
    /// Bytes of it in files without a name.
    unnamed: Arc<AtomicU64>,
    /// Never held over a call to the disk.
    open: Mutex<LruCache<Digest, Arc<BlobFile>>>,
    /// Who opens a blob, one at a time.
    opening: Mutex<()>,
    /// Bytes written since what is used was last counted.
    unseen: AtomicU64,
    /// Bytes used when they were last counted; `u64::MAX`: not yet.
    counted: AtomicU64,
    evicting: Mutex<()>,
    /// Until when nothing is written, after a refusal.
    resting: Mutex<Option<Instant>>,
    /// All that blocks on the disk is called in one of these while somebody waits.
    pub reads: Arc<Turns>,
    pub writes: Arc<Turns>,
    pub hashes: Semaphore,
}

impl DiskCache {
    /// `folder` need not be there yet. Nothing in it is looked at.
    pub fn new(folder: PathBuf, limit: u64, min_free: u64, unnamed: Arc<AtomicU64>) -> Self {
        let FolderTurns { reads, writes } = FolderTurns::new(&folder);
        Self {
            reads,
            writes,
            hashes: Semaphore::new(HASHES),
            folder,
            bounds: Bounds { limit, min_free },
            unnamed,
            open: Mutex::new(LruCache::unbounded()),
            opening: Mutex::default(),
            // The first write looks.
            unseen: AtomicU64::new(limit / SHARE_UNSEEN),
            counted: AtomicU64::new(u64::MAX),
            evicting: Mutex::default(),
            resting: Mutex::default(),
        }
    }

    /// With the turns of all else that is kept in the folder.
    pub fn with_turns(self, FolderTurns { reads, writes }: FolderTurns) -> Self {
        Self { reads, writes, ..self }
    }

    /// Bytes that the folder may hold.
    pub fn limit(&self) -> u64 {
        self.bounds.limit
    }

    /// Bytes of the largest blob of which nothing is given up to make room for the rest of it.
    pub fn largest_kept(&self) -> u64 {
        self.bounds.target()
    }

    /// Bytes of disk that the folder took when they were last counted; nothing before the first write.
    pub fn counted(&self) -> Option<u64> {
        Some(self.counted.load(Ordering::Relaxed)).filter(|bytes| *bytes != u64::MAX)
    }

    /// See [`Bounds::room`]. Blocks on the disk.
    pub fn room(&self, cached: u64) -> io::Result<u64> {
        self.bounds.room(&self.folder, self.unnamed.load(Ordering::Relaxed), cached)
    }

    /// Runs of the chunks that are not on disk, at most so long; those that are count as used now.
    pub fn missing(&self, blob: &Descriptor, wanted: &[Range<u64>], longest: u64) -> Vec<Range<u64>> {
        let file = self.existing(blob);
        let groups = wanted.iter().flat_map(|chunks| {
            let end = chunks.end;
            chunks.clone().step_by(GROUP as usize).map(move |first| first..first.saturating_add(GROUP).min(end))
        });
        let mut runs: Vec<Range<u64>> = Vec::new();
        for group in groups {
            let present = file.as_ref().map_or_else(Vec::new, |file| file.present(group.clone()));
            if let Some(file) = file.as_ref().filter(|_| present.contains(&true)) {
                file.note_use(&group);
            }
            for (number, _) in group.zip(present.into_iter().chain(std::iter::repeat(false))).filter(|(_, here)| !here)
            {
                match runs.last_mut() {
                    Some(run) if run.end == number && run.end - run.start < longest => run.end += 1,
                    _ => runs.push(number..number + 1),
                }
            }
        }
        runs
    }

    /// The blob, if that can be told without the disk: nothing inside is a blob that is done without.
    pub fn at_hand(&self, blob: &Descriptor) -> Option<Option<Arc<BlobFile>>> {
        if blob.size == 0 || blob.size > LARGEST {
            return Some(None);
        }
        self.opened(&blob.digest).map(|file| (file.size() == blob.size).then_some(file))
    }

    /// The blob in the folder, empty at first. `None`: it is done without. Blocks on the disk.
    pub fn blob(&self, blob: &Descriptor) -> Option<Arc<BlobFile>> {
        if let Some(known) = self.at_hand(blob) {
            return known;
        }
        let turn = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.at_hand(blob) {
            return known;
        }
        match BlobFile::open(&self.path(&blob.digest), blob.size) {
            Ok(file) => Some(self.hold_open(&blob.digest, file)),
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidData) => {
                tracing::debug!("{}: {error}; it is not kept on disk", blob.digest);
                None
            }
            Err(error) => {
                // What is there is still good to read.
                let existing = if is_read_only(&error) {
                    let existing = BlobFile::open_existing(&self.path(&blob.digest)).ok();
                    existing.filter(|file| file.size() == blob.size)
                } else {
                    None
                };
                let file = existing.map(|file| self.hold_open(&blob.digest, file));
                drop(turn);
                self.rest(&error);
                file
            }
        }
    }

    fn hold_open(&self, digest: &Digest, file: BlobFile) -> Arc<BlobFile> {
        let file = Arc::new(file);
        let most = getrlimit(Resource::Nofile).current.map_or(OPEN_BLOBS, |files| (files / 8).clamp(1, OPEN_BLOBS));
        let mut open = self.open();
        open.put(digest.clone(), Arc::clone(&file));
        let mut last = Vec::new();
        while open.len() as u64 > most || open.len() > 1 && bytes_of(&open) > OPEN_BYTES {
            last.extend(open.pop_lru());
        }
        drop(open);
        // Closing is a call to the disk, too.
        drop(last);
        file
    }

    /// The blob if it is in the folder. Blocks on the disk.
    pub fn existing(&self, blob: &Descriptor) -> Option<Arc<BlobFile>> {
        let opened = self.opened(&blob.digest);
        let file = opened.or_else(|| BlobFile::open_existing(&self.path(&blob.digest)).map(Arc::new).ok())?;
        (file.size() == blob.size).then_some(file)
    }

    fn opened(&self, digest: &Digest) -> Option<Arc<BlobFile>> {
        self.open().get(digest).cloned()
    }

    fn open(&self) -> MutexGuard<'_, LruCache<Digest, Arc<BlobFile>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(BLOBS).join(digest.algorithm()).join(digest.hex())
    }

    /// Keeps neighbouring chunks, the first of which is `first`, and gives the blob that they are in. Blocks on the
    /// disk.
    pub fn write(&self, blob: &Descriptor, first: u64, chunks: &[Bytes]) -> Option<Arc<BlobFile>> {
        if self.is_resting() {
            return None;
        }
        let mut file = self.blob(blob)?;
        if !file.is_in_place() {
            // The folder was cleared, or another is there now.
            self.open().pop(&blob.digest);
            file = self.blob(blob)?;
        }
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if !self.make_room(bytes) {
            return None;
        }
        match file.write(first, chunks) {
            Ok(()) => Some(file),
            Err(error) => {
                self.rest(&error);
                None
            }
        }
    }

    fn is_resting(&self) -> bool {
        self.resting().is_some_and(|until| Instant::now() < until)
    }

    fn resting(&self) -> MutexGuard<'_, Option<Instant>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk is full, read-only or gone: the mount goes on without writing to it, and tries again later.
    fn rest(&self, error: &io::Error) {
        if Errno::from_io_error(error) == Some(Errno::MFILE) {
            // The disk has nothing to do with it: what is held open makes room.
            let all = std::mem::replace(&mut *self.open(), LruCache::unbounded());
            return drop(all);
        }
        let mut resting = self.resting();
        let now = Instant::now();
        if resting.is_none_or(|until| until <= now) {
            *resting = now.checked_add(REST);
            drop(resting);
            tracing::warn!("{}: {error}; nothing is kept on disk for {} s", self.folder.display(), REST.as_secs());
        }
    }

    /// Whether so many bytes may be written now. Counts, and evicts, when enough has been written since it last did.
    fn make_room(&self, bytes: u64) -> bool {
        let share = self.bounds.limit / SHARE_UNSEEN;
        let unseen = self.unseen.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if unseen < share {
            return true;
        }
        let _turn = match self.evicting.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) if unseen < share * 2 => return true,
            Err(TryLockError::WouldBlock) => {
                let turn = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
                if self.unseen.load(Ordering::Relaxed) < share {
                    return true;
                }
                turn
            }
        };
        self.close_removed();
        // What is written from here on may not be seen.
        let seen = self.unseen.load(Ordering::Relaxed).saturating_sub(bytes);
        let room = self.bounds.make_room(&self.folder, self.unnamed.load(Ordering::Relaxed));
        let take_back = |bytes: u64| {
            let less = |unseen: u64| Some(unseen.saturating_sub(bytes));
            let _ = self.unseen.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        };
        if let Ok(Room::Enough(used) | Room::Full(used)) = room {
            self.counted.store(used, Ordering::Relaxed);
        }
        match room {
            Ok(Room::Enough(_)) => {
                take_back(seen);
                true
            }
            Ok(Room::Busy) if unseen < share * 2 => true,
            Ok(Room::Busy) => {
                take_back(bytes);
                false
            }
            // What is unseen stays so: the next write looks again.
            Ok(Room::Full(_)) => {
                self.unseen.store(share, Ordering::Relaxed);
                *self.resting() = Instant::now().checked_add(PAUSE);
                false
            }
            Err(error) => {
                self.unseen.store(share, Ordering::Relaxed);
                self.rest(&error);
                false
            }
        }
    }

    /// Files that were taken away take space that nobody counts as long as they are open.
    fn close_removed(&self) {
        let all: Vec<_> = self.open().iter().map(|(digest, file)| (digest.clone(), Arc::clone(file))).collect();
        for (digest, file) in all {
            if !file.is_in_place() {
                self.open().pop(&digest);
            }
        }
    }
}

fn bytes_of(open: &LruCache<Digest, Arc<BlobFile>>) -> u64 {
    open.iter().map(|(_, file)| file.size()).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::blob_file::map_path;
    use super::super::eviction::blobs_in;
    use super::super::{CHUNK, seconds_now};
    use super::*;

    fn descriptor(n: u8, chunks: u64) -> Descriptor {
        Descriptor {
            digest: Digest::sha256_of(&[n]),
            size: chunks * CHUNK,
            media_type: String::new(),
            annotations: Default::default(),
        }
    }

    fn used(folder: &Path) -> u64 {
        blobs_in(folder).unwrap().iter().map(|blob| blob.used).sum()
    }

    #[test]
    fn what_is_kept_stays_below_the_limit_with_several_writers() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 32 << 20;
        let caches: Vec<_> = (0..4).map(|_| DiskCache::new(dir.path().to_owned(), limit, 0, Arc::default())).collect();
        let chunk = Bytes::from(vec![7; CHUNK as usize]);
        std::thread::scope(|scope| {
            for (n, cache) in caches.iter().enumerate() {
                let chunk = chunk.clone();
                let folder = dir.path().to_owned();
                scope.spawn(move || {
                    for blob in 0..4 {
                        let blob = descriptor(n as u8 * 16 + blob, 256);
                        for first in (0..256).step_by(16) {
                            cache.write(&blob, first, &vec![chunk.clone(); 16]);
                            assert!(used(&folder) <= limit, "{}", used(&folder));
                        }
                    }
                });
            }
        });
        assert!(used(dir.path()) > limit / 4, "something is kept");
    }

    #[test]
    fn the_least_recently_used_goes_first_and_empty_blobs_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        let cache = DiskCache::new(folder.clone(), 32 << 20, 0, Arc::default());
        let chunk = Bytes::from(vec![7; CHUNK as usize]);
        let (old, fresh) = (descriptor(1, 128), descriptor(2, 128));
        for blob in [&old, &fresh] {
            cache.write(blob, 0, &vec![chunk.clone(); 128]);
        }
        let age = |blob: &Descriptor, seconds: u32| {
            note_uses(&map_path(&cache.path(&blob.digest)), seconds_now() - seconds);
        };
        age(&old, 1000);
        age(&fresh, 500);
        for n in 3..6 {
            cache.write(&descriptor(n, 128), 0, &vec![chunk.clone(); 128]);
        }
        assert_eq!(BlobFile::open(&cache.path(&old.digest), old.size).unwrap().cached_bytes(&(0..old.size)), 0);
        assert!(used(&folder) <= 32 << 20);
    }

    #[test]
    fn whatever_is_no_chunk_is_counted_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 64 << 20;
        let others =
            ["manifests/sha256/00", "manifests/tags/00", "indexes/sha256/00"].map(|name| dir.path().join(name));
        for file in &others {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, vec![1; 8 << 20]).unwrap();
        }
        let cache = DiskCache::new(dir.path().to_owned(), limit, 0, Arc::default());
        let chunk = Bytes::from(vec![7; CHUNK as usize]);
        for n in 0..4 {
            for first in (0..256).step_by(16) {
                cache.write(&descriptor(n, 256), first, &vec![chunk.clone(); 16]);
                assert!(used(dir.path()) + (24 << 20) <= limit);
            }
        }
        assert!(used(dir.path()) > 0 && others.iter().all(|file| fs::metadata(file).unwrap().len() == 8 << 20));
    }

    #[test]
    fn where_too_little_is_free_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(dir.path().to_owned(), 32 << 20, u64::MAX, Arc::default());
        cache.write(&descriptor(1, 16), 0, &vec![Bytes::from(vec![7; CHUNK as usize]); 16]);
        assert_eq!(cache.blob(&descriptor(1, 16)).unwrap().cached_bytes(&(0..16 * CHUNK)), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_written_only_means_that_nothing_is_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = DiskCache::new(file.path().to_owned(), 1 << 30, 0, Arc::default());
        cache.write(&descriptor(1, 1), 0, &[Bytes::from(vec![7; CHUNK as usize])]);
        assert!(cache.blob(&descriptor(1, 1)).is_none());
    }

    fn note_uses(map: &Path, seconds: u32) {
        let map = fs::File::options().write(true).open(map).unwrap();
        let then = seconds.to_le_bytes();
        std::os::unix::fs::FileExt::write_all_at(&map, &[then, then].concat(), 64).unwrap();
    }

    #[test]
    fn uses_noted_before_the_clock_was_set_back_do_not_stop_eviction() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(dir.path().to_owned(), 32 << 20, 0, Arc::default());
        let chunks = vec![Bytes::from(vec![7; CHUNK as usize]); 128];
        for n in 0..8 {
            let blob = descriptor(n, 128);
            assert!(cache.write(&blob, 0, &chunks).is_some(), "{n}");
            note_uses(&map_path(&cache.path(&blob.digest)), seconds_now() + 100_000);
        }
        assert!(used(dir.path()) <= 32 << 20);
    }

    #[test]
    fn what_is_no_blob_does_not_stop_eviction() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(dir.path().to_owned(), 32 << 20, 0, Arc::default());
        let chunks = vec![Bytes::from(vec![7; CHUNK as usize]); 128];
        let folder = dir.path().join("blobs/sha256");
        fs::create_dir_all(folder.join("folder/in.map")).unwrap();
        fs::write(folder.join("torn"), vec![1; 1 << 20]).unwrap();
        fs::write(folder.join("orphan.map"), b"x").unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.join("link.map")).unwrap();
        for n in 0..6 {
            let blob = descriptor(n, 128);
            cache.write(&blob, 0, &chunks);
            if let Some(file) = cache.existing(&blob) {
                drop(file);
                note_uses(&map_path(&cache.path(&blob.digest)), seconds_now() - 100);
            }
        }
        assert!(cache.existing(&descriptor(5, 128)).is_some_and(|file| file.seems_whole()));
        for gone in ["torn", "orphan.map", "link.map"] {
            assert!(fs::symlink_metadata(folder.join(gone)).is_err(), "{gone}");
        }
    }

    #[test]
    fn many_blobs_take_few_files() {
        let dir = tempfile::tempdir().unwrap();
        let open_files = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open_files();
        let cache = DiskCache::new(dir.path().to_owned(), 1 << 30, u64::MAX >> 1, Arc::default());
        for n in 0..500_u32 {
            let blob = Descriptor { digest: Digest::sha256_of(&n.to_le_bytes()), ..descriptor(0, 1) };
            assert!(cache.blob(&blob).is_some());
        }
        cache.write(&descriptor(1, 1), 0, &[Bytes::from(vec![7; CHUNK as usize])]);
        let now = open_files();
        assert!(now < before + 2 * OPEN_BLOBS as usize + 100, "{before} then {now}");
    }

    #[test]
    fn few_blobs_of_a_terabyte_are_held_open() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(dir.path().to_owned(), 1 << 30, 0, Arc::default());
        for n in 0..20 {
            assert!(cache.blob(&descriptor(n, LARGEST / CHUNK)).is_some());
            assert!(bytes_of(&cache.open()) <= OPEN_BYTES);
        }
        assert_eq!(cache.open().len(), 4);
    }

    #[test]
    fn a_removed_folder_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        let cache = DiskCache::new(folder.clone(), 1 << 30, 0, Arc::default());
        let (blob, chunk) = (descriptor(1, 2), Bytes::from(vec![7; CHUNK as usize]));
        assert!(cache.write(&blob, 0, std::slice::from_ref(&chunk)).is_some());
        fs::remove_dir_all(&folder).unwrap();
        assert!(cache.write(&blob, 1, std::slice::from_ref(&chunk)).is_some());
        let again = DiskCache::new(folder, 1 << 30, 0, Arc::default());
        assert_eq!(again.existing(&blob).unwrap().present(0..2), [false, true]);
    }
}
