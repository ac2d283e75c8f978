//! What a manifest itself says of its blobs: the bytes of small ones, and where else others are.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::{BlobSource, in_pieces};
use crate::error::{Error, ErrorKind, Result, printable};
use crate::oci::{Descriptor, Digest};

/// Asks nobody for blobs that the manifest brought along.
pub struct Described {
    pub source: Arc<dyn BlobSource>,
    pub inline: HashMap<Digest, Bytes>,
    /// Addresses are told, not asked: they are whatever the author of a manifest wrote.
    pub elsewhere: HashMap<Digest, String>,
}

impl BlobSource for Described {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        if let Some(bytes) = self.inline.get(&blob.digest) {
            let part = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
            let inside = part.filter(|(start, end)| start <= end && *end <= bytes.len());
            let result = inside
                .map(|(start, end)| bytes.slice(start..end))
                .ok_or_else(|| Error::new(ErrorKind::Corrupt, &blob.digest, "a range behind the blob's end"));
            return std::future::ready(result).boxed();
        }
        let reading = self.source.read(blob, range);
        let Some(url) = self.elsewhere.get(&blob.digest) else { return reading };
        async move {
            reading.await.map_err(|error| match error.kind {
                ErrorKind::NotFound => {
                    error.hint(format!("its manifest says that it is at {}, which is not asked", printable(url)))
                }
                _ => error,
            })
        }
        .boxed()
    }

    fn stream<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxStream<'a, Result<Bytes>> {
        let is_described = self.inline.contains_key(&blob.digest) || self.elsewhere.contains_key(&blob.digest);
        if is_described { in_pieces(self, blob, range) } else { self.source.stream(blob, range) }
    }

    fn long_answers(&self) -> usize {
        self.source.long_answers()
    }

    fn soon(&self) -> u64 {
        self.source.soon()
    }
}
