//! A stand-in for the program under test, for the tests of `Mounted`: one file, `hello.txt`.
//!
//! `hello_mount [--log FILE] [-f] REFERENCE MOUNTPOINT`, where the reference says what to do: `well`, `refuse` (fails
//! with code 1), `stay` (does not end with its mount), `lie` (succeeds without a mount), `hang` (never returns).

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use eo_mount_testing::mount_table::mounts_at;
use eo_mount_testing::wait::wait_until;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, MountOption, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, Request,
};

const TEXT: &[u8] = b"hello\n";
const FILE: INodeNo = INodeNo(2);
const LONG: Duration = Duration::from_secs(3600);

fn attributes(ino: INodeNo) -> Option<FileAttr> {
    let (kind, perm, size) = match ino {
        INodeNo::ROOT => (FileType::Directory, 0o555, 0),
        FILE => (FileType::RegularFile, 0o444, TEXT.len() as u64),
        _ => return None,
    };
    let time = UNIX_EPOCH;
    Some(FileAttr {
        ino,
        size,
        blocks: 1,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 512,
    })
}

struct Hello;

impl Filesystem for Hello {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match attributes(FILE) {
            Some(found) if name == "hello.txt" => reply.entry(&LONG, &found, Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attributes(ino) {
            Some(found) => reply.attr(&LONG, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(TEXT.get(offset as usize..).unwrap_or_default());
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if offset == 0 {
            let _full = reply.add(FILE, 1, FileType::RegularFile, "hello.txt");
        }
        reply.ok();
    }
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mountpoint = PathBuf::from(arguments.pop().unwrap_or_default());
    let reference = arguments.pop().unwrap_or_default();
    match reference.as_str() {
        "well" | "stay" => {}
        "lie" => return ExitCode::SUCCESS,
        "hang" => {
            std::thread::sleep(LONG);
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("hello_mount: {reference}: refused");
            return ExitCode::FAILURE;
        }
    }
    if arguments.iter().any(|argument| argument == "-f") {
        serve(&arguments, &mountpoint, reference == "stay");
        return ExitCode::SUCCESS;
    }
    // A session of its own, as a background process has; it keeps stderr, as a careless one does.
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.args(&arguments).args(["-f", &reference]).arg(&mountpoint).stdin(Stdio::null()).process_group(0);
    let before = mounts_at(&mountpoint).len();
    #[allow(clippy::zombie_processes, reason = "it goes on when this process has ended")]
    let _serving = command.spawn().expect("this program again");
    if wait_until(Duration::from_secs(20), || mounts_at(&mountpoint).len() > before) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    }
}

fn serve(arguments: &[String], mountpoint: &Path, stay: bool) {
    if let Some(at) = arguments.iter().position(|argument| argument == "--log") {
        std::fs::write(&arguments[at + 1], "hello_mount: serving\n").expect("a log file");
    }
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("hello".to_owned())];
    if let Err(error) = fuser::mount(Hello, mountpoint, &config) {
        eprintln!("hello_mount: {error}");
    }
    if stay {
        std::thread::sleep(LONG);
    }
}
