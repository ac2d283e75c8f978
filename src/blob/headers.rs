//! A source for small reads: of chunks that are at hand nothing is asked again.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::BlobSource;
use crate::cache::ChunkCache;
use crate::error::Result;
use crate::oci::Descriptor;

/// Asks for no more than is wanted, and keeps nothing.
pub struct Headers {
    chunks: Arc<ChunkCache>,
    source: Arc<dyn BlobSource>,
}

impl Headers {
    pub fn new(chunks: Arc<ChunkCache>, source: Arc<dyn BlobSource>) -> Self {
        Self { chunks, source }
    }
}

impl BlobSource for Headers {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        self.chunks.kept_or(blob, range, &self.source)
    }
}
