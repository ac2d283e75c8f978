//! From members, in the order of the archive, to the tree that `tar -x` would leave.

use std::collections::HashMap;
use std::hash::RandomState;

use hashbrown::HashTable;

use self::entries::{content, implied};
use super::error::ScanError;
use super::layer::{LayerIndex, Node, Span};
use super::limits::Limits;
use super::member::{Kind, Member, MemberKind};
use super::path::parts;

mod entries;
mod finish;

/// Takes members in the order of the archive. Where we differ from GNU tar 1.34, nothing is lost without a warning:
///
/// - a directory that no member made has mode 0755 and the owner and time of the first member placed below it;
/// - a name that must be a directory for a later member becomes one, whatever it was (`tar -x` gives up that member);
/// - a member with `..` in its name is placed by what follows (`tar -x` leaves it out);
/// - members below a symbolic link go where it leads within the layer (`tar -x` does not follow one with `..`);
/// - a member whose name or target no Linux file system can hold is left out (`tar -x` fails at it and goes on).
///
/// As in `tar -x` the last member of a name wins, but a directory that is not empty stays; a hard link shares the entry
/// that its target's name has at that time, and one without a target is left out.
#[derive(Debug)]
pub struct LayerIndexBuilder {
    limits: Limits,
    tree: LayerIndex,
    /// Numbers of dirents by directory and name.
    names: HashTable<u32>,
    /// Keyed, because an archive may choose its names.
    hasher: RandomState,
    extents: HashMap<u32, Span>,
    xattrs: HashMap<u32, Span>,
    link_parts: u64,
    warnings: u64,
    started: bool,
}

const ROOT: u32 = LayerIndex::ROOT.0;

/// What a name stands for: its dirent and its entry.
#[derive(Clone, Copy)]
struct Found {
    dirent: usize,
    entry: u32,
}

impl LayerIndexBuilder {
    pub fn new(limits: Limits) -> Self {
        let root = Node {
            place: 0,
            extent: u64::from(ROOT),
            secs: 0,
            nanos: 0,
            uid: 0,
            gid: 0,
            links: 0,
            children: 0,
            mode: 0o755,
            kind: Kind::Directory,
            flags: 0,
        };
        Self {
            limits,
            tree: LayerIndex { nodes: vec![root], ..LayerIndex::default() },
            names: HashTable::new(),
            hasher: RandomState::new(),
            extents: HashMap::new(),
            xattrs: HashMap::new(),
            link_parts: 0,
            warnings: 0,
            started: false,
        }
    }

    /// Fails at a limit of memory or work only; then the index is of no use.
    pub fn push(&mut self, member: Member) -> Result<(), ScanError> {
        if !std::mem::replace(&mut self.started, true)
            && let Some(root) = self.tree.nodes.first_mut()
        {
            (root.secs, root.nanos) = (member.mtime.secs, member.mtime.nanos);
            (root.uid, root.gid) = (member.uid, member.gid);
        }
        let places: Vec<&[u8]> = parts(&member.path).collect();
        if let Some(what) = self.unnameable(&places, &member) {
            self.warn(&member.path, what);
            return Ok(());
        }
        if places.len() as u64 > self.limits.depth {
            return Err(limit(&member, "depth", self.limits.depth));
        }
        if member.path.split(|&byte| byte == b'/').any(|part| part == b"..") {
            self.warn(&member.path, "placed by what follows its last `..`");
        }
        match (places.split_last(), member.kind) {
            (None, MemberKind::Entry(Kind::Directory)) => self.redo_directory(ROOT, &member),
            (None, _) => {
                self.warn(&member.path, "left out: its name is that of the layer's directory");
                Ok(())
            }
            (Some((name, above)), MemberKind::Entry(kind)) => {
                let directory = self.directory(above, &member)?;
                self.place(directory, name, kind, &member)
            }
            (Some((name, above)), MemberKind::HardLink) => self.link(above, name, &member),
        }?;
        self.within_memory(&member)
    }

    /// Why no Linux file system can have it, if so: GNU tar gives such a member up and goes on, too.
    fn unnameable(&self, places: &[&[u8]], member: &Member) -> Option<&'static str> {
        let is_symlink = member.kind == MemberKind::Entry(Kind::Symlink);
        match self.limits {
            Limits { name_bytes, .. } if member.path.len() as u64 > name_bytes => {
                Some("left out: its path is longer than Linux allows")
            }
            Limits { part_bytes, .. } if places.iter().any(|part| part.len() as u64 > part_bytes) => {
                Some("left out: a part of its name is longer than Linux allows")
            }
            Limits { name_bytes, .. } if is_symlink && member.link.len() as u64 > name_bytes => {
                Some("left out: its target is longer than Linux allows")
            }
            _ => None,
        }
    }

    /// Entries made so far, those that no name leads to any more included.
    pub fn len(&self) -> usize {
        self.tree.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Bytes that building takes now.
    pub fn memory(&self) -> u64 {
        // A slot of a map is its key and value and a byte, and an eighth of them stays free.
        const SLOT: u64 = 24;
        let side = (self.extents.capacity() as u64).saturating_add(self.xattrs.capacity() as u64);
        (self.tree.memory())
            .saturating_add(self.names.allocation_size() as u64)
            .saturating_add(side.saturating_mul(SLOT))
    }
}

/// Names and entries.
impl LayerIndexBuilder {
    /// The directory of these parts, made where it is missing.
    fn directory(&mut self, above: &[&[u8]], member: &Member) -> Result<u32, ScanError> {
        let mut hops = self.limits.link_hops;
        let mut at = ROOT;
        for part in above {
            at = match self.find(at, part) {
                None => {
                    let made = self.add(Kind::Directory, implied(at), member)?;
                    self.name(at, part, made, member)?;
                    made
                }
                Some(found) => match self.leads_to(at, found.entry, &mut hops, member)? {
                    Some(directory) => directory,
                    None => {
                        self.warn(&member.path, "replaces what stood where it needs a directory");
                        let made = self.add(Kind::Directory, implied(at), member)?;
                        self.rename(found, made);
                        made
                    }
                },
            };
        }
        Ok(at)
    }

    /// The directory that an entry is, or that a symbolic link in `directory` leads to without leaving the layer.
    fn leads_to(
        &mut self,
        directory: u32,
        entry: u32,
        hops: &mut u64,
        member: &Member,
    ) -> Result<Option<u32>, ScanError> {
        match self.kind(entry) {
            Some(Kind::Directory) => return Ok(Some(entry)),
            Some(Kind::Symlink) => {}
            _ => return Ok(None),
        }
        let target = self.tree.link_target(super::EntryId(entry)).to_vec();
        let Some(left) = hops.checked_sub(1).filter(|_| !target.is_empty() && !target.starts_with(b"/")) else {
            return Ok(None);
        };
        *hops = left;
        let mut at = directory;
        for part in target.split(|&byte| byte == b'/') {
            self.link_parts = self.link_parts.saturating_add(1);
            if self.link_parts > self.limits.link_parts {
                return Err(limit(member, "link_parts", self.limits.link_parts));
            }
            at = match part {
                b"" | b"." => at,
                b".." if at == ROOT => return Ok(None),
                b".." => self.tree.parent(super::EntryId(at)).0,
                _ => {
                    let Some(found) = self.find(at, part) else {
                        return Ok(None);
                    };
                    match self.leads_to(at, found.entry, hops, member)? {
                        Some(directory) => directory,
                        None => return Ok(None),
                    }
                }
            };
        }
        Ok(Some(at))
    }

    fn place(&mut self, directory: u32, name: &[u8], kind: Kind, member: &Member) -> Result<(), ScanError> {
        let Some(found) = self.find(directory, name) else {
            let made = self.add(kind, content(kind, directory, member), member)?;
            self.fill(made, member)?;
            return self.name(directory, name, made, member);
        };
        let stays = self.kind(found.entry) == Some(Kind::Directory);
        if stays && kind == Kind::Directory {
            return self.redo_directory(found.entry, member);
        }
        if stays && self.has_children(found.entry) {
            self.warn(&member.path, "left out: a directory with entries has its name");
            return Ok(());
        }
        let made = self.add(kind, content(kind, directory, member), member)?;
        self.fill(made, member)?;
        self.rename(found, made);
        Ok(())
    }

    /// A hard link: one more name for what its target's name stands for now. Its own size and data do not count.
    fn link(&mut self, above: &[&[u8]], name: &[u8], member: &Member) -> Result<(), ScanError> {
        let Some(target) = self.target(member)? else {
            self.warn(&member.path, "left out: a hard link to a name that is not there");
            return Ok(());
        };
        if parts(&member.path).eq(parts(&member.link)) {
            return Ok(());
        }
        if self.kind(target) == Some(Kind::Directory) {
            self.warn(&member.path, "left out: a hard link to a directory");
            return Ok(());
        }
        let directory = self.directory(above, member)?;
        match self.find(directory, name) {
            None => self.name(directory, name, target, member)?,
            Some(found) if found.entry == target => {}
            Some(found) if self.has_children(found.entry) => {
                self.warn(&member.path, "left out: a directory with entries has its name");
            }
            Some(found) => self.rename(found, target),
        }
        Ok(())
    }

    fn target(&mut self, member: &Member) -> Result<Option<u32>, ScanError> {
        let mut hops = self.limits.link_hops;
        let mut parts = parts(&member.link).peekable();
        let mut at = ROOT;
        while let Some(part) = parts.next() {
            let Some(found) = self.find(at, part) else {
                return Ok(None);
            };
            if parts.peek().is_none() {
                return Ok(Some(found.entry));
            }
            match self.leads_to(at, found.entry, &mut hops, member)? {
                Some(directory) => at = directory,
                None => return Ok(None),
            }
        }
        Ok(Some(ROOT))
    }
}

fn limit(member: &Member, limit: &'static str, max: u64) -> ScanError {
    ScanError::Limit { offset: member.header, limit, max }
}
