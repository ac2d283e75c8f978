//! What `tar -x` makes of a layer: the yardstick for what a mount shows of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::run::run;

/// Write, setuid and setgid, which a mount never shows.
const NOT_SHOWN: u32 = 0o6222;

/// A folder that the GNU tar program filled from an archive, packed or not, without its device nodes (which only
/// root may make).
pub struct Extracted {
    directory: TempDir,
    /// Seconds since 1970.
    started: i64,
}

impl Extracted {
    #[track_caller]
    pub fn of(archive: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let started = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs() as i64;
        // Folders that the archive does not hold get their mode from the umask.
        let mut command = Command::new("sh");
        command.args(["-c", "umask 022; exec tar \"$@\"", "tar", "--xattrs", "--xattrs-include=user.*"]);
        command.arg("--exclude=*-device").args(["-p", "-x", "-f"]).arg(archive);
        command.arg("-C").arg(directory.path()).env("LC_ALL", "C");
        run(&mut command, Duration::from_secs(120)).expect_success("tar -x");
        Self { directory, started }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The bytes of all files, by path.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = walk(self.path()).into_iter().filter(|(_, seen)| seen.kind == 'f');
        entries.map(|(path, seen)| (String::from_utf8_lossy(&path).into_owned(), seen.content)).collect()
    }

    /// Panics unless the folder shows the same names with the same content, kind, size, mtime with its fraction, mode
    /// (less write, setuid and setgid), target, xattrs, and the same names for one inode; device nodes may be there
    /// in addition. The number of what was compared.
    #[track_caller]
    pub fn assert_shown_in(&self, shown: &Path) -> usize {
        let (expected, mut shown) = (walk(self.path()), walk(shown));
        shown.retain(|_, seen| !matches!(seen.kind, 'b' | 'c'));
        let names =
            |of: &BTreeMap<_, _>| of.keys().map(|name: &Vec<u8>| name.escape_ascii().to_string()).collect::<Vec<_>>();
        assert_eq!(names(&shown), names(&expected), "other names than tar -x makes");
        for (name, expected) in &expected {
            let name_shown = name.escape_ascii();
            let found = &shown[name];
            assert!(found.content == expected.content, "{name_shown}: other content than tar -x makes");
            let mut expected = expected.brief();
            expected.mode &= !NOT_SHOWN;
            // tar sets the time of a folder that the archive holds, and not again after a later hard link into it.
            if expected.kind == 'd' && expected.mtime.0 >= self.started {
                expected.mtime = found.mtime;
            }
            assert_eq!(found.brief(), expected, "{name_shown}");
        }
        expected.len()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// As `find -printf %y` says it.
    kind: char,
    mode: u32,
    /// 0 for folders, of which each file system has its own idea. So with `links`.
    size: u64,
    mtime: (i64, i64),
    target: Vec<u8>,
    links: u64,
    /// The first name of the same inode.
    same_as: String,
    xattrs: BTreeMap<String, Vec<u8>>,
    content: Vec<u8>,
}

impl Seen {
    /// Without the content, which nobody wants to see in a message.
    fn brief(&self) -> Self {
        Self { content: Vec::new(), ..self.clone() }
    }
}

/// All that is below a folder, by path.
#[track_caller]
fn walk(folder: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let (mut seen, mut inodes) = (BTreeMap::new(), HashMap::new());
    let mut folders = vec![Vec::new()];
    let mut paths: Vec<Vec<u8>> = Vec::new();
    while let Some(above) = folders.pop() {
        let at = folder.join(OsStr::from_bytes(&above));
        let entries = std::fs::read_dir(&at).unwrap_or_else(|error| panic!("listing {}: {error}", at.display()));
        for entry in entries {
            let entry = entry.unwrap_or_else(|error| panic!("listing {}: {error}", at.display()));
            let path = Path::new(OsStr::from_bytes(&above)).join(entry.file_name()).into_os_string().into_vec();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let one = look(&folder.join(OsStr::from_bytes(&path)), &path, &mut inodes);
        seen.insert(path, one);
    }
    seen
}

#[track_caller]
fn look(at: &Path, name: &[u8], inodes: &mut HashMap<u64, String>) -> Seen {
    let must = |error: std::io::Error| -> ! { panic!("{}: {error}", at.display()) };
    let stat = std::fs::symlink_metadata(at).unwrap_or_else(|error| must(error));
    let kind = match stat.file_type() {
        kind if kind.is_dir() => 'd',
        kind if kind.is_symlink() => 'l',
        kind if kind.is_fifo() => 'p',
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => 'f',
    };
    let target = || std::fs::read_link(at).unwrap_or_else(|error| must(error)).into_os_string().into_vec();
    Seen {
        kind,
        mode: if kind == 'l' { 0 } else { stat.mode() & 0o7777 },
        size: if kind == 'd' { 0 } else { stat.size() },
        mtime: (stat.mtime(), stat.mtime_nsec()),
        target: if kind == 'l' { target() } else { Vec::new() },
        links: if kind == 'd' { 0 } else { stat.nlink() },
        same_as: inodes.entry(stat.ino()).or_insert_with(|| name.escape_ascii().to_string()).clone(),
        xattrs: if matches!(kind, 'd' | 'f') { xattrs(at) } else { BTreeMap::new() },
        content: if kind == 'f' { std::fs::read(at).unwrap_or_else(|error| must(error)) } else { Vec::new() },
    }
}

/// `user.…` but for what the program itself says of a file.
#[track_caller]
fn xattrs(at: &Path) -> BTreeMap<String, Vec<u8>> {
    let must = |error: rustix::io::Errno| -> ! { panic!("xattrs of {}: {error}", at.display()) };
    let mut names = vec![0_u8; 64 << 10];
    let length = rustix::fs::llistxattr(at, &mut names[..]).unwrap_or_else(|error| must(error));
    let names = names[..length].split(|&byte| byte == 0).map(|name| String::from_utf8_lossy(name).into_owned());
    names
        .filter(|name| name.starts_with("user.") && !name.starts_with("user.eo."))
        .map(|name| {
            let mut value = vec![0_u8; 64 << 10];
            let length = rustix::fs::lgetxattr(at, &name, &mut value[..]).unwrap_or_else(|error| must(error));
            value.truncate(length);
            (name, value)
        })
        .collect()
}
