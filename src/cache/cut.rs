//! Ranges of bytes and the chunks that cover them.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::CHUNK;

pub fn chunk_numbers(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK..range.end.div_ceil(CHUNK)
}

/// Bytes that a chunk and a range have in common.
pub fn overlap(number: u64, range: &Range<u64>) -> u64 {
    ((number + 1) * CHUNK).min(range.end).saturating_sub((number * CHUNK).max(range.start))
}

/// A byte in flight is there twice: in the answer, and in its copy in chunks.
pub const COST: u64 = 2;

/// Bytes in flight for a run.
pub fn run_cost(run: &Range<u64>) -> u64 {
    (run.end - run.start) * CHUNK * COST
}

/// `range` of the blob out of the chunks that cover it.
pub fn cut_out(chunks: &[Bytes], range: &Range<u64>) -> Bytes {
    let start = (range.start % CHUNK) as usize;
    let length = (range.end - range.start) as usize;
    match chunks {
        [chunk] => chunk.slice(start.min(chunk.len())..(start + length).min(chunk.len())),
        chunks => {
            let mut bytes = BytesMut::with_capacity(length);
            let mut skip = start;
            for chunk in chunks {
                let rest = chunk.get(skip..).unwrap_or_default();
                bytes.extend_from_slice(rest.get(..length - bytes.len()).unwrap_or(rest));
                skip = 0;
            }
            bytes.freeze()
        }
    }
}
