//! What verbs want and no kernel asks for: paths, layers by name, indexes ahead of use, manifests, and blobs as they are.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::tree::Node;
use super::{Attributes, Ino, Kind, Mount, Place, Repository, Resolved};
use crate::blob::{BlobSource, LocalFiles};
use crate::cache::MemoryReservation;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{LayerIndex, Segment};
use crate::oci::{Descriptor, Digest};
use crate::registry::TrafficCount;

/// Symbolic links followed for one path (Linux: `MAXSYMLINKS`).
const HOPS: usize = 40;

/// A layer that is a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    pub number: usize,
    /// Below the root of the mount.
    pub path: String,
    pub digest: Digest,
}

/// What a place in the tree is to those who move blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A directory that the manifests make.
    Directory,
    /// The layer of this number, whole.
    Layer(usize),
    /// The config of this manifest.
    Config(usize),
    /// Something in the layer of this number.
    Member(usize),
}

impl Mount {
    /// Those of an index, or one; that of the reference first.
    pub fn manifests(&self) -> &[Resolved] {
        &self.manifests
    }

    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    pub fn blob_of_layer(&self, number: usize) -> Result<&Descriptor> {
        Ok(&self.layer(number)?.descriptor)
    }

    /// Below the root of the mount; one that stands twice in a manifest has a place once.
    pub fn path_of_layer(&self, number: usize) -> Option<String> {
        self.tree.path_of_layer(number)
    }

    pub fn holds(&self, ino: Ino) -> Result<Holds> {
        Ok(match self.place(ino)? {
            Place::Entry { layer, entry: LayerIndex::ROOT } => Holds::Layer(layer),
            Place::Entry { layer, .. } => Holds::Member(layer),
            Place::Oci(_) => {
                let error = Error::new(ErrorKind::Unsupported, ".oci", "it is not taken from there");
                return Err(error.hint("name the layers as the mount shows them"));
            }
            Place::Node(id) => match self.tree.node(id) {
                Some(Node::Layer(number) | Node::LayerFile(number)) => Holds::Layer(number),
                Some(Node::Config(number)) => Holds::Config(number),
                _ => Holds::Directory,
            },
        })
    }

    /// Bytes of a blob as it is, through the chunk cache. Takes as long as the registry takes.
    pub async fn read_blob(&self, blob: &Descriptor, range: Range<u64>) -> Result<Bytes> {
        self.sources.chunks.read(blob, range).await
    }

    /// Keeps less of what is read in memory, for as long as this lives: for those who read everything once.
    pub fn read_once(&self) -> Option<MemoryReservation> {
        self.sources.chunks.reserve(self.sources.chunks.memory() / 2)
    }

    /// Blobs as [`Self::read_blob`] reads them.
    pub fn blobs(&self) -> Arc<dyn BlobSource> {
        self.sources.chunks.clone()
    }

    /// Where it comes from.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Bytes of a range of a blob that are in the cache folder. Blocks on the disk.
    pub fn cached_bytes(&self, blob: &Descriptor, range: &Range<u64>) -> u64 {
        self.sources.chunks.cached_bytes(blob, range)
    }

    /// The same without blocking.
    pub async fn kept_bytes(&self, blob: &Descriptor) -> u64 {
        self.sources.chunks.kept_on_disk(blob, std::iter::once(0..blob.size).collect()).await.0
    }

    /// Some of what was kept or came of a blob has proven wrong: it is fetched again when it is wanted again. True:
    /// from elsewhere, no mirror being asked for it any more.
    pub fn drop_wrong(&self, blob: &Descriptor) -> bool {
        self.sources.chunks.drop_wrong(blob);
        self.repository.distrust_mirrors(&blob.digest)
    }

    /// Blobs that are read from files of this machine from now on.
    pub fn local(&self) -> &LocalFiles {
        &self.sources.local
    }

    /// The permission bits that the archive has for it; nothing for what the manifest alone makes.
    pub async fn archived_mode(&self, ino: Ino) -> Result<Option<u16>> {
        match self.place(ino)? {
            Place::Entry { entry: LayerIndex::ROOT, .. } | Place::Node(_) | Place::Oci(_) => Ok(None),
            Place::Entry { layer, entry } => {
                let contents = self.layer(layer)?.contents(&self.sources).await?;
                Ok(contents.index.entry(entry).map(|entry| entry.mode))
            }
        }
    }

    /// Ranges of a file that hold data; between them are holes.
    pub async fn data_ranges(&self, file: Attributes) -> Result<Vec<Range<u64>>> {
        let Place::Entry { layer, entry } = self.place(file.ino)? else {
            return Ok(std::iter::once(0..file.size).collect());
        };
        let contents = self.proven(layer, entry).await?;
        contents.is_there(entry)?;
        let (mut at, mut ranges) = (0_u64, Vec::new());
        for segment in contents.index.segments(entry, 0..u64::MAX) {
            let (length, is_data) = match segment {
                Segment::Data(range) => (range.end.saturating_sub(range.start), true),
                Segment::Hole(length) => (length, false),
            };
            let end = at.saturating_add(length);
            ranges.extend(is_data.then_some(at..end));
            at = end;
        }
        Ok(ranges)
    }

    /// What a path below the root names. Symbolic links on the way are followed within the dataset, the last is not.
    pub async fn resolve(&self, path: &[u8]) -> Result<Attributes> {
        let failed = |cause: &str| Error::new(ErrorKind::NotFound, String::from_utf8_lossy(path), cause);
        let mut trail = vec![self.attributes(Ino::ROOT).await?];
        let backwards = |path: &[u8]| path.rsplit(|&byte| byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut parts = backwards(path);
        let mut hops = HOPS;
        while let Some(part) = parts.pop() {
            let Some(above) = trail.last() else { break };
            match part.as_slice() {
                b"" | b"." => continue,
                _ if above.kind != Kind::Directory => return Err(failed("not a directory on the way")),
                b".." => {
                    trail.truncate(trail.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => self.indexed(above.ino).await?,
            }
            let Some(found) = self.lookup(above.ino, &part).await? else {
                return Err(failed("no such file or directory in the dataset"));
            };
            if found.kind != Kind::Symlink || parts.is_empty() {
                trail.push(found);
                continue;
            }
            let target = self.read_link(found.ino).await?;
            if target.starts_with(b"/") {
                return Err(failed("a symbolic link on the way leads out of the dataset"));
            }
            hops = hops.checked_sub(1).ok_or_else(|| failed("too many symbolic links on the way"))?;
            parts.extend(backwards(&target));
        }
        trail
            .pop()
            .filter(|found| found.kind == Kind::Directory || !path.ends_with(b"/"))
            .ok_or_else(|| failed("not a directory"))
    }

    /// Waits until the layer of this inode is indexed, however long that takes: for those who are not asked by a kernel.
    pub async fn indexed(&self, ino: Ino) -> Result<()> {
        match self.place(ino)? {
            Place::Entry { layer, .. } => self.layer(layer)?.contents(&self.sources).await.map(drop),
            Place::Node(_) | Place::Oci(_) => Ok(()),
        }
    }

    /// Indexes a layer and keeps the index in the cache folder, not in memory; the number of its entries.
    ///
    /// # Errors
    /// Also if the index cannot be kept.
    pub async fn index_ahead(&self, layer: usize) -> Result<u64> {
        self.layer(layer)?.index_ahead(&self.sources).await
    }

    /// Of the layer that holds this inode.
    pub fn layer_digest(&self, ino: Ino) -> Option<&Digest> {
        let number = match self.place(ino).ok()? {
            Place::Entry { layer, .. } => layer,
            Place::Oci(_) => return None,
            Place::Node(id) => match self.tree.node(id)? {
                Node::Layer(number) | Node::LayerFile(number) => number,
                Node::Directory | Node::Manifest(_) | Node::Config(_) | Node::Blob(_) => return None,
            },
        };
        self.layers.get(number).map(|layer| &layer.descriptor.digest)
    }

    /// The layers that are directories, in the order of the manifest.
    pub fn archives(&self) -> Vec<Archive> {
        let mut archives: Vec<_> = self
            .tree
            .layers()
            .into_iter()
            .filter_map(|(number, node)| {
                let digest = self.layers.get(number)?.descriptor.digest.clone();
                Some(Archive { number, path: self.tree.path(node), digest })
            })
            .collect();
        archives.sort_by_key(|archive| archive.number);
        archives
    }

    pub fn traffic(&self) -> TrafficCount {
        self.traffic.count()
    }
}
