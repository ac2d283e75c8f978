//! Fills an image layout on disk (OCI image specification, image-layout.md), whoever else does so at the same time.
//!
//! A blob is written beside its place, synced and renamed: under its digest it is there whole, or not at all. What a
//! killed process leaves is removed by the next one that opens the layout: whoever still writes holds a lock.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::error::{Error, ErrorKind, Result};
use crate::oci::media_types;
use crate::oci::{Digest, Hasher, LARGEST_MANIFEST, REF_NAME};

/// How the names of unfinished files begin.
const UNFINISHED: &str = ".eo-mount-";
/// Where the lock of the layout is; also what makes a folder one. It is never replaced.
const MARKER: &str = "oci-layout";
const INDEX: &str = "index.json";
/// Bytes: an index names manifests, each with some hundred.
const LARGEST_INDEX: u64 = 16 * LARGEST_MANIFEST;

#[derive(Debug, Clone)]
pub struct LayoutWriter {
    directory: PathBuf,
}

/// A blob that is in the layout now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
    /// It was there before, and was left as it is.
    pub existed: bool,
}

impl LayoutWriter {
    /// A layout that is there, or a new one in a folder that is empty or not there. Blocks, as all here does that is
    /// not async.
    pub fn open(directory: &Path) -> Result<Self> {
        let layout = Self { directory: directory.to_owned() };
        let failed = |error| layout.failed(&error);
        fs::create_dir_all(directory).map_err(failed)?;
        let names = fs::read_dir(directory).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        if !names.is_empty() && !names.iter().any(|entry| entry.file_name() == MARKER) {
            let cause = "it is not empty, and no image layout";
            return Err(Error::new(ErrorKind::Usage, directory.display(), cause).hint("choose another folder"));
        }
        let mut lock = layout.lock().map_err(failed)?;
        let mut marker = String::new();
        (&lock).take(LARGEST_MANIFEST).read_to_string(&mut marker).map_err(failed)?;
        if marker.is_empty() {
            lock.write_all(json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes()).map_err(failed)?;
            lock.sync_all().map_err(failed)?;
        } else if !serde_json::from_str::<Value>(&marker)
            .is_ok_and(|marker| marker.get("imageLayoutVersion").is_some_and(|version| version == "1.0.0"))
        {
            let cause = "an image layout of a version that is not known";
            return Err(Error::new(ErrorKind::Unsupported, directory.display(), cause).hint("choose another folder"));
        }
        layout.sweep();
        Ok(layout)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether a blob of that digest and size is there. Its bytes are not looked at.
    pub fn has(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.path_of(digest)).is_ok_and(|found| found.is_file() && found.len() == size)
    }

    /// A blob whose digest is known when it is finished.
    pub fn new_blob(&self) -> Result<BlobWriter> {
        self.writer(Hasher::sha256())
    }

    /// The bytes have this digest, of whatever algorithm.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<Blob> {
        let (digest, size) = (digest.clone(), bytes.len() as u64);
        if self.has(&digest, size) {
            return Ok(Blob { digest, size, existed: true });
        }
        let mut blob = self.writer(digest.hasher())?;
        blob.write_all(bytes).map_err(|error| self.failed(&error))?;
        blob.finish()
    }

    /// Names a manifest in `index.json`: `entry` is its descriptor. The tag is taken from any other that has it.
    pub fn tag(&self, entry: Value, tag: Option<&str>) -> Result<()> {
        self.list(vec![(entry, tag)])
    }

    /// Several at once.
    pub fn list(&self, mut entries: Vec<(Value, Option<&str>)>) -> Result<()> {
        for (entry, tag) in &mut entries {
            let Some(entry) = entry.as_object_mut() else { continue };
            let annotations = entry.entry("annotations").or_insert_with(|| json!({}));
            if let Some(annotations) = annotations.as_object_mut() {
                // A manifest's own annotations give it no tag.
                annotations.remove(REF_NAME);
                annotations.extend(tag.map(|tag| (REF_NAME.to_owned(), tag.into())));
                if annotations.is_empty() {
                    entry.remove("annotations");
                }
            }
        }
        let _lock = self.lock().map_err(|error| self.failed(&error))?;
        self.sync(&self.directory.join("blobs").join("sha256"));
        let mut index = self.index()?;
        let broken = || {
            let cause = "its index.json is none of an image layout";
            Error::new(ErrorKind::Corrupt, self.directory.display(), cause).hint("choose another folder")
        };
        let manifests = index.get_mut("manifests").and_then(Value::as_array_mut).ok_or_else(broken)?;
        // What an entry is known by.
        fn key<'a>(entry: &'a Value, tag: Option<&'a str>) -> (Option<&'a str>, Option<&'a str>) {
            (tag, entry.get("digest").and_then(Value::as_str).filter(|_| tag.is_none()))
        }
        let replaced: HashSet<_> = entries.iter().map(|(entry, tag)| key(entry, *tag)).collect();
        manifests.retain(|other| {
            let tag = other.get("annotations").and_then(|all| all.get(REF_NAME)).and_then(Value::as_str);
            !replaced.contains(&key(other, tag))
        });
        manifests.extend(entries.iter().map(|(entry, _)| entry.clone()));
        let write = || {
            let mut file = self.unfinished()?;
            serde_json::to_writer(&mut file, &index)?;
            file.as_file().sync_all()?;
            file.persist(self.directory.join(INDEX))?;
            Ok(())
        };
        write().map_err(|error: io::Error| self.failed(&error))?;
        self.sync(&self.directory);
        Ok(())
    }

    fn index(&self) -> Result<Value> {
        let path = self.directory.join(INDEX);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(LARGEST_INDEX).read_to_end(&mut bytes)) {
            Ok(_) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::new(ErrorKind::Corrupt, path.display(), error).hint("choose another folder")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(json!({
                "schemaVersion": 2,
                "mediaType": media_types::IMAGE_INDEX,
                "manifests": []
            })),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn writer(&self, hasher: Hasher) -> Result<BlobWriter> {
        let open = || {
            // Whoever sweeps has this lock, too, so that no file is seen before it is locked itself.
            let _lock = self.lock()?;
            let file = self.unfinished()?;
            hold(file.as_file())?;
            Ok(file)
        };
        let file = open().map_err(|error| self.failed(&error))?;
        Ok(BlobWriter { layout: self.clone(), file, hasher, size: 0 })
    }

    fn unfinished(&self) -> io::Result<NamedTempFile> {
        // As any new file: the umask says who may read it.
        let mode = Permissions::from_mode(0o666);
        tempfile::Builder::new().prefix(UNFINISHED).permissions(mode).tempfile_in(&self.directory)
    }

    /// Given back when the file is closed.
    fn lock(&self) -> io::Result<File> {
        let marker = self.directory.join(MARKER);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(marker)?;
        hold(&file)?;
        Ok(file)
    }

    /// Removes what killed processes have left. The layout is locked.
    fn sweep(&self) {
        for left in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let unfinished = left.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes());
            let nobody = |file: File| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if unfinished
                && left.file_type().is_ok_and(|kind| kind.is_file())
                && File::open(left.path()).is_ok_and(nobody)
            {
                let _ = fs::remove_file(left.path());
            }
        }
    }

    /// A name that was given survives a power loss from here on, where the file system can do that.
    fn sync(&self, folder: &Path) {
        if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
            tracing::debug!("{}: {error}", folder.display());
        }
    }

    fn path_of(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    pub(super) fn failed(&self, error: &io::Error) -> Error {
        let (kind, hint) = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (ErrorKind::NoSpace, "make room and call it again: blobs that are there are not written again")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                (ErrorKind::Denied, "choose a folder that you may write in")
            }
            _ => (ErrorKind::Io, "choose another folder"),
        };
        let cause = format!("cannot write the image layout: {error}");
        Error::new(kind, self.directory.display(), cause).hint(hint)
    }
}

/// A blob in the making. Dropped unfinished, it leaves nothing.
pub struct BlobWriter {
    layout: LayoutWriter,
    file: NamedTempFile,
    hasher: Hasher,
    size: u64,
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.size = self.size.saturating_add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter {
    /// Gives it the name that its bytes have.
    pub fn finish(self) -> Result<Blob> {
        let Self { layout, file, hasher, size } = self;
        name(&layout, file, hasher.finish(), size)
    }
}

fn name(layout: &LayoutWriter, file: NamedTempFile, digest: Digest, size: u64) -> Result<Blob> {
    if layout.has(&digest, size) {
        return Ok(Blob { digest, size, existed: true });
    }
    let path = layout.path_of(&digest);
    let finish = || {
        file.as_file().sync_all()?;
        path.parent().map_or(Ok(()), fs::create_dir_all)
    };
    finish().map_err(|error| layout.failed(&error))?;
    file.persist(&path).map_err(|error| layout.failed(&error.error))?;
    Ok(Blob { digest, size, existed: false })
}

/// Locks a file until it is closed. Where the file system has no locks, several writers may lose tags of each other.
fn hold(file: &File) -> io::Result<()> {
    match flock(file, FlockOperation::LockExclusive) {
        Err(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests;
