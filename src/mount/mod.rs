//! What a mount is: the tree, names, attributes, extended attributes and reads, without a kernel.
//! Called by `fuse` and `cli`; uses the io and core layers.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::error::Result;

/// Inode number: 1 is the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    pub const ROOT: Self = Self(1);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

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
    /// Device numbers as the kernel encodes them (`makedev`).
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Of 512 bytes; less than `size` where a file has holes.
    pub blocks: u64,
    pub mtime: SystemTime,
}

/// The size of the dataset, as `statfs` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all layers.
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
    /// No folder: no cache on disk.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of chunks in memory and in flight.
    pub memory: u64,
    /// Longest time that any one operation takes.
    pub timeout: Duration,
    /// Owner shown for everything.
    pub uid: u32,
    pub gid: u32,
    /// Show the archive's owners instead.
    pub preserve_owner: bool,
}

pub struct Mount {}

/// Each call ends within `Options::timeout`, in data or in an error.
impl Mount {
    /// Resolves the reference and checks manifest and config; nothing else is fetched.
    pub async fn open(_reference: &str, _options: Options) -> Result<Self> {
        Ok(Self {})
    }

    pub async fn lookup(&self, _directory: Ino, _name: &[u8]) -> Result<Attributes> {
        unreachable!()
    }

    pub async fn attributes(&self, _ino: Ino) -> Result<Attributes> {
        unreachable!()
    }

    /// Calls `visit` for the names behind `offset` (0: from the start, `.` and `..` included) until it returns false.
    pub async fn list(
        &self,
        _directory: Ino,
        _offset: u64,
        _visit: impl FnMut(Listed<'_>) -> bool + Send,
    ) -> Result<()> {
        unreachable!()
    }

    /// Exactly `size` bytes, fewer only at the end of the file.
    pub async fn read(&self, _file: Ino, _offset: u64, _size: u32) -> Result<Bytes> {
        unreachable!()
    }

    pub async fn read_link(&self, _symlink: Ino) -> Result<Vec<u8>> {
        unreachable!()
    }

    pub async fn xattr(&self, _ino: Ino, _name: &[u8]) -> Result<Option<Vec<u8>>> {
        unreachable!()
    }

    pub async fn xattr_names(&self, _ino: Ino) -> Result<Vec<Vec<u8>>> {
        unreachable!()
    }

    pub fn usage(&self) -> Usage {
        unreachable!()
    }
}
