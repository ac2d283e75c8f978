//! Uploads that were not finished: where the registry has them, so that the next process goes on there.
//!
//! `uploads/HEX`, named by the SHA-256 of `REGISTRY/REPOSITORY@DIGEST`, holds that text and the session's address in
//! one line. The address may let whoever has it write to that upload: the file is for its owner alone. Whoever uploads
//! holds a lock on it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::folder::make_private;
use super::own_file::{is_at, open_or_make};
use super::small_files::read_up_to;
use crate::oci::{Digest, RegistryReference};

/// Bytes: addresses with signatures have some thousand.
const LONGEST: u64 = 32 << 10;
/// Registries forget an upload after a week (distribution, "uploadpurging").
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The folder `uploads` of a cache folder. Nothing in it is ever an error: an upload then begins at its start.
#[derive(Debug)]
pub struct Uploads {
    path: PathBuf,
}

/// The place of one upload. Blocks on the file system, as all of this does.
#[derive(Debug)]
pub struct KeptUpload {
    file: File,
    path: PathBuf,
    name: String,
}

impl Uploads {
    /// Removes what registries have forgotten.
    pub fn new(cache: &Path, now: SystemTime) -> Self {
        let path = cache.join("uploads");
        for left in fs::read_dir(&path).into_iter().flatten().flatten() {
            let modified = left.metadata().and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age > STALE)) {
                let _ = fs::remove_file(left.path());
            }
        }
        Self { path }
    }

    /// `None`: another process uploads the same, or there is no place to write in.
    pub fn of(&self, repository: &RegistryReference, blob: &Digest) -> Option<KeptUpload> {
        let name = format!("{}/{}@{blob}", repository.registry, repository.repository);
        let path = self.path.join(Digest::sha256_of(name.as_bytes()).hex());
        let open = || {
            make_private(&self.path)?;
            let file = open_or_make(&path)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            // Whoever had the lock may have removed it.
            if is_at(&file, &path) { Ok(file) } else { Err(io::Error::other("somebody else has just finished it")) }
        };
        match open() {
            Ok(file) => Some(KeptUpload { file, path, name }),
            Err(error) => {
                tracing::debug!("{}: {error}; this upload will not be gone on with", path.display());
                None
            }
        }
    }
}

impl KeptUpload {
    /// The session's address.
    pub fn load(&self) -> Option<String> {
        let (bytes, _) = read_up_to(&self.path, LONGEST).ok()??;
        let line = std::str::from_utf8(&bytes).ok()?.strip_suffix('\n')?;
        let (name, address) = line.split_once(' ')?;
        (name == self.name).then(|| address.to_owned())
    }

    pub fn store(&self, address: &str) {
        let line = format!("{} {address}\n", self.name);
        let written = self.file.set_len(0).and_then(|()| self.file.write_all_at(line.as_bytes(), 0));
        if let Err(error) = written {
            tracing::debug!("{}: not kept: {error}", self.path.display());
        }
    }

    /// There is nothing to go on with.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
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

    #[test]
    fn an_upload_is_found_again_by_its_repository_and_digest_and_one_at_a_time_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::new(dir.path(), SystemTime::now());
        let (first, second) = (Digest::sha256_of(b"1"), Digest::sha256_of(b"2"));
        let kept = uploads.of(&repository(), &first).unwrap();
        assert_eq!(kept.load(), None);
        kept.store("http://localhost:5000/v2/x/blobs/uploads/long?_state=secret");
        kept.store("http://localhost:5000/short");
        assert_eq!(kept.load().unwrap(), "http://localhost:5000/short");
        assert_eq!(fs::metadata(&kept.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(uploads.of(&repository(), &first).is_none());
        assert!(uploads.of(&repository(), &second).unwrap().load().is_none());
        drop(kept);
        let kept = uploads.of(&repository(), &first).unwrap();
        assert_eq!(kept.load().unwrap(), "http://localhost:5000/short");
        kept.remove();
        drop(kept);
        assert_eq!(uploads.of(&repository(), &first).unwrap().load(), None);
    }

    #[test]
    fn what_registries_have_forgotten_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let digest = Digest::sha256_of(b"1");
        Uploads::new(dir.path(), now).of(&repository(), &digest).unwrap().store("x");
        Uploads::new(dir.path(), now + STALE / 2);
        assert_eq!(fs::read_dir(dir.path().join("uploads")).unwrap().count(), 1);
        Uploads::new(dir.path(), now + STALE * 2);
        assert_eq!(fs::read_dir(dir.path().join("uploads")).unwrap().count(), 0);
    }
}
