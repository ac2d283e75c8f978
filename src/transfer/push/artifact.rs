//! All that belongs to what a reference names: manifests as they are, byte for byte, and their blobs.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use super::unique;
use crate::blob::{BlobSource, Described, Layout};
use crate::cache::DiskCache;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::sized;
use crate::oci::media_types;
use crate::oci::{Descriptor, Digest, Document, LARGEST_MANIFEST, LayoutReference};
use crate::registry::Registry;

/// Manifests of an index, nested ones included; bytes of all; indexes within indexes.
const MOST_MANIFESTS: usize = 10_000;
const MOST_BYTES: u64 = 256 << 20;
const DEEPEST: usize = 8;
/// Manifests read at once.
const AT_ONCE: usize = 16;

/// A registry, but for what the cache has.
struct Kept {
    disk: Arc<DiskCache>,
    registry: Arc<Registry>,
}

impl BlobSource for Kept {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            let (disk, wanted, part) = (Arc::clone(&self.disk), blob.clone(), range.clone());
            let kept = tokio::task::spawn_blocking(move || disk.existing(&wanted)?.read(part)).await.ok().flatten();
            match kept {
                Some(bytes) => Ok(bytes),
                None => self.registry.read(blob, range).await,
            }
        }
        .boxed()
    }
}

pub struct Artifact {
    /// The first has one, which the reference names; each has what the one before lists.
    pub levels: Vec<Vec<Stored>>,
    /// Each once, in the order of the manifests.
    pub blobs: Vec<Descriptor>,
    pub source: Arc<dyn BlobSource>,
    /// The source gives what has these digests, or an error: they need not be made again.
    pub is_checked: bool,
    root: Stored,
}

/// A manifest or an index.
#[derive(Clone)]
pub struct Stored {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
}

impl Artifact {
    /// One manifest with its blobs, whose digests were just made of what the source has.
    pub fn of(root: Stored, blobs: impl IntoIterator<Item = Descriptor>, source: Arc<dyn BlobSource>) -> Self {
        Self { levels: vec![vec![root.clone()]], blobs: unique(blobs), source, is_checked: true, root }
    }

    pub async fn in_layout(reference: LayoutReference) -> Result<Self> {
        let name = reference.to_string();
        let layout = Arc::new(Layout::new(reference));
        let reading = Arc::clone(&layout);
        let root = tokio::task::spawn_blocking(move || reading.manifest())
            .await
            .unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, &name, panic)))?;
        let fetch = async |manifest: &Descriptor| {
            let bytes = layout.read(manifest, 0..manifest.size).await?;
            manifest.digest.check(&bytes)?;
            Ok(bytes)
        };
        Self::read(root, layout.clone(), &name, fetch).await
    }

    /// `disk`: blobs are taken from there as far as they are.
    pub async fn in_registry(registry: Arc<Registry>, name: &str, disk: Option<DiskCache>) -> Result<Self> {
        let root = registry.manifest().await?;
        let fetch = async |manifest: &Descriptor| registry.manifest_by_digest(&manifest.digest).await;
        let source: Arc<dyn BlobSource> = match disk {
            // Nothing is put there: what is copied is not what somebody reads next.
            Some(disk) => Arc::new(Kept { disk: Arc::new(disk), registry: registry.clone() }),
            None => registry.clone(),
        };
        Self::read(root, source, name, fetch).await
    }

    /// What `root` names, and all that it lists. `fetch` gives a manifest, checked; `source` blobs.
    pub async fn read(
        root: (Digest, Bytes),
        source: Arc<dyn BlobSource>,
        object: &str,
        fetch: impl AsyncFn(&Descriptor) -> Result<Bytes>,
    ) -> Result<Self> {
        let too_many =
            |cause: String| Error::new(ErrorKind::Limit, object, cause).hint("push its manifests one by one");
        let (mut levels, mut blobs, mut inline) = (Vec::new(), Vec::new(), HashMap::new());
        let (mut known, mut total) = (HashSet::from([root.0.clone()]), 0_u64);
        let mut next = vec![(root.0, String::new(), root.1)];
        while !next.is_empty() {
            if levels.len() >= DEEPEST {
                return Err(too_many(format!("indexes within indexes, more than {DEEPEST} deep")));
            }
            let (mut level, mut listed) = (Vec::new(), Vec::new());
            for (digest, media_type, bytes) in next {
                let (own_type, usual) = match Document::parse(&bytes, digest.as_str())? {
                    Document::Index(index) => {
                        for child in index.manifests.into_iter().map(|listed| listed.descriptor) {
                            if !media_types::MANIFESTS.contains(&child.media_type.as_str()) {
                                blobs.push(child);
                            } else if known.insert(child.digest.clone()) {
                                listed.push(child);
                            }
                        }
                        (index.media_type, media_types::IMAGE_INDEX)
                    }
                    Document::Manifest(manifest) => {
                        // What may not be distributed is where its address says.
                        let is_here = |blob: &Descriptor| {
                            let is_foreign =
                                ["nondistributable", "foreign"].iter().any(|it| blob.media_type.contains(it));
                            !(is_foreign && manifest.elsewhere.contains_key(&blob.digest))
                        };
                        let own = manifest.config.iter().chain(&manifest.layers);
                        blobs.extend(own.filter(|blob| is_here(blob)).cloned());
                        inline.extend(manifest.inline);
                        (manifest.media_type, media_types::IMAGE_MANIFEST)
                    }
                };
                let media_type = [own_type, media_type].into_iter().find(|known| !known.is_empty());
                level.push(Stored { digest, media_type: media_type.unwrap_or_else(|| usual.to_owned()), bytes });
            }
            levels.push(level);
            total = listed.iter().fold(total, |sum, child| sum.saturating_add(child.size));
            if known.len() > MOST_MANIFESTS || total > MOST_BYTES {
                return Err(too_many(format!("more than {MOST_MANIFESTS} manifests, or {MOST_BYTES} bytes of them")));
            }
            let fetching = stream::iter(&listed).map(async |child| {
                if child.size > LARGEST_MANIFEST {
                    return Err(Error::new(ErrorKind::Limit, &child.digest, "a manifest of more than 4 MiB"));
                }
                Ok((child.digest.clone(), child.media_type.clone(), sized(fetch(child).await?, child)?))
            });
            next = fetching.buffered(AT_ONCE).try_collect().await?;
        }
        let root = levels.first().and_then(|level| level.first()).cloned();
        let root = root.ok_or_else(|| Error::new(ErrorKind::NotFound, object, "there is no manifest"))?;
        let source = match inline.is_empty() {
            true => source,
            false => Arc::new(Described { source, inline, elsewhere: HashMap::new() }),
        };
        Ok(Self { levels, blobs: unique(blobs), source, is_checked: false, root })
    }

    pub fn root(&self) -> &Stored {
        self.levels.first().and_then(|level| level.first()).unwrap_or(&self.root)
    }

    /// Of all blobs.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).fold(0, u64::saturating_add)
    }
}
