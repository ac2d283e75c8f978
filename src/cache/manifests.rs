//! Manifests and configs that were checked, and what each tag named when it was last asked for: with them a mount
//! begins without its registry.
//!
//! `manifests/sha256/HEX` is a manifest or a config. `manifests/tags/HEX`, named by the SHA-256 of
//! `REGISTRY/REPOSITORY:TAG`, holds the digest and that text in one line. Nothing here is ever evicted.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::small_files::{STALE, clean, read_in_turns, replace};
use super::turns::FolderTurns;
use crate::oci::{Digest, RegistryReference};

/// Bytes of a tag's file: a digest and a reference, which is shorter by far (distribution specification, "Pulling
/// manifests").
const LONGEST_TAG: u64 = 4 << 10;

/// The folder `manifests` of a cache folder. Nothing in it is ever an error for the one who looks, nor a disk that
/// hangs.
pub struct Manifests {
    path: PathBuf,
    turns: FolderTurns,
}

/// What a tag named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    pub digest: Digest,
    /// Time since the registry said so.
    pub age: Duration,
}

impl Manifests {
    /// The cache folder need not be there, and need not be ours to write in.
    pub fn new(cache: &Path, turns: &FolderTurns) -> Self {
        Self { path: cache.join("manifests"), turns: turns.clone() }
    }

    /// A manifest or config of at most `limit` bytes. One that is not what its digest names is removed.
    pub async fn load(&self, digest: &Digest, limit: u64) -> Option<Bytes> {
        let file = self.file(digest);
        let bytes = self.read(&file, limit).await?.0;
        if digest.check(&bytes).is_ok() {
            return Some(bytes.into());
        }
        tracing::warn!("{}: damaged; it is dropped", file.display());
        self.turns.write(move || fs::remove_file(file)).await;
        None
    }

    /// `bytes` have been checked.
    pub async fn store(&self, digest: &Digest, bytes: Bytes) {
        self.write(self.file(digest), bytes).await;
    }

    /// `now`: by the clock that wrote it.
    pub async fn resolution(&self, reference: &RegistryReference, now: SystemTime) -> Option<Resolution> {
        let tag = tag(reference);
        let (bytes, written) = self.read(&self.tag_file(&tag), LONGEST_TAG).await?;
        let (digest, named) = std::str::from_utf8(&bytes).ok()?.trim_end().split_once(' ')?;
        let digest = digest.parse().ok().filter(|_| named == tag)?;
        Some(Resolution { digest, age: now.duration_since(written).unwrap_or_default() })
    }

    /// What the registry says now that the tag names.
    pub async fn store_resolution(&self, reference: &RegistryReference, digest: &Digest) {
        let tag = tag(reference);
        self.write(self.tag_file(&tag), format!("{digest} {tag}\n").into()).await;
    }

    /// It is not so any more.
    pub async fn forget_resolution(&self, reference: &RegistryReference) {
        let file = self.tag_file(&tag(reference));
        self.turns.write(move || fs::remove_file(file)).await;
    }

    /// Removes what killed processes left behind, some time.
    pub fn clean(&self, now: SystemTime) {
        let new = self.path.join("new");
        self.turns.writes.begin_if_free(move || clean(&new, STALE, now));
    }

    async fn read(&self, file: &Path, limit: u64) -> Option<(Vec<u8>, SystemTime)> {
        read_in_turns(&self.turns.reads, file.to_owned(), limit).await.unwrap_or_else(|error| {
            tracing::debug!("{}: {error}", file.display());
            None
        })
    }

    async fn write(&self, file: PathBuf, bytes: Bytes) {
        let new = self.path.join("new");
        let write = move || {
            if let Err(error) = replace(&new, &file, &bytes) {
                tracing::debug!("{}: not kept: {error}", file.display());
            }
        };
        self.turns.write(write).await;
    }

    /// Digests are hex: no part of a path can hide in one.
    fn file(&self, digest: &Digest) -> PathBuf {
        self.path.join(digest.algorithm()).join(digest.hex())
    }

    /// Nor in a tag that is named by its digest, however long or odd it is.
    fn tag_file(&self, tag: &str) -> PathBuf {
        self.path.join("tags").join(Digest::sha256_of(tag.as_bytes()).hex())
    }
}

fn tag(reference: &RegistryReference) -> String {
    format!("{}/{}:{}", reference.registry, reference.repository, reference.tag.as_deref().unwrap_or("latest"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LIMIT: u64 = 1000;

    fn reference(text: &str) -> RegistryReference {
        match text.parse() {
            Ok(crate::oci::Reference::Registry(reference)) => reference,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn manifests_come_back_and_damaged_ones_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = Manifests::new(&folder.path().join("not/yet"), &FolderTurns::new(folder.path()));
        let digest = Digest::sha256_of(b"{}");
        assert_eq!(manifests.load(&digest, LIMIT).await, None);
        manifests.store(&digest, Bytes::from_static(b"{}")).await;
        assert_eq!(manifests.load(&digest, LIMIT).await.as_deref(), Some(&b"{}"[..]));
        assert_eq!(manifests.load(&digest, 1).await, None);
        let file = manifests.file(&digest);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(manifests.path.join("new")).unwrap().count(), 0);
        for wrong in [&b"[]"[..], b"", b"{} "] {
            manifests.store(&digest, Bytes::from_static(wrong)).await;
            assert_eq!(manifests.load(&digest, LIMIT).await, None);
            assert!(!file.exists());
        }
    }

    #[tokio::test]
    async fn tags_name_what_they_named_last_each_for_itself() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = Manifests::new(folder.path(), &FolderTurns::new(folder.path()));
        let texts = ["localhost:5000/a:b", "localhost:5000/a/b:latest", "localhost:5001/a:b", "localhost:5000/a/b:a"];
        for text in texts {
            manifests.store_resolution(&reference(text), &Digest::sha256_of(b"old")).await;
            manifests.store_resolution(&reference(text), &Digest::sha256_of(text.as_bytes())).await;
        }
        let now = SystemTime::now() + Duration::from_secs(3600);
        for text in texts {
            let Resolution { digest, age } = manifests.resolution(&reference(text), now).await.unwrap();
            assert_eq!(digest, Digest::sha256_of(text.as_bytes()));
            assert!((3590..3700).contains(&age.as_secs()), "{age:?}");
        }
        let set_back = manifests.resolution(&reference(texts[0]), now - Duration::from_secs(7200)).await.unwrap();
        assert_eq!(set_back.age, Duration::ZERO);
        assert_eq!(manifests.resolution(&reference("localhost:5000/a:c"), now).await, None);
        let file = manifests.tag_file(texts[0]);
        for wrong in ["", "sha256:12 localhost:5000/a:b", &format!("{} localhost:5000/a:x", Digest::sha256_of(b""))] {
            fs::write(&file, wrong).unwrap();
            assert_eq!(manifests.resolution(&reference(texts[0]), now).await, None, "{wrong}");
        }
    }
}
