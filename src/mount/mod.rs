//! What a mount is: the tree, names, attributes, extended attributes and reads, without a kernel.
//! Called by `fuse` and `cli`; uses the io and core layers.

mod ahead;
mod attributes;
mod compressed;
mod indexing;
mod layer;
mod lookahead;
mod manifests;
mod names;
mod open;
mod prefetch;
mod resolve;
mod select;
mod stored;
mod tree;
mod xattrs;
mod zip;

use std::fmt::Display;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};

use crate::error::{Error, ErrorKind, Result};
use crate::index::{EntryId, LayerIndex, Segment};
use crate::oci::{Digest, Platform};
use crate::registry::{Access, Traffic};
pub use ahead::{Archive, Holds};
pub use attributes::{Attributes, Kind};
use layer::{Contents, Layer, Sources};
use lookahead::LookAhead;
pub use manifests::Resolved;
pub use prefetch::{Fetched, Plan};
pub use select::{Failed, Found, Selection};
use tree::{Node, NodeId, Tree};

/// Inode number: computed from layer and entry, so that no table is needed. 1 is the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// What an inode number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// 1 + the node's number.
    Node(NodeId),
    /// (1 + the layer's number) << 32 | the entry's number. The layer's own directory is its entry 0.
    Entry { layer: usize, entry: EntryId },
}

/// The size of the dataset, as `statfs` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all layers and configs.
    pub bytes: u64,
    /// Entries known so far.
    pub entries: u64,
}

/// One name in a directory.
pub struct Listed<'a> {
    pub name: &'a [u8],
    pub attributes: Attributes,
    /// Pass it to [`Mount::list`] to go on behind this name.
    pub offset: u64,
}

#[derive(Debug, Clone)]
pub struct Options {
    /// Plain HTTP even for a registry that is not on this machine.
    pub plain_http: bool,
    /// Login and certificates.
    pub access: Access,
    /// Ask no registry for anything: what is not in the cache folder is missing.
    pub offline: bool,
    /// Which manifest of an index is mounted; `None`: all, each in a folder.
    pub platform: Option<Platform>,
    /// No folder: no cache on disk.
    pub cache_dir: Option<PathBuf>,
    /// Bytes that the cache folder may hold; `None`: 10 GiB or a tenth of its file system.
    pub cache_size: Option<u64>,
    /// Bytes of the cache folder's file system that are left free.
    pub cache_min_free: u64,
    /// Whether what was read is kept in the cache folder.
    pub disk_cache: bool,
    /// Whether a blob is fetched and checked whole before any of it is given out.
    pub verify_blobs: bool,
    /// Bytes of chunks in memory and in flight.
    pub memory: u64,
    /// Longest time that any one operation takes.
    pub timeout: Duration,
    /// Most requests to the registry under way at once, at least 1.
    pub connections: usize,
    /// Bytes a second from the registry, over all connections.
    pub bandwidth: Option<u64>,
    /// Addresses that are asked before the registry.
    pub mirrors: Vec<String>,
    /// Refuse a registry that gives only whole blobs.
    pub require_ranges: bool,
    /// Let registries send us to loopback, link-local and metadata addresses.
    pub allow_local_redirects: bool,
    /// Owner shown for everything.
    pub uid: u32,
    pub gid: u32,
    /// Show the archive's owners instead.
    pub preserve_owner: bool,
}

/// A mounted artifact. What a kernel asks for (look-up, attributes, listing, reads, extended attributes) ends within
/// `Options::timeout`, in data or in an error; the calls of `ahead.rs` take as long as indexing takes.
pub struct Mount {
    options: Options,
    /// Those of an index, or one; that of the reference first.
    manifests: Vec<Resolved>,
    layers: Vec<Arc<Layer>>,
    /// Of each layer that is a directory.
    layer_nodes: Vec<Option<LayerNode>>,
    sources: Arc<Sources>,
    /// For layers that nobody has asked for yet.
    ahead: Arc<Sources>,
    /// Numbers of the layers in the order of the tree.
    walk: Vec<usize>,
    look_ahead: Mutex<LookAhead>,
    /// Counts looks into layers.
    looks: AtomicU64,
    tree: Tree,
    /// Shown for all that the archives say nothing about.
    created: SystemTime,
    traffic: Arc<Traffic>,
    /// Bytes that readers were given.
    given: AtomicU64,
}

/// Where a layer's directory is.
#[derive(Debug, Clone, Copy)]
struct LayerNode {
    node: NodeId,
    /// In [`Mount::walk`].
    place: usize,
}

impl Mount {
    /// `None`: there is no such name, and never will be.
    pub async fn lookup(&self, directory: Ino, name: &[u8]) -> Result<Option<Attributes>> {
        match self.place(directory)? {
            Place::Node(id) => {
                self.is_whole(id)?;
                self.tree.child(id, name).map(|child| self.node_attributes(child)).transpose()
            }
            Place::Entry { layer, entry } => {
                let contents = self.contents(layer).await?;
                let found = contents.index.lookup(entry, name);
                found.map(|entry| self.entry_attributes(layer, &contents.index, entry)).transpose()
            }
        }
    }

    pub async fn attributes(&self, ino: Ino) -> Result<Attributes> {
        match self.place(ino)? {
            Place::Node(id) => self.node_attributes(id),
            Place::Entry { layer, entry: LayerIndex::ROOT } => self.layer_attributes(layer),
            Place::Entry { layer, entry } => {
                let contents = self.contents(layer).await?;
                self.entry_attributes(layer, &contents.index, entry)
            }
        }
    }

    /// Calls `visit` for the names behind `offset` (0: from the start, `.` and `..` included) until it returns false.
    pub async fn list(
        &self,
        directory: Ino,
        offset: u64,
        mut visit: impl FnMut(Listed<'_>) -> bool + Send,
    ) -> Result<()> {
        let mut position = offset;
        let mut show = |name: &[u8], attributes: Attributes| {
            position = position.saturating_add(1);
            visit(Listed { name, attributes, offset: position })
        };
        // Not passed over one by one: the kernel asks thousands of times for a large directory.
        let (dot, dot_dot) = (offset < 1, offset < 2);
        let first = usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX);
        match self.place(directory)? {
            Place::Node(id) => {
                self.is_whole(id)?;
                if (dot && !show(b".", self.node_attributes(id)?))
                    || (dot_dot && !show(b"..", self.node_attributes(self.tree.parent(id))?))
                {
                    return Ok(());
                }
                for (name, child) in self.tree.children(id).get(first..).unwrap_or_default() {
                    if !show(name.as_bytes(), self.node_attributes(*child)?) {
                        return Ok(());
                    }
                }
            }
            Place::Entry { layer, entry } => {
                let contents = self.contents(layer).await?;
                let index = &contents.index;
                let parent = match entry {
                    LayerIndex::ROOT => {
                        let node = self.layer_nodes.get(layer).copied().flatten().map_or(0, |layer| layer.node);
                        self.node_attributes(self.tree.parent(node))?
                    }
                    entry => self.entry_attributes(layer, index, index.parent(entry))?,
                };
                if (dot && !show(b".", self.entry_attributes(layer, index, entry)?))
                    || (dot_dot && !show(b"..", parent))
                {
                    return Ok(());
                }
                for child in index.children(entry).get(first..).unwrap_or_default() {
                    if !show(index.name_of(child), self.entry_attributes(layer, index, child.entry())?) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Exactly `size` bytes, fewer only at the end of the file.
    pub async fn read(&self, file: Ino, offset: u64, size: u32) -> Result<Bytes> {
        let bytes = self.read_file(file, offset, size).await?;
        self.given.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes)
    }

    async fn read_file(&self, file: Ino, offset: u64, size: u32) -> Result<Bytes> {
        let range = offset..offset.saturating_add(u64::from(size));
        match self.place(file)? {
            Place::Node(id) => match self.tree.node(id) {
                Some(Node::Config(number)) => {
                    let config = &self.manifest(number)?.config;
                    let length = config.len() as u64;
                    Ok(config.slice(range.start.min(length) as usize..range.end.min(length) as usize))
                }
                Some(Node::LayerFile(number)) => {
                    let blob = &self.layer(number)?.descriptor;
                    let range = range.start.min(blob.size)..range.end.min(blob.size);
                    self.read_in_time(&blob.digest, self.sources.data.read_file(blob, 0..blob.size, range)).await
                }
                _ => Err(Error::new(ErrorKind::Unsupported, "read", "a directory has no bytes")),
            },
            Place::Entry { layer, entry } => {
                let contents = self.contents(layer).await?;
                self.read_in_time(&contents.blob.digest, contents.read(entry, range)).await
            }
        }
    }

    pub async fn read_link(&self, symlink: Ino) -> Result<Vec<u8>> {
        match self.place(symlink)? {
            Place::Entry { layer, entry } => Ok(self.contents(layer).await?.index.link_target(entry).to_vec()),
            Place::Node(_) => Err(Error::new(ErrorKind::Unsupported, "readlink", "not a symbolic link")),
        }
    }

    /// Ends when all that was fetched is in the cache folder.
    pub async fn settle(&self) {
        self.sources.chunks.settle().await;
    }

    /// Has this called with the inodes of a layer whose bytes turn out to be wrong: what a kernel keeps of them is, too.
    pub fn on_wrong(self: &Arc<Self>, call: impl Fn(Vec<Ino>) + Send + Sync + 'static) {
        let mount = Arc::downgrade(self);
        self.sources.chunks.on_wrong(move |digest| {
            if let Some(mount) = mount.upgrade() {
                call(mount.inodes_of(digest));
            }
        });
    }

    /// All that show bytes of this layer, as far as its index is in memory.
    fn inodes_of(&self, digest: &Digest) -> Vec<Ino> {
        let mut inodes = Vec::new();
        for (number, layer) in self.layers.iter().enumerate().filter(|(_, layer)| layer.descriptor.digest == *digest) {
            let entries = layer.known().map_or(0, |contents| u32::try_from(contents.index.len()).unwrap_or(u32::MAX));
            inodes.extend((0..entries).map(|entry| Ino::of(Place::Entry { layer: number, entry: EntryId(entry) })));
            let is_it = |id: &NodeId| self.tree.node(*id) == Some(Node::LayerFile(number));
            inodes.extend((0..self.tree.len()).filter(is_it).map(|id| Ino::of(Place::Node(id))));
        }
        inodes
    }

    pub fn usage(&self) -> Usage {
        let layers = self.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.descriptor.size));
        let entries: usize =
            self.layers.iter().filter_map(|layer| layer.known()).map(|contents| contents.index.len()).sum();
        let configs: u64 = self.manifests.iter().map(|part| part.config.len() as u64).sum();
        Usage { bytes: layers.saturating_add(configs), entries: (entries + self.tree.len()) as u64 }
    }

    fn layer(&self, number: usize) -> Result<&Arc<Layer>> {
        self.layers.get(number).ok_or_else(|| Error::new(ErrorKind::NotFound, number, "no such layer"))
    }

    fn manifest(&self, number: usize) -> Result<&Resolved> {
        self.manifests.get(number).ok_or_else(|| Error::new(ErrorKind::NotFound, number, "no such manifest"))
    }

    /// Of an index, a manifest may be missing.
    fn is_whole(&self, node: NodeId) -> Result<()> {
        let Some(Node::Manifest(number)) = self.tree.node(node) else { return Ok(()) };
        self.manifest(number)?.error.clone().map_or(Ok(()), Err)
    }

    /// A layer's contents; known ones without waiting, as nearly every call finds them.
    async fn contents(&self, number: usize) -> Result<Arc<Contents>> {
        let layer = self.layer(number)?;
        layer.look(self.looks.fetch_add(1, Relaxed));
        if layer.is_first_look() {
            self.start_look_ahead(number);
        }
        if let Some(contents) = layer.known() {
            return Ok(contents);
        }
        let timeout = self.options.timeout;
        let contents = in_time(timeout, &layer.descriptor.digest, layer.contents(&self.sources)).await?;
        self.forget_indexes();
        Ok(contents)
    }

    /// Where all indexes together take more than `--memory`: forgets those that were not looked into for longest.
    fn forget_indexes(&self) {
        let memory = &self.sources.index_memory;
        if memory.bytes() <= self.options.memory {
            return;
        }
        let mut layers: Vec<_> = self.layers.iter().filter(|layer| layer.known().is_some()).collect();
        layers.sort_by_key(|layer| layer.last_look());
        // The last one is in use.
        layers.pop();
        for layer in layers {
            if memory.bytes() <= self.options.memory / 4 * 3 {
                break;
            }
            layer.forget();
        }
    }

    fn start_look_ahead(&self, number: usize) {
        // It would fetch whole layers that nobody asked for.
        if self.options.verify_blobs {
            return;
        }
        let Some(LayerNode { place, .. }) = self.layer_nodes.get(number).copied().flatten() else { return };
        let mut look_ahead = self.look_ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let next = look_ahead.note(place, self.walk.len());
        // With one connection, or memory that runs out, what is asked for goes first.
        if self.options.connections < 2 || self.sources.index_memory.bytes() > self.options.memory / 2 {
            return;
        }
        for next in next {
            let layer = self.walk.get(next).and_then(|number| self.layers.get(*number));
            if let Some(layer) = layer.filter(|layer| layer.known().is_none()) {
                let (layer, sources) = (Arc::clone(layer), Arc::clone(&self.ahead));
                tokio::spawn(async move { layer.look_ahead(&sources).await });
            }
        }
    }

    /// When a read fails, the kernel asks once more for the page that the program waits for: half the time for each.
    /// The second waits for the same request to the registry, if that is still under way.
    async fn read_in_time(&self, object: &Digest, read: impl Future<Output = Result<Bytes>>) -> Result<Bytes> {
        in_time(self.options.timeout / 2, object, read).await
    }
}

async fn in_time<T>(timeout: Duration, object: impl Display, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(not_done(timeout, object)))
}

fn not_done(timeout: Duration, object: impl Display) -> Error {
    let cause = format!("not done within {}", humantime::format_duration(timeout));
    Error::new(ErrorKind::TimedOut, object, cause)
        .hint("what was begun goes on; try again, or give more time with --timeout")
}

impl Contents {
    /// `range` of a file, cut at its end; holes are zeros.
    async fn read(&self, file: EntryId, range: std::ops::Range<u64>) -> Result<Bytes> {
        let segments: Vec<Segment> = self.index.segments(file, range).collect();
        // Nearly always: one piece, given out without a copy.
        if let [Segment::Data(range)] = segments.as_slice() {
            return match self.index.segments(file, 0..u64::MAX).next() {
                Some(Segment::Data(file)) => self.source.read_file(&self.blob, file, range.clone()).await,
                _ => self.source.read(&self.blob, range.clone()).await,
            };
        }
        let mut bytes = BytesMut::new();
        for segment in segments {
            match segment {
                Segment::Data(range) => bytes.extend_from_slice(&self.source.read(&self.blob, range).await?),
                Segment::Hole(length) => bytes.resize(bytes.len().saturating_add(length as usize), 0),
            }
        }
        Ok(bytes.freeze())
    }
}
