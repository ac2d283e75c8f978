//! A repository whose manifests are asked for one by one: the root, others by digest, and what is attached to them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::json;

use super::Options;
use super::manifests::{AT_ONCE, ManifestLimits, expand};
use super::resolve::{blocking, fetch_manifest, find_manifest, found_is_kept, load, offline_folder, store};
use super::verify::check_signed;
use crate::blob::{BlobSource, Layout, Offline};
use crate::cache::{FolderTurns, Manifests, Resolution};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::media_types;
use crate::oci::{
    Descriptor, Digest, Document, LARGEST_MANIFEST, LayoutReference, Reference, Referrer, RegistryReference,
    referrers_tag, signature_tag,
};
use crate::registry::{List, Referrers, Registry};

/// Bytes of a list of referrers that is kept.
const LONGEST_LIST: u64 = 16 << 20;
/// Time for which a repository is taken to have no referrers API still.
const NO_API_FOR: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone)]
pub struct Repository {
    at: At,
    manifests: Option<Arc<Manifests>>,
}

#[derive(Clone)]
enum At {
    /// `None`: nobody is to be asked.
    Registry(RegistryReference, Option<Arc<Registry>>),
    Layout(Arc<Layout>),
}

impl Repository {
    pub fn open(reference: &str, options: &Options) -> Result<Self> {
        let cache_dir = options.cache_dir.as_deref();
        let manifests = cache_dir.map(|path| Arc::new(Manifests::new(path, &FolderTurns::new(path))));
        match reference.parse()? {
            Reference::Layout(layout) => Ok(Self::in_layout(Arc::new(Layout::new(layout)))),
            Reference::Registry(reference) => {
                offline_folder(options, manifests.is_some())?;
                let registry = match options.offline {
                    true => None,
                    false => Some(Arc::new(Registry::new(reference.clone(), &options.registry())?)),
                };
                Ok(Self::in_registry(reference, registry, manifests))
            }
        }
    }

    pub(super) fn distrust_mirrors(&self, digest: &Digest) -> bool {
        matches!(&self.at, At::Registry(_, Some(registry)) if registry.distrust_mirrors(digest))
    }

    pub(super) fn in_layout(layout: Arc<Layout>) -> Self {
        Self { at: At::Layout(layout), manifests: None }
    }

    pub(super) fn in_registry(
        reference: RegistryReference,
        registry: Option<Arc<Registry>>,
        manifests: Option<Arc<Manifests>>,
    ) -> Self {
        Self { at: At::Registry(reference, registry), manifests }
    }

    /// To write to.
    pub fn registry(&self) -> Option<&Arc<Registry>> {
        match &self.at {
            At::Registry(_, registry) => registry.as_ref(),
            At::Layout(_) => None,
        }
    }

    /// What the reference names, or the manifest of an index that `Options::platform` picks.
    pub async fn root(&self, options: &Options) -> Result<(Descriptor, Bytes)> {
        let (name, root) = match &self.at {
            At::Registry(reference, registry) => {
                let found =
                    find_manifest(reference, registry.as_deref(), self.manifests.as_ref(), options.timeout).await?;
                found_is_kept(reference, &found, self.manifests.as_ref()).await;
                (reference.to_string(), (found.digest, found.bytes))
            }
            At::Layout(layout) => {
                let reading = Arc::clone(layout);
                (layout.reference().to_string(), blocking("layout", move || reading.manifest()).await??)
            }
        };
        check_signed(self, &root.0, options).await?;
        if options.platform.is_some() {
            let fetch = async |manifest: &Descriptor| self.manifest(manifest).await;
            let limits = ManifestLimits::default();
            let parts = expand(root, &name, options.platform.as_ref(), limits, fetch).await?;
            let part = parts.into_iter().next();
            let part = part.ok_or_else(|| Error::new(ErrorKind::NotFound, name, "no such manifest"))?;
            return Ok((typed(part.descriptor.digest, &part.bytes)?, part.bytes));
        }
        let (digest, bytes) = root;
        Ok((typed(digest, &bytes)?, bytes))
    }

    /// # Errors
    /// Where the user trusts a key, and no signature of this manifest is one of it.
    pub async fn check_signed(&self, manifest: &Digest, options: &Options) -> Result<()> {
        check_signed(self, manifest, options).await
    }

    /// Another manifest, checked.
    pub async fn manifest(&self, manifest: &Descriptor) -> Result<Bytes> {
        match &self.at {
            At::Registry(_, registry) => {
                fetch_manifest(&manifest.digest, registry.as_deref(), self.manifests.as_ref()).await
            }
            At::Layout(layout) => {
                let bytes = layout.read(manifest, 0..manifest.size.min(LARGEST_MANIFEST)).await?;
                manifest.digest.check(&bytes)?;
                Ok(bytes)
            }
        }
    }

    /// What is attached to `subject`, of one type or of any. All of it is kept: while the registry cannot be asked, it is
    /// what was attached when it was asked last.
    pub async fn referrers(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Referrer>> {
        Ok(self.listed(subject, artifact_type, List::Either).await?.unwrap_or_default())
    }

    /// With one request. `None`: it was to the API, and there is none; see [`Self::referrers_of_tag`]. Where there was
    /// none the day before, the tag is asked in its place: what was attached by an API since may be missing.
    pub async fn referrers_at_once(&self, subject: &Digest, artifact_type: &str) -> Result<Option<Vec<Referrer>>> {
        let list = if self.had_no_api().await { List::Tag } else { List::Api };
        self.listed(subject, Some(artifact_type), list).await
    }

    /// Of a registry that is known to have no API for it.
    pub async fn referrers_of_tag(&self, subject: &Digest, artifact_type: &str) -> Result<Vec<Referrer>> {
        Ok(self.listed(subject, Some(artifact_type), List::Tag).await?.unwrap_or_default())
    }

    async fn had_no_api(&self) -> bool {
        let (At::Registry(reference, _), Some(manifests)) = (&self.at, &self.manifests) else { return false };
        let known = manifests.resolution(&no_api_of(reference), SystemTime::now()).await;
        known.is_some_and(|known| known.age < NO_API_FOR)
    }

    async fn learn(&self, reference: &RegistryReference, subject: &Digest, has_api: Option<bool>) {
        let (Some(manifests), Some(has_api)) = (&self.manifests, has_api) else { return };
        match has_api {
            true => manifests.forget_resolution(&no_api_of(reference)).await,
            false => manifests.store_resolution(&no_api_of(reference), subject).await,
        }
    }

    async fn listed(&self, subject: &Digest, artifact_type: Option<&str>, list: List) -> Result<Option<Vec<Referrer>>> {
        let mut found = match &self.at {
            At::Layout(layout) => {
                let (layout, subject) = (Arc::clone(layout), subject.clone());
                blocking("layout", move || layout.referrers(&subject)).await??
            }
            At::Registry(reference, registry) => {
                let asked = match registry {
                    Some(registry) => registry.referrers(subject, list).await,
                    None => {
                        let cause = "offline: what is attached is not known";
                        let error = Error::new(ErrorKind::Unreachable, subject, cause);
                        Err(error.hint("look it up once without --offline"))
                    }
                };
                match asked {
                    Ok(Referrers { referrers, has_api }) => {
                        self.learn(reference, subject, has_api).await;
                        let Some(referrers) = referrers else { return Ok(None) };
                        let referrers = self.correct(subject, referrers).await;
                        self.keep(reference, subject, &referrers).await;
                        referrers
                    }
                    Err(error) if error.is_of_the_network() => {
                        let kept = self.kept(reference, subject).await.ok_or_else(|| error.clone())?;
                        tracing::info!("{error}; going on with what was attached when it was asked last");
                        kept
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        found.retain(|referrer| artifact_type.is_none_or(|wanted| referrer.artifact_type == wanted));
        Ok(Some(found))
    }

    /// Registries of go-containerregistry tell the type of the config, which is no type of an artifact where it is empty.
    async fn correct(&self, subject: &Digest, referrers: Vec<Referrer>) -> Vec<Referrer> {
        let corrected = stream::iter(referrers).map(|referrer| async move {
            if referrer.artifact_type != media_types::EMPTY {
                return referrer;
            }
            let digest = &referrer.descriptor.digest;
            let manifest = self.manifest(&referrer.descriptor).await.ok();
            let own = manifest.and_then(|bytes| Referrer::of_manifest(&bytes, digest, subject));
            match own {
                Some(Referrer { artifact_type, descriptor: Descriptor { annotations, .. } }) => {
                    // They tell no annotations either.
                    Referrer { artifact_type, descriptor: Descriptor { annotations, ..referrer.descriptor } }
                }
                None => referrer,
            }
        });
        corrected.buffered(AT_ONCE).collect().await
    }

    /// The manifest that cosign's tag names.
    pub async fn signatures_by_tag(&self, subject: &Digest) -> Result<Option<Bytes>> {
        let tag = signature_tag(subject);
        let (reference, registry) = match &self.at {
            At::Registry(reference, registry) => (reference, registry),
            At::Layout(layout) => {
                let named = LayoutReference { tag: Some(tag), digest: None, ..layout.reference().clone() };
                return match blocking("layout", move || Layout::new(named).manifest()).await? {
                    Ok((_, bytes)) => Ok(Some(bytes)),
                    Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                };
            }
        };
        let own = RegistryReference { tag: Some(tag.clone()), digest: None, ..reference.clone() };
        let asked = match registry {
            Some(registry) => registry.tagged(&tag, subject).await,
            None => Err(Error::new(ErrorKind::Unreachable, &own, "offline: not in the cache")),
        };
        match asked {
            Ok(None) => Ok(None),
            Ok(Some((digest, bytes))) => {
                self.store(own, digest, bytes.clone()).await;
                Ok(Some(bytes))
            }
            Err(error) if error.is_of_the_network() => Ok(self.load(own).await),
            Err(error) => Err(error),
        }
    }

    /// A blob that fits into memory, checked, and kept like a manifest.
    pub async fn small_blob(&self, blob: &Descriptor) -> Result<Bytes> {
        let manifests = self.manifests.as_ref();
        if let Some(bytes) = load(manifests, &blob.digest, blob.size).await {
            return Ok(bytes);
        }
        let bytes = match &self.at {
            At::Layout(layout) => layout.read(blob, 0..blob.size).await?,
            At::Registry(_, Some(registry)) => registry.read(blob, 0..blob.size).await?,
            At::Registry(_, None) => Offline.read(blob, 0..blob.size).await?,
        };
        blob.digest.check(&bytes)?;
        store(&blob.digest, &bytes, manifests).await;
        Ok(bytes)
    }

    async fn store(&self, tag: RegistryReference, digest: Digest, bytes: Bytes) {
        if let Some(manifests) = &self.manifests {
            manifests.store(&digest, bytes).await;
            manifests.store_resolution(&tag, &digest).await;
        }
    }

    async fn load(&self, tag: RegistryReference) -> Option<Bytes> {
        let Resolution { digest, .. } = self.manifests.as_ref()?.resolution(&tag, SystemTime::now()).await?;
        load(self.manifests.as_ref(), &digest, LONGEST_LIST).await
    }

    async fn keep(&self, reference: &RegistryReference, subject: &Digest, referrers: &[Referrer]) {
        let entries: Vec<_> = referrers.iter().map(Referrer::to_json).collect();
        let list =
            json!({ "schemaVersion": 2, "mediaType": media_types::IMAGE_INDEX, "manifests": entries }).to_string();
        self.store(list_of(reference, subject), Digest::sha256_of(list.as_bytes()), list.into()).await;
    }

    async fn kept(&self, reference: &RegistryReference, subject: &Digest) -> Option<Vec<Referrer>> {
        let bytes = self.load(list_of(reference, subject)).await?;
        let mut list: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        serde_json::from_value(list.get_mut("manifests")?.take()).ok()
    }
}

/// What a list of referrers is kept as: no tag that anybody would mount.
fn list_of(reference: &RegistryReference, subject: &Digest) -> RegistryReference {
    RegistryReference { tag: Some(format!("{}.referrers", referrers_tag(subject))), digest: None, ..reference.clone() }
}

/// As what it is kept that a repository has no referrers API, with one whose list it was asked for: nothing can have this tag.
fn no_api_of(reference: &RegistryReference) -> RegistryReference {
    RegistryReference { tag: Some(".no-referrers-api".into()), digest: None, ..reference.clone() }
}

/// With the media type that it says, or that its form tells.
pub fn typed(digest: Digest, bytes: &Bytes) -> Result<Descriptor> {
    let (own, default) = match Document::parse(bytes, digest.as_str())? {
        Document::Manifest(manifest) => (manifest.media_type, media_types::IMAGE_MANIFEST),
        Document::Index(index) => (index.media_type, media_types::IMAGE_INDEX),
    };
    let media_type = if own.is_empty() { default.to_owned() } else { own };
    Ok(Descriptor { digest, size: bytes.len() as u64, media_type, annotations: Default::default() })
}
