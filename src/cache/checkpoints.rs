//! Tables of compressed blobs, kept for the next mount: one file a blob, named by its digest, with what it refers to.
//! While a pass is under way, what its table refers to is in a file `pass-…`, locked by the process, and how far it has
//! come in a file `progress-…`, which is replaced as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FlockOperation, flock, linkat};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::CacheFolder;
use super::own_file::{is_at, is_foreign, open_finished, open_own};
use super::small_files::{read_up_to, replace};
use super::turns::WAKING;
use crate::blob::content::{
    Compression, Progress, Side, TRAILER, Table, decode_progress, decode_table, encode_progress, encode_table,
    points_at,
};
use crate::error::Result;
use crate::oci::{Descriptor, Digest};

/// Share of the folder's bound that these files may take, as a divisor; the oldest go first.
const SHARE: u64 = 4;

/// Bytes of a file `progress-…`: those of a million points.
const LARGEST: u64 = 64 << 20;

impl CacheFolder {
    /// A file for what a pass leaves. `None`: its disk hangs.
    pub async fn new_side(&self) -> Option<Result<Side>> {
        self.in_turn(|folder| {
            folder.unnamed_file().map(|(file, space)| Side::file(file, space, folder.turns().clone()))
        })
        .await
    }

    /// What an earlier mount left of this blob. A file that is damaged is removed.
    pub async fn load_checkpoints(&self, blob: &Descriptor) -> Option<(Compression, (Table, Arc<Side>))> {
        let (folder, blob) = (self.clone(), blob.clone());
        self.turns().reads.run(move || folder.checkpoints_of(&blob)).await.flatten()
    }

    fn checkpoints_of(&self, blob: &Descriptor) -> Option<(Compression, (Table, Arc<Side>))> {
        let path = self.checkpoints(&blob.digest);
        let file = match open_finished(&path) {
            Ok(file) => file,
            Err(error) => {
                if is_foreign(&error) {
                    tracing::warn!("{}: {error}; it is not used", path.display());
                    let _ = fs::remove_file(&path);
                }
                return None;
            }
        };
        match read(&file, blob) {
            Ok(Some((compression, table))) => {
                // The order in which files go.
                let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
                let _ =
                    rustix::fs::futimens(&file, &rustix::fs::Timestamps { last_access: now, last_modification: now });
                Some((compression, (table, Arc::new(Side::stored(file, self.turns().clone())))))
            }
            Ok(None) => {
                tracing::warn!("{}: damaged, or of another version; it is made anew", path.display());
                let _ = fs::remove_file(&path);
                None
            }
            Err(error) => {
                tracing::warn!("{}: {error}; it is not used", path.display());
                None
            }
        }
    }

    /// Keeps a table and its side file for later mounts, in the place of the pass's progress. Whatever goes wrong costs
    /// them a pass, no more. A disk that takes long is not waited for to the end.
    pub async fn store_checkpoints(&self, blob: &Descriptor, compression: Compression, made: (Table, Arc<Side>)) {
        let (folder, blob, (table, side)) = (self.clone(), blob.clone(), made);
        let storing = async move {
            let (own, of) = (folder.clone(), blob.digest.clone());
            let written = synced(&side, move |file| own.append_table(file, &of, compression, &table)).await;
            let name = move |folder: &Self| {
                let named = side.as_file().map(|file| written.and_then(|()| folder.name_table(file, &blob.digest)));
                if let Some(Err(error)) = named
                    && error.kind() != io::ErrorKind::AlreadyExists
                {
                    tracing::info!("layer {}: its checkpoints are not kept: {error}", blob.digest);
                }
                folder.remove_progress(&blob.digest);
            };
            folder.in_turn(name).await;
        };
        let _ = timeout(WAKING, tokio::spawn(storing)).await;
    }

    /// Keeps how far a pass has come, for one that goes on should this process end. Another process's pass over the
    /// same blob is left alone.
    pub async fn store_progress(
        &self,
        blob: &Descriptor,
        compression: Compression,
        progress: Progress,
        side: Arc<Side>,
    ) {
        let digest = blob.digest.clone();
        let is_too_large = progress.side_end > self.limit() / SHARE;
        if is_too_large || !matches!(timeout(WAKING, synced(&side, |_| Ok(()))).await, Ok(Ok(()))) {
            tracing::debug!(
                "layer {digest}: the progress of its pass is not kept: it is too large, or its disk too slow"
            );
            return;
        }
        let storing = move |folder: &Self| {
            let Some(file) = side.as_file() else { return };
            if let Err(error) = folder.try_to_store_progress(&digest, compression, &progress, file) {
                tracing::debug!("layer {digest}: the progress of its pass is not kept: {error}");
            }
        };
        self.in_turn(storing).await;
    }

    fn try_to_store_progress(
        &self,
        blob: &Digest,
        compression: Compression,
        progress: &Progress,
        file: &File,
    ) -> io::Result<()> {
        let path = self.file("pass", blob);
        if !is_at(file, &path) {
            flock(file, FlockOperation::NonBlockingLockExclusive)?;
            self.give_name(file, &path)?;
        }
        let bytes = encode_progress(progress, compression, blob);
        replace(&self.path().join("indexes/new"), &self.file("progress", blob), &bytes)
    }

    /// What an earlier process left of a pass, if it is not at it any more. What is damaged is removed.
    pub async fn load_progress(&self, blob: &Descriptor) -> Option<(Compression, Progress, Side)> {
        let blob = blob.clone();
        self.in_turn(move |folder| folder.progress_of(&blob)).await.flatten()
    }

    fn progress_of(&self, blob: &Descriptor) -> Option<(Compression, Progress, Side)> {
        let path = self.file("pass", &blob.digest);
        let file = open_own(&path, OpenOptions::new().write(true)).ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok().filter(|()| is_at(&file, &path))?;
        let bytes = read_up_to(&self.file("progress", &blob.digest), LARGEST).ok().flatten();
        let found = bytes.and_then(|(bytes, _)| decode_progress(&bytes, &blob.digest, blob.size));
        let loaded = found.and_then(|(compression, progress)| {
            let whole = progress.side_end <= file.metadata().ok()?.len();
            whole.then(|| file.set_len(progress.side_end).ok())??;
            Some((compression, progress, Side::file(file, self.space(), self.turns().clone())))
        });
        if loaded.is_none() {
            tracing::warn!("{}: damaged, or of another version; the layer is read from its start", path.display());
            self.remove_progress(&blob.digest);
        }
        loaded
    }

    /// What was kept of the pass is of no use.
    pub async fn drop_progress(&self, blob: &Descriptor) {
        let digest = blob.digest.clone();
        self.in_turn(move |folder| folder.remove_progress(&digest)).await;
    }

    fn remove_progress(&self, blob: &Digest) {
        for kind in ["progress", "pass"] {
            let _ = fs::remove_file(self.file(kind, blob));
        }
    }

    fn append_table(&self, file: &File, blob: &Digest, compression: Compression, table: &Table) -> io::Result<()> {
        let side_end = file.metadata()?.len();
        if side_end > self.limit() / SHARE {
            return Err(io::Error::other("they would take too much of the cache folder"));
        }
        file.write_all_at(&encode_table(table, compression, side_end, blob), side_end)
    }

    /// The file has not had this name so far: it appears whole, or not at all. It has no other one then.
    fn name_table(&self, file: &File, blob: &Digest) -> io::Result<()> {
        let (pass, path) = (self.file("pass", blob), self.checkpoints(blob));
        if !is_at(file, &pass) {
            return self.give_name(file, &path);
        }
        // In the place of one of the same blob, if need be: NFS has no RENAME_NOREPLACE.
        fs::rename(pass, path)?;
        make_room(&self.path().join("checkpoints"), self.limit() / SHARE)
    }

    fn give_name(&self, file: &File, path: &Path) -> io::Result<()> {
        let folder = self.path().join("checkpoints");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let open = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
        make_room(&folder, self.limit() / SHARE)
    }

    fn checkpoints(&self, digest: &Digest) -> PathBuf {
        self.path().join("checkpoints").join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    fn file(&self, kind: &str, digest: &Digest) -> PathBuf {
        self.path().join("checkpoints").join(format!("{kind}-{}-{}", digest.algorithm(), digest.hex()))
    }
}

/// Has what `write` adds to the file, and all before it, on the disk. No turn: a large file takes its time, which is not
/// that of a disk that hangs.
async fn synced(side: &Arc<Side>, write: impl FnOnce(&File) -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let side = Arc::clone(side);
    let sync = move || side.as_file().map_or(Ok(()), |file| write(file).and_then(|()| file.sync_data()));
    spawn_blocking(sync).await?
}

fn read(file: &File, blob: &Descriptor) -> io::Result<Option<(Compression, Table)>> {
    let size = file.metadata()?.len();
    let Some(trailer_at) = size.checked_sub(TRAILER as u64) else { return Ok(None) };
    let mut trailer = vec![0; TRAILER];
    file.read_exact_at(&mut trailer, trailer_at)?;
    let Some((start, length)) = points_at(&trailer, size) else { return Ok(None) };
    let mut bytes = vec![0; length.saturating_add(TRAILER)];
    file.read_exact_at(&mut bytes, start)?;
    Ok(decode_table(&bytes, &blob.digest, blob.size))
}

fn make_room(folder: &Path, limit: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        files.push((metadata.mtime(), metadata.blocks().saturating_mul(512), entry.path()));
    }
    files.sort();
    let mut used: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in files {
        if used <= limit {
            break;
        }
        fs::remove_file(path)?;
        used = used.saturating_sub(bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FileType, Mode, mknodat, symlinkat};

    use super::*;
    use crate::blob::content::{Place, Point};

    fn folder() -> (tempfile::TempDir, CacheFolder, Descriptor) {
        let dir = tempfile::tempdir().unwrap();
        let folder = CacheFolder::open(dir.path(), None).unwrap();
        let digest = Digest::sha256_of(b"x");
        (dir, folder, Descriptor { digest, size: 10, media_type: String::new(), annotations: Default::default() })
    }

    #[tokio::test]
    async fn what_others_have_put_in_the_place_of_a_table_is_not_waited_for_nor_followed_and_gives_way() {
        let (_dir, folder, blob) = folder();
        let path = folder.checkpoints(&blob.digest);
        fs::create_dir(path.parent().unwrap()).unwrap();
        let put: [&dyn Fn(); 2] = [&|| mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap(), &|| {
            symlinkat("/dev/zero", CWD, &path).unwrap()
        }];
        for put in put {
            put();
            assert!(folder.load_checkpoints(&blob).await.is_none());
            assert!(fs::symlink_metadata(&path).is_err());
            assert!(!folder.turns().reads.is_busy());
        }
    }

    #[tokio::test]
    async fn a_table_has_one_name_of_its_own_and_is_read_where_a_copy_of_the_folder_gave_it_another() {
        let (dir, folder, blob) = folder();
        let start = Point { content: 0, packed: 0, place: Place::Start, sum: 0 };
        let table = Table { points: vec![start], content: 10, packed: 10 };
        let progress = Progress { table: table.clone(), hasher: Vec::new(), notes: Vec::new(), side_end: 0 };
        let side = Arc::new(folder.new_side().await.unwrap().unwrap());
        folder.store_progress(&blob, Compression::Gzip, progress, Arc::clone(&side)).await;
        let (file, pass, path) =
            (side.as_file().unwrap(), folder.file("pass", &blob.digest), folder.checkpoints(&blob.digest));
        assert!(is_at(file, &pass));
        folder.append_table(file, &blob.digest, Compression::Gzip, &table).unwrap();
        folder.name_table(file, &blob.digest).unwrap();
        assert!(is_at(file, &path));
        assert_eq!(file.metadata().unwrap().nlink(), 1);
        fs::hard_link(&path, dir.path().join("copy")).unwrap();
        assert!(folder.load_checkpoints(&blob).await.is_some_and(|(_, (found, _))| found == table));
    }

    #[test]
    fn the_oldest_files_go_first() {
        let folder = tempfile::tempdir().unwrap();
        for (name, age) in [("old", 300), ("older", 400), ("new", 1)] {
            let file = File::create(folder.path().join(name)).unwrap();
            file.write_all_at(&[1; 8192], 0).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        }
        make_room(folder.path(), 16384).unwrap();
        assert!(!folder.path().join("older").exists());
        make_room(folder.path(), 8192).unwrap();
        assert!(!folder.path().join("old").exists() && folder.path().join("new").exists());
    }
}
