//! What lies in the folder: layers and their members, in the order in which they are written.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::{Grouping, failed, go_on};
use crate::error::{Error, ErrorKind, Result};

/// Files that tell about others, by the end of their names.
const DESCRIPTIVE: [&str; 10] = ["json", "geojson", "xml", "csv", "tsv", "txt", "md", "yaml", "yml", "toml"];
/// Bytes up to which such a file goes before all data: a reader of the head gets it.
const SMALL: u64 = 1 << 20;
/// Bytes: a title with an ending is a file name, which has 255 at most.
const LONGEST_NAME: usize = 240;

#[derive(Debug)]
pub struct Layer {
    /// Of the layer, without an ending; of a file that is a layer by itself, its name.
    pub name: String,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    Archive {
        members: Vec<Member>,
        /// The sub-folders in it, by name.
        folders: Vec<String>,
    },
    File(Member),
}

#[derive(Debug, Clone)]
pub struct Member {
    pub path: PathBuf,
    /// In the archive.
    pub name: Vec<u8>,
    pub kind: Kind,
    pub stat: Stat,
    pub executable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File,
    /// Another name of a member before it.
    Hardlink(Vec<u8>),
    Symlink(Vec<u8>),
    /// One with nothing in it: all others are told by what they hold.
    Directory,
}

/// What tells that a file is still the one that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub inode: (u64, u64),
    pub size: u64,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, i64),
}

impl From<&Metadata> for Stat {
    fn from(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Layer {
    /// Bytes of files that are read.
    pub fn bytes(&self) -> u64 {
        match &self.content {
            Content::Archive { members, .. } => members.iter().map(Member::bytes).sum(),
            Content::File(member) => member.bytes(),
        }
    }
}

impl Member {
    pub fn bytes(&self) -> u64 {
        if self.kind == Kind::File { self.stat.size } else { 0 }
    }
}

/// A layer in the making: members, each with its sub-folder, and these.
type Archive = (Vec<(String, Member)>, Vec<String>);

/// The layers by name. `out` must not be among what is packed.
pub fn scan(folder: &Path, grouping: &Grouping, out: Option<&Path>, stop: &AtomicBool) -> Result<Vec<Layer>> {
    let root = fs::canonicalize(folder).map_err(|error| failed(folder, &error))?;
    if let Some(out) = out.filter(|out| out.starts_with(&root)) {
        let cause = "the layout would be written into the folder that is packed";
        return Err(Error::new(ErrorKind::Usage, out.display(), cause).hint("choose a place outside"));
    }
    let mut archives: BTreeMap<String, Archive> = BTreeMap::new();
    let mut layers = Vec::new();
    for (path, metadata) in entries(folder, stop)? {
        let file_name = path.file_name().unwrap_or_default();
        if metadata.is_symlink() {
            let cause = "a symbolic link where a layer is to be made";
            return Err(Error::new(ErrorKind::Usage, path.display(), cause).hint("put in its place what it points to"));
        }
        let name = safe_name(&path, file_name.to_str())?;
        if metadata.is_dir() {
            let layer = safe_name(&path, Some(&grouping.layer_of(&name)?))?;
            let prefix = match grouping {
                Grouping::PerFolder => Vec::new(),
                Grouping::Map(_) | Grouping::Pattern(_) => format!("{layer}/{name}/").into_bytes(),
            };
            let (members, folders) = archives.entry(layer).or_default();
            walk(&path, prefix, stop, &mut |member| members.push((name.clone(), member)))?;
            folders.push(name);
        } else {
            let member = member(path, name.clone().into_bytes(), &metadata)?;
            layers.push(Layer { name, content: Content::File(member) });
        }
    }
    for (name, (mut members, folders)) in archives {
        members.sort_by(|(folder, a), (other, b)| {
            let key = |folder, member: &Member| (!is_descriptive(member), folder, member.stat.size);
            // The size of a symbolic link or a directory is the file system's own idea.
            key(folder, a).cmp(&key(other, b)).then_with(|| a.name.cmp(&b.name))
        });
        let mut members: Vec<_> = members.into_iter().map(|(_, member)| member).collect();
        link(&mut members);
        layers.push(Layer { name, content: Content::Archive { members, folders } });
    }
    layers.sort_by(|a, b| a.name.cmp(&b.name));
    if layers.is_empty() {
        return Err(Error::new(ErrorKind::Usage, folder.display(), "there is nothing in it to pack"));
    }
    Ok(layers)
}

fn is_descriptive(member: &Member) -> bool {
    let ending = member.path.extension().and_then(OsStr::to_str).unwrap_or_default();
    member.stat.size <= SMALL && DESCRIPTIVE.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// All but the first name of a file become links to it.
fn link(members: &mut [Member]) {
    let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    for member in members.iter_mut().filter(|member| member.kind == Kind::File) {
        if let Some(name) = first.get(&member.stat.inode) {
            member.kind = Kind::Hardlink(name.clone());
        } else {
            first.insert(member.stat.inode, member.name.clone());
        }
    }
}

/// Everything below a folder; `prefix` stands before the names.
fn walk(folder: &Path, prefix: Vec<u8>, stop: &AtomicBool, found: &mut impl FnMut(Member)) -> Result<()> {
    let mut folders = vec![(folder.to_owned(), prefix)];
    while let Some((folder, prefix)) = folders.pop() {
        let entries = entries(&folder, stop)?;
        if entries.is_empty() && !prefix.is_empty() {
            let metadata = fs::symlink_metadata(&folder).map_err(|error| failed(&folder, &error))?;
            found(member(folder, prefix, &metadata)?);
            continue;
        }
        for (path, metadata) in entries {
            let mut name = prefix.clone();
            name.extend_from_slice(path.file_name().unwrap_or_default().as_bytes());
            if metadata.is_dir() {
                name.push(b'/');
                folders.push((path, name));
            } else {
                found(member(path, name, &metadata)?);
            }
        }
    }
    Ok(())
}

fn member(path: PathBuf, name: Vec<u8>, metadata: &Metadata) -> Result<Member> {
    let mut stat = Stat::from(metadata);
    let kind = match metadata.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => {
            let target = fs::read_link(&path).map_err(|error| failed(&path, &error))?;
            Kind::Symlink(target.into_os_string().into_vec())
        }
        _ => {
            let cause = "a device, fifo or socket: only files, folders and links are packed";
            return Err(Error::new(ErrorKind::Unsupported, path.display(), cause).hint("move it away"));
        }
    };
    if kind != Kind::File {
        // File systems differ in what they say.
        stat.size = 0;
    }
    Ok(Member { path, name, kind, stat, executable: metadata.mode() & 0o100 != 0 })
}

fn entries(folder: &Path, stop: &AtomicBool) -> Result<Vec<(PathBuf, Metadata)>> {
    go_on(stop)?;
    let listing = fs::read_dir(folder).map_err(|error| failed(folder, &error))?;
    let mut entries = Vec::new();
    for entry in listing {
        let path = entry.map_err(|error| failed(folder, &error))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(|error| failed(&path, &error))?;
        entries.push((path, metadata));
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(entries)
}

/// What may be a title: whoever unpacks uses it as a file name.
fn safe_name(path: &Path, name: Option<&str>) -> Result<String> {
    let cause = match name {
        None => "its name is no UTF-8",
        Some("" | "." | "..") => "its layer has no name",
        Some(name) if name.contains('/') => "the name of its layer has a slash in it",
        Some(name) if name.contains(char::is_control) => "the name of its layer has control characters in it",
        Some(name) if name.len() > LONGEST_NAME => "the name of its layer is too long",
        Some(name) => return Ok(name.to_owned()),
    };
    Err(Error::new(ErrorKind::Usage, path.display(), cause).hint("name it otherwise"))
}
