//! Keeps what passes by: the download of a blob whose registry gives nothing else, and long ranges that somebody reads once.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::OwnedSemaphorePermit;

use super::{CHUNK, ChunkCache, SharedState};
use crate::blob::{BlobSource, Passing};
use crate::cache::counters::add;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;

/// Bytes that are given on, and to the disk, at once.
const AT_ONCE: usize = 512 << 10;
/// Bytes of a blob that are looked at for what is missing.
const FARTHEST_LOOK: u64 = 1 << 30;

impl Passing for ChunkCache {
    fn kept<'a>(&'a self, blob: &'a Descriptor, range: &'a Range<u64>) -> BoxFuture<'a, Option<Bytes>> {
        Self::kept(self, blob, range).boxed()
    }

    fn pass<'a>(&'a self, blob: &'a Descriptor, at: u64, bytes: Bytes) -> BoxFuture<'a, BytesMut> {
        async move {
            let (whole, rest) = bytes.split_at(whole_chunks(blob, at, &bytes));
            let chunks: Vec<Bytes> = whole.chunks(CHUNK as usize).map(Bytes::copy_from_slice).collect();
            let rest = BytesMut::from(rest);
            self.shared.keep_passing(blob, at / CHUNK, &chunks).await;
            rest
        }
        .boxed()
    }
}

impl ChunkCache {
    /// What is not here is asked for as a whole, and kept as it passes.
    pub(super) fn pass_on<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxStream<'a, Result<Bytes>> {
        let next = |passing: Option<PassingOn<'a>>| async {
            let mut passing = passing.filter(|passing| passing.at < passing.end)?;
            let next = passing.next().await;
            let goes_on = next.is_ok();
            Some((next, goes_on.then_some(passing)))
        };
        let passing =
            PassingOn { cache: self, blob, at: range.start, end: range.end, here_until: range.start, run: None };
        stream::unfold(Some(passing), next).boxed()
    }
}

struct PassingOn<'a> {
    cache: &'a ChunkCache,
    blob: &'a Descriptor,
    at: u64,
    end: u64,
    /// Up to there all is here.
    here_until: u64,
    run: Option<Run<'a>>,
}

/// What is not here, on its way.
struct Run<'a> {
    end: u64,
    bytes: BoxStream<'a, Result<Bytes>>,
    /// From where we are on.
    collected: BytesMut,
    _memory: Option<OwnedSemaphorePermit>,
}

impl PassingOn<'_> {
    async fn next(&mut self) -> Result<Bytes> {
        if self.run.is_none() && self.at >= self.here_until {
            self.look().await;
        }
        let bytes = match &mut self.run {
            None => {
                let end = self.here_until.min(self.at.saturating_add(AT_ONCE as u64));
                self.cache.read(self.blob, self.at..end).await?
            }
            Some(run) => {
                let left = usize::try_from(run.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
                while run.collected.len() < AT_ONCE.min(left) {
                    let piece = run.bytes.next().await;
                    let ended =
                        || Err(Error::new(ErrorKind::Protocol, &self.blob.digest, "the source gave too few bytes"));
                    run.collected.extend_from_slice(&piece.unwrap_or_else(ended)?);
                }
                let mut bytes = run.collected.split().freeze();
                let whole = whole_chunks(self.blob, self.at, &bytes);
                self.cache.shared.keep_on_disk(self.blob, self.at / CHUNK, &bytes.slice(..whole)).await;
                if bytes.len() < left {
                    // What ends inside a chunk waits for the rest of it.
                    run.collected = BytesMut::from(&*bytes.split_off(whole));
                }
                add(&self.cache.shared.counters.network, bytes.len() as u64);
                bytes
            }
        };
        self.at = self.at.saturating_add(bytes.len() as u64);
        self.run = self.run.take().filter(|run| self.at < run.end);
        Ok(bytes)
    }

    /// How far it is here, or else on its way.
    async fn look(&mut self) {
        let shared = &self.cache.shared;
        let first = self.at / CHUNK;
        let range = self.at..self.end.min(self.at.saturating_add(FARTHEST_LOOK));
        // Of a blob that must be seen whole first all comes from there, and the end of a chunk does not make one.
        if shared.must_be_checked(self.blob).await {
            self.here_until = range.end;
            return;
        }
        let on_disk = shared.on_disk(self.blob, &range).await;
        let last = range.end.div_ceil(CHUNK);
        let missing = shared.missing(&shared.chunks(), self.blob, first..last, &on_disk);
        let begin = missing.first().map_or(last, |run| run.start);
        if begin > first || !self.at.is_multiple_of(CHUNK) {
            self.here_until = (begin.max(first + 1) * CHUNK).min(range.end);
            return;
        }
        // Runs are cut, and go on in the next one.
        let joined = missing.iter().fold(first, |end, run| if run.start == end { run.end } else { end });
        let end = (joined * CHUNK).min(range.end);
        let memory = shared.acquire(2 * AT_ONCE as u64).await;
        let bytes = shared.source.stream(self.blob, self.at..end);
        self.run = Some(Run { end, bytes, collected: BytesMut::new(), _memory: memory });
    }
}

/// How many of the bytes fill chunks, or are the last ones of the blob.
fn whole_chunks(blob: &Descriptor, at: u64, bytes: &[u8]) -> usize {
    let end = at.saturating_add(bytes.len() as u64);
    if end >= blob.size { bytes.len() } else { bytes.len() - bytes.len() % CHUNK as usize }
}

impl SharedState {
    async fn keep_passing(self: &Arc<Self>, blob: &Descriptor, first: u64, passing: &[Bytes]) {
        let new = self.new_of(blob, first, passing, true).await;
        if new.is_empty() {
            return;
        }
        let unwritten = Arc::clone(&self.unwritten).acquire_owned().await.ok();
        // The download is no faster than the disk.
        let Some(file) = self.write(blob, new, None).await else { return };
        let (state, blob) = (Arc::clone(self), blob.clone());
        tokio::spawn(async move {
            state.check_if_whole(blob, file).await;
            // Who waits until all is written wants to know that it is right.
            drop(unwritten);
        });
    }

    /// Keeps on disk what somebody reads once, and checks: nobody waits for it in memory, and it is hashed again when a
    /// mount looks at it. What has no room there as a whole would only drive out all else.
    async fn keep_on_disk(self: &Arc<Self>, blob: &Descriptor, first: u64, bytes: &Bytes) {
        if self.disk.as_ref().is_none_or(|disk| blob.size > disk.largest_kept()) {
            return;
        }
        let chunk = |at: usize| bytes.slice(at..bytes.len().min(at.saturating_add(CHUNK as usize)));
        let chunks: Vec<Bytes> = (0..bytes.len()).step_by(CHUNK as usize).map(chunk).collect();
        let new = self.new_of(blob, first, &chunks, false).await;
        if !new.is_empty() {
            let _unwritten = self.unwritten.acquire().await;
            self.write(blob, new, None).await;
        }
    }

    /// Runs of what is missing on disk; what somebody has asked for is kept by that request. `memory`: it is kept
    /// there, too.
    async fn new_of(
        self: &Arc<Self>,
        blob: &Descriptor,
        first: u64,
        passing: &[Bytes],
        memory: bool,
    ) -> Vec<(u64, Arc<[Bytes]>)> {
        let end = first.saturating_add(passing.len() as u64);
        let range = first * CHUNK..(end * CHUNK).min(blob.size);
        let on_disk = self.on_disk(blob, &range).await;
        let memory = memory && !self.must_be_checked(blob).await;
        let mut new = Vec::new();
        let mut chunks = self.chunks();
        for run in self.missing(&chunks, blob, first..end, &on_disk) {
            let from = usize::try_from(run.start.saturating_sub(first)).unwrap_or(usize::MAX);
            let length = run.end.saturating_sub(run.start) as usize;
            let run_chunks: Arc<[Bytes]> = passing.iter().skip(from).take(length).cloned().collect();
            if memory {
                for (number, chunk) in run.clone().zip(run_chunks.iter()) {
                    chunks.keep((self.space, blob.digest.clone(), number), chunk.clone(), false);
                }
            }
            new.push((run.start, run_chunks));
        }
        new
    }
}
