//! Read-ahead for sequential readers, seen in blob offsets: the members of an archive read one after the other are
//! one stream, so that small files cost no round trip each.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lru::LruCache;

use super::BlobSource;
use crate::cache::ChunkCache;
use crate::error::Result;
use crate::oci::{Descriptor, Digest};

/// A stream may skip this much: tar and PAX headers, padding and all, between two members.
const GAP: u64 = 8 << 10;
/// The kernel's own read-ahead sends its requests out of order within this distance.
const DISORDER: u64 = 256 << 10;
/// Read-ahead starts when a stream has read this much; below, it may be a program that looks at the head of a file.
const START: u64 = 192 << 10;
/// A stream that has read this much goes on, more often than not.
const SURE: u64 = 1 << 20;
/// The longest window, in bytes.
const LARGEST_WINDOW: u64 = 8 << 20;
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
        let largest_window = LARGEST_WINDOW.min(cache.memory() / 16);
        Self { cache, streams: Mutex::new(Streams::default()), largest_window }
    }
}

impl BlobSource for ReadAhead {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = streams.note(&blob.digest, range.clone(), self.largest_window);
        drop(streams);
        // The reader's own request goes first.
        let read = self.cache.read(blob, range);
        if let Some(ahead) = ahead {
            self.cache.prefetch(blob, ahead.start..ahead.end.min(blob.size));
        }
        read
    }
}

/// One sequential reader.
struct Stream {
    /// Where it goes on.
    next: u64,
    /// Bytes it has read in a row.
    run: u64,
    /// End of what was fetched ahead of it.
    ahead: u64,
}

struct Streams(LruCache<Digest, Vec<Stream>>);

impl Default for Streams {
    fn default() -> Self {
        Self(LruCache::unbounded())
    }
}

impl Streams {
    /// Takes note of a read and says what to fetch ahead of it.
    fn note(&mut self, blob: &Digest, read: Range<u64>, largest_window: u64) -> Option<Range<u64>> {
        let streams = self.0.get_or_insert_mut(blob.clone(), Vec::new);
        let continues = |stream: &Stream| {
            read.start <= stream.next.saturating_add(GAP) && read.start.saturating_add(DISORDER) >= stream.next
        };
        let Some(place) = streams.iter().position(continues) else {
            streams.push(Stream { next: read.end, run: read.end.saturating_sub(read.start), ahead: read.end });
            self.forget_oldest();
            return None;
        };
        let mut stream = streams.remove(place);
        stream.run = stream.run.saturating_add(read.end.saturating_sub(stream.next));
        stream.next = stream.next.max(read.end);
        stream.ahead = stream.ahead.max(stream.next);
        // A reader that has read little is likely to stop soon: at first a quarter of it is risked in vain, later half.
        let share = if stream.run < SURE { 4 } else { 2 };
        let window = (stream.run / share).min(largest_window);
        let target = stream.next.saturating_add(window);
        let wanted = stream.ahead..target;
        // Whole steps: many small requests cost more than the bytes.
        let ahead = (stream.run >= START && wanted.end.saturating_sub(wanted.start) >= window / 2).then_some(wanted);
        if let Some(ahead) = &ahead {
            stream.ahead = ahead.end;
        }
        streams.push(stream);
        ahead
    }

    fn forget_oldest(&mut self) {
        if self.0.iter().map(|(_, streams)| streams.len()).sum::<usize>() <= STREAMS {
            return;
        }
        let emptied = self.0.peek_lru().map(|(blob, _)| blob.clone()).filter(|blob| {
            self.0.peek_mut(blob).is_some_and(|streams| {
                streams.remove(0);
                streams.is_empty()
            })
        });
        if let Some(blob) = emptied {
            self.0.pop(&blob);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const LARGEST: u64 = 8 << 20;

    fn blob() -> Digest {
        Digest::sha256_of(b"")
    }

    #[test]
    fn a_sequential_reader_is_fetched_ahead_in_growing_windows() {
        let mut streams = Streams::default();
        let (mut fetched, mut largest) = (0, 0);
        for at in (0..64 << 20).step_by(128 << 10) {
            if let Some(ahead) = streams.note(&blob(), at..at + 128 * KIB, LARGEST) {
                assert!(ahead.start >= fetched, "nothing twice");
                assert!(ahead.end >= at + 128 * KIB);
                fetched = ahead.end;
                largest = largest.max(ahead.end - ahead.start);
            }
        }
        assert!(fetched >= 64 << 20);
        assert!(largest > 2 << 20 && largest <= LARGEST);
    }

    #[test]
    fn members_behind_their_headers_are_one_stream() {
        let mut streams = Streams::default();
        let mut ahead = 0;
        for member in 0..100 {
            let at = member * (32 * KIB + 1536) + 1536;
            ahead += u64::from(streams.note(&blob(), at..at + 32 * KIB, LARGEST).is_some());
        }
        assert!(ahead > 3, "{ahead}");
    }

    #[test]
    fn heads_of_files_and_random_reads_start_nothing() {
        let mut streams = Streams::default();
        for file in 0..1000 {
            let at = file * 140 * KIB;
            assert_eq!(streams.note(&blob(), at..at + 4 * KIB, LARGEST), None);
        }
        for n in 0..1000_u64 {
            let at = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 24;
            assert_eq!(streams.note(&blob(), at..at + 4 * KIB, LARGEST), None);
        }
        assert!(streams.0.iter().map(|(_, streams)| streams.len()).sum::<usize>() <= STREAMS);
    }

    #[test]
    fn what_is_fetched_in_vain_stays_below_half_of_what_was_read() {
        for length in [200 * KIB, 327_680, 1 << 20, 10 << 20] {
            let mut streams = Streams::default();
            let mut fetched = 0;
            for at in (0..length).step_by(64 << 10) {
                if let Some(ahead) = streams.note(&blob(), at..(at + 64 * KIB).min(length), LARGEST) {
                    fetched = ahead.end;
                }
            }
            assert!(fetched <= length + length / 2 + 64 * KIB, "{fetched} of {length}");
        }
    }

    #[test]
    fn readers_of_many_blobs_do_not_disturb_each_other() {
        let mut streams = Streams::default();
        let blobs: Vec<_> = (0..8_u8).map(|n| Digest::sha256_of(&[n])).collect();
        let mut ahead = 0;
        for at in (0..4 << 20).step_by(128 << 10) {
            for blob in &blobs {
                ahead += u64::from(streams.note(blob, at..at + 128 * KIB, LARGEST).is_some());
            }
        }
        assert!(ahead > 8 * 4, "{ahead}");
    }
}
