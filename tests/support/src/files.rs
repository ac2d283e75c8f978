//! Files as the programs see them that read a mount.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::Advice;

/// Bytes of a range of a file, which must have them.
pub fn pread(path: impl AsRef<Path>, range: Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    File::open(path)?.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// The names in a folder, sorted.
#[track_caller]
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a UTF-8 name")).collect();
    names.sort();
    names
}

/// The system's number of what failed; none for what did not.
pub fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// The kernel forgets what it keeps of a file, so that the next read asks the mount again.
#[track_caller]
pub fn forget_pages(path: impl AsRef<Path>) {
    let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("pages of a file can be given up");
}

/// An extended attribute as text; none if there is no such.
#[track_caller]
pub fn xattr(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let path = path.as_ref();
    let mut value = vec![0; 64 << 10];
    match rustix::fs::lgetxattr(path, name, &mut value) {
        Ok(length) => Some(String::from_utf8_lossy(&value[..length]).into_owned()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => panic!("{name} of {}: {error}", path.display()),
    }
}

/// What lies in a cache folder and is not kept for later mounts (manifests, tags, stored indexes, checkpoints, blobs
/// with their maps, and the lock of who evicts), or
/// can be used by anybody but its owner. The folder need not be there.
#[track_caller]
pub fn strays_in_cache(folder: &Path) -> Vec<String> {
    let mut strays = Vec::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let metadata = match folder.join(&path).symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => panic!("{}: {error}", folder.join(&path).display()),
        };
        let mode = metadata.permissions().mode() & 0o7777;
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        if mode != expected {
            strays.push(format!("{} has mode {mode:o}", path.display()));
        }
        if metadata.is_dir() {
            let entries = std::fs::read_dir(folder.join(&path)).expect("one's own folder");
            left.extend(entries.map(|entry| path.join(entry.expect("an entry").file_name())));
        } else if !metadata.is_file() || !is_kept(&path) {
            strays.push(path.display().to_string());
        }
    }
    strays.sort();
    strays
}

/// Bytes of disk that the files below a folder take.
pub fn bytes_of_files(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder that can be listed").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| match entry.metadata().expect("one's own file") {
            metadata if metadata.is_dir() => bytes_of_files(&entry.path()),
            metadata => metadata.blocks() * 512,
        })
        .sum()
}

/// Is this where the cache keeps something?
fn is_kept(path: &Path) -> bool {
    let is_digest = |hex: &str| hex.len() == 64 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap_or("")).collect();
    match parts[..] {
        ["indexes" | "manifests", "sha256", name] | ["manifests", "tags", name] => is_digest(name),
        ["checkpoints", name] => name.strip_prefix("sha256-").is_some_and(is_digest),
        ["blobs", "sha256", name] => is_digest(name.strip_suffix(".map").unwrap_or(name)),
        ["eviction.lock"] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_kept_may_lie_in_a_cache_folder() {
        let cache = tempfile::tempdir().unwrap();
        let put = |path: &str, mode| {
            let path = cache.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let digest = "0123456789abcdef".repeat(4);
        assert_eq!(strays_in_cache(&cache.path().join("nowhere")), [""; 0]);
        put(&format!("blobs/sha256/{digest}.map"), 0o600);
        put(&format!("checkpoints/sha256-{digest}"), 0o644);
        put("indexes/new/.tmp1", 0o600);
        for folder in ["", "blobs", "blobs/sha256", "checkpoints", "indexes", "indexes/new"] {
            std::fs::set_permissions(cache.path().join(folder), std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        let readable = format!("checkpoints/sha256-{digest} has mode 644");
        assert_eq!(strays_in_cache(cache.path()), [readable, "indexes/new/.tmp1".to_owned()]);
    }
}
