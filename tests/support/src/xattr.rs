//! Extended attributes as programs read them.

use std::io;
use std::path::Path;

/// Linux gives no more (XATTR_SIZE_MAX and XATTR_LIST_MAX, limits.h).
const LARGEST: usize = 64 << 10;

/// None where there is no attribute of that name.
pub fn get(path: impl AsRef<Path>, name: &str) -> io::Result<Option<String>> {
    let mut value = vec![0; LARGEST];
    match rustix::fs::lgetxattr(path.as_ref(), name, value.as_mut_slice()) {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&value[..length]).into_owned())),
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// In the order of the file system.
pub fn names(path: impl AsRef<Path>) -> io::Result<Vec<String>> {
    let mut list = vec![0; LARGEST];
    let length = rustix::fs::llistxattr(path.as_ref(), list.as_mut_slice())?;
    let names = list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}
