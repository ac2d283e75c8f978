//! One pass over a compressed blob: content comes out in order, and a table of where to start next time is left.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

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

/// Bytes of notes that are kept at a time.
const NOTES: usize = 16 << 20;

/// Receives content in order: the byte at which a slice starts, and the slice.
pub trait Sink: Send {
    fn content(&mut self, at: u64, bytes: &[u8]) -> Result<()>;

    /// What another sink must be given, besides what was told before, to go on from here. `None`: none can.
    fn notes(&mut self) -> Option<Vec<u8>> {
        None
    }
}

/// How far a pass has come, for another that goes on from there: where a decoder could start last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Of the content up to the last point.
    pub table: Table,
    /// State of the blob's hasher.
    pub hasher: Vec<u8>,
    /// What the sink noted, in the side file.
    pub notes: Vec<Stored>,
    /// Bytes of the side file that all this refers to.
    pub side_end: u64,
}

/// The same, kept small: the table only grows.
struct Mark {
    points: usize,
    hasher: Hasher,
    side_end: u64,
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
    /// Of the blob since the last point, and what it was when content came out of it last.
    sum: Xxh3,
    content_sum: u64,
    notes: Vec<Stored>,
    /// The last point at which the sink's notes were taken.
    mark: Option<Mark>,
    /// Whether each such point had them so far.
    noted: bool,
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
    /// Of the blob from the point before it on.
    sum_before: u64,
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
        let points = vec![Point { content: 0, packed: 0, place: Place::Start, sum: 0 }];
        let table = Table { points, content: 0, packed: 0 };
        // Without a file the windows must fit into memory. Where more than four bytes come out of one, windows are
        // compressed well, too.
        let windows = side.room().map(|room| (room / gzip::WINDOW as u64).max(1));
        let distance = windows.map_or(DISTANCE, |windows| DISTANCE.max(blob.size.saturating_mul(4) / windows));
        let noted = side.takes_pieces() && matches!(check, Check::Digest(_));
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
            sum: Xxh3::new(),
            content_sum: digest(&Xxh3::new()),
            notes: Vec::new(),
            mark: None,
            noted,
        };
        if pass.longest() == 0 {
            pass.start_piece()?;
        }
        Ok(pass)
    }

    /// Goes on from the last point of another, with its side file. The sink has been given its notes: see
    /// [`Self::read_notes`].
    pub fn resume(
        blob: Descriptor,
        compression: Compression,
        limits: ContentLimits,
        side: Side,
        progress: Progress,
    ) -> Result<Self> {
        let mut pass = Self::new(blob, compression, limits, side)?;
        let broken = || Damage::Corrupt("what is kept of an earlier pass is damaged").on(&pass.blob.digest);
        let (last, hasher) = match (progress.table.points.last(), pass.blob.digest.hasher_from(&progress.hasher)) {
            (Some(last), Some(hasher)) if pass.piece.is_none() => (*last, hasher),
            _ => return Err(broken()),
        };
        let resume = match last.place {
            Place::Start => Resume::Start,
            Place::Block { bits, bit_buffer, window } => {
                Resume::Block { bits, bit_buffer, window: pass.side.read(window, gzip::WINDOW)? }
            }
            Place::Piece(_) => return Err(broken()),
        };
        let decoder = compression.decoder_at(&resume, &limits).map_err(|damage| damage.on(&pass.blob.digest))?;
        pass.mark =
            Some(Mark { points: progress.table.points.len(), hasher: hasher.clone(), side_end: progress.side_end });
        (pass.decoder, pass.check) = (decoder, Check::Digest(Box::new(hasher)));
        (pass.position, pass.side_end) = (last.packed, progress.side_end);
        (pass.table, pass.notes) = (progress.table, progress.notes);
        Ok(pass)
    }

    /// What the sink of an earlier pass noted, piece by piece.
    pub fn read_notes<'a>(side: &'a Side, notes: &'a [Stored]) -> impl Iterator<Item = Result<Vec<u8>>> + 'a {
        notes.iter().map(|&stored| side.read(stored, NOTES))
    }

    /// For another pass to go on from. `None`: there is no such place yet, or no file to keep it in.
    pub fn progress(&self) -> Option<Progress> {
        let Mark { points, hasher, side_end } = self.mark.as_ref()?;
        let points = self.table.points.get(..*points)?.to_vec();
        let last = *points.last()?;
        let table = Table { points, content: last.content, packed: last.packed };
        Some(Progress { table, hasher: hasher.state(), notes: self.notes.clone(), side_end: *side_end })
    }

    pub fn side(&self) -> &Arc<Side> {
        &self.side
    }

    /// Byte of the blob that is needed next.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes of the blob. After an error the pass is of no use.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut dyn Sink) -> Result<()> {
        let mut rest = bytes;
        let mut idle = 0_u32;
        loop {
            let due = self.piece.is_some() || self.since_last_point() >= self.distance;
            let progress = self.decoder.step(rest, due).map_err(|damage| damage.on(&self.blob.digest))?;
            let (taken, left) = rest.split_at(progress.consumed.min(rest.len()));
            rest = left;
            if let Check::Digest(hasher) = &mut self.check {
                hasher.update(taken);
            }
            self.sum.update(taken);
            let fresh = self.decoder.output();
            if !fresh.is_empty() {
                sink.content(self.table.content, fresh)?;
            }
            idle = if progress.consumed == 0 && fresh.is_empty() { idle + 1 } else { 0 };
            self.note(progress.consumed)?;
            if progress.boundary && due {
                self.add_point()?;
                self.take_notes(sink)?;
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
        seal(&mut self.table, self.content_sum);
        self.side.give_back(std::mem::take(&mut self.notes));
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
            self.content_sum = digest(&self.sum);
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
            seal(&mut self.table, piece.sum_before);
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
        seal(&mut self.table, digest(&self.sum));
        self.sum.reset();
        self.content_sum = digest(&self.sum);
        self.push(Point { content: self.table.content, packed: self.position, place, sum: 0 })
    }

    fn take_notes(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let Check::Digest(hasher) = &self.check else { return Ok(()) };
        let Some(notes) = self.noted.then(|| sink.notes()).flatten().filter(|notes| notes.len() <= NOTES) else {
            self.noted = false;
            return Ok(());
        };
        let hasher = Hasher::clone(hasher);
        if !notes.is_empty() {
            self.notes.push(keep(&self.side, &mut self.side_end, &notes)?);
        }
        self.mark = Some(Mark { points: self.table.points.len(), hasher, side_end: self.side_end });
        Ok(())
    }

    fn start_piece(&mut self) -> Result<()> {
        if !self.side.takes_pieces() {
            let cause = "this compressed layer can only be read with a cache folder";
            return Err(Error::new(ErrorKind::Unsupported, &self.blob.digest, cause)
                .hint("give a writable one with --cache-dir"));
        }
        let start = Point { content: self.table.content, packed: self.position, place: Place::Start, sum: 0 };
        self.piece = Some(Piece { start, sum_before: digest(&self.sum), content: Vec::with_capacity(PIECE) });
        Ok(())
    }

    fn end_piece(&mut self) -> Result<()> {
        match self.piece.take().filter(|piece| !piece.content.is_empty()) {
            None => Ok(()),
            Some(piece) => {
                let place = keep(&self.side, &mut self.side_end, &piece.content).map(Place::Piece)?;
                seal(&mut self.table, piece.sum_before);
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

/// What was read from the last point on, up to the next one; pieces have checksums of their own.
fn seal(table: &mut Table, sum: u64) {
    if let Some(last) = table.points.last_mut().filter(|last| !matches!(last.place, Place::Piece(_))) {
        last.sum = sum;
    }
}

/// 0 stands for "not known".
pub fn digest(sum: &Xxh3) -> u64 {
    sum.digest().max(1)
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
