//! How many bytes a second may come, over all connections.

use std::sync::{Mutex, PoisonError};
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
}
