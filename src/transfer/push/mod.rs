//! Sends an artifact to a registry: blobs that it lacks, then manifests, what the reference names last.

mod artifact;
mod files;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};

pub use artifact::{Artifact, Stored};
pub use files::{FileLayer, Files, is_path_outside};

use crate::cache::Uploads;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, RegistryReference};
use crate::registry::{Progress, Registry};

/// Where to, and how.
pub struct Push {
    pub registry: Arc<Registry>,
    pub reference: RegistryReference,
    /// Blobs sent at once, at least 1.
    pub jobs: usize,
    /// Other repositories of the registry that may have blobs.
    pub mount_from: Vec<String>,
    /// Where unfinished uploads are written down; `None`: nowhere.
    pub uploads: Option<Arc<Uploads>>,
    /// Whether to begin nothing more.
    pub stop: Arc<AtomicBool>,
}

/// What was done for a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It was there.
    Exists,
    /// The registry has taken it from another repository.
    Mounted,
    Sent,
}

/// In the order of the manifests.
pub struct Pushed {
    pub digest: Digest,
    pub blobs: Vec<(Descriptor, State)>,
}

/// Told how many bytes more, or fewer, of all blobs are there or on their way.
pub type Moved = Arc<dyn Fn(i64) + Send + Sync>;

impl Push {
    /// # Errors
    /// The first; what is there by then stays there.
    pub async fn run(&self, artifact: &Artifact, moved: &Moved) -> Result<Pushed> {
        let root = artifact.root();
        if let Some(digest) = self.reference.digest.as_ref().filter(|digest| **digest != root.digest) {
            let cause = format!("what is pushed has another digest: {}", root.digest);
            return Err(Error::new(ErrorKind::Usage, digest, cause).hint("name a tag"));
        }
        let blobs = stream::iter(&artifact.blobs)
            .map(async |blob| Ok::<_, Error>((blob.clone(), self.blob(artifact, blob, moved).await?)))
            .buffered(self.jobs)
            .try_collect()
            .await?;
        // What an index lists is there before it.
        for level in artifact.levels.iter().rev() {
            stream::iter(level)
                .map(async |manifest| self.manifest(manifest, root).await)
                .buffer_unordered(self.jobs)
                .try_collect::<Vec<()>>()
                .await?;
        }
        Ok(Pushed { digest: root.digest.clone(), blobs })
    }

    async fn manifest(&self, manifest: &Stored, root: &Stored) -> Result<()> {
        let version = if std::ptr::eq(manifest, root) { self.reference.version() } else { manifest.digest.as_str() };
        self.registry.put_manifest(version, &manifest.media_type, &manifest.bytes).await.map(drop)
    }

    async fn blob(&self, artifact: &Artifact, blob: &Descriptor, moved: &Moved) -> Result<State> {
        let so_far = AtomicU64::new(0);
        let moved = Arc::clone(moved);
        let progress: Progress = Arc::new(move |now| {
            let before = so_far.swap(now, Ordering::Relaxed);
            moved(now.cast_signed().wrapping_sub(before.cast_signed()));
        });
        let state = self.bring(artifact, blob, &progress).await?;
        progress(blob.size);
        Ok(state)
    }

    async fn bring(&self, artifact: &Artifact, blob: &Descriptor, progress: &Progress) -> Result<State> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(
                Error::new(ErrorKind::Io, &self.reference, "interrupted").hint("push again: it goes on from here")
            );
        }
        if self.registry.blob_exists(&blob.digest).await? {
            return Ok(State::Exists);
        }
        for from in &self.mount_from {
            match self.registry.mount_blob(&blob.digest, from).await {
                Ok(true) => return Ok(State::Mounted),
                Ok(false) => {}
                // Where that may not be read, what is here is sent.
                Err(error) if error.kind == ErrorKind::Denied => tracing::debug!("not mounted from {from}: {error}"),
                Err(error) => return Err(error),
            }
        }
        let kept = match self.uploads.clone() {
            None => None,
            Some(uploads) => {
                let (reference, digest) = (self.reference.clone(), blob.digest.clone());
                tokio::task::spawn_blocking(move || uploads.of(&reference, &digest)).await.ok().flatten()
            }
        };
        self.registry.upload(blob, &artifact.source, artifact.is_checked, kept, &self.stop, progress).await?;
        Ok(State::Sent)
    }
}

/// Each once, the first of each digest.
fn unique(blobs: impl IntoIterator<Item = Descriptor>) -> Vec<Descriptor> {
    let mut known = HashSet::new();
    blobs.into_iter().filter(|blob| known.insert(blob.digest.clone())).collect()
}
