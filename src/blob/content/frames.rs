//! zstd frames (RFC 8878), and the table of the seekable format.

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::decode::{Damage, Decode, Progress};
use super::limits::ContentLimits;

/// A block's content is at most so long.
const OUTPUT: usize = 128 << 10;

pub struct Frames {
    decoder: Decoder<'static>,
    buffer: Vec<u8>,
    length: usize,
    in_frame: bool,
    window_bytes: u64,
}

impl Frames {
    pub fn new(limits: &ContentLimits) -> Result<Self, Damage> {
        const FAILED: Damage = Damage::Corrupt("zstd cannot start");
        let mut decoder = Decoder::new().map_err(|_| FAILED)?;
        let window = DParameter::WindowLogMax(limits.window_bytes.max(1024).ilog2());
        decoder.set_parameter(window).map_err(|_| FAILED)?;
        let window_bytes = limits.window_bytes;
        Ok(Self { decoder, buffer: vec![0; OUTPUT], length: 0, in_frame: false, window_bytes })
    }
}

impl Decode for Frames {
    fn step(&mut self, input: &[u8], _stop: bool) -> Result<Progress, Damage> {
        self.length = 0;
        if input.is_empty() && !self.in_frame {
            return Ok(Progress { consumed: 0, boundary: false, more: false });
        }
        let mut input = InBuffer::around(input);
        let mut output = OutBuffer::around(self.buffer.as_mut_slice());
        let hint = self.decoder.run(&mut input, &mut output).map_err(|error| match error.to_string() {
            // ZSTD_error_frameParameter_windowTooLarge; the crate gives its name only.
            text if text.contains("too much memory") => Damage::Limit("window_bytes", self.window_bytes),
            _ => Damage::Corrupt("damaged compressed data"),
        })?;
        let (consumed, length) = (input.pos(), output.pos());
        self.length = length;
        self.in_frame = hint != 0;
        Ok(Progress { consumed, boundary: hint == 0, more: length == self.buffer.len() })
    }

    fn output(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or_default()
    }

    fn finish(&mut self) -> Result<(), Damage> {
        match self.in_frame {
            false => Ok(()),
            true => Err(Damage::Corrupt("the compressed data ends too early")),
        }
    }
}

/// Bytes at the end of a blob that tell whether there is a table, and how long.
pub const FOOTER: u64 = 9;
/// A skippable frame with this number holds the table (zstd,
/// contrib/seekable_format/zstd_seekable_compression_format.md).
const TABLE_MAGIC: u32 = 0x184D_2A5E;
const FOOTER_MAGIC: u32 = 0x8F92_EAB1;
const HAS_CHECKSUMS: u8 = 0x80;
const RESERVED: u8 = 0x7c;

/// One frame: bytes in the blob and bytes of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameSize {
    pub packed: u32,
    pub content: u32,
}

/// Bytes of the table's frame, from a blob's last [`FOOTER`] bytes. `None`: there is no table.
pub fn table_length(footer: &[u8]) -> Option<u64> {
    let (count, descriptor, magic) = footer_fields(footer)?;
    if magic != FOOTER_MAGIC || descriptor & RESERVED != 0 {
        return None;
    }
    let entry = if descriptor & HAS_CHECKSUMS != 0 { 12 } else { 8 };
    Some(8 + u64::from(count) * entry + FOOTER)
}

/// The frames of a blob of that size, from the bytes of the table's frame. `None`: they are not what fills the blob.
pub fn parse_table(table: &[u8], blob_size: u64) -> Option<Vec<FrameSize>> {
    let number = |at: usize| table.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let (count, descriptor, _) = footer_fields(table.get(table.len().checked_sub(FOOTER as usize)?..)?)?;
    let fits = number(0)? == TABLE_MAGIC && u64::from(number(4)?) + 8 == table.len() as u64;
    let entry: usize = if descriptor & HAS_CHECKSUMS != 0 { 12 } else { 8 };
    let entries = table.get(8..table.len() - FOOTER as usize)?;
    if !fits || entries.len() as u64 != u64::from(count) * entry as u64 {
        return None;
    }
    let frames: Option<Vec<_>> = (0..count as usize)
        .map(|n| Some(FrameSize { packed: number(8 + n * entry)?, content: number(12 + n * entry)? }))
        .collect();
    let frames = frames?;
    let packed: u64 = frames.iter().map(|frame| u64::from(frame.packed)).sum();
    (packed.checked_add(table.len() as u64)? == blob_size).then_some(frames)
}

fn footer_fields(footer: &[u8]) -> Option<(u32, u8, u32)> {
    let number = |at: usize| footer.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    Some((number(0)?, *footer.get(4)?, number(5)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_does_not_fill_the_blob_is_none() {
        let table = |sizes: &[(u32, u32)], checksums: bool| {
            let mut entries = Vec::new();
            for (packed, content) in sizes {
                entries.extend(packed.to_le_bytes());
                entries.extend(content.to_le_bytes());
                entries.extend(checksums.then_some([0; 4]).into_iter().flatten());
            }
            let mut table = TABLE_MAGIC.to_le_bytes().to_vec();
            table.extend((entries.len() as u32 + 9).to_le_bytes());
            table.extend(entries);
            table.extend((sizes.len() as u32).to_le_bytes());
            table.push(if checksums { HAS_CHECKSUMS } else { 0 });
            table.extend(FOOTER_MAGIC.to_le_bytes());
            table
        };
        for checksums in [false, true] {
            let good = table(&[(10, 100), (20, 200)], checksums);
            let length = good.len() as u64;
            assert_eq!(table_length(&good[good.len() - 9..]), Some(length));
            let frames = parse_table(&good, 30 + length).unwrap();
            assert_eq!(frames[1], FrameSize { packed: 20, content: 200 });
            assert_eq!(parse_table(&good, 31 + length), None);
            for end in 0..good.len() {
                assert_eq!(parse_table(&good[..end], 30 + length), None, "{end}");
            }
            for at in (0..8).chain(good.len() - 9..good.len() - 5) {
                let mut bad = good.clone();
                bad[at] ^= 1;
                assert_eq!(parse_table(&bad, 30 + length), None, "{at}");
            }
        }
        let huge = [&u32::MAX.to_le_bytes()[..], &[0x80], &FOOTER_MAGIC.to_le_bytes()].concat();
        assert_eq!(table_length(&huge), Some(8 + u64::from(u32::MAX) * 12 + 9));
        assert_eq!(table_length(b"123456789"), None);
    }
}
