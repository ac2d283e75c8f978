//! A running mount of the program under test.
//!
//! ```no_run
//! use eo_mount_testing::EoMount;
//!
//! # let program = "eo-mount";
//! // env!("CARGO_BIN_EXE_eo-mount") in the tests of the project.
//! let mounted = EoMount::new(program, "localhost:5000/pastis:sample").arg("--memory").arg("64MiB").mount();
//! let names = std::fs::read_dir(mounted.path()).unwrap().count();
//! assert!(names > 0 && mounted.log().is_empty());
//! assert!(mounted.resident_bytes() < 64 << 20);
//! mounted.unmount();
//!
//! let refused = EoMount::new(program, "localhost:1/no/such:registry").output();
//! assert_eq!((refused.code, refused.stderr.lines().count()), (1, 1));
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::eo_mount::{EoMount, MARK, Prepared, text_of};
use crate::home::Home;
use crate::mount_table::{MountEntry, mounts_at};
use crate::processes::{self, Signal};
use crate::run::{Finished, Started};
use crate::wait::wait_until;

/// A process has this long to end after its mount is gone.
const GRACE: Duration = Duration::from_secs(10);

/// Unmounted when dropped, also by a panic; a process that does not end by itself is killed, and makes the test fail.
pub struct Mounted {
    mountpoint: PathBuf,
    program: PathBuf,
    home: Home,
    mark: String,
    /// Mounts that were at this place before, and are none of ours.
    pub(crate) before: usize,
    /// The command itself, where it stays in the foreground.
    foreground: Option<Started>,
    ended: bool,
}

impl Mounted {
    /// See [`EoMount::mount`].
    #[track_caller]
    pub fn start(call: EoMount) -> Self {
        let (mounted, finished) = Self::attempt(call);
        let log = || text_of(&mounted.home.log_file());
        assert!(
            finished.success(),
            "mounting failed with exit code {}\nstderr: {}\nlog: {}",
            finished.code,
            finished.stderr,
            log()
        );
        assert!(
            mounted.mount_entry().is_some(),
            "the command returned without a mount\nstderr: {}\nlog: {}",
            finished.stderr,
            log()
        );
        mounted
    }

    /// Runs the command to its end, whatever comes of it.
    #[track_caller]
    pub(crate) fn attempt(mut call: EoMount) -> (Self, Finished) {
        let limit = call.limit;
        let (mut mounted, mut command) = Self::from(call.prepare(&[]), call.before);
        let mut started = Started::with_input(&mut command);
        match started.wait(limit) {
            Some(finished) => (mounted, finished),
            None => {
                let said = started.kill();
                let log = mounted.log();
                // Its result does not matter: we fail anyway.
                let _ = mounted.end();
                panic!("{command:?} did not return within {limit:?}\nstderr: {}\nlog: {log}", said.stderr)
            }
        }
    }

    /// See [`EoMount::mount_foreground`].
    #[track_caller]
    pub fn run_foreground(mut call: EoMount) -> Self {
        let limit = call.limit;
        let replaces = call.before.is_some();
        let (mut mounted, mut command) = Self::from(call.prepare(&["-f"]), call.before);
        let mut started = Started::with_input(&mut command);
        let mut finished = None;
        let there = wait_until(limit, || {
            finished = started.wait(Duration::ZERO);
            // The kernel's table does not tell a dead mount from a living one.
            let there = || mounted.mount_entry().is_some() && (!replaces || answers(mounted.path()));
            finished.is_some() || there()
        });
        if let Some(finished) = finished {
            panic!("it ended with exit code {}\nstderr: {}\nlog: {}", finished.code, finished.stderr, mounted.log());
        }
        if !there {
            let said = started.kill();
            panic!("no mount within {limit:?}\nstderr: {}\nlog: {}", said.stderr, mounted.log());
        }
        mounted.foreground = Some(started);
        mounted
    }

    /// See [`EoMount::spawn`].
    #[track_caller]
    pub(crate) fn spawn(mut call: EoMount) -> Self {
        let (mut mounted, mut command) = Self::from(call.prepare(&[]), call.before);
        mounted.foreground = Some(Started::with_input(&mut command));
        mounted
    }

    fn from(prepared: Prepared, before: Option<usize>) -> (Self, Command) {
        let Prepared { command, program, mountpoint, home, mark } = prepared;
        // As the kernel will write it in its table.
        let mountpoint = mountpoint.canonicalize().unwrap_or(mountpoint);
        let before = before.unwrap_or_else(|| mounts_at(&mountpoint).len());
        (Self { mountpoint, program, home, mark, before, foreground: None, ended: false }, command)
    }

    /// The mountpoint.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// A path below the mountpoint.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.mountpoint.join(path)
    }

    /// The home of the program, with its cache and its temporary files.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// What the program wrote to its log so far.
    pub fn log(&self) -> String {
        std::fs::read(self.home.log_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// What a program in the foreground wrote to stderr so far; empty in the background.
    pub fn stderr(&self) -> String {
        self.foreground.as_ref().map(Started::stderr).unwrap_or_default()
    }

    /// What the kernel says of the mount; none when it is gone.
    pub fn mount_entry(&self) -> Option<MountEntry> {
        mounts_at(&self.mountpoint).into_iter().nth(self.before)
    }

    /// All living processes of this mount.
    pub fn processes(&self) -> Vec<u32> {
        processes::marked(MARK, &self.mark)
    }

    /// The process that serves the mount.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let all = self.processes();
        let serves = |&&pid: &&u32| processes::program(pid).is_some_and(|program| program == self.program);
        *all.iter().find(serves).unwrap_or_else(|| {
            panic!("no process runs {} for this mount (others: {all:?})\nlog: {}", self.program.display(), self.log())
        })
    }

    /// Resident memory of the process in bytes.
    #[track_caller]
    pub fn resident_bytes(&self) -> u64 {
        processes::resident_bytes(self.pid()).expect("the process is alive")
    }

    /// The most that it ever was.
    #[track_caller]
    pub fn peak_resident_bytes(&self) -> u64 {
        processes::peak_resident_bytes(self.pid()).expect("the process is alive")
    }

    /// Sends a signal to the process.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        processes::signal(self.pid(), signal);
    }

    /// kill -9: the mount stays behind, dead. Returns when the process is gone.
    #[track_caller]
    pub fn kill(&mut self) {
        let all = self.processes();
        all.iter().copied().for_each(processes::kill);
        // Dying processes are not found any more, but their mounts may still be alive.
        let dead = wait_until(GRACE, || !all.iter().copied().any(processes::is_alive));
        assert!(dead && self.wait_ended(GRACE).is_some(), "of the killed processes {all:?} some are still there");
    }

    /// Waits for all processes to end; none if they do not. The result of a command in the foreground; in the
    /// background there is nobody to ask, and its code is 0.
    pub fn wait_ended(&mut self, limit: Duration) -> Option<Finished> {
        let mut seen: BTreeSet<u32> = self.processes().into_iter().collect();
        let quiet = Finished { code: 0, stdout: Vec::new(), stderr: String::new() };
        let finished = match &mut self.foreground {
            Some(started) => started.wait(limit)?,
            None => quiet,
        };
        let ended = wait_until(limit, || {
            // An ending process loses its environment first, and its files, with the mount, later.
            seen.extend(self.processes());
            !seen.iter().copied().any(processes::is_alive)
        });
        ended.then_some(finished)
    }

    /// Unmounts with `fusermount3 -u`. Panics unless mount and process are gone soon after.
    #[track_caller]
    pub fn unmount(mut self) {
        if let Err(left) = self.end() {
            panic!("{left}\nlog: {}", self.log());
        }
    }

    /// Politely, then lazily: a file that is still open somewhere keeps a mount busy.
    fn detach(&self) {
        for (program, option) in [("fusermount3", "-u"), ("fusermount3", "-uz"), ("umount", "-l")] {
            if self.mount_entry().is_none() {
                return;
            }
            let mut command = Command::new(program);
            command.arg(option).arg(&self.mountpoint);
            if let Ok(mut started) = Started::try_new(command.stdin(Stdio::null()))
                && started.wait(Duration::from_secs(20)).is_none()
            {
                started.kill();
            }
        }
    }

    /// Never panics: it may be called while a test does.
    fn end(&mut self) -> Result<(), String> {
        self.ended = true;
        self.detach();
        if self.wait_ended(GRACE).is_some() && self.mount_entry().is_none() {
            return Ok(());
        }
        let left = self.processes();
        let still_mounted = self.mount_entry().is_some();
        for &pid in &left {
            processes::kill(pid);
        }
        self.wait_ended(GRACE);
        self.detach();
        Err(format!(
            "{GRACE:?} after unmounting {} the processes {left:?} were still there and were killed{}",
            self.mountpoint.display(),
            if still_mounted { ", and so was the mount" } else { "" }
        ))
    }
}

/// Whether this is a FUSE mount with somebody behind it. Another user's mount always seems so.
fn answers(mountpoint: &Path) -> bool {
    // statfs(2), FUSE_SUPER_MAGIC.
    rustix::fs::statfs(mountpoint).is_ok_and(|stat| stat.f_type == 0x6573_5546)
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        match self.end() {
            Ok(()) => {}
            Err(left) if std::thread::panicking() => eprintln!("{left}"),
            Err(left) => panic!("{left}\nlog: {}", self.log()),
        }
    }
}
