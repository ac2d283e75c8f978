//! Tables of points as bytes, to be kept behind the side file's content. All numbers are little-endian.
//!
//! A point is 40 bytes: content, packed, where its window or piece is stored (8 each), how long that is (4), kind, bits,
//! bit buffer, 9 zeros. The trailer is 80 bytes: magic, number of points, content, packed, end of the side file's
//! content (8 each), [`Compression`] (1), 7 zeros, and the SHA-256 of the blob's digest and all that stands before, the
//! side file's content excepted: what is stored there has checksums of its own.

use sha2::Digest as _;

use super::decode::Compression;
use super::side::Stored;
use super::table::{Place, Point, Table};
use crate::oci::Digest;

/// The last digit is the version.
const MAGIC: &[u8; 8] = b"EOPOINT1";
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
        bytes.extend_from_slice(&[kind, bits, bit_buffer, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
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
    Some(Point { content: number(bytes, 0)?, packed: number(bytes, 8)?, place })
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
        let point = |content, place| Point { content, packed: content / 2, place };
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
}
