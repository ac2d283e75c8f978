//! Reading a blob on disk, with and without waiting for the disk.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};

use super::{BLOB_CHECKED_AT, BlobFile, CHUNK, GENERATION_AT, checksum_of};

/// Why there are no bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Missing {
    NotHere,
    /// A chunk is not what its checksum says, by its number; it is dropped.
    Damaged(u64),
    /// The disk would have to be waited for.
    Unknown,
}

/// Whether a call may wait for the disk, or only takes what the kernel has in memory.
#[derive(Clone, Copy)]
pub(super) enum How {
    Waiting,
    AtOnce,
}

impl BlobFile {
    /// For each chunk of the range, whether it is here. A map that cannot be read is an empty one.
    pub fn present(&self, chunks: Range<u64>) -> Vec<bool> {
        let length = (chunks.end - chunks.start) as usize;
        self.present_as(&chunks, How::Waiting).unwrap_or_else(|_| vec![false; length])
    }

    /// The same without waiting for the disk; `None`: it would have to be waited for.
    pub fn present_at_once(&self, chunks: &Range<u64>) -> Option<Vec<bool>> {
        self.present_as(chunks, How::AtOnce).ok()
    }

    fn present_as(&self, chunks: &Range<u64>, how: How) -> io::Result<Vec<bool>> {
        Ok(self.checksums(chunks, how)?.into_iter().map(|checksum| checksum != 0).collect())
    }

    /// The bytes of a range, if every chunk of it is here and right. A chunk that is not is dropped.
    pub fn read(&self, range: Range<u64>) -> Option<Bytes> {
        let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK);
        let bytes = self.check(range).inspect_err(|missing| {
            if let Missing::Damaged(chunk) = missing {
                tracing::warn!("{}: chunk {chunk} is damaged; it is fetched again", self.path.display());
            }
        });
        let bytes = bytes.ok()?;
        self.note_use(&chunks);
        Some(bytes)
    }

    /// The same without waiting for the disk. It is a use only if the caller notes it: see [`Self::due`].
    pub fn read_at_once(&self, range: Range<u64>) -> Result<Bytes, Missing> {
        self.look(range, How::AtOnce)
    }

    /// The bytes of a range, which is no use.
    pub fn check(&self, range: Range<u64>) -> Result<Bytes, Missing> {
        self.look(range, How::Waiting)
    }

    fn look(&self, range: Range<u64>, how: How) -> Result<Bytes, Missing> {
        let unread = |_: io::Error| match how {
            How::Waiting => Missing::NotHere,
            How::AtOnce => Missing::Unknown,
        };
        let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK);
        let generation = self.read_word(GENERATION_AT, how).map_err(unread)?;
        let before = self.checksums(&chunks, how).map_err(unread)?;
        if before.contains(&0) {
            return Err(Missing::NotHere);
        }
        if self.checked().holds(generation, &chunks) {
            let bytes = self.pread(range, how).map_err(unread)?;
            // What was given up or written meanwhile may have been read as anything.
            let is_as_before = self.read_word(GENERATION_AT, how).map_err(unread)? == generation
                && self.checksums(&chunks, how).map_err(unread)? == before;
            return if is_as_before { Ok(bytes) } else { Err(Missing::NotHere) };
        }
        let whole = self.pread(chunks.start * CHUNK..(chunks.end * CHUNK).min(self.size), how).map_err(unread)?;
        for ((chunk, bytes), checksum) in chunks.clone().zip(whole.chunks(CHUNK as usize)).zip(&before) {
            if checksum_of(bytes) != *checksum {
                return Err(match how {
                    How::Waiting => self.drop_damaged(chunk),
                    How::AtOnce => Missing::Unknown,
                });
            }
        }
        if self.read_word(GENERATION_AT, how).is_ok_and(|now| now == generation) {
            self.checked().note(generation, &chunks);
        }
        let start = (range.start - chunks.start * CHUNK) as usize;
        Ok(whole.slice(start..start + (range.end - range.start) as usize))
    }

    fn pread(&self, range: Range<u64>, how: How) -> io::Result<Bytes> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        read_at(&self.data, &mut bytes, range.start, how)?;
        Ok(bytes.into())
    }

    /// A chunk that did not have its checksum. It is damaged if that is so while nobody else changes it.
    fn drop_damaged(&self, chunk: u64) -> Missing {
        let Ok(Some(_locked)) = self.lock(&(chunk..chunk + 1)) else { return Missing::NotHere };
        let checksum = self.read_word(self.checksum_at(chunk), How::Waiting).unwrap_or(0);
        let bytes = self.pread(chunk * CHUNK..((chunk + 1) * CHUNK).min(self.size), How::Waiting);
        if checksum == 0 || bytes.is_ok_and(|bytes| checksum_of(&bytes) == checksum) {
            return Missing::NotHere;
        }
        let _ = self.write_map(&[0; 8], BLOB_CHECKED_AT);
        let _ = self.write_map(&[0; 8], self.checksum_at(chunk));
        Missing::Damaged(chunk)
    }

    /// Whether the whole blob was seen to have its digest, and no chunk was given up since.
    pub fn is_blob_checked(&self) -> bool {
        self.is_blob_checked_as(How::Waiting).unwrap_or(false)
    }

    /// The same without waiting for the disk; `None`: it would have to be waited for.
    pub fn is_blob_checked_at_once(&self) -> Option<bool> {
        self.is_blob_checked_as(How::AtOnce).ok()
    }

    fn is_blob_checked_as(&self, how: How) -> io::Result<bool> {
        let generation = self.read_word(GENERATION_AT, how)?;
        Ok(self.read_word(BLOB_CHECKED_AT, how)? == generation.wrapping_add(1))
    }

    /// Checksum of each chunk, 0 where it is not here.
    fn checksums(&self, chunks: &Range<u64>, how: How) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; (chunks.end.saturating_sub(chunks.start) * 8) as usize];
        read_at(&self.map, &mut bytes, self.checksum_at(chunks.start), how)?;
        Ok(bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    pub(super) fn read_word(&self, at: u64, how: How) -> io::Result<u64> {
        let mut word = [0; 8];
        read_at(&self.map, &mut word, at, how)?;
        Ok(u64::from_le_bytes(word))
    }
}

/// All of `bytes`, or an error.
fn read_at(file: &File, bytes: &mut [u8], at: u64, how: How) -> io::Result<()> {
    match how {
        How::Waiting => file.read_exact_at(bytes, at),
        // A part, EAGAIN, or EOPNOTSUPP of a file system that cannot tell: preadv2(2), RWF_NOWAIT.
        How::AtOnce => {
            let length = bytes.len();
            let read = preadv2(file, &mut [IoSliceMut::new(bytes)], at, ReadWriteFlags::NOWAIT)?;
            if read == length { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
        }
    }
}
