//! Chunks on disk: blobs with holes, by digest, shared by all mounts and processes of the user.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use rustix::fs::{FlockOperation, flock};

use super::blob_file::{BlobFile, GROUP, map_path};
use super::{CHUNK, seconds_now};
use crate::oci::{Descriptor, Digest};

/// Folder of the blobs in the cache folder.
pub(super) const BLOBS: &str = "blobs";
/// Blobs held open at once, two files each.
const OPEN_BLOBS: usize = 256;
/// Of the limit: what may be written between two looks at what is used. Eight processes that write at once stay below
/// the limit together, because eviction begins an eighth before it.
const SHARE_UNSEEN: u64 = 64;
/// Seconds without writing after the disk refused.
const REST: u32 = 30;
/// Seconds in which a group counts as being read.
const IN_USE: u32 = 2;

pub struct DiskCache {
    /// The whole cache folder; blobs are below `blobs`.
    folder: PathBuf,
    /// Bytes that the whole folder may hold.
    limit: u64,
    /// Bytes of it in files without a name.
    unnamed: Arc<AtomicU64>,
    /// Bytes of the file system that are left free.
    min_free: u64,
    open: Mutex<LruCache<Digest, Arc<BlobFile>>>,
    /// Bytes written since what is used was last counted.
    unseen: AtomicU64,
    /// Bytes used when they were last counted; `u64::MAX`: not yet.
    counted: AtomicU64,
    /// Held while what is used is counted, and by who writes right after.
    counting: Mutex<()>,
    /// Second until which nothing is written, after a refusal.
    resting: AtomicU64,
}

impl DiskCache {
    /// `folder` need not be there yet. Nothing in it is looked at.
    pub fn new(folder: PathBuf, limit: u64, min_free: u64, unnamed: Arc<AtomicU64>) -> Self {
        Self {
            folder,
            limit,
            unnamed,
            min_free,
            open: Mutex::new(LruCache::unbounded()),
            // The first write looks.
            unseen: AtomicU64::new(limit),
            counted: AtomicU64::new(u64::MAX),
            counting: Mutex::default(),
            resting: AtomicU64::new(0),
        }
    }

    pub fn blob(&self, blob: &Descriptor) -> Option<Arc<BlobFile>> {
        if blob.size == 0 || self.is_resting() {
            return None;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&blob.digest) {
            return Some(Arc::clone(file));
        }
        match BlobFile::open(&self.path(&blob.digest), blob.size) {
            Ok(file) => {
                let file = Arc::new(file);
                open.put(blob.digest.clone(), Arc::clone(&file));
                if open.len() > OPEN_BLOBS {
                    open.pop_lru();
                }
                Some(file)
            }
            Err(error) => {
                drop(open);
                self.rest(&error);
                None
            }
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(BLOBS).join(digest.algorithm()).join(digest.hex())
    }

    /// Keeps neighbouring chunks, the first of which is `first`. Blocks on the disk.
    pub fn write(&self, blob: &Descriptor, first: u64, chunks: &[Bytes]) {
        let Some(file) = self.blob(blob) else { return };
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let Some(_turn) = self.make_room(bytes) else { return };
        if let Err(error) = file.write(first, chunks) {
            self.rest(&error);
        }
    }

    fn is_resting(&self) -> bool {
        u64::from(seconds_now()) < self.resting.load(Ordering::Relaxed)
    }

    /// The disk is full, read-only or gone: the mount goes on without it, and tries again later.
    fn rest(&self, error: &io::Error) {
        let until = u64::from(seconds_now().saturating_add(REST));
        if self.resting.swap(until, Ordering::Relaxed) == 0 {
            tracing::warn!("{}: {error}; going on without the cache on disk for now", self.folder.display());
        }
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether so many bytes may be written now. Counts, and evicts, when enough has been written since it last did; what
    /// is given back is to be held while they are written.
    fn make_room(&self, bytes: u64) -> Option<Option<MutexGuard<'_, ()>>> {
        let is_little = || self.unseen.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) < self.share_unseen();
        if is_little() {
            return Some(None);
        }
        let turn = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have counted meanwhile.
        if is_little() {
            return Some(Some(turn));
        }
        // A quarter of it more than must be: not again at the next write.
        let room = self.evict(self.limit / 8 * 7, self.limit / 4 * 3).unwrap_or_else(|error| {
            self.rest(&error);
            false
        });
        self.unseen.store(bytes, Ordering::Relaxed);
        room.then_some(Some(turn))
    }

    fn share_unseen(&self) -> u64 {
        self.limit / SHARE_UNSEEN
    }

    /// Bytes on disk when they were last counted; nothing before the first write.
    pub fn counted(&self) -> Option<u64> {
        Some(self.counted.load(Ordering::Relaxed)).filter(|bytes| *bytes != u64::MAX)
    }

    /// Bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes of blobs that can be kept without one of them driving out another, if `cached` bytes of them are here.
    /// Blocks on the disk.
    pub fn room(&self, cached: u64) -> io::Result<u64> {
        let others = others_in(&self.folder)?.saturating_add(self.unnamed.load(Ordering::Relaxed));
        let blobs: u64 = blobs_in(&self.folder)?.iter().map(|blob| blob.used).sum();
        let given_up = blobs.saturating_sub(cached);
        let free = free_bytes(&self.folder)?.saturating_sub(self.min_free).saturating_add(given_up);
        Ok((self.limit / 4 * 3).saturating_sub(others).min(cached.saturating_add(free)))
    }

    /// Evicts until at most `target` bytes are used; how many then are.
    pub fn prune(&self, target: u64) -> io::Result<u64> {
        let _turn = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        self.evict(target, target)?;
        Ok(self.counted().unwrap_or(0))
    }

    /// Runs of chunks that are not on disk, at most so long; those that are count as used now.
    pub fn missing(&self, blob: &Descriptor, chunks: Range<u64>, longest: u64) -> Vec<Range<u64>> {
        let file = self.blob(blob);
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut at = chunks.start;
        while at < chunks.end {
            let group = at..chunks.end.min(at.saturating_add(GROUP));
            at = group.end;
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

    /// If more than `start` bytes are used, brings that down to `target`, the least recently used groups first. Says
    /// whether it is below `start` now.
    fn evict(&self, start: u64, target: u64) -> io::Result<bool> {
        let blobs = blobs_in(&self.folder)?;
        let others = others_in(&self.folder)?.saturating_add(self.unnamed.load(Ordering::Relaxed));
        let used: u64 = blobs.iter().map(|blob| blob.used).sum::<u64>().saturating_add(others);
        self.counted.store(used, Ordering::Relaxed);
        let short_of_free = self.min_free.saturating_sub(free_bytes(&self.folder)?);
        if used <= start && short_of_free == 0 {
            return Ok(true);
        }
        let target = target.min(used.saturating_sub(short_of_free));
        let mut groups = Vec::new();
        let mut files = Vec::new();
        for blob in blobs {
            let Ok(file) = BlobFile::open(&blob.path, blob.size) else { continue };
            let uses = file.uses()?;
            groups.extend(uses.into_iter().enumerate().map(|(group, used)| (used, files.len(), group as u64)));
            files.push((blob, file));
        }
        // A time to come is that of a clock set back since: as old as can be.
        let now = seconds_now();
        groups.sort_by_key(|(used, ..)| if *used > now.saturating_add(60) { 0 } else { *used });
        let mut left = used;
        for (last_use, place, group) in groups {
            let in_use = last_use.saturating_add(IN_USE) > now && left <= self.limit;
            if left <= target || in_use {
                break;
            }
            let Some((blob, file)) = files.get_mut(place) else { continue };
            let chunks = group * GROUP..((group + 1) * GROUP).min(blob.size.div_ceil(CHUNK));
            if !file.present(chunks.clone()).contains(&true) {
                continue;
            }
            file.forget(chunks)?;
            let now_used = used_by(&blob.path);
            left = left.saturating_sub(blob.used.saturating_sub(now_used));
            blob.used = now_used;
        }
        for (blob, file) in files {
            drop(file);
            if blob.used <= 4096 {
                remove_unused(&blob.path)?;
            }
        }
        self.counted.store(left, Ordering::Relaxed);
        Ok(left <= start)
    }
}

/// A blob in the cache.
pub struct Kept {
    pub path: PathBuf,
    pub size: u64,
    /// Bytes of disk.
    pub used: u64,
}

/// All blobs in a cache folder, which may not exist.
pub fn blobs_in(folder: &Path) -> io::Result<Vec<Kept>> {
    let mut blobs = Vec::new();
    for algorithm in entries(&folder.join(BLOBS))? {
        for blob in entries(&algorithm?.path())? {
            let blob = blob?;
            let path = blob.path();
            if path.extension().is_none()
                && let Ok(metadata) = blob.metadata()
            {
                blobs.push(Kept { used: used_by(&path), path, size: metadata.len() });
            }
        }
    }
    Ok(blobs)
}

/// Bytes of disk that everything else in a cache folder takes.
pub(super) fn others_in(folder: &Path) -> io::Result<u64> {
    let mut used = 0;
    for entry in entries(folder)? {
        let entry = entry?;
        let files = match entry.file_type()?.is_dir() {
            true if entry.file_name() == BLOBS => Vec::new(),
            true => files_below(&entry.path())?,
            false => vec![entry.path()],
        };
        let metadata = files.iter().filter_map(|file| fs::symlink_metadata(file).ok());
        used += metadata.map(|metadata| metadata.blocks() * 512).sum::<u64>();
    }
    Ok(used)
}

/// Regular files, however deep.
pub(super) fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(below) = folders.pop() {
        for entry in entries(&below)? {
            let entry = entry?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(files)
}

pub(super) fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Not a folder: whatever it is, no blobs are in it.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        other => other.map(Some),
    }
    .map(|entries| entries.into_iter().flatten())
}

/// Bytes of disk that a blob and its map take.
pub(super) fn used_by(path: &Path) -> u64 {
    let blocks = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.blocks());
    (blocks(path) + blocks(&map_path(path))) * 512
}

/// Takes a blob without chunks away, unless somebody has it open.
fn remove_unused(path: &Path) -> io::Result<()> {
    let map = fs::File::open(map_path(path))?;
    if flock(&map, FlockOperation::NonBlockingLockExclusive).is_ok() {
        fs::remove_file(path)?;
        fs::remove_file(map_path(path))?;
    }
    Ok(())
}

/// Of the file system.
fn free_bytes(folder: &Path) -> io::Result<u64> {
    let file_system = rustix::fs::statvfs(existing(folder))?;
    Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
}

fn existing(folder: &Path) -> &Path {
    folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
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
            let map = fs::File::options().write(true).open(map_path(&cache.path(&blob.digest))).unwrap();
            let then = (seconds_now() - seconds).to_le_bytes();
            std::os::unix::fs::FileExt::write_all_at(&map, &[then, then].concat(), 64).unwrap();
        };
        age(&old, 1000);
        age(&fresh, 500);
        for n in 3..6 {
            cache.write(&descriptor(n, 128), 0, &vec![chunk.clone(); 128]);
        }
        assert_eq!(BlobFile::open(&cache.path(&old.digest), old.size).unwrap().cached_bytes(), 0);
        assert!(used(&folder) <= 32 << 20);
    }

    #[test]
    fn a_folder_that_cannot_be_written_only_means_that_nothing_is_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = DiskCache::new(file.path().to_owned(), 1 << 30, 0, Arc::default());
        cache.write(&descriptor(1, 1), 0, &[Bytes::from(vec![7; CHUNK as usize])]);
        assert!(cache.blob(&descriptor(1, 1)).is_none());
    }
}
