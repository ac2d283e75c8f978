//! One mount from start to end: attached, served by two threads, ended from outside or by us.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{Config, INodeNo, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::adapter::Adapter;
use super::attach::{self, How};
use super::bridge::Bridge;
use super::mountinfo;
use super::mountpoint::{Mountpoint, quoted};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::Mount;

/// Two threads keep two processors busy with what is in memory; what waits is not on them. They share the one
/// connection: a clone for each (`clone_fd`) made no difference that could be measured.
const THREADS: usize = 2;

/// How long unmounting may take, each of the two ways, and how long open requests may then go on. Together below the
/// five seconds in which the process has promised to end.
const UNMOUNT: Duration = Duration::from_millis(1000);
const LAST_REQUESTS: Duration = Duration::from_millis(2000);

#[derive(Debug, Clone)]
pub struct Settings {
    /// What the mount table shows as the source: the reference.
    pub source: String,
    /// Users other than the mounter may read.
    pub allow_other: bool,
}

pub struct Session {
    path: PathBuf,
    /// Tells this mount from another that came to the same place; see [`mountinfo::Entry::device`].
    device: Option<String>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Session {
    /// Mounts and starts to serve. Blocks for some milliseconds.
    pub fn start(mount: Arc<Mount>, mountpoint: &Mountpoint, settings: &Settings, runtime: Handle) -> Result<Self> {
        let path = mountpoint.path().to_path_buf();
        let connection = attach::attach(&path, &option_value(&settings.source), settings.allow_other)?;
        let (end, ended) = oneshot::channel();
        let session = Self { device: mounted_device(&path), path, ended };
        let serving = || {
            let mut config = Config::default();
            config.n_threads = Some(THREADS);
            let adapter = Adapter::new(Arc::clone(&mount), Bridge::new(runtime.clone()));
            // Who may use the mount is the kernel's business (fs/fuse/dir.c, fuse_allow_current_process).
            let served = fuser::Session::from_fd(adapter, connection, SessionACL::All, config)?;
            let notifier = Arc::new(served.notifier());
            mount.on_wrong(move |inodes, names| {
                let notifier = Arc::clone(&notifier);
                // The kernel waits for reads of these pages that are under way. An inode that it does not know is an
                // error.
                runtime.spawn_blocking(move || {
                    for (directory, name) in names {
                        let _ = notifier.inval_entry(INodeNo(directory.0), OsStr::from_bytes(&name));
                    }
                    inodes.into_iter().for_each(|ino| drop(notifier.inval_inode(INodeNo(ino.0), 0, 0)));
                });
            });
            thread::Builder::new().name("fuse".to_owned()).spawn(move || {
                let _ = end.send(served.run());
            })
        };
        serving().map_err(|error| {
            let _ = session.detach(How::Lazily);
            Error::new(ErrorKind::Io, session.path.display(), format!("the kernel does not take the mount: {error}"))
        })?;
        Ok(session)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until somebody unmounts it (and the last open file is closed).
    pub async fn ended(&mut self) -> Result<()> {
        // A call that was cancelled while it cleaned up may have taken the result.
        let end = if self.ended.is_terminated() { Ok(Ok(())) } else { (&mut self.ended).await };
        // `umount -f` on a mount in use, or a failure, ends the connection and leaves the mount in the tree, dead.
        if let Some(unmounting) = self.unmounting(How::Lazily) {
            let _ = tokio::time::timeout(UNMOUNT, unmounting).await;
        }
        let failed = |cause: String| Err(Error::new(ErrorKind::Io, self.path.display(), cause));
        match end {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => failed(format!("the connection to the kernel failed: {error}")),
            Err(_) => failed("the thread that serves the mount died".to_owned()),
        }
    }

    /// Unmounts within five seconds, whatever hangs. While files are open or requests hang, the mount is taken out of
    /// the tree, and what is then left fails when the process ends, because that closes /dev/fuse.
    pub async fn stop(mut self) -> Result<()> {
        let mut result = Ok(());
        for how in [How::IfUnused, How::Lazily] {
            let Some(unmounting) = self.unmounting(how) else {
                result = Ok(());
                break;
            };
            result = match tokio::time::timeout(UNMOUNT, unmounting).await {
                Ok(Ok(done)) => done,
                Ok(Err(panic)) => Err(panic.to_string()),
                Err(_) => Err("unmounting takes too long".to_owned()),
            };
            match &result {
                Ok(()) => break,
                Err(cause) => tracing::debug!("{}: {how:?}: {cause}", self.path.display()),
            }
        }
        if let Err(cause) = result {
            return Err(Error::new(ErrorKind::Io, self.path.display(), format!("cannot unmount: {cause}"))
                .hint(format!("fusermount3 -uz {}", quoted(&self.path))));
        }
        match tokio::time::timeout(LAST_REQUESTS, self.ended()).await {
            Ok(end) => end,
            Err(_) => {
                tracing::warn!("{}: unmounted while files were open", self.path.display());
                Ok(())
            }
        }
    }

    /// Nothing when it is not mounted any more.
    fn unmounting(&self, how: How) -> Option<tokio::task::JoinHandle<std::result::Result<(), String>>> {
        if !self.is_mounted() {
            return None;
        }
        let path = self.path.clone();
        Some(tokio::task::spawn_blocking(move || attach::detach(&path, how)))
    }

    fn detach(&self, how: How) -> std::result::Result<(), String> {
        if self.is_mounted() { attach::detach(&self.path, how) } else { Ok(()) }
    }

    /// What lies at the path now may be another mount, which is not ours to unmount.
    fn is_mounted(&self) -> bool {
        mounted_device(&self.path) == self.device
    }
}

fn mounted_device(path: &Path) -> Option<String> {
    mountinfo::at(path).ok().flatten().map(|entry| entry.device)
}

/// The text as it can stand in a list of mount options: fusermount3 takes commas and backslashes for its own.
fn option_value(text: &str) -> String {
    text.chars().map(|c| if c == ',' || c == '\\' || c.is_control() { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_cannot_add_mount_options() {
        assert_eq!(option_value("oci:/a,suid,dev\\,x\n:t"), "oci:/a_suid_dev__x_:t");
        assert_eq!(option_value("localhost:5000/pastis-2433:sample"), "localhost:5000/pastis-2433:sample");
    }
}
