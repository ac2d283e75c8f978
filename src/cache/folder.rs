//! The cache folder, and the bound on what lies in it.

use std::fs::{DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use super::disk::DiskCache;
use super::own_file::{is_full, is_read_only};
use super::turns::{FolderTurns, WAKING};
use crate::error::{Error, ErrorKind, Result};

/// Bytes; or a tenth of the file system, whichever is smaller: how much the folder holds if nobody says otherwise.
const USUAL: u64 = 10 << 30;

#[derive(Clone)]
pub struct CacheFolder {
    path: PathBuf,
    limit: u64,
    used: Arc<AtomicU64>,
    turns: FolderTurns,
}

impl CacheFolder {
    /// Makes the folder if need be, for its owner alone, and tries to write in it. `limit`: bytes that it may hold.
    pub fn open(path: &Path, limit: Option<u64>) -> Result<Self> {
        let fail = |error: std::io::Error| {
            Error::new(ErrorKind::Io, path.display(), format!("cannot use the cache folder: {error}"))
                .hint("choose another with --cache-dir")
        };
        // Its blobs are where ours would be.
        if path.join("oci-layout").exists() {
            return Err(fail(std::io::Error::other("it is an image layout")));
        }
        match unnamed_file(path) {
            Err(error) if is_read_only(&error) && path.is_dir() => {
                tracing::warn!("{}: {error}; what is in it is used, and nothing is added", path.display());
            }
            made => drop(made.map_err(fail)?),
        }
        let file_system = rustix::fs::statvfs(path).map_err(|error| fail(error.into()))?;
        let usual = USUAL.min(file_system.f_blocks.saturating_mul(file_system.f_frsize) / 10);
        let limit = limit.unwrap_or(usual);
        Ok(Self { path: path.to_owned(), limit, used: Arc::default(), turns: FolderTurns::new(path) })
    }

    /// The same of a disk that may hang: an error if it does not answer within `patience`.
    pub async fn open_within(path: &Path, limit: Option<u64>, turns: &FolderTurns, patience: Duration) -> Result<Self> {
        let (folder, own) = (path.to_owned(), turns.clone());
        let open = move || Self::open(&folder, limit).map(|folder| Self { turns: own, ..folder });
        turns.reads.run_within(patience.min(WAKING), open).await.unwrap_or_else(|| {
            let error = Error::new(ErrorKind::TimedOut, path.display(), "the disk of the cache folder does not answer");
            Err(error.hint("choose another with --cache-dir"))
        })
    }

    /// The same for who does without it if it cannot be used; the log says so.
    pub async fn open_if_usable(
        path: &Path,
        limit: Option<u64>,
        turns: &FolderTurns,
        patience: Duration,
    ) -> Option<Self> {
        let opened = Self::open_within(path, limit, turns, patience).await;
        opened.inspect_err(|error| tracing::warn!("{error}; going on without a cache on disk")).ok()
    }

    /// What a call that writes there gives, which takes its time. `None`: too long, the disk hangs.
    pub(super) async fn in_turn<T: Send + 'static>(&self, call: impl FnOnce(&Self) -> T + Send + 'static) -> Option<T> {
        let folder = self.clone();
        if self.turns.reads.hangs() {
            return None;
        }
        self.turns.writes.run_within(WAKING, move || call(&folder)).await
    }

    pub fn turns(&self) -> &FolderTurns {
        &self.turns
    }

    /// The chunks of blobs in this folder, `min_free` bytes of whose file system stay free. `None`: its file system
    /// cannot hold files with holes, or hangs, and the log says so.
    pub async fn disk_cache(&self, min_free: u64) -> Option<DiskCache> {
        let folder = self.clone();
        self.turns.reads.run(move || folder.disk_cache_if_holes(min_free)).await.flatten()
    }

    fn disk_cache_if_holes(&self, min_free: u64) -> Option<DiskCache> {
        match self.holds_holes() {
            Ok(true) => {}
            // What is there is still good to read.
            Err(error) if is_read_only(&error) || is_full(&error) => {}
            result => {
                let why = result.err().map_or_else(String::new, |error| format!(" ({error})"));
                let folder = self.path.display();
                tracing::warn!(
                    "{folder}: its file system cannot hold files with holes{why}; going on without chunks on disk"
                );
                return None;
            }
        }
        let disk = DiskCache::new(self.path.clone(), self.limit, min_free, Arc::clone(&self.used));
        Some(disk.with_turns(self.turns.clone()))
    }

    pub(super) fn holds_holes(&self) -> std::io::Result<bool> {
        const LENGTH: u64 = 1 << 20;
        let file = unnamed_file(&self.path)?;
        file.set_len(LENGTH)?;
        let blocks_of_hole = file.metadata()?.blocks();
        file.write_all_at(&[1; 64 << 10], 0)?;
        fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, LENGTH)?;
        Ok(blocks_of_hole * 512 < LENGTH / 2 && file.metadata()?.blocks() * 512 < LENGTH / 2)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// A file without a name, and the space that it may take.
    pub fn unnamed_file(&self) -> Result<(File, Reservation)> {
        let file = unnamed_file(&self.path).map_err(|error| {
            Error::new(ErrorKind::Io, self.path.display(), format!("cannot write in the cache folder: {error}"))
                .hint("make it writable again, or choose another with --cache-dir")
        })?;
        Ok((file, self.space()))
    }

    /// Nothing so far.
    pub(super) fn space(&self) -> Reservation {
        let folder = self.path.display().to_string();
        Reservation { folder, limit: self.limit, used: Arc::clone(&self.used), bytes: 0 }
    }
}

/// For its owner alone, should it get a name. Makes the folder if it is not there, or not any more.
fn unnamed_file(folder: &Path) -> std::io::Result<File> {
    make_private(folder)?;
    let file = tempfile::tempfile_in(folder)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Makes a folder for its owner alone, and those above it.
pub fn make_private(folder: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Space in the cache folder, given back on drop.
#[derive(Debug)]
pub struct Reservation {
    folder: String,
    limit: u64,
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Reservation {
    pub fn grow(&mut self, bytes: u64) -> Result<()> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes = self.bytes.saturating_add(bytes);
        if before.saturating_add(bytes) <= self.limit {
            return Ok(());
        }
        let cause = format!("unpacked layers would take more than the {} bytes allowed", self.limit);
        Err(Error::new(ErrorKind::NoSpace, &self.folder, cause)
            .hint("allow more with --cache-size, or choose another with --cache-dir"))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_over_all_files_and_space_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = CacheFolder { limit: 100, ..CacheFolder::open(&dir.path().join("a/b"), None).unwrap() };
        let (_, mut first) = folder.unnamed_file().unwrap();
        let (_, mut second) = folder.unnamed_file().unwrap();
        first.grow(60).unwrap();
        let error = second.grow(60).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSpace);
        assert!(error.to_string().contains("the 100 bytes allowed"), "{error}");
        drop((first, second));
        folder.unnamed_file().unwrap().1.grow(100).unwrap();
    }

    #[test]
    fn an_image_layout_is_not_used_as_a_cache() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("oci-layout"), "{}").unwrap();
        let error = CacheFolder::open(dir.path(), None).err().unwrap();
        assert!(error.to_string().contains("image layout"), "{error}");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = CacheFolder::open(&file.path().join("x"), None).err().unwrap();
        assert!(error.to_string().contains("cannot use the cache folder"), "{error}");
    }
}
