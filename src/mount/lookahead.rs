//! A walk over the tree (`find`, a file browser, a training loop) opens one layer after the other: from the second in a row on,
//! the next ones are indexed before they are asked for, twice as many each time. A stray look starts nothing.

use std::ops::Range;

/// Layers indexed ahead, at most.
const MOST: usize = 64;

/// Places are those of the layers in the order of the tree.
#[derive(Debug, Default)]
pub struct LookAhead {
    last: Option<usize>,
    in_a_row: u32,
    /// Up to here layers are being indexed ahead.
    until: usize,
}

impl LookAhead {
    /// Takes note of the first look into a layer, and says which to index now.
    pub fn note(&mut self, place: usize, layers: usize) -> Range<usize> {
        let next = place.saturating_add(1);
        if self.last.is_some_and(|last| last.saturating_add(1) == place) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            (self.in_a_row, self.until) = (0, next);
        }
        self.last = Some(place);
        if self.in_a_row == 0 {
            return next..next;
        }
        let ahead = 1_usize.checked_shl(self.in_a_row).unwrap_or(MOST).min(MOST);
        let start = self.until.max(next);
        self.until = next.saturating_add(ahead).min(layers).max(start);
        start..self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_run_ahead_of_and_a_stray_look_is_not() {
        let mut ahead = LookAhead::default();
        assert!(ahead.note(7, 100).is_empty());
        assert!(ahead.note(3, 100).is_empty());
        assert_eq!(ahead.note(4, 100), 5..7);
        assert_eq!(ahead.note(5, 100), 7..10);
        assert_eq!(ahead.note(6, 100), 10..15);
        let mut until = 15;
        for place in 7..100 {
            let range = ahead.note(place, 100);
            assert_eq!(range.start.min(100), until, "none twice, none left out");
            assert!(range.len() <= MOST + 1);
            until = range.end;
        }
        assert_eq!(until, 100);
        assert!(ahead.note(0, 100).is_empty());
    }
}
