//! A layer's bytes: headers that are the same for everybody, and files that do not change meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

use super::encode::Encoder;
use super::scan::{Kind, Member, Stat};
use super::{Work, changed, failed, go_on};
use crate::error::{Error, ErrorKind, Result};

const BLOCK: u64 = 512;
/// Bytes read at once.
const PIECE: usize = 1 << 20;
/// Two empty blocks end an archive.
const END: [u8; 1024] = [0; 1024];

/// Why a layer was not written.
pub enum Failed {
    Reading(Error),
    Writing(io::Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Reading(error)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Writing(error)
    }
}

/// `mtime`: seconds since 1970, for all members.
pub fn write<W: Write>(
    members: &[Member],
    mtime: Option<u64>,
    out: &mut Encoder<W>,
    work: &Work<'_>,
) -> Result<(), Failed> {
    let mut buffer = vec![0; PIECE];
    for member in members {
        let header = header(member, mtime)?;
        let padding = member.bytes().next_multiple_of(BLOCK).saturating_sub(member.bytes());
        out.begin((header.len() as u64).saturating_add(member.bytes()).saturating_add(padding))?;
        out.write(&header)?;
        if member.kind == Kind::File {
            copy(member, &mut buffer, work, |bytes| out.write(bytes))?;
            out.write(END.get(..padding as usize).unwrap_or_default())?;
        }
    }
    out.begin(END.len() as u64)?;
    out.write(&END)?;
    Ok(())
}

/// The bytes of a file, all of them and as they were when the folder was looked at.
pub fn copy(
    member: &Member,
    buffer: &mut [u8],
    work: &Work<'_>,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Failed> {
    let fail = |error: io::Error| failed(&member.path, &error);
    // A fifo put in its place is not waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file =
        OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&member.path).map_err(fail)?;
    let mut left = member.stat.size;
    while left > 0 {
        go_on(work.stop)?;
        // Each time: hours of reading are not for nothing.
        unchanged(member, &file)?;
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let part = buffer.get_mut(..length).unwrap_or_default();
        let read = match file.read(part) {
            Ok(0) => return Err(changed(&member.path).into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(fail(error).into()),
        };
        write(part.get(..read).unwrap_or_default())?;
        left = left.saturating_sub(read as u64);
        (work.progress)(read as u64);
    }
    Ok(unchanged(member, &file)?)
}

fn unchanged(member: &Member, file: &File) -> Result<()> {
    let now = file.metadata().map_err(|error| failed(&member.path, &error))?;
    if Stat::from(&now) == member.stat { Ok(()) } else { Err(changed(&member.path)) }
}

/// ustar, with PAX records where that has no room. Owner 0:0 without names; xattrs are not kept.
fn header(member: &Member, mtime: Option<u64>) -> Result<Vec<u8>> {
    let wrong = |error| Error::new(ErrorKind::Unsupported, member.path.display(), format!("no tar header: {error}"));
    let (kind, mode, link) = match &member.kind {
        Kind::File if member.executable => (EntryType::Regular, 0o755, None),
        Kind::File => (EntryType::Regular, 0o644, None),
        Kind::Hardlink(first) if member.executable => (EntryType::Link, 0o755, Some(first)),
        Kind::Hardlink(first) => (EntryType::Link, 0o644, Some(first)),
        Kind::Symlink(target) => (EntryType::Symlink, 0o777, Some(target)),
        Kind::Directory => (EntryType::Directory, 0o755, None),
    };
    let mut entry = EntryBuilder::new_ustar();
    entry.path(&member.name).entry_type(kind);
    entry.mode(mode).and_then(|entry| entry.uid(0)).and_then(|entry| entry.gid(0)).map_err(wrong)?;
    entry.size(member.bytes()).map_err(wrong)?;
    if let Some(link) = link {
        entry.link_name(link);
    }
    // Whole seconds: not every copy of a folder keeps the fraction.
    let seconds = mtime.map_or(member.stat.mtime.0, u64::cast_signed);
    match u64::try_from(seconds) {
        Ok(seconds) => {
            entry.mtime(seconds).map_err(wrong)?;
        }
        Err(_) => {
            entry.mtime(0).map_err(wrong)?.add_pax("mtime", seconds.to_string());
        }
    }
    Ok(entry.finish_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::AtomicBool;

    use super::super::Grouping;
    use super::super::scan::{Content, scan};
    use super::*;

    /// What comes of a file with which somebody has done something since the folder was looked through.
    fn packed(meddle: impl Fn(&std::path::Path)) -> Result<Vec<u8>, String> {
        let (dir, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
        let file = dir.path().join("a/file");
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(&file, "content").unwrap();
        let layers = scan(dir.path(), &Grouping::PerFolder, None, &stop).unwrap();
        let Content::Archive { members, .. } = &layers[0].content else { panic!() };
        meddle(&file);
        let mut bytes = Vec::new();
        let work = Work { stop: &stop, progress: &|_| {} };
        let copied = copy(&members[0], &mut [0; 3], &work, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        match copied {
            Ok(()) => Ok(bytes),
            Err(Failed::Reading(error)) => Err(error.to_string().replace(&file.display().to_string(), "FILE")),
            Err(Failed::Writing(error)) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_file_that_is_not_what_it_was_is_named() {
        assert_eq!(packed(|_| {}).unwrap(), b"content");
        let changed = |meddle: fn(&std::path::Path)| packed(meddle).unwrap_err();
        let gone = changed(|file| fs::remove_file(file).unwrap());
        assert!(gone.starts_with("FILE: it is not there, or not any more"), "{gone}");
        for said in [
            changed(|file| fs::write(file, "other content").unwrap()),
            changed(|file| fs::write(file, "cont").unwrap()),
            changed(|file| {
                let other = file.with_file_name("other");
                fs::write(&other, "content").unwrap();
                fs::rename(other, file).unwrap();
            }),
            changed(|file| {
                fs::rename(file, file.with_file_name("other")).unwrap();
                std::os::unix::fs::symlink("other", file).unwrap();
            }),
            changed(|file| {
                fs::File::open(file).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            }),
        ] {
            assert!(said.starts_with("FILE: it changed while it was packed"), "{said}");
        }
    }
}
