//! From a reference to manifest and config, checked: from the registry, or from the cache folder.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{Options, in_time};
use crate::blob::{BlobSource, Headers, Layout, Offline, ReadAhead};
use crate::cache::{CacheFolder, ChunkCache, Manifests, Resolution};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Document, Index, LARGEST_MANIFEST, Manifest, Reference, RegistryReference};
use crate::registry::{Registry, RegistryOptions, Traffic};

/// Bytes; a config is kept in memory.
const LARGEST_CONFIG: u64 = 64 << 20;

/// A resolved reference, and where its blobs come from.
pub struct Artifact {
    pub digest: Digest,
    pub manifest: Manifest,
    pub config: Bytes,
    pub headers: Arc<dyn BlobSource>,
    pub data: Arc<dyn BlobSource>,
    pub chunks: Arc<ChunkCache>,
    pub traffic: Arc<Traffic>,
    /// False: there is no registry, or it was tried in vain just now.
    pub reachable: bool,
}

impl Artifact {
    /// Resolves the reference once and checks manifest and config against their digests.
    pub async fn resolve(
        reference: &str,
        options: &Options,
        folder: Option<&CacheFolder>,
        manifests: Option<&Arc<Manifests>>,
    ) -> Result<Self> {
        match reference.parse()? {
            Reference::Registry(reference) => Self::in_registry(reference, options, folder, manifests).await,
            Reference::Layout(_) if options.verify_blobs => {
                Err(unverifiable("layers of an image layout are not copied to where they are checked"))
            }
            Reference::Layout(reference) => {
                let name = reference.to_string();
                let layout = Arc::new(Layout::new(reference));
                // It may lie on a network file system that hangs.
                let reading = Arc::clone(&layout);
                let manifest = blocking(&name, move || reading.manifest());
                let (digest, bytes) = in_time(options.timeout, &name, async { manifest.await? }).await?;
                let manifest = image_manifest(&bytes, &name)?;
                let config = read_config(manifest.config.as_ref(), layout.as_ref(), None).await?;
                // The kernel's page cache serves a local file better than a second copy of it.
                let chunks = Arc::new(ChunkCache::new(layout.clone(), None, options.memory));
                let (headers, data) = (layout.clone(), layout);
                let traffic = Arc::default();
                Ok(Self { digest, manifest, config, headers, data, chunks, traffic, reachable: true })
            }
        }
    }

    async fn in_registry(
        reference: RegistryReference,
        options: &Options,
        folder: Option<&CacheFolder>,
        manifests: Option<&Arc<Manifests>>,
    ) -> Result<Self> {
        let name = reference.to_string();
        let registry = match options.offline {
            true if folder.is_none() => {
                let error = Error::new(ErrorKind::Usage, "--offline", "there is no cache folder to mount from");
                return Err(error.hint("give one with --cache-dir, or set HOME"));
            }
            true => None,
            false => {
                let registry_options = RegistryOptions {
                    plain_http: options.plain_http,
                    access: options.access.clone(),
                    timeout: options.timeout,
                    connections: options.connections,
                };
                Some(Arc::new(Registry::new(reference.clone(), &registry_options)?))
            }
        };
        let found = find_manifest(&reference, registry.as_deref(), manifests).await?;
        let manifest = image_manifest(&found.bytes, &name)?;

        let disk = folder.filter(|_| options.disk_cache);
        let disk = disk.and_then(|folder| folder.disk_cache(options.cache_min_free)).map(Arc::new);
        let source: Arc<dyn BlobSource> = match &registry {
            Some(registry) => registry.clone(),
            None => Arc::new(Offline),
        };
        let (chunks, headers): (_, Arc<dyn BlobSource>) = if options.verify_blobs {
            let disk = disk.ok_or_else(|| unverifiable("there is no cache folder to check layers in"))?;
            let chunks = Arc::new(ChunkCache::of_checked(source, disk, options.memory));
            (chunks.clone(), chunks)
        } else {
            let chunks = Arc::new(ChunkCache::new(source.clone(), disk, options.memory));
            (chunks.clone(), Arc::new(Headers::new(chunks, source)))
        };
        let config = read_config(manifest.config.as_ref(), headers.as_ref(), manifests).await?;
        if let Some(manifests) = manifests.cloned()
            && found.origin == Origin::Registry
        {
            // The tag last: what it names is there then.
            let (digest, bytes) = (found.digest.clone(), found.bytes);
            let store = move || {
                manifests.store(&digest, &bytes);
                if reference.digest.is_none() {
                    manifests.store_resolution(&reference, &digest);
                }
            };
            blocking(&name, store).await?;
        }
        Ok(Self {
            digest: found.digest,
            manifest,
            config,
            headers,
            data: Arc::new(ReadAhead::new(Arc::clone(&chunks))),
            chunks,
            traffic: registry.as_ref().map(|registry| registry.traffic()).unwrap_or_default(),
            reachable: registry.is_some() && found.origin != Origin::Fallback,
        })
    }
}

struct Found {
    digest: Digest,
    bytes: Bytes,
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
async fn find_manifest(
    reference: &RegistryReference,
    registry: Option<&Registry>,
    manifests: Option<&Arc<Manifests>>,
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
    let failed = match registry {
        None => Error::new(ErrorKind::NotFound, reference, "offline: not in the cache")
            .hint("mount it once without --offline"),
        Some(registry) => match registry.manifest().await {
            Ok((digest, bytes)) => return Ok(Found { digest, bytes, origin: Origin::Registry }),
            Err(error) if error.is_of_the_network() && reference.digest.is_none() => error,
            Err(error) => return Err(error),
        },
    };
    let Some(Resolution { digest, age }) = resolution(reference, manifests).await else { return Err(failed) };
    let Some(found) = load(digest, Origin::Fallback).await else { return Err(failed) };
    if registry.is_some() {
        let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
        tracing::warn!("{failed}; going on with what the cache has of it, as of {age} ago: {}", found.digest);
    }
    Ok(found)
}

async fn resolution(reference: &RegistryReference, manifests: Option<&Arc<Manifests>>) -> Option<Resolution> {
    let (manifests, reference) = (Arc::clone(manifests?), reference.clone());
    if reference.digest.is_some() {
        return None;
    }
    let object = reference.to_string();
    blocking(object, move || manifests.resolution(&reference, SystemTime::now())).await.ok()?
}

async fn load(manifests: Option<&Arc<Manifests>>, digest: &Digest, limit: u64) -> Option<Bytes> {
    let (manifests, wanted) = (Arc::clone(manifests?), digest.clone());
    blocking(digest, move || manifests.load(&wanted, limit)).await.ok()?
}

fn unverifiable(cause: &str) -> Error {
    Error::new(ErrorKind::Usage, "--verify=blob", cause).hint("it needs --cache-dir, and none of --no-disk-cache")
}

fn image_manifest(bytes: &[u8], reference: &str) -> Result<Manifest> {
    match Document::parse(bytes, reference)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(Index { manifests }) => {
            let digests: Vec<_> = manifests.iter().take(3).map(|manifest| manifest.digest.as_str()).collect();
            Err(Error::new(ErrorKind::Unsupported, reference, format!("an index of {} manifests", manifests.len()))
                .hint(format!("name one of them by its digest, for instance {}", digests.join(" or "))))
        }
    }
}

/// From where it is kept, or from the source; then it is kept.
async fn read_config(
    config: Option<&Descriptor>,
    source: &dyn BlobSource,
    manifests: Option<&Arc<Manifests>>,
) -> Result<Bytes> {
    let Some(config) = config else { return Ok(Bytes::new()) };
    if config.size > LARGEST_CONFIG {
        let cause = format!("the config is larger than the {LARGEST_CONFIG} bytes that are read");
        return Err(Error::new(ErrorKind::Limit, &config.digest, cause));
    }
    if let Some(bytes) = load(manifests, &config.digest, config.size).await
        && bytes.len() as u64 == config.size
    {
        return Ok(bytes);
    }
    let bytes = source.read(config, 0..config.size).await?;
    config.digest.check(&bytes)?;
    if let Some(manifests) = manifests.cloned() {
        let (digest, bytes) = (config.digest.clone(), bytes.clone());
        blocking(&config.digest, move || manifests.store(&digest, &bytes)).await?;
    }
    Ok(bytes)
}

async fn blocking<T: Send + 'static>(
    object: impl std::fmt::Display,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| Error::new(ErrorKind::Io, object, panic))
}
