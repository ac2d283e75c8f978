//! From the frame to an index, trusting nothing.

use super::super::layer::{Dirent, LayerIndex, Node, SPARSE, Span, XATTRS, Xattr};
use super::super::limits::Limits;
use super::super::member::{Kind, SparseExtent};
use super::wire::Unpacker;
use super::{CodecError, Counts, HAS_EXTENTS, HAS_NANOS, HAS_XATTRS, KINDS, NEW_MODE, NEW_OWNER, behind};

/// Bytes of a warning: a printable name of 400 characters, and what happened to it.
const LONGEST_WARNING: u64 = 4096;
/// Stands in a directory's parent until a name leads to it.
const UNNAMED: u64 = u64::MAX;

pub struct Reader<'a> {
    unpacker: Unpacker<'a>,
    counts: Counts,
    content_size: u64,
    limits: &'a Limits,
    index: LayerIndex,
    /// Of the entry before.
    owner: (u32, u32),
    mode: u16,
    secs: i64,
    /// See [`behind`].
    data_at: u64,
}

fn wrong<T>(what: &'static str) -> Result<T, CodecError> {
    Err(CodecError::Wrong(what))
}

impl<'a> Reader<'a> {
    pub fn new(frame: &'a [u8], counts: Counts, content_size: u64, limits: &'a Limits) -> Result<Self, CodecError> {
        Ok(Self {
            unpacker: Unpacker::new(frame)?,
            counts,
            content_size,
            limits,
            index: LayerIndex::default(),
            owner: (0, 0),
            mode: 0,
            secs: 0,
            data_at: 0,
        })
    }

    pub fn read(mut self) -> Result<LayerIndex, CodecError> {
        for number in 0..self.counts.entries {
            let node = self.entry(number)?;
            push(&mut self.index.nodes, node, self.counts.entries)?;
        }
        if self.index.nodes.first().is_none_or(|root| root.kind != Kind::Directory) {
            return wrong("no root");
        }
        let mut named = 0;
        for number in 0..self.counts.entries {
            if self.index.nodes.get(number as usize).is_some_and(|node| node.kind == Kind::Directory) {
                named = self.names(number, named)?;
            }
        }
        for _ in 0..self.counts.warnings {
            let length = self.unpacker.number()?;
            if length > LONGEST_WARNING {
                return wrong("a long warning");
            }
            let mut text = Vec::new();
            self.unpacker.bytes(length as usize, &mut text)?;
            let text = String::from_utf8(text).map_err(|_| CodecError::Wrong("a warning that is no text"))?;
            self.index.warnings.push(text);
        }
        self.unpacker.finish()?;
        let Self { mut index, counts, .. } = self;
        let all_named = index.nodes.iter().skip(1).all(|node| match node.kind {
            Kind::Directory => node.extent != UNNAMED,
            _ => node.links > 0,
        });
        if !all_named {
            return wrong("an entry without a name");
        }
        let found = [
            (index.dirents.len(), counts.names),
            (index.text.len(), counts.text),
            (index.extent_spans.len(), counts.sparse_files),
            (index.extents.len(), counts.extents),
            (index.xattr_spans.len(), counts.with_xattrs),
            (index.xattrs.len(), counts.xattrs),
        ];
        if found.iter().any(|(found, told)| *found != *told as usize) {
            return wrong("less than its counts tell");
        }
        index.text.shrink_to_fit();
        Ok(index)
    }

    fn entry(&mut self, number: u32) -> Result<Node, CodecError> {
        let first = self.unpacker.byte()?;
        let Some(kind) = KINDS.get(usize::from(first & 7)).copied() else { return wrong("a kind") };
        if first & NEW_OWNER != 0 {
            self.owner = (self.unpacker.number32()?, self.unpacker.number32()?);
        }
        if first & NEW_MODE != 0 {
            let mode = self.unpacker.number()?;
            self.mode = u16::try_from(mode).unwrap_or(u16::MAX);
            if self.mode > 0o7777 {
                return wrong("a mode");
            }
        }
        self.secs = self.unpacker.difference(self.secs as u64)? as i64;
        let nanos = if first & HAS_NANOS != 0 { self.unpacker.number32()? } else { 0 };
        if nanos >= 1_000_000_000 {
            return wrong("a time");
        }
        let sparse = first & HAS_EXTENTS != 0;
        if sparse && kind != Kind::File {
            return wrong("extents of no file");
        }
        let (place, extent) = match kind {
            Kind::File => self.file(number, sparse)?,
            Kind::Symlink => self.link()?,
            Kind::CharDevice | Kind::BlockDevice => (u64::from(self.unpacker.number32()?), 0),
            Kind::Directory if number == LayerIndex::ROOT.0 => (0, u64::from(LayerIndex::ROOT.0)),
            Kind::Directory => (0, UNNAMED),
            Kind::Fifo => (0, 0),
        };
        if first & HAS_XATTRS != 0 {
            self.xattrs(number)?;
        }
        Ok(Node {
            place,
            extent,
            secs: self.secs,
            nanos,
            uid: self.owner.0,
            gid: self.owner.1,
            links: 0,
            children: 0,
            mode: self.mode,
            kind,
            flags: if sparse { SPARSE } else { 0 } | if first & HAS_XATTRS != 0 { XATTRS } else { 0 },
        })
    }

    /// Where its data lies, and its size.
    fn file(&mut self, number: u32, sparse: bool) -> Result<(u64, u64), CodecError> {
        let size = self.unpacker.number()?;
        if !sparse {
            let place = self.unpacker.difference(self.data_at)?;
            self.data_at = behind(self.inside(place, size)?);
            return Ok((place, size));
        }
        if i64::try_from(size).is_err() {
            return wrong("a size");
        }
        let count = self.unpacker.number32()?;
        if u64::from(count) > self.limits.sparse_extents {
            return Err(CodecError::Limit { limit: "sparse_extents", max: self.limits.sparse_extents });
        }
        let start = self.index.extents.len() as u32;
        let mut pos = 0u64;
        for _ in 0..count {
            let (gap, length) = (self.unpacker.number()?, self.unpacker.number()?);
            let blob = self.unpacker.difference(self.data_at)?;
            let offset = pos.checked_add(gap).filter(|offset| *offset <= size);
            let end = offset.and_then(|offset| offset.checked_add(length)).filter(|end| *end <= size);
            let (Some(offset), Some(end), 1..) = (offset, end, length) else { return wrong("an extent past its file") };
            pos = end;
            self.data_at = self.inside(blob, length)?;
            push(&mut self.index.extents, SparseExtent { offset, length, blob }, self.counts.extents)?;
        }
        self.data_at = behind(self.data_at);
        push(&mut self.index.extent_spans, Span { entry: number, start, count }, self.counts.sparse_files)?;
        Ok((0, size))
    }

    /// The end of so many bytes, which must lie in the content.
    fn inside(&self, start: u64, length: u64) -> Result<u64, CodecError> {
        match start.checked_add(length).filter(|end| *end <= self.content_size) {
            Some(end) => Ok(end),
            None => wrong("data outside of the blob"),
        }
    }

    fn link(&mut self) -> Result<(u64, u64), CodecError> {
        let (at, length) = (self.index.text.len(), self.unpacker.number()?);
        if length > self.limits.name_bytes {
            return Err(CodecError::Limit { limit: "name_bytes", max: self.limits.name_bytes });
        }
        self.text(length)?;
        match self.index.text.get(at..).is_some_and(|target| target.contains(&0)) {
            true => wrong("a link target"),
            false => Ok((at as u64, length)),
        }
    }

    fn xattrs(&mut self, entry: u32) -> Result<(), CodecError> {
        let (start, count) = (self.index.xattrs.len() as u32, self.unpacker.number32()?);
        let mut bytes = 0u64;
        for _ in 0..count {
            let (name_len, value_len) = (self.unpacker.number32()?, self.unpacker.number32()?);
            let length = u64::from(name_len).saturating_add(u64::from(value_len));
            bytes = bytes.saturating_add(length);
            // Of a global header, and of a local one.
            if bytes > self.limits.xattr_bytes.saturating_mul(2) {
                return Err(CodecError::Limit { limit: "xattr_bytes", max: self.limits.xattr_bytes });
            }
            let at = self.index.text.len() as u32;
            self.text(length)?;
            push(&mut self.index.xattrs, Xattr { at, name_len, value_len }, self.counts.xattrs)?;
        }
        push(&mut self.index.xattr_spans, Span { entry, start, count }, self.counts.with_xattrs)
    }

    /// As much as is told before the frame, which is less than 2^32.
    fn text(&mut self, length: u64) -> Result<(), CodecError> {
        self.room_for_text(length)?;
        self.unpacker.bytes(length as usize, &mut self.index.text)
    }

    fn room_for_text(&self, length: u64) -> Result<(), CodecError> {
        match (self.index.text.len() as u64).saturating_add(length) > u64::from(self.counts.text) {
            true => wrong("more text than its counts tell"),
            false => Ok(()),
        }
    }

    /// Of one directory. `named`: the entry that the name before stands for.
    fn names(&mut self, directory: u32, mut named: u32) -> Result<u32, CodecError> {
        let (first, count) = (self.index.dirents.len() as u64, self.unpacker.number32()?);
        let (mut before, mut subdirectories) = (0..0usize, 0u32);
        for _ in 0..count {
            let entry = self.unpacker.difference(u64::from(named).wrapping_add(1))?;
            let entry = u32::try_from(entry).map_err(|_| CodecError::Wrong("a name of no entry"))?;
            let (shared, rest) = (self.unpacker.number()?, self.unpacker.number()?);
            let name_len = shared.saturating_add(rest);
            if name_len > self.limits.part_bytes {
                return Err(CodecError::Limit { limit: "part_bytes", max: self.limits.part_bytes });
            }
            let name_len = u16::try_from(name_len).map_err(|_| CodecError::Wrong("a name"))?;
            self.room_for_text(u64::from(name_len))?;
            let at = self.index.text.len();
            let shared = before.start..before.start.saturating_add(shared as usize);
            if shared.end > before.end {
                return wrong("a name");
            }
            self.index.text.extend_from_within(shared);
            self.unpacker.bytes(rest as usize, &mut self.index.text)?;
            let name = at..self.index.text.len();
            self.check_name(before, name.clone())?;
            before = name;
            subdirectories = subdirectories.saturating_add(u32::from(self.lead(directory, entry)?));
            let dirent = Dirent { parent: directory, name_at: at as u32, entry, name_len };
            push(&mut self.index.dirents, dirent, self.counts.names)?;
            named = entry;
        }
        if let Some(node) = self.index.nodes.get_mut(directory as usize) {
            (node.place, node.children, node.links) = (first, count, subdirectories);
        }
        Ok(named)
    }

    /// `before` is empty for the first name, which is smaller than any.
    fn check_name(&self, before: std::ops::Range<usize>, name: std::ops::Range<usize>) -> Result<(), CodecError> {
        let text = |range| self.index.text.get(range).unwrap_or_default();
        let (before, name) = (text(before), text(name));
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return wrong("a name");
        }
        match name > before {
            true => Ok(()),
            false => wrong("names out of order"),
        }
    }

    /// A name in `directory` stands for `entry`; whether that is a directory. Directories come before those in them and
    /// have one name, so that each is reached from the root, and none from itself.
    fn lead(&mut self, directory: u32, entry: u32) -> Result<bool, CodecError> {
        let Some(node) = self.index.nodes.get_mut(entry as usize) else { return wrong("a name of no entry") };
        if node.kind != Kind::Directory {
            node.links = node.links.saturating_add(1);
            return Ok(false);
        }
        if node.extent != UNNAMED || entry <= directory {
            return wrong("a directory in two places or in itself");
        }
        node.extent = u64::from(directory);
        Ok(true)
    }
}

/// Grows as what it holds comes, up to the count that was told: a count alone makes nothing.
fn push<T>(to: &mut Vec<T>, thing: T, count: u32) -> Result<(), CodecError> {
    const FIRST: usize = 1 << 12;
    if to.len() == to.capacity() {
        let room = (count as usize).saturating_sub(to.len());
        if room == 0 {
            return wrong("more than its counts tell");
        }
        to.reserve_exact(room.min(to.len().max(FIRST)));
    }
    to.push(thing);
    Ok(())
}
