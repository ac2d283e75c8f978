//! Stored indexes: one file a blob. Shared by any number of processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::small_files::{clean, read_up_to, replace};
use crate::error::{Error, ErrorKind, Result};
use crate::index::{CodecError, Content, LayerIndex, Limits, decode, encode};
use crate::oci::{Descriptor, Digest};

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
            Ok(found) => found?.0,
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
        replace(&self.path.join("new"), &file, &bytes).map_err(|error| failed(&error))
    }

    /// Removes what killed processes left behind.
    pub fn clean(&self, now: SystemTime) {
        clean(&self.path.join("new"), now);
    }

    /// Digests are hex: no part of a path can hide in one.
    fn file(&self, digest: &Digest) -> PathBuf {
        self.path.join(digest.algorithm()).join(digest.hex())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cache::small_files::STALE;
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
