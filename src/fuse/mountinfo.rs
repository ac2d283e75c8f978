//! The kernel's mount table, `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `major:minor`: no two file systems that are mounted at the same time share one.
    pub device: String,
    pub path: PathBuf,
    pub fs_type: String,
    pub source: String,
}

/// The file system seen at `path`, if it is a mount point: the last mounted of those stacked there.
pub fn at(path: &Path) -> io::Result<Option<Entry>> {
    Ok(topmost(&fs::read("/proc/self/mountinfo")?, path))
}

fn topmost(table: &[u8], path: &Path) -> Option<Entry> {
    table.split(|&byte| byte == b'\n').filter_map(parse).rfind(|entry| entry.path == path)
}

/// `36 35 0:45 / /mnt/a\040b rw,nosuid shared:1 - fuse.eo-mount source rw,user_id=0`: any number of optional
/// fields stands before the lone `-`.
fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = fields.nth(2)?;
    let path = fields.nth(1)?;
    fields.find(|&field| field == b"-")?;
    let fs_type = fields.next()?;
    let source = fields.next()?;
    Some(Entry {
        device: text(device),
        path: PathBuf::from(OsString::from_vec(unescape(path))),
        fs_type: text(fs_type),
        source: text(source),
    })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Space, tab, newline, `#` and backslash are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first == b'\\'
            && let Some((digits, tail)) = tail.split_first_chunk::<3>()
            && let Some(byte) = octal(digits)
        {
            plain.push(byte);
            rest = tail;
        } else {
            plain.push(first);
        }
    }
    plain
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        40 22 0:41 / /mnt/my\\040data rw,nosuid shared:7 master:1 - fuse.sshfs host:/a\\134b rw,user_id=0\n\
        41 22 0:42 / /mnt/x ro,nosuid,nodev - fuse.eo-mount localhost:5000/pastis:sample ro,user_id=0\n\
        42 41 0:43 / /mnt/x ro - tmpfs none ro\n\
        broken line\n";

    #[test]
    fn escaped_paths_and_optional_fields() {
        let entry = topmost(TABLE, Path::new("/mnt/my data")).expect("an entry");
        assert_eq!(entry.device, "0:41");
        assert_eq!(entry.fs_type, "fuse.sshfs");
        assert_eq!(entry.source, "host:/a\\b");
    }

    #[test]
    fn the_last_of_stacked_mounts_is_seen() {
        let entry = topmost(TABLE, Path::new("/mnt/x")).expect("an entry");
        assert_eq!((entry.device.as_str(), entry.fs_type.as_str()), ("0:43", "tmpfs"));
        assert_eq!(topmost(TABLE, Path::new("/mnt")), None);
    }

    #[test]
    fn a_backslash_without_octal_digits_stays() {
        assert_eq!(unescape(b"a\\"), b"a\\");
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\999\\011"), b"\\999\t");
    }
}
