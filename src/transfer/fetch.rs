//! One blob into one file. The bytes come in order, so that what is there of it is one number, the length of the file
//! beside it, and so that it is hashed while it comes. The file gets its name when it has its digest.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use rustix::fs::{Advice, FlockOperation, fadvise, flock};
use rustix::io::Errno;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};
use tokio::try_join;

use crate::blob::{BlobSource, Laps};
use crate::cache::CHUNK;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::Mount;
use crate::oci::{Descriptor, Hasher};
use crate::transfer::folder::{Folder, LOOK, PATIENCE, failed};

/// Bytes asked for at once: what comes in [`WORTH_A_REQUEST`], because a request costs docker-registry 4 ms whatever
/// its length, but not less or more than these. Longer ones are fewer at a time.
const SHORTEST: u64 = 3 << 19;
const LONGEST: u64 = 15 << 19;
const WORTH_A_REQUEST: Duration = Duration::from_millis(100);
/// Bytes of all blobs that may be under way or wait for those before them: what a killed process fetches twice, where
/// the cache folder has not got them.
const WINDOW: u64 = PIECES as u64 * SHORTEST;
/// More than the connections for them, of which there are eight: one that came before those ahead of it keeps its place.
const PIECES: usize = 10;
/// Bytes after which the disk begins to write, so that little is left to be waited for at the end.
const WRITE_BACK: u64 = 2 << 20;
/// Blobs at once that come in pieces: one finishes while others come.
const IN_PIECES: usize = 4;
/// Blobs at once that come in one answer each: enough to fill a line of which one connection gets a fifth.
const IN_ANSWERS: usize = 6;

/// Where a blob goes.
#[derive(Debug, Clone)]
pub struct Place {
    pub folder: Folder,
    pub name: OsString,
    /// What has the name already stays.
    pub keep: bool,
}

/// What there was of a blob before, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct There {
    /// In the folder: all of it, or a beginning.
    pub in_folder: u64,
    /// Behind that, in the cache folder.
    pub in_cache: u64,
    pub finished: bool,
}

impl Place {
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    fn unfinished(&self, blob: &Descriptor) -> OsString {
        format!(".eo-mount-{}.part", blob.digest.hex()).into()
    }

    fn failed(&self, error: &io::Error) -> Error {
        failed(&self.path(), error)
    }

    /// Whether the blob is there under its name. Blocks on the disk.
    fn is_finished(&self, blob: &Descriptor) -> bool {
        let Ok(mut file) = self.folder.file(&self.name) else { return false };
        if !file.metadata().is_ok_and(|found| found.is_file() && found.len() == blob.size) {
            return false;
        }
        let mut hasher = blob.digest.hasher();
        hash(&mut file, blob.size, &mut hasher).is_ok() && hasher.check(&blob.digest).is_ok()
    }

    /// Blocks on the disk.
    pub fn look(&self, mount: &Mount, blob: &Descriptor) -> There {
        if self.is_finished(blob) {
            return There { in_folder: blob.size, in_cache: 0, finished: true };
        }
        let unfinished = self.folder.file(&self.unfinished(blob)).and_then(|file| file.metadata());
        let in_folder = unfinished.map_or(0, |found| if found.is_file() { found.len().min(blob.size) } else { 0 });
        There { in_folder, in_cache: mount.cached_bytes(blob, &(in_folder..blob.size)), finished: false }
    }
}

/// Where blobs come from.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    pub source: &'a dyn BlobSource,
    /// Whose cache the source has.
    pub mount: Option<&'a Mount>,
}

impl Origin<'_> {
    async fn kept_bytes(&self, blob: &Descriptor) -> u64 {
        match self.mount {
            Some(mount) => mount.kept_bytes(blob).await,
            None => 0,
        }
    }

    fn drop_wrong(&self, blob: &Descriptor) -> bool {
        self.mount.is_some_and(|mount| block_in_place(|| mount.drop_wrong(blob)))
    }
}

/// How blobs come: many in one answer each, which costs a registry least; few in pieces, so that one connection that is
/// slow does not hold up its blob, and where not the line but the requests bound them, in one answer for as long as that is faster.
pub struct Lanes {
    /// None where they come in answers.
    pieces: Option<Pieces>,
}

/// Bytes that came together, and their room.
type Piece<'a> = (Vec<Bytes>, Option<SemaphorePermit<'a>>);

struct Pieces {
    /// For bytes.
    window: Semaphore,
    /// Bytes of the next one.
    length: AtomicU64,
}

impl Lanes {
    pub fn of(blobs: usize) -> Self {
        let pieces = || Pieces { window: Semaphore::new(WINDOW as usize), length: AtomicU64::new(SHORTEST) };
        Self { pieces: (blobs < 2 * IN_ANSWERS).then(pieces) }
    }

    /// A blob's bytes from `at` on: in pieces until `in_one` is set, or in one answer.
    fn bytes<'a>(
        &'a self,
        source: &'a dyn BlobSource,
        blob: &'a Descriptor,
        at: u64,
        in_one: &'a AtomicBool,
    ) -> BoxStream<'a, Result<Piece<'a>>> {
        let pieces = self.pieces.as_ref().filter(|_| !in_one.load(Ordering::Relaxed));
        let Some(pieces) = pieces else {
            return source.stream(blob, at..blob.size).map_ok(|bytes| (vec![bytes], None)).boxed();
        };
        let ranges = stream::unfold(at, async |at| {
            let (range, permit) = pieces.next(at, blob.size).await.filter(|_| !in_one.load(Ordering::Relaxed))?;
            Some(((range.clone(), permit), range.end))
        });
        let came = ranges.map(async |(range, permit)| {
            let (length, since) = (range.end.saturating_sub(range.start), Instant::now());
            let bytes: Vec<Bytes> = source.stream(blob, range).try_collect().await?;
            pieces.came(length, since.elapsed());
            Ok::<_, Error>((bytes, Some(permit)))
        });
        came.buffered(PIECES).boxed()
    }

    /// Blobs at once.
    pub fn blobs(&self) -> usize {
        if self.pieces.is_some() { IN_PIECES } else { IN_ANSWERS }
    }
}

impl Pieces {
    /// The next one of a blob, which ends where a chunk ends, when there is room for it.
    async fn next(&self, at: u64, size: u64) -> Option<(Range<u64>, SemaphorePermit<'_>)> {
        if at >= size {
            return None;
        }
        let end = at.saturating_add(self.length.load(Ordering::Relaxed)) / CHUNK * CHUNK;
        let range = at..end.min(size);
        let length = u32::try_from(range.end.saturating_sub(at)).unwrap_or(u32::MAX);
        // Given in the order of asking, so that the first piece never waits for those behind it.
        Some((range, self.window.acquire_many(length).await.ok()?))
    }

    fn came(&self, length: u64, took: Duration) {
        let in_time = length as f64 / took.as_secs_f64().max(1e-6) * WORTH_A_REQUEST.as_secs_f64();
        self.length.store((in_time as u64).clamp(SHORTEST, LONGEST), Ordering::Relaxed);
    }
}

/// How a blob begins.
enum Begun {
    Part(Box<Unfinished>),
    /// It is there.
    Finished,
    /// Somebody else fetches it, and has so many bytes of it.
    Busy(u64),
}

/// A blob in the making, and what is in it.
struct Unfinished {
    file: File,
    hasher: Hasher,
    at: u64,
    /// Up to there the disk has begun to write.
    written_back: u64,
}

impl Unfinished {
    fn open(place: &Place, blob: &Descriptor) -> Result<Begun> {
        let failed = |error: io::Error| place.failed(&error);
        let mut file = place.folder.file_to_write(&place.unfinished(blob)).map_err(failed)?;
        // Where the file system has no locks, it goes without.
        if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Ok(Begun::Busy(file.metadata().map_err(failed)?.len()));
        }
        // Or somebody else has just finished it.
        if !place.folder.is_at(&file, &place.unfinished(blob)) {
            return Ok(Begun::Busy(0));
        }
        let at = file.metadata().map_err(failed)?.len().min(blob.size);
        let mut hasher = blob.digest.hasher();
        hash(&mut file, at, &mut hasher).map_err(failed)?;
        Ok(Begun::Part(Box::new(Self { file, hasher, at, written_back: at })))
    }

    fn start_again(&mut self, place: &Place, blob: &Descriptor) -> io::Result<()> {
        // Without locks it may have been given its name.
        if !place.folder.is_at(&self.file, &place.unfinished(blob)) {
            return Err(io::Error::other("somebody else has taken what was there of it"));
        }
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.hasher, self.at, self.written_back) = (blob.digest.hasher(), 0, 0);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.at = self.at.saturating_add(bytes.len() as u64);
        let behind = self.written_back..self.at / WRITE_BACK * WRITE_BACK;
        if let Some(length) = NonZeroU64::new(behind.end.saturating_sub(behind.start)) {
            self.written_back = behind.end;
            // Begins to write what is dirty there, and keeps it (mm/fadvise.c); a file system without it goes without.
            let _ = fadvise(&self.file, behind.start, Some(length), Advice::DontNeed);
        }
        Ok(())
    }
}

fn hash(file: &mut File, length: u64, hasher: &mut Hasher) -> io::Result<()> {
    let mut buffer = vec![0; SHORTEST as usize];
    let mut rest = length;
    while rest > 0 {
        let wanted = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..wanted).unwrap_or_default();
        file.read_exact(piece)?;
        hasher.update(piece);
        rest = rest.saturating_sub(wanted as u64);
    }
    Ok(())
}

/// What there is of a blob, to be gone on with. `None`: all of it.
async fn begin(place: &Place, blob: &Descriptor) -> Result<Option<Box<Unfinished>>> {
    let (mut theirs, mut since) = (0, Instant::now());
    loop {
        let (at, of) = (place.clone(), blob.clone());
        let begun = blocking(blob, move || {
            if at.is_finished(&of) {
                return Ok(Begun::Finished);
            }
            if at.keep && at.folder.has(&at.name) {
                let error = io::Error::new(io::ErrorKind::AlreadyExists, "another file of that name is there");
                return Err(at.failed(&error));
            }
            Unfinished::open(&at, &of)
        });
        match begun.await? {
            Begun::Finished => return Ok(None),
            Begun::Part(part) => return Ok(Some(part)),
            Begun::Busy(now) if now != theirs => (theirs, since) = (now, Instant::now()),
            Begun::Busy(_) if since.elapsed() > PATIENCE => {
                let cause = "somebody else is fetching it, and nothing comes";
                let error = Error::new(ErrorKind::TimedOut, place.path().display(), cause);
                return Err(error.hint("end that process, or choose another folder"));
            }
            Begun::Busy(_) => {}
        }
        sleep(LOOK).await;
    }
}

/// Fetches what is missing; what somebody else fetches is waited for. `progress` is told of bytes
/// that came, or were there.
pub async fn fetch(
    origin: Origin<'_>,
    blob: &Descriptor,
    place: &Place,
    lanes: &Lanes,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let Some(part) = begin(place, blob).await? else {
        progress(blob.size);
        return Ok(());
    };
    progress(part.at);
    let fresh = part.at == 0 && origin.kept_bytes(blob).await == 0;
    let (mut part, mut checked) = fetch_rest(origin, blob, place, part, lanes, progress).await?;
    // What was kept of it may be to blame, or a mirror.
    if checked.is_err() && (origin.drop_wrong(blob) || !fresh) {
        part.start_again(place, blob).map_err(|error| place.failed(&error))?;
        (part, checked) = fetch_rest(origin, blob, place, part, lanes, &|_| ()).await?;
    }
    let (at, of) = (place.clone(), blob.clone());
    if let Err(error) = checked {
        origin.drop_wrong(blob);
        blocking(blob, move || at.folder.remove(&at.unfinished(&of)).map_err(|error| at.failed(&error))).await?;
        return Err(error);
    }
    blocking(blob, move || {
        let finish = || {
            part.file.set_len(of.size)?;
            part.file.sync_data()?;
            at.folder.rename(&at.unfinished(&of), &at.name, at.keep)
        };
        finish().map_err(|error| at.failed(&error))
    })
    .await
}

/// The inner result: whether the bytes are the right ones.
async fn fetch_rest(
    origin: Origin<'_>,
    blob: &Descriptor,
    place: &Place,
    mut part: Box<Unfinished>,
    lanes: &Lanes,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Box<Unfinished>, Result<()>)> {
    let (from, mut laps, in_one) = (part.at, Laps::default(), AtomicBool::new(false));
    loop {
        let (began_at, began_in_one) = (part.at, in_one.load(Ordering::Relaxed));
        let mut pieces = lanes.bytes(origin.source, blob, part.at, &in_one);
        let mut next = pieces.next().await;
        while let Some(piece) = next {
            let (bytes, permit) = match piece {
                Ok(piece) => piece,
                // The cache has seen it before we did.
                Err(error) if error.kind == ErrorKind::Corrupt => return Ok((part, Err(error))),
                Err(error) => return Err(error),
            };
            let (at, length) = (place.clone(), bytes.iter().map(|bytes| bytes.len() as u64).sum());
            // On another core than those of other blobs, and while the next ones come.
            let write = move || {
                bytes.iter().try_for_each(|bytes| part.write(bytes)).map(|()| part).map_err(|error| at.failed(&error))
            };
            let written = async {
                let written = blocking(blob, write).await?;
                drop(permit);
                progress(length);
                Ok::<_, Error>(written)
            };
            (part, next) = try_join!(written, async { Ok(pieces.next().await) })?;
            in_one.store(laps.in_one(part.at.saturating_sub(from), Instant::now()), Ordering::Relaxed);
            if began_in_one && !in_one.load(Ordering::Relaxed) {
                break;
            }
        }
        if part.at >= blob.size || part.at == began_at {
            break;
        }
    }
    let checked = part.hasher.clone().check(&blob.digest);
    Ok((part, checked))
}

async fn blocking<T: Send + 'static>(
    blob: &Descriptor,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, &blob.digest, panic)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::oci::Digest;

    fn descriptor(bytes: &[u8]) -> Descriptor {
        let (digest, size) = (Digest::sha256_of(bytes), bytes.len() as u64);
        Descriptor { digest, size, media_type: String::new(), annotations: Default::default() }
    }

    fn place(dir: &tempfile::TempDir) -> Place {
        Place { folder: Folder::open(dir.path()).unwrap(), name: "a.tar".into(), keep: false }
    }

    /// A blob whose bytes from `ends` on cannot be had.
    struct Source {
        bytes: Vec<u8>,
        ends: u64,
        read: AtomicU64,
    }

    impl Source {
        fn of(bytes: Vec<u8>) -> Self {
            Self { bytes, ends: u64::MAX, read: AtomicU64::new(0) }
        }

        async fn fetch(&self, blob: &Descriptor, place: &Place) -> Result<()> {
            let origin = Origin { source: self, mount: None };
            fetch(origin, blob, place, &Lanes::of(1), &|_| ()).await
        }
    }

    impl BlobSource for Source {
        fn read<'a>(&'a self, _: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
            async move {
                if range.end > self.ends {
                    return Err(Error::new(ErrorKind::TimedOut, "r", "away"));
                }
                self.read.fetch_add(range.end - range.start, Ordering::Relaxed);
                Ok(Bytes::copy_from_slice(&self.bytes[range.start as usize..range.end as usize]))
            }
            .boxed()
        }
    }

    /// A blob of zeros whose requests take 20 ms, and each MiB as long as is said of pieces and of longer answers.
    struct Paced {
        of_pieces: Duration,
        of_answers: Duration,
        asked: std::sync::Mutex<Vec<Range<u64>>>,
    }

    impl BlobSource for Paced {
        fn read<'a>(&'a self, _: &'a Descriptor, _: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
            unreachable!()
        }

        fn stream<'a>(&'a self, _: &'a Descriptor, range: Range<u64>) -> BoxStream<'a, Result<Bytes>> {
            self.asked.lock().unwrap().push(range.clone());
            let each = if range.end - range.start > LONGEST { self.of_answers } else { self.of_pieces };
            let next = move |range: Range<u64>, wait: Duration| async move {
                let length = (1 << 20).min(range.end - range.start);
                sleep(wait).await;
                let bytes = Ok(Bytes::from(vec![0; length as usize]));
                (length > 0).then_some((bytes, (range.start + length..range.end, each)))
            };
            stream::unfold((range, Duration::from_millis(20)), move |(range, wait)| next(range, wait)).boxed()
        }
    }

    /// Ranges that were asked for one blob of 256 MiB.
    async fn asked_for(of_pieces: Duration, of_answers: Duration) -> Vec<Range<u64>> {
        let (dir, wanted) = (tempfile::tempdir().unwrap(), descriptor(&vec![0; 256 << 20]));
        let source = Paced { of_pieces, of_answers, asked: Default::default() };
        let origin = Origin { source: &source, mount: None };
        fetch(origin, &wanted, &place(&dir), &Lanes::of(1), &|_| ()).await.unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("a.tar")).unwrap().len(), 256 << 20);
        source.asked.into_inner().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_blob_comes_in_one_answer_where_its_requests_bound_it() {
        let asked = asked_for(Duration::ZERO, Duration::ZERO).await;
        let last = asked.last().unwrap().clone();
        assert!(last.end == 256 << 20 && last.start < 96 << 20, "{asked:?}");
        assert!(asked.windows(2).all(|two| two[0].end == two[1].start), "nothing twice: {asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_slower_than_pieces_is_given_up_and_one_is_not_tried_where_the_line_bounds() {
        let slower = asked_for(Duration::ZERO, Duration::from_millis(50)).await;
        let answers = slower.iter().filter(|range| range.end - range.start > LONGEST).count();
        assert!(answers == 1 && slower.last().unwrap().start > 200 << 20, "{slower:?}");
        let line = asked_for(Duration::from_millis(100), Duration::ZERO).await;
        assert!(line.iter().all(|range| range.end - range.start <= LONGEST), "{line:?}");
    }

    fn files(dir: &tempfile::TempDir) -> usize {
        std::fs::read_dir(dir.path()).unwrap().count()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_blob_that_is_not_what_its_descriptor_says_gets_no_name() {
        let (dir, wanted) = (tempfile::tempdir().unwrap(), descriptor(b"0123456789"));
        let error = Source::of(b"0123456788".to_vec()).fetch(&wanted, &place(&dir)).await.unwrap_err();
        assert_eq!((error.kind, files(&dir)), (ErrorKind::Corrupt, 0));
        // Nor does a file of that size count as the blob.
        std::fs::write(dir.path().join("a.tar"), "0123456788").unwrap();
        Source::of(b"0123456789".to_vec()).fetch(&wanted, &place(&dir)).await.unwrap();
        assert_eq!(std::fs::read(dir.path().join("a.tar")).unwrap(), b"0123456789");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_broke_off_goes_on_where_it_was() {
        let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 3 * SHORTEST as usize]);
        let wanted = descriptor(&bytes);
        let broken = Source { ends: 2 * SHORTEST, ..Source::of(bytes.clone()) };
        assert_eq!(broken.fetch(&wanted, &place(&dir)).await.unwrap_err().kind, ErrorKind::TimedOut);
        let source = Source::of(bytes);
        source.fetch(&wanted, &place(&dir)).await.unwrap();
        assert_eq!((source.read.into_inner(), files(&dir)), (SHORTEST, 1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_somebody_else_fetches_is_waited_for() {
        let (dir, bytes) = (tempfile::tempdir().unwrap(), vec![7; 100]);
        let (place, wanted) = (place(&dir), descriptor(&bytes));
        let Begun::Part(mut theirs) = Unfinished::open(&place, &wanted).unwrap() else { panic!() };
        let source = Source::of(bytes.clone());
        let mut ours = std::pin::pin!(source.fetch(&wanted, &place));
        assert!(tokio::time::timeout(3 * LOOK, &mut ours).await.is_err());
        theirs.write(&bytes).unwrap();
        place.folder.rename(&place.unfinished(&wanted), &place.name, false).unwrap();
        drop(theirs);
        ours.await.unwrap();
        assert_eq!((source.read.load(Ordering::Relaxed), files(&dir)), (0, 1));
    }

    #[test]
    fn what_somebody_else_has_finished_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (place, blob) = (place(&dir), descriptor(b"whole"));
        let part = place.unfinished(&blob);
        std::fs::write(dir.path().join(&part), "whole").unwrap();
        let Begun::Part(mut late) = Unfinished::open(&place, &blob).unwrap() else { panic!() };
        place.folder.rename(&part, &place.name, false).unwrap();
        assert!(late.start_again(&place, &blob).is_err());
        assert_eq!(std::fs::read(place.path()).unwrap(), b"whole");
        assert!(place.is_finished(&blob));
    }

    #[tokio::test]
    async fn pieces_end_where_chunks_end_and_are_as_long_as_what_comes_in_time() {
        let pieces = Pieces { window: Semaphore::new(WINDOW as usize), length: AtomicU64::new(SHORTEST) };
        let next = async |at, size| pieces.next(at, size).await.map(|(range, _)| range);
        assert_eq!(next(5, 5).await, None);
        assert_eq!(next(77, SHORTEST + 1).await, Some(77..SHORTEST));
        assert_eq!(next(SHORTEST, SHORTEST + 1).await, Some(SHORTEST..SHORTEST + 1));
        for (rate, length) in [(12 << 20, SHORTEST), (40 << 20, 4 << 20), (1 << 30, LONGEST)] {
            pieces.came(rate, Duration::from_secs(1));
            assert_eq!(next(0, 1 << 40).await, Some(0..length));
        }
    }
}
