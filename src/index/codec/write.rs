//! From an index to the frame.

use super::super::EntryId;
use super::super::layer::{Dirent, LayerIndex, Node, SPARSE, XATTRS};
use super::super::member::Kind;
use super::wire::Packer;
use super::{CodecError, HAS_EXTENTS, HAS_NANOS, HAS_XATTRS, KINDS, NEW_MODE, NEW_OWNER, behind};

pub struct Writer {
    packer: Packer,
    /// Of the entry before.
    owner: (u32, u32),
    mode: u16,
    secs: i64,
    /// See [`behind`].
    data_at: u64,
}

impl Writer {
    /// The frame follows on `bytes`.
    pub fn new(bytes: Vec<u8>) -> Result<Self, CodecError> {
        Ok(Self { packer: Packer::new(bytes)?, owner: (0, 0), mode: 0, secs: 0, data_at: 0 })
    }

    pub fn write(mut self, index: &LayerIndex) -> Result<Vec<u8>, CodecError> {
        for (number, node) in index.nodes.iter().enumerate() {
            let id = EntryId(u32::try_from(number).unwrap_or(u32::MAX));
            self.entry(index, id, node);
            self.packer.flush()?;
        }
        let mut named = 0;
        for (number, node) in index.nodes.iter().enumerate() {
            if node.kind == Kind::Directory {
                let id = EntryId(u32::try_from(number).unwrap_or(u32::MAX));
                named = self.names(index, index.children(id), named)?;
            }
        }
        for warning in &index.warnings {
            self.packer.number(warning.len() as u64);
            self.packer.bytes(warning.as_bytes());
        }
        self.packer.finish()
    }

    fn entry(&mut self, index: &LayerIndex, id: EntryId, node: &Node) {
        let kind = KINDS.iter().position(|kind| *kind == node.kind).unwrap_or(0) as u8;
        let owner = (node.uid, node.gid);
        let mut first = kind;
        for (has, flag) in [
            (node.flags & SPARSE != 0, HAS_EXTENTS),
            (node.flags & XATTRS != 0, HAS_XATTRS),
            (owner != self.owner, NEW_OWNER),
            (node.mode != self.mode, NEW_MODE),
            (node.nanos != 0, HAS_NANOS),
        ] {
            first |= if has { flag } else { 0 };
        }
        self.packer.byte(first);
        if first & NEW_OWNER != 0 {
            self.packer.number(u64::from(node.uid));
            self.packer.number(u64::from(node.gid));
        }
        if first & NEW_MODE != 0 {
            self.packer.number(u64::from(node.mode));
        }
        self.packer.difference(node.secs as u64, self.secs as u64);
        if first & HAS_NANOS != 0 {
            self.packer.number(u64::from(node.nanos));
        }
        (self.owner, self.mode, self.secs) = (owner, node.mode, node.secs);
        match node.kind {
            Kind::File => self.file(index, id, node),
            Kind::Symlink => {
                let target = index.link_target(id);
                self.packer.number(target.len() as u64);
                self.packer.bytes(target);
            }
            Kind::CharDevice | Kind::BlockDevice => self.packer.number(node.place),
            Kind::Directory | Kind::Fifo => {}
        }
        if first & HAS_XATTRS != 0 {
            self.packer.number(index.xattrs(id).count() as u64);
            for (name, value) in index.xattrs(id) {
                self.packer.number(name.len() as u64);
                self.packer.number(value.len() as u64);
                self.packer.bytes(name);
                self.packer.bytes(value);
            }
        }
    }

    fn file(&mut self, index: &LayerIndex, id: EntryId, node: &Node) {
        self.packer.number(node.extent);
        if node.flags & SPARSE == 0 {
            self.packer.difference(node.place, self.data_at);
            self.data_at = behind(node.place.wrapping_add(node.extent));
            return;
        }
        let extents = index.extents_of(id);
        self.packer.number(extents.len() as u64);
        let mut pos = 0;
        for extent in extents {
            self.packer.number(extent.offset.wrapping_sub(pos));
            self.packer.number(extent.length);
            self.packer.difference(extent.blob, self.data_at);
            pos = extent.offset.wrapping_add(extent.length);
            self.data_at = extent.blob.wrapping_add(extent.length);
        }
        self.data_at = behind(self.data_at);
    }

    /// Of one directory. `named`: the entry that the name before stands for.
    fn names(&mut self, index: &LayerIndex, children: &[Dirent], mut named: u32) -> Result<u32, CodecError> {
        self.packer.number(children.len() as u64);
        let mut before: &[u8] = &[];
        for child in children {
            let name = index.name_of(child);
            let shared = name.iter().zip(before).take_while(|(a, b)| a == b).count();
            let rest = name.get(shared..).unwrap_or_default();
            self.packer.difference(u64::from(child.entry().0), u64::from(named).wrapping_add(1));
            self.packer.number(shared as u64);
            self.packer.number(rest.len() as u64);
            self.packer.bytes(rest);
            self.packer.flush()?;
            (before, named) = (name, child.entry().0);
        }
        Ok(named)
    }
}
