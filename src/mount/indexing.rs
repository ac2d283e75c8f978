//! Feeds the scanner: which bytes are fetched for the ones that it needs.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{LayerIndex, LayerIndexBuilder, Limits, Scanner, Step};
use crate::oci::Descriptor;

/// Bytes fetched for a header that stands alone: its PAX records come with it.
const SMALLEST: u64 = 16 << 10;
/// Bytes fetched at once where members are small, so that one header follows on the other.
const LARGEST: u64 = 1 << 20;

/// The first bytes of a blob, enough to see what it is and where its first members end.
pub async fn read_head(source: &dyn BlobSource, blob: &Descriptor) -> Result<Bytes> {
    read(source, blob, 0..SMALLEST).await
}

/// Reads the headers of a tar blob one after the other. `head`: what is known of its start, may be empty.
pub async fn index_blob(source: &dyn BlobSource, blob: &Descriptor, head: Bytes, limits: Limits) -> Result<LayerIndex> {
    let mut scanner = Scanner::new(blob.size, limits);
    let mut builder = LayerIndexBuilder::new(limits);
    let mut window = Window { at: 0, bytes: head, length: SMALLEST };
    let in_layer = |error: crate::index::ScanError| error.on(&blob.digest);
    loop {
        match scanner.step(window.at, &window.bytes).map_err(in_layer)? {
            Step::Need(range) => window.fetch(source, blob, range).await?,
            Step::Member(member) => builder.push(member).map_err(in_layer)?,
            Step::End { trailing } => return Ok(builder.finish().with_trailing(trailing)),
        }
    }
}

/// The bytes that the scanner sees.
struct Window {
    /// Blob offset of the first byte.
    at: u64,
    bytes: Bytes,
    /// Bytes to fetch next.
    length: u64,
}

impl Window {
    async fn fetch(&mut self, source: &dyn BlobSource, blob: &Descriptor, needed: Range<u64>) -> Result<()> {
        let end = self.at.saturating_add(self.bytes.len() as u64);
        if (self.at..=end).contains(&needed.start) && end > 0 {
            // The next header follows closely: members are small, and a longer window saves requests.
            self.length = (self.length * 2).min(LARGEST);
            let overlap = self.bytes.slice((needed.start - self.at) as usize..);
            let fetched = read(source, blob, end..needed.end.max(end.saturating_add(self.length))).await?;
            let mut bytes = BytesMut::with_capacity(overlap.len() + fetched.len());
            bytes.extend_from_slice(&overlap);
            bytes.extend_from_slice(&fetched);
            self.bytes = bytes.freeze();
        } else {
            self.length = SMALLEST;
            self.bytes =
                read(source, blob, needed.start..needed.end.max(needed.start.saturating_add(SMALLEST))).await?;
        }
        self.at = needed.start;
        Ok(())
    }
}

async fn read(source: &dyn BlobSource, blob: &Descriptor, range: Range<u64>) -> Result<Bytes> {
    let range = range.start..range.end.min(blob.size);
    let length = range.end.saturating_sub(range.start);
    let bytes = source.read(blob, range).await?;
    if bytes.len() as u64 != length {
        return Err(Error::new(ErrorKind::Protocol, &blob.digest, "the source gave another number of bytes"));
    }
    Ok(bytes)
}
