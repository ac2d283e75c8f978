//! Fills an image layout with an artifact, from wherever it is. Into a registry it is pushed.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use serde_json::Value;
use tokio::task::block_in_place;

use super::LayoutWriter;
use super::fetch::{Lanes, Origin, Place, fetch};
use super::folder::{Folder, failed};
use super::push::{Artifact, Moved, Pushed, State, Stored};
use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Document, Referrer};

/// A source that ends when it is told to.
struct Stoppable<'a> {
    source: Arc<dyn BlobSource>,
    stop: &'a AtomicBool,
}

impl Stoppable<'_> {
    fn goes_on(&self, blob: &Descriptor) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            let error = Error::new(ErrorKind::Io, &blob.digest, "interrupted");
            return Err(error.hint("copy again: it goes on from here"));
        }
        Ok(())
    }
}

impl BlobSource for Stoppable<'_> {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        match self.goes_on(blob) {
            Ok(()) => self.source.read(blob, range),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn stream<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxStream<'a, Result<Bytes>> {
        self.source.stream(blob, range).and_then(|bytes| ready(self.goes_on(blob).map(|()| bytes))).boxed()
    }
}

/// Blobs, manifests, then the tag. `jobs`: blobs at once. `stop`: whether to end before the next piece. A blob of the
/// right size is taken for the one that its name tells.
///
/// # Errors
/// The first; what is there by then is gone on with by the next call.
pub async fn to_layout(
    artifact: &Artifact,
    layout: &LayoutWriter,
    tag: Option<&str>,
    jobs: usize,
    stop: &AtomicBool,
    moved: &Moved,
) -> Result<Pushed> {
    let source = Stoppable { source: Arc::clone(&artifact.source), stop };
    let origin = Origin { source: &source, mount: None };
    let lanes = Lanes::of(artifact.blobs.len());
    let blobs = stream::iter(&artifact.blobs)
        .map(async |blob| {
            if layout.has(&blob.digest, blob.size) {
                moved(blob.size.cast_signed());
                return Ok((blob.clone(), State::Exists));
            }
            let place = block_in_place(|| place(layout.directory(), blob))?;
            fetch(origin, blob, &place, &lanes, &|bytes| moved(bytes.cast_signed())).await?;
            Ok::<_, Error>((blob.clone(), State::Sent))
        })
        .buffered(jobs)
        .try_collect()
        .await?;
    conclude(artifact, layout, tag).await?;
    Ok(Pushed { digest: artifact.root().digest.clone(), blobs, attached: artifact.attached_digests() })
}

/// Where a blob lies in a layout. Blocks on the disk.
pub fn place(layout: &Path, blob: &Descriptor) -> Result<Place> {
    let folder = layout.join("blobs").join(blob.digest.algorithm());
    let folder = Folder::open(&folder).map_err(|error| failed(&folder, &error))?;
    Ok(Place { folder, name: OsStr::new(blob.digest.hex()).to_owned(), keep: false })
}

/// When all blobs are there: manifests, and what tells of them.
pub async fn conclude(artifact: &Artifact, layout: &LayoutWriter, tag: Option<&str>) -> Result<()> {
    let root = artifact.root();
    let manifests: Vec<_> = artifact.levels.iter().rev().flatten().cloned().collect();
    let entry = entry(root)?;
    let attached: Vec<_> = artifact.attached.iter().map(|(_, referrer)| referrer.to_json()).collect();
    let (layout, tag) = (layout.clone(), tag.map(str::to_owned));
    tokio::task::spawn_blocking(move || {
        for manifest in manifests {
            layout.put(&manifest.digest, &manifest.bytes)?;
        }
        let attached = attached.into_iter().map(|entry| (entry, None));
        layout.list(attached.chain([(entry, tag.as_deref())]).collect())
    })
    .await
    .unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, &root.digest, panic)))
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
