//! Sends an artifact to a registry: blobs that it lacks, then manifests, what the reference names last.

mod artifact;
mod files;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};

pub use artifact::{Artifact, Stored};
pub use files::{FileLayer, Files, is_path_outside};

use crate::blob::BlobSource;
use crate::cache::Uploads;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Referrer, RegistryReference};
use crate::registry::{Progress, Registry};
use crate::transfer::referrers_tag::list_all_by_tag;

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
    /// For writing a list of what is attached, where others write it, too.
    pub timeout: Duration,
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
    /// Manifests that went along because they are attached.
    pub attached: Vec<Digest>,
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
            .map(async |blob| {
                Ok::<_, Error>((blob.clone(), self.blob(blob, &artifact.source, artifact.is_checked, moved).await?))
            })
            .buffered(self.jobs)
            .try_collect()
            .await?;
        // What an index lists is there before it, and what is attached before what it is attached to: whoever finds
        // the tag finds all.
        for level in artifact.levels.iter().skip(1).rev() {
            stream::iter(level)
                .map(async |manifest| self.manifest(manifest, manifest.digest.as_str()).await)
                .buffer_unordered(self.jobs)
                .try_collect::<Vec<()>>()
                .await?;
        }
        self.list_attached(artifact).await?;
        self.manifest(root, self.reference.version()).await?;
        Ok(Pushed { digest: root.digest.clone(), blobs, attached: artifact.attached_digests() })
    }

    async fn manifest(&self, manifest: &Stored, version: &str) -> Result<()> {
        self.registry.put_manifest(version, &manifest.media_type, &manifest.bytes).await.map(drop)
    }

    async fn list_attached(&self, artifact: &Artifact) -> Result<()> {
        let mut lists: BTreeMap<&str, (&Digest, Vec<Referrer>)> = BTreeMap::new();
        for (subject, referrer) in &artifact.attached {
            lists.entry(subject.as_str()).or_insert((subject, Vec::new())).1.push(referrer.clone());
        }
        let listing = stream::iter(lists.into_values())
            .map(async |(subject, referrers)| list_all_by_tag(&self.registry, subject, &referrers, self.timeout).await);
        listing.buffer_unordered(self.jobs).try_collect().await
    }

    /// One blob, without a manifest that names it. `is_checked`: see [`Artifact`].
    pub async fn blob(
        &self,
        blob: &Descriptor,
        source: &Arc<dyn BlobSource>,
        is_checked: bool,
        moved: &Moved,
    ) -> Result<State> {
        let so_far = AtomicU64::new(0);
        let moved = Arc::clone(moved);
        let progress: Progress = Arc::new(move |now| {
            let before = so_far.swap(now, Ordering::Relaxed);
            moved(now.cast_signed().wrapping_sub(before.cast_signed()));
        });
        let state = self.bring(blob, source, is_checked, &progress).await?;
        progress(blob.size);
        Ok(state)
    }

    async fn bring(
        &self,
        blob: &Descriptor,
        source: &Arc<dyn BlobSource>,
        is_checked: bool,
        progress: &Progress,
    ) -> Result<State> {
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
        let kept = match &self.uploads {
            None => None,
            Some(uploads) => uploads.of(&self.reference, &blob.digest).await,
        };
        self.registry.upload(blob, source, is_checked, kept, &self.stop, progress).await?;
        Ok(State::Sent)
    }
}

/// Each once, the first of each digest.
fn unique(blobs: impl IntoIterator<Item = Descriptor>) -> Vec<Descriptor> {
    let mut known = HashSet::new();
    blobs.into_iter().filter(|blob| known.insert(blob.digest.clone())).collect()
}
