//! An artifact into an image layout, through the cache of a mount.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::task::block_in_place;

use crate::blob::Described;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::{Failed, Mount};
use crate::oci::{Descriptor, Digest};
use crate::transfer::LayoutWriter;
use crate::transfer::copy::{conclude, place};
use crate::transfer::fetch::{Lanes, Origin, There, fetch};
use crate::transfer::push::Artifact;

/// All of it, also what an index lists and a mount does not show, such as attestations: what a layout is for is to be
/// complete.
pub async fn artifact(mount: &Mount) -> Result<Artifact> {
    let parts = mount.manifests();
    let root = parts.first().ok_or_else(|| Error::new(ErrorKind::NotFound, "layout", "no manifest"))?;
    let configs =
        parts.iter().filter_map(|part| Some((part.manifest.config.as_ref()?.digest.clone(), part.config.clone())));
    // Of a part that failed there is none.
    let inline = configs.filter(|(_, bytes)| !bytes.is_empty()).collect();
    let source = Described { source: mount.blobs(), inline, elsewhere: HashMap::new() };
    let known = |wanted: &Descriptor| parts.iter().find(|part| part.descriptor.digest == wanted.digest);
    let fetch = async |wanted: &Descriptor| match known(wanted).filter(|part| part.error.is_none()) {
        Some(known) => Ok(known.bytes.clone()),
        None => mount.repository().manifest(wanted).await,
    };
    let digest = &root.descriptor.digest;
    Artifact::read((digest.clone(), root.bytes.clone()), Arc::new(source), digest.as_str(), None, fetch).await
}

/// `there`: blobs that need not be looked at. `tag`: what names the artifact in the layout.
///
/// # Errors
/// Where the folder is no layout; a blob that fails is told in the result, and then no tag is given.
pub async fn to_layout(
    mount: &Mount,
    artifact: &Artifact,
    there: &HashSet<Digest>,
    output: &Path,
    tag: Option<&str>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Failed>> {
    let layout = block_in_place(|| LayoutWriter::open(output))?;
    let origin = Origin { source: &*artifact.source, mount: Some(mount) };
    let missing: Vec<_> = artifact.blobs.iter().filter(|blob| !there.contains(&blob.digest)).collect();
    let (lanes, _memory) = (Lanes::of(missing.len()), mount.read_once());
    let fetched = stream::iter(missing).map(async |blob| {
        let fetched = async {
            let place = block_in_place(|| place(output, blob))?;
            fetch(origin, blob, &place, &lanes, progress).await
        };
        fetched.await.map_err(|error| Failed { path: blob.digest.to_string(), error })
    });
    let fetched: Vec<_> = fetched.buffer_unordered(lanes.blobs()).collect().await;
    mount.settle().await;
    let failures: Vec<Failed> = fetched.into_iter().filter_map(std::result::Result::err).collect();
    if failures.is_empty() {
        conclude(artifact, &layout, tag).await?;
    }
    Ok(failures)
}

/// What there is of a blob already. Blocks on the disk.
pub fn look(mount: &Mount, output: &Path, blob: &Descriptor) -> There {
    let folder = output.join("blobs").join(blob.digest.algorithm());
    let there = match folder.is_dir().then(|| place(output, blob)) {
        Some(Ok(place)) => place.look(mount, blob),
        _ => There { in_cache: mount.cached_bytes(blob, &(0..blob.size)), ..There::default() },
    };
    // The mount has the configs of what it shows.
    let is_config = |part: &crate::mount::Resolved| {
        part.manifest.config.as_ref().is_some_and(|config| config.digest == blob.digest && !part.config.is_empty())
    };
    match mount.manifests().iter().any(is_config) {
        true => There { in_cache: blob.size.saturating_sub(there.in_folder), ..there },
        false => there,
    }
}
