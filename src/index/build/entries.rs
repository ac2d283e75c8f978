//! Names and entries of a tree in the making.

use std::hash::BuildHasher;

use super::super::error::ScanError;
use super::super::layer::{Dirent, Node, SPARSE, Span, XATTRS, Xattr};
use super::super::member::{Kind, Member};
use super::{Found, LayerIndexBuilder, limit};

/// Bytes of a name in a warning.
const LONGEST_SHOWN: usize = 300;

impl LayerIndexBuilder {
    pub(super) fn find(&self, directory: u32, name: &[u8]) -> Option<Found> {
        let hash = self.hasher.hash_one((directory, name));
        let same = |at: &u32| {
            let dirent = self.tree.dirents.get(*at as usize);
            dirent.is_some_and(|dirent| dirent.parent == directory && self.tree.name_of(dirent) == name)
        };
        let dirent = *self.names.find(hash, same)? as usize;
        self.tree.dirents.get(dirent).map(|found| Found { dirent, entry: found.entry })
    }

    /// Gives an entry its first name, or one more.
    pub(super) fn name(&mut self, directory: u32, name: &[u8], entry: u32, member: &Member) -> Result<(), ScanError> {
        let at = u32::try_from(self.tree.dirents.len()).map_err(|_| self.full(member))?;
        let name_at = self.text(name, member)?;
        let name_len = u16::try_from(name.len()).map_err(|_| limit(member, "part_bytes", u64::from(u16::MAX)))?;
        self.tree.dirents.push(Dirent { parent: directory, name_at, entry, name_len });
        let (tree, hasher) = (&self.tree, &self.hasher);
        let hash = |at: &u32| {
            let dirent = tree.dirents.get(*at as usize);
            dirent.map_or(0, |dirent| hasher.hash_one((dirent.parent, tree.name_of(dirent))))
        };
        self.names.insert_unique(hasher.hash_one((directory, name)), at, hash);
        self.count(entry, true);
        if let Some(directory) = self.tree.nodes.get_mut(directory as usize) {
            directory.children = directory.children.saturating_add(1);
        }
        Ok(())
    }

    /// Makes a name stand for another entry.
    pub(super) fn rename(&mut self, found: Found, entry: u32) {
        self.count(found.entry, false);
        self.count(entry, true);
        if let Some(dirent) = self.tree.dirents.get_mut(found.dirent) {
            dirent.entry = entry;
        }
    }

    pub(super) fn count(&mut self, entry: u32, more: bool) {
        if let Some(node) = self.tree.nodes.get_mut(entry as usize) {
            node.links = if more { node.links.saturating_add(1) } else { node.links.saturating_sub(1) };
        }
    }

    pub(super) fn add(&mut self, kind: Kind, (place, extent): (u64, u64), member: &Member) -> Result<u32, ScanError> {
        let number = u32::try_from(self.tree.nodes.len()).map_err(|_| self.full(member))?;
        if u64::from(number) > self.limits.entries {
            return Err(limit(member, "entries", self.limits.entries));
        }
        self.tree.nodes.push(Node {
            place,
            extent,
            secs: member.mtime.secs,
            nanos: member.mtime.nanos,
            uid: member.uid,
            gid: member.gid,
            links: 0,
            children: 0,
            mode: 0o755,
            kind,
            flags: 0,
        });
        Ok(number)
    }

    /// What a member says of the entry that it made.
    pub(super) fn fill(&mut self, entry: u32, member: &Member) -> Result<(), ScanError> {
        let link = match self.kind(entry) {
            Some(Kind::Symlink) => Some(self.text(&member.link, member)?),
            _ => None,
        };
        let extents = member.sparse.as_ref();
        let extents_at = u32::try_from(self.tree.extents.len()).map_err(|_| self.full(member))?;
        if let Some(extents) = extents {
            self.tree.extents.extend_from_slice(extents);
            let count = u32::try_from(extents.len()).map_err(|_| self.full(member))?;
            self.extents.insert(entry, Span { entry, start: extents_at, count });
        }
        let has_xattrs = self.set_xattrs(entry, member)?;
        if let Some(node) = self.tree.nodes.get_mut(entry as usize) {
            node.mode = member.mode;
            node.place = link.map_or(node.place, u64::from);
            node.flags = if extents.is_some() { SPARSE } else { 0 } | if has_xattrs { XATTRS } else { 0 };
        }
        Ok(())
    }

    pub(super) fn redo_directory(&mut self, entry: u32, member: &Member) -> Result<(), ScanError> {
        let has_xattrs = self.set_xattrs(entry, member)?;
        if let Some(node) = self.tree.nodes.get_mut(entry as usize) {
            node.mode = member.mode;
            (node.uid, node.gid) = (member.uid, member.gid);
            (node.secs, node.nanos) = (member.mtime.secs, member.mtime.nanos);
            node.flags = if has_xattrs { XATTRS } else { 0 };
        }
        Ok(())
    }

    pub(super) fn set_xattrs(&mut self, entry: u32, member: &Member) -> Result<bool, ScanError> {
        if member.xattrs.is_empty() {
            return Ok(false);
        }
        let start = u32::try_from(self.tree.xattrs.len()).map_err(|_| self.full(member))?;
        for (name, value) in &member.xattrs {
            let at = self.text(name, member)?;
            self.text(value, member)?;
            let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| self.full(member));
            let (name_len, value_len) = (length(name)?, length(value)?);
            self.tree.xattrs.push(Xattr { at, name_len, value_len });
        }
        let count = u32::try_from(member.xattrs.len()).map_err(|_| self.full(member))?;
        self.xattrs.insert(entry, Span { entry, start, count });
        Ok(true)
    }

    pub(super) fn text(&mut self, bytes: &[u8], member: &Member) -> Result<u32, ScanError> {
        let at = u32::try_from(self.tree.text.len()).map_err(|_| self.full(member))?;
        self.tree.text.extend_from_slice(bytes);
        Ok(at)
    }

    pub(super) fn kind(&self, entry: u32) -> Option<Kind> {
        self.tree.nodes.get(entry as usize).map(|node| node.kind)
    }

    pub(super) fn has_children(&self, entry: u32) -> bool {
        self.tree.nodes.get(entry as usize).is_some_and(|node| node.children > 0)
    }

    pub(super) fn warn(&mut self, path: &[u8], what: &str) {
        self.warnings = self.warnings.saturating_add(1);
        if self.warnings <= self.limits.warnings {
            // The reason behind it must still be seen when the whole is made short.
            let start = path.get(..LONGEST_SHOWN).unwrap_or(path);
            let more = if start.len() < path.len() { "…" } else { "" };
            let name = crate::error::printable(&format!("{}{more}", String::from_utf8_lossy(start)));
            self.tree.warnings.push(format!("{name}: {what}"));
        }
    }

    pub(super) fn within_memory(&self, member: &Member) -> Result<(), ScanError> {
        match self.memory() > self.limits.index_bytes {
            true => Err(self.full(member)),
            false => Ok(()),
        }
    }

    pub(super) fn full(&self, member: &Member) -> ScanError {
        limit(member, "index_bytes", self.limits.index_bytes)
    }
}

/// `place` and `extent` of a directory in `parent`.
pub(super) fn implied(parent: u32) -> (u64, u64) {
    (0, u64::from(parent))
}

/// `place` and `extent` of what a member makes.
pub(super) fn content(kind: Kind, parent: u32, member: &Member) -> (u64, u64) {
    match kind {
        Kind::File => (member.data.start, member.size),
        Kind::Directory => implied(parent),
        Kind::Symlink => (0, member.link.len() as u64),
        Kind::CharDevice | Kind::BlockDevice => (u64::from(member.rdev), 0),
        Kind::Fifo => (0, 0),
    }
}
