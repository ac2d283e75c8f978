//! Whether one long answer brings more than many requests: tried where requests cost more than the line.

use tokio::time::{Duration, Instant};

/// Bytes of a lap.
const LAP: u64 = 64 << 20;
/// What takes longer, at 1 Gbit/s and less, waits for the line.
const FAST: Duration = Duration::from_millis(500);
/// Laps after which it is tried again, and so many times more after each time that it brought less.
const REST: u32 = 4;

/// Of one stream.
#[derive(Default)]
pub struct Laps {
    /// When this lap began, and what had been read by then.
    began: Option<(Instant, u64)>,
    /// What the last lap of many requests took; one answer is tried instead.
    before: Option<Duration>,
    /// Laps until it is tried again, and how many that were the last time.
    rest: u32,
    rested: u32,
}

impl Laps {
    /// Whether what comes next is to come in one answer. `run`: bytes read in a row.
    pub fn in_one(&mut self, run: u64, now: Instant) -> bool {
        let (began, from) = *self.began.get_or_insert((now, run));
        let took = now.saturating_duration_since(began);
        let ends = run.saturating_sub(from) >= LAP;
        let part = run.saturating_sub(from).min(LAP) as f64 / LAP as f64;
        // It may be half as slow again in the long run, and pause for a lap's time.
        let is_slower = self.before.is_some_and(|before| took > before.mul_f64(1.0 + part / 2.0));
        if is_slower {
            self.rested = self.rested.saturating_mul(REST).max(REST);
            (self.before, self.rest) = (None, self.rested);
        } else if ends && self.before.is_some() {
            self.rested = 0;
        } else if ends {
            self.before = Some(took).filter(|took| self.rest == 0 && *took < FAST);
            self.rest = self.rest.saturating_sub(1);
        }
        if is_slower || ends {
            self.began = Some((now, run));
        }
        self.before.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In which of so many laps there was one answer, where a lap takes so many seconds: of many requests, and of one.
    fn tried(laps: u64, seconds: impl Fn(u64) -> (f64, f64)) -> Vec<u64> {
        let (mut all, mut now, mut in_one, mut tried) = (Laps::default(), Instant::now(), false, Vec::new());
        for step in 0..laps * 64 {
            let (many, one) = seconds(step / 64);
            now += Duration::from_secs_f64(if in_one { one } else { many } / 64.0);
            in_one = all.in_one(step << 20, now);
            if in_one && tried.last() != Some(&(step / 64)) {
                tried.push(step / 64);
            }
        }
        tried
    }

    #[test]
    fn one_answer_is_tried_where_requests_bound_and_more_and_more_rarely_where_it_is_slower() {
        assert_eq!(tried(20, |_| (0.1, 0.05)), (1..20).collect::<Vec<_>>());
        assert!(tried(20, |_| (0.6, 0.1)).is_empty(), "as slow as the line");
        let slower = tried(100, |_| (0.1, 0.8));
        assert!(slower.len() <= 4, "{slower:?}");
    }

    #[test]
    fn one_slow_lap_is_forgotten_after_a_good_one() {
        let slow = [10, 20, 30, 40, 50];
        let tried = tried(100, |lap| (0.1, if slow.contains(&lap) { 0.8 } else { 0.05 }));
        assert!(tried.len() > 70, "{tried:?}");
    }
}
