//! What a user does with a cache folder as a whole: look, check, empty. Safe while mounts use it; see `blob_file.rs`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::blob_file::{BlobFile, Missing};
use super::eviction::{
    BLOBS, Bounds, LOCK, blobs_in, blocks, bytes_of, entries, lock, remove_unused, used_by, used_elsewhere,
};
use super::{CHUNK, CacheFolder};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Digest;

/// Folders in a cache folder, beside that of the blobs, all of whose files are ours.
const OTHERS: [&str; 4] = ["indexes", "checkpoints", "manifests", "uploads"];

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
            foreign |= name != BLOBS && name != LOCK && !OTHERS.iter().any(|folder| name == *folder);
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
            let is_unfinished = path.parent().is_some_and(|parent| parent.ends_with("new")) && name.starts_with(".tmp");
            is_unfinished || (hex.len() >= 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
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
            // Being made or taken away just now, or of another version.
            let Ok(file) = BlobFile::open_existing(&path) else { continue };
            let last_use = file.uses()?.into_iter().max().unwrap_or(0);
            let size = file.size();
            let (cached, verified) = (file.cached_bytes(&(0..size)), file.is_blob_checked());
            blobs.push(KeptBlob { digest, size, cached, last_use, verified, path });
        }
        blobs.sort_by(|one, other| one.digest.cmp(&other.digest));
        Ok(blobs)
    }

    pub fn sizes(&self) -> Result<Sizes> {
        let count = || Ok(Sizes { blobs: bytes_of(&blobs_in(&self.folder)?), others: used_elsewhere(&self.folder)? });
        count().map_err(|error| self.failed(&error))
    }

    /// Evicts until the folder holds no more than `limit` bytes, or the usual; that, and how many it holds then.
    pub fn prune(&self, limit: Option<u64>) -> Result<(u64, u64)> {
        let limit = CacheFolder::open(&self.folder, limit)?.limit();
        let bounds = Bounds { limit, min_free: 0 };
        let used = bounds.prune(&self.folder).map_err(|error| self.failed(&error))?;
        Ok((limit, used))
    }

    /// Reads all chunks of a blob and drops what is wrong.
    pub fn verify(&self, blob: &KeptBlob) -> Result<Checked> {
        self.check(blob).map_err(|error| self.failed(&error))
    }

    fn check(&self, blob: &KeptBlob) -> io::Result<Checked> {
        let mut checked = Checked { chunks: 0, damaged: 0, digest_holds: None };
        // Evicted since it was listed.
        let Ok(file) = BlobFile::open_existing(&blob.path) else { return Ok(checked) };
        let generation = file.generation()?;
        let mut whole = Some(blob.digest.hasher());
        for (chunk, here) in file.groups().flat_map(|group| group.clone().zip(file.present(group))) {
            if !here {
                whole = None;
                continue;
            }
            match file.check(chunk * CHUNK..((chunk + 1) * CHUNK).min(blob.size)) {
                Ok(bytes) => {
                    checked.chunks += 1;
                    whole.iter_mut().for_each(|hasher| hasher.update(&bytes));
                }
                Err(Missing::NotHere | Missing::Unknown) => whole = None,
                Err(Missing::Damaged(_)) => {
                    checked.chunks += 1;
                    checked.damaged += 1;
                    whole = None;
                }
            }
        }
        // Nothing was given up meanwhile.
        let hasher = whole.filter(|_| file.generation().is_ok_and(|now| now == generation));
        if let Some(hasher) = hasher {
            let holds = hasher.check(&blob.digest).is_ok();
            match holds {
                true => file.set_blob_checked(generation)?,
                false => file.drop_all()?,
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
        if !self.folder.exists() {
            return Ok(cleared);
        }
        // Only one process at a time gives chunks up.
        let lock = lock(&self.folder, FlockOperation::LockExclusive)?;
        for path in self.paths()? {
            let before = used_by(&path);
            if !remove_unused(&path) {
                // One that is just being made holds nothing.
                if let Ok(file) = BlobFile::open_existing(&path) {
                    file.groups().try_for_each(|chunks| file.forget(chunks))?;
                }
                cleared.in_use += 1;
            }
            cleared.freed += before.saturating_sub(used_by(&path));
        }
        for path in self.other_files()? {
            cleared.freed += blocks(&path);
            remove(&path)?;
        }
        for folder in OTHERS.iter().chain([&BLOBS]) {
            remove_empty(&self.folder.join(folder))?;
        }
        remove(&self.folder.join(LOCK))?;
        drop(lock);
        Ok(cleared)
    }
}

fn digest_of(path: &Path) -> Option<Digest> {
    let algorithm = path.parent()?.file_name()?.to_str()?;
    format!("{algorithm}:{}", path.file_stem()?.to_str()?).parse().ok()
}

/// Regular files, however deep.
fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
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
