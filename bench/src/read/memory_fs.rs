//! The FUSE ceiling: a file system that answers from memory, with the session settings of `src/fuse`.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
};

/// More than processors cache, so that it comes from memory indeed. A power of two.
const HELD: usize = 256 << 20;
const FILE: INodeNo = INodeNo(2);
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// One file of any size, mounted until dropped. Served by this process, hence to be read by others.
pub struct MemoryFs {
    folder: tempfile::TempDir,
    _session: BackgroundSession,
}

impl MemoryFs {
    pub fn mount(size: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::RO, MountOption::DefaultPermissions, MountOption::FSName("memory".into())];
        config.n_threads = Some(2);
        let held = (0..HELD).map(|at| (at / 4096 + at) as u8).collect();
        let session = fuser::spawn_mount(Memory { size, held }, folder.path(), &config);
        Self { _session: session.unwrap_or_else(|error| panic!("{}: {error}", folder.path().display())), folder }
    }

    pub fn file(&self) -> PathBuf {
        self.path().join("file")
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

struct Memory {
    size: u64,
    held: Vec<u8>,
}

impl Memory {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size) = match ino {
            FILE => (FileType::RegularFile, 0o444, self.size),
            _ => (FileType::Directory, 0o555, 0),
        };
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Memory {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [InitFlags::FUSE_NO_OPEN_SUPPORT, InitFlags::FUSE_ASYNC_DIO] {
            let _ = config.add_capabilities(wanted);
        }
        if let Err(most) = config.set_max_readahead(u32::MAX) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(4096);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&FOREVER, &self.attributes(FILE), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let wanted = u64::from(size).min(self.size.saturating_sub(offset)) as usize;
        // A request may lie across the end of what is held; where it is read from matters to nobody.
        let start = (offset as usize % HELD).min(HELD - wanted);
        reply.data(&self.held[start..start + wanted]);
    }
}
