//! From members, in the order of the archive, to the tree that `tar -x` would leave.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::error::ScanError;
use super::layer::{Dirent, LayerIndex, Node, SPARSE, Span, XATTRS, Xattr};
use super::limits::Limits;
use super::member::{Kind, Member, MemberKind};
use super::path::parts;

/// Takes members in the order of the archive. Where we differ from GNU tar 1.34, nothing is lost without a warning:
///
/// - a directory that no member made has mode 0755 and the owner and time of the first member placed below it;
/// - a name that must be a directory for a later member becomes one, whatever it was (`tar -x` gives up that member);
/// - a member with `..` in its name is placed by what follows (`tar -x` leaves it out);
/// - members below a symbolic link go where it leads within the layer (`tar -x` does not follow one with `..`).
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
        }
    }

    /// Fails at a limit only; then the index is of no use.
    pub fn push(&mut self, member: Member) -> Result<(), ScanError> {
        if self.tree.nodes.len() == 1
            && self.tree.dirents.is_empty()
            && let Some(root) = self.tree.nodes.first_mut()
        {
            (root.secs, root.nanos) = (member.mtime.secs, member.mtime.nanos);
            (root.uid, root.gid) = (member.uid, member.gid);
        }
        let places: Vec<&[u8]> = parts(&member.path).collect();
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

    /// Drops what no name stands for any more, and sorts.
    pub fn finish(self) -> LayerIndex {
        let Self { mut tree, limits, warnings, names, extents, xattrs, .. } = self;
        drop(names);
        let mut numbers: Vec<Option<u32>> = Vec::with_capacity(tree.nodes.len());
        let mut kept = 0u32;
        for (old, node) in tree.nodes.iter().enumerate() {
            let alive = node.links > 0 || old == ROOT as usize;
            numbers.push(alive.then_some(kept));
            kept = kept.saturating_add(u32::from(alive));
        }
        let number = |old: u32| numbers.get(old as usize).copied().flatten();
        let mut at = 0usize;
        tree.nodes.retain(|_| {
            at = at.saturating_add(1);
            number(u32::try_from(at.saturating_sub(1)).unwrap_or(u32::MAX)).is_some()
        });
        tree.dirents.retain_mut(|dirent| match (number(dirent.parent), number(dirent.entry)) {
            (Some(parent), Some(entry)) => {
                (dirent.parent, dirent.entry) = (parent, entry);
                true
            }
            _ => false,
        });
        let text = &tree.text;
        let name = |dirent: &Dirent| {
            let at = dirent.name_at as usize;
            text.get(at..at.saturating_add(dirent.name_len as usize)).unwrap_or_default()
        };
        tree.dirents.sort_unstable_by(|a, b| a.parent.cmp(&b.parent).then_with(|| name(a).cmp(name(b))));
        for node in tree.nodes.iter_mut().filter(|node| node.kind == Kind::Directory) {
            let parent = u32::try_from(node.extent).ok().and_then(number).unwrap_or(ROOT);
            (node.extent, node.links, node.children) = (u64::from(parent), 0, 0);
        }
        for (at, dirent) in tree.dirents.iter().enumerate() {
            let is_directory = tree.nodes.get(dirent.entry as usize).is_some_and(|node| node.kind == Kind::Directory);
            if let Some(parent) = tree.nodes.get_mut(dirent.parent as usize) {
                if parent.children == 0 {
                    parent.place = at as u64;
                }
                parent.children = parent.children.saturating_add(1);
                parent.links = parent.links.saturating_add(u32::from(is_directory));
            }
        }
        let sorted = |spans: HashMap<u32, Span>| {
            let renumbered = spans.into_values().filter_map(|span| Some(Span { entry: number(span.entry)?, ..span }));
            let mut spans: Vec<Span> = renumbered.collect();
            spans.sort_unstable_by_key(|span| span.entry);
            spans
        };
        tree.extent_spans = sorted(extents);
        tree.xattr_spans = sorted(xattrs);
        if warnings > limits.warnings {
            tree.warnings.push(format!("{} more warnings", warnings.saturating_sub(limits.warnings)));
        }
        tree.nodes.shrink_to_fit();
        tree.dirents.shrink_to_fit();
        tree.text.shrink_to_fit();
        tree.extents.shrink_to_fit();
        tree
    }

    /// Names read so far, directories without a member included.
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

    fn find(&self, directory: u32, name: &[u8]) -> Option<Found> {
        let hash = self.hasher.hash_one((directory, name));
        let same = |at: &u32| {
            let dirent = self.tree.dirents.get(*at as usize);
            dirent.is_some_and(|dirent| dirent.parent == directory && self.tree.name_of(dirent) == name)
        };
        let dirent = *self.names.find(hash, same)? as usize;
        self.tree.dirents.get(dirent).map(|found| Found { dirent, entry: found.entry })
    }

    /// Gives an entry its first name, or one more.
    fn name(&mut self, directory: u32, name: &[u8], entry: u32, member: &Member) -> Result<(), ScanError> {
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
    fn rename(&mut self, found: Found, entry: u32) {
        self.count(found.entry, false);
        self.count(entry, true);
        if let Some(dirent) = self.tree.dirents.get_mut(found.dirent) {
            dirent.entry = entry;
        }
    }

    fn count(&mut self, entry: u32, more: bool) {
        if let Some(node) = self.tree.nodes.get_mut(entry as usize) {
            node.links = if more { node.links.saturating_add(1) } else { node.links.saturating_sub(1) };
        }
    }

    fn add(&mut self, kind: Kind, (place, extent): (u64, u64), member: &Member) -> Result<u32, ScanError> {
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
    fn fill(&mut self, entry: u32, member: &Member) -> Result<(), ScanError> {
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

    fn redo_directory(&mut self, entry: u32, member: &Member) -> Result<(), ScanError> {
        let has_xattrs = self.set_xattrs(entry, member)?;
        if let Some(node) = self.tree.nodes.get_mut(entry as usize) {
            node.mode = member.mode;
            (node.uid, node.gid) = (member.uid, member.gid);
            (node.secs, node.nanos) = (member.mtime.secs, member.mtime.nanos);
            node.flags = if has_xattrs { XATTRS } else { 0 };
        }
        Ok(())
    }

    fn set_xattrs(&mut self, entry: u32, member: &Member) -> Result<bool, ScanError> {
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

    fn text(&mut self, bytes: &[u8], member: &Member) -> Result<u32, ScanError> {
        let at = u32::try_from(self.tree.text.len()).map_err(|_| self.full(member))?;
        self.tree.text.extend_from_slice(bytes);
        Ok(at)
    }

    fn kind(&self, entry: u32) -> Option<Kind> {
        self.tree.nodes.get(entry as usize).map(|node| node.kind)
    }

    fn has_children(&self, entry: u32) -> bool {
        self.tree.nodes.get(entry as usize).is_some_and(|node| node.children > 0)
    }

    fn warn(&mut self, path: &[u8], what: &str) {
        self.warnings = self.warnings.saturating_add(1);
        if self.warnings <= self.limits.warnings {
            let name = crate::error::printable(&String::from_utf8_lossy(path));
            self.tree.warnings.push(format!("{name}: {what}"));
        }
    }

    fn within_memory(&self, member: &Member) -> Result<(), ScanError> {
        match self.memory() > self.limits.index_bytes {
            true => Err(self.full(member)),
            false => Ok(()),
        }
    }

    fn full(&self, member: &Member) -> ScanError {
        limit(member, "index_bytes", self.limits.index_bytes)
    }
}

/// `place` and `extent` of a directory in `parent`.
fn implied(parent: u32) -> (u64, u64) {
    (0, u64::from(parent))
}

/// `place` and `extent` of what a member makes.
fn content(kind: Kind, parent: u32, member: &Member) -> (u64, u64) {
    match kind {
        Kind::File => (member.data.start, member.size),
        Kind::Directory => implied(parent),
        Kind::Symlink => (0, member.link.len() as u64),
        Kind::CharDevice | Kind::BlockDevice => (u64::from(member.rdev), 0),
        Kind::Fifo => (0, 0),
    }
}

fn limit(member: &Member, limit: &'static str, max: u64) -> ScanError {
    ScanError::Limit { offset: member.header, limit, max }
}
