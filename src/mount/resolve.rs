//! From a reference to manifests and configs, checked: from the registry, or from the cache folder.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use super::manifests::{AT_ONCE, ManifestLimits, Resolved, expand};
use super::repository::Repository;
use super::verify::check_signed;
use super::{AttachedIndex, Options, in_time, not_done};
use crate::blob::{BlobSource, Described, Digested, Headers, Layout, Local, LocalFiles, Offline, ReadAhead};
use crate::cache::{CacheFolder, ChunkCache, Manifests, Resolution};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, LARGEST_MANIFEST, LayoutReference, Manifest, Reference, RegistryReference};
use crate::registry::{Registry, RegistryOptions, Traffic};

/// A resolved reference, and where its blobs come from.
pub struct Artifact {
    /// At least one; that of the reference first.
    pub parts: Vec<Resolved>,
    pub headers: Arc<dyn BlobSource>,
    pub data: Arc<dyn BlobSource>,
    pub chunks: Arc<ChunkCache>,
    pub local: LocalFiles,
    pub traffic: Arc<Traffic>,
    /// False: there is no registry, or it was tried in vain just now.
    pub reachable: bool,
    pub repository: Repository,
    /// What is asked for chunks, if an index is to tell their digests.
    pub digested: Option<Arc<Digested>>,
}

impl Options {
    /// Those of the registry.
    pub fn registry(&self) -> RegistryOptions {
        RegistryOptions {
            plain_http: self.plain_http,
            access: self.access.clone(),
            timeout: self.timeout,
            connections: self.connections,
            memory: self.memory,
            bandwidth: self.bandwidth,
            mirrors: self.mirrors.clone(),
            require_ranges: self.require_ranges,
            allow_local_redirects: self.allow_local_redirects,
        }
    }
}

impl Artifact {
    /// Resolves the reference once and checks manifests and configs against their digests, until `deadline`.
    pub async fn resolve(
        reference: &str,
        options: &Options,
        folder: Option<&CacheFolder>,
        manifests: Option<&Arc<Manifests>>,
        deadline: Instant,
    ) -> Result<Self> {
        match reference.parse()? {
            Reference::Registry(reference) => Self::in_registry(reference, options, folder, manifests, deadline).await,
            Reference::Layout(_) if options.verify_blobs => {
                Err(unverifiable("layers of an image layout are not copied to where they are checked"))
            }
            Reference::Layout(layout) => by(deadline, options, reference, Self::in_layout(layout, options)).await,
        }
    }

    async fn in_layout(reference: LayoutReference, options: &Options) -> Result<Self> {
        let name = reference.to_string();
        let layout = Arc::new(Layout::new(reference));
        let repository = Repository::in_layout(Arc::clone(&layout));
        // It may lie on a network file system that hangs.
        let reading = Arc::clone(&layout);
        let root = blocking(&name, move || reading.manifest()).await??;
        check_signed(&repository, &root.0, options).await?;
        let fetch = async |manifest: &Descriptor| {
            let size = manifest.size.min(LARGEST_MANIFEST);
            let bytes = layout.read(manifest, 0..size).await?;
            manifest.digest.check(&bytes)?;
            Ok(bytes)
        };
        let limits = ManifestLimits::default();
        let mut parts = expand(root, &name, options.platform.as_ref(), limits, fetch).await?;
        let local = LocalFiles::default();
        let source = described(&mut parts, layout, &local);
        read_configs(&mut parts, &source, None, limits).await?;
        // The kernel's page cache serves a local file better than a second copy of it.
        let chunks = Arc::new(ChunkCache::new(source.clone(), None, options.memory));
        let (headers, data) = (source.clone(), source);
        let traffic = Arc::default();
        Ok(Self { parts, headers, data, chunks, local, traffic, reachable: true, repository, digested: None })
    }

    async fn in_registry(
        reference: RegistryReference,
        options: &Options,
        folder: Option<&CacheFolder>,
        manifests: Option<&Arc<Manifests>>,
        deadline: Instant,
    ) -> Result<Self> {
        let name = reference.to_string();
        offline_folder(options, folder.is_some())?;
        let registry = match options.offline {
            true => None,
            false => Some(Arc::new(Registry::new(reference.clone(), &options.registry())?)),
        };
        let found = find_manifest(&reference, registry.as_deref(), manifests, options.timeout).await?;
        let origin = found.origin;
        let repository = Repository::in_registry(reference.clone(), registry.clone(), manifests.cloned());
        by(deadline, options, &name, check_signed(&repository, &found.digest, options)).await?;
        // One that did not answer just now is not asked for more.
        let asked = registry.as_deref().filter(|_| origin != Origin::Fallback);
        let fetch = async |manifest: &Descriptor| fetch_manifest(&manifest.digest, asked, manifests).await;
        let limits = ManifestLimits::default();
        let root = (found.digest.clone(), found.bytes.clone());
        let expanding = expand(root, &name, options.platform.as_ref(), limits, fetch);
        let mut parts = by(deadline, options, &name, expanding).await?;

        let disk = match folder.filter(|_| options.disk_cache) {
            Some(folder) => folder.disk_cache(options.cache_min_free).await.map(Arc::new),
            None => None,
        };
        let source: Arc<dyn BlobSource> = match &registry {
            Some(registry) => registry.clone(),
            None => Arc::new(Offline),
        };
        let is_pinned = matches!(options.attached, AttachedIndex::Pinned(_));
        let digested = is_pinned.then(|| Arc::new(Digested::new(Arc::clone(&source))));
        let source = digested.clone().map_or(source, |digested| digested);
        let local = LocalFiles::default();
        let source = described(&mut parts, source, &local);
        let (chunks, headers): (_, Arc<dyn BlobSource>) = if options.verify_blobs {
            let disk = disk.ok_or_else(|| unverifiable("there is no cache folder to check layers in"))?;
            let chunks = Arc::new(ChunkCache::of_checked(source, disk, options.memory));
            (chunks.clone(), chunks)
        } else {
            let chunks = Arc::new(ChunkCache::new(source.clone(), disk, options.memory));
            (chunks.clone(), Arc::new(Headers::new(chunks, source)))
        };
        if let Some(registry) = &registry {
            registry.keep_passing_in(&chunks);
            let registry = Arc::downgrade(registry);
            chunks.on_wrong(move |digest| {
                if let Some(registry) = registry.upgrade() {
                    registry.distrust_mirrors(digest);
                }
            });
        }
        let read = by(deadline, options, &name, read_configs(&mut parts, &headers, manifests, limits)).await;
        read.map_err(|error| registry.as_ref().map_or(error.clone(), |registry| registry.explain_delay(error)))?;
        found_is_kept(&reference, &found, manifests).await;
        Ok(Self {
            parts,
            headers,
            data: Arc::new(ReadAhead::new(Arc::clone(&chunks))),
            chunks,
            local,
            traffic: registry.as_ref().map(|registry| registry.traffic()).unwrap_or_default(),
            reachable: registry.is_some() && origin != Origin::Fallback,
            repository,
            digested,
        })
    }
}

pub(super) fn offline_folder(options: &Options, there: bool) -> Result<()> {
    if options.offline && !there {
        let error = Error::new(ErrorKind::Usage, "--offline", "there is no cache folder to mount from");
        return Err(error.hint("give one with --cache-dir, or set HOME"));
    }
    Ok(())
}

async fn by<T>(deadline: Instant, options: &Options, object: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(not_done(options.timeout, object)))
}

/// The source, with what the manifests themselves say of their blobs, and what lies here as files.
fn described(parts: &mut [Resolved], source: Arc<dyn BlobSource>, local: &LocalFiles) -> Arc<dyn BlobSource> {
    let (mut inline, mut elsewhere) = (HashMap::new(), HashMap::new());
    for Resolved { manifest, .. } in parts {
        inline.extend(std::mem::take(&mut manifest.inline));
        elsewhere.extend(std::mem::take(&mut manifest.elsewhere));
    }
    let plain = inline.is_empty() && elsewhere.is_empty();
    let source = if plain { source } else { Arc::new(Described { source, inline, elsewhere }) };
    Arc::new(Local { source, files: local.clone() })
}

pub(super) struct Found {
    pub digest: Digest,
    pub bytes: Bytes,
    origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Registry,
    /// The reference names it by its digest, and a digest names the same bytes for ever.
    Cache,
    /// What the tag named once, because the registry cannot be asked.
    Fallback,
}

/// `registry`: `None` if nobody is to be asked.
pub(super) async fn find_manifest(
    reference: &RegistryReference,
    registry: Option<&Registry>,
    manifests: Option<&Arc<Manifests>>,
    timeout: Duration,
) -> Result<Found> {
    let load = async |digest: Digest, origin| {
        let bytes = load(manifests, &digest, LARGEST_MANIFEST).await?;
        Some(Found { digest, bytes, origin })
    };
    if let Some(digest) = &reference.digest
        && let Some(found) = load(digest.clone(), Origin::Cache).await
    {
        return Ok(found);
    }
    let known = resolution(reference, manifests).await;
    let failed = match registry {
        None => Error::new(ErrorKind::NotFound, reference, "offline: not in the cache")
            .hint("mount it once without --offline"),
        Some(registry) => match ask(registry, known.is_some(), timeout).await {
            Ok((digest, bytes)) => return Ok(Found { digest, bytes, origin: Origin::Registry }),
            Err(error) if error.is_of_the_network() && reference.digest.is_none() => error,
            Err(error) => return Err(error),
        },
    };
    let Some(Resolution { digest, age }) = known else { return Err(failed) };
    let Some(found) = load(digest, Origin::Fallback).await else { return Err(failed) };
    if registry.is_some() {
        let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
        tracing::warn!("{failed}; going on with what the cache has of it, as of {age} ago: {}", found.digest);
    }
    Ok(found)
}

/// Who has something to go on with needs time for that, too.
async fn ask(registry: &Registry, has_fallback: bool, timeout: Duration) -> Result<(Digest, Bytes)> {
    match has_fallback {
        true => in_time(timeout / 2, "the registry", registry.manifest()).await,
        false => registry.manifest().await,
    }
}

async fn resolution(reference: &RegistryReference, manifests: Option<&Arc<Manifests>>) -> Option<Resolution> {
    manifests.filter(|_| reference.digest.is_none())?.resolution(reference, SystemTime::now()).await
}

pub(super) async fn load(manifests: Option<&Arc<Manifests>>, digest: &Digest, limit: u64) -> Option<Bytes> {
    manifests?.load(digest, limit).await
}

/// What the registry said is kept, the tag last: what it names is there then.
pub(super) async fn found_is_kept(reference: &RegistryReference, found: &Found, manifests: Option<&Arc<Manifests>>) {
    let Some(manifests) = manifests.filter(|_| found.origin == Origin::Registry) else { return };
    manifests.store(&found.digest, found.bytes.clone()).await;
    if reference.digest.is_none() {
        manifests.store_resolution(reference, &found.digest).await;
    }
}

fn unverifiable(cause: &str) -> Error {
    Error::new(ErrorKind::Usage, "--verify=blob", cause).hint("it needs --cache-dir, and none of --no-disk-cache")
}

/// One of an index: from where it is kept, or from the registry; then it is kept.
pub(super) async fn fetch_manifest(
    digest: &Digest,
    registry: Option<&Registry>,
    manifests: Option<&Arc<Manifests>>,
) -> Result<Bytes> {
    if let Some(bytes) = load(manifests, digest, LARGEST_MANIFEST).await {
        return Ok(bytes);
    }
    let missing = || Error::new(ErrorKind::NotFound, digest, "not in the cache, and no registry to ask");
    let bytes = registry.ok_or_else(missing)?.manifest_by_digest(digest).await?;
    store(digest, &bytes, manifests).await;
    Ok(bytes)
}

async fn read_configs(
    parts: &mut [Resolved],
    source: &Arc<dyn BlobSource>,
    manifests: Option<&Arc<Manifests>>,
    limits: ManifestLimits,
) -> Result<()> {
    let wanted: Vec<(usize, Descriptor)> =
        parts.iter().enumerate().filter_map(|(number, part)| Some((number, part.manifest.config.clone()?))).collect();
    let mut total = 0u64;
    for (_, config) in &wanted {
        total = total.saturating_add(config.size);
        if total > limits.configs {
            let cause = format!("configs are larger than the {} bytes that are read", limits.configs);
            return Err(Error::new(ErrorKind::Limit, &config.digest, cause).hint("tell the publisher"));
        }
    }
    let results: Vec<_> = stream::iter(wanted)
        .map(async |(number, config)| (number, read_config(&config, source.as_ref(), manifests).await))
        .buffered(AT_ONCE)
        .collect()
        .await;
    for (number, result) in results {
        let Some(part) = parts.get_mut(number) else { continue };
        match result {
            Ok(bytes) => part.config = bytes,
            Err(error) if part.folder.is_empty() || error.is_of_the_network() => return Err(error),
            Err(error) => {
                part.manifest = Manifest::default();
                part.error = Some(error);
                part.warn();
            }
        }
    }
    Ok(())
}

/// From where it is kept, or from the source; then it is kept.
async fn read_config(
    config: &Descriptor,
    source: &dyn BlobSource,
    manifests: Option<&Arc<Manifests>>,
) -> Result<Bytes> {
    if let Some(bytes) = load(manifests, &config.digest, config.size).await
        && bytes.len() as u64 == config.size
    {
        return Ok(bytes);
    }
    let bytes = source.read(config, 0..config.size).await?;
    config.digest.check(&bytes)?;
    store(&config.digest, &bytes, manifests).await;
    Ok(bytes)
}

pub(super) async fn store(digest: &Digest, bytes: &Bytes, manifests: Option<&Arc<Manifests>>) {
    if let Some(manifests) = manifests {
        manifests.store(digest, bytes.clone()).await;
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    object: impl std::fmt::Display,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| Error::new(ErrorKind::Io, object, panic))
}
