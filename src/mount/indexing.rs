//! Makes the index of a tar blob: fetches what the indexer asks for.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{Habits, Indexer, LayerIndex, Limits, Tuning};
use crate::oci::Descriptor;

/// How a mount indexes its layers.
pub struct Indexing {
    pub limits: Limits,
    pub tuning: Tuning,
    /// Requests under way at once for one layer.
    pub requests: usize,
    /// What the layers so far let one expect of the next: siblings are alike.
    pub habits: Arc<Mutex<Habits>>,
}

/// The first bytes of a blob, enough to see what it is and where its first members end.
pub async fn read_head(source: &dyn BlobSource, blob: &Descriptor) -> Result<Bytes> {
    read(source, blob, 0..blob.size.min(Tuning::default().smallest)).await
}

impl Indexing {
    /// Reads the headers of a tar blob. `head`: what is known of its start, may be empty.
    pub async fn index(&self, source: &dyn BlobSource, blob: &Descriptor, head: Bytes) -> Result<LayerIndex> {
        let wrong = |error: crate::index::ScanError| error.on(&blob.digest);
        let habits = self.habits.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut indexer = Indexer::new(blob.size, self.limits, self.tuning, habits);
        indexer.arrived(&(0..head.len() as u64), head).map_err(wrong)?;
        let mut under_way = FuturesUnordered::new();
        while !indexer.is_done() {
            for range in indexer.requests(self.requests.saturating_sub(under_way.len())) {
                under_way.push(async move { (range.clone(), read(source, blob, range).await) });
            }
            let Some((range, bytes)) = under_way.next().await else { break };
            indexer.arrived(&range, bytes?).map_err(wrong)?;
        }
        let (index, trailing, habits) = indexer
            .finish()
            .ok_or_else(|| Error::new(ErrorKind::Io, &blob.digest, "indexing ended before the archive did"))?;
        *self.habits.lock().unwrap_or_else(PoisonError::into_inner) = habits;
        Ok(index.with_trailing(trailing))
    }
}

async fn read(source: &dyn BlobSource, blob: &Descriptor, range: Range<u64>) -> Result<Bytes> {
    let length = range.end.saturating_sub(range.start);
    let bytes = source.read(blob, range).await?;
    if bytes.len() as u64 != length {
        return Err(Error::new(ErrorKind::Protocol, &blob.digest, "the source gave another number of bytes"));
    }
    Ok(bytes)
}
