//! From what a reference names to its manifests: one, or the many of an index, each with its folder.

use std::ops::Range;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::names::{Parts, manifest_places};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::media_types;
use crate::oci::{Descriptor, Digest, Document, Index, Listed, Manifest, Platform};

/// Requests under way at once.
pub const AT_ONCE: usize = 16;
/// What buildkit attaches to the manifests of an index in that same index.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// How much an index may ask for.
#[derive(Debug, Clone, Copy)]
pub struct ManifestLimits {
    /// All together, nested indexes included.
    pub manifests: usize,
    /// Indexes on the way to a manifest.
    pub depth: usize,
    /// Bytes of all manifests.
    pub bytes: u64,
    /// Bytes of all configs, which are kept in memory.
    pub configs: u64,
}

impl Default for ManifestLimits {
    fn default() -> Self {
        Self { manifests: 1000, depth: 4, bytes: 64 << 20, configs: 64 << 20 }
    }
}

/// A manifest or an index, and the folder that it is shown as.
pub struct Resolved {
    /// Below the root; empty for what the reference names.
    pub folder: Parts,
    /// With the annotations of the manifest itself, too.
    pub descriptor: Descriptor,
    /// The manifest as it is; empty for one that could not be had.
    pub bytes: Bytes,
    pub artifact_type: Option<String>,
    pub platform: Option<Platform>,
    /// Without layers for an index, and for one that could not be had.
    pub manifest: Manifest,
    /// Numbers of its layers in the mount.
    pub layers: Range<usize>,
    pub config: Bytes,
    /// Why nothing can be shown.
    pub error: Option<Error>,
}

/// What is still to be fetched.
struct Wanted {
    folder: Parts,
    listed: Listed,
}

/// All manifests, the root first and each index before what it lists. `root`: what `reference` names.
///
/// # Errors
/// Where the root, or all that it lists, cannot be had; where one cannot be had now, but may be later: a mount never
/// changes. Any other is shown with its error.
pub async fn expand(
    root: (Digest, Bytes),
    reference: &str,
    platform: Option<&Platform>,
    limits: ManifestLimits,
    fetch: impl AsyncFn(&Descriptor) -> Result<Bytes>,
) -> Result<Vec<Resolved>> {
    let too_many = |cause: String| {
        Error::new(ErrorKind::Limit, reference, cause).hint("name one of its manifests by digest, or give --platform")
    };
    let (digest, bytes) = root;
    let size = bytes.len() as u64;
    let descriptor = Descriptor { digest, size, media_type: String::new(), annotations: Default::default() };
    let mut level =
        vec![(Wanted { folder: Parts::new(), listed: Listed { descriptor, platform: None } }, Ok::<_, Error>(bytes))];
    let mut parts: Vec<Resolved> = Vec::new();
    let (mut depth, mut total) = (0, 0u64);
    while !level.is_empty() {
        let mut wanted = Vec::new();
        for (Wanted { folder, listed }, bytes) in level {
            let object = if depth == 0 { reference } else { listed.descriptor.digest.as_str() };
            match bytes.and_then(|bytes| Ok((Document::parse(&bytes, object)?, bytes))) {
                Ok((Document::Manifest(manifest), bytes)) => {
                    parts.push(Resolved::of(folder, listed, manifest, bytes));
                }
                Ok((Document::Index(index), bytes)) => match platform {
                    Some(platform) => wanted.push(Wanted { folder, listed: pick(index, platform, object)? }),
                    None => {
                        let Index { media_type, artifact_type, manifests, annotations } = index;
                        wanted.extend(shown(manifests, &folder));
                        let manifest = Manifest { media_type, artifact_type, annotations, ..Manifest::default() };
                        parts.push(Resolved::of(folder, listed, manifest, bytes));
                    }
                },
                Err(error) if depth == 0 || error.is_of_the_network() => return Err(error),
                Err(error) => {
                    let part = Resolved::of(folder, listed, Manifest::default(), Bytes::new());
                    parts.push(Resolved { error: Some(error), ..part });
                }
            }
        }
        depth += 1;
        if !wanted.is_empty() && depth > limits.depth {
            return Err(too_many(format!("indexes within indexes, more than {} deep", limits.depth)));
        }
        if parts.len().saturating_add(wanted.len()) > limits.manifests {
            return Err(too_many(format!("an index of more than {} manifests", limits.manifests)));
        }
        total = wanted.iter().fold(total, |sum, wanted| sum.saturating_add(wanted.listed.descriptor.size));
        if total > limits.bytes {
            return Err(too_many(format!("an index of more than {} bytes of manifests", limits.bytes)));
        }
        let fetching = stream::iter(wanted).map(async |wanted| {
            let bytes =
                fetch(&wanted.listed.descriptor).await.and_then(|bytes| sized(bytes, &wanted.listed.descriptor));
            (wanted, bytes)
        });
        level = fetching.buffered(AT_ONCE).collect().await;
    }
    match parts.iter().find_map(|part| part.error.clone()) {
        // Nothing but indexes and errors.
        Some(error) if !parts.iter().any(Resolved::has_content) => Err(error),
        _ => {
            parts.iter().for_each(Resolved::warn);
            Ok(parts)
        }
    }
}

impl Resolved {
    fn of(folder: Parts, listed: Listed, manifest: Manifest, bytes: Bytes) -> Self {
        let Listed { mut descriptor, platform } = listed;
        if !manifest.media_type.is_empty() {
            descriptor.media_type.clone_from(&manifest.media_type);
        }
        for (key, value) in &manifest.annotations {
            descriptor.annotations.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let artifact_type = manifest.artifact_type.clone();
        let (config, layers) = (Bytes::new(), 0..0);
        Self { folder, descriptor, artifact_type, platform, manifest, bytes, layers, config, error: None }
    }

    pub fn warn(&self) {
        if let Some(error) = &self.error {
            tracing::warn!("{}: {error}; it is shown as a folder that cannot be read", self.folder.join("/"));
        }
    }

    fn has_content(&self) -> bool {
        self.error.is_none() && (self.manifest.config.is_some() || !self.manifest.layers.is_empty())
    }
}

/// The size in an index bounds what all of it may take.
pub fn sized(bytes: Bytes, descriptor: &Descriptor) -> Result<Bytes> {
    if bytes.len() as u64 == descriptor.size {
        return Ok(bytes);
    }
    let cause = format!("the manifest has {} bytes, {} in the index", bytes.len(), descriptor.size);
    Err(Error::new(ErrorKind::Corrupt, &descriptor.digest, cause).hint("push the index again"))
}

fn shown(manifests: Vec<Listed>, folder: &Parts) -> Vec<Wanted> {
    let is_shown = |listed: &Listed| {
        let Descriptor { media_type, annotations, .. } = &listed.descriptor;
        media_types::MANIFESTS.contains(&media_type.as_str()) && !annotations.contains_key(ATTESTATION)
    };
    let (manifests, others): (Vec<_>, Vec<_>) = manifests.into_iter().partition(is_shown);
    if !others.is_empty() {
        tracing::debug!("{} entries of the index are attestations, or no manifests; they are not shown", others.len());
    }
    let (places, warnings) = manifest_places(&manifests);
    for warning in warnings {
        tracing::info!("{}", crate::error::printable(&warning));
    }
    let below = |place: Parts| folder.iter().cloned().chain(place).collect();
    let placed = manifests.into_iter().zip(places);
    placed.filter_map(|(listed, place)| Some(Wanted { folder: below(place?), listed })).collect()
}

fn pick(index: Index, platform: &Platform, object: &str) -> Result<Listed> {
    let Index { manifests, .. } = index;
    let mut known: Vec<String> =
        manifests.iter().filter_map(|listed| Some(listed.platform.as_ref()?.to_string())).collect();
    let fits = |listed: &Listed| listed.platform.as_ref().is_some_and(|own| own.is(platform));
    manifests.into_iter().find(fits).ok_or_else(|| {
        known.truncate(10);
        let cause = format!("no manifest of the index is for {platform}");
        Error::new(ErrorKind::NotFound, object, cause)
            .hint(format!("it has: {}", crate::error::printable(&known.join(", "))))
    })
}
