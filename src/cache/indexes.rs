//! Stored indexes: one file a blob, read in one go, replaced as a whole.
//!
//! Shared by any number of processes. A file is written beside its place and renamed: whoever reads sees all of one or
//! of another. What a killed process leaves is a file in `indexes/new`, removed when it is an hour old.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use crate::error::{Error, ErrorKind, Result};
use crate::index::{CodecError, Content, LayerIndex, Limits, decode, encode};
use crate::oci::{Descriptor, Digest};

/// Time after which nobody writes to an unfinished file any more.
const STALE: Duration = Duration::from_secs(3600);

/// The folder `indexes` of a cache folder. Nothing in it is ever an error for the one who looks for an index.
pub struct Indexes {
    path: PathBuf,
}

impl Indexes {
    /// The cache folder need not be there, and need not be ours to write in.
    pub fn new(cache: &Path) -> Self {
        Self { path: cache.join("indexes") }
    }

    /// The index of a blob, if there is one that holds. One that does not is removed. Blocks on the file system.
    pub fn load(&self, blob: &Descriptor, limits: &Limits) -> Option<(LayerIndex, Content)> {
        let file = self.file(&blob.digest);
        let bytes = match read_up_to(&file, limits.index_bytes) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::debug!("stored index {}: {error}", file.display());
                return None;
            }
        };
        match decode(&bytes, &blob.digest, blob.size, limits) {
            Ok(found) => Some(found),
            Err(error) => {
                self.drop_wrong(&blob.digest, &error);
                None
            }
        }
    }

    /// Removes an index that has proven wrong.
    pub fn drop_wrong(&self, digest: &Digest, why: impl std::fmt::Display) {
        let file = self.file(digest);
        tracing::warn!("stored index {}: {why}; it is dropped, and the layer indexed anew", file.display());
        if let Err(error) = fs::remove_file(&file) {
            tracing::debug!("stored index {}: {error}", file.display());
        }
    }

    /// Blocks on the file system.
    pub fn store(&self, blob: &Descriptor, index: &LayerIndex, content: Content) -> Result<()> {
        let file = self.file(&blob.digest);
        let failed = |cause: &dyn std::fmt::Display| {
            let kind = ErrorKind::Io;
            Error::new(kind, &blob.digest, format!("its index cannot be kept in {}: {cause}", self.path.display()))
        };
        let bytes = encode(index, &blob.digest, blob.size, content).map_err(|error: CodecError| failed(&error))?;
        self.replace(&file, &bytes).map_err(|error| failed(&error))
    }

    /// Removes what killed processes left behind.
    pub fn clean(&self, now: SystemTime) {
        for left in fs::read_dir(self.path.join("new")).into_iter().flatten().flatten() {
            let modified = left.metadata().and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age > STALE)) {
                let _ = fs::remove_file(left.path());
            }
        }
    }

    /// Without fsync: what a power loss tears, the checksum tells.
    fn replace(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = self.path.join("new");
        for folder in [Some(new.as_path()), file.parent()].into_iter().flatten() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        // For its owner alone; removed if anything fails.
        let mut unfinished = tempfile::NamedTempFile::new_in(&new)?;
        unfinished.write_all(bytes)?;
        unfinished.persist(file)?;
        Ok(())
    }

    /// Digests are hex: no part of a path can hide in one.
    fn file(&self, digest: &Digest) -> PathBuf {
        self.path.join(digest.algorithm()).join(digest.hex())
    }
}

/// `None`: there is no such file.
fn read_up_to(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    // A fifo or a link put there by somebody else is not waited for nor followed.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    if ![0, rustix::process::geteuid().as_raw()].contains(&metadata.uid()) {
        return Err(io::Error::other("it belongs to another user"));
    }
    if metadata.len() > limit {
        return Err(io::Error::other(format!("larger than the {limit} bytes that are read")));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::index::LayerIndexBuilder;

    fn blob() -> Descriptor {
        let annotations = Default::default();
        Descriptor { digest: Digest::sha256_of(b"blob"), size: 4, media_type: String::new(), annotations }
    }

    fn store(folder: &Path) -> (Indexes, PathBuf) {
        let indexes = Indexes::new(folder);
        let index = LayerIndexBuilder::new(Limits::default()).finish();
        indexes.store(&blob(), &index, Content::Blob).unwrap();
        let file = folder.join("indexes/sha256").join(blob().digest.hex());
        (indexes, file)
    }

    #[test]
    fn a_stored_index_is_for_its_owner_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (indexes, file) = store(folder.path());
        assert_eq!(indexes.load(&blob(), &Limits::default()).unwrap().1, Content::Blob);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(folder.path().join("indexes")).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(folder.path().join("indexes/new")).unwrap().count(), 0);
        assert!(indexes.load(&Descriptor { size: 5, ..blob() }, &Limits::default()).is_none());
        assert!(!file.exists(), "what does not hold is removed");
    }

    #[test]
    fn links_and_fifos_are_not_followed_nor_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (indexes, file) = store(folder.path());
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert!(indexes.load(&blob(), &Limits::default()).is_none());
        fs::remove_file(&file).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(indexes.load(&blob(), &Limits::default()).is_none());
        fs::remove_file(&file).unwrap();
        fs::write(&file, vec![0; 2000]).unwrap();
        assert!(indexes.load(&blob(), &Limits { index_bytes: 1000, ..Limits::default() }).is_none());
    }

    #[test]
    fn unfinished_files_go_when_they_are_old() {
        let folder = tempfile::tempdir().unwrap();
        let (indexes, _) = store(folder.path());
        let left = folder.path().join("indexes/new/.tmp");
        fs::write(&left, b"half").unwrap();
        indexes.clean(SystemTime::now());
        assert!(left.exists(), "somebody may be writing to it");
        indexes.clean(SystemTime::now() + STALE * 2);
        assert!(!left.exists());
        Indexes::new(&folder.path().join("nowhere")).clean(SystemTime::now());
    }
}
