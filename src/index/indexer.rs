//! Decides what to fetch of an archive, and makes its index of what arrives. Guesses (see `predict.rs`, `segment.rs`)
//! only decide what is fetched ahead: members come from one scanner that goes from the archive's start to its end, so
//! that the index is the same whatever was guessed and in whatever order bytes arrive.

use std::ops::Range;

use bytes::Bytes;

use super::build::LayerIndexBuilder;
use super::error::ScanError;
use super::layer::LayerIndex;
use super::limits::Limits;
use super::pieces::Pieces;
use super::predict::{Habits, Predictor};
use super::scan::{Scanner, Step};
use super::segment::Walker;

/// How requests are cut. All in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Fetched for a header of which nothing is known: its PAX records come with it, and small members behind it.
    pub smallest: u64,
    pub largest: u64,
    /// Headers this close to each other become one request where there are more of them than free connections. At 1
    /// Gbit/s one request of a busy registry costs as much as 250 KB of line.
    pub gap: u64,
    /// May have arrived and not be passed; beyond, only what is needed next is fetched.
    pub store: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { smallest: 16 << 10, largest: 1 << 20, gap: 256 << 10, store: 64 << 20 }
    }
}

/// Bytes fetched ahead where members are small, at most.
const LARGEST_STREAM: u64 = 8 << 20;
/// Each time that some have come, so many times more: doubling took three round trips more to fill a fast line.
const STREAM_GROWTH: u64 = 4;
/// Members are small if this is their length in the mean, headers included: then all bytes are fetched, not headers.
const SMALL: u64 = 64 << 10;
/// Members at the start of an archive, before any can be expected. A round trip costs as much as megabytes there: a
/// large archive's first headers are fetched in reads of a 32,768th of it.
const EARLY: u64 = 16;
const EARLY_SHARE: u64 = 32_768;
/// Headers in a row that nobody expected: time for walkers. More than a period of members that recur has.
const LONELY: u32 = 32;
/// Members that must still be expected for walkers to be worth their search.
const WORTH_WALKERS: u64 = 64;
/// Times that walkers may be sent out over one archive.
const MOST_CAMPAIGNS: u32 = 8;

/// See the module. Ask for [`Self::requests`], bring what they give with [`Self::arrived`], until [`Self::is_done`].
#[derive(Debug)]
pub struct Indexer {
    blob_size: u64,
    limits: Limits,
    tuning: Tuning,
    scanner: Scanner,
    builder: LayerIndexBuilder,
    predictor: Predictor,
    pieces: Pieces,
    walkers: Vec<Walker>,
    campaigns: u32,
    under_way: Vec<Range<u64>>,
    /// What the scanner needs and does not have.
    needed: Range<u64>,
    /// Length of a member in the mean, of late.
    mean: u64,
    /// Bytes fetched ahead where members are small.
    stream: u64,
    /// Headers in a row that nobody expected.
    lonely: u32,
    members: u64,
    trailing: Option<bool>,
}

impl Indexer {
    /// `habits`: of archives that may be alike.
    pub fn new(blob_size: u64, limits: Limits, tuning: Tuning, habits: Habits) -> Self {
        Self {
            blob_size,
            limits,
            tuning,
            scanner: Scanner::new(blob_size, limits),
            builder: LayerIndexBuilder::new(limits),
            predictor: Predictor::new(blob_size, habits),
            pieces: Pieces::default(),
            walkers: Vec::new(),
            campaigns: 0,
            under_way: Vec::new(),
            needed: 0..0,
            mean: u64::MAX,
            stream: 0,
            lonely: 0,
            members: 0,
            trailing: None,
        }
    }

    pub fn is_done(&self) -> bool {
        self.trailing.is_some()
    }

    /// What to fetch now, at most `free` ranges, the most urgent first. Each must come back through [`Self::arrived`].
    pub fn requests(&mut self, free: usize) -> Vec<Range<u64>> {
        if self.is_done() || free == 0 {
            return Vec::new();
        }
        let mut requests = Vec::new();
        let urgent = self.urgent();
        if self.is_missing(&self.needed) {
            self.under_way.push(urgent.clone());
            requests.push(urgent);
        }
        if self.pieces.bytes() < self.tuning.store {
            let mut ahead = self.ahead(free);
            ahead.retain(|range| !range.is_empty() && self.is_missing(range));
            let free = free.saturating_sub(requests.len());
            if ahead.len() > free && !self.is_stream() {
                ahead = joined(ahead, self.tuning.gap, self.tuning.largest);
            }
            ahead.truncate(free);
            self.under_way.extend_from_slice(&ahead);
            requests.append(&mut ahead);
        }
        requests
    }

    /// What the scanner waits for, in a useful length.
    fn urgent(&mut self) -> Range<u64> {
        let Range { start, end } = self.needed;
        let useful = match self.is_stream() {
            true if self.stream >= self.piece() => self.next_piece(start),
            true => start.saturating_add(self.stream.max(self.tuning.smallest)),
            false if self.is_early() => {
                let share = (self.blob_size / EARLY_SHARE).min(self.piece());
                start.saturating_add(share.max(self.tuning.smallest))
            }
            false => start.saturating_add(self.tuning.smallest),
        };
        start..end.max(useful).min(self.blob_size)
    }

    /// Longest request where all bytes are fetched. Longer ones are as few as fill the line, which is found out by
    /// trying fewer: that took a tenth of the time of a stream of seconds.
    fn piece(&self) -> u64 {
        (self.tuning.largest / 2).max(1)
    }

    /// In streams requests end at multiples of their longest length, so that they never overlap.
    fn next_piece(&self, at: u64) -> u64 {
        at.checked_div(self.piece()).unwrap_or(0).saturating_add(1).saturating_mul(self.piece())
    }

    fn is_early(&mut self) -> bool {
        self.members < EARLY && !self.predictor.is_guessing()
    }

    fn is_stream(&self) -> bool {
        self.mean <= SMALL
    }

    /// What may be needed soon.
    fn ahead(&mut self, free: usize) -> Vec<Range<u64>> {
        let size = self.blob_size;
        if self.is_stream() {
            let end = self.needed.start.saturating_add(self.stream).min(size);
            let pieces = std::iter::successors(Some(self.urgent().end), |at| Some(self.next_piece(*at)));
            let pieces = pieces.take_while(|at| *at < end && self.stream >= self.piece());
            return pieces.map(|at| at..self.next_piece(at).min(size)).collect();
        }
        let mut ahead: Vec<Range<u64>> = self.predictor.expected().cloned().collect();
        if self.lonely >= LONELY && !self.predictor.is_guessing() {
            self.send_walkers(free);
        }
        ahead.extend(self.walkers.iter().filter_map(Walker::wants).map(|want| want.start..want.end.min(size)));
        ahead
    }

    fn send_walkers(&mut self, free: usize) {
        self.walkers.retain(|walker| !walker.is_done());
        let rest = self.needed.start..self.blob_size;
        let members = rest.end.saturating_sub(rest.start).checked_div(self.mean).unwrap_or(0);
        if !self.walkers.is_empty() || self.campaigns >= MOST_CAMPAIGNS || members < WORTH_WALKERS {
            return;
        }
        self.campaigns = self.campaigns.saturating_add(1);
        self.lonely = 0;
        // The first part is the scanner's own.
        let parts = free.saturating_add(1) as u64;
        let length = rest.end.saturating_sub(rest.start).checked_div(parts).unwrap_or(0);
        let start_of = |part: u64| rest.start.saturating_add(part.saturating_mul(length));
        self.walkers = (1..parts).map(|part| Walker::new(start_of(part)..start_of(part.saturating_add(1)))).collect();
    }

    /// Neither here nor under way.
    fn is_missing(&self, range: &Range<u64>) -> bool {
        let covered = |other: &Range<u64>| other.start <= range.start && range.end <= other.end;
        !self.under_way.iter().any(covered) && self.pieces.window(range).is_none()
    }

    /// The bytes of a range that was asked for, all of them.
    pub fn arrived(&mut self, range: &Range<u64>, bytes: Bytes) -> Result<(), ScanError> {
        self.under_way.retain(|other| other != range);
        self.keep(range.start, bytes);
        self.advance()?;
        for walker in &mut self.walkers {
            walker.walk(&self.pieces);
        }
        Ok(())
    }

    fn keep(&mut self, at: u64, bytes: Bytes) {
        let mut searched = false;
        for walker in &mut self.walkers {
            searched |= walker.search(at, &bytes, self.blob_size, self.limits, &mut self.pieces);
        }
        if self.is_stream() || bytes.len() as u64 <= SMALL || self.is_early() {
            self.pieces.add(at, bytes);
            return;
        }
        if searched {
            return;
        }
        // Several headers and what lies between them: only the headers are kept.
        let end = at.saturating_add(bytes.len() as u64);
        let wants = self.walkers.iter().filter_map(Walker::wants);
        let headers: Vec<_> = self.predictor.expected().cloned().chain(wants).chain([self.needed.clone()]).collect();
        for header in headers {
            let header = header.start.max(at)..header.end.min(end);
            let place = header.start.saturating_sub(at) as usize..header.end.saturating_sub(at) as usize;
            if let Some(header_bytes) = bytes.get(place).filter(|bytes| !bytes.is_empty()) {
                self.pieces.add(header.start, Bytes::copy_from_slice(header_bytes));
            }
        }
    }

    /// Scans as far as there are bytes.
    fn advance(&mut self) -> Result<(), ScanError> {
        let mut window = (self.needed.start, Bytes::new());
        let mut members: u32 = 0;
        loop {
            match self.scanner.step(window.0, &window.1)? {
                Step::Need(range) => match self.pieces.window(&range) {
                    Some(bytes) => window = (range.start, bytes),
                    None => {
                        self.needed = range;
                        break;
                    }
                },
                Step::Member(member) => {
                    members = members.saturating_add(1);
                    self.members = self.members.saturating_add(1);
                    self.lonely = if self.predictor.saw(&member) { 0 } else { self.lonely.saturating_add(1) };
                    let length = member.next.saturating_sub(member.header);
                    self.mean = match self.mean {
                        u64::MAX => length,
                        mean => mean.saturating_mul(7).saturating_add(length) / 8,
                    };
                    self.pieces.forget_before(member.next);
                    self.builder.push(member)?;
                }
                Step::End { trailing } => {
                    self.predictor.saw_end();
                    self.trailing = Some(trailing);
                    return Ok(());
                }
            }
        }
        if self.is_stream() && members > 0 {
            self.stream = self.stream.max(self.tuning.smallest).saturating_mul(STREAM_GROWTH).min(LARGEST_STREAM);
        }
        Ok(())
    }

    /// The index, whether bytes follow the archive's end, and what can be expected of its siblings. `None` before the
    /// end.
    pub fn finish(self) -> Option<(LayerIndex, bool, Habits)> {
        let trailing = self.trailing?;
        Some((self.builder.finish(), trailing, self.predictor.into_habits()))
    }
}

/// Neighbours within `gap` of each other as one range of at most `largest`.
fn joined(mut ranges: Vec<Range<u64>>, gap: u64, largest: u64) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last)
                if range.start <= last.end.saturating_add(gap) && range.end.saturating_sub(last.start) <= largest =>
            {
                last.end = last.end.max(range.end);
            }
            _ => joined.push(range),
        }
    }
    joined
}
