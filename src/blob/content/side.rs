//! What stands beside a blob so that it can be read anywhere: windows of checkpoints, and pieces of content. Each is a
//! zstd frame with a checksum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};

use crate::cache::{FolderTurns, MemoryReservation, Reservation};
use crate::error::{Error, ErrorKind, Result};

/// A quarter of a gigabyte a second and more; windows of compressed data do not get smaller with more effort.
const LEVEL: i32 = 1;

/// Where something lies in the side file, and how long it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub at: u64,
    pub length: u32,
}

pub struct Side(Store);

enum Store {
    /// Without a name, or a stored one: either is whole as long as it is open.
    File {
        file: Arc<File>,
        space: Option<Mutex<Reservation>>,
        turns: FolderTurns,
    },
    Memory {
        bytes: Mutex<Vec<u8>>,
        room: Option<MemoryReservation>,
    },
}

impl Side {
    pub fn file(file: File, space: Reservation, turns: FolderTurns) -> Self {
        Self(Store::File { file: Arc::new(file), space: Some(Mutex::new(space)), turns })
    }

    pub fn stored(file: File, turns: FolderTurns) -> Self {
        Self(Store::File { file: Arc::new(file), space: None, turns })
    }

    /// At most so many bytes as are reserved.
    pub fn memory(room: Option<MemoryReservation>) -> Self {
        Self(Store::Memory { bytes: Mutex::default(), room })
    }

    /// Whether there is a file for it: pieces of content would fill the memory.
    pub fn takes_pieces(&self) -> bool {
        matches!(self.0, Store::File { .. })
    }

    /// Most bytes that there may be; `None`: as many as the folder takes.
    pub fn room(&self) -> Option<u64> {
        match &self.0 {
            Store::File { .. } => None,
            Store::Memory { room, .. } => Some(room.as_ref().map_or(0, MemoryReservation::bytes)),
        }
    }

    pub fn as_file(&self) -> Option<&File> {
        match &self.0 {
            Store::File { file, .. } => Some(file),
            Store::Memory { .. } => None,
        }
    }

    /// `at`: where the last thing ends. Blocks: not for threads of the runtime.
    pub fn append(&self, at: u64, content: &[u8]) -> Result<Stored> {
        let mut writer = zstd::bulk::Compressor::new(LEVEL).map_err(broken)?;
        writer.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).map_err(broken)?;
        let frame = writer.compress(content).map_err(broken)?;
        let stored = Stored { at, length: u32::try_from(frame.len()).unwrap_or(u32::MAX) };
        match &self.0 {
            Store::File { file, space, turns } => {
                if let Some(space) = space {
                    space.lock().unwrap_or_else(PoisonError::into_inner).grow(frame.len() as u64)?;
                }
                let file = Arc::clone(file);
                let written = turns.writes.wait_for(move || file.write_all_at(&frame, at));
                written.ok_or_else(hangs)?.map_err(|error| match error.kind() {
                    io::ErrorKind::StorageFull => {
                        Error::new(ErrorKind::NoSpace, "the cache folder", "its file system is full")
                            .hint("free space there, or choose another with --cache-dir")
                    }
                    _ => broken(error),
                })?;
            }
            Store::Memory { bytes, room } => {
                let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                let limit = room.as_ref().map_or(0, MemoryReservation::bytes);
                if (bytes.len() as u64).saturating_add(frame.len() as u64) > limit {
                    let cause =
                        format!("checkpoints of a compressed layer would take more than {limit} bytes of memory");
                    return Err(Error::new(ErrorKind::Limit, "memory", cause)
                        .hint("give a writable folder with --cache-dir, or more with --memory"));
                }
                bytes.extend_from_slice(&frame);
            }
        }
        Ok(stored)
    }

    /// What is of no use any more. Its place is not used again, its space is.
    pub fn give_back(&self, all: Vec<Stored>) {
        if let Store::File { file, turns, .. } = &self.0
            && !all.is_empty()
        {
            let file = Arc::clone(file);
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            turns.writes.wait_for(move || {
                all.iter().all(|stored| fallocate(&file, punch, stored.at, u64::from(stored.length)).is_ok())
            });
        }
    }

    /// Content of `length` at most. An error of kind Corrupt: it is not what was written. Blocks, as `append` does.
    pub fn read(&self, stored: Stored, length: usize) -> Result<Vec<u8>> {
        let mut frame = vec![0; stored.length as usize];
        match &self.0 {
            Store::File { file, turns, .. } => {
                let file = Arc::clone(file);
                let read = turns.reads.wait_for(move || file.read_exact_at(&mut frame, stored.at).map(|()| frame));
                frame = read.ok_or_else(hangs)?.map_err(broken)?;
            }
            Store::Memory { bytes, .. } => {
                let bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                let start = usize::try_from(stored.at).unwrap_or(usize::MAX);
                let found = bytes.get(start..start.saturating_add(frame.len()));
                frame.copy_from_slice(found.ok_or_else(|| broken(io::ErrorKind::UnexpectedEof.into()))?);
            }
        }
        zstd::bulk::decompress(&frame, length).map_err(broken)
    }
}

fn hangs() -> Error {
    Error::new(ErrorKind::TimedOut, "the cache folder", "its disk does not answer")
        .hint("look again: until it answers, it is done without where that can be")
}

fn broken(error: io::Error) -> Error {
    Error::new(ErrorKind::Corrupt, "what is kept of a compressed layer", error)
}
