//! What a user does with a cache folder as a whole: look, check, empty. Safe while mounts use it; see `blob_file.rs`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::blob_file::{BlobFile, Damaged, map_path};
use super::disk::{BLOBS, blobs_in, entries, files_below, used_by};
use super::{CHUNK, CacheFolder};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Digest;

/// Folders in a cache folder, beside that of the blobs, all of whose files are ours.
const OTHERS: [&str; 3] = ["indexes", "checkpoints", "manifests"];

/// A cache folder of ours, or none yet.
pub struct Upkeep {
    folder: PathBuf,
}

pub struct KeptBlob {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Bytes of the chunks that are here.
    pub cached: u64,
    /// Second since 1970; 0: never.
    pub last_use: u32,
    /// Whether the whole blob was seen to have its digest.
    pub verified: bool,
    path: PathBuf,
}

/// Bytes of disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Sizes {
    pub blobs: u64,
    /// Indexes, checkpoints, and what else is kept.
    pub others: u64,
}

/// What came of checking a blob.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    pub chunks: u64,
    /// Of them: damaged, and dropped.
    pub damaged: u64,
    /// Of a blob that is here as a whole: whether it has its digest. All of one that has not is dropped.
    pub digest_holds: Option<bool>,
}

#[derive(Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cleared {
    /// Bytes of disk given back.
    pub freed: u64,
    /// Blobs that a mount has open: emptied, not removed.
    pub in_use: u64,
}

impl Upkeep {
    /// # Errors
    /// If something else is in the folder.
    pub fn of(folder: &Path) -> Result<Self> {
        let upkeep = Self { folder: folder.to_owned() };
        if upkeep.is_ours().map_err(|error| upkeep.failed(&error))? {
            return Ok(upkeep);
        }
        let cause = "not a cache folder of eo-mount: something else is in it";
        Err(Error::new(ErrorKind::Usage, folder.display(), cause).hint("name the right one with --cache-dir"))
    }

    fn is_ours(&self) -> io::Result<bool> {
        // An image layout has its blobs at the same place.
        if self.folder.join("oci-layout").exists() {
            return Ok(false);
        }
        let mut foreign = false;
        for entry in entries(&self.folder)? {
            let name = entry?.file_name();
            foreign |= name != BLOBS && !OTHERS.iter().any(|folder| name == *folder);
        }
        if fs::metadata(&self.folder).is_ok_and(|metadata| !metadata.is_dir()) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(!foreign || !self.paths()?.is_empty() || !self.other_files()?.is_empty())
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::new(ErrorKind::Io, self.folder.display(), format!("cannot use the cache folder: {error}"))
    }

    /// Blobs with a map beside them, and maps that are left alone. Others' files have none.
    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for algorithm in entries(&self.folder.join(BLOBS))? {
            for file in entries(&algorithm?.path())? {
                let path = file?.path();
                if path.extension().is_some_and(|extension| extension == "map") && digest_of(&path).is_some() {
                    paths.push(path.with_extension(""));
                }
            }
        }
        Ok(paths)
    }

    fn other_files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for folder in OTHERS {
            files.extend(files_below(&self.folder.join(folder))?);
        }
        let is_named_by_us = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let hex = name.rsplit('-').next().unwrap_or(name);
            let unfinished = path.parent().is_some_and(|parent| parent.ends_with("new"));
            unfinished || (hex.len() >= 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        };
        files.retain(is_named_by_us);
        Ok(files)
    }

    /// Sorted by digest.
    pub fn blobs(&self) -> Result<Vec<KeptBlob>> {
        self.kept_blobs().map_err(|error| self.failed(&error))
    }

    fn kept_blobs(&self) -> io::Result<Vec<KeptBlob>> {
        let mut blobs = Vec::new();
        for path in self.paths()? {
            let Some(digest) = digest_of(&path) else { continue };
            let Ok(size) = fs::metadata(&path).map(|metadata| metadata.len()) else { continue };
            let file = BlobFile::open(&path, size)?;
            let last_use = file.uses()?.into_iter().max().unwrap_or(0);
            let (cached, verified) = (file.cached_bytes(), file.is_blob_checked());
            blobs.push(KeptBlob { digest, size, cached, last_use, verified, path });
        }
        blobs.sort_by(|one, other| one.digest.cmp(&other.digest));
        Ok(blobs)
    }

    pub fn sizes(&self) -> Result<Sizes> {
        let count = || {
            let blobs = blobs_in(&self.folder)?.iter().map(|blob| blob.used).sum();
            Ok(Sizes { blobs, others: super::disk::others_in(&self.folder)? })
        };
        count().map_err(|error| self.failed(&error))
    }

    /// Evicts until the folder holds no more than `limit` bytes, or the usual; that, and how many it holds then.
    pub fn prune(&self, limit: Option<u64>) -> Result<(u64, u64)> {
        let folder = CacheFolder::open(&self.folder, limit)?;
        let limit = folder.limit();
        let disk = folder.disk_cache(0);
        let used = disk.map_or(Ok(0), |disk| disk.prune(limit)).map_err(|error| self.failed(&error))?;
        Ok((limit, used))
    }

    /// Reads all chunks of a blob and drops what is wrong.
    pub fn verify(&self, blob: &KeptBlob) -> Result<Checked> {
        self.check(blob).map_err(|error| self.failed(&error))
    }

    fn check(&self, blob: &KeptBlob) -> io::Result<Checked> {
        let file = BlobFile::open(&blob.path, blob.size)?;
        let mut checked = Checked { chunks: 0, damaged: 0, digest_holds: None };
        let mut whole = Some(blob.digest.hasher());
        let chunks = blob.size.div_ceil(CHUNK);
        for chunk in 0..chunks {
            match file.check(chunk) {
                Ok(Some(bytes)) => {
                    checked.chunks += 1;
                    whole.iter_mut().for_each(|hasher| hasher.update(&bytes));
                }
                Ok(None) => whole = None,
                Err(Damaged) => {
                    checked.chunks += 1;
                    checked.damaged += 1;
                    whole = None;
                }
            }
        }
        if let Some(hasher) = whole {
            let holds = hasher.check(&blob.digest).is_ok();
            match holds {
                true => file.set_blob_checked()?,
                false => file.forget(0..chunks)?,
            }
            checked.digest_holds = Some(holds);
        }
        Ok(checked)
    }

    /// Removes all that is ours.
    pub fn clear(&self) -> Result<Cleared> {
        self.remove_all().map_err(|error| self.failed(&error))
    }

    fn remove_all(&self) -> io::Result<Cleared> {
        let mut cleared = Cleared::default();
        for path in self.paths()? {
            let before = used_by(&path);
            // Whoever has a blob open has its map locked.
            let map = File::open(map_path(&path))?;
            if flock(&map, FlockOperation::NonBlockingLockExclusive).is_ok() {
                remove(&path)?;
                remove(&map_path(&path))?;
                cleared.freed += before;
            } else if let Ok(size) = fs::metadata(&path).map(|metadata| metadata.len()) {
                BlobFile::open(&path, size)?.forget(0..size.div_ceil(CHUNK))?;
                cleared.freed += before.saturating_sub(used_by(&path));
                cleared.in_use += 1;
            }
        }
        for path in self.other_files()? {
            cleared.freed +=
                fs::metadata(&path).map_or(0, |metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512);
            remove(&path)?;
        }
        for folder in OTHERS.iter().chain([&BLOBS]) {
            remove_empty(&self.folder.join(folder))?;
        }
        Ok(cleared)
    }
}

fn digest_of(path: &Path) -> Option<Digest> {
    let algorithm = path.parent()?.file_name()?.to_str()?;
    format!("{algorithm}:{}", path.file_stem()?.to_str()?).parse().ok()
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A folder and those in it, as far as nothing is in them.
fn remove_empty(folder: &Path) -> io::Result<()> {
    for entry in entries(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}
