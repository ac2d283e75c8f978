//! One blob into one file. The bytes come in order, so that what is there of it is one number, the length of the file
//! beside it, and so that it is hashed while it comes. The file gets its name when it has its digest.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::PathBuf;

use futures_util::{StreamExt, stream};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use crate::error::{Error, ErrorKind, Result};
use crate::mount::Mount;
use crate::oci::{Descriptor, Hasher};
use crate::transfer::folder::{Folder, failed};

/// Bytes asked for at once: the longest request of the chunk cache. A request costs docker-registry 4 ms whatever its
/// length.
const PIECE: u64 = 2 << 20;
/// The first is so long, and each one longer than the last by that: answers that end together leave the line idle for a
/// round trip.
const STEP: u64 = 512 << 10;
/// Pieces of all blobs that may be under way or wait for one before them. They are what a killed process fetches twice,
/// where the cache folder has not got them.
pub const PIECES: usize = 7;

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

/// A blob in the making, and what is in it.
struct Unfinished {
    file: File,
    hasher: Hasher,
    at: u64,
}

impl Unfinished {
    /// `None`: somebody else has just finished it.
    fn open(place: &Place, blob: &Descriptor) -> Result<Option<Self>> {
        let failed = |error: io::Error| place.failed(&error);
        let mut file = place.folder.file_to_write(&place.unfinished(blob)).map_err(failed)?;
        // Where the file system has no locks, it goes without.
        if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            let error = Error::new(ErrorKind::Io, place.path().display(), "somebody else is pulling it");
            return Err(error.hint("wait for that, or choose another folder with -o"));
        }
        if !place.folder.is_at(&file, &place.unfinished(blob)) {
            return Ok(None);
        }
        let at = file.metadata().map_err(failed)?.len().min(blob.size);
        let mut hasher = blob.digest.hasher();
        hash(&mut file, at, &mut hasher).map_err(failed)?;
        Ok(Some(Self { file, hasher, at }))
    }

    fn start_again(&mut self, place: &Place, blob: &Descriptor) -> io::Result<()> {
        // Without locks it may have been given its name.
        if !place.folder.is_at(&self.file, &place.unfinished(blob)) {
            return Err(io::Error::other("somebody else has taken what was there of it"));
        }
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.hasher, self.at) = (blob.digest.hasher(), 0);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.at = self.at.saturating_add(bytes.len() as u64);
        Ok(())
    }
}

fn hash(file: &mut File, length: u64, hasher: &mut Hasher) -> io::Result<()> {
    let mut buffer = vec![0; PIECE as usize];
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

/// Fetches what is missing. `window`: see [`PIECES`]. `progress` is told of bytes that came, or were there.
pub async fn fetch(
    mount: &Mount,
    blob: &Descriptor,
    place: &Place,
    window: &Semaphore,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let (at, of) = (place.clone(), blob.clone());
    let mut unfinished = blocking(blob, move || {
        while !at.is_finished(&of) {
            if at.keep && at.folder.has(&at.name) {
                let error = io::Error::new(io::ErrorKind::AlreadyExists, "another file of that name is there");
                return Err(at.failed(&error));
            }
            if let Some(part) = Unfinished::open(&at, &of)? {
                return Ok(Some(part));
            }
        }
        Ok(None)
    })
    .await?;
    let Some(mut part) = unfinished.take() else {
        progress(blob.size);
        return Ok(());
    };
    progress(part.at);
    let fresh = part.at == 0 && mount.cached_bytes(blob, &(0..blob.size)) == 0;
    let mut checked = fetch_rest(mount, blob, place, &mut part, window, progress).await?;
    if checked.is_err() && !fresh {
        // What was kept of it may be to blame.
        mount.drop_wrong(blob);
        part.start_again(place, blob).map_err(|error| place.failed(&error))?;
        checked = fetch_rest(mount, blob, place, &mut part, window, &|_| ()).await?;
    }
    let (at, of) = (place.clone(), blob.clone());
    if let Err(error) = checked {
        mount.drop_wrong(blob);
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
    mount: &Mount,
    blob: &Descriptor,
    place: &Place,
    part: &mut Unfinished,
    window: &Semaphore,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Result<()>> {
    let mut pieces = std::pin::pin!(
        stream::iter(pieces(part.at, blob.size))
            .map(async |range| {
                // Given in the order of asking, so that the first piece never waits for those behind it.
                let permit = window.acquire().await;
                let bytes = mount.read_blob(blob, range).await?;
                Ok::<_, Error>((bytes, permit))
            })
            .buffered(PIECES)
    );
    while let Some(piece) = pieces.next().await {
        let (bytes, permit) = match piece {
            Ok(piece) => piece,
            // The cache has seen it before we did.
            Err(error) if error.kind == ErrorKind::Corrupt => return Ok(Err(error)),
            Err(error) => return Err(error),
        };
        tokio::task::block_in_place(|| part.write(&bytes)).map_err(|error| place.failed(&error))?;
        drop(permit);
        progress(bytes.len() as u64);
    }
    Ok(part.hasher.clone().check(&blob.digest))
}

fn pieces(from: u64, size: u64) -> impl Iterator<Item = Range<u64>> {
    let (mut at, mut longest) = (from, 0_u64);
    std::iter::from_fn(move || {
        let start = at;
        longest = PIECE.min(longest.saturating_add(STEP));
        // Up to a boundary of chunks.
        at = (start / STEP).saturating_mul(STEP).saturating_add(longest).min(size);
        (start < size).then_some(start..at)
    })
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
    use super::*;

    #[test]
    fn what_somebody_else_has_finished_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { folder: Folder::open(dir.path()).unwrap(), name: "a.tar".into(), keep: false };
        let digest = crate::oci::Digest::sha256_of(b"whole");
        let blob = Descriptor { digest, size: 5, media_type: String::new(), annotations: Default::default() };
        let part = place.unfinished(&blob);
        std::fs::write(dir.path().join(&part), "whole").unwrap();
        let mut late = Unfinished::open(&place, &blob).unwrap().unwrap();
        place.folder.rename(&part, &place.name, false).unwrap();
        assert!(late.start_again(&place, &blob).is_err());
        assert_eq!(std::fs::read(place.path()).unwrap(), b"whole");
        assert!(place.is_finished(&blob));
    }

    #[test]
    fn pieces_end_where_chunks_end() {
        let of = |from, size| pieces(from, size).collect::<Vec<_>>();
        assert_eq!(of(0, 0), []);
        assert_eq!(of(5, 5), []);
        assert_eq!(of(0, STEP + 1), [0..STEP, STEP..STEP + 1]);
        assert_eq!(of(STEP + 77, 2 * STEP + 1), [STEP + 77..2 * STEP, 2 * STEP..2 * STEP + 1]);
        let lengths: Vec<u64> = of(0, 4 * PIECE).iter().map(|piece| piece.end - piece.start).collect();
        assert_eq!(lengths, [STEP, 2 * STEP, 3 * STEP, PIECE, PIECE, 3 * STEP]);
    }
}
