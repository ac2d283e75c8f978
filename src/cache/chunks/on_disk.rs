//! Chunks on disk. What the kernel has in memory is read at once; all else is asked of a disk that may hang.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{CHUNK, ChunkCache, SharedState, chunk_numbers};
use crate::blob::BlobSource;
use crate::cache::blob_file::{BlobFile, Missing};
use crate::cache::counters::add;
use crate::cache::disk::DiskCache;
use crate::error::Result;
use crate::oci::Descriptor;

/// The blob on disk, and which chunks are there, from the first on.
pub struct OnDisk {
    pub file: Arc<BlobFile>,
    first: u64,
    present: Vec<bool>,
}

impl OnDisk {
    pub fn has(&self, number: u64) -> bool {
        let place = number.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        place.and_then(|place| self.present.get(place)).is_some_and(|here| *here)
    }

    /// Blocks on the disk.
    fn of(file: Arc<BlobFile>, chunks: Range<u64>) -> Self {
        Self { first: chunks.start, present: file.present(chunks), file }
    }
}

impl ChunkCache {
    /// A range that was read before, without a request. Leaves no trace of blobs that were not.
    pub async fn kept(&self, blob: &Descriptor, range: &Range<u64>) -> Option<Bytes> {
        if range.start >= range.end {
            return None;
        }
        match self.shared.kept_at_once(blob, range)? {
            Err(Missing::Unknown) => {
                let (disk, blob, range) = (Arc::clone(self.disk()?), blob.clone(), range.clone());
                let reads = Arc::clone(&disk.reads);
                reads.run(move || disk.existing(&blob)?.read(range)).await?
            }
            known => known.ok(),
        }
    }

    /// The same, or else what `source` gives.
    pub fn kept_or<'a>(
        &'a self,
        blob: &'a Descriptor,
        range: Range<u64>,
        source: &'a Arc<dyn BlobSource>,
    ) -> BoxFuture<'a, Result<Bytes>> {
        if range.start >= range.end {
            return source.read(blob, range);
        }
        match (self.shared.kept_at_once(blob, &range), self.disk()) {
            (Some(Ok(bytes)), _) => std::future::ready(Ok(bytes)).boxed(),
            (Some(Err(Missing::Unknown)), Some(disk)) => {
                let (on_disk, of, wanted) = (Arc::clone(disk), blob.clone(), range.clone());
                let look = move || on_disk.existing(&of).and_then(|file| file.read(wanted)).ok_or(());
                let (source, blob) = (Arc::clone(source), blob.clone());
                disk.reads.read_or(look, move |_| async move { source.read(&blob, range).await }.boxed()).boxed()
            }
            _ => source.read(blob, range),
        }
    }

    /// Gives up all that is kept of a blob, because some of it has proven wrong: what is wanted again is fetched again.
    /// Blocks on the disk.
    pub fn drop_wrong(&self, blob: &Descriptor) {
        self.shared.chunks().forget(&blob.digest);
        if let Some(Err(error)) = self.disk().and_then(|disk| disk.existing(blob)).map(|file| file.drop_all()) {
            tracing::warn!("{}: {error}", blob.digest);
        }
    }
}

impl SharedState {
    fn kept_at_once(self: &Arc<Self>, blob: &Descriptor, range: &Range<u64>) -> Option<Result<Bytes, Missing>> {
        self.in_memory(blob, range).map(Ok).or_else(|| self.read_at_once(blob, range))
    }

    /// `None`: there is no disk, or nothing of this blob on it.
    pub(super) fn read_at_once(
        self: &Arc<Self>,
        blob: &Descriptor,
        range: &Range<u64>,
    ) -> Option<Result<Bytes, Missing>> {
        let Some(file) = self.disk.as_ref()?.at_hand(blob) else { return Some(Err(Missing::Unknown)) };
        let file = file?;
        let read = file.read_at_once(range.clone());
        if read.is_ok() {
            self.is_used(blob, &file, range);
        }
        Some(read)
    }

    fn is_used(self: &Arc<Self>, blob: &Descriptor, file: &Arc<BlobFile>, range: &Range<u64>) {
        if let Some((disk, groups)) = self.disk.as_ref().zip(file.due(&chunk_numbers(range))) {
            let file = Arc::clone(file);
            disk.writes.begin_if_free(move || file.write_uses(groups));
        }
        self.look_whether_whole(blob, file);
    }

    /// `None`: only the disk can tell.
    pub(super) fn on_disk_at_once(&self, blob: &Descriptor, range: &Range<u64>) -> Option<Option<OnDisk>> {
        let Some(disk) = &self.disk else { return Some(None) };
        let Some(file) = disk.at_hand(blob)? else { return Some(None) };
        let chunks = chunk_numbers(range);
        let present = file.present_at_once(&chunks)?;
        Some(Some(OnDisk { file, first: chunks.start, present }))
    }

    /// Of a disk that hangs, nothing.
    pub(super) async fn on_disk(&self, blob: &Descriptor, range: &Range<u64>) -> Option<OnDisk> {
        if let Some(known) = self.on_disk_at_once(blob, range) {
            return known;
        }
        let (disk, blob, chunks) = (Arc::clone(self.disk.as_ref()?), blob.clone(), chunk_numbers(range));
        let reads = Arc::clone(&disk.reads);
        let look = move || disk.blob(&blob).map(|file| OnDisk::of(file, chunks));
        reads.run(look).await?
    }

    /// A range that only the disk can tell of.
    pub(super) async fn read_of_disk(
        self: Arc<Self>,
        disk: Arc<DiskCache>,
        blob: Descriptor,
        range: Range<u64>,
    ) -> Result<Bytes> {
        let reads = Arc::clone(&disk.reads);
        let (state, of, wanted) = (Arc::clone(&self), blob.clone(), range.clone());
        let look = move || {
            let Some(file) = disk.blob(&of) else { return Err(None) };
            match file.read(wanted.clone()) {
                Some(bytes) => {
                    add(&state.counters.disk, bytes.len() as u64);
                    state.look_whether_whole(&of, &file);
                    Ok(bytes)
                }
                None => Err(Some(OnDisk::of(file, chunk_numbers(&wanted)))),
            }
        };
        reads
            .read_or(look, move |on_disk| async move { self.gather(blob, range, on_disk.flatten()).await }.boxed())
            .await
    }

    /// A chunk that was there just now, or if it is not any more, from where it comes from.
    pub(super) async fn chunk_of_disk(
        self: &Arc<Self>,
        blob: &Descriptor,
        file: Arc<BlobFile>,
        number: u64,
    ) -> Result<Bytes> {
        let range = number * CHUNK..((number + 1) * CHUNK).min(blob.size);
        if let Ok(chunk) = file.read_at_once(range.clone()) {
            self.is_used(blob, &file, &range);
            return Ok(chunk);
        }
        let (state, of) = (Arc::clone(self), blob.clone());
        let fetched = async move { state.fetched(&of, number).await };
        let Some(disk) = &self.disk else { return fetched.await };
        disk.reads.read_or(move || file.read(range).ok_or(()), |_| fetched.boxed()).await
    }
}
