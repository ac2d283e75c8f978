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
            Step::End { trailing } => {
                if trailing {
                    tracing::warn!("layer {}: bytes follow the end of the archive; they are not shown", blob.digest);
                }
                return Ok(builder.finish());
            }
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
        if (self.at..=end.saturating_add(SMALLEST)).contains(&needed.start) && end > 0 {
            // The next header follows closely: members are small, and a longer window saves requests.
            self.length = (self.length * 2).min(LARGEST);
            // None where the window ended within a member's data.
            let overlap = self.bytes.get((needed.start - self.at) as usize..).unwrap_or_default();
            let start = needed.start.max(end);
            let fetched = read(source, blob, start..needed.end.max(start.saturating_add(self.length))).await?;
            let mut bytes = BytesMut::with_capacity(overlap.len() + fetched.len());
            bytes.extend_from_slice(overlap);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use eo_mount_testing::fixtures::PythonTar;
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::oci::Digest;

    struct Counted {
        bytes: Bytes,
        requests: AtomicUsize,
    }

    impl BlobSource for Counted {
        fn read<'a>(&'a self, _: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
            self.requests.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok(self.bytes.slice(range.start as usize..range.end as usize))).boxed()
        }
    }

    async fn requests_for(members: u64, size: usize) -> usize {
        let tar = (0..members).fold(PythonTar::new(), |tar, n| tar.file(&n.to_string(), 1.5, vec![b'x'; size], 0, 0));
        let bytes = Bytes::from(tar.finish().to_bytes());
        let blob = Descriptor {
            digest: Digest::sha256_of(&bytes),
            size: bytes.len() as u64,
            media_type: String::new(),
            annotations: Default::default(),
        };
        let source = Counted { bytes, requests: AtomicUsize::new(0) };
        let index = index_blob(&source, &blob, Bytes::new(), Limits::default()).await.expect("an archive");
        assert_eq!(index.len() as u64, members + 1);
        source.requests.into_inner()
    }

    #[tokio::test]
    async fn a_window_that_ends_within_a_small_members_data_goes_on_growing() {
        let requests = requests_for(4000, 1024).await;
        assert!(requests < 25, "{requests}");
    }

    #[tokio::test]
    async fn a_large_member_is_skipped() {
        assert_eq!(requests_for(8, 40_000).await, 9);
    }
}
