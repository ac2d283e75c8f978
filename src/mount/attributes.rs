//! What `stat` shows: read-only modes, the mounter's ownership, the archive's times.

use std::time::{Duration, SystemTime};

use super::tree::{Node, NodeId};
use super::{Ino, Mount, Place};
use crate::error::{Error, ErrorKind, Result};
pub use crate::index::Kind;
use crate::index::{EntryId, LayerIndex, Mtime};

/// Read and execute for all; write, setuid and setgid never.
const SHOWN_MODE: u16 = 0o1555;
const BLOCK: u64 = 512;

/// What `stat` shows of one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    pub ino: Ino,
    pub kind: Kind,
    /// Permission bits as shown: without write, setuid and setgid bits.
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device numbers as the kernel encodes them (`new_encode_dev`).
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Of 512 bytes; less than `size` where a file has holes.
    pub blocks: u64,
    pub mtime: SystemTime,
}

/// From here on, up to 2^32, the numbers of `.oci`: no manifest has so many entries of its own.
const OCI: u64 = 1 << 31;

impl Ino {
    pub const ROOT: Self = Self(1);

    pub(super) fn of(place: Place) -> Self {
        match place {
            Place::Node(id) => Self((id as u64).saturating_add(1)),
            Place::Oci(number) => Self(u64::from(number).saturating_add(OCI)),
            Place::Entry { layer, entry: EntryId(entry) } => {
                Self((layer as u64).saturating_add(1) << 32 | u64::from(entry))
            }
        }
    }
}

impl Mount {
    pub(super) fn place(&self, ino: Ino) -> Result<Place> {
        let (layer, low) = ((ino.0 >> 32) as usize, ino.0 as u32);
        match (layer.checked_sub(1), low.checked_sub(1)) {
            (Some(layer), _) => Ok(Place::Entry { layer, entry: EntryId(low) }),
            (None, _) if ino.0 >= OCI => Ok(Place::Oci(u32::try_from(ino.0 - OCI).unwrap_or_default())),
            (None, Some(id)) => Ok(Place::Node(id as NodeId)),
            (None, None) => Err(unknown(ino)),
        }
    }

    pub(super) fn node_attributes(&self, id: NodeId) -> Result<Attributes> {
        match self.tree.node(id).ok_or_else(|| unknown(Ino::of(Place::Node(id))))? {
            Node::Directory | Node::Manifest(_) => Ok(self.directory(Place::Node(id))),
            Node::Layer(layer) => self.layer_attributes(layer),
            Node::LayerFile(layer) => Ok(self.file(Place::Node(id), self.layer(layer)?.descriptor.size)),
            Node::Config(number) => Ok(self.file(Place::Node(id), self.manifest(number)?.config.len() as u64)),
            Node::Blob(_) => Err(unknown(Ino::of(Place::Node(id)))),
        }
    }

    pub(super) fn oci_attributes(&self, number: u32) -> Result<Attributes> {
        let place = Place::Oci(number);
        Ok(self.oci_view()?.size(number)?.map_or_else(|| self.directory(place), |size| self.file(place, size)))
    }

    /// The same before and after the layer is indexed, because the kernel keeps attributes for ever.
    pub(super) fn layer_attributes(&self, layer: usize) -> Result<Attributes> {
        self.layer(layer)?;
        Ok(self.directory(Place::Entry { layer, entry: LayerIndex::ROOT }))
    }

    pub(super) fn entry_attributes(&self, layer: usize, index: &LayerIndex, id: EntryId) -> Result<Attributes> {
        if id == LayerIndex::ROOT {
            return self.layer_attributes(layer);
        }
        let ino = Ino::of(Place::Entry { layer, entry: id });
        let entry = index.entry(id).ok_or_else(|| unknown(ino))?;
        let (uid, gid) =
            if self.options.preserve_owner { (entry.uid, entry.gid) } else { (self.options.uid, self.options.gid) };
        Ok(Attributes {
            ino,
            kind: entry.kind,
            mode: entry.mode & SHOWN_MODE,
            nlink: entry.nlink,
            uid,
            gid,
            rdev: entry.rdev,
            size: entry.size,
            blocks: entry.allocated.div_ceil(BLOCK),
            mtime: system_time(entry.mtime),
        })
    }

    fn directory(&self, place: Place) -> Attributes {
        Attributes {
            ino: Ino::of(place),
            kind: Kind::Directory,
            mode: 0o555,
            // The number of directories inside is not known before the layer is indexed; 1 says so (btrfs does the same).
            nlink: 1,
            uid: self.options.uid,
            gid: self.options.gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            mtime: self.created,
        }
    }

    fn file(&self, place: Place, size: u64) -> Attributes {
        Attributes {
            kind: Kind::File,
            mode: 0o444,
            nlink: 1,
            size,
            blocks: size.div_ceil(BLOCK),
            ..self.directory(place)
        }
    }
}

fn unknown(ino: Ino) -> Error {
    Error::new(ErrorKind::NotFound, format!("inode {}", ino.0), "no such inode")
}

/// Times that the system cannot express become 1970.
fn system_time(time: Mtime) -> SystemTime {
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(SystemTime::UNIX_EPOCH)
}
