//! Attaching /dev/fuse to a directory and detaching it: mount(2) and umount(2) for root, else fusermount3.
//!
//! Not left to fuser 0.18.0, which asks whether a mount is still there with the answer inverted (`is_mounted`), and so
//! may unmount what lies below a mount that is gone already, or leave one that is there; and which turns the errno of
//! mount(2) into text.

use std::ffi::{CString, OsStr};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::FS_TYPE;
use crate::error::{Error, ErrorKind, Result, printable};

const DEVICE: &str = "/dev/fuse";

/// Mounts and gives the connection to the kernel. `path` is absolute and without symlinks, `source` is what the mount
/// table shows.
pub fn attach(path: &Path, source: &str, allow_other: bool) -> Result<OwnedFd> {
    let device = open_device()?;
    let mut options = String::from("default_permissions");
    if allow_other {
        options.push_str(",allow_other");
    }
    match mount(path, source, &options, &device) {
        Ok(()) => Ok(device),
        // Not root, or root of a container without the right to mount.
        Err(Errno::PERM) => fusermount(path, source, &options),
        Err(Errno::NODEV) => Err(no_fuse()),
        Err(error) => {
            Err(Error::new(ErrorKind::Io, path.display(), format!("cannot mount: {}", io::Error::from(error))))
        }
    }
}

/// Whether there is any point in resolving a reference: says why this system cannot mount.
pub fn available() -> Result<()> {
    open_device().map(drop)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Fails while files are open there.
    IfUnused,
    /// Takes it out of the tree now; it ends with the last open file.
    Lazily,
}

/// Unmounts what is mounted at `path`. May block.
///
/// # Errors
/// Why not, in words.
pub fn detach(path: &Path, how: How) -> std::result::Result<(), String> {
    let flags = match how {
        How::IfUnused => UnmountFlags::NOFOLLOW,
        How::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
    };
    match rustix::mount::unmount(path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => {
            let flag = match how {
                How::IfUnused => "-u",
                How::Lazily => "-uz",
            };
            let output = run_fusermount(&[OsStr::new(flag)], path, Stdio::null())
                .and_then(std::process::Child::wait_with_output)
                .map_err(|error| format!("fusermount3: {error}"))?;
            if output.status.success() { Ok(()) } else { Err(complaint(&output)) }
        }
        Err(error) => Err(io::Error::from(error).to_string()),
    }
}

fn open_device() -> Result<OwnedFd> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| match error {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => no_fuse(),
        Errno::ACCESS | Errno::PERM => Error::new(ErrorKind::Denied, DEVICE, "no permission to use it")
            .hint("as root: chmod 666 /dev/fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"),
        error => Error::new(ErrorKind::Io, DEVICE, io::Error::from(error)),
    })
}

fn no_fuse() -> Error {
    Error::new(ErrorKind::Unsupported, DEVICE, "this system has no FUSE")
        .hint("as root: modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN")
}

fn mount(path: &Path, source: &str, options: &str, device: &OwnedFd) -> rustix::io::Result<()> {
    let data = CString::new(format!(
        "fd={},rootmode=40000,user_id={},group_id={},{options}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    ))
    .map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount(source, path, FS_TYPE, flags, data.as_c_str())
}

/// fusermount3(1) mounts for ordinary users and sends the opened /dev/fuse back through a socket.
fn fusermount(path: &Path, source: &str, options: &str) -> Result<OwnedFd> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            Error::new(ErrorKind::Unsupported, "fusermount3", "not found; without it only root can mount")
                .hint("apt-get install fuse3")
        }
        _ => Error::new(ErrorKind::Io, "fusermount3", error),
    };
    let subtype = FS_TYPE.trim_start_matches("fuse.");
    let options = format!("ro,nosuid,nodev,{options},subtype={subtype},fsname={source}");
    let (ours, theirs) = UnixStream::pair().map_err(io)?;
    // As its standard input, because that is the one way to pass a file descriptor without a hook after fork.
    let child = run_fusermount(&[OsStr::new("-o"), OsStr::new(&options)], path, Stdio::from(OwnedFd::from(theirs)))
        .map_err(io)?;
    let device = receive(&ours);
    let output = child.wait_with_output().map_err(io)?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Err(error) if output.status.success() => Err(io(error.into())),
        _ => Err(refused(path, &complaint(&output))),
    }
}

/// Nothing when fusermount3 ended without sending.
fn receive(socket: &UnixStream) -> rustix::io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut devices) => devices.next(),
        _ => None,
    }))
}

fn run_fusermount(arguments: &[&OsStr], path: &Path, stdin: Stdio) -> io::Result<std::process::Child> {
    Command::new("fusermount3")
        .args(arguments)
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

/// The last line that fusermount3 wrote, without its name.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    match text.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => printable(line.trim_start_matches("fusermount3: ").trim()),
        None => output.status.to_string(),
    }
}

fn refused(path: &Path, complaint: &str) -> Error {
    let error = |hint: &str| {
        Error::new(ErrorKind::Denied, path.display(), format!("fusermount3 refuses: {complaint}")).hint(hint)
    };
    if complaint.contains("user_allow_other") {
        Error::new(ErrorKind::Denied, path.display(), "--allow-other is not allowed on this system")
            .hint("as root: add the line user_allow_other to /etc/fuse.conf")
    } else if complaint.contains("Operation not permitted") {
        error("in a container: --device /dev/fuse --cap-add SYS_ADMIN")
    } else {
        error("choose an empty directory of your own")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_other_that_fuse_conf_does_not_allow_says_where_to_change_it() {
        let line = refused(
            Path::new("/home/me/data"),
            "option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf",
        )
        .to_string();
        assert_eq!(
            line,
            "/home/me/data: --allow-other is not allowed on this system \
             (as root: add the line user_allow_other to /etc/fuse.conf)"
        );
    }

    #[test]
    fn a_socket_that_closes_without_a_device_gives_none() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        drop(theirs);
        assert!(receive(&ours).expect("read").is_none());
    }
}
