//! Makes the index of a tar blob: fetches what the indexer asks for.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::blob::BlobSource;
use crate::cache::ChunkCache;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{Habits, Indexer, LayerIndex, Limits, Tuning};
use crate::oci::Descriptor;

/// How a mount indexes its layers.
pub struct Indexing {
    pub limits: Limits,
    pub tuning: Tuning,
    /// Requests under way at once for one layer. Where there are few, neighbouring headers become one, with what lies between them.
    pub requests: usize,
    /// The same while content comes, which is told by `chunks`: then those bytes cost more than requests.
    pub beside_content: usize,
    pub chunks: Arc<ChunkCache>,
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
            let requests = if self.chunks.is_fetching() { self.beside_content } else { self.requests };
            for range in indexer.requests(requests.saturating_sub(under_way.len())) {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::{BoxFuture, pending};

    use super::*;
    use crate::oci::Digest;

    /// Gives bytes of an archive, and never an answer for any other blob.
    struct Archive(Vec<u8>, Digest, AtomicU64);

    impl BlobSource for Archive {
        fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
            if blob.digest != self.1 {
                return pending().boxed();
            }
            self.2.fetch_add(range.end - range.start, Ordering::Relaxed);
            let bytes = Bytes::copy_from_slice(&self.0[range.start as usize..range.end as usize]);
            std::future::ready(Ok(bytes)).boxed()
        }
    }

    #[tokio::test]
    async fn neighbouring_headers_are_one_request_unless_content_comes() {
        let mut tar = tar::Builder::new(Vec::new());
        for number in 0..64 {
            let mut header = tar::Header::new_ustar();
            header.set_size(100_000);
            tar.append_data(&mut header, format!("{number}.npy"), [7; 100_000].as_slice()).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let (size, digest) = (tar.len() as u64, Digest::sha256_of(&tar));
        let of = |digest| Descriptor { digest, size, media_type: String::new(), annotations: Default::default() };
        let (blob, other) = (of(digest.clone()), of(Digest::sha256_of(b"")));
        let archive = Arc::new(Archive(tar, digest, AtomicU64::new(0)));
        let mut fetched = Vec::new();
        for content in [false, true] {
            let chunks = Arc::new(ChunkCache::new(archive.clone(), None, 64 << 20));
            if content {
                chunks.prefetch(&other, 0..4 << 20, None);
                while !chunks.is_fetching() {
                    tokio::task::yield_now().await;
                }
            }
            let (limits, habits) = (Limits::default(), Arc::default());
            let indexing =
                Indexing { limits, tuning: Tuning::default(), requests: 4, beside_content: 64, chunks, habits };
            let index = indexing.index(archive.as_ref(), &blob, Bytes::new()).await.unwrap();
            assert_eq!(index.len(), 65);
            fetched.push(archive.2.swap(0, Ordering::Relaxed));
        }
        assert!(fetched[1] < fetched[0] / 2, "{fetched:?}");
    }
}
