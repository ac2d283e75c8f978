//! What is checked of a mount point before anything is mounted there.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{FS_TYPE, attach, mountinfo};
use crate::error::{Error, ErrorKind, Result};

/// A directory that can be mounted on: absolute, without symlinks.
#[derive(Debug)]
pub struct Mountpoint {
    path: PathBuf,
    /// Locked as long as this lives: see [`lock`].
    _lock: OwnedFd,
}

impl Mountpoint {
    /// Checks the directory, and clears away a dead mount of our own. Blocks on the file system.
    ///
    /// Other than fusermount3, and like sshfs and fusermount before it, this refuses a directory that has entries
    /// (they would be hidden) unless `nonempty`.
    pub fn check(path: &Path, nonempty: bool) -> Result<Self> {
        let resolved = resolve(path).map_err(|error| unusable(path, &error))?;
        clear(path, &resolved)?;
        let lock = lock(path, &resolved)?;
        // Somebody may have mounted there just before.
        clear(path, &resolved)?;
        let entries = fs::metadata(&resolved)
            .and_then(|metadata| {
                if !metadata.is_dir() {
                    return Err(Errno::NOTDIR.into());
                }
                fs::read_dir(&resolved)
            })
            .map_err(|error| unusable(path, &error))?;
        if !nonempty && entries.take(1).count() > 0 {
            return Err(Error::new(ErrorKind::Usage, path.display(), "the mount point is not empty")
                .hint("choose an empty directory, or hide what is in it with --nonempty"));
        }
        // fusermount3 asks the same of everyone but root.
        if !rustix::process::geteuid().is_root() {
            rustix::fs::accessat(CWD, &resolved, Access::WRITE_OK, AtFlags::EACCESS)
                .map_err(|error| unusable(path, &error.into()))?;
        }
        Ok(Self { path: resolved, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Two processes that find a directory free, ask the registry, and mount, would lie on each other. So whoever looks
/// locks the directory until the mount is there for all to see. File systems that cannot lock are done without it.
fn lock(path: &Path, resolved: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(resolved, flags, Mode::empty()).map_err(|error| unusable(path, &io::Error::from(error)))?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            Err(Error::new(ErrorKind::Usage, path.display(), "it is being mounted by another process")
                .hint("wait for that, or choose another directory"))
        }
        _ => Ok(directory),
    }
}

fn resolve(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        // The C library may ask the dead mount itself; the directory that holds it still answers.
        Err(error) if is_dead(&error) => {
            let absolute = std::path::absolute(path)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
                _ => Err(error),
            }
        }
        other => other,
    }
}

/// Detaches dead mounts of our own at the directory; any other FUSE mount there is an error.
fn clear(path: &Path, resolved: &Path) -> Result<()> {
    // Several can lie on each other; more than a few means that detaching does not work.
    for _ in 0..8 {
        let table =
            mountinfo::at(resolved).map_err(|error| Error::new(ErrorKind::Io, "/proc/self/mountinfo", &error))?;
        let Some(entry) = table.filter(|entry| entry.fs_type.starts_with("fuse")) else {
            return Ok(());
        };
        // Not `stat`: the kernel answers that for a dead mount from what it remembers. `statfs` always asks.
        let dead = matches!(rustix::fs::statfs(resolved), Err(error) if is_dead(&error.into()));
        let unmount = format!("fusermount3 -u {}", quoted(path));
        if !dead {
            return Err(Error::new(ErrorKind::Usage, path.display(), format!("already mounted: {}", entry.source))
                .hint(format!("unmount it first: {unmount}")));
        }
        if entry.fs_type != FS_TYPE {
            return Err(Error::new(
                ErrorKind::Usage,
                path.display(),
                format!("a dead {} mount is there, of {}", entry.fs_type, entry.source),
            )
            .hint(format!("clear it first: {unmount}")));
        }
        attach::detach(resolved, attach::How::Lazily).map_err(|cause| {
            Error::new(
                ErrorKind::Denied,
                path.display(),
                format!("a dead eo-mount is there and cannot be cleared: {cause}"),
            )
            .hint(format!("as the user who mounted it, or as root: {unmount}"))
        })?;
        tracing::info!("{}: cleared a dead mount of {}", path.display(), entry.source);
    }
    Err(Error::new(ErrorKind::Io, path.display(), "too many dead mounts on each other"))
}

/// What a FUSE mount says when its process is gone.
fn is_dead(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTCONN | Errno::CONNABORTED))
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    let (kind, cause, hint) = match Errno::from_io_error(error) {
        Some(Errno::NOENT) => (
            ErrorKind::NotFound,
            "the mount point does not exist".to_owned(),
            Some(format!("mkdir -p {}", quoted(path))),
        ),
        Some(Errno::NOTDIR) => (
            ErrorKind::Usage,
            "the mount point is not a directory".to_owned(),
            Some("choose an empty directory".to_owned()),
        ),
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => (
            ErrorKind::Denied,
            "no permission to mount there".to_owned(),
            Some("it takes a directory that you may read and write".to_owned()),
        ),
        _ => (ErrorKind::Io, error.to_string(), None),
    };
    let error = Error::new(kind, path.display(), cause);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// As it can be pasted into a shell.
pub(super) fn quoted(path: &Path) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@,=".contains(c);
    match path.to_str() {
        Some(text) if text.chars().all(plain) => text.to_owned(),
        Some(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        // POSIX.1-2024, "Dollar-Single-Quotes": one line, and nothing that a terminal would obey.
        _ => format!("$'{}'", path.as_os_str().as_bytes().iter().map(|&byte| escaped(byte)).collect::<String>()),
    }
}

fn escaped(byte: u8) -> String {
    match byte {
        b' '..=b'~' if !matches!(byte, b'\'' | b'\\') => char::from(byte).to_string(),
        _ => format!("\\{byte:03o}"),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn line(path: &Path, nonempty: bool) -> String {
        Mountpoint::check(path, nonempty).expect_err("refused").to_string()
    }

    #[test]
    fn a_missing_directory_is_refused_with_the_command_that_makes_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = folder.path().join("a/b");
        assert_eq!(
            line(&missing, false),
            format!("{0}: the mount point does not exist (mkdir -p {0})", missing.display())
        );
    }

    #[test]
    fn commands_in_hints_can_be_pasted() {
        assert_eq!(quoted(Path::new("/mnt/pastis-2433")), "/mnt/pastis-2433");
        assert_eq!(quoted(Path::new("/mnt/my data")), "'/mnt/my data'");
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
        assert_eq!(quoted(Path::new("it's\ntwo\\é")), r"$'it\047s\012two\134\303\251'");
        assert_eq!(quoted(Path::new(OsStr::from_bytes(b"\xff"))), r"$'\377'");
    }

    #[test]
    fn a_file_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(line(file.path(), true).contains("is not a directory"));
        assert!(line(&file.path().join("below"), true).contains("is not a directory"));
    }

    #[test]
    fn a_directory_with_entries_needs_nonempty() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("entry"), "").expect("written");
        assert!(line(folder.path(), false).contains("--nonempty"));
        Mountpoint::check(folder.path(), true).expect("allowed");
    }

    #[test]
    fn a_symlink_is_resolved() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("real")).expect("made");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("real", &link).expect("linked");
        let checked = Mountpoint::check(&link, false).expect("allowed");
        assert_eq!(checked.path(), folder.path().canonicalize().expect("resolved").join("real"));
    }
}
