//! A home of its own for the program under test: nothing of the user's gets in, nothing of the test's gets out.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::as_user::{User, is_root};
use crate::run::run;

/// A temporary directory with folders for cache, runtime files, temporary files and mountpoints. Clones share it;
/// the last one removes it.
#[derive(Debug, Clone)]
pub struct Home {
    directory: Arc<TempDir>,
    owner: Option<User>,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// Belongs to whoever runs the tests.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("eo-mount-test.").tempdir().expect("a temporary directory");
        let home = Self { directory: Arc::new(directory), owner: None };
        for folder in [home.cache(), home.runtime(), home.tmp()] {
            std::fs::create_dir(&folder).expect("a temporary directory can be written");
            set_mode(&folder, 0o700);
        }
        home
    }

    /// Belongs to this user if we are root.
    pub fn of(user: &User) -> Self {
        let home = Self { owner: Some(user.clone()), ..Self::new() };
        set_mode(home.path(), 0o755);
        for folder in [home.path().to_owned(), home.cache(), home.runtime(), home.tmp()] {
            home.give_away(&folder);
        }
        home
    }

    /// The directory itself, which is `HOME`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// `XDG_CACHE_HOME`.
    pub fn cache(&self) -> PathBuf {
        self.path().join("cache")
    }

    /// `XDG_RUNTIME_DIR`.
    pub fn runtime(&self) -> PathBuf {
        self.path().join("run")
    }

    /// `TMPDIR`: empty when no temporary file was left behind.
    pub fn tmp(&self) -> PathBuf {
        self.path().join("tmp")
    }

    /// Where [`Mounted`](crate::Mounted) lets the program write its log.
    pub fn log_file(&self) -> PathBuf {
        self.path().join("log")
    }

    /// A fresh empty directory.
    pub fn new_mountpoint(&self) -> PathBuf {
        let directory =
            tempfile::Builder::new().prefix("mnt.").tempdir_in(self.path()).expect("a temporary directory").keep();
        set_mode(&directory, 0o755);
        self.give_away(&directory);
        // As the kernel will write it in its table.
        directory.canonicalize().expect("a directory that was just made")
    }

    /// Nothing but these folders, a path and a language is left of the environment.
    pub(crate) fn apply(&self, command: &mut Command) {
        command.env_clear();
        // For measuring the coverage of tests.
        for name in ["PATH", "LLVM_PROFILE_FILE"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.env("HOME", self.path()).env("XDG_CACHE_HOME", self.cache());
        command.env("XDG_RUNTIME_DIR", self.runtime()).env("TMPDIR", self.tmp());
        command.env("LANG", "C.UTF-8").env("RUST_BACKTRACE", "1");
    }

    /// A copy of a program which the owner can reach wherever the build folder is.
    pub(crate) fn copy_of(&self, program: &Path) -> PathBuf {
        let copy = self.path().join(program.file_name().expect("a program has a name"));
        if !copy.exists() {
            // Not by ourselves: a process forked by another test would hold the copy open for writing for a moment,
            // and the kernel would not run it ("Text file busy").
            let mut cp = Command::new("cp");
            cp.arg("--preserve=mode").arg(program).arg(&copy);
            run(&mut cp, Duration::from_secs(60)).expect_success("copying the program");
        }
        copy
    }

    fn give_away(&self, path: &Path) {
        if let Some(owner) = &self.owner
            && is_root()
        {
            chown(path, Some(owner.uid), Some(owner.gid)).expect("root can give a directory away");
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("one's own file can be changed");
}
