//! One blob in the cache folder: the blob itself, with holes, and beside it a map with a checksum for each chunk that
//! is there. Processes share both: a chunk is written before its checksum, and its checksum is taken back before its
//! bytes.
//!
//! Nobody waits for anybody. Who changes a chunk has its bytes locked, from the first to the last of these steps; who
//! does not get the lock leaves the chunk as it is. So a checksum never stands over what another has punched.
//!
//! Readers lock nothing. They are safe by the generation in the map: odd while chunks are given up, another one
//! afterwards. A chunk that was checked once is given out unchecked only while the generation stays what it was.

mod checked;
mod locked;
mod reading;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::CHUNK;
use super::own_file::{is_at, is_read_only, open_or_make, open_own};
use checked::Checked;
use reading::How;
pub use reading::Missing;

/// Chunks whose use is noted together, and which are evicted together: 4 MiB.
pub const GROUP: u64 = 64;
/// Largest blob that is kept, in bytes: what is held in memory for an open one grows with it.
pub const LARGEST: u64 = 1 << 40;
/// A use is written down at most so often, in seconds.
const NOTE_AGAIN: u32 = 1;
/// Attempts to open files that others make, make anew or take away at the same time.
const ATTEMPTS: u32 = 64;

const MAGIC: [u8; 8] = *b"eo-map 2";
/// Magic, size of the blob, bytes of a chunk, generation, the one after that in which the whole blob was checked (0:
/// never): little-endian, the rest zeros.
const HEADER: u64 = 64;
const GENERATION_AT: u64 = 24;
const BLOB_CHECKED_AT: u64 = 32;

/// See the module. The map is: header; for each group the second of its last use (u32); for each chunk its xxh3 (u64,
/// 0: not here). All little-endian.
pub struct BlobFile {
    path: PathBuf,
    data: File,
    map: File,
    size: u64,
    checked: Mutex<Checked>,
    /// Held with a lock on `data`.
    locking: Mutex<()>,
    /// When this process noted the use of each group last.
    noted: Vec<AtomicU32>,
    /// All chunks before this one were here, once.
    here_before: AtomicU64,
    /// Whether somebody has looked whether all of the blob is here.
    looked_at: AtomicBool,
}

impl BlobFile {
    /// Opens or makes both files. A map that is not one of this blob is made anew.
    ///
    /// # Errors
    /// `Unsupported` and `InvalidData` are about this blob alone.
    pub fn open(path: &Path, size: u64) -> io::Result<Self> {
        if size > LARGEST {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "too large to be kept"));
        }
        if let Some(folder) = path.parent() {
            super::folder::make_private(folder)?;
        }
        // Who has the map alone may make it anew or take it away; who uses it shares it.
        for _ in 0..ATTEMPTS {
            let file = Self::new(path, size, open_or_make(path)?, open_or_make(&map_path(path))?);
            match flock(&file.map, FlockOperation::NonBlockingLockShared) {
                Ok(()) if file.is_in_place() && file.is_sound()? => {
                    file.end_given_up()?;
                    return Ok(file);
                }
                Ok(()) => {
                    let alone = flock(&file.map, FlockOperation::NonBlockingLockExclusive).is_ok();
                    if alone && file.is_in_place() && !file.is_sound()? {
                        file.make_anew()?;
                    }
                }
                // Being made anew, by somebody who may have been stopped.
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
            std::thread::yield_now();
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "another process uses it as something else"))
    }

    /// Opens what is there and sound, whatever its size; where nothing can be written, for reading.
    pub fn open_existing(path: &Path) -> io::Result<Self> {
        let open = |path: &Path| {
            let file = open_own(path, OpenOptions::new().write(true));
            file.or_else(
                |error| if is_read_only(&error) { open_own(path, &mut OpenOptions::new()) } else { Err(error) },
            )
        };
        let (data, map) = (open(path)?, open(&map_path(path))?);
        let size = data.metadata()?.len();
        if size > LARGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too large"));
        }
        let file = Self::new(path, size, data, map);
        flock(&file.map, FlockOperation::NonBlockingLockShared)?;
        if !file.is_in_place() || !file.is_sound()? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no map of this blob"));
        }
        Ok(file)
    }

    fn new(path: &Path, size: u64, data: File, map: File) -> Self {
        let groups = size.div_ceil(CHUNK).div_ceil(GROUP);
        Self {
            path: path.to_owned(),
            data,
            map,
            size,
            checked: Mutex::default(),
            locking: Mutex::default(),
            noted: (0..groups).map(|_| AtomicU32::new(0)).collect(),
            here_before: AtomicU64::new(0),
            looked_at: AtomicBool::new(false),
        }
    }

    fn make_anew(&self) -> io::Result<()> {
        self.map.set_len(0)?;
        self.data.set_len(0)?;
        self.data.set_len(self.size)?;
        self.map.set_len(self.map_length())?;
        self.map.write_all_at(&self.identity(), 0)
    }

    /// Whether both files still are where they were opened: false when somebody has taken them away.
    pub fn is_in_place(&self) -> bool {
        is_at(&self.map, &map_path(&self.path)) && is_at(&self.data, &self.path)
    }

    fn is_sound(&self) -> io::Result<bool> {
        let mut header = [0; HEADER as usize];
        let lengths = self.map.metadata()?.len() == self.map_length() && self.data.metadata()?.len() == self.size;
        Ok(lengths && self.map.read_exact_at(&mut header, 0).is_ok() && header.starts_with(&self.identity()))
    }

    fn identity(&self) -> [u8; GENERATION_AT as usize] {
        let mut identity = [0; GENERATION_AT as usize];
        for (place, byte) in
            identity.iter_mut().zip(MAGIC.into_iter().chain(self.size.to_le_bytes()).chain(CHUNK.to_le_bytes()))
        {
            *place = byte;
        }
        identity
    }

    /// Bytes of the blob.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn chunks(&self) -> u64 {
        self.size.div_ceil(CHUNK)
    }

    fn map_length(&self) -> u64 {
        self.checksum_at(self.chunks())
    }

    fn checksum_at(&self, chunk: u64) -> u64 {
        let groups = self.noted.len() as u64;
        HEADER + (groups * 4).next_multiple_of(8) + chunk * 8
    }

    /// Keeps neighbouring chunks, the first of which is `first`. Those that are here, or that somebody else is at, stay
    /// as they are.
    pub fn write(&self, first: u64, chunks: &[Bytes]) -> io::Result<()> {
        (first..).zip(chunks).try_for_each(|(chunk, bytes)| self.write_chunk(chunk, bytes))?;
        self.note_use(&(first..first + chunks.len() as u64));
        Ok(())
    }

    fn write_chunk(&self, chunk: u64, bytes: &[u8]) -> io::Result<()> {
        let one = chunk..chunk + 1;
        let Some(_locked) = self.lock(&one)? else { return Ok(()) };
        if self.present(one.clone()) == [true] {
            return Ok(());
        }
        // Before anything changes: this process may be ended, and others look.
        if self.read_word(BLOB_CHECKED_AT, How::Waiting)? != 0 {
            self.write_map(&[0; 8], BLOB_CHECKED_AT)?;
        }
        let generation = self.generation()?;
        self.data.write_all_at(bytes, chunk * CHUNK)?;
        self.write_map(&checksum_of(bytes).to_le_bytes(), self.checksum_at(chunk))?;
        self.checked().note(generation, &one);
        Ok(())
    }

    /// Gives chunks up, and their space, unless somebody else is at one of them. A reader that is at it sees that they
    /// are gone. Only one process at a time does this to one folder.
    pub fn forget(&self, chunks: Range<u64>) -> io::Result<()> {
        let chunks = chunks.start..chunks.end.min(self.chunks());
        let Some(_locked) = self.lock(&chunks)? else { return Ok(()) };
        // The next odd one, also where a process was killed at this.
        let under_way = self.generation()?.wrapping_add(1) | 1;
        self.write_map(&under_way.to_le_bytes(), GENERATION_AT)?;
        self.clear_checksums(&chunks)?;
        let bytes = (chunks.end - chunks.start) * CHUNK;
        fallocate(&self.data, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, chunks.start * CHUNK, bytes)?;
        self.write_map(&under_way.wrapping_add(1).to_le_bytes(), GENERATION_AT)
    }

    /// While the generation is odd, every read is checked: not for ever because a process was killed.
    fn end_given_up(&self) -> io::Result<()> {
        if self.generation()?.is_multiple_of(2) {
            return Ok(());
        }
        let Some(_nobody_is_at_it) = self.lock(&(0..self.chunks()))? else { return Ok(()) };
        // Read again: whoever was at it may have ended it meanwhile, and a generation must never come back.
        let generation = self.generation()?;
        self.write_map(&generation.wrapping_add(generation % 2).to_le_bytes(), GENERATION_AT)
    }

    /// No chunk is here any more. Their space is taken back by whoever evicts next.
    pub fn drop_all(&self) -> io::Result<()> {
        self.write_map(&[0; 8], BLOB_CHECKED_AT)?;
        self.here_before.store(0, Ordering::Relaxed);
        self.groups().try_for_each(|chunks| self.clear_checksums(&chunks))
    }

    fn clear_checksums(&self, chunks: &Range<u64>) -> io::Result<()> {
        self.write_map(&vec![0; ((chunks.end - chunks.start) * 8) as usize], self.checksum_at(chunks.start))
    }

    /// The chunks of each group.
    pub fn groups(&self) -> impl Iterator<Item = Range<u64>> {
        let chunks = self.chunks();
        (0..chunks).step_by(GROUP as usize).map(move |first| first..(first + GROUP).min(chunks))
    }

    /// Bytes of a range of the blob that are here.
    pub fn cached_bytes(&self, range: &Range<u64>) -> u64 {
        let wanted = range.start / CHUNK..range.end.min(self.size).div_ceil(CHUNK);
        let overlap = |chunk: u64| {
            ((chunk + 1) * CHUNK).min(range.end).min(self.size).saturating_sub((chunk * CHUNK).max(range.start))
        };
        let mut bytes = 0;
        for first in wanted.clone().step_by(1024) {
            let some = first..(first + 1024).min(wanted.end);
            let here = self.present(some.clone());
            bytes += some.zip(here).filter(|(_, here)| *here).map(|(chunk, _)| overlap(chunk)).sum::<u64>();
        }
        bytes
    }

    /// Whether all chunks seem to be here. What was given up meanwhile shows when it is read.
    pub fn seems_whole(&self) -> bool {
        let mut first = self.here_before.load(Ordering::Relaxed);
        while first < self.chunks() {
            let some = first..(first + 1024).min(self.chunks());
            match self.present(some).iter().position(|here| !here) {
                Some(missing) => {
                    self.here_before.store(first + missing as u64, Ordering::Relaxed);
                    return false;
                }
                None => first += 1024,
            }
        }
        // The next time from the start: what is before may have been given up.
        self.here_before.store(0, Ordering::Relaxed);
        true
    }

    /// True for the first who asks.
    pub fn is_first_look(&self) -> bool {
        !self.looked_at.load(Ordering::Relaxed) && !self.looked_at.swap(true, Ordering::Relaxed)
    }

    /// Changes whenever chunks are given up; odd while they are.
    pub fn generation(&self) -> io::Result<u64> {
        self.read_word(GENERATION_AT, How::Waiting)
    }

    /// The whole blob had its digest, and all of it was read in this generation.
    pub fn set_blob_checked(&self, generation: u64) -> io::Result<()> {
        self.write_map(&generation.wrapping_add(1).to_le_bytes(), BLOB_CHECKED_AT)
    }

    /// Second of the last use of each group, as all processes have noted it.
    pub fn uses(&self) -> io::Result<Vec<u32>> {
        let mut bytes = vec![0; self.noted.len() * 4];
        self.map.read_exact_at(&mut bytes, HEADER)?;
        Ok(bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    /// Writes down that these chunks are used now.
    pub fn note_use(&self, chunks: &Range<u64>) {
        if let Some(groups) = self.due(chunks) {
            self.write_uses(groups);
        }
    }

    /// Groups of these chunks whose use now is to be written down, for who asks first.
    pub fn due(&self, chunks: &Range<u64>) -> Option<Range<u64>> {
        let now = super::seconds_now();
        let is_due = |group: &u64| {
            // Not less than: the clock may have been set back.
            let noted = self.noted.get(*group as usize);
            let noted = noted.filter(|noted| now.abs_diff(noted.load(Ordering::Relaxed)) >= NOTE_AGAIN);
            noted.inspect(|noted| noted.store(now, Ordering::Relaxed)).is_some()
        };
        let due = (chunks.start / GROUP..chunks.end.div_ceil(GROUP)).filter(is_due);
        due.fold(None, |due: Option<Range<u64>>, group| Some(due.map_or(group, |due| due.start)..group + 1))
    }

    /// Writes down when groups were used last.
    pub fn write_uses(&self, groups: Range<u64>) {
        let noted =
            self.noted.iter().enumerate().skip(groups.start as usize).take((groups.end - groups.start) as usize);
        for (group, noted) in noted {
            let _ = self.write_map(&noted.load(Ordering::Relaxed).to_le_bytes(), HEADER + group as u64 * 4);
        }
    }

    fn checked(&self) -> std::sync::MutexGuard<'_, Checked> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_map(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.map.write_all_at(bytes, at)
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
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

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
            assert_eq!(file.cached_bytes(&(0..size(&chunks))), 2 * CHUNK + 1000);
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
        file.set_blob_checked(file.generation().unwrap()).unwrap();
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
    fn a_process_that_was_stopped_while_it_made_a_blob_is_not_waited_for() {
        let (_dir, path, chunks) = blob(3);
        drop(BlobFile::open(&path, size(&chunks)).unwrap());
        let stopped = open_own(&map_path(&path), &mut OpenOptions::new()).unwrap();
        flock(&stopped, FlockOperation::LockExclusive).unwrap();
        assert_eq!(BlobFile::open(&path, size(&chunks)).err().unwrap().kind(), io::ErrorKind::InvalidData);
        drop(stopped);
        BlobFile::open(&path, size(&chunks)).unwrap();
    }

    #[test]
    fn a_write_that_breaks_off_leaves_no_blob_that_counts_as_checked() {
        let (_dir, path, chunks) = blob(3);
        BlobFile::open(&path, size(&chunks)).unwrap().write(0, &chunks[..2]).unwrap();
        let sealed = memfd_create("sealed", MemfdFlags::ALLOW_SEALING).unwrap();
        fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
        let map = File::options().read(true).write(true).open(map_path(&path)).unwrap();
        let file = BlobFile::new(&path, size(&chunks), sealed.into(), map);
        file.set_blob_checked(file.generation().unwrap()).unwrap();
        file.write(0, &chunks[..2]).unwrap();
        assert!(file.is_blob_checked(), "nothing was written");
        file.write(2, &chunks[2..]).expect_err("it cannot be written to");
        assert!(!file.is_blob_checked());
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

    #[test]
    fn bytes_torn_by_an_eviction_at_the_same_time_are_not_given_out() {
        let (_dir, path, chunks) = blob(3);
        let (writer, evictor) =
            (BlobFile::open(&path, size(&chunks)).unwrap(), BlobFile::open(&path, size(&chunks)).unwrap());
        // The evictor has cleared the checksums; the writer writes; then the hole is punched.
        evictor.write_map(&1_u64.to_le_bytes(), GENERATION_AT).unwrap();
        writer.write(0, &chunks).unwrap();
        assert_eq!(writer.read(0..10).unwrap(), chunks[0][..10]);
        fallocate(&evictor.data, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, CHUNK).unwrap();
        for generation in [1_u64, 2] {
            evictor.write_map(&generation.to_le_bytes(), GENERATION_AT).unwrap();
            assert_eq!(writer.read(0..10), None);
            assert_eq!(writer.read(CHUNK..CHUNK + 10).unwrap(), chunks[1][..10]);
        }
        assert_eq!(writer.present(0..3), [false, true, true], "dropped once nobody is at it");
    }

    /// A process of its own that gives up and gives up chunks, until it is killed.
    struct Evictor(std::process::Child);

    impl Evictor {
        /// By the test of that name, which is called with [`Self::called_for`].
        fn start(test: &str, blob: &Path) -> Self {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", &format!("{}::{test}", module_path!().split_once("::").unwrap().1)]);
            command.env(EVICTED, blob).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
            Self(command.spawn().unwrap())
        }

        /// Ends with the process that started this one.
        fn called_for() -> bool {
            let Some(path) = std::env::var_os(EVICTED) else { return false };
            std::thread::spawn(move || {
                while let Ok(file) = BlobFile::open_existing(Path::new(&path)) {
                    file.forget(0..GROUP).unwrap();
                }
            });
            let _ = io::Read::read(&mut io::stdin(), &mut [0]);
            true
        }

        fn signal(&self, signal: rustix::process::Signal) {
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
        }
    }

    impl Drop for Evictor {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    const EVICTED: &str = "EO_MOUNT_TEST_EVICTED";

    /// Reads and writes what others give up, until it was gone so often; the generation is another one then.
    fn write_and_read_until_gone(path: &Path, chunks: &[Bytes], times: u32) {
        let file = BlobFile::open(path, size(chunks)).unwrap();
        let mut gone = 0;
        while gone < times {
            for (chunk, bytes) in (0..).zip(chunks) {
                file.write(chunk, std::slice::from_ref(bytes)).unwrap();
                match file.check(chunk * CHUNK..chunk * CHUNK + bytes.len() as u64) {
                    Ok(read) => assert!(read == bytes, "chunk {chunk}"),
                    Err(missing) => {
                        assert_eq!(missing, Missing::NotHere);
                        gone += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn chunks_that_are_given_up_while_they_are_written_are_never_damaged() {
        let (_dir, path, chunks) = blob(4);
        let evictor = BlobFile::open(&path, size(&chunks)).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    evictor.forget(0..GROUP).unwrap();
                }
            });
            let writers: Vec<_> =
                (0..3).map(|_| scope.spawn(|| write_and_read_until_gone(&path, &chunks, 2_000))).collect();
            let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
            done.store(true, Ordering::Relaxed);
            assert!(results.iter().all(Result::is_ok));
        });
    }

    #[test]
    fn chunks_that_another_process_gives_up_are_never_damaged_though_it_is_stopped_and_killed() {
        use rustix::process::Signal;
        if Evictor::called_for() {
            return;
        }
        let test = "chunks_that_another_process_gives_up_are_never_damaged_though_it_is_stopped_and_killed";
        let (_dir, path, chunks) = blob(4);
        let file = BlobFile::open(&path, size(&chunks)).unwrap();
        for round in 0..20 {
            let evictor = Evictor::start(test, &path);
            write_and_read_until_gone(&path, &chunks, 200);
            evictor.signal(Signal::STOP);
            // It may be in the middle, which stops nobody.
            file.write(0, &chunks).unwrap();
            file.forget(0..GROUP).unwrap();
            evictor.signal(Signal::CONT);
            write_and_read_until_gone(&path, &chunks, 10 + round);
            drop(evictor);
            let again = BlobFile::open(&path, size(&chunks)).unwrap();
            assert!(again.generation().unwrap().is_multiple_of(2), "nobody is at it");
            again.write(0, &chunks).unwrap();
            for file in [&file, &again] {
                assert!(file.read(0..size(&chunks)).unwrap() == chunks.concat());
                assert!(file.read(0..size(&chunks)).is_some(), "and again, from what was checked");
            }
            again.set_blob_checked(again.generation().unwrap()).unwrap();
            assert!(file.is_blob_checked());
        }
    }

    #[test]
    fn a_chunk_that_somebody_else_is_at_is_left_alone() {
        let (_dir, path, chunks) = blob(3);
        let (one, other) =
            (BlobFile::open(&path, size(&chunks)).unwrap(), BlobFile::open(&path, size(&chunks)).unwrap());
        let lock = one.lock(&(1..2)).unwrap().unwrap();
        other.write(0, &chunks).unwrap();
        assert_eq!(other.present(0..3), [true, false, true]);
        other.forget(0..3).unwrap();
        assert_eq!(other.present(0..3), [true, false, true], "what is being written is not given up");
        drop(lock);
        other.forget(0..3).unwrap();
        assert_eq!(other.present(0..3), [false; 3]);
    }

    #[test]
    fn a_blob_that_was_being_given_up_when_a_process_was_killed_is_kept_read_and_checked() {
        let (_dir, path, chunks) = blob(3);
        let file = BlobFile::open(&path, size(&chunks)).unwrap();
        file.write_map(&7_u64.to_le_bytes(), GENERATION_AT).unwrap();
        file.write(0, &chunks).unwrap();
        assert!(file.read(0..size(&chunks)).unwrap() == chunks.concat());
        file.set_blob_checked(file.generation().unwrap()).unwrap();
        assert!(file.is_blob_checked());
        file.forget(0..1).unwrap();
        assert!(!file.is_blob_checked());
        assert_eq!(file.generation().unwrap(), 10);
    }

    #[test]
    fn another_opening_sees_that_what_it_had_checked_was_evicted_and_written_again() {
        let (_dir, path, chunks) = blob(3);
        let (one, other) =
            (BlobFile::open(&path, size(&chunks)).unwrap(), BlobFile::open(&path, size(&chunks)).unwrap());
        one.write(0, &chunks).unwrap();
        assert!(one.checked().holds(0, &(0..3)));
        one.set_blob_checked(one.generation().unwrap()).unwrap();
        other.forget(0..1).unwrap();
        assert!(!one.is_blob_checked());
        assert_eq!(one.read(0..10), None);
        other.write(0, &chunks).unwrap();
        assert!(!one.checked().holds(one.generation().unwrap(), &(0..1)));
        assert_eq!(one.read(0..CHUNK).unwrap(), chunks[0]);
    }

    #[test]
    fn what_others_have_put_in_the_place_of_a_file_is_neither_followed_nor_written_to() {
        let (dir, path, chunks) = blob(3);
        std::fs::create_dir(dir.path().join("blobs")).unwrap();
        let precious = dir.path().join("precious");
        std::fs::write(&precious, b"precious").unwrap();
        for place in [path.clone(), map_path(&path)] {
            let fifo = || {
                rustix::fs::mknodat(rustix::fs::CWD, &place, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
            };
            let puts: [&dyn Fn(); 4] = [
                &|| std::os::unix::fs::symlink(&precious, &place).unwrap(),
                &|| std::fs::hard_link(&precious, &place).unwrap(),
                &fifo,
                &|| drop(std::os::unix::net::UnixListener::bind(&place).unwrap()),
            ];
            for put in puts {
                let _ = std::fs::remove_file(&place);
                put();
                assert!(BlobFile::open_existing(&path).is_err());
                let file = BlobFile::open(&path, size(&chunks)).unwrap();
                file.write(0, &chunks).unwrap();
                assert_eq!(file.read(0..CHUNK).unwrap(), chunks[0]);
            }
            std::fs::remove_file(&place).unwrap();
            std::fs::create_dir(&place).unwrap();
            assert_eq!(BlobFile::open(&path, size(&chunks)).err().unwrap().kind(), io::ErrorKind::InvalidData);
            std::fs::remove_dir(&place).unwrap();
        }
        assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    }

    #[test]
    fn a_size_that_no_blob_has_costs_no_memory() {
        let (dir, path, _) = blob(1);
        assert_eq!(BlobFile::open(&path, 1 << 62).err().unwrap().kind(), io::ErrorKind::Unsupported);
        std::fs::create_dir_all(dir.path().join("blobs")).unwrap();
        File::create(&path).unwrap().set_len(1 << 43).unwrap();
        File::create(map_path(&path)).unwrap();
        assert!(BlobFile::open_existing(&path).is_err());
    }
}
