//! One blob in the cache folder: the blob itself, with holes, and beside it a map with a checksum for each chunk that is
//! there. Processes share both: a chunk is written before its checksum, and its checksum is taken back before its bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use xxhash_rust::xxh3::xxh3_64;

use super::CHUNK;

/// Chunks whose use is noted together, and which are evicted together: 4 MiB.
pub const GROUP: u64 = 64;
/// A use is written down at most so often, in seconds.
const NOTE_AGAIN: u32 = 30;

pub(super) const MAGIC: [u8; 8] = *b"eo-map 1";
/// Magic, size of the blob, bytes of a chunk, flags: little-endian, the rest zeros.
const HEADER: u64 = 64;
const FLAGS_AT: u64 = 24;
const WHOLE_BLOB_CHECKED: u64 = 1;

/// See the module. The map is: header; for each group the second of its last use (u32); for each chunk its xxh3 (u64, 0:
/// not here). All little-endian.
pub struct BlobFile {
    data: File,
    map: File,
    size: u64,
    /// A bit for each chunk whose checksum this process has seen to hold.
    checked: Vec<AtomicU64>,
    /// When this process noted the use of each group last.
    noted: Vec<AtomicU32>,
}

/// A chunk that is not what its checksum says.
#[derive(Debug, PartialEq, Eq)]
pub struct Damaged;

impl BlobFile {
    /// Opens or makes both files. A map that is not one of this blob is made anew.
    pub fn open(path: &Path, size: u64) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            super::folder::make_private(folder)?;
        }
        let open =
            |path: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let chunks = size.div_ceil(CHUNK);
        let mut file = Self {
            data: open(path)?,
            map: open(&map_path(path))?,
            size,
            checked: (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            noted: (0..chunks.div_ceil(GROUP)).map(|_| AtomicU32::new(0)).collect(),
        };
        // Who has the map alone may make it anew or take it away; who uses it shares it.
        while !file.prepare(path)? {
            (file.data, file.map) = (open(path)?, open(&map_path(path))?);
        }
        Ok(file)
    }

    /// False if the files were taken away before they were locked.
    fn prepare(&self, path: &Path) -> io::Result<bool> {
        let alone = match flock(&self.map, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK) => false,
            Err(error) => return Err(error.into()),
        };
        if alone && !self.is_sound()? {
            self.map.set_len(0)?;
            self.data.set_len(0)?;
            self.data.set_len(self.size)?;
            self.map.set_len(self.map_length())?;
            self.map.write_all_at(&self.identity(), 0)?;
        }
        flock(&self.map, FlockOperation::LockShared)?;
        let is_at = |file: &File, path: &Path| {
            std::fs::metadata(path).is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino()))
        };
        if !is_at(&self.map, &map_path(path)) || !is_at(&self.data, path) {
            return Ok(false);
        }
        if !self.is_sound()? {
            return Err(io::Error::other("another process uses it as something else"));
        }
        Ok(true)
    }

    fn is_sound(&self) -> io::Result<bool> {
        let mut header = [0; HEADER as usize];
        let lengths = self.map.metadata()?.len() == self.map_length() && self.data.metadata()?.len() == self.size;
        Ok(lengths && self.map.read_exact_at(&mut header, 0).is_ok() && header.starts_with(&self.identity()))
    }

    fn identity(&self) -> [u8; FLAGS_AT as usize] {
        let mut identity = [0; FLAGS_AT as usize];
        for (place, byte) in
            identity.iter_mut().zip(MAGIC.into_iter().chain(self.size.to_le_bytes()).chain(CHUNK.to_le_bytes()))
        {
            *place = byte;
        }
        identity
    }

    fn map_length(&self) -> u64 {
        self.checksum_at(self.size.div_ceil(CHUNK))
    }

    fn checksum_at(&self, chunk: u64) -> u64 {
        let groups = self.noted.len() as u64;
        HEADER + (groups * 4).next_multiple_of(8) + chunk * 8
    }

    /// Checksum of each chunk, 0 where it is not here.
    fn checksums(&self, chunks: &Range<u64>) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; ((chunks.end - chunks.start) * 8) as usize];
        self.map.read_exact_at(&mut bytes, self.checksum_at(chunks.start))?;
        Ok(bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// For each chunk of the range, whether it is here. A map that cannot be read is an empty one.
    pub fn present(&self, chunks: Range<u64>) -> Vec<bool> {
        match self.checksums(&chunks) {
            Ok(checksums) => checksums.into_iter().map(|checksum| checksum != 0).collect(),
            Err(_) => vec![false; (chunks.end - chunks.start) as usize],
        }
    }

    /// The bytes of a range, if every chunk of it is here and right. A chunk that is not is dropped.
    pub fn read(&self, range: Range<u64>) -> Option<Bytes> {
        let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK);
        let before = self.checksums(&chunks).ok()?;
        if before.contains(&0) {
            return None;
        }
        let bytes = if chunks.clone().all(|chunk| self.is_checked(chunk)) {
            self.pread(range.clone())?
        } else {
            let whole = self.pread(chunks.start * CHUNK..(chunks.end * CHUNK).min(self.size))?;
            for ((chunk, bytes), checksum) in chunks.clone().zip(whole.chunks(CHUNK as usize)).zip(&before) {
                if checksum_of(bytes) != *checksum {
                    tracing::warn!("the cache holds a damaged chunk; it is fetched again");
                    let _ = self.forget(chunk..chunk + 1);
                    return None;
                }
                self.set_checked(chunk);
            }
            let start = (range.start - chunks.start * CHUNK) as usize;
            whole.slice(start..start + (range.end - range.start) as usize)
        };
        // What was evicted meanwhile may have been read as zeros.
        if self.checksums(&chunks).ok()? != before {
            return None;
        }
        self.note_use(&chunks);
        Some(bytes)
    }

    fn pread(&self, range: Range<u64>) -> Option<Bytes> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.data.read_exact_at(&mut bytes, range.start).ok()?;
        Some(bytes.into())
    }

    /// Keeps neighbouring chunks, the first of which is `first`.
    pub fn write(&self, first: u64, chunks: &[Bytes]) -> io::Result<()> {
        let mut checksums = Vec::with_capacity(chunks.len() * 8);
        for (chunk, bytes) in (first..).zip(chunks) {
            self.data.write_all_at(bytes, chunk * CHUNK)?;
            checksums.extend(checksum_of(bytes).to_le_bytes());
        }
        self.map.write_all_at(&checksums, self.checksum_at(first))?;
        let written = first..first + chunks.len() as u64;
        written.clone().for_each(|chunk| self.set_checked(chunk));
        self.note_use(&written);
        Ok(())
    }

    /// Gives chunks up, and their space. A reader that is at it sees that they are gone.
    pub fn forget(&self, chunks: Range<u64>) -> io::Result<()> {
        let chunks = chunks.start..chunks.end.min(self.size.div_ceil(CHUNK));
        self.write_flags(0)?;
        self.map.write_all_at(&vec![0; ((chunks.end - chunks.start) * 8) as usize], self.checksum_at(chunks.start))?;
        for chunk in chunks.clone() {
            if let Some((word, bit)) = self.word(chunk) {
                word.fetch_and(!bit, Ordering::Relaxed);
            }
        }
        let bytes = (chunks.end - chunks.start) * CHUNK;
        fallocate(&self.data, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, chunks.start * CHUNK, bytes)?;
        Ok(())
    }

    /// Of a chunk: its bytes if it is here, not whether it was used. A damaged one is dropped, and an error.
    pub fn check(&self, chunk: u64) -> Result<Option<Bytes>, Damaged> {
        let stored = || self.checksums(&(chunk..chunk + 1)).ok().and_then(|checksums| checksums.first().copied());
        let Some(checksum) = stored().filter(|checksum| *checksum != 0) else { return Ok(None) };
        let bytes = self.pread(chunk * CHUNK..((chunk + 1) * CHUNK).min(self.size));
        match bytes {
            Some(bytes) if checksum_of(&bytes) == checksum => Ok(Some(bytes)),
            // Evicted, or evicted and written anew, while it was read.
            _ if stored() != Some(checksum) => Ok(None),
            _ => {
                let _ = self.forget(chunk..chunk + 1);
                Err(Damaged)
            }
        }
    }

    /// Bytes of the chunks that are here.
    pub fn cached_bytes(&self) -> u64 {
        let chunks = 0..self.size.div_ceil(CHUNK);
        let present = self.present(chunks.clone());
        chunks.zip(present).filter(|(_, here)| *here).map(|(chunk, _)| CHUNK.min(self.size - chunk * CHUNK)).sum()
    }

    /// Whether the whole blob was seen to have its digest, and no chunk was given up since.
    pub fn is_blob_checked(&self) -> bool {
        let mut flags = [0; 8];
        self.map.read_exact_at(&mut flags, FLAGS_AT).is_ok() && u64::from_le_bytes(flags) & WHOLE_BLOB_CHECKED != 0
    }

    pub fn set_blob_checked(&self) -> io::Result<()> {
        self.write_flags(WHOLE_BLOB_CHECKED)
    }

    fn write_flags(&self, flags: u64) -> io::Result<()> {
        self.map.write_all_at(&flags.to_le_bytes(), FLAGS_AT)
    }

    /// Second of the last use of each group, as all processes have noted it.
    pub fn uses(&self) -> io::Result<Vec<u32>> {
        let mut bytes = vec![0; self.noted.len() * 4];
        self.map.read_exact_at(&mut bytes, HEADER)?;
        Ok(bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    pub(super) fn note_use(&self, chunks: &Range<u64>) {
        let now = super::seconds_now();
        for group in chunks.start / GROUP..chunks.end.div_ceil(GROUP) {
            let Some(noted) = self.noted.get(group as usize) else { continue };
            // Not less than: the clock may have been set back.
            if now.abs_diff(noted.load(Ordering::Relaxed)) >= NOTE_AGAIN {
                noted.store(now, Ordering::Relaxed);
                let _ = self.map.write_all_at(&now.to_le_bytes(), HEADER + group * 4);
            }
        }
    }

    fn word(&self, chunk: u64) -> Option<(&AtomicU64, u64)> {
        self.checked.get((chunk / 64) as usize).map(|word| (word, 1 << (chunk % 64)))
    }

    fn is_checked(&self, chunk: u64) -> bool {
        self.word(chunk).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn set_checked(&self, chunk: u64) {
        if let Some((word, bit)) = self.word(chunk) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }
}

pub fn map_path(blob: &Path) -> PathBuf {
    blob.with_extension("map")
}

/// 0 stands for "not here".
fn checksum_of(bytes: &[u8]) -> u64 {
    xxh3_64(bytes).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(chunks: u64) -> (tempfile::TempDir, PathBuf, Vec<Bytes>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blobs/x");
        let chunk = |n: u64| Bytes::from((0..CHUNK).map(|i| (i * 31 + n * 7 + i / 251) as u8).collect::<Vec<_>>());
        let mut bytes: Vec<Bytes> = (0..chunks).map(chunk).collect();
        bytes.last_mut().unwrap().truncate(1000);
        (dir, path, bytes)
    }

    fn size(chunks: &[Bytes]) -> u64 {
        chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }

    #[test]
    fn what_was_written_is_read_by_this_and_other_openings() {
        let (_dir, path, chunks) = blob(5);
        let file = BlobFile::open(&path, size(&chunks)).unwrap();
        file.write(1, &chunks[1..3]).unwrap();
        file.write(4, &chunks[4..]).unwrap();
        for file in [&file, &BlobFile::open(&path, size(&chunks)).unwrap()] {
            assert_eq!(file.present(0..5), [false, true, true, false, true]);
            let expected = [&chunks[1][..], &chunks[2][..]].concat();
            assert_eq!(file.read(CHUNK + 5..3 * CHUNK - 7).unwrap(), expected[5..2 * CHUNK as usize - 7]);
            assert_eq!(file.read(4 * CHUNK..4 * CHUNK + 1000).unwrap(), chunks[4]);
            assert_eq!(file.read(0..10), None);
            assert_eq!(file.read(CHUNK..4 * CHUNK), None);
            assert_eq!(file.cached_bytes(), 2 * CHUNK + 1000);
        }
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 4 * CHUNK, "the rest is holes");
    }

    #[test]
    fn a_flipped_bit_is_seen_by_the_next_process_and_only_that_chunk_is_lost() {
        let (_dir, path, chunks) = blob(3);
        BlobFile::open(&path, size(&chunks)).unwrap().write(0, &chunks).unwrap();
        let data = OpenOptions::new().write(true).open(&path).unwrap();
        data.write_all_at(&[!chunks[1][77]], CHUNK + 77).unwrap();
        let file = BlobFile::open(&path, size(&chunks)).unwrap();
        assert_eq!(file.read(CHUNK..CHUNK + 10), None);
        assert_eq!(file.present(0..3), [true, false, true]);
        assert_eq!(file.read(0..CHUNK).unwrap(), chunks[0]);
    }

    #[test]
    fn forgotten_chunks_give_their_space_back() {
        let (_dir, path, chunks) = blob(130);
        let file = BlobFile::open(&path, size(&chunks)).unwrap();
        file.write(0, &chunks).unwrap();
        file.set_blob_checked().unwrap();
        assert!(file.is_blob_checked());
        file.forget(64..128).unwrap();
        assert!(!file.is_blob_checked());
        assert_eq!(file.read(64 * CHUNK..65 * CHUNK), None);
        assert_eq!(file.read(128 * CHUNK..129 * CHUNK).unwrap(), chunks[128]);
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 <= 67 * CHUNK);
    }

    #[test]
    fn a_map_of_something_else_is_made_anew() {
        let (_dir, path, chunks) = blob(3);
        BlobFile::open(&path, size(&chunks)).unwrap().write(0, &chunks).unwrap();
        for damage in [&b"something else"[..], &[0xff; 5000], b""] {
            std::fs::write(map_path(&path), damage).unwrap();
            let file = BlobFile::open(&path, size(&chunks)).unwrap();
            assert_eq!(file.present(0..3), [false; 3]);
            file.write(0, &chunks).unwrap();
        }
        let other_size = BlobFile::open(&path, 2 * CHUNK).unwrap();
        assert_eq!(other_size.present(0..2), [false; 2]);
    }

    #[test]
    fn uses_are_noted_by_group() {
        let (_dir, path, chunks) = blob(130);
        let file = BlobFile::open(&path, size(&chunks)).unwrap();
        file.write(128, &chunks[128..]).unwrap();
        let uses = file.uses().unwrap();
        assert_eq!((uses.len(), uses[0], uses[1]), (3, 0, 0));
        assert!(uses[2].abs_diff(super::super::seconds_now()) < 100);
    }
}
