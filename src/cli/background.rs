//! Going on in the background: this program run again in a session of its own, instead of a fork, after which no
//! thread but one would be left.
//!
//! Both sides hold one end of a socket. The child says that the mount answers by writing to it; the end of the child
//! or of the parent is seen by the other as the end of the stream. It is the child's standard input, because that is
//! the way to pass a file descriptor without a hook after fork.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use rustix::fs::FileType;
use rustix::io::FdFlags;
use tokio::io::AsyncReadExt;

use super::access::PASSWORD_VARIABLE;
use super::failure::Failure;
use super::logging;
use crate::registry::Secret;

/// Marks the child. An argument, because a variable would be inherited by what the child starts.
pub const FLAG: &str = "in-background";
/// To glibc, mallopt(3): chunks that come and go would leave holes in an arena for each thread, a fifth of all memory.
const ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// Runs this program again with the same arguments and waits until it says that the mount answers, or ends; it has
/// then written its own error to the stderr that both share.
///
/// When the user interrupts this, the child sees the stream end and goes too. The password goes through the socket, so
/// that neither the arguments nor the environment of the child hold it.
pub fn run_again(password: Option<&Secret>) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::system("starting the background process", error);
    keep_from_child().map_err(failed)?;
    let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut arguments = super::without_verb(std::env::args_os());
    let mut child = Command::new(program())
        .arg0(arguments.next().as_deref().unwrap_or(OsStr::new("eo-mount")))
        .arg("mount")
        .arg(format!("--{FLAG}"))
        .args(arguments)
        .env_remove(PASSWORD_VARIABLE)
        .env(ARENAS.0, std::env::var_os(ARENAS.0).unwrap_or(ARENAS.1.into()))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(failed)?;
    // A child that is gone already has said why.
    let _ = send(&mut ours, password);
    if ours.read_exact(&mut [0]).is_ok() {
        return Ok(());
    }
    Err(ended_early(child.wait().map_err(failed)?))
}

/// Its length and the password; length 0 for none, because no password is empty.
fn send(socket: &mut UnixStream, password: Option<&Secret>) -> io::Result<()> {
    let text = password.map_or("", Secret::reveal).as_bytes();
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    socket.write_all(&[&length.to_le_bytes(), text].concat())
}

fn receive(socket: &mut UnixStream) -> io::Result<Option<Secret>> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut text = String::new();
    let length = u32::from_le_bytes(length);
    socket.take(length.into()).read_to_string(&mut text)?;
    Ok(Some(Secret::new(text)).filter(|_| length > 0))
}

/// What this process was given beyond the three standard streams, a lock or the end of a pipe, is not to stay open as
/// long as the mount.
fn keep_from_child() -> io::Result<()> {
    let descriptors: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&descriptor| descriptor > 2)
        .collect();
    for descriptor in descriptors {
        #[allow(unsafe_code, reason = "inherited descriptors have no owner to borrow from")]
        // SAFETY: the number is used for one call, which fails if it is not open; nothing is closed.
        let inherited = unsafe { BorrowedFd::borrow_raw(descriptor) };
        // The one that listed the folder is closed already.
        let _ = rustix::io::fcntl_setfd(inherited, FdFlags::CLOEXEC);
    }
    Ok(())
}

/// The file that runs now; after an upgrade replaced it, by the one name that it still has.
fn program() -> PathBuf {
    std::env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

fn ended_early(status: ExitStatus) -> Failure {
    match (status.code().map(u8::try_from), status.signal()) {
        (Some(Ok(code)), _) if code != 0 => Failure::silent(code),
        (_, Some(signal)) => Failure::system("the background process", format!("ended by signal {signal}")),
        _ => Failure::system("the background process", "ended before the mount answered"),
    }
}

/// The child's side.
pub struct Parent {
    socket: UnixStream,
}

impl Parent {
    /// Leaves the terminal's session, takes the socket, and the password if there is one. To be called before there are
    /// threads.
    pub fn take() -> Result<(Self, Option<Secret>), Failure> {
        let failed = |error: io::Error| Failure::system("starting in the background", error);
        let stdin = rustix::stdio::stdin();
        let mode = rustix::fs::fstat(stdin).map_err(|error| failed(error.into()))?.st_mode;
        if FileType::from_raw_mode(mode) != FileType::Socket {
            return Err(failed(io::Error::other(format!("--{FLAG} is for eo-mount itself"))));
        }
        // It fails only for a process that leads a group; that one has left already.
        let _ = rustix::process::setsid();
        let mut socket = UnixStream::from(stdin.try_clone_to_owned().map_err(failed)?);
        rustix::stdio::dup2_stdin(nowhere().map_err(failed)?).map_err(|error| failed(error.into()))?;
        let password = receive(&mut socket).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        Ok((Self { socket }, password))
    }

    /// Waits until the parent is gone.
    pub async fn gone(&self) {
        let read = async {
            let mut socket = tokio::net::UnixStream::from_std(self.socket.try_clone()?)?;
            // It writes nothing more, so this ends with the stream.
            socket.read(&mut [0]).await
        };
        let _ = read.await;
    }

    /// Lets the parent go: leaves its folder and its output, so that whoever reads that sees its end, and says that
    /// the mount answers.
    ///
    /// # Errors
    /// The parent is gone: nobody wants the mount.
    pub fn ready(mut self) -> io::Result<()> {
        logging::detach();
        std::env::set_current_dir("/")?;
        let nowhere = nowhere()?;
        rustix::stdio::dup2_stdout(&nowhere)?;
        rustix::stdio::dup2_stderr(&nowhere)?;
        self.socket.write_all(b"R")
    }
}

fn nowhere() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/null")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_of_the_child_is_ours() {
        assert_eq!(ended_early(ExitStatus::from_raw(2 << 8)), Failure::silent(2));
        let killed = ended_early(ExitStatus::from_raw(9));
        assert_eq!(killed.code, 3);
        assert_eq!(killed.line.as_deref(), Some("the background process: ended by signal 9"));
        assert_eq!(ended_early(ExitStatus::from_raw(0)).code, 3);
    }
}
