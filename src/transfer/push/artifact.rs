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
use crate::mount::{Repository, sized};
use crate::oci::media_types;
use crate::oci::{Descriptor, Digest, Document, LARGEST_MANIFEST, LayoutReference, Referrer};
use crate::registry::Registry;

/// Manifests of an index, nested and attached ones included; bytes of all; indexes within indexes; attached to what is
/// attached.
const MOST_MANIFESTS: usize = 10_000;
const MOST_BYTES: u64 = 256 << 20;
const DEEPEST: usize = 8;
const DEEPEST_ATTACHED: usize = 16;
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
    /// The first has one, which the reference names. Nothing lists what stands in a level before it.
    pub levels: Vec<Vec<Stored>>,
    /// Each once, in the order of the manifests.
    pub blobs: Vec<Descriptor>,
    pub source: Arc<dyn BlobSource>,
    /// Which of the manifests are there because they are attached, and to what.
    pub attached: Vec<(Digest, Referrer)>,
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
        Self {
            levels: vec![vec![root.clone()]],
            blobs: unique(blobs),
            source,
            attached: Vec::new(),
            is_checked: true,
            root,
        }
    }

    /// `attached_in`: where to look up what is attached, if that is wanted.
    pub async fn in_layout(reference: LayoutReference, attached_in: Option<&Repository>) -> Result<Self> {
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
        Self::read(root, layout.clone(), &name, attached_in, fetch).await
    }

    /// `disk`: blobs are taken from there as far as they are.
    pub async fn in_registry(
        registry: Arc<Registry>,
        name: &str,
        disk: Option<DiskCache>,
        attached_in: Option<&Repository>,
    ) -> Result<Self> {
        let root = registry.manifest().await?;
        let fetch = async |manifest: &Descriptor| registry.manifest_by_digest(&manifest.digest).await;
        let source: Arc<dyn BlobSource> = match disk {
            // Nothing is put there: what is copied is not what somebody reads next.
            Some(disk) => Arc::new(Kept { disk: Arc::new(disk), registry: registry.clone() }),
            None => registry.clone(),
        };
        Self::read(root, source, name, attached_in, fetch).await
    }

    /// What `root` names, and all that it lists; with what is attached to these manifests, to that, and so on, where
    /// `attached_in` can tell. `fetch` gives a manifest, checked; `source` blobs.
    pub async fn read(
        root: (Digest, Bytes),
        source: Arc<dyn BlobSource>,
        object: &str,
        attached_in: Option<&Repository>,
        fetch: impl AsyncFn(&Descriptor) -> Result<Bytes>,
    ) -> Result<Self> {
        let mut walk = Walk { object, known: HashSet::from([root.0.clone()]), ..Walk::default() };
        walk.add(vec![(root.0, String::new(), root.1)], &fetch).await?;
        let attached = match attached_in {
            Some(repository) => walk.add_attached(repository, &fetch).await?,
            None => Vec::new(),
        };
        let Walk { levels, blobs, inline, .. } = walk;
        let root = levels.first().and_then(|level| level.first()).cloned();
        let root = root.ok_or_else(|| Error::new(ErrorKind::NotFound, object, "there is no manifest"))?;
        let source = match inline.is_empty() {
            true => source,
            false => Arc::new(Described { source, inline, elsewhere: HashMap::new() }),
        };
        Ok(Self { levels, blobs: unique(blobs), source, attached, is_checked: false, root })
    }

    pub fn root(&self) -> &Stored {
        self.levels.first().and_then(|level| level.first()).unwrap_or(&self.root)
    }

    pub fn attached_digests(&self) -> Vec<Digest> {
        self.attached.iter().map(|(_, referrer)| referrer.descriptor.digest.clone()).collect()
    }

    /// Of all blobs.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).fold(0, u64::saturating_add)
    }
}

/// A manifest and the media type that whoever names it gives it.
type Fetched = (Digest, String, Bytes);

/// What was found so far.
#[derive(Default)]
struct Walk<'a> {
    object: &'a str,
    known: HashSet<Digest>,
    /// Bytes of the manifests.
    total: u64,
    levels: Vec<Vec<Stored>>,
    blobs: Vec<Descriptor>,
    inline: HashMap<Digest, Bytes>,
}

impl Walk<'_> {
    /// These, and all that they list, a level behind the other.
    async fn add(&mut self, mut next: Vec<Fetched>, fetch: &impl AsyncFn(&Descriptor) -> Result<Bytes>) -> Result<()> {
        let mut deep = 0;
        while !next.is_empty() {
            deep += 1;
            if deep > DEEPEST {
                return Err(self.too_many(format!("indexes within indexes, more than {DEEPEST} deep")));
            }
            let (mut level, mut listed) = (Vec::new(), Vec::new());
            for (digest, media_type, bytes) in next {
                let (own_type, usual) = match Document::parse(&bytes, digest.as_str())? {
                    Document::Index(index) => {
                        for child in index.manifests.into_iter().map(|listed| listed.descriptor) {
                            if !media_types::MANIFESTS.contains(&child.media_type.as_str()) {
                                self.blobs.push(child);
                            } else if self.known.insert(child.digest.clone()) {
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
                        self.blobs.extend(own.filter(|blob| is_here(blob)).cloned());
                        self.inline.extend(manifest.inline);
                        (manifest.media_type, media_types::IMAGE_MANIFEST)
                    }
                };
                let media_type = [own_type, media_type].into_iter().find(|known| !known.is_empty());
                level.push(Stored { digest, media_type: media_type.unwrap_or_else(|| usual.to_owned()), bytes });
            }
            self.levels.push(level);
            next = self.fetch(&listed, fetch).await?.into_iter().collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// What is attached to all manifests so far, level by level, and to what.
    async fn add_attached(
        &mut self,
        repository: &Repository,
        fetch: &impl AsyncFn(&Descriptor) -> Result<Bytes>,
    ) -> Result<Vec<(Digest, Referrer)>> {
        let (mut attached, mut looked_at) = (Vec::new(), 0);
        for _ in 0..DEEPEST_ATTACHED {
            let new = self.levels.get(looked_at..).unwrap_or_default();
            let subjects: Vec<Digest> = new.iter().flatten().map(|manifest| manifest.digest.clone()).collect();
            looked_at = self.levels.len();
            let lists: Vec<(Digest, Vec<Referrer>)> = stream::iter(subjects)
                .map(async |subject| {
                    let referrers = repository.referrers(&subject, None).await?;
                    Ok::<_, Error>((subject, referrers))
                })
                .buffered(AT_ONCE)
                .try_collect()
                .await?;
            let (mut subjects, mut listed) = (Vec::new(), Vec::new());
            for (subject, referrers) in lists {
                for Referrer { descriptor, .. } in referrers {
                    if self.known.insert(descriptor.digest.clone()) {
                        subjects.push(subject.clone());
                        listed.push(descriptor);
                    }
                }
            }
            if listed.is_empty() {
                return Ok(attached);
            }
            let mut found = Vec::new();
            for (manifest, subject) in self.fetch(&listed, fetch).await?.into_iter().zip(subjects) {
                let (digest, media_type, bytes) = match manifest {
                    Ok(manifest) => manifest,
                    Err(error) if error.kind == ErrorKind::NotFound => {
                        tracing::warn!("listed as attached to {subject}, but not there: {error}");
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let Some(mut referrer) = Referrer::of_manifest(&bytes, &digest, &subject) else {
                    tracing::warn!("{digest}: listed as attached to {subject}, which it does not name; left out");
                    continue;
                };
                if referrer.descriptor.media_type.is_empty() {
                    referrer.descriptor.media_type.clone_from(&media_type);
                }
                attached.push((subject, referrer));
                found.push((digest, media_type, bytes));
            }
            self.add(found, fetch).await?;
        }
        Err(self.too_many(format!("attached to what is attached, more than {DEEPEST_ATTACHED} deep")))
    }

    /// The inner results are of each.
    async fn fetch(
        &mut self,
        listed: &[Descriptor],
        fetch: &impl AsyncFn(&Descriptor) -> Result<Bytes>,
    ) -> Result<Vec<Result<Fetched>>> {
        self.total = listed.iter().fold(self.total, |sum, child| sum.saturating_add(child.size));
        if self.known.len() > MOST_MANIFESTS || self.total > MOST_BYTES {
            return Err(self.too_many(format!("more than {MOST_MANIFESTS} manifests, or {MOST_BYTES} bytes of them")));
        }
        let fetching = stream::iter(listed).map(async |child| {
            if child.size > LARGEST_MANIFEST {
                return Err(Error::new(ErrorKind::Limit, &child.digest, "a manifest of more than 4 MiB"));
            }
            Ok((child.digest.clone(), child.media_type.clone(), sized(fetch(child).await?, child)?))
        });
        Ok(fetching.buffered(AT_ONCE).collect().await)
    }

    fn too_many(&self, cause: String) -> Error {
        Error::new(ErrorKind::Limit, self.object, cause).hint("push its manifests one by one")
    }
}
