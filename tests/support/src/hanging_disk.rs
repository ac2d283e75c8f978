//! A disk that stops answering when told to: a file system in memory, with holes, served by this process.
//!
//! ```no_run
//! let disk = eo_mount_testing::HangingDisk::mount();
//! std::fs::write(disk.path().join("file"), "text").unwrap();
//! disk.hang();
//! // … whoever touches it waits …
//! disk.go_on();
//! ```

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

const PAGE: u64 = 4096;
/// Bytes that it seems to have.
const SIZE: u64 = 64 << 30;
/// Nothing is remembered by the kernel: whatever asks, asks here.
const NOTHING: Duration = Duration::ZERO;

/// See the module. Mounted until dropped.
pub struct HangingDisk {
    folder: tempfile::TempDir,
    shared: Arc<Shared>,
    // Before the folder: it is unmounted first.
    session: Option<BackgroundSession>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    hangs: bool,
    /// The thread that answers waits for it to go on.
    is_stuck: bool,
    sync_takes: Duration,
    syncs: usize,
    /// By inode number; what is unlinked stays.
    nodes: BTreeMap<u64, Node>,
}

enum Node {
    Folder(BTreeMap<OsString, u64>),
    File { size: u64, pages: BTreeMap<u64, Vec<u8>> },
}

impl HangingDisk {
    /// For this process's user; empty.
    pub fn mount() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let shared = Arc::new(Shared::default());
        shared.state().nodes.insert(1, Node::Folder(BTreeMap::new()));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("hanging".to_owned())];
        let session = fuser::spawn_mount(Disk(Arc::clone(&shared)), folder.path(), &config);
        let session = session.unwrap_or_else(|error| panic!("{}: {error}", folder.path().display()));
        Self { folder, shared, session: Some(session) }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// From now on nothing is answered.
    pub fn hang(&self) {
        self.shared.state().hangs = true;
        // One thing more is answered, see `getattr`; if it is somebody else's, this one waits with all others.
        let path = self.path().to_owned();
        std::thread::spawn(move || std::fs::metadata(path));
        drop(self.shared.changed.wait_while(self.shared.state(), |state| !state.is_stuck));
    }

    /// From now on each fsync takes so long; all else is answered as before.
    pub fn sync_takes(&self, time: Duration) {
        self.shared.state().sync_takes = time;
    }

    /// How many of them were begun.
    pub fn syncs(&self) -> usize {
        self.shared.state().syncs
    }

    /// All that waits is answered.
    pub fn go_on(&self) {
        self.shared.state().hangs = false;
        self.shared.changed.notify_all();
    }
}

impl Drop for HangingDisk {
    fn drop(&mut self) {
        self.go_on();
        drop(self.session.take());
        // Whoever has a file of it open still keeps that from unmounting it.
        let mut unmounting = Command::new("fusermount3");
        unmounting.args(["-u", "-z", "-q"]).arg(self.path());
        let _ = unmounting.stderr(Stdio::null()).status();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with it in hand")
    }
}

impl State {
    fn names(&mut self, folder: INodeNo) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match self.nodes.get_mut(&folder.0) {
            Some(Node::Folder(names)) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn pages(&mut self, file: INodeNo) -> Result<(&mut u64, &mut BTreeMap<u64, Vec<u8>>), Errno> {
        match self.nodes.get_mut(&file.0) {
            Some(Node::File { size, pages }) => Ok((size, pages)),
            _ => Err(Errno::EISDIR),
        }
    }

    fn make(&mut self, parent: INodeNo, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let ino = self.nodes.len() as u64 + 1;
        self.names(parent)?.insert(name.to_owned(), ino);
        self.nodes.insert(ino, node);
        self.attributes(INodeNo(ino))
    }

    fn attributes(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let (kind, perm, size, blocks) = match self.nodes.get(&ino.0).ok_or(Errno::ENOENT)? {
            Node::Folder(_) => (FileType::Directory, 0o700, 0, 0),
            Node::File { size, pages } => (FileType::RegularFile, 0o600, *size, pages.len() as u64 * PAGE / 512),
        };
        Ok(FileAttr {
            ino,
            size,
            blocks,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            flags: 0,
            blksize: PAGE as u32,
        })
    }

    fn remove(&mut self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        self.names(parent)?.remove(name).map(|_| ()).ok_or(Errno::ENOENT)
    }
}

struct Disk(Arc<Shared>);

fn done(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn entry(reply: ReplyEntry, found: Result<FileAttr, Errno>) {
    match found {
        Ok(found) => reply.entry(&NOTHING, &found, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

#[allow(clippy::too_many_arguments)]
impl Filesystem for Disk {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.0.state();
        let found = state.names(parent).and_then(|names| names.get(name).copied().ok_or(Errno::ENOENT));
        entry(reply, found.and_then(|ino| state.attributes(INodeNo(ino))));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let mut state = self.0.state();
        match state.attributes(ino) {
            Ok(found) => reply.attr(&NOTHING, &found),
            Err(errno) => reply.error(errno),
        }
        // Answered before: who waits for a request that was not taken yet can be killed, as on a dead NFS server
        // (fs/fuse/dev.c, request_wait_answer). There is one thread.
        if state.hangs {
            state.is_stuck = true;
            self.0.changed.notify_all();
            let mut state =
                self.0.changed.wait_while(state, |state| state.hangs).expect("nothing panics with it in hand");
            state.is_stuck = false;
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        new_size: Option<u64>,
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
        let mut state = self.0.state();
        if let Some(new) = new_size
            && let Ok((size, pages)) = state.pages(ino)
        {
            *size = new;
            pages.retain(|page, _| page * PAGE < new);
            if let Some(last) = pages.get_mut(&(new / PAGE)) {
                last[(new % PAGE) as usize..].fill(0);
            }
        }
        match state.attributes(ino) {
            Ok(found) => reply.attr(&NOTHING, &found),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        entry(reply, self.0.state().make(parent, name, Node::Folder(BTreeMap::new())));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        match self.0.state().make(parent, name, Node::File { size: 0, pages: BTreeMap::new() }) {
            Ok(made) => reply.created(&NOTHING, &made, Generation(0), FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.0.state().remove(parent, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.0.state().remove(parent, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.0.state();
        let moved = state.names(parent).and_then(|names| names.remove(name).ok_or(Errno::ENOENT));
        let moved = moved.and_then(|ino| state.names(new_parent).map(|names| names.insert(new_name.to_owned(), ino)));
        done(reply, moved.map(|_| ()));
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
        let mut state = self.0.state();
        match state.pages(ino) {
            Ok((length, pages)) => {
                let end = (offset + u64::from(size)).min(*length);
                let mut bytes = vec![0; end.saturating_sub(offset) as usize];
                let mut at = offset;
                while at < end {
                    let next = ((at / PAGE + 1) * PAGE).min(end);
                    if let Some(page) = pages.get(&(at / PAGE)) {
                        bytes[(at - offset) as usize..(next - offset) as usize]
                            .copy_from_slice(&page[(at % PAGE) as usize..][..(next - at) as usize]);
                    }
                    at = next;
                }
                reply.data(&bytes);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.state();
        match state.pages(ino) {
            Ok((size, pages)) => {
                let mut at = offset;
                while at < offset + data.len() as u64 {
                    let end = ((at / PAGE + 1) * PAGE).min(offset + data.len() as u64);
                    let page = pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
                    page[(at % PAGE) as usize..][..(end - at) as usize]
                        .copy_from_slice(&data[(at - offset) as usize..(end - offset) as usize]);
                    at = end;
                }
                *size = (*size).max(at);
                reply.written(data.len() as u32);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.0.state();
        state.syncs += 1;
        let time = state.sync_takes;
        std::thread::spawn(move || {
            std::thread::sleep(time);
            reply.ok();
        });
    }

    /// Whatever the mode, it is asked for punching holes only.
    fn fallocate(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, length: u64, _: i32, reply: ReplyEmpty) {
        let punched = self.0.state().pages(ino).map(|(_, pages)| {
            pages.retain(|page, _| page * PAGE < offset || (page + 1) * PAGE > offset + length);
        });
        done(reply, punched);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut state = self.0.state();
        let names: Vec<_> = state.names(ino).map(|names| names.clone().into_iter().collect()).unwrap_or_default();
        for (at, (name, child)) in names.into_iter().enumerate().skip(offset as usize) {
            let child = INodeNo(child);
            let kind = state.attributes(child).map_or(FileType::RegularFile, |child| child.kind);
            if reply.add(child, at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(SIZE / PAGE, SIZE / PAGE, SIZE / PAGE, 1 << 20, 1 << 20, PAGE as u32, 255, PAGE as u32);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn it_hangs_whoever_asks_it_meanwhile() {
        let disk = HangingDisk::mount();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        std::fs::metadata(disk.path()).unwrap();
                    }
                });
            }
            for _ in 0..100 {
                disk.hang();
                disk.go_on();
            }
            ended.store(true, Ordering::Relaxed);
        });
    }
}
