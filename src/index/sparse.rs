//! Maps of sparse members (GNU tar manual, "Storing Sparse Files"), three spellings of one thing.

use super::member::SparseExtent;
use super::number;

/// Pieces of data as the archive lists them: offset in the file and length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Map {
    pieces: Vec<(u64, u64)>,
}

pub enum MapError {
    Bad(&'static str),
    TooLong,
}

impl Map {
    pub fn push(&mut self, offset: u64, length: u64, limit: u64) -> Result<(), MapError> {
        if self.pieces.len() as u64 >= limit {
            return Err(MapError::TooLong);
        }
        self.pieces.push((offset, length));
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The pieces lie one behind the other in the blob from `blob` on, `stored` bytes at most.
    pub fn place(&self, size: u64, blob: u64, stored: u64) -> Result<Vec<SparseExtent>, &'static str> {
        let mut extents: Vec<SparseExtent> = Vec::new();
        let (mut file_end, mut used) = (0u64, 0u64);
        for &(offset, length) in &self.pieces {
            if offset < file_end {
                return Err("a map whose pieces overlap or go back");
            }
            file_end = offset.checked_add(length).ok_or("a map past 2^64")?;
            if file_end > size {
                return Err("a map past the end of the file");
            }
            let at = blob.checked_add(used).ok_or("a map past 2^64")?;
            used = used.checked_add(length).ok_or("a map past 2^64")?;
            if used > stored {
                return Err("a map of more data than the member holds");
            }
            match extents.last_mut() {
                _ if length == 0 => {}
                Some(last) if last.offset.checked_add(last.length) == Some(offset) => {
                    last.length = last.length.saturating_add(length);
                }
                _ => extents.push(SparseExtent { offset, length, blob: at }),
            }
        }
        Ok(extents)
    }
}

/// Descriptors of a GNU or star header, or of the extension blocks behind it: two numbers of 12 bytes each.
/// The first unused one ends the map: then no extension block follows, whatever the flag says. True: it ended.
pub fn descriptors(map: &mut Map, bytes: &[u8], limit: u64) -> Result<bool, MapError> {
    let number = |field| number::parse(field).and_then(|value| u64::try_from(value).ok());
    for piece in bytes.chunks_exact(24) {
        let (offset, length) = piece.split_at(12);
        if length.first() == Some(&0) {
            return Ok(true);
        }
        match (number(offset), number(length)) {
            (Some(offset), Some(length)) => map.push(offset, length, limit)?,
            _ => return Err(MapError::Bad("a map with a damaged number")),
        }
    }
    Ok(false)
}

/// An extension block: 21 descriptors and whether another block follows (any byte but NUL, as GNU tar takes it;
/// tar-core's `is_extended` takes 1 only). True: the map ended.
pub fn extension(map: &mut Map, block: &[u8; 512], limit: u64) -> Result<bool, MapError> {
    let (pieces, rest) = block.split_at(504);
    Ok(descriptors(map, pieces, limit)? || rest.first() == Some(&0))
}

/// The map of format 1.0, decimal numbers of a line each at the start of the data: how many pieces, then offset and
/// length of each, filled up to whole blocks.
#[derive(Debug, Clone, Default)]
pub struct TextMap {
    pub map: Map,
    wanted: Option<u64>,
    offset: Option<u64>,
    number: Option<u64>,
}

impl TextMap {
    /// Takes the next block; true: the map is complete and the data starts at the next block.
    pub fn block(&mut self, block: &[u8], limit: u64) -> Result<bool, MapError> {
        for &byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte & 15);
                    let next = self.number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
                    self.number = Some(next.ok_or(MapError::Bad("a map past 2^64"))?);
                }
                b'\n' => {
                    let Some(number) = self.number.take() else {
                        return Err(MapError::Bad("a map with an empty line"));
                    };
                    self.line(number, limit)?;
                    if self.wanted == Some(self.map.pieces.len() as u64) && self.offset.is_none() {
                        return Ok(true);
                    }
                }
                _ => return Err(MapError::Bad("a map with a damaged number")),
            }
        }
        Ok(false)
    }

    fn line(&mut self, number: u64, limit: u64) -> Result<(), MapError> {
        match (self.wanted, self.offset.take()) {
            (None, _) if number > limit => Err(MapError::TooLong),
            (None, _) => {
                self.wanted = Some(number);
                Ok(())
            }
            (Some(_), None) => {
                self.offset = Some(number);
                Ok(())
            }
            (Some(_), Some(offset)) => self.map.push(offset, number, limit),
        }
    }
}
