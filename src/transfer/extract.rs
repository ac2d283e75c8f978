//! What a mount shows, as real files: kinds, permissions, times, holes, hard links and `user.` attributes as the
//! archive has them. No path leaves the folder, no link in it is followed, and nothing half is under a final name.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt, stream};
use rustix::fs::{
    AtFlags, FileType, Mode, Timespec, Timestamps, XattrFlags, fsetxattr, futimens, linkat, makedev, mknodat,
    symlinkat, utimensat,
};
use rustix::io::Errno;
use tokio::task::block_in_place;

use super::folder::{Alone, Folder, failed, is_one_name};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::{Attributes, Ino, Kind, Mount};

/// Bytes read at once, and how many such reads are under way for one file.
const PIECE: u32 = 1 << 20;
const PIECES: usize = 8;
const OWNER: Mode = Mode::RWXU;

/// One extraction below one folder.
pub struct Extraction<'a> {
    mount: &'a Mount,
    output: Folder,
    /// A file that is there stays, and is an error.
    keep: bool,
    devices: bool,
    progress: &'a (dyn Fn(u64) + Sync),
    /// Where files with several names have their first one.
    links: HashMap<Ino, PathBuf>,
}

/// What is still to be done.
enum Step {
    Make(Folder, OsString, Attributes),
    /// The times of a folder, and permissions that would have been in the way, when all is in it.
    Finish(Folder, Attributes, Option<Permissions>),
}

impl<'a> Extraction<'a> {
    pub fn new(
        mount: &'a Mount,
        output: Folder,
        keep: bool,
        devices: bool,
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        Self { mount, output, keep, devices, progress, links: HashMap::new() }
    }

    /// `top`, with all that is below, at `path` of the output folder; an empty path is that folder itself.
    pub async fn extract(&mut self, top: Attributes, path: &Path) -> Result<()> {
        if top.kind == Kind::Directory {
            // What is no archive leaves no folder.
            self.mount.indexed(top.ino).await?;
        }
        let output = self.output.clone();
        let mut steps = Vec::new();
        if path == Path::new("") {
            self.enter(output, &top, &mut steps).await?;
        } else {
            let (above, name) = block_in_place(|| output.to(path)).map_err(|error| self.failed(path, &error))?;
            steps.push(Step::Make(above, name, top));
        }
        // The first that cannot be read, and how many there are.
        let (mut first, mut unreadable) = (None, 0_u64);
        while let Some(step) = steps.pop() {
            match step {
                Step::Make(folder, name, attributes) => {
                    let is_directory = attributes.kind == Kind::Directory;
                    match self.make(&folder, &name, attributes, &mut steps).await {
                        // The others are no worse for it.
                        Err(error)
                            if !is_directory && matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Unsupported) =>
                        {
                            let object = folder.path().join(name).display().to_string();
                            first.get_or_insert(Error { object, ..error });
                            unreadable += 1;
                        }
                        made => made?,
                    }
                }
                Step::Finish(folder, attributes, mode) => {
                    let finish = || {
                        let dir = File::from(folder.fd().try_clone()?);
                        mode.map_or(Ok(()), |mode| dir.set_permissions(mode))?;
                        Ok(futimens(folder.fd(), &times(attributes.mtime))?)
                    };
                    block_in_place(finish).map_err(|error| failed(folder.path(), &error))?;
                }
            }
        }
        match first {
            Some(first) if unreadable > 1 => Err(Error {
                cause: format!("{}; {} more cannot be read, either", first.cause, unreadable - 1),
                ..first
            }),
            Some(first) => Err(first),
            None => Ok(()),
        }
    }

    async fn make(&mut self, folder: &Folder, name: &OsStr, found: Attributes, steps: &mut Vec<Step>) -> Result<()> {
        let path = folder.path().join(name);
        let wrong = |error: io::Error| failed(&path, &error);
        is_one_name(name).map_err(wrong)?;
        let archived = self.mount.archived_mode(found.ino).await?;
        let mode = |default: u32| Mode::from_raw_mode(archived.map_or(default, u32::from) & 0o777);
        if found.kind == Kind::Directory {
            let wanted = mode(0o777);
            let (below, made) = block_in_place(|| folder.enter_as(name, wanted | OWNER)).map_err(wrong)?;
            self.attributes(below.fd(), found.ino).await.map_err(wrong)?;
            let narrow = made && archived.is_some() && !wanted.contains(OWNER);
            let permissions = narrow.then(|| Permissions::from_mode(wanted.as_raw_mode()));
            if archived.is_some() {
                steps.push(Step::Finish(below.clone(), found, permissions));
            }
            return self.enter(below, &found, steps).await;
        }
        if self.keep && folder.has(name) {
            return Err(wrong(io::Error::new(io::ErrorKind::AlreadyExists, "it is there already")));
        }
        // That name is the same in every process.
        let _alone = Alone::with(folder.fd().try_clone().map_err(wrong)?).await.map_err(wrong)?;
        let temporary = OsString::from(format!(".eo-mount-{}.part", found.ino.0));
        block_in_place(|| folder.remove(&temporary)).map_err(wrong)?;
        let made = self.make_one(folder, &temporary, found, mode(0o666)).await;
        let renamed = match made {
            Ok(true) => block_in_place(|| {
                folder.rename(&temporary, name, self.keep)?;
                // Two names of one file are not renamed into each other.
                folder.remove(&temporary)
            })
            .map_err(wrong),
            Ok(false) => return Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = renamed {
            let _ = folder.remove(&temporary);
            return Err(error);
        }
        if found.kind == Kind::File && found.nlink > 1 {
            let inside = path.strip_prefix(self.output.path()).map(Path::to_owned);
            self.links.entry(found.ino).or_insert(inside.unwrap_or_default());
        }
        Ok(())
    }

    /// False: it is left out.
    async fn make_one(&self, folder: &Folder, name: &OsStr, found: Attributes, mode: Mode) -> Result<bool> {
        let wrong = |error: io::Error| failed(&folder.path().join(name), &error);
        let node = |kind: FileType, device| {
            mknodat(folder.fd(), name, kind, mode, device)?;
            utimensat(folder.fd(), name, &times(found.mtime), AtFlags::SYMLINK_NOFOLLOW)
        };
        match found.kind {
            Kind::File => match self.links.get(&found.ino) {
                Some(first) => block_in_place(|| self.link(first, folder, name)).map_err(wrong)?,
                None => {
                    let file = block_in_place(|| folder.new_file(name, mode)).map_err(wrong)?;
                    self.fill(&file, found, &wrong).await?;
                    self.attributes(&file, found.ino).await.map_err(wrong)?;
                    futimens(&file, &times(found.mtime)).map_err(|error| wrong(error.into()))?;
                }
            },
            Kind::Symlink => {
                let target = self.mount.read_link(found.ino).await?;
                if target.is_empty() {
                    return Err(Error::new(ErrorKind::Corrupt, "", "the symbolic link has no target"));
                }
                let link = || {
                    symlinkat(OsStr::from_bytes(&target), folder.fd(), name)?;
                    utimensat(folder.fd(), name, &times(found.mtime), AtFlags::SYMLINK_NOFOLLOW)
                };
                link().map_err(|error| wrong(error.into()))?;
            }
            Kind::Fifo => node(FileType::Fifo, 0).map_err(|error| wrong(error.into()))?,
            Kind::CharDevice | Kind::BlockDevice if !self.devices => {
                tracing::warn!("{}: a device node is left out (--devices makes it)", folder.path().display());
                return Ok(false);
            }
            Kind::CharDevice => node(FileType::CharacterDevice, device(found.rdev)).map_err(|e| wrong(e.into()))?,
            Kind::BlockDevice => node(FileType::BlockDevice, device(found.rdev)).map_err(|e| wrong(e.into()))?,
            Kind::Directory => return Ok(false),
        }
        Ok(true)
    }

    async fn enter(&self, folder: Folder, directory: &Attributes, steps: &mut Vec<Step>) -> Result<()> {
        self.mount.indexed(directory.ino).await?;
        let listed = |listed: crate::mount::Listed<'_>| {
            steps.push(Step::Make(folder.clone(), OsStr::from_bytes(listed.name).to_owned(), listed.attributes));
            true
        };
        self.mount.list(directory.ino, 2, listed).await
    }

    async fn fill(&self, file: &File, found: Attributes, wrong: &impl Fn(io::Error) -> Error) -> Result<()> {
        block_in_place(|| file.set_len(found.size)).map_err(wrong)?;
        let ranges = self.mount.data_ranges(found).await?;
        let pieces = ranges.into_iter().flat_map(|range| {
            let piece = move |at: u64| (at, u64::from(PIECE).min(range.end.saturating_sub(at)) as u32);
            range.clone().step_by(PIECE as usize).map(piece)
        });
        let reads = stream::iter(pieces).map(async |(at, size)| (at, self.mount.read(found.ino, at, size).await));
        let mut reads = std::pin::pin!(reads.buffered(PIECES));
        while let Some((at, bytes)) = reads.next().await {
            let bytes = bytes?;
            block_in_place(|| file.write_all_at(&bytes, at)).map_err(wrong)?;
            (self.progress)(bytes.len() as u64);
            // What is all at hand never waits: a signal must have its turn, too.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn link(&self, first: &Path, folder: &Folder, name: &OsStr) -> io::Result<()> {
        let (above, first) = self.output.existing(first)?.ok_or(Errno::NOENT)?;
        Ok(linkat(above.fd(), &first, folder.fd(), name, AtFlags::empty())?)
    }

    /// `user.` attributes of the archive; a file system without them goes without.
    async fn attributes(&self, file: impl std::os::fd::AsFd, ino: Ino) -> io::Result<()> {
        if self.mount.archived_mode(ino).await.ok().flatten().is_none() {
            return Ok(());
        }
        for name in self.mount.xattr_names(ino).await.unwrap_or_default() {
            let Ok(Some(value)) = self.mount.xattr(ino, &name).await else { continue };
            if name.starts_with(b"user.eo.") {
                continue;
            }
            match fsetxattr(&file, OsStr::from_bytes(&name), &value, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP | Errno::PERM) => tracing::warn!("an extended attribute cannot be kept here"),
                result => result?,
            }
        }
        Ok(())
    }

    fn failed(&self, path: &Path, error: &io::Error) -> Error {
        failed(&self.output.path().join(path), error)
    }
}

fn times(mtime: SystemTime) -> Timestamps {
    let (secs, nanos) = match mtime.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            let secs = i64::try_from(before.as_secs()).map_or(i64::MIN, |secs| -secs);
            match before.subsec_nanos() {
                0 => (secs, 0),
                nanos => (secs.saturating_sub(1), 1_000_000_000 - nanos),
            }
        }
    };
    let time = Timespec { tv_sec: secs, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// As `new_encode_dev` of the kernel puts it together (include/linux/kdev_t.h).
fn device(rdev: u32) -> u64 {
    makedev(rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00)
}
