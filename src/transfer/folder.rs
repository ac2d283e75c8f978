//! A folder that what others have named is written into: no path leaves it, and no symbolic link in it is followed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, RenameFlags, flock, mkdirat, open, openat, renameat, renameat_with, unlinkat,
};
use rustix::io::Errno;
use tokio::time::{Instant, sleep};

use crate::error::{Error, ErrorKind};

/// Bits of a new folder; the umask takes its share.
const FOLDER: Mode = Mode::RWXU.union(Mode::RWXG).union(Mode::RWXO);
const FILE: Mode = Mode::from_raw_mode(0o666);
/// How often to look whether somebody else has finished, and how long that may bring nothing.
pub const LOOK: Duration = Duration::from_millis(100);
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Folder {
    fd: Arc<OwnedFd>,
    /// For what is told.
    path: PathBuf,
}

impl Folder {
    /// Makes it if it is not there. Its own path is the user's: links in it are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let fd = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd: Arc::new(fd), path: path.to_owned() })
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, which may have to be made.
    pub fn enter(&self, name: &OsStr) -> io::Result<Self> {
        self.enter_as(name, FOLDER).map(|(folder, _)| folder)
    }

    /// With these permissions, if it has to be made: that is the flag.
    pub fn enter_as(&self, name: &OsStr, mode: Mode) -> io::Result<(Self, bool)> {
        is_one_name(name)?;
        let made = match mkdirat(&*self.fd, name, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        Ok((self.enter_existing(name)?, made))
    }

    pub fn enter_existing(&self, name: &OsStr) -> io::Result<Self> {
        is_one_name(name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&*self.fd, name, flags, Mode::empty())?;
        Ok(Self { fd: Arc::new(fd), path: self.path.join(name) })
    }

    /// The folder that is to hold `path`, and the last name of it.
    pub fn to(&self, path: &Path) -> io::Result<(Self, OsString)> {
        let mut names = names(path)?;
        let last = names.pop().ok_or_else(|| io::Error::from(Errno::INVAL))?;
        let above = names.into_iter().try_fold(self.clone(), |folder, name| folder.enter(name))?;
        Ok((above, last.to_owned()))
    }

    /// As [`Self::to`], without making anything. `None`: a folder on the way is not there.
    pub fn existing(&self, path: &Path) -> io::Result<Option<(Self, OsString)>> {
        let mut names = names(path)?;
        let last = names.pop().ok_or_else(|| io::Error::from(Errno::INVAL))?;
        match names.into_iter().try_fold(self.clone(), |folder, name| folder.enter_existing(name)) {
            Ok(above) => Ok(Some((above, last.to_owned()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A file that is there. A pipe in its place is not waited for.
    pub fn file(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(openat(&*self.fd, name, flags, Mode::empty())?.into())
    }

    /// For reading and writing; with what was in it.
    pub fn file_to_write(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&*self.fd, name, flags, FILE)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no file is in its place"));
        }
        Ok(file)
    }

    /// One that was not there.
    pub fn new_file(&self, name: &OsStr, mode: Mode) -> io::Result<File> {
        is_one_name(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&*self.fd, name, flags, mode)?.into())
    }

    pub fn has(&self, name: &OsStr) -> bool {
        rustix::fs::statat(&*self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Whether an open file still is what has this name.
    pub fn is_at(&self, file: &File, name: &OsStr) -> bool {
        let now = rustix::fs::statat(&*self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        now.is_ok_and(|now| {
            rustix::fs::fstat(file).is_ok_and(|own| (own.st_dev, own.st_ino) == (now.st_dev, now.st_ino))
        })
    }

    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&*self.fd, name, AtFlags::empty()) {
            Err(error) if error != Errno::NOENT => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// `keep`: what has the name already stays, and that is an error.
    pub fn rename(&self, from: &OsStr, to: &OsStr, keep: bool) -> io::Result<()> {
        let renamed = match keep {
            true => renameat_with(&*self.fd, from, &*self.fd, to, RenameFlags::NOREPLACE),
            false => renameat(&*self.fd, from, &*self.fd, to),
        };
        Ok(renamed?)
    }
}

/// A file or folder that no other process has at the same time, until it is dropped.
pub struct Alone(OwnedFd);

impl Alone {
    /// When nobody else has it. Where the file system has no locks, it goes without.
    pub async fn with(fd: OwnedFd) -> io::Result<Self> {
        let since = Instant::now();
        while flock(&fd, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            if since.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process is extracting it, or into it"));
            }
            sleep(LOOK).await;
        }
        Ok(Self(fd))
    }

    /// It has no name any more.
    pub fn is_gone(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(&self.0)?.st_nlink == 0)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// `..` and absolute paths are refused: whoever wants them opens another [`Folder`].
fn names(path: &Path) -> io::Result<Vec<&OsStr>> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let name = |part| match part {
        Component::Normal(name) => Ok(name),
        _ => Err(io::Error::from(Errno::INVAL)),
    };
    parts.map(name).collect()
}

pub fn is_one_name(name: &OsStr) -> io::Result<()> {
    let bytes = name.as_bytes();
    match bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        true => Err(Errno::INVAL.into()),
        false => Ok(()),
    }
}

/// A path without `.` and `..`, if it stays in the folder that it is joined to. Nobody asks the disk: links are not
/// followed.
pub fn inside(path: &Path) -> Option<PathBuf> {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::CurDir => {}
            Component::ParentDir if parts.pop() => {}
            _ => return None,
        }
    }
    (parts != Path::new("")).then_some(parts)
}

pub fn failed(path: &Path, error: &io::Error) -> Error {
    let (kind, hint) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (ErrorKind::NoSpace, "make room and call it again: it goes on with what is there")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (ErrorKind::Denied, "choose a folder that you may write in with -o")
        }
        io::ErrorKind::AlreadyExists => (ErrorKind::Io, "move it away, or choose another folder with -o"),
        _ if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            (ErrorKind::Denied, "a symbolic link is in its place, and is not followed: remove it")
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            (ErrorKind::Io, "what is in its place is of another kind, or a symbolic link: remove it")
        }
        _ => (ErrorKind::Io, "choose another folder with -o"),
    };
    Error::new(kind, path.display(), error).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_are_told() {
        for (path, expected) in [("a", "a"), ("./a/b", "a/b"), ("a/../b", "b"), ("a/./b/", "a/b")] {
            assert_eq!(inside(Path::new(path)), Some(PathBuf::from(expected)), "{path}");
        }
        for outside in ["/a", "..", "../a", "a/../../b", "", ".", "a/.."] {
            assert_eq!(inside(Path::new(outside)), None, "{outside}");
        }
    }

    #[test]
    fn links_on_the_way_and_at_the_end_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "precious").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("way")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("file"), dir.path().join("end")).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert!(folder.to(Path::new("way/file")).is_err());
        assert!(folder.to(Path::new("../x")).is_err() && folder.to(Path::new("/x")).is_err());
        assert!(folder.file_to_write(OsStr::new("end")).is_err() && folder.file(OsStr::new("end")).is_err());
        let (below, name) = folder.to(Path::new("a/b/c")).unwrap();
        below.file_to_write(&name).unwrap();
        assert!(dir.path().join("a/b/c").is_file());
        assert_eq!(fs::read(outside.path().join("file")).unwrap(), b"precious");
    }
}
