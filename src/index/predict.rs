//! Members recur: after a few of them, the names without their digits tell which member comes next and how long it is.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

use super::member::Member;
use super::scan::TAIL;

/// Headers expected at once: at first, more of them in a large archive (one for so many bytes), at most, and after
/// misses. The first of them is where the last member ends.
const FIRST_AHEAD: usize = 16;
const LARGEST_FIRST_AHEAD: usize = 64;
const BYTES_A_HEADER: u64 = 256 << 20;
const FEWEST_AHEAD: usize = 2;
const MOST_AHEAD: usize = 512;
/// Patterns remembered; an archive with more is not one whose members recur.
const MOST_PATTERNS: usize = 4096;
/// A pattern whose length has changed this often of late is not relied on.
const UNSTEADY: u8 = 3;

/// A name without its digits, hashed. The start of the archive is the pattern before the first.
type Pattern = u64;
const START: Pattern = 0;

/// What the members of one archive let one expect of the next, or of its sibling.
#[derive(Debug, Clone, Default)]
pub struct Habits(HashMap<Pattern, Habit>);

#[derive(Debug, Clone, Copy)]
struct Habit {
    /// Bytes from its first header to its data.
    header: u64,
    /// Bytes from its first header to the next member's.
    stride: u64,
    next: Next,
    changes: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Unknown,
    Member(Pattern),
    End,
}

#[derive(Debug)]
struct Expected {
    header: Range<u64>,
    guessed: bool,
}

/// Expects headers; what it expects is fetched, never believed.
#[derive(Debug)]
pub struct Predictor {
    habits: Habits,
    /// The member seen last.
    last: Pattern,
    /// Where headers are expected, in order.
    expected: VecDeque<Expected>,
    /// The member before the next one to expect, and where that one is due.
    tip: Option<(Pattern, u64)>,
    /// Whether the tip's place is a guess, not the end of a member that was seen.
    guessing: bool,
    ahead: usize,
    hits: usize,
    blob_size: u64,
}

impl Predictor {
    pub fn new(blob_size: u64, habits: Habits) -> Self {
        let first = usize::try_from(blob_size / BYTES_A_HEADER).unwrap_or(LARGEST_FIRST_AHEAD);
        let first = first.clamp(FIRST_AHEAD, LARGEST_FIRST_AHEAD);
        let ahead = if habits.0.is_empty() { first } else { MOST_AHEAD };
        let tip = Some((START, 0));
        Self { habits, last: START, expected: VecDeque::new(), tip, guessing: false, ahead, hits: 0, blob_size }
    }

    /// Says whether the member was where one had been guessed.
    pub fn saw(&mut self, member: &Member) -> bool {
        let pattern = pattern(&member.path);
        let expected = self.expected.pop_front();
        let right = expected.as_ref().is_some_and(|expected| expected.header.start == member.header);
        let hit = right && expected.as_ref().is_some_and(|expected| expected.guessed);
        if hit {
            self.hits = self.hits.saturating_add(1);
            if self.hits >= self.ahead {
                (self.ahead, self.hits) = (self.ahead.saturating_mul(2).min(MOST_AHEAD), 0);
            }
        } else if expected.is_some() && !right {
            (self.ahead, self.hits) = ((self.ahead / 2).max(FEWEST_AHEAD), 0);
            self.expected.clear();
        }
        self.habits.learn(self.last, pattern, member);
        self.last = pattern;
        if self.expected.is_empty() {
            (self.tip, self.guessing) = (Some((pattern, member.next)), false);
        }
        hit
    }

    pub fn saw_end(&mut self) {
        self.habits.set_next(self.last, Next::End);
    }

    /// Where the next headers are expected, in order.
    pub fn expected(&mut self) -> impl Iterator<Item = &Range<u64>> {
        self.expect();
        self.expected.iter().map(|expected| &expected.header)
    }

    /// Whether anything is guessed beyond the end of the last member.
    pub fn is_guessing(&mut self) -> bool {
        self.expect();
        self.expected.iter().any(|expected| expected.guessed)
    }

    fn expect(&mut self) {
        while self.expected.len() < self.ahead {
            let Some((pattern, at)) = self.tip.filter(|(_, at)| *at < self.blob_size) else { break };
            let next = self.habits.0.get(&pattern).map_or(Next::Unknown, |habit| habit.next);
            let length = match next {
                Next::Unknown => break,
                Next::End => {
                    self.tip = None;
                    TAIL
                }
                Next::Member(next) => {
                    let Some(habit) = self.habits.0.get(&next) else { break };
                    let steady = habit.changes < UNSTEADY && habit.stride > 0;
                    self.tip = steady.then(|| (next, at.saturating_add(habit.stride)));
                    habit.header
                }
            };
            let rest = self.blob_size.saturating_sub(at);
            // What may be the archive's end is seen in one look.
            let header = at..at.saturating_add(if rest <= TAIL { rest } else { length.min(rest) });
            self.expected.push_back(Expected { header, guessed: self.guessing });
            self.guessing = true;
        }
    }

    pub fn into_habits(self) -> Habits {
        self.habits
    }
}

impl Habits {
    fn learn(&mut self, last: Pattern, pattern: Pattern, member: &Member) {
        self.set_next(last, Next::Member(pattern));
        let header = member.data.start.saturating_sub(member.header);
        let stride = member.next.saturating_sub(member.header);
        if let Some(habit) = self.get(pattern) {
            habit.changes = match habit.stride == stride {
                true => habit.changes.saturating_sub(1),
                false => habit.changes.saturating_add(1).min(UNSTEADY.saturating_mul(2)),
            };
            (habit.header, habit.stride) = (header.max(1), stride);
        }
    }

    fn set_next(&mut self, pattern: Pattern, next: Next) {
        if let Some(habit) = self.get(pattern) {
            habit.next = next;
        }
    }

    fn get(&mut self, pattern: Pattern) -> Option<&mut Habit> {
        if self.0.len() >= MOST_PATTERNS && !self.0.contains_key(&pattern) {
            return None;
        }
        Some(self.0.entry(pattern).or_insert(Habit { header: 1, stride: 0, next: Next::Unknown, changes: 0 }))
    }
}

/// Runs of digits count as one: patch 9999 and patch 10000 are alike.
fn pattern(name: &[u8]) -> Pattern {
    let mut hasher = DefaultHasher::new();
    let mut in_number = false;
    for &byte in name {
        if !byte.is_ascii_digit() {
            hasher.write_u8(byte);
        } else if !in_number {
            hasher.write_u8(b'0');
        }
        in_number = byte.is_ascii_digit();
    }
    hasher.finish().max(START.saturating_add(1))
}
