//! A source whose chunks are checked as they arrive: against the digests that an index brings which the user trusts.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{AttachedLayer, ChunkDigests, DIGEST_CHUNK};
use crate::oci::{Descriptor, Digest};

/// Bytes of digests that are kept: those of 16 GiB. One layer's may be more.
const KEPT: u64 = 8 << 20;
/// Bytes of one layer's digests that are fetched at most: those of 128 GiB.
const LARGEST: u64 = 64 << 20;

/// See the module. Before [`Self::pin`] it is the source itself.
pub struct Digested {
    source: Arc<dyn BlobSource>,
    index: OnceLock<(Descriptor, HashMap<Digest, AttachedLayer>)>,
    layers: Mutex<HashMap<Digest, Layer>>,
}

#[derive(Default)]
struct Layer {
    digests: Arc<OnceCell<ChunkDigests>>,
    /// A bit a chunk: it came from the source, and was right.
    right: Vec<u64>,
}

impl Digested {
    pub fn new(source: Arc<dyn BlobSource>) -> Self {
        Self { source, index: OnceLock::new(), layers: Mutex::default() }
    }

    /// `index`: the blob that holds the frames.
    pub fn pin(&self, index: Descriptor, layers: HashMap<Digest, AttachedLayer>) {
        let _ = self.index.set((index, layers));
    }

    /// Whether all chunks of a range came from the source since then, and were right.
    pub fn is_right(&self, blob: &Digest, range: &Range<u64>) -> bool {
        let layers = self.layers();
        let Some(layer) = layers.get(blob) else { return false };
        (range.start / DIGEST_CHUNK..range.end.div_ceil(DIGEST_CHUNK)).all(|chunk| layer.is_right(chunk))
    }

    fn layers(&self) -> MutexGuard<'_, HashMap<Digest, Layer>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: nothing is known of this blob's chunks.
    async fn digests(&self, blob: &Descriptor) -> Result<Option<Arc<OnceCell<ChunkDigests>>>> {
        let Some((index, layers)) = self.index.get() else { return Ok(None) };
        let attached = layers.get(&blob.digest).filter(|attached| attached.size == blob.size);
        let Some((attached, frame)) = attached.and_then(|attached| Some((attached, attached.digests.as_ref()?))) else {
            return Ok(None);
        };
        let length = frame.range.end.saturating_sub(frame.range.start);
        if length > LARGEST {
            let cause =
                format!("its chunk digests in the index that --index names are {length} bytes, more than {LARGEST}");
            return Err(Error::new(ErrorKind::Limit, &blob.digest, cause).hint("go without --index"));
        }
        let cell = self.cell(&blob.digest);
        let fetched = cell.get_or_try_init(async || {
            let bytes = self.source.read(index, frame.range.clone()).await?;
            attached.open_digests(&bytes).map_err(|error| {
                let cause = format!("its chunk digests in the index that --index names: {error}");
                Error::new(ErrorKind::Corrupt, &blob.digest, cause)
            })
        });
        fetched.await?;
        Ok(Some(cell))
    }

    /// Where a layer's digests are or will be. Those of others go when they are too many.
    fn cell(&self, blob: &Digest) -> Arc<OnceCell<ChunkDigests>> {
        let mut layers = self.layers();
        let memory = |layer: &Layer| layer.digests.get().map_or(0, ChunkDigests::memory);
        if layers.values().map(memory).sum::<u64>() > KEPT {
            for (_, layer) in layers.iter_mut().filter(|(digest, _)| *digest != blob) {
                layer.digests = Arc::default();
            }
        }
        Arc::clone(&layers.entry(blob.clone()).or_default().digests)
    }

    /// Checks those chunks that are whole in these bytes.
    fn check(&self, blob: &Descriptor, digests: &ChunkDigests, range: &Range<u64>, bytes: &[u8]) -> Result<()> {
        let first = range.start.div_ceil(DIGEST_CHUNK);
        let skipped = first.saturating_mul(DIGEST_CHUNK).saturating_sub(range.start);
        let whole = bytes.get(usize::try_from(skipped).unwrap_or(usize::MAX)..).unwrap_or_default();
        for (chunk, bytes) in (first..).zip(whole.chunks(DIGEST_CHUNK as usize)) {
            let start = chunk.saturating_mul(DIGEST_CHUNK);
            let end = start.saturating_add(bytes.len() as u64);
            if (bytes.len() as u64) < DIGEST_CHUNK && end != blob.size {
                break;
            }
            let found = Digest::sha256_of(bytes);
            if digests.get(chunk).as_ref() != Some(&found) {
                let wanted = digests.get(chunk).map_or_else(|| "nothing".to_owned(), |digest| digest.to_string());
                let cause = format!("bytes {start} to {end} have the digest {found}; the index has {wanted}");
                return Err(Error::new(ErrorKind::Corrupt, &blob.digest, cause)
                    .hint("the registry or something on the way to it changed them"));
            }
            if let Some(layer) = self.layers().get_mut(&blob.digest) {
                layer.set_right(chunk);
            }
        }
        Ok(())
    }
}

impl BlobSource for Digested {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            let (bytes, digests) =
                futures_util::future::try_join(self.source.read(blob, range.clone()), self.digests(blob)).await?;
            if let Some(digests) = digests.as_ref().and_then(|cell| cell.get()) {
                self.check(blob, digests, &range, &bytes)?;
            }
            Ok(bytes)
        }
        .boxed()
    }

    fn soon(&self) -> u64 {
        self.source.soon()
    }
}

impl Layer {
    fn is_right(&self, chunk: u64) -> bool {
        let word = usize::try_from(chunk / 64).ok().and_then(|at| self.right.get(at));
        word.is_some_and(|word| word & (1 << (chunk % 64)) != 0)
    }

    fn set_right(&mut self, chunk: u64) {
        let at = usize::try_from(chunk / 64).unwrap_or(usize::MAX);
        if self.right.len() <= at {
            self.right.resize(at.saturating_add(1), 0);
        }
        if let Some(word) = self.right.get_mut(at) {
            *word |= 1 << (chunk % 64);
        }
    }
}
