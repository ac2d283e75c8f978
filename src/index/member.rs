use std::ops::Range;

/// What an entry is, as `stat` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// What a member makes: an entry of its own, or one more name for an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemberKind {
    Entry(Kind),
    HardLink,
}

/// Seconds since 1970, rounded down, and the nanoseconds behind them: -1.5 s is (-2, 500,000,000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mtime {
    pub secs: i64,
    pub nanos: u32,
}

/// One piece of data of a sparse file; between pieces are zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseExtent {
    /// Byte of the file.
    pub offset: u64,
    pub length: u64,
    /// Byte of the blob.
    pub blob: u64,
}

/// One member of an archive with all its extension headers applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Byte of the blob where its first header starts, extension headers included.
    pub header: u64,
    /// Byte of the blob where the next member's first header is due. At most the blob's size.
    pub next: u64,
    /// As the archive spells it, not yet placed safely: see [`super::parts`].
    pub path: Vec<u8>,
    pub kind: MemberKind,
    /// The low 12 bits: permissions, setuid, setgid, sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    /// Bytes of the file as a reader sees it, holes included. 0 for all that is no file.
    pub size: u64,
    /// Bytes of the blob that hold the file's data; empty for all that is no file.
    pub data: Range<u64>,
    /// In rising order, without overlap, at most to `size`; `None`: the file is `data`.
    pub sparse: Option<Vec<SparseExtent>>,
    /// Target of a symbolic link, or the earlier member's name of a hard link.
    pub link: Vec<u8>,
    /// Of a device: as the kernel encodes it for `stat` (`new_encode_dev` in include/linux/kdev_t.h).
    pub rdev: u32,
    /// From `SCHILY.xattr.` records, in the order of the archive, no name twice.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}
