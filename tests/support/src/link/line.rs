//! A line that carries so many bits a second.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A line that was idle may catch up this much: timers wake late, and the mean rate must be right all the same.
const SLACK: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Line {
    bits_per_second: u64,
    free_at: Mutex<Option<Instant>>,
}

impl Line {
    pub fn new(bits_per_second: u64) -> Self {
        assert!(bits_per_second > 0, "a line that carries nothing");
        Self { bits_per_second, free_at: Mutex::new(None) }
    }

    /// Takes the line for that many bytes, behind everything taken before; when the last of them is through.
    pub fn take(&self, now: Instant, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock().expect("nothing panics with a line in hand");
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        let start = free_at.map_or(now, |free_at| free_at.max(earliest));
        let nanoseconds = u128::from(bytes as u64) * 8 * 1_000_000_000 / u128::from(self.bits_per_second);
        let through = start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        *free_at = Some(through);
        through
    }

    pub fn bits_per_second(&self) -> u64 {
        self.bits_per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_one_after_the_other_and_forgets_idle_time() {
        let line = Line::new(8_000_000);
        let start = Instant::now();
        let millisecond = Duration::from_millis(1);
        assert_eq!(line.take(start, 1000), start + millisecond);
        assert_eq!(line.take(start, 2000), start + 3 * millisecond);
        // Woken 0.5 ms late: made up for.
        let late = start + 3 * millisecond + millisecond / 2;
        assert_eq!(line.take(late, 1000), start + 4 * millisecond);
        // Idle for long: only the slack.
        let later = start + 1000 * millisecond;
        assert_eq!(line.take(later, 1000), later - SLACK + millisecond);
    }
}
