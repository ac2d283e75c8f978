//! Whether a folder does as a cache folder, in words.

use std::path::Path;

use bytesize::ByteSize;

use super::{CacheFolder, Upkeep};
use crate::error::{Error, ErrorKind, Result};

/// What was looked at, and what was found. `min_free`: bytes that are to stay free. Blocks on the disk.
pub fn survey(path: &Path, limit: Option<u64>, min_free: u64) -> Vec<(&'static str, Result<String>)> {
    let folder = match CacheFolder::open(path, limit) {
        Ok(folder) => folder,
        Err(error) => return vec![("cache", Err(error))],
    };
    vec![("cache", space(path, folder.limit(), min_free)), ("holes", holes(path, &folder))]
}

fn space(path: &Path, limit: u64, min_free: u64) -> Result<String> {
    let sizes = Upkeep::of(path)?.sizes()?;
    let file_system = rustix::fs::statvfs(path).map_err(|error| Error::new(ErrorKind::Io, path.display(), error))?;
    let free = file_system.f_bavail.saturating_mul(file_system.f_frsize);
    let show = |bytes: u64| ByteSize::b(bytes).display().si();
    if free < min_free {
        let cause = format!("{} are free, less than the {} that are left free", show(free), show(min_free));
        return Err(Error::new(ErrorKind::NoSpace, path.display(), cause)
            .hint("nothing is kept there: make room, choose another with --cache-dir, or lower --cache-min-free"));
    }
    let used = sizes.blobs.saturating_add(sizes.others);
    Ok(format!("{}: {} of {} used, {} free", path.display(), show(used), show(limit), show(free)))
}

fn holes(path: &Path, folder: &CacheFolder) -> Result<String> {
    match folder.holds_holes() {
        Ok(true) => Ok("files with holes can be kept".to_owned()),
        result => {
            let why = result.err().map_or_else(String::new, |error| format!(": {error}"));
            let cause = format!("its file system cannot hold files with holes{why}");
            Err(Error::new(ErrorKind::Unsupported, path.display(), cause)
                .hint("what is read is not kept there; choose a local file system with --cache-dir"))
        }
    }
}
