//! Files as the programs see them that read a mount.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::Advice;

/// Bytes of a range of a file, which must have them.
pub fn pread(path: impl AsRef<Path>, range: Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    File::open(path)?.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
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
