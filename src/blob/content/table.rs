//! Where decoding can start, for each byte of content.

use std::ops::Range;

use super::frames::FrameSize;
use super::limits::ContentLimits;
use super::side::Stored;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// First byte of content from here.
    pub content: u64,
    /// First byte of the blob that a decoder needs from here; of a piece: that a decoder from an earlier point does not
    /// need for what lies before.
    pub packed: u64,
    pub place: Place,
    /// Checksum of the blob's bytes up to the next point, as the pass has read them; 0: not known, or of a piece.
    pub sum: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A gzip member or a zstd frame starts.
    Start,
    /// Between two blocks of DEFLATE; see [`super::decode::Resume::Block`].
    Block { bits: u8, bit_buffer: u8, window: Stored },
    /// The content itself lies in the side file.
    Piece(Stored),
}

/// Points in rising order; the first is at byte 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub points: Vec<Point>,
    /// Bytes of content.
    pub content: u64,
    /// Bytes of the blob that make it.
    pub packed: u64,
}

/// From one point to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Number of the point in the table.
    pub point: usize,
    pub content_end: u64,
    pub packed_end: u64,
}

/// Bytes of content of a frame that may be decoded for a read of a part of it.
const LONGEST_FRAME: u32 = 8 << 20;

impl Table {
    /// `None`: a frame is too long, or there is too much of something.
    pub fn of_frames(frames: &[FrameSize], limits: &ContentLimits) -> Option<Self> {
        let mut table = Self { points: Vec::with_capacity(frames.len()), content: 0, packed: 0 };
        for frame in frames {
            if frame.content > LONGEST_FRAME || frame.packed > 2 * LONGEST_FRAME {
                return None;
            }
            table.points.push(Point { content: table.content, packed: table.packed, place: Place::Start, sum: 0 });
            table.content = table.content.checked_add(u64::from(frame.content))?;
            table.packed = table.packed.checked_add(u64::from(frame.packed))?;
        }
        (table.content <= limits.content_bytes && table.points.len() as u64 <= limits.points).then_some(table)
    }

    /// The segments that hold `range`, in order; none of them is empty.
    pub fn segments(&self, range: Range<u64>) -> impl Iterator<Item = Segment> {
        let first = self.points.partition_point(|point| point.content <= range.start).saturating_sub(1);
        (first..self.points.len())
            .take_while(move |&at| self.points.get(at).is_some_and(|point| point.content < range.end))
            .map(|at| self.segment(at))
            .filter(move |segment| self.points.get(segment.point).is_some_and(|p| p.content < segment.content_end))
    }

    pub fn segment(&self, point: usize) -> Segment {
        let next = self.points.get(point.saturating_add(1));
        Segment {
            point,
            content_end: next.map_or(self.content, |next| next.content),
            packed_end: next.map_or(self.packed, |next| next.packed),
        }
    }

    /// Whether the points are those of a blob of that size: they rise, and stay inside.
    pub fn is_plausible(&self, blob_size: u64) -> bool {
        let rises = self.points.is_sorted_by(|a, b| a.content <= b.content && a.packed <= b.packed);
        let first = self.points.first().is_some_and(|first| first.content == 0 && first.packed == 0);
        let last = self.points.last().is_some_and(|last| last.content <= self.content && last.packed <= self.packed);
        rises && first && last && self.packed <= blob_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_covered_without_gaps() {
        let point = |content, packed| Point { content, packed, place: Place::Start, sum: 0 };
        let table =
            Table { points: vec![point(0, 0), point(0, 0), point(10, 4), point(30, 9)], content: 40, packed: 12 };
        let covered = |range| table.segments(range).map(|s| (s.point, s.content_end, s.packed_end)).collect::<Vec<_>>();
        assert_eq!(covered(0..1), [(1, 10, 4)]);
        assert_eq!(covered(9..11), [(1, 10, 4), (2, 30, 9)]);
        assert_eq!(covered(10..30), [(2, 30, 9)]);
        assert_eq!(covered(39..40), [(3, 40, 12)]);
        assert_eq!(covered(5..40).len(), 3);
        assert!(table.is_plausible(12) && !table.is_plausible(11));
        let falling = Table { points: vec![point(0, 0), point(10, 9), point(30, 4)], ..table };
        assert!(!falling.is_plausible(12));
        assert_eq!(size_of::<Point>(), 48, "ContentLimits::points says so");
    }
}
