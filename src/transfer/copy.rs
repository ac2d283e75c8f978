//! Fills an image layout with an artifact, from wherever it is. Into a registry it is pushed.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;

use super::LayoutWriter;
use super::push::{Artifact, Moved, Pushed, State};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;

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
    let root = artifact.root().clone();
    let manifests: Vec<_> = artifact.levels.iter().rev().flatten().cloned().collect();
    let (layout, tag, entry) = (layout.clone(), tag.map(str::to_owned), root.clone());
    tokio::task::spawn_blocking(move || {
        for manifest in manifests {
            layout.put_as(&manifest.digest, &manifest.bytes)?;
        }
        let size = entry.bytes.len();
        let entry = json!({"mediaType": entry.media_type, "digest": entry.digest.as_str(), "size": size});
        layout.tag(entry, tag.as_deref())
    })
    .await
    .unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, &root.digest, panic)))?;
    Ok(Pushed { digest: root.digest, blobs })
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
