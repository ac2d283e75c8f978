//! Chunks of a blob that one thread of one process has for itself.

use std::fs::File;
use std::ops::Range;
use std::sync::{MutexGuard, PoisonError};

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
    pub(super) fn lock(&self, chunks: &Range<u64>) -> Option<Locked<'_>> {
        let turn = self.locking.lock().unwrap_or_else(PoisonError::into_inner);
        set(&self.data, libc::F_WRLCK, chunks)?;
        Some(Locked { data: &self.data, chunks: chunks.clone(), _turn: turn })
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        set(self.data, libc::F_UNLCK, &self.chunks);
    }
}

/// A lock on the bytes of chunks, of the open file, not of the process: fcntl(2), "Open file description locks".
fn set(data: &File, kind: libc::c_int, chunks: &Range<u64>) -> Option<()> {
    let lock = libc::flock {
        l_type: kind.try_into().ok()?,
        l_whence: libc::SEEK_SET.try_into().ok()?,
        l_start: (chunks.start * CHUNK).try_into().ok()?,
        l_len: ((chunks.end - chunks.start) * CHUNK).try_into().ok()?,
        l_pid: 0,
    };
    fcntl(data, FcntlArg::F_OFD_SETLK(&lock)).ok().map(drop)
}
