//! Long answers: what a reader of very much wants next comes in one, run after run, instead of one answer each. Bytes are
//! taken only as they are asked for, so that no more is under way than otherwise.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::timeout;

use super::memory::Chunks;
use super::on_disk::OnDisk;
use super::{CHUNK, SharedState, Space};
use crate::cache::cut::run_cost;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest};

/// One of which nobody wants more is given up after so long: it has a connection to itself.
const IDLE: Duration = Duration::from_secs(1);

/// An answer under way, in chunks.
pub struct Answer {
    of: (Space, Digest),
    /// What is asked of it next, and its end.
    rest: Range<u64>,
    wishes: UnboundedSender<Wish>,
}

struct Wish {
    run: Range<u64>,
    given: oneshot::Sender<Given>,
}

/// The chunks of a run, and the memory that they take.
pub type Given = (Result<Arc<[Bytes]>>, Option<OwnedSemaphorePermit>);

impl Answer {
    /// Whether that is what it brings next.
    fn brings(&self, of: &(Space, Digest), run: &Range<u64>) -> bool {
        self.of == *of && self.rest.start == run.start && run.end <= self.rest.end
    }
}

impl Chunks {
    /// Asks an answer for a run, if that is what it brings next.
    pub fn wish(&mut self, of: &(Space, Digest), run: &Range<u64>) -> Option<oneshot::Receiver<Given>> {
        let place = self.answers.iter().position(|answer| answer.brings(of, run))?;
        let answer = self.answers.get_mut(place)?;
        let (given, wished) = oneshot::channel();
        let sent = answer.wishes.send(Wish { run: run.clone(), given });
        answer.rest.start = run.end;
        if sent.is_err() || answer.rest.is_empty() {
            self.answers.swap_remove(place);
        }
        sent.is_ok().then_some(wished)
    }
}

impl SharedState {
    /// Nothing more is asked of the answer that goes on with this run.
    pub(super) fn close_answer(&self, chunks: &mut Chunks, blob: &Digest, run: &Range<u64>) {
        let of = (self.space, blob);
        chunks.answers.retain(|answer| (answer.of.0, &answer.of.1) != of || answer.rest.start != run.start);
    }

    /// Opens an answer that begins with a run of missing chunks and goes on as long as all is missing, to the chunk `end` at
    /// most; unless there is one already, or there are enough. Gives whether there is one that brings the run next.
    pub(super) fn open_answer(
        self: &Arc<Self>,
        chunks: &mut Chunks,
        blob: &Descriptor,
        run: &Range<u64>,
        end: u64,
        on_disk: &Option<OnDisk>,
    ) -> bool {
        let of = (self.space, blob.digest.clone());
        chunks.answers.retain(|answer| !answer.wishes.is_closed());
        if chunks.answers.iter().any(|answer| answer.brings(&of, run)) {
            return true;
        }
        if chunks.answers.len() >= self.source.long_answers() {
            return false;
        }
        let missing = self.missing(chunks, blob, run.start..end, on_disk);
        let end = missing.iter().fold(run.start, |end, next| if next.start == end { next.end } else { end });
        if end <= run.end {
            return false;
        }
        let (wishes, wished) = unbounded_channel();
        let rest = run.start..end;
        tokio::spawn(Arc::clone(self).give(blob.clone(), rest.clone(), wished));
        chunks.answers.push(Answer { of, rest, wishes });
        true
    }

    /// One answer: gives what is wished for, in its order. Whose wish is not answered asks for itself.
    async fn give(self: Arc<Self>, blob: Descriptor, chunks: Range<u64>, mut wished: UnboundedReceiver<Wish>) {
        let range = chunks.start * CHUNK..(chunks.end * CHUNK).min(blob.size);
        let mut body = Body { blob: &blob, bytes: self.source.stream(&blob, range), piece: Bytes::new() };
        while let Ok(Some(Wish { run, given })) = timeout(IDLE, wished.recv()).await {
            let memory = self.acquire(run_cost(&run)).await;
            let run_chunks = body.next((run.end * CHUNK).min(blob.size) - run.start * CHUNK).await;
            let goes_on = run_chunks.is_ok();
            let _ = given.send((run_chunks, memory));
            if !goes_on {
                return;
            }
        }
    }
}

struct Body<'a> {
    blob: &'a Descriptor,
    bytes: BoxStream<'a, Result<Bytes>>,
    /// Came, and is not given out yet.
    piece: Bytes,
}

impl Body<'_> {
    /// The next bytes, in chunks.
    async fn next(&mut self, length: u64) -> Result<Arc<[Bytes]>> {
        let mut left = length as usize;
        let mut chunks = Vec::with_capacity(left.div_ceil(CHUNK as usize));
        while left > 0 {
            let size = left.min(CHUNK as usize);
            let mut chunk = BytesMut::with_capacity(size);
            while chunk.len() < size {
                if self.piece.is_empty() {
                    let ended = || Error::new(ErrorKind::Protocol, &self.blob.digest, "the source gave too few bytes");
                    self.piece = self.bytes.next().await.unwrap_or_else(|| Err(ended()))?;
                }
                chunk.extend_from_slice(&self.piece.split_to(self.piece.len().min(size - chunk.len())));
            }
            chunks.push(chunk.freeze());
            left -= size;
        }
        Ok(chunks.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::future::BoxFuture;
    use futures_util::{FutureExt, stream};

    use super::*;
    use crate::blob::BlobSource;
    use crate::cache::ChunkCache;

    const MIB: u64 = 1 << 20;
    const MEMORY: u64 = 256 * MIB;

    /// Gives bytes that tell their place; streams break at `breaks_at`.
    struct Source {
        reads: Mutex<Vec<Range<u64>>>,
        streams: Mutex<Vec<Range<u64>>>,
        streamed: AtomicU64,
        breaks_at: u64,
    }

    fn bytes(range: Range<u64>) -> Bytes {
        range.map(|at| (at / 7 % 251) as u8).collect()
    }

    impl BlobSource for Source {
        fn read<'a>(&'a self, _: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
            self.reads.lock().unwrap().push(range.clone());
            std::future::ready(Ok(bytes(range))).boxed()
        }

        fn stream<'a>(&'a self, _: &'a Descriptor, range: Range<u64>) -> BoxStream<'a, Result<Bytes>> {
            self.streams.lock().unwrap().push(range.clone());
            let piece = move |at: u64| async move {
                let end = (at + 100_000).min(range.end);
                self.streamed.fetch_add(end - at, Ordering::Relaxed);
                let broken = || Err(Error::new(ErrorKind::TimedOut, "stream", "broken"));
                (at < end).then(|| (if end > self.breaks_at { broken() } else { Ok(bytes(at..end)) }, end))
            };
            stream::unfold(range.start, piece).boxed()
        }

        fn long_answers(&self) -> usize {
            1
        }
    }

    struct Small {
        source: Arc<Source>,
        cache: ChunkCache,
        blob: Descriptor,
    }

    impl Small {
        fn new(breaks_at: u64) -> Self {
            let (reads, streams, streamed) = Default::default();
            let source = Arc::new(Source { reads, streams, streamed, breaks_at });
            let blob = Descriptor {
                digest: Digest::sha256_of(b""),
                size: 100 * MIB + 1,
                media_type: String::new(),
                annotations: Default::default(),
            };
            Self { cache: ChunkCache::new(source.clone(), None, MEMORY), source, blob }
        }

        /// Reads a range in steps, with as much asked for ahead, and all of it in one answer.
        async fn read_on(&self, range: Range<u64>) -> Result<()> {
            for at in range.clone().step_by(MIB as usize) {
                let ahead = at..(at + 4 * MIB).min(range.end);
                self.cache.prefetch(&self.blob, ahead, Some((at + 64 * MIB).min(range.end)));
                let part = at..(at + MIB).min(range.end);
                assert_eq!(self.cache.read(&self.blob, part.clone()).await?, bytes(part));
            }
            Ok(())
        }

        fn streams(&self) -> Vec<(u64, u64)> {
            self.source.streams.lock().unwrap().iter().map(|range| (range.start, range.end)).collect()
        }

        fn reads(&self) -> Vec<(u64, u64)> {
            self.source.reads.lock().unwrap().iter().map(|range| (range.start, range.end)).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_on_and_on_comes_in_long_answers_up_to_what_is_here() {
        let small = Small::new(u64::MAX);
        small.cache.read(&small.blob, 80 * MIB + 1..80 * MIB + 2).await.unwrap();
        small.read_on(MIB..small.blob.size).await.unwrap();
        let here = (80 * MIB, 80 * MIB + CHUNK);
        assert_eq!(small.streams(), [(MIB, 65 * MIB), (65 * MIB, here.0), (here.1, small.blob.size)]);
        assert_eq!(small.reads(), [here]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_of_an_answer_is_taken_than_was_asked_for_and_then_it_is_given_up() {
        let small = Small::new(u64::MAX);
        small.read_on(0..2 * MIB).await.unwrap();
        small.cache.prefetch(&small.blob, 2 * MIB..3 * MIB, Some(50 * MIB));
        tokio::time::sleep(IDLE / 2).await;
        let streamed = || small.source.streamed.load(Ordering::Relaxed);
        assert!(streamed() < 3 * MIB + 200_000, "{}", streamed());
        let is_open = || small.cache.shared.chunks().answers.iter().any(|answer| !answer.wishes.is_closed());
        assert!(is_open());
        tokio::time::sleep(IDLE).await;
        assert!(!is_open());
        // It is not asked any more.
        small.read_on(3 * MIB..4 * MIB).await.unwrap();
        assert!(streamed() < 3 * MIB + 200_000, "{}", streamed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_many_requests_take_the_place_of_is_given_up() {
        let small = Small::new(u64::MAX);
        small.cache.prefetch(&small.blob, 0..MIB, Some(50 * MIB));
        small.cache.prefetch(&small.blob, MIB..2 * MIB, None);
        small.cache.read(&small.blob, 0..2 * MIB).await.unwrap();
        assert_eq!(small.reads(), [(MIB, 2 * MIB)]);
        assert!(small.cache.shared.chunks().answers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_until_there_is_memory() {
        let small = Small::new(u64::MAX);
        let all = small.cache.shared.acquire(MEMORY / 4).await;
        small.cache.prefetch(&small.blob, 0..MIB, Some(50 * MIB));
        tokio::time::sleep(IDLE * 10).await;
        assert_eq!(small.source.streamed.load(Ordering::Relaxed), 0);
        drop(all);
        small.read_on(0..50 * MIB).await.unwrap();
        assert!(small.reads().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_no_answer_does_not_line_up_for_memory_before_those_who_read_now() {
        let small = Small::new(u64::MAX);
        let all = small.cache.shared.acquire(MEMORY / 4).await;
        small.cache.prefetch(&small.blob, 0..MIB, Some(50 * MIB));
        for at in (60 * MIB..90 * MIB).step_by(MIB as usize) {
            small.cache.prefetch(&small.blob, at..at + MIB, Some(100 * MIB));
        }
        let now = 95 * MIB..95 * MIB + CHUNK;
        let (read, ()) = tokio::join!(small.cache.read(&small.blob, now.clone()), async {
            tokio::time::sleep(IDLE).await;
            drop(all);
        });
        assert_eq!(read.unwrap(), bytes(now.clone()));
        tokio::time::sleep(IDLE).await;
        assert_eq!(small.reads(), [(now.start, now.end)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_fails_is_one_error_and_the_rest_is_asked_for_anew() {
        let small = Small::new(10 * MIB);
        assert_eq!(small.read_on(0..50 * MIB).await.unwrap_err().kind, ErrorKind::TimedOut);
        tokio::time::sleep(IDLE).await;
        for at in (9 * MIB..13 * MIB).step_by(MIB as usize) {
            let part = at..at + MIB;
            assert_eq!(small.cache.read(&small.blob, part.clone()).await.unwrap(), bytes(part));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_answers_are_open_than_the_source_allows() {
        let small = Small::new(u64::MAX);
        small.cache.prefetch(&small.blob, 0..MIB, Some(50 * MIB));
        small.cache.prefetch(&small.blob, 70 * MIB..71 * MIB, Some(90 * MIB));
        small.cache.prefetch(&small.blob, MIB..2 * MIB, Some(50 * MIB));
        tokio::time::sleep(IDLE / 2).await;
        assert_eq!(small.streams(), [(0, 50 * MIB)]);
        assert_eq!(small.reads(), [(70 * MIB, 71 * MIB)]);
    }
}
