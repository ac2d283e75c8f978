//! A ZIP layer: its directory is read from the end of the blob.

use std::sync::Arc;

use bytes::Bytes;

use super::compressed::Unpacked;
use super::layer::Sources;
use crate::blob::{BlobSource, Zip, read_small_member};
use crate::error::Result;
use crate::index::{ZipScanner, ZipStep};
use crate::oci::Descriptor;

/// By its first bytes: a member, or the end of an archive without any.
pub fn is_zip(head: &[u8]) -> bool {
    head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06")
}

/// By what the manifest says. Something may stand before the archive: a program that unpacks it.
pub fn is_called_zip(layer: &Descriptor) -> bool {
    layer.media_type == "application/zip" || layer.title().is_some_and(|title| title.ends_with(".zip"))
}

pub async fn open(layer: &Descriptor, sources: &Arc<Sources>) -> Result<Unpacked> {
    // In chunks, which are kept: the next mount needs its beginning and its directory again.
    sources.chunks.prefetch(layer, 0..layer.size.min(1));
    let mut scanner = ZipScanner::new(layer.size, sources.indexing.limits);
    let (mut at, mut bytes) = (0, Bytes::new());
    let found = loop {
        match scanner.step(at, &bytes).map_err(|error| error.on(&layer.digest))? {
            ZipStep::Need(range) => {
                at = range.start;
                bytes = sources.chunks.read(layer, range).await?;
            }
            ZipStep::Link(member) => {
                let target = read_small_member(sources.chunks.as_ref(), layer, &member).await?;
                scanner.link(target.as_deref()).map_err(|error| error.on(&layer.digest))?;
            }
            ZipStep::End(found) => break found,
        }
    };
    let blob = Descriptor { size: found.end, ..layer.clone() };
    let (chunks, folder) = (sources.chunks.clone(), sources.folder.clone());
    let source =
        Zip::new(layer.clone(), found.members, Arc::clone(&sources.data), chunks, folder, sources.content_limits);
    Ok(Unpacked { index: found.index, blob, source: Arc::new(source) })
}
