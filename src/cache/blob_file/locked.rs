//! Chunks of a blob that one thread of one process has for itself.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::{BlobFile, CHUNK};

/// Until it is dropped. Ends with the process, too, however that ends.
pub(super) struct Locked<'a> {
    data: &'a File,
    chunks: Range<u64>,
    /// A lock is the open file's, and so that of all threads which share it.
    _turn: MutexGuard<'a, ()>,
}

impl BlobFile {
    /// `None`: somebody else is at one of them. Nobody is waited for, who might be stopped.
    pub(super) fn lock(&self, chunks: &Range<u64>) -> io::Result<Option<Locked<'_>>> {
        let turn = self.locking.lock().unwrap_or_else(PoisonError::into_inner);
        match set(&self.data, libc::F_WRLCK, chunks) {
            Ok(()) => Ok(Some(Locked { data: &self.data, chunks: chunks.clone(), _turn: turn })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Nothing else can be done about it: the lock ends with the file.
        let _ = set(self.data, libc::F_UNLCK, &self.chunks);
    }
}

/// A lock on the bytes of chunks, of the open file, not of the process: fcntl(2), "Open file description locks".
fn set(data: &File, kind: libc::c_int, chunks: &Range<u64>) -> nix::Result<()> {
    let bytes = |chunks: u64| libc::off_t::try_from(chunks * CHUNK).map_err(|_| Errno::EOVERFLOW);
    let lock = libc::flock {
        l_type: kind.try_into().map_err(|_| Errno::EINVAL)?,
        l_whence: libc::SEEK_SET.try_into().map_err(|_| Errno::EINVAL)?,
        l_start: bytes(chunks.start)?,
        l_len: bytes(chunks.end - chunks.start)?,
        l_pid: 0,
    };
    fcntl(data, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}
