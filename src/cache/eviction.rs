//! How much lies in the cache folder, and which of it goes: the least recently used groups of chunks of all blobs.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::blob_file::{BlobFile, GROUP, map_path};
use super::own_file::{is_at, open_or_make, open_own};
use super::seconds_now;

/// Folder of the blobs in the cache folder.
pub const BLOBS: &str = "blobs";
/// Locked by the one process that gives chunks up.
pub const LOCK: &str = "eviction.lock";
/// Seconds in which a group counts as being read.
const IN_USE: u32 = 2;
/// Seconds: a use so much later than now was noted before the clock was set back.
const AHEAD: u32 = 60;

/// Bytes.
pub struct Bounds {
    /// What the whole folder may hold.
    pub limit: u64,
    /// What is left free of its file system.
    pub min_free: u64,
}

/// How much is used then, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Room {
    Enough(u64),
    /// All that is there is being read, or is none of ours.
    Full(u64),
    /// Another process is at it.
    Busy,
}

/// A blob in the cache.
pub struct Kept {
    pub path: PathBuf,
    pub size: u64,
    /// Bytes of disk.
    pub used: u64,
}

/// What may go: a group of a blob.
struct Candidate {
    /// Second of the last use; 0 where that is not known.
    used: u32,
    /// In the list of blobs.
    blob: usize,
    group: u64,
}

impl Bounds {
    /// Brings what is used below its mark, the least recently used groups first. `unnamed`: bytes in files without a
    /// name.
    pub fn make_room(&self, folder: &Path, unnamed: u64) -> io::Result<Room> {
        super::folder::make_private(folder)?;
        match lock(folder, FlockOperation::NonBlockingLockExclusive)? {
            // A quarter is left for what is written before the next look.
            Some(_lock) => {
                let (used, is_enough) = self.bring_below(self.limit / 4 * 3, self.target(), folder, unnamed)?;
                Ok(if is_enough { Room::Enough(used) } else { Room::Full(used) })
            }
            None => Ok(Room::Busy),
        }
    }

    /// The same down to the limit itself, for somebody who waits for it: how many bytes are used then.
    pub fn prune(&self, folder: &Path) -> io::Result<u64> {
        let _lock = lock(folder, FlockOperation::LockExclusive)?;
        Ok(self.bring_below(self.limit, self.limit, folder, 0)?.0)
    }

    /// Bytes of blobs that can be kept without one of them driving out another, if `cached` bytes of them are here.
    pub fn room(&self, folder: &Path, unnamed: u64, cached: u64) -> io::Result<u64> {
        let elsewhere = used_elsewhere(folder)?.saturating_add(unnamed);
        let given_up = bytes_of(&blobs_in(folder)?).saturating_sub(cached);
        let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        let free = free_bytes(existing)?.saturating_sub(self.min_free).saturating_add(given_up);
        Ok(self.target().saturating_sub(elsewhere).min(cached.saturating_add(free)))
    }

    /// More is given up than must be: not again at the next write.
    pub fn target(&self) -> u64 {
        self.limit / 8 * 5
    }

    /// If more than `start` bytes are used, or too few are free, brings that down to `target`: what is used then, and
    /// whether that is little enough.
    fn bring_below(&self, start: u64, target: u64, folder: &Path, unnamed: u64) -> io::Result<(u64, bool)> {
        let mut blobs = blobs_in(folder)?;
        let used = bytes_of(&blobs) + used_elsewhere(folder)? + unnamed;
        let short_of_free = self.min_free.saturating_sub(free_bytes(folder)?);
        if used <= start && short_of_free == 0 {
            return Ok((used, true));
        }
        let target = target.min(used.saturating_sub(short_of_free));
        let left = self.evict(&mut blobs, used, target);
        Ok((left, left <= start && used.saturating_sub(left) >= short_of_free))
    }

    /// Bytes left. A blob that cannot be evicted from is passed over.
    fn evict(&self, blobs: &mut [Kept], used: u64, target: u64) -> u64 {
        let now = seconds_now();
        let mut candidates = Vec::new();
        for (place, blob) in blobs.iter().enumerate() {
            match candidates_of(blob, place, now) {
                Ok(some) if some.is_empty() => drop(remove_unused(&blob.path)),
                Ok(some) => candidates.extend(some),
                Err(error) if is_no_blob(&error) => drop(remove_unused(&blob.path)),
                Err(error) => tracing::debug!("{}: {error}", blob.path.display()),
            }
        }
        candidates.sort_by_key(|candidate| candidate.used);
        let mut left = used;
        let mut opened: Option<(usize, BlobFile)> = None;
        let mut touched = BTreeSet::new();
        for Candidate { used, blob: place, group } in candidates {
            let is_read = used.saturating_add(IN_USE) > now && left <= self.limit;
            if left <= target || is_read {
                break;
            }
            let Some(blob) = blobs.get_mut(place) else { continue };
            let file = match opened.take() {
                Some((open, file)) if open == place => file,
                _ => match BlobFile::open_existing(&blob.path) {
                    Ok(file) => file,
                    Err(_) => continue,
                },
            };
            if let Err(error) = file.forget(group * GROUP..(group + 1) * GROUP) {
                tracing::debug!("{}: {error}", blob.path.display());
            }
            let now_used = used_by(&blob.path);
            left = left.saturating_sub(blob.used.saturating_sub(now_used));
            blob.used = now_used;
            touched.insert(place);
            opened = Some((place, file));
        }
        drop(opened);
        for blob in touched.into_iter().filter_map(|place| blobs.get(place)) {
            if BlobFile::open_existing(&blob.path).is_ok_and(|file| file.cached_bytes(&(0..blob.size)) == 0) {
                remove_unused(&blob.path);
            }
        }
        left
    }
}

/// Held by the one process that gives chunks up, until it is dropped. `None`: another has it, and `operation` does not
/// wait.
pub fn lock(folder: &Path, operation: FlockOperation) -> io::Result<Option<File>> {
    let path = folder.join(LOCK);
    loop {
        let lock = open_or_make(&path)?;
        match flock(&lock, operation) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            other => other?,
        }
        // Who clears the folder takes it away.
        if is_at(&lock, &path) {
            return Ok(Some(lock));
        }
    }
}

/// The groups of a blob that hold anything, with their last use.
fn candidates_of(blob: &Kept, place: usize, now: u32) -> io::Result<Vec<Candidate>> {
    let file = BlobFile::open_existing(&blob.path)?;
    // What was torn by a full disk or the end of a process is in no map.
    let torn = blob.used > file.cached_bytes(&(0..blob.size)).saturating_add(1 << 20);
    let mut candidates = Vec::new();
    for ((group, chunks), used) in (0..).zip(file.groups()).zip(file.uses()?) {
        let holds = file.present(chunks).contains(&true);
        if holds || torn {
            let used = if holds && used <= now.saturating_add(AHEAD) { used } else { 0 };
            candidates.push(Candidate { used, blob: place, group });
        }
    }
    Ok(candidates)
}

/// All blobs in a cache folder, which may not exist.
pub fn blobs_in(folder: &Path) -> io::Result<Vec<Kept>> {
    let mut blobs = Vec::new();
    for algorithm in entries(&folder.join(BLOBS))? {
        for blob in entries(&algorithm?.path())? {
            let blob = blob?;
            let path = blob.path();
            let size = blob.metadata().map_or(0, |metadata| metadata.len());
            if path.extension().is_none() {
                blobs.push(Kept { used: used_by(&path), path, size });
            } else if fs::symlink_metadata(path.with_extension("")).is_err() {
                // A map without its blob.
                let path = path.with_extension("");
                blobs.push(Kept { used: used_by(&path), path, size: 0 });
            }
        }
    }
    Ok(blobs)
}

pub fn bytes_of(blobs: &[Kept]) -> u64 {
    blobs.iter().map(|blob| blob.used).sum()
}

/// Of the file system.
fn free_bytes(folder: &Path) -> io::Result<u64> {
    let file_system = rustix::fs::statvfs(folder)?;
    Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
}

/// Bytes of disk that everything else in a cache folder takes, folders included.
pub fn used_elsewhere(folder: &Path) -> io::Result<u64> {
    let mut used = blocks(folder);
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    let blobs = folder.join(BLOBS);
    while let Some(below) = folders.pop() {
        let is_blob = below.parent() == Some(&blobs);
        for entry in entries(&below)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => {
                    used += metadata.blocks() * 512;
                    folders.push(entry.path());
                }
                Ok(metadata) if !is_blob => used += metadata.blocks() * 512,
                _ => {}
            }
        }
    }
    Ok(used)
}

pub fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    match fs::read_dir(folder) {
        // Not there, or not a folder: whatever it is, nothing is in it.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        other => other.map(Some),
    }
    .map(|entries| entries.into_iter().flatten())
}

/// Bytes of disk that a blob and its map take.
pub fn used_by(path: &Path) -> u64 {
    blocks(path) + blocks(&map_path(path))
}

pub fn blocks(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

/// Not of what went wrong in reading it.
fn is_no_blob(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData)
        || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// Takes a blob away, unless somebody has it open: it stays then, and that is false.
pub fn remove_unused(path: &Path) -> bool {
    let alone = |map: File| flock(&map, FlockOperation::NonBlockingLockExclusive).map(|()| map);
    let unused = match open_own(&map_path(path), &mut OpenOptions::new()) {
        Ok(map) => alone(map).map_err(io::Error::from),
        Err(error) => Err(error),
    };
    // Whoever has just made the one file without the other sees that it is gone.
    let goes = unused.as_ref().map_or_else(is_no_blob, |_| true);
    if goes {
        let _ = fs::remove_file(path);
        let _ = fs::remove_file(map_path(path));
    }
    goes
}
