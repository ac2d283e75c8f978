//! The content of a compressed blob, read anywhere: after one pass over it, a table says where decoding can start.
//! DEFLATE can start between blocks with the 32 KiB before, zstd where a frame starts; of all else, pieces of content
//! are kept in the cache folder.

mod blocks;
mod codec;
mod decode;
mod frames;
mod gzip;
mod limits;
mod pass;
mod side;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;
use xxhash_rust::xxh3::Xxh3;

pub use codec::{TRAILER, decode as decode_table, decode_progress, encode as encode_table, encode_progress, points_at};
pub use decode::{Compression, Damage, Resume};
pub use frames::{FOOTER, FrameSize, parse_table, table_length};
pub use limits::ContentLimits;
pub use pass::{Pass, Progress, Sink};
pub use side::{Side, Stored};
pub use table::{Place, Point, Segment, Table};

use super::BlobSource;
use crate::cache::ChunkCache;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;
use decode::Decode;

/// Threads that decode at once: each may wait for another, which reads a side file or writes it, and tokio has 512.
static THREADS: Semaphore = Semaphore::const_new(64);

/// Content of one compressed blob. It is the only one that it gives, whatever descriptor it is asked for.
pub struct Content {
    decoding: Arc<Decoding>,
    coming: Arc<Mutex<HashMap<usize, Coming>>>,
}

/// A segment that is being decoded.
type Coming = Shared<BoxFuture<'static, Result<Bytes>>>;

/// What tasks and threads that decode share.
struct Decoding {
    packed: Arc<dyn BlobSource>,
    blob: Descriptor,
    compression: Compression,
    limits: ContentLimits,
    table: Table,
    side: Arc<Side>,
    /// The table is somebody else's: each frame must be exactly as long as it says.
    foreign: bool,
    /// Where decoded segments are kept, and a number that tells this content from others of the same blob.
    kept: Option<(Arc<ChunkCache>, u64)>,
}

impl Content {
    /// `packed` gives the bytes of `blob`, of which the table was made.
    pub fn new(
        packed: Arc<dyn BlobSource>,
        blob: Descriptor,
        compression: Compression,
        limits: ContentLimits,
        (table, side): (Table, Arc<Side>),
    ) -> Self {
        Self::of(Decoding { packed, blob, compression, limits, table, side, foreign: false, kept: None })
    }

    /// By the table that the blob brings along. `None`: it names frames that are too long to be decoded for each read.
    pub fn of_frames(
        packed: Arc<dyn BlobSource>,
        blob: Descriptor,
        limits: ContentLimits,
        frames: &[FrameSize],
    ) -> Option<Self> {
        let table = Table::of_frames(frames, &limits)?;
        let (compression, side) = (Compression::Zstd, Arc::new(Side::memory(None)));
        Some(Self::of(Decoding { packed, blob, compression, limits, table, side, foreign: true, kept: None }))
    }

    /// Decoded segments are kept there. `base`: no other content of the same blob has a base between it and its end.
    pub fn kept_in(mut self, cache: Arc<ChunkCache>, base: u64) -> Self {
        if let Some(decoding) = Arc::get_mut(&mut self.decoding) {
            decoding.kept = Some((cache, base));
        }
        self
    }

    fn of(decoding: Decoding) -> Self {
        Self { decoding: Arc::new(decoding), coming: Arc::default() }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.decoding.table.content
    }

    /// All of a segment: whoever wants the next part of it does not decode it again.
    async fn segment(&self, segment: Segment) -> Result<Bytes> {
        if let Some(known) = self.decoding.known(segment) {
            return Ok(known);
        }
        let coming = {
            let mut all = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(segment.point).or_insert_with(|| self.start(segment)).clone()
        };
        coming.await
    }

    fn start(&self, segment: Segment) -> Coming {
        let (decoding, coming) = (Arc::clone(&self.decoding), Arc::clone(&self.coming));
        let object = self.decoding.blob.digest.clone();
        let task = tokio::spawn(async move {
            let content = decoding.segment(segment).await;
            coming.lock().unwrap_or_else(PoisonError::into_inner).remove(&segment.point);
            content
        });
        async move { task.await.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, object, panic))) }.boxed().shared()
    }
}

impl BlobSource for Content {
    fn read<'a>(&'a self, _blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            if range.end > self.size() {
                return Err(changed(&self.decoding.blob));
            }
            let segments: Vec<_> = self.decoding.table.segments(range.clone()).collect();
            let mut bytes = BytesMut::new();
            for segment in segments {
                let whole = self.segment(segment).await?;
                let start = segment.content_end.saturating_sub(whole.len() as u64);
                let cut = range.start.saturating_sub(start)..range.end.min(segment.content_end).saturating_sub(start);
                let part = whole.slice(cut.start as usize..(cut.end as usize).min(whole.len()));
                if part.len() as u64 == range.end.saturating_sub(range.start) {
                    return Ok(part);
                }
                bytes.extend_from_slice(&part);
            }
            Ok(bytes.freeze())
        }
        .boxed()
    }
}

impl Decoding {
    fn known(&self, segment: Segment) -> Option<Bytes> {
        let (cache, number) = self.place(segment)?;
        cache.segment(&self.blob.digest, number)
    }

    fn place(&self, segment: Segment) -> Option<(&ChunkCache, u64)> {
        let (cache, base) = self.kept.as_ref()?;
        let point = self.table.points.get(segment.point)?;
        Some((cache, base.saturating_add(point.content)))
    }

    async fn segment(self: &Arc<Self>, segment: Segment) -> Result<Bytes> {
        let decoding = Arc::clone(self);
        let content = match blocking(&self.blob, move || decoding.start(segment.point)).await? {
            Start::Piece(content) => content,
            Start::Decoder(decoder, at, point) => {
                let bytes = self.packed.read(&self.blob, point.packed..segment.packed_end).await?;
                let decoding = Arc::clone(self);
                let decode = move || {
                    let decoded = match decoding.is_as_read(&bytes, at..=segment.point) {
                        true => decoding.decode(decoder, &bytes, point.content, segment),
                        false => Err(changed(&decoding.blob)),
                    };
                    decoded.inspect_err(|_| decoding.drop_wrong())
                };
                blocking(&self.blob, decode).await?
            }
        };
        let content = Bytes::from(content);
        if let Some((cache, number)) = self.place(segment) {
            cache.keep_segment(&self.blob.digest, number, content.clone());
        }
        Ok(content)
    }

    /// What was right in the pass was changed since: the next look asks again. (A ZIP member is not all of a blob; its
    /// cache knows it under another size.)
    fn drop_wrong(&self) {
        if let Some((cache, _)) =
            self.kept.as_ref().filter(|_| !self.foreign && self.compression != Compression::Deflate)
        {
            cache.drop_wrong(&self.blob);
        }
    }
}

/// Decoding, on a thread of its own.
pub async fn blocking<T: Send + 'static>(
    blob: &Descriptor,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let thread = THREADS.acquire().await;
    // As long as it runs, also when nobody waits for it any more.
    let work = move || {
        let _thread = thread;
        work()
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, &blob.digest, panic)))
}

enum Start {
    /// Stands at this point, of this number.
    Decoder(Box<dyn Decode>, usize, Point),
    Piece(Vec<u8>),
}

impl Decoding {
    /// What gives the content from a point on. If its window is damaged, that of an earlier one will do.
    fn start(&self, point: usize) -> Result<Start> {
        let mut damaged = None;
        for (at, point) in self.table.points.get(..=point).unwrap_or_default().iter().enumerate().rev() {
            let resume = match point.place {
                Place::Start => Resume::Start,
                Place::Piece(stored) => match damaged {
                    Some(damaged) => return Err(damaged),
                    None => return Ok(Start::Piece(self.side.read(stored, pass::PIECE)?)),
                },
                Place::Block { bits, bit_buffer, window } => match self.side.read(window, gzip::WINDOW) {
                    Ok(window) => Resume::Block { bits, bit_buffer, window },
                    Err(error) if error.kind != ErrorKind::Corrupt => return Err(error),
                    Err(error) => {
                        tracing::warn!("layer {}: a checkpoint is damaged, an earlier one is used", self.blob.digest);
                        damaged = Some(error);
                        continue;
                    }
                },
            };
            let decoder = self.compression.decoder_at(&resume, &self.limits);
            return Ok(Start::Decoder(decoder.map_err(|damage| damage.on(&self.blob.digest))?, at, *point));
        }
        Err(damaged.unwrap_or_else(|| changed(&self.blob)))
    }

    /// Whether these bytes of the blob, of the segments of these points, are what the pass has read.
    fn is_as_read(&self, bytes: &[u8], mut points: RangeInclusive<usize>) -> bool {
        let mut rest = bytes;
        points.all(|at| {
            let Some(point) = self.table.points.get(at) else { return false };
            let length = self.table.segment(at).packed_end.saturating_sub(point.packed) as usize;
            let (own, behind) = rest.split_at(length.min(rest.len()));
            rest = behind;
            let mut sum = Xxh3::new();
            sum.update(own);
            point.sum == 0 || point.sum == pass::digest(&sum)
        })
    }

    /// The segment's content, that comes out of `bytes`; the first of them makes what is at `at`.
    fn decode(&self, mut decoder: Box<dyn Decode>, bytes: &[u8], mut at: u64, segment: Segment) -> Result<Vec<u8>> {
        let start = self.table.points.get(segment.point).map_or(at, |point| point.content);
        let length = segment.content_end.saturating_sub(start);
        if self.foreign {
            return self.whole_frame(decoder, bytes, length);
        }
        let mut content = Vec::with_capacity(length as usize);
        let mut rest = bytes;
        let mut idle = 0_u32;
        while at < segment.content_end {
            let progress = decoder.step(rest, false).map_err(|damage| damage.on(&self.blob.digest))?;
            rest = rest.get(progress.consumed..).unwrap_or_default();
            let fresh = decoder.output();
            let skip = start.saturating_sub(at).min(fresh.len() as u64) as usize;
            let take = segment.content_end.saturating_sub(at).min(fresh.len() as u64) as usize;
            content.extend_from_slice(fresh.get(skip..take).unwrap_or_default());
            at = at.saturating_add(fresh.len() as u64);
            idle = if progress.consumed == 0 && fresh.is_empty() { idle + 1 } else { 0 };
            if idle > 4 {
                return Err(changed(&self.blob));
            }
        }
        Ok(content)
    }
}

impl Decoding {
    fn whole_frame(&self, mut decoder: Box<dyn Decode>, bytes: &[u8], length: u64) -> Result<Vec<u8>> {
        let mut content = Vec::with_capacity(length as usize);
        let mut rest = bytes;
        loop {
            let progress = decoder.step(rest, false).map_err(|damage| damage.on(&self.blob.digest))?;
            rest = rest.get(progress.consumed..).unwrap_or_default();
            content.extend_from_slice(decoder.output());
            let past = content.len() as u64 > length;
            if progress.boundary && rest.is_empty() && content.len() as u64 == length {
                return Ok(content);
            }
            if past || rest.is_empty() && !progress.more || progress.consumed == 0 && decoder.output().is_empty() {
                let cause = "a zstd frame is not as long as the blob's seek table says";
                return Err(Error::new(ErrorKind::Corrupt, &self.blob.digest, cause));
            }
        }
    }
}

fn changed(blob: &Descriptor) -> Error {
    Error::new(ErrorKind::Corrupt, &blob.digest, "its content is not what it was when the layer was first read")
        .hint("the registry or something on the way to it changed the blob")
}
