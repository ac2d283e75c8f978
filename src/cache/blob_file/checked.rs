//! Which chunks of a blob need not be checked again.

use std::ops::Range;

/// Chunks whose checksum this process has seen to hold in one generation.
#[derive(Default)]
pub struct Checked {
    generation: u64,
    /// A bit for each chunk.
    bits: Vec<u64>,
}

impl Checked {
    fn begin(&mut self, generation: u64) {
        if generation > self.generation {
            (self.generation, self.bits) = (generation, Vec::new());
        }
    }

    /// Whether all of them were seen to hold, in this generation.
    pub fn holds(&mut self, generation: u64, chunks: &Range<u64>) -> bool {
        self.begin(generation);
        let bit = |chunk: u64| self.bits.get((chunk / 64) as usize).is_some_and(|word| word >> (chunk % 64) & 1 == 1);
        generation.is_multiple_of(2) && generation == self.generation && chunks.clone().all(bit)
    }

    pub fn note(&mut self, generation: u64, chunks: &Range<u64>) {
        self.begin(generation);
        if self.generation != generation || generation % 2 == 1 {
            return;
        }
        for chunk in chunks.clone() {
            let place = (chunk / 64) as usize;
            if self.bits.len() <= place {
                self.bits.resize(place + 1, 0);
            }
            if let Some(word) = self.bits.get_mut(place) {
                *word |= 1 << (chunk % 64);
            }
        }
    }
}
