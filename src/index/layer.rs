//! The tree of a layer, read-only and compact: 48 bytes an entry, 16 bytes and the name itself a name.

use std::ops::Range;

use super::claim::GONE;
use super::member::{Kind, Mtime, SparseExtent};

/// Number of an entry within its layer, from 0 (the layer's directory) to `len() - 1`, the same for the same archive.
/// Hard links to one entry share its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub u32);

/// What `stat` tells of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// 12 bits, as the archive has them.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    /// Bytes: of a file its length, of a symbolic link that of its target, else 0.
    pub size: u64,
    /// Bytes that hold data: less than `size` where a file has holes.
    pub allocated: u64,
    /// Device number as the kernel encodes it for `stat`.
    pub rdev: u32,
    /// Names of it; of a directory 2 and its subdirectories, as on ext4.
    pub nlink: u32,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirent {
    pub(super) parent: u32,
    pub(super) name_at: u32,
    pub(super) entry: u32,
    pub(super) name_len: u16,
}

impl Dirent {
    pub fn entry(&self) -> EntryId {
        EntryId(self.entry)
    }
}

/// A piece of a file's range: bytes of the blob, or zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Half-open range of the blob.
    Data(Range<u64>),
    /// So many zero bytes.
    Hole(u64),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    /// File: byte of the blob where its data starts. Link: where its target starts in `text`. Directory: first of its
    /// dirents. Device: its number.
    pub place: u64,
    /// File and link: length. Directory: its parent. Names below it until the tree is finished: see `build.rs`.
    pub extent: u64,
    pub secs: i64,
    pub nanos: u32,
    pub uid: u32,
    pub gid: u32,
    /// Names of it. Directory: subdirectories.
    pub links: u32,
    /// Directory: names in it.
    pub children: u32,
    pub mode: u16,
    pub kind: Kind,
    pub flags: u8,
}

pub(super) const SPARSE: u8 = 1;
pub(super) const XATTRS: u8 = 2;

/// Where an entry's rare things lie in their side table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub entry: u32,
    pub start: u32,
    pub count: u32,
}

/// Name and value lie one behind the other in `text`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Xattr {
    pub at: u32,
    pub name_len: u32,
    pub value_len: u32,
}

/// What [`super::LayerIndexBuilder`] made of a layer's members.
#[derive(Debug, Clone, Default)]
pub struct LayerIndex {
    pub(super) nodes: Vec<Node>,
    /// Sorted by directory, then by name.
    pub(super) dirents: Vec<Dirent>,
    /// Names, link targets and extended attributes.
    pub(super) text: Vec<u8>,
    pub(super) extents: Vec<SparseExtent>,
    /// Sorted by entry, as the next.
    pub(super) extent_spans: Vec<Span>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) xattr_spans: Vec<Span>,
    pub(super) warnings: Vec<String>,
    pub(super) trailing: bool,
}

impl LayerIndex {
    /// The layer's own directory; always there.
    pub const ROOT: EntryId = EntryId(0);

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() <= 1
    }

    /// `None`: the number is nobody's; see also [`Self::renumbered`].
    pub fn entry(&self, id: EntryId) -> Option<Entry> {
        let node = self.node(id)?;
        let size = match node.kind {
            Kind::File | Kind::Symlink => node.extent,
            _ => 0,
        };
        let is_device = matches!(node.kind, Kind::CharDevice | Kind::BlockDevice);
        Some(Entry {
            kind: node.kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: Mtime { secs: node.secs, nanos: node.nanos },
            size,
            allocated: match node.kind {
                Kind::File if node.flags & SPARSE != 0 => {
                    self.extents_of(id).iter().fold(0, |sum, extent| sum.saturating_add(extent.length))
                }
                Kind::File => size,
                _ => 0,
            },
            rdev: if is_device { u32::try_from(node.place).unwrap_or(0) } else { 0 },
            nlink: match node.kind {
                Kind::Directory => node.links.saturating_add(2),
                _ => node.links,
            },
        })
    }

    /// In logarithmic time. `.` and `..` are not looked up: see [`Self::parent`].
    pub fn lookup(&self, directory: EntryId, name: &[u8]) -> Option<EntryId> {
        let children = self.children(directory);
        let at = children.binary_search_by(|child| self.name_of(child).cmp(name)).ok()?;
        children.get(at).map(Dirent::entry)
    }

    /// Sorted by name; empty for all but directories. A position in it is a stable offset for readdir.
    pub fn children(&self, directory: EntryId) -> &[Dirent] {
        let Some(node) = self.node(directory).filter(|node| node.kind == Kind::Directory) else {
            return &[];
        };
        span(&self.dirents, node.place, node.children)
    }

    pub fn name_of(&self, dirent: &Dirent) -> &[u8] {
        span(&self.text, u64::from(dirent.name_at), u32::from(dirent.name_len))
    }

    /// Of a directory; the root's is the root, as is that of anything else, which may have several.
    pub fn parent(&self, directory: EntryId) -> EntryId {
        match self.node(directory) {
            Some(node) if node.kind == Kind::Directory => EntryId(u32::try_from(node.extent).unwrap_or(0)),
            _ => Self::ROOT,
        }
    }

    /// As the archive has it; empty for all but symbolic links.
    pub fn link_target(&self, id: EntryId) -> &[u8] {
        match self.node(id) {
            Some(node) if node.kind == Kind::Symlink => {
                span(&self.text, node.place, u32::try_from(node.extent).unwrap_or(0))
            }
            _ => &[],
        }
    }

    /// Names and values, in the order of the archive.
    pub fn xattrs(&self, id: EntryId) -> impl Iterator<Item = (&[u8], &[u8])> {
        let has_some = self.node(id).is_some_and(|node| node.flags & XATTRS != 0);
        let found = if has_some { side(&self.xattr_spans, &self.xattrs, id) } else { &[] };
        found.iter().map(|xattr| {
            let value_at = u64::from(xattr.at).saturating_add(u64::from(xattr.name_len));
            (span(&self.text, u64::from(xattr.at), xattr.name_len), span(&self.text, value_at, xattr.value_len))
        })
    }

    /// Where the bytes of a file's range lie, in order and without a gap, clipped to the file's size.
    pub fn segments(&self, id: EntryId, range: Range<u64>) -> Segments<'_> {
        let file = self.node(id).filter(|node| node.kind == Kind::File);
        let size = file.map_or(0, |node| node.extent);
        let pos = range.start.min(size);
        let plain = file.filter(|node| node.flags & SPARSE == 0).map(|node| node.place);
        let extents = if plain.is_some() { &[] } else { self.extents_of(id) };
        let passed = extents.partition_point(|extent| extent.offset.saturating_add(extent.length) <= pos);
        Segments {
            plain,
            extents: extents.get(passed..).unwrap_or_default().iter(),
            next: None,
            pos,
            end: range.end.min(size),
        }
    }

    /// What was changed or left out to place the members safely; bounded by [`super::Limits::warnings`] and one more
    /// line.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Bytes follow the end of the archive and are not indexed: see [`super::Step::End`].
    pub fn trailing(&self) -> bool {
        self.trailing
    }

    pub fn with_trailing(self, trailing: bool) -> Self {
        Self { trailing, ..self }
    }

    /// Bytes that the index takes.
    pub fn memory(&self) -> u64 {
        let warnings = self
            .warnings
            .iter()
            .fold(bytes_of(&self.warnings), |sum, warning| sum.saturating_add(warning.capacity() as u64));
        [
            bytes_of(&self.nodes),
            bytes_of(&self.dirents),
            bytes_of(&self.text),
            bytes_of(&self.extents),
            bytes_of(&self.extent_spans),
            bytes_of(&self.xattrs),
            bytes_of(&self.xattr_spans),
        ]
        .iter()
        .fold(warnings, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn node(&self, id: EntryId) -> Option<&Node> {
        self.nodes.get(id.0 as usize).filter(|node| node.flags & GONE == 0)
    }

    pub(super) fn extents_of(&self, id: EntryId) -> &[SparseExtent] {
        side(&self.extent_spans, &self.extents, id)
    }

    pub(super) fn xattrs_in(&self, of: &Span) -> &[Xattr] {
        span(&self.xattrs, u64::from(of.start), of.count)
    }
}

/// See [`LayerIndex::segments`].
#[derive(Debug, Clone)]
pub struct Segments<'a> {
    plain: Option<u64>,
    extents: std::slice::Iter<'a, SparseExtent>,
    /// The extent that starts or goes on at `pos` or behind it.
    next: Option<&'a SparseExtent>,
    pos: u64,
    end: u64,
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        if self.pos >= self.end {
            return None;
        }
        let start = self.pos;
        if let Some(place) = self.plain {
            self.pos = self.end;
            return Some(Segment::Data(place.saturating_add(start)..place.saturating_add(self.end)));
        }
        self.next = self.next.or_else(|| self.extents.next());
        match self.next {
            Some(extent) if extent.offset <= start => {
                self.pos = extent.offset.saturating_add(extent.length).min(self.end);
                self.next = None;
                let blob = |pos: u64| extent.blob.saturating_add(pos.saturating_sub(extent.offset));
                Some(Segment::Data(blob(start)..blob(self.pos)))
            }
            hole_before => {
                self.pos = hole_before.map_or(self.end, |extent| extent.offset.min(self.end));
                Some(Segment::Hole(self.pos.saturating_sub(start)))
            }
        }
    }
}

fn span<T>(all: &[T], start: u64, count: u32) -> &[T] {
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    all.get(start..start.saturating_add(count as usize)).unwrap_or_default()
}

fn side<'a, T>(spans: &[Span], all: &'a [T], id: EntryId) -> &'a [T] {
    let found = spans.binary_search_by_key(&id.0, |span| span.entry);
    let found = found.ok().and_then(|at| spans.get(at));
    found.map_or(&[], |found| span(all, u64::from(found.start), found.count))
}

pub(super) fn bytes_of<T>(vec: &Vec<T>) -> u64 {
    (vec.capacity() as u64).saturating_mul(size_of::<T>() as u64)
}
