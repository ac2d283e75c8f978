//! How many requests are under way at once.
//!
//! Small ones wait for an answer, and more of them at once cost nothing. Long ones want the line: where one connection
//! fills it, more only take turns; where each is slow (object stores), many together are not. Which it is shows in what
//! arrives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Duration, Instant};

use crate::oci::Digest;

/// Bytes up to which a request is a small one: over a fast line it takes less time than its round trip. The headers
/// of several members that are fetched as one are such: as long ones, one at a time, they made the index of a tile six
/// times slower.
const SMALL: u64 = 512 << 10;
/// Long requests at once, before anything is known: enough where one connection has a fifth of the line.
const FIRST_WIDTH: usize = 12;
/// Fewer that bring this share of the bytes will do; more must bring so much more to be worth it.
const ENOUGH: f64 = 0.95;
const BETTER: f64 = 1.15;
/// Rounds after which it is tried again.
const ROUNDS: u32 = 16;
/// What was learnt is forgotten after this time without long requests.
const IDLE: Duration = Duration::from_secs(10);

pub(super) struct Connections {
    all: Arc<Semaphore>,
    /// Most of them for one blob: where its storage stalls, others go on.
    of_a_blob: usize,
    /// Of the blobs that are being read.
    blobs: Mutex<HashMap<Digest, Weak<OfBlob>>>,
    width: Arc<Mutex<Width>>,
}

struct OfBlob {
    all: Arc<Semaphore>,
    long: Arc<Semaphore>,
    /// Permits of `long`, given out or not.
    width: Mutex<usize>,
}

/// Leave to send a request, which ends when it is dropped.
pub(super) struct Leave {
    _blob: Arc<OfBlob>,
    long: Option<Long>,
    _own: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

struct Long {
    blob: Arc<OfBlob>,
    permit: Option<OwnedSemaphorePermit>,
    width: Arc<Mutex<Width>>,
    /// It was sent: whoever gives up while it waits for leave has measured nothing.
    begun: bool,
}

impl Connections {
    /// `all`: to the registry, at least 1.
    pub fn new(all: usize) -> Self {
        let of_a_blob = (all - 1).max(1);
        let width = Arc::new(Mutex::new(Width::new(of_a_blob)));
        Self { all: Arc::new(Semaphore::new(all)), of_a_blob, blobs: Mutex::default(), width }
    }

    pub fn are_all_used(&self) -> bool {
        self.all.available_permits() == 0
    }

    /// Waits for leave to send a request that is for no blob.
    pub async fn acquire_one(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.all).acquire_owned().await.ok()
    }

    /// Waits for leave to send a request for so many bytes.
    pub async fn acquire(&self, blob: &Digest, length: u64) -> Leave {
        let blob = self.of(blob);
        // The semaphores are never closed.
        let mut long = if length <= SMALL {
            None
        } else {
            let permit = Arc::clone(&blob.long).acquire_owned().await.ok();
            let width = Arc::clone(&self.width);
            Some(Long { blob: Arc::clone(&blob), permit, width, begun: false })
        };
        let own = Arc::clone(&blob.all).acquire_owned().await.ok();
        let all = self.acquire_one().await;
        if let Some(long) = &mut long {
            lock(&self.width).begins(Instant::now());
            long.begun = true;
        }
        Leave { _blob: blob, long, _own: own, _all: all }
    }

    fn of(&self, blob: &Digest) -> Arc<OfBlob> {
        let mut blobs = lock(&self.blobs);
        if let Some(known) = blobs.get(blob).and_then(Weak::upgrade) {
            return known;
        }
        blobs.retain(|_, of_blob| of_blob.strong_count() > 0);
        let width = lock(&self.width).now;
        let new = Arc::new(OfBlob {
            all: Arc::new(Semaphore::new(self.of_a_blob)),
            long: Arc::new(Semaphore::new(width)),
            width: Mutex::new(width),
        });
        blobs.insert(blob.clone(), Arc::downgrade(&new));
        new
    }
}

impl Leave {
    /// For a download that goes only as far as somebody reads: it says nothing of the line.
    pub fn for_a_download(self) -> Self {
        Self { long: None, ..self }
    }

    /// So many bytes have come.
    pub fn received(&self, bytes: usize) {
        if let Some(long) = &self.long {
            let mut width = lock(&long.width);
            width.bytes = width.bytes.saturating_add(bytes as u64);
        }
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        let mut width = lock(&self.width);
        if self.begun {
            width.ends(Instant::now());
        }
        let wanted = width.now;
        drop(width);
        let mut now = lock(&self.blob.width);
        if *now > wanted {
            *now -= 1;
            if let Some(permit) = self.permit.take() {
                permit.forget();
            }
        } else {
            self.blob.long.add_permits(wanted.saturating_sub(*now));
            *now = wanted;
        }
    }
}

/// Finds out how many long requests at once bring the most: fewer are tried first, and more if fewer were worse.
struct Width {
    now: usize,
    most: usize,
    /// What the width before this one brought, in bytes a second; `now` is tried instead.
    before: Option<(usize, f64)>,
    /// Rounds in which nothing is tried.
    rest: u32,
    under_way: usize,
    ended_last: Instant,
    /// Requests from before this round that have not ended.
    earlier: usize,
    /// Of this round.
    since: Instant,
    bytes: u64,
    ended: usize,
    /// Most at once.
    used: usize,
}

impl Width {
    fn new(most: usize) -> Self {
        Self {
            now: FIRST_WIDTH.min(most),
            most,
            before: None,
            rest: 1,
            under_way: 0,
            ended_last: Instant::now(),
            earlier: 0,
            since: Instant::now(),
            bytes: 0,
            ended: 0,
            used: 0,
        }
    }

    fn begins(&mut self, now: Instant) {
        let idle = now.saturating_duration_since(self.ended_last);
        if self.under_way == 0 && idle > IDLE {
            *self = Self::new(self.most);
        }
        // Where nobody asks for a while, the reader would be measured, not the line.
        if self.under_way == 0 && idle > self.ended_last.saturating_duration_since(self.since) / 10 {
            self.next_round(now);
            // From the first end on: before, the line fills.
            self.earlier = 1;
        }
        self.under_way += 1;
        self.used = self.used.max(self.under_way);
    }

    fn next_round(&mut self, now: Instant) {
        (self.since, self.bytes, self.ended, self.earlier, self.used) = (now, 0, 0, 0, self.under_way);
    }

    fn ends(&mut self, now: Instant) {
        self.under_way = self.under_way.saturating_sub(1);
        self.ended_last = now;
        // What was under way at another width says nothing of this one.
        if self.earlier > 0 {
            let earlier = self.earlier - 1;
            self.next_round(now);
            self.earlier = earlier;
            return;
        }
        self.ended += 1;
        if self.ended < self.used * 2 {
            return;
        }
        let rate = self.bytes as f64 / now.saturating_duration_since(self.since).as_secs_f64().max(1e-6);
        let (width, used) = (self.now, self.used);
        self.next_round(now);
        self.judge(rate, used);
        if self.now != width {
            self.earlier = self.under_way;
        }
    }

    /// At the end of a round, in which so many were used: a single reader may want fewer than there may be.
    fn judge(&mut self, rate: f64, used: usize) {
        self.rest = self.rest.saturating_sub(1);
        let Some((width, before)) = self.before.take() else {
            // One after the other, they say nothing of several at once.
            if used == 1 && self.now > 1 {
                self.rest = self.rest.max(1);
            } else if self.rest == 0 {
                self.try_instead(if self.now == 1 { 2 } else { self.now.min(used) / 2 }, rate);
            }
            return;
        };
        if self.now > width && used <= width {
            // More are not wanted.
            (self.now, self.rest) = (width, ROUNDS);
        } else if self.now < width && rate >= before * ENOUGH || self.now > width && rate >= before * BETTER {
            // Further in this direction.
            let next = if self.now < width { (self.now / 2).max(1) } else { self.now * 2 };
            // Of the best, so that small losses do not add up.
            self.try_instead(next, rate.max(before));
        } else {
            let was_fewer = self.now < width;
            self.now = width;
            if was_fewer && self.rest == 0 {
                self.try_instead(width * 2, before);
            } else {
                self.rest = ROUNDS;
            }
        }
    }

    fn try_instead(&mut self, width: usize, rate: f64) {
        let width = width.min(self.most);
        if width == self.now {
            self.rest = ROUNDS;
            return;
        }
        self.before = Some((self.now, rate));
        self.now = width;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt, stream};

    use super::*;

    #[tokio::test]
    async fn a_blob_whose_requests_hang_leaves_room_for_others() {
        let connections = Connections::new(16);
        let (stalled, other) = (Digest::sha256_of(b"stalled"), Digest::sha256_of(b"other"));
        let mut held = Vec::new();
        for _ in 0..15 {
            held.push(connections.acquire(&stalled, 1).now_or_never().expect("room"));
        }
        assert!(connections.acquire(&stalled, 1).now_or_never().is_none());
        drop(connections.acquire(&other, SMALL + 1).now_or_never().expect("room for others"));
        held.pop();
        assert!(connections.acquire(&stalled, 1).now_or_never().is_some());
        drop(held);
        connections.acquire(&other, 1).await;
        assert_eq!(connections.blobs.lock().unwrap().len(), 1, "blobs nobody reads are forgotten");
    }

    /// Long requests of a reader that wants so many at once, after another that wanted one after the other, over a line
    /// of 125 MB/s, each connection with so many bytes a second and a round trip. Gives how many there are at once most
    /// of the time, and the seconds.
    async fn at_once_mostly(wanted: usize, connection: f64, round_trip: Duration) -> (usize, f64) {
        let connections = Connections::new(33);
        let blob = Digest::sha256_of(b"");
        let line = Mutex::new(Instant::now());
        let widths = Mutex::new(Vec::new());
        let request = async |_| {
            let leave = connections.acquire(&blob, 1 << 20).await;
            let first = Instant::now() + round_trip;
            let takes = |rate: f64| Duration::from_secs_f64(f64::from(1 << 20) / rate);
            let on_line = {
                let mut line = line.lock().unwrap();
                *line = first.max(*line) + takes(125e6);
                *line
            };
            tokio::time::sleep_until(on_line.max(first + takes(connection))).await;
            lock(&widths).push(lock(&connections.width).now.min(wanted));
            leave.received(1 << 20);
        };
        for number in 0..9 {
            request(number).await;
        }
        let start = Instant::now();
        stream::iter(0..2000).map(request).buffer_unordered(wanted).count().await;
        let mut widths = lock(&widths).split_off(200);
        widths.sort_unstable();
        (widths[widths.len() / 2], start.elapsed().as_secs_f64())
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_requests_as_fill_the_line_and_hardly_more() {
        let line = 2000.0 * f64::from(1 << 20) / 125e6;
        for (readers, connection, round_trip, wanted) in [
            (40, 1e9, 1, 1..=3),
            (40, 1e9, 20, 3..=6),
            (40, 25e6, 20, 6..=12),
            (40, 12.5e6, 20, 12..=24),
            (40, 5e6, 20, 24..=32),
            // One reader in a row, and what is fetched ahead of it.
            (8, 1e9, 1, 1..=3),
            (8, 1e9, 20, 3..=5),
            (8, 25e6, 20, 7..=8),
            (8, 5e6, 20, 8..=8),
        ] {
            let (width, seconds) = at_once_mostly(readers, connection, Duration::from_millis(round_trip)).await;
            println!("{readers} {connection:.0} {round_trip} ms: {width}, {:.2}", seconds / line);
            assert!(wanted.contains(&width), "{width} of {readers} at {connection} and {round_trip} ms");
            assert!(seconds < 1.25 * line || connection == 5e6, "{seconds}");
        }
    }

    #[tokio::test]
    async fn requests_that_are_given_up_say_nothing_of_the_line() {
        let connections = Connections::new(2);
        let blob = Digest::sha256_of(b"");
        let held = connections.acquire(&blob, SMALL + 1).await;
        assert!(connections.acquire(&blob, SMALL + 1).now_or_never().is_none());
        drop(connections.acquire(&Digest::sha256_of(b"other"), SMALL + 1).await);
        let width = lock(&connections.width);
        assert_eq!((width.under_way, width.ended, width.bytes), (1, 0, 0));
        drop((width, held));
        assert_eq!(lock(&connections.width).under_way, 0);
        assert!(connections.acquire(&blob, SMALL + 1).now_or_never().is_some(), "its place is free again");
    }
}
