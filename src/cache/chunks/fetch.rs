//! Requests for chunks.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::oneshot::Receiver;

use super::answers::Given;
use super::memory::Chunks;
use super::on_disk::OnDisk;
use super::{CHUNK, Coming, SharedState, chunk_numbers};
use crate::cache::blob_file::BlobFile;
use crate::cache::counters::add;
use crate::cache::cut::run_cost;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest};

impl SharedState {
    /// Asks for what is missing, unless there is no memory to spare. `until`: end of what may come in one answer.
    pub(super) fn fetch_ahead(
        self: &Arc<Self>,
        blob: &Descriptor,
        range: &Range<u64>,
        until: Option<u64>,
        on_disk: &Option<OnDisk>,
    ) {
        let mut chunks = self.chunks();
        let missing = self.missing(&chunks, blob, chunk_numbers(range), on_disk);
        let cost: u64 = missing.iter().map(run_cost).sum();
        let has_room = cost < self.in_flight.available_permits() as u64;
        for run in missing {
            let in_answer = match until {
                Some(until) => self.open_answer(&mut chunks, blob, &run, until.div_ceil(CHUNK), on_disk),
                None => {
                    self.close_answer(&mut chunks, &blob.digest, &run);
                    false
                }
            };
            // An answer waits for memory with one run at a time. More in line would be before whoever needs something now.
            if in_answer || has_room {
                self.ask_for(&mut chunks, blob, run, true);
            }
        }
    }

    /// Starts one request. `ahead`: nobody waits for it yet.
    pub(super) fn ask_for(
        self: &Arc<Self>,
        chunks: &mut Chunks,
        blob: &Descriptor,
        run: Range<u64>,
        ahead: bool,
    ) -> Coming {
        let wished = chunks.wish(&(self.space, blob.digest.clone()), &run);
        let fetch = tokio::spawn(Arc::clone(self).fetch(blob.clone(), run.clone(), ahead, wished));
        let object = blob.digest.clone();
        let coming = Coming {
            first: run.start,
            ahead,
            run: async move { fetch.await.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, object, panic))) }
                .boxed()
                .shared(),
        };
        for number in run {
            chunks.coming.insert((self.space, blob.digest.clone(), number), coming.clone());
        }
        coming
    }

    /// One request, or what is `wished` of an answer under way. Its chunks are kept, and no longer coming, when it ends,
    /// however it ends.
    async fn fetch(
        self: Arc<Self>,
        blob: Descriptor,
        run: Range<u64>,
        ahead: bool,
        wished: Option<Receiver<Given>>,
    ) -> Result<Arc<[Bytes]>> {
        let cleared = ClearComing { state: &self, blob: &blob.digest, run: run.clone() };
        let given = match wished {
            Some(wished) => wished.await.ok(),
            None => None,
        };
        let (run_chunks, memory) = match given {
            Some(given) => given,
            None => {
                let memory = self.acquire(run_cost(&run)).await;
                let bytes = self.source.read(&blob, run.start * CHUNK..(run.end * CHUNK).min(blob.size)).await;
                // Copies, so that one kept chunk does not hold the memory of its whole run.
                (bytes.map(|bytes| bytes.chunks(CHUNK as usize).map(Bytes::copy_from_slice).collect()), memory)
            }
        };
        let run_chunks: Arc<[Bytes]> = run_chunks?;
        if ahead {
            add(&self.counters.ahead_fetched, run_chunks.iter().map(|chunk| chunk.len() as u64).sum());
        }
        // Before it is no longer coming: who waits until all is written must not miss it.
        let unwritten = Arc::clone(&self.unwritten).acquire_owned().await.ok();
        self.keep(&blob, &run, &run_chunks);
        drop(cleared);
        if self.disk.is_some() {
            let (state, run_chunks) = (Arc::clone(&self), Arc::clone(&run_chunks));
            tokio::spawn(async move {
                // Not given back before: a slow disk must slow the requests down. One that hangs must not.
                let file = state.write(&blob, vec![(run.start, run_chunks)], memory).await;
                if let Some(file) = file {
                    state.check_if_whole(blob, file).await;
                }
                // Who waits until all is written wants to know that it is right.
                drop(unwritten);
            });
        }
        Ok(run_chunks)
    }

    /// Has runs of chunks written to the disk, and gives the blob if it seems to be whole by that. `memory` is what they take.
    pub(super) async fn write(
        &self,
        blob: &Descriptor,
        runs: Vec<(u64, Arc<[Bytes]>)>,
        memory: Option<OwnedSemaphorePermit>,
    ) -> Option<Arc<BlobFile>> {
        let disk = Arc::clone(self.disk.as_ref()?);
        let (writes, blob) = (Arc::clone(&disk.writes), blob.clone());
        let write = move || {
            let file = runs.iter().fold(None, |_, (first, run)| disk.write(&blob, *first, run));
            file.filter(|file: &Arc<BlobFile>| file.seems_whole())
        };
        let file = writes.run(write).await.flatten();
        drop(memory);
        file
    }

    fn keep(&self, blob: &Descriptor, run: &Range<u64>, run_chunks: &[Bytes]) {
        let mut chunks = self.chunks();
        for (number, chunk) in run.clone().zip(run_chunks) {
            let key = (self.space, blob.digest.clone(), number);
            let ahead = chunks.coming.get(&key).is_some_and(|coming| coming.ahead);
            chunks.keep(key, chunk.clone(), ahead);
        }
    }

    pub(super) async fn acquire(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.in_flight).acquire_many_owned(permits).await.ok()
    }
}

struct ClearComing<'a> {
    state: &'a SharedState,
    blob: &'a Digest,
    run: Range<u64>,
}

impl Drop for ClearComing<'_> {
    fn drop(&mut self) {
        let mut chunks = self.state.chunks();
        for number in self.run.clone() {
            chunks.coming.remove(&(self.state.space, self.blob.clone(), number));
        }
    }
}
