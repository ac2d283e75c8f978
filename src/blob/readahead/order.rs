//! Blobs that are read one behind the other: positions in all of them as if they were one.

use std::collections::HashMap;
use std::ops::Range;

use crate::oci::{Descriptor, Digest};

/// Positions count from the first byte of the first blob.
#[derive(Default)]
pub struct Order {
    /// Each with its first position.
    blobs: Vec<(u64, Descriptor)>,
    starts: HashMap<Digest, u64>,
    end: u64,
}

/// Where a blob lies.
pub struct Place {
    /// The blob's digest, if it is none of the order: it has positions of its own.
    pub alone: Option<Digest>,
    /// Positions of its first byte, and of its end.
    pub start: u64,
    pub end: u64,
    /// Where everything ends that a reader can go on to.
    pub last: u64,
}

impl Order {
    pub fn new(blobs: Vec<Descriptor>) -> Self {
        let mut order = Self::default();
        for blob in blobs {
            order.starts.insert(blob.digest.clone(), order.end);
            let start = order.end;
            order.end = start.saturating_add(blob.size);
            order.blobs.push((start, blob));
        }
        order
    }

    pub fn place(&self, blob: &Descriptor) -> Place {
        match self.starts.get(&blob.digest) {
            Some(&start) => Place { alone: None, start, end: start.saturating_add(blob.size), last: self.end },
            None => Place { alone: Some(blob.digest.clone()), start: 0, end: blob.size, last: blob.size },
        }
    }

    /// Ranges of blobs that make up positions from `blob`, which is at `place`, on.
    pub fn pieces(&self, place: &Place, blob: &Descriptor, range: Range<u64>) -> Vec<(Descriptor, Range<u64>)> {
        if place.alone.is_some() || range.end <= place.end && place.start <= range.start {
            return vec![(
                blob.clone(),
                range.start.saturating_sub(place.start)..range.end.saturating_sub(place.start),
            )];
        }
        let first = self.blobs.partition_point(|(start, blob)| start.saturating_add(blob.size) <= range.start);
        let touched = self.blobs.iter().skip(first).take_while(|(start, _)| *start < range.end);
        touched
            .map(|(start, blob)| {
                let end = range.end.saturating_sub(*start).min(blob.size);
                (blob.clone(), range.start.saturating_sub(*start)..end)
            })
            .collect()
    }
}
