//! The content of a compressed blob, read anywhere: after one pass over it, a table says where decoding can start.
//! DEFLATE can start between blocks with the 32 KiB before, zstd where a frame starts; of all else, pieces of content are
//! kept in the cache folder.

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

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

pub use codec::{TRAILER, decode as decode_table, encode as encode_table, points_at};
pub use decode::{Compression, Damage, Resume};
pub use frames::{FOOTER, FrameSize, parse_table, table_length};
pub use limits::ContentLimits;
pub use pass::{Pass, Sink};
pub use side::{Side, Stored};
pub use table::{Place, Point, Segment, Table};

use super::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;
use decode::Decode;

/// Content of one compressed blob. It is the only one that it gives, whatever descriptor it is asked for.
pub struct Content {
    packed: Arc<dyn BlobSource>,
    blob: Descriptor,
    decoding: Arc<Decoding>,
}

/// What threads that decode share.
struct Decoding {
    compression: Compression,
    limits: ContentLimits,
    table: Table,
    side: Arc<Side>,
    blob: Descriptor,
    /// The table is somebody else's: each frame must be exactly as long as it says.
    foreign: bool,
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
        let decoding = Decoding { compression, limits, table, side, blob: blob.clone(), foreign: false };
        Self { packed, blob, decoding: Arc::new(decoding) }
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
        let decoding = Decoding { compression, limits, table, side, blob: blob.clone(), foreign: true };
        Some(Self { packed, blob, decoding: Arc::new(decoding) })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.decoding.table.content
    }

    async fn part(&self, segment: Segment, range: Range<u64>) -> Result<Vec<u8>> {
        let decoding = Arc::clone(&self.decoding);
        let start = self.blocking(move || decoding.start(segment.point)).await?;
        let (decoder, point) = match start {
            Start::Piece(content, at) => {
                let cut = range.start.saturating_sub(at) as usize..range.end.saturating_sub(at) as usize;
                return content.get(cut).map(<[u8]>::to_vec).ok_or_else(|| changed(&self.blob));
            }
            Start::Decoder(decoder, point) => (decoder, point),
        };
        let bytes = self.packed.read(&self.blob, point.packed..segment.packed_end).await?;
        let decoding = Arc::clone(&self.decoding);
        self.blocking(move || match decoding.foreign {
            false => decoding.decode(decoder, &bytes, point.content, &range),
            true => {
                let frame = decoding.whole_frame(decoder, &bytes, segment.content_end.saturating_sub(point.content))?;
                let cut = range.start.saturating_sub(point.content)..range.end.saturating_sub(point.content);
                frame
                    .get(cut.start as usize..cut.end as usize)
                    .map(<[u8]>::to_vec)
                    .ok_or_else(|| changed(&decoding.blob))
            }
        })
        .await
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, &self.blob.digest, panic)))
    }
}

impl BlobSource for Content {
    fn read<'a>(&'a self, _blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            if range.end > self.size() {
                return Err(changed(&self.blob));
            }
            let segments: Vec<_> = self.decoding.table.segments(range.clone()).collect();
            let mut bytes = BytesMut::new();
            for segment in segments {
                let start = range.start.saturating_add(bytes.len() as u64);
                let part = self.part(segment, start..range.end.min(segment.content_end)).await?;
                if part.len() as u64 == range.end.saturating_sub(range.start) {
                    return Ok(part.into());
                }
                bytes.extend_from_slice(&part);
            }
            Ok(bytes.freeze())
        }
        .boxed()
    }
}

enum Start {
    Decoder(Box<dyn Decode>, Point),
    /// Content, and its first byte's place.
    Piece(Vec<u8>, u64),
}

impl Decoding {
    /// What gives the content from a point on. If its window is damaged, that of an earlier one will do.
    fn start(&self, point: usize) -> Result<Start> {
        let mut damaged = None;
        for point in self.table.points.get(..=point).unwrap_or_default().iter().rev() {
            let resume = match point.place {
                Place::Start => Resume::Start,
                Place::Piece(stored) => match damaged {
                    Some(damaged) => return Err(damaged),
                    None => return Ok(Start::Piece(self.side.read(stored, pass::PIECE)?, point.content)),
                },
                Place::Block { bits, bit_buffer, window } => match self.side.read(window, gzip::WINDOW) {
                    Ok(window) => Resume::Block { bits, bit_buffer, window },
                    Err(error) => {
                        tracing::warn!("layer {}: a checkpoint is damaged, an earlier one is used", self.blob.digest);
                        damaged = Some(error);
                        continue;
                    }
                },
            };
            let decoder = self.compression.decoder_at(&resume, &self.limits);
            return Ok(Start::Decoder(decoder.map_err(|damage| damage.on(&self.blob.digest))?, *point));
        }
        Err(damaged.unwrap_or_else(|| changed(&self.blob)))
    }

    /// `range` of the content that comes out of `bytes`, the first of which is at `at`.
    fn decode(&self, mut decoder: Box<dyn Decode>, bytes: &[u8], mut at: u64, range: &Range<u64>) -> Result<Vec<u8>> {
        let mut content = Vec::with_capacity(range.end.saturating_sub(range.start) as usize);
        let mut rest = bytes;
        let mut idle = 0_u32;
        while at < range.end {
            let progress = decoder.step(rest, false).map_err(|damage| damage.on(&self.blob.digest))?;
            rest = rest.get(progress.consumed..).unwrap_or_default();
            let fresh = decoder.output();
            let skip = range.start.saturating_sub(at).min(fresh.len() as u64) as usize;
            let take = range.end.saturating_sub(at).min(fresh.len() as u64) as usize;
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
