//! Where nothing can be expected: several walkers look for a header further on in a large archive and go on from there.
//! What they fetch is there when the proven chain of headers comes along; what they find is not believed.

use std::ops::Range;

use bytes::Bytes;

use super::limits::Limits;
use super::pieces::Pieces;
use super::scan::{BLOCK, Scanner, Step, is_header};

/// Bytes fetched at once in search of a header, at first and at most, and in all.
const FIRST_SEARCH: u64 = 256 << 10;
const LARGEST_SEARCH: u64 = 1 << 20;
const LONGEST_SEARCH: u64 = 64 << 20;
/// Bytes fetched for one header.
const HEADER: u64 = 4 << 10;

/// Walks one part of the archive.
#[derive(Debug)]
pub struct Walker {
    state: State,
    /// Where the next walker's part begins.
    end: u64,
}

#[derive(Debug)]
enum State {
    Searching { at: u64, since: u64, length: u64 },
    Walking { scanner: Box<Scanner>, needed: Range<u64> },
    Done,
}

impl Walker {
    pub fn new(part: Range<u64>) -> Self {
        let at = part.start.next_multiple_of(BLOCK);
        Self { state: State::Searching { at, since: at, length: FIRST_SEARCH }, end: part.end }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// What it wants fetched.
    pub fn wants(&self) -> Option<Range<u64>> {
        match &self.state {
            State::Searching { at, length, .. } => Some(*at..at.saturating_add(*length)),
            State::Walking { needed, .. } => Some(needed.start..needed.end.max(needed.start.saturating_add(HEADER))),
            State::Done => None,
        }
    }

    /// Bytes have arrived; says whether they were looked through for it and need not be kept.
    pub fn search(&mut self, at: u64, bytes: &Bytes, blob_size: u64, limits: Limits, pieces: &mut Pieces) -> bool {
        let State::Searching { at: wanted, since, length } = &mut self.state else { return false };
        if *wanted != at {
            return false;
        }
        let found = bytes.chunks_exact(BLOCK as usize).position(is_header);
        if let Some(block) = found {
            let skip = block.saturating_mul(BLOCK as usize);
            let start = at.saturating_add(skip as u64);
            let header = bytes.slice(skip..bytes.len().min(skip.saturating_add(HEADER as usize)));
            // A copy: the search's bytes are many, and not wanted any more.
            pieces.add(start, Bytes::copy_from_slice(&header));
            let scanner = Box::new(Scanner::starting_at(start, blob_size, limits));
            self.state = State::Walking { scanner, needed: start..start.saturating_add(BLOCK) };
            self.walk(pieces);
            return true;
        }
        *wanted = at.saturating_add(bytes.len() as u64);
        *length = length.saturating_mul(2).min(LARGEST_SEARCH);
        if *wanted >= self.end || wanted.saturating_sub(*since) >= LONGEST_SEARCH || bytes.is_empty() {
            self.state = State::Done;
        }
        true
    }

    /// Goes on as far as the bytes that are here let it.
    pub fn walk(&mut self, pieces: &Pieces) {
        let State::Walking { scanner, needed } = &mut self.state else { return };
        while let Some(window) = pieces.window(needed) {
            let at = needed.start;
            loop {
                match scanner.step(at, &window) {
                    Ok(Step::Member(member)) if member.next < self.end => {}
                    Ok(Step::Need(range)) => {
                        *needed = range;
                        break;
                    }
                    Ok(Step::Member(_) | Step::End { .. }) | Err(_) => {
                        self.state = State::Done;
                        return;
                    }
                }
            }
        }
    }
}
