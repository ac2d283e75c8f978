//! A source for what nobody waits for: it takes a part of the connections, and leaves the rest to those who do.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::BlobSource;
use crate::error::Result;
use crate::oci::Descriptor;

pub struct Background {
    source: Arc<dyn BlobSource>,
    requests: Semaphore,
}

impl Background {
    /// `requests`: most under way at once.
    pub fn new(source: Arc<dyn BlobSource>, requests: usize) -> Self {
        Self { source, requests: Semaphore::new(requests) }
    }
}

impl BlobSource for Background {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            let _request = self.requests.acquire().await;
            self.source.read(blob, range).await
        }
        .boxed()
    }
}
