//! An artifact into an image layout: layers as `blob.rs` fetches them, then configs and manifests, the tag last.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::block_in_place;

use super::LAYERS;
use super::blob::{self, PIECES, Place, There};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::{Failed, Mount, Resolved};
use crate::oci::Descriptor;
use crate::oci::media_types;
use crate::transfer::LayoutWriter;
use crate::transfer::copy;
use crate::transfer::folder::{Folder, failed};
use crate::transfer::push::{Artifact, Moved};

/// Where a blob lies in a layout. Blocks on the disk.
fn place(output: &Path, blob: &Descriptor) -> Result<Place> {
    let folder = output.join("blobs").join(blob.digest.algorithm());
    let folder = Folder::open(&folder).map_err(|error| failed(&folder, &error))?;
    Ok(Place { folder, name: OsStr::new(blob.digest.hex()).to_owned(), keep: false })
}

/// All of the artifact: what a layout is for is to be complete. `tag`: what names it there.
///
/// # Errors
/// Where the folder is no layout; a layer that fails is told in the result, and then no tag is given.
pub async fn to_layout(
    mount: &Mount,
    output: &Path,
    tag: Option<&str>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Failed>> {
    let layout = block_in_place(|| LayoutWriter::open(output))?;
    let (window, _memory) = (Semaphore::new(PIECES), mount.read_once());
    let mut blobs: Vec<Descriptor> = Vec::new();
    for number in 0..mount.layer_count() {
        let blob = mount.blob_of_layer(number)?;
        if !blobs.iter().any(|other| other.digest == blob.digest) {
            blobs.push(blob.clone());
        }
    }
    let fetched = stream::iter(blobs).map(async |blob| {
        let fetched = async {
            let place = block_in_place(|| place(output, &blob))?;
            blob::fetch(mount, &blob, &place, &window, progress).await
        };
        fetched.await.map_err(|error| Failed { path: blob.digest.to_string(), error })
    });
    let fetched: Vec<_> = fetched.buffer_unordered(LAYERS).collect().await;
    mount.settle().await;
    let mut failures: Vec<Failed> = fetched.into_iter().filter_map(std::result::Result::err).collect();
    failures.extend(mount.manifests().iter().filter_map(|part| {
        let error = part.error.clone()?;
        Some(Failed { path: part.descriptor.digest.to_string(), error })
    }));
    if !failures.is_empty() {
        return Ok(failures);
    }
    for part in mount.manifests().iter().rev() {
        if let Some(config) = &part.manifest.config {
            put(&layout, config, &part.config).await?;
        }
        put(&layout, &part.descriptor, &part.bytes).await?;
    }
    let root = mount.manifests().first().ok_or_else(|| Error::new(ErrorKind::NotFound, "layout", "no manifest"))?;
    if is_index(root) {
        put_hidden(mount, root, &layout, tag).await?;
    }
    block_in_place(|| layout.tag(entry(root), tag))?;
    Ok(failures)
}

/// What an index lists and a mount does not show, such as attestations. What is there by now is not fetched again.
async fn put_hidden(mount: &Mount, root: &Resolved, layout: &LayoutWriter, tag: Option<&str>) -> Result<()> {
    let Resolved { descriptor: Descriptor { digest, .. }, bytes, .. } = root;
    let fetch =
        async |wanted: &Descriptor| match mount.manifests().iter().find(|it| it.descriptor.digest == wanted.digest) {
            Some(known) => Ok(known.bytes.clone()),
            None => mount.repository().manifest(wanted).await,
        };
    let artifact = Artifact::read((digest.clone(), bytes.clone()), mount.blobs(), digest.as_str(), fetch).await?;
    copy::to_layout(&artifact, layout, tag, LAYERS, &AtomicBool::new(false), &(Arc::new(|_| ()) as Moved)).await?;
    Ok(())
}

fn is_index(root: &Resolved) -> bool {
    root.manifest.config.is_none() && root.layers.is_empty()
}

async fn put(layout: &LayoutWriter, blob: &Descriptor, bytes: &Bytes) -> Result<()> {
    layout.copy(blob, stream::iter([Ok(bytes.clone())])).await.map(drop)
}

fn entry(root: &Resolved) -> Value {
    let media_type = match (root.manifest.media_type.as_str(), is_index(root)) {
        ("", true) => media_types::IMAGE_INDEX,
        ("", false) => media_types::IMAGE_MANIFEST,
        (known, _) => known,
    };
    let mut entry = json!({
        "mediaType": media_type,
        "digest": root.descriptor.digest.as_str(),
        "size": root.descriptor.size,
    });
    if let (Some(kind), Some(fields)) = (&root.artifact_type, entry.as_object_mut()) {
        fields.insert("artifactType".to_owned(), kind.as_str().into());
    }
    entry
}

/// What there is of a blob already. Blocks on the disk.
pub fn look(mount: &Mount, output: &Path, blob: &Descriptor) -> There {
    let folder = output.join("blobs").join(blob.digest.algorithm());
    match folder.is_dir().then(|| place(output, blob)) {
        Some(Ok(place)) => place.look(mount, blob),
        _ => There { in_cache: mount.cached_bytes(blob, &(0..blob.size)), ..There::default() },
    }
}
