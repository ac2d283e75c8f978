//! One pass over a compressed blob: content comes out in order, and a table of where to start next time is left.

use std::sync::Arc;

use super::decode::{Compression, Damage, Decode, Resume};
use super::gzip;
use super::limits::ContentLimits;
use super::side::{Side, Stored};
use super::table::{Place, Point, Table};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Hasher};

/// Bytes of content between checkpoints. Decoding that much takes some 6 ms; a window of 32 KiB for each is 1.6 % of
/// the content, and less where it can be compressed.
const DISTANCE: u64 = 2 << 20;
/// Bytes of content without a place to start after which the content itself is kept: zlib-ng's level 1 makes blocks of
/// any length, `zstd` a single frame.
const LONGEST: u64 = 4 << 20;
/// Bytes of content in a piece.
pub const PIECE: usize = 1 << 20;

/// Receives content in order: the byte at which a slice starts, and the slice.
pub trait Sink: Send {
    fn content(&mut self, at: u64, bytes: &[u8]) -> Result<()>;
}

pub struct Pass {
    blob: Descriptor,
    compression: Compression,
    limits: ContentLimits,
    decoder: Box<dyn Decode>,
    check: Check,
    /// Byte of the blob that is needed next.
    position: u64,
    table: Table,
    side: Arc<Side>,
    side_end: u64,
    /// Content between checkpoints.
    distance: u64,
    /// The piece in the making.
    piece: Option<Piece>,
}

/// What tells that the bytes are the right ones.
enum Check {
    /// Of the blob.
    Digest(Box<Hasher>),
    /// Of the content: its CRC32 and length.
    Content { seen: crc32fast::Hasher, crc: u32, size: u64 },
}

struct Piece {
    start: Point,
    content: Vec<u8>,
}

impl Pass {
    pub fn new(blob: Descriptor, compression: Compression, limits: ContentLimits, side: Side) -> Result<Self> {
        let check = Check::Digest(Box::new(blob.digest.hasher()));
        Self::checked(blob, compression, limits, side, check)
    }

    /// Over a deflated member of a ZIP archive, of which CRC32 and length are known. `blob` tells only how many bytes
    /// there are.
    pub fn of_member(blob: Descriptor, limits: ContentLimits, side: Side, content: (u32, u64)) -> Result<Self> {
        let check = Check::Content { seen: crc32fast::Hasher::new(), crc: content.0, size: content.1 };
        Self::checked(blob, Compression::Deflate, limits, side, check)
    }

    fn checked(
        blob: Descriptor,
        compression: Compression,
        limits: ContentLimits,
        side: Side,
        check: Check,
    ) -> Result<Self> {
        let decoder = compression.decoder(&limits).map_err(|damage| damage.on(&blob.digest))?;
        let points = vec![Point { content: 0, packed: 0, place: Place::Start }];
        let table = Table { points, content: 0, packed: 0 };
        // Without a file the windows must fit into memory. Where more than four bytes come out of one, windows are
        // compressed well, too.
        let windows = side.room().map(|room| (room / gzip::WINDOW as u64).max(1));
        let distance = windows.map_or(DISTANCE, |windows| DISTANCE.max(blob.size.saturating_mul(4) / windows));
        let mut pass = Self {
            blob,
            compression,
            limits,
            decoder,
            check,
            position: 0,
            table,
            side: Arc::new(side),
            side_end: 0,
            distance,
            piece: None,
        };
        if pass.longest() == 0 {
            pass.start_piece()?;
        }
        Ok(pass)
    }

    pub fn blob(&self) -> &Descriptor {
        &self.blob
    }

    /// Byte of the blob that is needed next.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes of the blob. After an error the pass is of no use.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut dyn Sink) -> Result<()> {
        if let Check::Digest(hasher) = &mut self.check {
            hasher.update(bytes);
        }
        let mut rest = bytes;
        let mut idle = 0_u32;
        loop {
            let due = self.piece.is_some() || self.since_last_point() >= self.distance;
            let progress = self.decoder.step(rest, due).map_err(|damage| damage.on(&self.blob.digest))?;
            rest = rest.get(progress.consumed..).unwrap_or_default();
            let fresh = self.decoder.output();
            if !fresh.is_empty() {
                sink.content(self.table.content, fresh)?;
            }
            idle = if progress.consumed == 0 && fresh.is_empty() { idle + 1 } else { 0 };
            self.note(progress.consumed)?;
            if progress.boundary && due {
                self.add_point()?;
            } else if self.piece.is_none() && self.since_last_point() >= self.longest() {
                self.start_piece()?;
            }
            if rest.is_empty() && !progress.more {
                return Ok(());
            }
            if idle > 4 {
                return Err(Damage::Corrupt("damaged compressed data").on(&self.blob.digest));
            }
        }
    }

    /// All bytes were given: is the blob what its digest says, and does its content end?
    pub fn finish(mut self) -> Result<(Table, Arc<Side>)> {
        let ended = self.decoder.finish();
        let kept = self.end_piece();
        self.table.packed = self.table.points.last().map_or(0, |point| point.packed).max(self.table.packed);
        let Self { blob, decoder, check, table, side, .. } = self;
        // First: bytes that changed on their way would look like damage.
        match check {
            Check::Digest(hasher) => hasher.check(&blob.digest)?,
            Check::Content { seen, crc, size } if table.content == size && seen.clone().finalize() == crc => {}
            Check::Content { .. } => {
                return Err(Damage::Corrupt("a member's content does not fit its checksum and length").on(&blob.digest));
            }
        }
        ended.map_err(|damage| damage.on(&blob.digest))?;
        kept?;
        if decoder.trailing() {
            tracing::warn!("layer {}: bytes follow the end of the compressed data; they are not shown", blob.digest);
        }
        Ok((table, side))
    }

    fn since_last_point(&self) -> u64 {
        let Some(last) = self.table.points.last() else { return 0 };
        let packed = self.position.saturating_sub(last.packed);
        // Bytes of the blob that make no content must not pile up either.
        self.table.content.saturating_sub(last.content).max(packed / 2)
    }

    fn longest(&self) -> u64 {
        match self.compression {
            Compression::Gzip | Compression::Deflate if !self.side.takes_pieces() => u64::MAX,
            Compression::Gzip | Compression::Deflate | Compression::Zstd => LONGEST,
            Compression::Bzip2 | Compression::Xz => 0,
        }
    }

    /// Counts what a step took and gave, and keeps what belongs to a piece.
    fn note(&mut self, consumed: usize) -> Result<()> {
        let limits = self.limits;
        let mut fresh = self.decoder.output();
        self.position = self.position.saturating_add(consumed as u64);
        if !fresh.is_empty() {
            self.table.packed = self.position;
            self.table.content = self.table.content.saturating_add(fresh.len() as u64);
        }
        if let Check::Content { seen, size, .. } = &mut self.check {
            seen.update(fresh);
            if self.table.content > *size {
                return Err(Damage::Corrupt("a member is longer than the directory says").on(&self.blob.digest));
            }
        }
        let expanded =
            self.table.content > limits.expansion_from && self.table.content / limits.expansion.max(1) > self.position;
        let reached = [
            (self.table.content > limits.content_bytes, "content_bytes", limits.content_bytes),
            (expanded, "expansion", limits.expansion),
        ];
        if let Some((_, limit, max)) = reached.into_iter().find(|(reached, ..)| *reached) {
            return Err(Damage::Limit(limit, max).on(&self.blob.digest));
        }
        while let Some(piece) = &mut self.piece {
            let (head, rest) = fresh.split_at(fresh.len().min(PIECE.saturating_sub(piece.content.len())));
            piece.content.extend_from_slice(head);
            fresh = rest;
            if piece.content.len() < PIECE {
                break;
            }
            let place = keep(&self.side, &mut self.side_end, &piece.content).map(Place::Piece)?;
            let point = Point { place, ..piece.start };
            piece.content.clear();
            // A little late in the blob, where the piece ended in the middle of a step: no harm.
            piece.start = Point { content: point.content + PIECE as u64, packed: self.position, ..point };
            push(&mut self.table, point, limits.points).map_err(|damage| damage.on(&self.blob.digest))?;
        }
        Ok(())
    }

    /// The decoder stands where another one could start.
    fn add_point(&mut self) -> Result<()> {
        self.end_piece()?;
        let place = match self.decoder.resume() {
            Resume::Start => Place::Start,
            Resume::Block { bits, bit_buffer, window } => {
                Place::Block { bits, bit_buffer, window: keep(&self.side, &mut self.side_end, &window)? }
            }
        };
        self.push(Point { content: self.table.content, packed: self.position, place })
    }

    fn start_piece(&mut self) -> Result<()> {
        if !self.side.takes_pieces() {
            let cause = "this compressed layer can only be read with a cache folder";
            return Err(Error::new(ErrorKind::Unsupported, &self.blob.digest, cause)
                .hint("give a writable one with --cache-dir"));
        }
        let start = Point { content: self.table.content, packed: self.position, place: Place::Start };
        self.piece = Some(Piece { start, content: Vec::with_capacity(PIECE) });
        Ok(())
    }

    fn end_piece(&mut self) -> Result<()> {
        match self.piece.take().filter(|piece| !piece.content.is_empty()) {
            None => Ok(()),
            Some(piece) => {
                let place = keep(&self.side, &mut self.side_end, &piece.content).map(Place::Piece)?;
                self.push(Point { place, ..piece.start })
            }
        }
    }

    fn push(&mut self, point: Point) -> Result<()> {
        push(&mut self.table, point, self.limits.points).map_err(|damage| damage.on(&self.blob.digest))
    }
}

fn push(table: &mut Table, point: Point, limit: u64) -> Result<(), Damage> {
    if table.points.len() as u64 >= limit {
        return Err(Damage::Limit("points", limit));
    }
    table.points.push(point);
    Ok(())
}

fn keep(side: &Side, end: &mut u64, content: &[u8]) -> Result<Stored> {
    let stored = side.append(*end, content)?;
    *end = end.saturating_add(u64::from(stored.length));
    Ok(stored)
}

impl Damage {
    pub fn on(&self, object: &Digest) -> Error {
        let kind = match self {
            Self::Corrupt(_) => ErrorKind::Corrupt,
            Self::Limit(..) => ErrorKind::Limit,
        };
        Error::new(kind, object, self)
    }
}
