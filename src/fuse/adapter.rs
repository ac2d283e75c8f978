//! FUSE requests to calls of [`Mount`] and back: numbers to types, errors to errnos, nothing else.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use super::bridge::Bridge;
use super::errno::errno;
use crate::mount::{Attributes, Ino, Kind, Mount};

/// Everything below a digest is immutable: what the kernel knows stays true as long as the mount. A century rather
/// than the largest number, because the kernel adds it to the time of day.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// An inode number never means another file.
const GENERATION: Generation = Generation(0);

/// Of `stat` and `statfs`, bytes.
const BLOCK_SIZE: u32 = 4096;

/// Longest name that `statfs` promises, bytes.
const NAME_MAX: u32 = 255;

/// Reads by the kernel's read-ahead, as nearly all are, under way at once. What they may fetch is bounded by memory.
const MOST_READS: u16 = 4096;

pub struct Adapter {
    mount: Arc<Mount>,
    bridge: Bridge,
    /// The kernel stops asking after `open` was answered with ENOSYS once (fuse.h, `FUSE_NO_OPEN_SUPPORT`): one round
    /// trip less for each open and close, and pages stay cached across opens. The same for directories, whose
    /// listings are cached then too.
    without_open: bool,
    without_opendir: bool,
}

impl Adapter {
    pub fn new(mount: Arc<Mount>, bridge: Bridge) -> Self {
        Self { mount, bridge, without_open: false, without_opendir: false }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        // Asked for one by one: `add_capabilities` takes all or none. ASYNC_READ and MAX_PAGES are fuser's defaults.
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            // An older kernel without one of them is slower, no more.
            let _ = config.add_capabilities(wanted);
        }
        self.without_open = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.without_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        // The most that the kernel offers is also the most that this takes. It is left at that: a page fault in a
        // memory map reads that much around it (mm/filemap.c, do_sync_mmap_readahead), so more would multiply what
        // random reads fetch.
        if let Err(most) = config.set_max_readahead(u32::MAX) {
            let _ = config.set_max_readahead(most);
        }
        // Reads beyond it wait in the kernel, where the time that a read may take does not count yet.
        let _ = config.set_max_background(MOST_READS);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mount = self.mount.clone();
        let name = name.to_owned();
        self.bridge.answer(async move {
            match mount.lookup(Ino(parent.0), name.as_bytes()).await {
                Ok(Some(attributes)) => reply.entry(&FOREVER, &file_attr(&attributes), GENERATION),
                // Inode 0 is ENOENT that the kernel remembers (fs/fuse/dir.c, fuse_lookup_name).
                Ok(None) => reply.entry(&FOREVER, &file_attr(&NOTHING), GENERATION),
                Err(error) => reply.error(errno("lookup", &error)),
            }
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let mount = self.mount.clone();
        self.bridge.answer(async move {
            match mount.attributes(Ino(ino.0)).await {
                Ok(attributes) => reply.attr(&FOREVER, &file_attr(&attributes)),
                Err(error) => reply.error(errno("stat", &error)),
            }
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let mount = self.mount.clone();
        self.bridge.answer(async move {
            match mount.read_link(Ino(ino.0)).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno("readlink", &error)),
            }
        });
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // For writing: seen only where root remounted with `rw`; the kernel refuses on a read-only mount.
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            reply.error(Errno::EROFS);
        } else if self.without_open {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mount = self.mount.clone();
        self.bridge.answer(async move {
            match mount.read(Ino(ino.0), offset, size).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(errno("read", &error)),
            }
        });
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.without_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mount = self.mount.clone();
        self.bridge.answer(async move {
            let listed = mount
                .list(Ino(ino.0), offset, |entry| {
                    let attributes = &entry.attributes;
                    let full = reply.add(
                        INodeNo(attributes.ino.0),
                        entry.offset,
                        file_type(attributes.kind),
                        OsStr::from_bytes(entry.name),
                    );
                    !full
                })
                .await;
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno("readdir", &error)),
            }
        });
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let mount = self.mount.clone();
        self.bridge.answer(async move {
            let listed = mount
                .list(Ino(ino.0), offset, |entry| {
                    let full = reply.add(
                        INodeNo(entry.attributes.ino.0),
                        entry.offset,
                        OsStr::from_bytes(entry.name),
                        &FOREVER,
                        &file_attr(&entry.attributes),
                        GENERATION,
                    );
                    !full
                })
                .await;
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno("readdir", &error)),
            }
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let mount = self.mount.clone();
        self.bridge.answer(async move {
            let usage = mount.usage();
            let blocks = usage.bytes.div_ceil(u64::from(BLOCK_SIZE));
            reply.statfs(blocks, 0, 0, usage.entries, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // `ls -l` asks for `security.selinux` and `system.posix_acl_access` of every file, until it is told once that
        // there are no such things here.
        if !name.as_bytes().starts_with(b"user.") {
            reply.error(Errno::EOPNOTSUPP);
            return;
        }
        let mount = self.mount.clone();
        let name = name.to_owned();
        self.bridge.answer(async move {
            match mount.xattr(Ino(ino.0), name.as_bytes()).await {
                Ok(Some(value)) => reply_xattr(reply, size, &value),
                Ok(None) => reply.error(Errno::NO_XATTR),
                Err(error) => reply.error(errno("getxattr", &error)),
            }
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let mount = self.mount.clone();
        self.bridge.answer(async move {
            match mount.xattr_names(Ino(ino.0)).await {
                Ok(names) => reply_xattr(reply, size, &joined(&names)),
                Err(error) => reply.error(errno("listxattr", &error)),
            }
        });
    }

    // Not answered here, so ENOSYS by fuser, after which the kernel does without: access (`default_permissions`),
    // flush, fsync, lseek (holes are then data), ioctl, poll, bmap, locks (kept by the kernel).

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}

/// What is sent for a missing name. The kernel looks at the inode number only.
const NOTHING: Attributes = Attributes {
    ino: Ino(0),
    kind: Kind::File,
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    size: 0,
    blocks: 0,
    mtime: SystemTime::UNIX_EPOCH,
};

fn file_attr(from: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(from.ino.0),
        size: from.size,
        blocks: from.blocks,
        // An archive knows one time.
        atime: from.mtime,
        mtime: from.mtime,
        ctime: from.mtime,
        crtime: from.mtime,
        kind: file_type(from.kind),
        perm: from.mode,
        nlink: from.nlink,
        uid: from.uid,
        gid: from.gid,
        rdev: from.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
    }
}

/// The names as `listxattr` gives them: each with a NUL behind it.
fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    names.iter().flat_map(|name| name.iter().copied().chain([0])).collect()
}

fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match xattr_answer(size, value.len()) {
        XattrAnswer::Size(length) => reply.size(length),
        XattrAnswer::Value => reply.data(value),
        XattrAnswer::TooSmall => reply.error(Errno::ERANGE),
        XattrAnswer::TooBig => reply.error(Errno::E2BIG),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum XattrAnswer {
    Size(u32),
    Value,
    TooSmall,
    TooBig,
}

/// xattr(7): a caller first asks for the size with an empty buffer; no value is over 64 KiB.
fn xattr_answer(size: u32, length: usize) -> XattrAnswer {
    const LONGEST: u32 = 64 * 1024;
    match u32::try_from(length) {
        Ok(length) if length > LONGEST => XattrAnswer::TooBig,
        Err(_) => XattrAnswer::TooBig,
        Ok(length) if size == 0 => XattrAnswer::Size(length),
        Ok(length) if length > size => XattrAnswer::TooSmall,
        Ok(_) => XattrAnswer::Value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xattr_is_asked_for_by_size_first() {
        assert_eq!(xattr_answer(0, 71), XattrAnswer::Size(71));
        assert_eq!(xattr_answer(0, 0), XattrAnswer::Size(0));
        assert_eq!(xattr_answer(70, 71), XattrAnswer::TooSmall);
        assert_eq!(xattr_answer(71, 71), XattrAnswer::Value);
        assert_eq!(xattr_answer(1, 65_537), XattrAnswer::TooBig);
    }

    #[test]
    fn xattr_names_each_end_with_nul() {
        assert_eq!(joined(&[b"user.a".to_vec(), b"user.b".to_vec()]), b"user.a\0user.b\0");
        assert_eq!(joined(&[]), b"");
    }

    #[test]
    fn attributes_keep_their_numbers() {
        let mtime = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
        let attr = file_attr(&Attributes {
            ino: Ino(7 << 32 | 9),
            kind: Kind::Symlink,
            mode: 0o555,
            nlink: 2,
            uid: 1000,
            gid: 100,
            rdev: 0,
            size: 5_000_000_000,
            blocks: 16,
            mtime,
        });
        assert_eq!((attr.ino.0, attr.size, attr.blocks), (7 << 32 | 9, 5_000_000_000, 16));
        assert_eq!((attr.kind, attr.perm, attr.nlink, attr.mtime), (FileType::Symlink, 0o555, 2, mtime));
    }
}
