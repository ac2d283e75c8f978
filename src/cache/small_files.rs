//! Files that are read in one go and replaced as a whole.
//!
//! A file is written beside its place and renamed: whoever reads sees all of one or of another. What a killed process
//! leaves is a file in the folder for unfinished ones, removed when it is an hour old.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Take, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use super::folder::make_private;
use super::turns::Turns;

/// Time after which nobody writes to an unfinished file any more.
pub const STALE: Duration = Duration::from_secs(3600);

/// Bytes read by one call: one that takes long is taken for one to a disk that hangs.
const STEP: u64 = 1 << 20;

/// `new`: the folder for unfinished files, on the same file system. Without fsync: what a power loss tears, a checksum
/// must tell.
pub fn replace(new: &Path, file: &Path, bytes: &[u8]) -> io::Result<()> {
    for folder in [Some(new), file.parent()].into_iter().flatten() {
        make_private(folder)?;
    }
    // For its owner alone; removed if anything fails.
    let mut unfinished = tempfile::NamedTempFile::new_in(new)?;
    unfinished.write_all(bytes)?;
    unfinished.persist(file)?;
    Ok(())
}

/// Removes what is older: what killed processes left behind.
pub fn clean(folder: &Path, stale: Duration, now: SystemTime) {
    for left in fs::read_dir(folder).into_iter().flatten().flatten() {
        let modified = left.metadata().and_then(|metadata| metadata.modified());
        if modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age > stale)) {
            let _ = fs::remove_file(left.path());
        }
    }
}

/// The bytes, and when they were written. `None`: there is no such file.
pub fn read_up_to(path: &Path, limit: u64) -> io::Result<Option<(Vec<u8>, SystemTime)>> {
    let Some(mut reading) = Reading::begin(path, limit)? else { return Ok(None) };
    while !reading.go_on()? {}
    Ok(Some((reading.bytes, reading.modified)))
}

/// The same of a disk that may hang: an error then.
pub async fn read_in_turns(turns: &Arc<Turns>, path: PathBuf, limit: u64) -> io::Result<Option<(Vec<u8>, SystemTime)>> {
    let hangs = || io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer");
    let Some(mut reading) = turns.run(move || Reading::begin(&path, limit)).await.ok_or_else(hangs)?? else {
        return Ok(None);
    };
    loop {
        let (is_read, now) = turns.run(move || (reading.go_on(), reading)).await.ok_or_else(hangs)?;
        if is_read? {
            return Ok(Some((now.bytes, now.modified)));
        }
        reading = now;
    }
}

struct Reading {
    rest: Take<File>,
    bytes: Vec<u8>,
    modified: SystemTime,
}

impl Reading {
    fn begin(path: &Path, limit: u64) -> io::Result<Option<Self>> {
        // A fifo or a link put there by somebody else is not waited for nor followed.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a file"));
        }
        if ![0, rustix::process::geteuid().as_raw()].contains(&metadata.uid()) {
            return Err(io::Error::other("it belongs to another user"));
        }
        if metadata.len() > limit {
            return Err(io::Error::other(format!("larger than the {limit} bytes that are read")));
        }
        let bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        Ok(Some(Self { rest: file.take(limit), bytes, modified: metadata.modified()? }))
    }

    /// True: that was all.
    fn go_on(&mut self) -> io::Result<bool> {
        Ok((&mut self.rest).take(STEP).read_to_end(&mut self.bytes)? < STEP as usize)
    }
}
