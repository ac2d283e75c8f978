//! Files of our own in the cache folder: what somebody else has put in their place is neither followed, nor waited for,
//! nor written to.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What open(2) says to a link that is not to be followed, and to a socket.
const NO_FILE: [Errno; 2] = [Errno::LOOP, Errno::NXIO];

/// A file of our own, which nobody else has put there: a link would lead out of the folder, a fifo would be waited for,
/// and what is written to a file of two names is seen under both.
pub fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    open(path, options, 1)
}

/// One that nobody writes to any more, to be read: it may have another name in a copy of the folder (`cp -al`).
pub fn open_finished(path: &Path) -> io::Result<File> {
    open(path, &mut OpenOptions::new(), u64::MAX)
}

fn open(path: &Path, options: &mut OpenOptions, most_names: u64) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.read(true).mode(0o600).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() > most_names || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of this program's"));
    }
    Ok(file)
}

/// What is no file of our own gives way to one, unless it is a folder.
pub fn open_or_make(path: &Path) -> io::Result<File> {
    match open_own(path, OpenOptions::new().write(true).create(true).truncate(false)) {
        Err(error) if is_foreign(&error) => {
            fs::remove_file(path)?;
            open_own(path, OpenOptions::new().write(true).create_new(true))
        }
        Err(error) if is(&error, &[Errno::ISDIR]) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a folder is in its place"))
        }
        other => other,
    }
}

/// Whether [`open_own`] has found something else.
pub fn is_foreign(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData || is(error, &NO_FILE)
}

/// Whether an open file still is what is at this path.
pub fn is_at(file: &File, path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|now| file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (now.dev(), now.ino())))
}

/// Whether what could not be written may still be read.
pub fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn is(error: &io::Error, any: &[Errno]) -> bool {
    any.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
