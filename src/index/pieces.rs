//! Bytes of a blob that have arrived and are not passed yet.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// How many pieces before an offset are looked at for one that reaches over it.
const LOOK_BACK: usize = 8;

#[derive(Debug, Default)]
pub struct Pieces {
    by_start: BTreeMap<u64, Bytes>,
    bytes: u64,
}

impl Pieces {
    pub fn add(&mut self, at: u64, piece: Bytes) {
        if self.by_start.get(&at).is_some_and(|known| known.len() >= piece.len()) {
            return;
        }
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        if let Some(old) = self.by_start.insert(at, piece) {
            self.bytes = self.bytes.saturating_sub(old.len() as u64);
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The bytes from the start of `range` on, at least to its end, if they are all here. Copied only where two pieces
    /// meet.
    pub fn window(&self, range: &Range<u64>) -> Option<Bytes> {
        let piece = self.from(range.start)?;
        let length = usize::try_from(range.end.saturating_sub(range.start)).ok()?;
        if piece.len() >= length {
            return Some(piece);
        }
        let mut joined = BytesMut::from(&piece[..]);
        while joined.len() < length {
            joined.extend_from_slice(&self.from(range.start.saturating_add(joined.len() as u64))?);
        }
        Some(joined.freeze())
    }

    /// What is here from `offset` on; never empty.
    fn from(&self, offset: u64) -> Option<Bytes> {
        self.by_start.range(..=offset).rev().take(LOOK_BACK).find_map(|(start, piece)| {
            let skip = usize::try_from(offset.saturating_sub(*start)).ok()?;
            (skip < piece.len()).then(|| piece.slice(skip..))
        })
    }

    pub fn forget_before(&mut self, offset: u64) {
        while let Some(first) = self.by_start.first_entry() {
            let length = first.get().len() as u64;
            if first.key().saturating_add(length) > offset {
                break;
            }
            self.bytes = self.bytes.saturating_sub(length);
            first.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_may_lie_across_pieces() {
        let mut pieces = Pieces::default();
        pieces.add(10, Bytes::from_static(b"abcdef"));
        pieces.add(12, Bytes::from_static(b"c"));
        pieces.add(16, Bytes::from_static(b"gh"));
        assert_eq!(pieces.window(&(11..14)).unwrap()[..3], b"bcd"[..]);
        assert_eq!(pieces.window(&(13..18)).unwrap(), &b"defgh"[..]);
        assert_eq!(pieces.window(&(13..19)), None);
        assert_eq!(pieces.window(&(9..10)), None);
        pieces.forget_before(16);
        assert_eq!((pieces.bytes(), pieces.window(&(15..16))), (2, None));
    }
}
