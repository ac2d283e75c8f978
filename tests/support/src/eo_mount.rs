//! How the program is called.

use std::ffi::{OsStr, OsString};
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::as_user::{User, is_root, open_fuse_to_all};
use crate::home::Home;
use crate::mounted::Mounted;
use crate::run::Finished;

/// The variable by which all processes of one run are found.
pub(crate) const MARK: &str = "TEST_RUN_ID";

/// A call of the program: `eo-mount --log FILE <arguments> REFERENCE MOUNTPOINT`.
#[derive(Debug, Clone)]
pub struct EoMount {
    pub(crate) program: PathBuf,
    reference: Option<String>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    input: Option<String>,
    pub(crate) mountpoint: Option<PathBuf>,
    pub(crate) home: Option<Home>,
    log: bool,
    user: Option<User>,
    /// Mounts at this place that are none of ours, if they are not to be counted now.
    pub(crate) before: Option<usize>,
    pub(crate) limit: Duration,
}

impl EoMount {
    /// `program` is `env!("CARGO_BIN_EXE_eo-mount")` in the tests of the project.
    pub fn new(program: impl Into<PathBuf>, reference: impl Into<String>) -> Self {
        Self { reference: Some(reference.into()), log: true, ..Self::bare(program) }
    }

    /// With nothing but the arguments that are added: no reference, no mountpoint, no log.
    pub fn bare(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            reference: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
            input: None,
            mountpoint: None,
            home: None,
            log: false,
            user: None,
            before: None,
            limit: Duration::from_secs(90),
        }
    }

    /// One more argument, before the reference.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// One more variable, or another value for one of the home's.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Where the program is started; else where the tests are.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// What it reads from standard input; else nothing.
    pub fn input(mut self, text: impl Into<String>) -> Self {
        self.input = Some(text.into());
        self
    }

    /// Instead of a fresh directory in the home.
    pub fn mountpoint(mut self, mountpoint: impl Into<PathBuf>) -> Self {
        self.mountpoint = Some(mountpoint.into());
        self
    }

    /// Instead of a fresh one: to find the cache of an earlier mount again.
    pub fn home(mut self, home: &Home) -> Self {
        self.home = Some(home.clone());
        self
    }

    /// At the place of a mount that was killed, which the call is to clear away, and in its home.
    pub fn in_place_of(mut self, dead: &Mounted) -> Self {
        self.before = Some(dead.before);
        self.home(dead.home()).mountpoint(dead.path())
    }

    /// Without `--log FILE`.
    pub fn without_log(mut self) -> Self {
        self.log = false;
        self
    }

    /// As this user if we are root, with a home that is the user's unless another is given, and `/dev/fuse` open to
    /// all.
    pub fn as_user(mut self, user: &User) -> Self {
        self.user = Some(user.clone());
        self
    }

    /// How long the command may take until it returns, or until a mount in the foreground is there; 90 s unless set.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Mounts and returns when the command does. Panics if it fails.
    #[track_caller]
    pub fn mount(self) -> Mounted {
        Mounted::start(self)
    }

    /// Mounts with `-f` and returns when the kernel has the mount. Panics if it does not come.
    #[track_caller]
    pub fn mount_foreground(self) -> Mounted {
        Mounted::run_foreground(self)
    }

    /// Starts the command and waits for nothing.
    #[track_caller]
    pub fn spawn(self) -> Mounted {
        Mounted::spawn(self)
    }

    /// Runs a command that is meant to fail. Should it mount nevertheless, everything is cleaned up.
    #[track_caller]
    pub fn output(self) -> Finished {
        Mounted::attempt(self).1
    }

    /// The command with home and mountpoint filled in, and the mark of its run.
    pub(crate) fn prepare(&mut self, extra: &[&str]) -> Prepared {
        let home = self.home.clone().unwrap_or_else(|| self.user.as_ref().map_or_else(Home::new, Home::of));
        let mountpoint = self.mountpoint.clone().unwrap_or_else(|| home.new_mountpoint());
        let program = match &self.user {
            Some(_) if is_root() => home.copy_of(&self.program),
            _ => self.program.canonicalize().unwrap_or_else(|_| self.program.clone()),
        };
        let mut command = match &self.user {
            Some(user) => {
                open_fuse_to_all();
                user.command(&program)
            }
            None => Command::new(&program),
        };
        home.apply(&mut command);
        if self.log {
            command.arg("--log").arg(home.log_file());
        }
        command.args(extra).args(&self.arguments);
        if let Some(reference) = &self.reference {
            command.arg(reference).arg(&mountpoint);
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        } else if self.user.is_some() {
            command.current_dir(home.path());
        }
        match &self.input {
            Some(text) => {
                let mut file = tempfile::tempfile().expect("a temporary file");
                file.write_all(text.as_bytes()).expect("a temporary file can be written");
                file.rewind().expect("a file has a beginning");
                command.stdin(file);
            }
            None => {
                command.stdin(Stdio::null());
            }
        }
        let mark = new_mark();
        command.env(MARK, &mark).envs(self.environment.iter().map(|(name, value)| (name, value)));
        Prepared { command, program, mountpoint, home, mark }
    }
}

pub(crate) struct Prepared {
    pub command: Command,
    pub program: PathBuf,
    pub mountpoint: PathBuf,
    pub home: Home,
    pub mark: String,
}

fn new_mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// For messages: the file's text, or that there is none.
pub(crate) fn text_of(file: &Path) -> String {
    match std::fs::read(file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("({}: {error})", file.display()),
    }
}
