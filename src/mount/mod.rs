//! What a mount is: the tree, names, attributes, extended attributes and reads, without a kernel.
//! Called by `fuse` and `cli`; uses the io and core layers.

mod ahead;
mod attached;
mod attributes;
mod compressed;
mod indexing;
mod layer;
mod lookahead;
mod manifests;
mod names;
mod oci_view;
mod open;
mod prefetch;
mod proof;
mod read;
mod repository;
mod resolve;
mod select;
mod stored;
mod tree;
mod verify;
mod xattrs;
mod zip;

use std::fmt::Display;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use crate::blob::Digested;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{EntryId, LayerIndex};
use crate::oci::{Platform, PublicKey};
use crate::registry::{Access, Traffic};
pub use ahead::{Archive, Holds};
pub use attached::{AttachedIndex, Attachment, INDEX_TYPE};
pub use attributes::{Attributes, Kind};
use layer::{Contents, Layer, Sources};
use lookahead::LookAhead;
pub use manifests::{Resolved, sized};
pub use names::is_path;
use oci_view::OciView;
pub use prefetch::{Fetched, Plan};
use proof::OnWrong;
pub use repository::Repository;
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
    /// 2^31 + the number in `.oci`.
    Oci(u32),
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
    /// Who has to have signed what is mounted.
    pub verify_key: Option<PublicKey>,
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
    /// Whether there is a folder `.oci`.
    pub oci: bool,
    pub attached: AttachedIndex,
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
    /// What an index that the user has named says of chunks.
    digested: Option<Arc<Digested>>,
    repository: Repository,
    /// For layers that nobody has asked for yet.
    ahead: Arc<Sources>,
    /// Numbers of the layers in the order of the tree.
    walk: Vec<usize>,
    look_ahead: Mutex<LookAhead>,
    /// Counts looks into layers.
    looks: AtomicU64,
    tree: Tree,
    /// The folder `.oci`.
    oci: Option<OciView>,
    /// Shown for all that the archives say nothing about.
    created: SystemTime,
    traffic: Arc<Traffic>,
    /// Bytes that readers were given.
    given: AtomicU64,
    on_wrong: OnceLock<Arc<OnWrong>>,
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
                match self.tree.child(id, name) {
                    Some(child) => self.node_attributes(child).map(Some),
                    None if id == 0 && self.oci.is_some() && name == oci_view::NAME.as_bytes() => {
                        self.oci_attributes(0).map(Some)
                    }
                    None => Ok(None),
                }
            }
            Place::Oci(number) => {
                let found = in_time(self.options.timeout, oci_view::NAME, self.oci_view()?.child(number, name)).await?;
                found.map(|child| self.oci_attributes(child)).transpose()
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
            Place::Oci(number) => self.oci_attributes(number),
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
            Place::Oci(number) => {
                let view = self.oci_view()?;
                let parent = match view.parent(number)? {
                    Some(parent) => self.oci_attributes(parent)?,
                    None => self.node_attributes(0)?,
                };
                if (dot && !show(b".", self.oci_attributes(number)?)) || (dot_dot && !show(b"..", parent)) {
                    return Ok(());
                }
                let listing =
                    view.list(number, first, |name, child| Ok(show(name.as_bytes(), self.oci_attributes(child)?)));
                in_time(self.options.timeout, oci_view::NAME, listing).await?;
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

    pub async fn read_link(&self, symlink: Ino) -> Result<Vec<u8>> {
        match self.place(symlink)? {
            Place::Entry { layer, entry } => {
                let contents =
                    in_time(self.options.timeout, &self.layer(layer)?.descriptor.digest, self.proven(layer, entry))
                        .await?;
                contents.is_there(entry)?;
                Ok(contents.index.link_target(entry).to_vec())
            }
            Place::Node(_) | Place::Oci(_) => {
                Err(Error::new(ErrorKind::Unsupported, "readlink", "not a symbolic link"))
            }
        }
    }

    /// Ends when all that was fetched is in the cache folder.
    pub async fn settle(&self) {
        self.sources.chunks.settle().await;
    }

    pub fn usage(&self) -> Usage {
        let layers = self.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.descriptor.size));
        let entries: usize =
            self.layers.iter().filter_map(|layer| layer.known()).map(|contents| contents.index.len()).sum();
        let configs: u64 = self.manifests.iter().map(|part| part.config.len() as u64).sum();
        Usage { bytes: layers.saturating_add(configs), entries: (entries + self.tree.len()) as u64 }
    }

    fn oci_view(&self) -> Result<&OciView> {
        self.oci.as_ref().ok_or_else(|| Error::new(ErrorKind::NotFound, oci_view::NAME, "no such folder"))
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
}

async fn in_time<T>(timeout: Duration, object: impl Display, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(not_done(timeout, object)))
}

fn not_done(timeout: Duration, object: impl Display) -> Error {
    let cause = format!("not done within {}", humantime::format_duration(timeout));
    Error::new(ErrorKind::TimedOut, object, cause)
        .hint("what was begun goes on; try again, or give more time with --timeout")
}
