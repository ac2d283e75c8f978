//! An index that somebody else has made is a claim: what proves it, and what is left of it when it was wrong.

use super::layer::{Dirent, EntryId, LayerIndex, Node, SPARSE, Segment, Span};
use super::member::{Kind, Member, MemberKind};
use super::path::parts;
use super::scan::BLOCK;

/// Where the headers of each file begin, by an index: behind the data of the file before it.
#[derive(Debug)]
pub struct Headers(Vec<u64>);

impl Headers {
    pub fn of(index: &LayerIndex) -> Self {
        let ends = index.numbers().filter_map(|id| index.data_of(id)).map(|(_, end)| end);
        let mut ends: Vec<u64> = ends.filter_map(|end| end.checked_next_multiple_of(BLOCK)).collect();
        ends.sort_unstable();
        ends.dedup();
        Self(ends)
    }

    /// Of the file whose data begins at this byte of the blob: a scanner that starts there comes to its member.
    pub fn before(&self, data: u64) -> u64 {
        let passed = self.0.partition_point(|end| *end < data);
        passed.checked_sub(1).and_then(|at| self.0.get(at)).copied().unwrap_or(0)
    }
}

/// An index whose entries have the numbers that another gave them, as far as they are the same.
#[derive(Debug)]
pub struct Renumbered {
    pub index: LayerIndex,
    /// Directories and names in them that stand for something else now, or for nothing.
    pub changed: Vec<(EntryId, Vec<u8>)>,
}

impl LayerIndex {
    /// Where a file's data begins, if a member's header can tell that it is this file's: it has one name. A name more
    /// is a hard link, which may be anywhere.
    pub fn provable(&self, id: EntryId) -> Option<u64> {
        let entry = self.entry(id).filter(|entry| entry.kind == Kind::File && entry.nlink == 1)?;
        let (start, end) = self.data_of(id)?;
        (entry.size == 0 || start < end).then_some(start)
    }

    /// Whether this member is what the index has at this entry: path, kind, size, and where its data lies.
    pub fn is_of(&self, id: EntryId, member: &Member) -> bool {
        let Some(entry) = self.entry(id) else { return false };
        let named = parts(&member.path).try_fold(Self::ROOT, |at, part| self.lookup(at, part)) == Some(id);
        let is_sparse = self.nodes.get(id.0 as usize).is_some_and(|node| node.flags & SPARSE != 0);
        let placed = match &member.sparse {
            Some(extents) => is_sparse && extents == self.extents_of(id),
            None => !is_sparse && self.data_of(id) == Some((member.data.start, member.data.end)),
        };
        named && placed && member.kind == MemberKind::Entry(entry.kind) && member.size == entry.size
    }

    /// This index with the numbers of `shown`, for those who know entries by them: what is not the same has another
    /// number, and the old one is nobody's ([`Self::entry`] is `None`).
    pub fn renumbered(mut self, shown: &Self) -> Renumbered {
        let shown_len = u32::try_from(shown.len()).unwrap_or(u32::MAX);
        let mut next = shown_len;
        let mut numbers: Vec<Option<u32>> = vec![None; self.len()];
        let mut taken = vec![false; shown.len()];
        // From the root down: directories have smaller numbers than those in them only in a stored index.
        let mut waiting = vec![(Self::ROOT, Some(Self::ROOT))];
        let mut changed = Vec::new();
        assign(&mut numbers, &mut taken, Self::ROOT, Self::ROOT.0);
        while let Some((directory, was)) = waiting.pop() {
            for child in self.children(directory) {
                let name = self.name_of(child);
                let old = was.and_then(|was| shown.lookup(was, name));
                let same = old.filter(|old| self.is_like(child.entry(), shown, *old));
                let known = numbers.get(child.entry().0 as usize).copied().flatten();
                let free = same.filter(|same| known.is_none() && taken.get(same.0 as usize) == Some(&false));
                let number = known.or(free.map(|same| same.0)).unwrap_or_else(|| {
                    next = next.saturating_add(1);
                    next.saturating_sub(1)
                });
                assign(&mut numbers, &mut taken, child.entry(), number);
                let kept = old.is_some_and(|old| old.0 == number);
                if !kept && let Some(was) = was {
                    changed.push((was, name.to_vec()));
                }
                if self.entry(child.entry()).is_some_and(|entry| entry.kind == Kind::Directory) {
                    waiting.push((child.entry(), old.filter(|_| kept)));
                }
            }
        }
        for directory in shown.numbers().filter(|id| taken.get(id.0 as usize) == Some(&true)) {
            let gone =
                shown.children(directory).iter().filter(|child| taken.get(child.entry().0 as usize) == Some(&false));
            changed.extend(gone.map(|child| (directory, shown.name_of(child).to_vec())));
        }
        changed.sort();
        changed.dedup();
        let number = |old: u32| numbers.get(old as usize).copied().flatten().unwrap_or(u32::MAX);
        let mut nodes = vec![NOBODY; next as usize];
        for (old, node) in (0u32..).zip(&mut self.nodes) {
            if node.kind == Kind::Directory {
                node.extent = u64::from(number(u32::try_from(node.extent).unwrap_or(0)));
            }
            if let Some(place) = nodes.get_mut(number(old) as usize) {
                *place = *node;
            }
        }
        self.nodes = nodes;
        for Dirent { parent, entry, .. } in &mut self.dirents {
            (*parent, *entry) = (number(*parent), number(*entry));
        }
        for spans in [&mut self.extent_spans, &mut self.xattr_spans] {
            spans.iter_mut().for_each(|span: &mut Span| span.entry = number(span.entry));
            spans.sort_unstable_by_key(|span| span.entry);
        }
        Renumbered { index: self, changed }
    }

    fn numbers(&self) -> impl Iterator<Item = EntryId> + use<> {
        (0..u32::try_from(self.len()).unwrap_or(u32::MAX)).map(EntryId)
    }

    /// First and last byte of the blob that a file's data takes, half-open.
    fn data_of(&self, id: EntryId) -> Option<(u64, u64)> {
        let node = self.nodes.get(id.0 as usize).filter(|node| node.kind == Kind::File)?;
        if node.flags & SPARSE == 0 {
            return Some((node.place, node.place.saturating_add(node.extent)));
        }
        let mut ranges = self.segments(id, 0..u64::MAX).filter_map(|segment| match segment {
            Segment::Data(range) => Some(range),
            Segment::Hole(_) => None,
        });
        let first = ranges.next()?;
        let end = ranges.last().map_or(first.end, |last| last.end);
        Some((first.start, end))
    }

    /// Whether those who know the attributes of the other need not learn anything.
    fn is_like(&self, id: EntryId, other: &Self, its: EntryId) -> bool {
        let shown = |index: &Self, id| index.entry(id).map(|entry| (entry.kind, entry.size, entry.rdev));
        shown(self, id) == shown(other, its)
    }
}

/// Flag of a number that is nobody's.
pub(super) const GONE: u8 = 4;

const NOBODY: Node = Node {
    place: 0,
    extent: 0,
    secs: 0,
    nanos: 0,
    uid: 0,
    gid: 0,
    links: 0,
    children: 0,
    mode: 0,
    kind: Kind::File,
    flags: GONE,
};

fn assign(numbers: &mut [Option<u32>], taken: &mut [bool], id: EntryId, number: u32) {
    if let Some(slot) = numbers.get_mut(id.0 as usize) {
        *slot = Some(number);
    }
    if let Some(taken) = taken.get_mut(number as usize) {
        *taken = true;
    }
}
