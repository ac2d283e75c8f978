//! Tables of points as bytes, to be kept behind the side file's content. All numbers are little-endian.
//!
//! A point is 40 bytes: content, packed, where its window or piece is stored (8 each), how long that is (4), kind,
//! bits, bit buffer, a zero, and the checksum of the blob up to the next point (8). The trailer is 80 bytes: magic,
//! number of points, content, packed, end of the side file's content (8 each), [`Compression`] (1), 7 zeros, and the
//! SHA-256 of the blob's digest and all that stands before, the side file's content excepted: what is stored there has
//! checksums of its own.

//!
//! The progress of a pass is a file of its own: magic, bytes of the table (8), the table as above, state of the hasher
//! (length in 1 byte, bytes), for each note where it is stored (8) and how long (4), and a SHA-256 as above.

use sha2::Digest as _;

use super::decode::Compression;
use super::pass::Progress;
use super::side::Stored;
use super::table::{Place, Point, Table};
use crate::oci::Digest;

/// The last digit is the version.
const MAGIC: &[u8; 8] = b"EOPOINT2";
const PROGRESS: &[u8; 8] = b"EOPASS\0\x02";
const POINT: usize = 40;
pub const TRAILER: usize = 80;
const SUM: usize = 32;

/// What follows the side file's content.
pub fn encode(table: &Table, compression: Compression, side_end: u64, blob: &Digest) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(table.points.len().saturating_mul(POINT).saturating_add(TRAILER));
    for point in &table.points {
        let (stored, kind, bits, bit_buffer) = match point.place {
            Place::Start => (Stored { at: 0, length: 0 }, 0, 0, 0),
            Place::Block { bits, bit_buffer, window } => (window, 1, bits, bit_buffer),
            Place::Piece(stored) => (stored, 2, 0, 0),
        };
        for number in [point.content, point.packed, stored.at] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&stored.length.to_le_bytes());
        bytes.extend_from_slice(&[kind, bits, bit_buffer, 0]);
        bytes.extend_from_slice(&point.sum.to_le_bytes());
    }
    bytes.extend_from_slice(MAGIC);
    for number in [table.points.len() as u64, table.content, table.packed, side_end] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&[compression as u8, 0, 0, 0, 0, 0, 0, 0]);
    let sum = sum(blob, &bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

/// Bytes of the points, and where they start, from a file's size and trailer. `None`: it is no such file.
pub fn points_at(trailer: &[u8], file_size: u64) -> Option<(u64, usize)> {
    let count = number(trailer, 8)?;
    let length = usize::try_from(count).ok()?.checked_mul(POINT)?;
    let side_end = number(trailer, 32)?;
    let whole = side_end.checked_add(length as u64)?.checked_add(TRAILER as u64)?;
    (trailer.starts_with(MAGIC) && trailer.len() == TRAILER && whole == file_size).then_some((side_end, length))
}

/// `bytes`: points and trailer. `None`: they are damaged, or of something else.
pub fn decode(bytes: &[u8], blob: &Digest, blob_size: u64) -> Option<(Compression, Table)> {
    let (body, sum_found) = bytes.split_at_checked(bytes.len().checked_sub(SUM)?)?;
    let (points, trailer) = body.split_at_checked(bytes.len().checked_sub(TRAILER)?)?;
    if sum(blob, body) != sum_found {
        return None;
    }
    let compression = *Compression::ALL.iter().find(|known| trailer.get(40) == Some(&(**known as u8)))?;
    let side_end = number(trailer, 32)?;
    let points: Option<Vec<_>> = points.chunks(POINT).map(|bytes| point(bytes, side_end)).collect();
    let table = Table { points: points?, content: number(trailer, 16)?, packed: number(trailer, 24)? };
    table.is_plausible(blob_size).then_some((compression, table))
}

pub fn encode_progress(progress: &Progress, compression: Compression, blob: &Digest) -> Vec<u8> {
    let table = encode(&progress.table, compression, progress.side_end, blob);
    let mut bytes = [&PROGRESS[..], &(table.len() as u64).to_le_bytes(), &table].concat();
    bytes.push(progress.hasher.len() as u8);
    bytes.extend_from_slice(&progress.hasher);
    for note in &progress.notes {
        bytes.extend_from_slice(&note.at.to_le_bytes());
        bytes.extend_from_slice(&note.length.to_le_bytes());
    }
    let sum = sum(blob, &bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

/// `None`: it is damaged, or of something else.
pub fn decode_progress(bytes: &[u8], blob: &Digest, blob_size: u64) -> Option<(Compression, Progress)> {
    let (body, sum_found) = bytes.split_at_checked(bytes.len().checked_sub(SUM)?)?;
    if !body.starts_with(PROGRESS) || sum(blob, body) != sum_found {
        return None;
    }
    let (table, rest) = body.get(16..)?.split_at_checked(usize::try_from(number(body, 8)?).ok()?)?;
    let side_end = number(table, table.len().checked_sub(TRAILER)?.checked_add(32)?)?;
    let (compression, table) = decode(table, blob, blob_size)?;
    let (&length, rest) = rest.split_first()?;
    let (hasher, rest) = rest.split_at_checked(usize::from(length))?;
    let note = |bytes: &[u8]| {
        let stored = Stored { at: number(bytes, 0)?, length: u32::from_le_bytes(bytes.get(8..)?.try_into().ok()?) };
        (stored.at.checked_add(u64::from(stored.length))? <= side_end).then_some(stored)
    };
    let notes = rest.chunks(12).map(note).collect::<Option<Vec<_>>>()?;
    let last = table.points.last()?;
    let ends = last.content == table.content && last.packed == table.packed;
    ends.then(|| (compression, Progress { table, hasher: hasher.to_vec(), notes, side_end }))
}

fn point(bytes: &[u8], side_end: u64) -> Option<Point> {
    let length = u32::from_le_bytes(bytes.get(24..28)?.try_into().ok()?);
    let stored = Stored { at: number(bytes, 16)?, length };
    let inside = stored.at.checked_add(u64::from(length))? <= side_end;
    let place = match bytes.get(28..31)? {
        [0, ..] => Place::Start,
        [1, bits, bit_buffer] if inside => Place::Block { bits: *bits, bit_buffer: *bit_buffer, window: stored },
        [2, ..] if inside => Place::Piece(stored),
        _ => return None,
    };
    Some(Point { content: number(bytes, 0)?, packed: number(bytes, 8)?, place, sum: number(bytes, 32)? })
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

fn sum(blob: &Digest, bytes: &[u8]) -> [u8; SUM] {
    sha2::Sha256::new().chain_update(blob.as_str()).chain_update(bytes).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_and_any_damage_is_seen() {
        let stored = |at| Stored { at, length: 50 };
        let point = |content, place| Point { content, packed: content / 2, place, sum: content * 7 };
        let table = Table {
            points: vec![
                point(0, Place::Start),
                point(100, Place::Block { bits: 3, bit_buffer: 5, window: stored(0) }),
                point(300, Place::Piece(stored(50))),
            ],
            content: 400,
            packed: 160,
        };
        let blob = Digest::sha256_of(b"a");
        let bytes = encode(&table, Compression::Gzip, 100, &blob);
        let trailer = &bytes[bytes.len() - TRAILER..];
        assert_eq!(points_at(trailer, 100 + bytes.len() as u64), Some((100, 120)));
        assert_eq!(points_at(trailer, 101 + bytes.len() as u64), None);
        let decode = |bytes: &[u8], blob: &Digest| decode(bytes, blob, 200);
        let whole = decode(&bytes, &blob);
        assert_eq!(whole.as_ref().map(|(kind, table)| (*kind, table)), Some((Compression::Gzip, &table)));
        assert_eq!(decode(&bytes, &Digest::sha256_of(b"b")), None);
        assert_eq!(super::decode(&bytes, &blob, 100), None);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad, &blob), None, "{at}");
            assert_eq!(decode(&bytes[..at], &blob), None, "{at}");
        }
        let outside = encode(&table, Compression::Gzip, 60, &blob);
        assert_eq!(decode(&outside, &blob), None);
    }

    #[test]
    fn progress_comes_back_and_any_damage_is_seen() {
        let stored = |at| Stored { at, length: 50 };
        let place = Place::Block { bits: 3, bit_buffer: 5, window: stored(0) };
        let points = vec![
            Point { content: 0, packed: 0, place: Place::Start, sum: 9 },
            Point { content: 300, packed: 150, place, sum: 0 },
        ];
        let table = Table { points, content: 300, packed: 150 };
        let blob = Digest::sha256_of(b"a");
        let hasher = blob.hasher().state();
        let progress = Progress { table, hasher, notes: vec![stored(50), stored(100)], side_end: 150 };
        let bytes = encode_progress(&progress, Compression::Gzip, &blob);
        assert_eq!(decode_progress(&bytes, &blob, 200), Some((Compression::Gzip, progress.clone())));
        assert_eq!(decode_progress(&bytes, &Digest::sha256_of(b"b"), 200), None);
        assert_eq!(decode_progress(&bytes, &blob, 100), None);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode_progress(&bad, &blob, 200), None, "{at}");
            assert_eq!(decode_progress(&bytes[..at], &blob, 200), None, "{at}");
        }
        let outside = Progress { side_end: 149, ..progress };
        assert_eq!(decode_progress(&encode_progress(&outside, Compression::Gzip, &blob), &blob, 200), None);
    }
}
