//! Uploads that were not finished: where the registry has them, so that the next process goes on there.
//!
//! `uploads/HEX`, named by the SHA-256 of `REGISTRY/REPOSITORY@DIGEST`, holds that text and the session's address in
//! one line. The address may let whoever has it write to that upload: the file is for its owner alone. Whoever uploads
//! holds a lock on it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::folder::make_private;
use super::own_file::{is_at, open_or_make};
use super::small_files::{clean, read_in_turns};
use super::turns::FolderTurns;
use crate::oci::{Digest, RegistryReference};

/// Bytes: addresses with signatures have some thousand.
const LONGEST: u64 = 32 << 10;
/// Registries forget an upload after a week (distribution, "uploadpurging").
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The folder `uploads` of a cache folder. Nothing in it is ever an error, nor a disk that hangs: an upload then begins at
/// its start.
pub struct Uploads {
    path: PathBuf,
    turns: FolderTurns,
}

/// The place of one upload.
pub struct KeptUpload {
    file: Arc<File>,
    path: PathBuf,
    name: String,
    turns: FolderTurns,
}

impl Uploads {
    /// Removes what registries have forgotten, some time.
    pub fn new(cache: &Path, now: SystemTime) -> Self {
        let (path, turns) = (cache.join("uploads"), FolderTurns::new(cache));
        let old = path.clone();
        turns.writes.begin_if_free(move || clean(&old, STALE, now));
        Self { path, turns }
    }

    /// `None`: another process uploads the same, or there is no place to write in.
    pub async fn of(&self, repository: &RegistryReference, blob: &Digest) -> Option<KeptUpload> {
        let name = format!("{}/{}@{blob}", repository.registry, repository.repository);
        let path = self.path.join(Digest::sha256_of(name.as_bytes()).hex());
        let (folder, at) = (self.path.clone(), path.clone());
        let open = move || {
            make_private(&folder)?;
            let file = open_or_make(&at)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            // Whoever had the lock may have removed it.
            if is_at(&file, &at) { Ok(file) } else { Err(io::Error::other("somebody else has just finished it")) }
        };
        match self.turns.write(open).await? {
            Ok(file) => Some(KeptUpload { file: Arc::new(file), path, name, turns: self.turns.clone() }),
            Err(error) => {
                tracing::debug!("{}: {error}; this upload will not be gone on with", path.display());
                None
            }
        }
    }
}

impl KeptUpload {
    /// The session's address.
    pub async fn load(&self) -> Option<String> {
        let (bytes, _) = read_in_turns(&self.turns.reads, self.path.clone(), LONGEST).await.ok()??;
        let line = std::str::from_utf8(&bytes).ok()?.strip_suffix('\n')?;
        let (name, address) = line.split_once(' ')?;
        (name == self.name).then(|| address.to_owned())
    }

    pub async fn store(&self, address: &str) {
        let line = format!("{} {address}\n", self.name);
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let write = move || {
            if let Err(error) = file.set_len(0).and_then(|()| file.write_all_at(line.as_bytes(), 0)) {
                tracing::debug!("{}: not kept: {error}", path.display());
            }
        };
        self.turns.write(write).await;
    }

    /// There is nothing to go on with.
    pub async fn remove(&self) {
        let path = self.path.clone();
        self.turns.write(move || fs::remove_file(path)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::oci::Reference;

    fn repository() -> RegistryReference {
        match "localhost:5000/x:y".parse().unwrap() {
            Reference::Registry(reference) => reference,
            Reference::Layout(_) => panic!(),
        }
    }

    #[tokio::test]
    async fn an_upload_is_found_again_by_its_repository_and_digest_and_one_at_a_time_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::new(dir.path(), SystemTime::now());
        let (first, second) = (Digest::sha256_of(b"1"), Digest::sha256_of(b"2"));
        let kept = uploads.of(&repository(), &first).await.unwrap();
        assert_eq!(kept.load().await, None);
        kept.store("http://localhost:5000/v2/x/blobs/uploads/long?_state=secret").await;
        kept.store("http://localhost:5000/short").await;
        assert_eq!(kept.load().await.unwrap(), "http://localhost:5000/short");
        assert_eq!(fs::metadata(&kept.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(uploads.of(&repository(), &first).await.is_none());
        assert!(uploads.of(&repository(), &second).await.unwrap().load().await.is_none());
        drop(kept);
        let kept = uploads.of(&repository(), &first).await.unwrap();
        assert_eq!(kept.load().await.unwrap(), "http://localhost:5000/short");
        kept.remove().await;
        drop(kept);
        assert_eq!(uploads.of(&repository(), &first).await.unwrap().load().await, None);
    }

    #[tokio::test]
    async fn what_registries_have_forgotten_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let digest = Digest::sha256_of(b"1");
        Uploads::new(dir.path(), now).of(&repository(), &digest).await.unwrap().store("x").await;
        for (age, left) in [(STALE / 2, 1), (STALE * 2, 0)] {
            // One call at a time: the second is begun when the first has ended.
            let uploads = Uploads::new(dir.path(), now + age);
            while uploads.turns.writes.is_busy() {
                tokio::task::yield_now().await;
            }
            assert_eq!(fs::read_dir(dir.path().join("uploads")).unwrap().count(), left);
        }
    }
}
