//! How many bytes a second may come, and how many do, over all connections.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may come at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket that lets debts be made: what has come has come, and the next wait pays for it.
#[derive(Debug)]
pub(super) struct Bandwidth {
    /// Bytes a second.
    rate: u64,
    /// When all that has come is paid for.
    paid: Mutex<Instant>,
}

impl Bandwidth {
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), paid: Mutex::new(Instant::now()) }
    }

    /// Waits until the next piece may be read.
    pub async fn pass(&self, bytes: usize) {
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let paid = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *paid = (*paid).max(now.checked_sub(BURST).unwrap_or(now)) + cost;
            *paid
        };
        tokio::time::sleep_until(paid).await;
    }
}

/// How fast bytes come while requests are under way. What was measured counts half after each second of that.
#[derive(Default)]
pub(super) struct Pace(Mutex<Measured>);

#[derive(Default)]
struct Measured {
    under_way: usize,
    /// Up to when it was measured.
    until: Option<Instant>,
    bytes: f64,
    seconds: f64,
}

/// A request that bytes are awaited of, until it is dropped.
pub(super) struct Awaited<'a>(&'a Pace);

impl Pace {
    pub fn awaited(&self) -> Awaited<'_> {
        self.measure(0).under_way += 1;
        Awaited(self)
    }

    pub fn received(&self, bytes: usize) {
        drop(self.measure(bytes));
    }

    /// Bytes that come in this time; any number as long as nothing has come.
    pub fn bytes_in(&self, time: Duration) -> u64 {
        let measured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if measured.bytes == 0.0 {
            return u64::MAX;
        }
        (measured.bytes / measured.seconds.max(1e-3) * time.as_secs_f64()) as u64
    }

    fn measure(&self, bytes: usize) -> MutexGuard<'_, Measured> {
        let mut measured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = measured.until.replace(now).filter(|_| measured.under_way > 0);
        let passed = since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
        let left = 0.5_f64.powf(passed);
        measured.bytes = measured.bytes * left + bytes as f64;
        measured.seconds = measured.seconds * left + passed;
        measured
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.0.measure(0).under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_readers_together_get_the_rate_and_no_more() {
        let bandwidth = Bandwidth::new(1 << 20);
        let start = Instant::now();
        let reader = async || {
            for _ in 0..16 {
                bandwidth.pass(64 << 10).await;
            }
        };
        futures_util::future::join_all((0..10).map(|_| reader())).await;
        let elapsed = start.elapsed();
        assert!((Duration::from_millis(9_800)..Duration::from_millis(10_200)).contains(&elapsed), "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_pace_is_that_of_the_line_whatever_there_was_before_and_between() {
        let pace = Pace::default();
        let second = Duration::from_secs(1);
        assert_eq!(pace.bytes_in(second), u64::MAX);
        for (rate, requests) in [(100_000_000, 8), (32_000, 1), (125_000, 3), (4_000_000, 1)] {
            let awaited: Vec<_> = (0..requests).map(|_| pace.awaited()).collect();
            for _ in 0..400 {
                tokio::time::sleep(second / 10).await;
                pace.received(rate / 10);
            }
            drop(awaited);
            tokio::time::sleep(100 * second).await;
            let found = pace.bytes_in(second);
            assert!(found.abs_diff(rate as u64) < rate as u64 / 100, "{found} of {rate}");
        }
    }
}
