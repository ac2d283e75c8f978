//! Keeps what passes by: the download of a blob whose registry gives nothing else.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{CHUNK, ChunkCache, SharedState};
use crate::blob::Passing;
use crate::oci::Descriptor;

impl Passing for ChunkCache {
    fn kept<'a>(&'a self, blob: &'a Descriptor, range: &'a Range<u64>) -> BoxFuture<'a, Option<Bytes>> {
        Self::kept(self, blob, range).boxed()
    }

    fn pass<'a>(&'a self, blob: &'a Descriptor, at: u64, bytes: Bytes) -> BoxFuture<'a, BytesMut> {
        async move {
            let end = at.saturating_add(bytes.len() as u64);
            let whole = if end >= blob.size { bytes.len() } else { bytes.len() - bytes.len() % CHUNK as usize };
            let (whole, rest) = bytes.split_at(whole);
            let chunks: Vec<Bytes> = whole.chunks(CHUNK as usize).map(Bytes::copy_from_slice).collect();
            let rest = BytesMut::from(rest);
            self.shared.keep_passing(blob, at / CHUNK, &chunks).await;
            rest
        }
        .boxed()
    }
}

impl SharedState {
    async fn keep_passing(self: &Arc<Self>, blob: &Descriptor, first: u64, passing: &[Bytes]) {
        let new = self.keep_new(blob, first, passing).await;
        let unwritten = Arc::clone(&self.unwritten).acquire_owned().await.ok();
        // The download is no faster than the disk.
        let file = self.write(blob, new, None).await;
        if let Some(file) = file {
            self.check_if_whole(blob.clone(), file).await;
        }
        // Who waits until all is written wants to know that it is right.
        drop(unwritten);
    }

    /// Keeps in memory what is missing, and tells it for the disk. What somebody has asked for is kept by that request.
    async fn keep_new(self: &Arc<Self>, blob: &Descriptor, first: u64, passing: &[Bytes]) -> Vec<(u64, Arc<[Bytes]>)> {
        let end = first.saturating_add(passing.len() as u64);
        let range = first * CHUNK..(end * CHUNK).min(blob.size);
        let on_disk = self.on_disk(blob, &range).await;
        let checked = self.must_be_checked(blob).await;
        let mut new = Vec::new();
        let mut chunks = self.chunks();
        for run in self.missing(&chunks, blob, first..end, &on_disk) {
            let from = usize::try_from(run.start.saturating_sub(first)).unwrap_or(usize::MAX);
            let length = run.end.saturating_sub(run.start) as usize;
            let run_chunks: Arc<[Bytes]> = passing.iter().skip(from).take(length).cloned().collect();
            if !checked {
                for (number, chunk) in run.clone().zip(run_chunks.iter()) {
                    chunks.keep((self.space, blob.digest.clone(), number), chunk.clone(), false);
                }
            }
            new.push((run.start, run_chunks));
        }
        new
    }
}
