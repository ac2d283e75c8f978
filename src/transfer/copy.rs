//! Fills an image layout with an artifact, from wherever it is. Into a registry it is pushed.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::LayoutWriter;
use super::push::{Artifact, Moved, Pushed, State, Stored};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Document, Referrer};

/// Bytes that are read at once, and how many such pieces of a blob.
const PIECE: u64 = 1 << 20;
const AT_ONCE: usize = 4;

/// Blobs, manifests, then the tag. `jobs`: blobs at once. `stop`: whether to end before the next piece.
///
/// # Errors
/// The first; blobs that are whole by then stay there.
pub async fn to_layout(
    artifact: &Artifact,
    layout: &LayoutWriter,
    tag: Option<&str>,
    jobs: usize,
    stop: &AtomicBool,
    moved: &Moved,
) -> Result<Pushed> {
    let blobs = stream::iter(&artifact.blobs)
        .map(async |blob| Ok::<_, Error>((blob.clone(), bring(artifact, layout, blob, stop, moved).await?)))
        .buffered(jobs)
        .try_collect()
        .await?;
    let root = artifact.root();
    let manifests: Vec<_> = artifact.levels.iter().rev().flatten().cloned().collect();
    let entry = entry(root)?;
    let attached: Vec<_> = artifact.attached.iter().map(|(_, referrer)| referrer.to_json()).collect();
    let (layout, tag) = (layout.clone(), tag.map(str::to_owned));
    tokio::task::spawn_blocking(move || {
        for manifest in manifests {
            layout.put_as(&manifest.digest, &manifest.bytes)?;
        }
        let attached = attached.into_iter().map(|entry| (entry, None));
        layout.list(attached.chain([(entry, tag.as_deref())]).collect())
    })
    .await
    .unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, &root.digest, panic)))?;
    Ok(Pushed { digest: root.digest.clone(), blobs, attached: artifact.attached_digests() })
}

/// As oras lists a manifest: with its type and annotations.
fn entry(manifest: &Stored) -> Result<Value> {
    let Stored { digest, media_type, bytes } = manifest;
    let (artifact_type, annotations) = match Document::parse(bytes, digest.as_str())? {
        Document::Index(index) => (index.artifact_type, index.annotations),
        Document::Manifest(manifest) => (manifest.artifact_type, manifest.annotations),
    };
    let descriptor =
        Descriptor { digest: digest.clone(), size: bytes.len() as u64, media_type: media_type.clone(), annotations };
    Ok(Referrer { descriptor, artifact_type: artifact_type.unwrap_or_default() }.to_json())
}

async fn bring(
    artifact: &Artifact,
    layout: &LayoutWriter,
    blob: &Descriptor,
    stop: &AtomicBool,
    moved: &Moved,
) -> Result<State> {
    let pieces = stream::iter((0..blob.size).step_by(PIECE as usize))
        .map(async |start| artifact.source.read(blob, start..start.saturating_add(PIECE).min(blob.size)).await)
        .buffered(AT_ONCE)
        .map(|piece| match stop.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Io, &blob.digest, "interrupted").hint("copy again: whole blobs stay")),
            false => piece,
        })
        .inspect_ok(|piece| moved(piece.len() as i64));
    match layout.copy(blob, pieces).await?.existed {
        true => {
            moved(blob.size.cast_signed());
            Ok(State::Exists)
        }
        false => Ok(State::Sent),
    }
}
