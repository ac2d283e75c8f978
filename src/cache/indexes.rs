//! Stored indexes: one file a blob. Shared by any number of processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::task::spawn_blocking;

use super::small_files::{STALE, clean, read_in_turns, replace};
use super::turns::FolderTurns;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{CodecError, Content, LayerIndex, Limits, decode, encode};
use crate::oci::{Descriptor, Digest};

/// The folder `indexes` of a cache folder. Nothing in it is ever an error for the one who looks for an index, nor a disk
/// that hangs.
pub struct Indexes {
    path: PathBuf,
    turns: FolderTurns,
}

impl Indexes {
    /// The cache folder need not be there, and need not be ours to write in.
    pub fn new(cache: &Path, turns: &FolderTurns) -> Self {
        Self { path: cache.join("indexes"), turns: turns.clone() }
    }

    /// The index of a blob, if there is one that holds. One that does not is removed.
    pub async fn load(&self, blob: &Descriptor, limits: &Limits) -> Option<(LayerIndex, Content)> {
        let file = self.file(&blob.digest);
        let bytes = match read_in_turns(&self.turns.reads, file.clone(), limits.index_bytes).await {
            Ok(found) => found?.0,
            Err(error) => {
                tracing::debug!("stored index {}: {error}", file.display());
                return None;
            }
        };
        let (digest, size, limits) = (blob.digest.clone(), blob.size, *limits);
        match spawn_blocking(move || decode(&bytes, &digest, size, &limits)).await.ok()? {
            Ok(found) => Some(found),
            Err(error) => {
                self.drop_wrong(&blob.digest, &error).await;
                None
            }
        }
    }

    /// Removes an index that has proven wrong.
    pub async fn drop_wrong(&self, digest: &Digest, why: impl std::fmt::Display) {
        let file = self.file(digest);
        tracing::warn!("stored index {}: {why}; it is dropped, and the layer indexed anew", file.display());
        let remove = move || {
            if let Err(error) = fs::remove_file(&file) {
                tracing::debug!("stored index {}: {error}", file.display());
            }
        };
        self.turns.write(remove).await;
    }

    pub async fn store(&self, blob: &Descriptor, index: &Arc<LayerIndex>, content: Content) -> Result<()> {
        let failed = |cause: &dyn std::fmt::Display| {
            let kind = ErrorKind::Io;
            Error::new(kind, &blob.digest, format!("its index cannot be kept in {}: {cause}", self.path.display()))
        };
        let (index, digest, size) = (Arc::clone(index), blob.digest.clone(), blob.size);
        let encoded = spawn_blocking(move || encode(&index, &digest, size, content)).await;
        let bytes = encoded.map_err(|panic| failed(&panic))?.map_err(|error: CodecError| failed(&error))?;
        let (new, file) = (self.path.join("new"), self.file(&blob.digest));
        let stored = self.turns.write(move || replace(&new, &file, &bytes)).await;
        stored.ok_or_else(|| failed(&"the disk does not answer"))?.map_err(|error| failed(&error))
    }

    /// Removes what killed processes left behind, some time.
    pub fn clean(&self, now: SystemTime) {
        let new = self.path.join("new");
        self.turns.writes.begin_if_free(move || clean(&new, STALE, now));
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
    use crate::index::LayerIndexBuilder;

    fn blob() -> Descriptor {
        let annotations = Default::default();
        Descriptor { digest: Digest::sha256_of(b"blob"), size: 4, media_type: String::new(), annotations }
    }

    async fn store(folder: &Path) -> (Indexes, PathBuf) {
        let indexes = Indexes::new(folder, &FolderTurns::new(folder));
        let index = Arc::new(LayerIndexBuilder::new(Limits::default()).finish());
        indexes.store(&blob(), &index, Content::Blob).await.unwrap();
        let file = folder.join("indexes/sha256").join(blob().digest.hex());
        (indexes, file)
    }

    #[tokio::test]
    async fn a_stored_index_is_for_its_owner_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (indexes, file) = store(folder.path()).await;
        assert_eq!(indexes.load(&blob(), &Limits::default()).await.unwrap().1, Content::Blob);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(folder.path().join("indexes")).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(folder.path().join("indexes/new")).unwrap().count(), 0);
        assert!(indexes.load(&Descriptor { size: 5, ..blob() }, &Limits::default()).await.is_none());
        assert!(!file.exists(), "what does not hold is removed");
    }

    #[tokio::test]
    async fn links_and_fifos_are_not_followed_nor_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (indexes, file) = store(folder.path()).await;
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert!(indexes.load(&blob(), &Limits::default()).await.is_none());
        fs::remove_file(&file).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(indexes.load(&blob(), &Limits::default()).await.is_none());
        fs::remove_file(&file).unwrap();
        fs::write(&file, vec![0; 2000]).unwrap();
        assert!(indexes.load(&blob(), &Limits { index_bytes: 1000, ..Limits::default() }).await.is_none());
    }

    #[tokio::test]
    async fn unfinished_files_go_when_they_are_old() {
        let folder = tempfile::tempdir().unwrap();
        let (indexes, _) = store(folder.path()).await;
        let left = folder.path().join("indexes/new/.tmp");
        fs::write(&left, b"half").unwrap();
        let new = indexes.path.join("new");
        clean(&new, STALE, SystemTime::now());
        assert!(left.exists(), "somebody may be writing to it");
        clean(&new, STALE, SystemTime::now() + STALE * 2);
        assert!(!left.exists());
        clean(&folder.path().join("nowhere"), STALE, SystemTime::now());
    }
}
