//! What is mounted where, as the kernel tells: never touches the mount itself, which might hang.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo` (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// `major:minor`, which names the mount's folder in `/sys/class/bdi`.
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Of the mount, such as `ro,nosuid,nodev,relatime`.
    pub options: String,
    /// Such as `fuse.eo-mount`.
    pub fs_type: String,
    /// What is mounted, as `mount` shows it in front.
    pub source: String,
    /// Of the file system, such as `ro,user_id=0,group_id=0`.
    pub super_options: String,
}

/// The mounts at exactly this place, the topmost last.
pub fn mounts_at(mountpoint: &Path) -> Vec<MountEntry> {
    mounts().into_iter().filter(|entry| entry.mountpoint == mountpoint).collect()
}

/// Every mount, in the kernel's order.
pub fn mounts() -> Vec<MountEntry> {
    let table = std::fs::read("/proc/self/mountinfo").expect("/proc is mounted");
    table.split(|&byte| byte == b'\n').filter_map(parse).collect()
}

fn parse(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ').map(unescape);
    let device = fields.nth(2)?.into_string().ok()?;
    let mountpoint = PathBuf::from(fields.nth(1)?);
    let options = fields.next()?.into_string().ok()?;
    let mut after = fields.skip_while(|field| field.as_bytes() != b"-").skip(1);
    Some(MountEntry {
        device,
        mountpoint,
        options,
        fs_type: after.next()?.to_string_lossy().into_owned(),
        source: after.next()?.to_string_lossy().into_owned(),
        super_options: after.next()?.to_string_lossy().into_owned(),
    })
}

/// Space, tab, newline and backslash come as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_proc_5_says() {
        let line =
            br"36 35 0:98 / /mnt/with\040space ro,noatime shared:1 master:2 - fuse.eo-mount eo-mount ro,user_id=0";
        let entry = parse(line).unwrap();
        assert_eq!(entry.mountpoint, Path::new("/mnt/with space"));
        assert_eq!((entry.device.as_str(), entry.options.as_str()), ("0:98", "ro,noatime"));
        assert_eq!((entry.fs_type.as_str(), entry.source.as_str()), ("fuse.eo-mount", "eo-mount"));
        assert_eq!(entry.super_options, "ro,user_id=0");
        assert_eq!(parse(b""), None);
        assert!(!mounts_at(Path::new("/proc")).is_empty());
    }
}
