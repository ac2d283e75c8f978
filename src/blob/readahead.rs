//! Read-ahead for sequential readers, seen in blob offsets: the members of an archive read one after the other are
//! one stream, so that small files cost no round trip each, and so are layers read one after the other. What is fetched
//! in vain has a bound: see [`ALLOWANCE`].

mod laps;
mod order;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::BlobSource;
use crate::cache::{CHUNK, ChunkCache};
use crate::error::Result;
use crate::oci::{Descriptor, Digest};
pub use laps::Laps;
use order::{Order, Place};

/// A stream may skip this much: tar and PAX headers, padding and all, between two members.
const GAP: u64 = 8 << 10;
/// What is left of a blob behind its last file when this much is: the end of an archive, padded to 10 KiB.
const TAIL: u64 = 16 << 10;
/// The kernel's own read-ahead sends its requests out of order within this distance.
const DISORDER: u64 = 256 << 10;
/// What has read this much of a file from its start reads all of it, more often than not; below, it may be a program
/// that looks at the head of a file.
const START: u64 = 192 << 10;
/// Of what was read, so much may be fetched ahead in vain: a fifth.
const SHARE: u64 = 5;
/// And this much besides, once: nearly what a link of 1 Gbit/s holds in 20 ms, so that the first reader need not wait
/// until it has earned that.
const ALLOWANCE: u64 = 2 << 20;
/// So many times what a reader of all has read may be fetched ahead of it, as far as it is allowed at all.
const GROWTH: u64 = 4;
/// The longest window, in bytes.
const LARGEST_WINDOW: u64 = 8 << 20;
/// A window is fetched in so many requests: where one connection is slow, many are not. More of them cost a registry
/// more than they bring.
const REQUESTS: u64 = 8;
/// Bytes of a request.
const SMALLEST_STEP: u64 = 128 << 10;
const LARGEST_STEP: u64 = 1 << 20;
/// What has read this much in a row has a longer window in longer requests: each costs a registry milliseconds.
const LONG_RUN: u64 = 64 << 20;
/// Bytes of the longest answer.
const LONGEST_ANSWER: u64 = 64 << 20;
/// Out of a shorter blob nothing comes in long answers: one that ends early costs what sockets hold of it.
const LONG_BLOB: u64 = 2 * LONGEST_ANSWER;
const LONG_WINDOW: u64 = 12 << 20;
const LONG_STEP: u64 = 3 << 19;
/// Streams told apart, over all blobs; the least recently used is forgotten.
const STREAMS: usize = 64;

pub struct ReadAhead {
    cache: Arc<ChunkCache>,
    streams: Mutex<Streams>,
    largest_window: u64,
}

impl ReadAhead {
    pub fn new(cache: Arc<ChunkCache>) -> Self {
        // A window is fetched beside what is read: it must leave room for the others.
        let largest_window = LONG_WINDOW.min(cache.memory() / 16);
        let streams = Streams { long_answers: cache.long_answers() > 0, ..Streams::default() };
        Self { cache, streams: Mutex::new(streams), largest_window }
    }

    fn read_ahead<'a>(
        &'a self,
        blob: &'a Descriptor,
        file: Option<Range<u64>>,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes>> {
        let room = self.cache.room();
        let mut streams = self.streams();
        let place = streams.order.place(blob);
        let ahead = streams.note(&place, file, range.clone(), self.largest_window, room, Instant::now());
        let Some(Ahead { range: ahead, step, until }) = ahead else {
            drop(streams);
            return self.cache.read(blob, range);
        };
        let pieces = streams.order.pieces(&place, blob, ahead.start..until.unwrap_or(ahead.end));
        // What comes in one answer is asked for in order.
        let _in_order = until.is_some().then_some(streams);
        // The reader's own request goes first.
        let read = self.cache.read(blob, range);
        let mut left = ahead.end.saturating_sub(ahead.start);
        for (blob, piece) in pieces {
            let mut at = piece.start;
            let end = piece.end.min(at.saturating_add(left));
            left = left.saturating_sub(end.saturating_sub(at));
            while at < end {
                let next = at.saturating_add(step).min(end);
                self.cache.prefetch(&blob, at..next, until.map(|_| piece.end));
                at = next;
            }
        }
        read
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlobSource for ReadAhead {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        self.read_ahead(blob, None, range)
    }

    fn read_file<'a>(
        &'a self,
        blob: &'a Descriptor,
        file: Range<u64>,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes>> {
        self.read_ahead(blob, Some(file), range)
    }

    fn in_order(&self, blobs: Vec<Descriptor>) {
        self.streams().order = Order::new(blobs);
    }
}

/// What to fetch ahead, in requests of `step` bytes.
#[derive(Debug, PartialEq, Eq)]
struct Ahead {
    range: Range<u64>,
    step: u64,
    /// In one answer, which goes on to here.
    until: Option<u64>,
}

/// One sequential reader. Its positions are those of [`Order`].
struct Stream {
    /// Where blobs lie one behind the other: none.
    blob: Option<Digest>,
    /// Where it began, and where it goes on.
    begin: u64,
    next: u64,
    /// Bytes it has read in a row.
    run: u64,
    /// End of what was fetched ahead of it; `next` if nothing is.
    ahead: u64,
    /// The file that it is in.
    file: Option<Range<u64>>,
    /// It began at the start of a file.
    from_start: bool,
    /// It has gone on from one file to the next: what it reads is the archive.
    crossed: bool,
    /// End of the blob that it is in.
    blob_end: u64,
    /// It has gone on from one blob to the next: what it reads is all of them.
    crossed_blobs: bool,
    /// Bytes fetched past the end of its first file.
    past: u64,
    laps: Laps,
}

#[derive(Default)]
struct Streams {
    order: Order,
    /// There are such.
    long_answers: bool,
    /// The most recently used last.
    streams: Vec<Stream>,
    /// Bytes read, by all.
    read: u64,
    /// Bytes fetched ahead and not read, by streams that go on and by those that ended.
    unread: u64,
    /// Bytes fetched past the ends of files whose readers have not gone on to the next one.
    past: u64,
}

impl Streams {
    /// Takes note of a read, in `file` if that is known, and says what to fetch ahead of it: a window at most, and no more
    /// than there is room for.
    fn note(
        &mut self,
        place: &Place,
        file: Option<Range<u64>>,
        read: Range<u64>,
        largest_window: u64,
        room: u64,
        now: Instant,
    ) -> Option<Ahead> {
        self.read = self.read.saturating_add(read.end.saturating_sub(read.start));
        let mut read = place.start.saturating_add(read.start)..place.start.saturating_add(read.end);
        if read.end.saturating_add(TAIL) >= place.end && file.is_some() {
            // There is no file behind it.
            read.end = place.end;
        }
        let mut stream = self.advance(place, &read);
        if let Some(file) = file {
            let file = place.start.saturating_add(file.start)..place.start.saturating_add(file.end);
            stream.from_start |= stream.begin == file.start;
            let crosses = stream.file.as_ref().is_some_and(|before| before.end <= file.start);
            if crosses && !stream.crossed {
                self.past = self.past.saturating_sub(std::mem::take(&mut stream.past));
            }
            stream.crossed |= crosses;
            stream.crossed_blobs |= stream.blob_end < place.end;
            stream.file = Some(file);
        }
        stream.blob_end = place.end;
        let ahead = self.window(&mut stream, place, largest_window, room, now);
        self.push(stream);
        ahead
    }

    fn push(&mut self, stream: Stream) {
        self.streams.push(stream);
        if self.streams.len() > STREAMS {
            self.streams.remove(0);
        }
    }

    /// The stream that this read continues, or a new one; taken out.
    fn advance(&mut self, place: &Place, read: &Range<u64>) -> Stream {
        let known = self.streams.iter().rposition(|stream| {
            let from = stream.begin.max(stream.next.saturating_sub(DISORDER));
            (from..=stream.next.saturating_add(GAP)).contains(&read.start) && stream.blob == place.alone
        });
        let mut stream = match known {
            Some(known) => self.streams.remove(known),
            None => Stream {
                blob: place.alone.clone(),
                begin: read.start,
                next: read.start,
                run: 0,
                ahead: read.start,
                file: None,
                from_start: false,
                crossed: false,
                blob_end: place.end,
                crossed_blobs: false,
                past: 0,
                laps: Laps::default(),
            },
        };
        self.pass(&mut stream, read);
        // A request that came too early looked like a reader of its own: this one has caught up with it.
        let early = |other: &Stream| {
            (stream.begin..=stream.next.saturating_add(GAP)).contains(&other.begin)
                && other.run <= DISORDER
                && other.blob == place.alone
        };
        if let Some(early) = self.streams.iter().position(early) {
            let other = self.streams.remove(early);
            self.pass(&mut stream, &(other.begin..other.next));
            // What was fetched ahead of both counts once.
            let both = stream.ahead.min(other.ahead).saturating_sub(stream.next);
            self.unread = self.unread.saturating_sub(both + stream.next.min(other.ahead).saturating_sub(other.next));
            self.past = self.past.saturating_sub(other.past);
            stream.ahead = stream.ahead.max(other.ahead);
        }
        stream
    }

    /// The stream goes on behind `read`, and has used what was fetched ahead of it up to there.
    fn pass(&mut self, stream: &mut Stream, read: &Range<u64>) {
        let new = read.end.saturating_sub(read.start.max(stream.next));
        let before = stream.ahead.saturating_sub(stream.next);
        stream.run = stream.run.saturating_add(new);
        stream.next = stream.next.max(read.end);
        stream.ahead = stream.ahead.max(stream.next);
        self.unread = self.unread.saturating_sub(before.saturating_sub(stream.ahead.saturating_sub(stream.next)));
    }

    /// What to fetch ahead of a stream; accounts for it.
    fn window(
        &mut self,
        stream: &mut Stream,
        place: &Place,
        largest_window: u64,
        room: u64,
        now: Instant,
    ) -> Option<Ahead> {
        let earned = stream.run / SHARE;
        let sure = stream.run >= START && (stream.from_start || stream.crossed);
        let long = place.end.saturating_sub(place.start) >= LONG_BLOB && stream.run >= LONG_RUN;
        let in_one = self.long_answers && sure && long && stream.laps.in_one(stream.run, now);
        let (most, largest_step) =
            if stream.run < LONG_RUN || in_one { (LARGEST_WINDOW, LARGEST_STEP) } else { (LONG_WINDOW, LONG_STEP) };
        // One answer waits for room itself.
        let most = if in_one { most } else { most.min(room) };
        let window = if sure { stream.run.saturating_mul(GROWTH) } else { earned }.min(largest_window).min(most);
        let budget = ALLOWANCE + self.read / SHARE;
        let left = budget.saturating_sub(self.unread);
        // Most readers stop at the end of a file; that this one does not is tried as long as the others did not, either.
        // At the end of the first layer the rest of it is awaited, and what lies behind would share the line with it.
        let (sure_end, last) = match &stream.file {
            Some(file) if !stream.crossed => (file.end, stream.blob_end),
            _ if stream.crossed_blobs => (place.last, place.last),
            _ => (stream.blob_end, stream.blob_end),
        };
        let past = if sure { earned.min((ALLOWANCE + stream.past).saturating_sub(self.past)) } else { 0 };
        let end = sure_end.saturating_add(past).min(last);
        let step = (window.min(budget) / REQUESTS).clamp(SMALLEST_STEP, largest_step);
        let step = step - step % CHUNK;
        let target = stream.next.saturating_add(window).min(stream.ahead.saturating_add(left)).min(end);
        // Whole steps: many small requests cost more than the bytes.
        let is_end = target == sure_end;
        let length = target.saturating_sub(stream.ahead);
        let steps = stream.ahead.saturating_add(length - length % step);
        let whole_chunks = steps - steps.saturating_sub(place.start) % CHUNK;
        let range = stream.ahead..if is_end { target } else { whole_chunks };
        if range.end <= range.start {
            return None;
        }
        let fetched_past = range.end.saturating_sub(range.start.max(sure_end));
        self.unread = self.unread.saturating_add(range.end - range.start);
        self.past = self.past.saturating_add(fetched_past);
        stream.past = stream.past.saturating_add(fetched_past);
        stream.ahead = range.end;
        let until = range.start.saturating_add(LONGEST_ANSWER).min(sure_end).max(range.end);
        Some(Ahead { range, step, until: in_one.then_some(until) })
    }
}

#[cfg(test)]
mod tests;
