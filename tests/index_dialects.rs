//! The index of an archive is what GNU tar extracts from it: archives by GNU tar, bsdtar and Python's tarfile, each in
//! each of its formats, are compared with `tar -x` name by name and byte by byte.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use eo_mount::index::{EntryId, Kind, LayerIndex, LayerIndexBuilder, Limits, ScanError, Scanner, Segment, Step};
use tempfile::TempDir;

#[test]
fn gnu_tar_in_each_format() {
    for format in ["v7", "ustar", "oldgnu", "gnu", "posix"] {
        let names = names_of(format);
        let tree = tree(names);
        compare(&archive(&tree, "tar", &["--format", format]), &[]);
    }
}

#[test]
fn gnu_tar_sparse_in_each_version() {
    let tree = tree(Names::Long);
    for format in ["oldgnu", "gnu"] {
        compare(&archive(&tree, "tar", &["--format", format, "--sparse"]), &[]);
    }
    for version in ["0.0", "0.1", "1.0"] {
        let options = ["--format=posix", "--sparse", "--sparse-version", version];
        let compared = compare(&archive(&tree, "tar", &options), &[]);
        let holes = compared.lookup(LayerIndex::ROOT, b"many holes").expect("the sparse file");
        let entry = compared.entry(holes).expect("its entry");
        assert!(entry.allocated < entry.size / 4, "{entry:?}");
    }
}

#[test]
fn gnu_tar_posix_with_extended_attributes() {
    let tree = tree(Names::Long);
    let file = tree.path().join("plain");
    let set = Command::new("python3")
        .args(["-c", "import os,sys; os.setxattr(sys.argv[1], 'user.eo=test%', b'a\\0b\\n')"])
        .arg(&file)
        .status();
    assert!(set.expect("python3: apt-get install python3").success());
    let index = compare(&archive(&tree, "tar", &["--format=posix", "--xattrs"]), &["--xattrs"]);
    let file = index.lookup(LayerIndex::ROOT, b"plain").expect("the file");
    let xattrs: Vec<_> = index.xattrs(file).collect();
    assert_eq!(xattrs, [(&b"user.eo=test%"[..], &b"a\0b\n"[..])]);
}

#[test]
fn gnu_tar_with_the_names_as_given() {
    let tree = tree(Names::Long);
    let root = tree.path();
    let root = root.to_str().expect("a temporary folder of plain letters").to_owned();
    let archive_of = |names: &[&str]| {
        let path = tree.beside("archive.tar");
        run(Command::new("tar").arg("-cPf").arg(&path).args(names).current_dir(tree.path()));
        path
    };
    compare(&archive_of(&[&root]), &[]);
    compare(&archive_of(&["./plain", ".//deep//er", "deep/././third name"]), &[]);
}

#[test]
fn bsdtar_in_each_format() {
    for format in ["v7", "ustar", "gnutar", "pax", "as needed"] {
        let names = names_of(format);
        let tree = tree(names);
        let path = tree.beside("archive.tar");
        let mut bsdtar = Command::new("bsdtar");
        if format != "as needed" {
            bsdtar.args(["--format", format]);
        }
        let made = bsdtar
            .arg("-cf")
            .arg(&path)
            .arg("-C")
            .arg(tree.path())
            .arg(".")
            .output()
            .expect("bsdtar: apt-get install libarchive-tools");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        compare(&path, &[]);
    }
}

#[test]
fn python_tarfile_in_each_format() {
    for format in ["USTAR", "GNU", "PAX"] {
        let names = if format == "USTAR" { Names::Short } else { Names::Long };
        let tree = tree(names);
        let path = tree.beside("archive.tar");
        let script = format!(
            "import sys, tarfile\n\
             with tarfile.open(sys.argv[1], 'w', format=tarfile.{format}_FORMAT, errors='surrogateescape') as t:\n    t.add(sys.argv[2], '.')"
        );
        let made = Command::new("python3").arg("-c").arg(script).arg(&path).arg(tree.path()).output();
        let made = made.expect("python3: apt-get install python3");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        compare(&path, &[]);
    }
}

#[test]
fn appended_and_joined_archives() {
    let tree = tree(Names::Short);
    let path = archive(&tree, "tar", &["--format=gnu"]);
    fs::write(tree.path().join("plain"), "another content").expect("write");
    run(Command::new("tar").arg("-rf").arg(&path).arg("-C").arg(tree.path()).arg("./plain"));
    let whole = compare(&path, &[]);
    assert_eq!(content(&whole, &path, whole.lookup(LayerIndex::ROOT, b"plain").expect("the file")), b"another content");

    let mut joined = fs::read(&path).expect("read");
    joined.extend_from_within(..);
    let joined_path = tree.beside("joined.tar");
    fs::write(&joined_path, joined).expect("write");
    let (joined, trailing) = scan(&joined_path).expect("an index");
    assert!(trailing);
    assert_eq!(joined.len(), whole.len());
    compare(&joined_path, &[]);
}

#[derive(Clone, Copy, PartialEq)]
enum Names {
    /// Short names, and no fifo.
    V7,
    /// What ustar can hold.
    Short,
    Long,
}

fn names_of(format: &str) -> Names {
    match format {
        "v7" => Names::V7,
        "ustar" => Names::Short,
        _ => Names::Long,
    }
}

struct Tree {
    folder: TempDir,
}

impl Tree {
    fn path(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Some of everything that an unprivileged user can make.
fn tree(names: Names) -> Tree {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tree = Tree { folder };
    let at = |name: &str| tree.path().join(name);
    fs::create_dir(tree.path()).expect("mkdir");
    fs::write(at("plain"), "hello").expect("write");
    fs::write(at("empty"), "").expect("write");
    fs::write(at("block"), vec![7; 512]).expect("write");
    fs::write(at("block and one"), vec![8; 513]).expect("write");
    fs::write(at("large"), (0..300_000u32).map(|n| n as u8).collect::<Vec<_>>()).expect("write");
    fs::create_dir_all(at("deep/er/still")).expect("mkdir");
    fs::write(at("deep/er/still/file"), "below").expect("write");
    fs::create_dir(at("no entries")).expect("mkdir");
    fs::write(tree.path().join(OsStr::from_bytes(b"not utf-8 \xff\xfe\n")), "bytes").expect("write");
    symlink("deep/er", at("link")).expect("symlink");
    symlink("/not/here", at("dangling")).expect("symlink");
    fs::hard_link(at("plain"), at("second name")).expect("link");
    fs::hard_link(at("plain"), at("deep/third name")).expect("link");
    if names != Names::V7 {
        run(Command::new("mkfifo").arg(at("fifo")));
    }
    if names == Names::Long {
        let part = "n".repeat(120);
        let below = at(&part).join(&part).join("x".repeat(255));
        fs::create_dir_all(below.parent().expect("a folder")).expect("mkdir");
        fs::write(&below, "far below").expect("write");
        fs::hard_link(&below, at("to far below")).expect("link");
        symlink("t".repeat(300), at("long target")).expect("symlink");
    }
    let sparse = File::create(at("many holes")).expect("create");
    sparse.set_len(64 << 20).expect("set_len");
    for n in 0..60u64 {
        sparse.write_all_at(&[n as u8 + 1; 5000], n * (1 << 20) + 4096).expect("write");
    }
    let one_hole = File::create(at("hole at end")).expect("create");
    one_hole.write_all_at(&[1; 4096], 0).expect("write");
    one_hole.set_len(1_000_001).expect("set_len");
    let all_hole = File::create(at("all hole")).expect("create");
    all_hole.set_len(1 << 20).expect("set_len");
    let data_at_end = File::create(at("data at end")).expect("create");
    data_at_end.write_all_at(b"end", (1 << 20) + 17).expect("write");

    fs::set_permissions(at("empty"), fs::Permissions::from_mode(0o4751)).expect("chmod");
    fs::set_permissions(at("no entries"), fs::Permissions::from_mode(0o1700)).expect("chmod");
    for (name, date) in [
        ("plain", "@1234567890.123456789"),
        ("large", "@1"),
        ("deep/er/still", "@1500000000.5"),
        ("deep/er", "@1600000000.25"),
        ("deep", "@1600000001"),
        ("no entries", "@1600000002"),
    ] {
        run(Command::new("touch").arg("-d").arg(date).arg(at(name)));
    }
    if names == Names::Long {
        run(Command::new("touch").arg("-d").arg("1912-06-23 12:00:00.25").arg(at("block")));
        run(Command::new("touch").arg("-d").arg("2345-06-23 12:00:00.25").arg(at("deep")));
    }
    tree
}

fn archive(tree: &Tree, program: &str, options: &[&str]) -> PathBuf {
    let path = tree.beside("archive.tar");
    run(Command::new(program).args(options).arg("-cf").arg(&path).arg("-C").arg(tree.path()).arg("."));
    path
}

fn run(command: &mut Command) {
    let shown = format!("{command:?}");
    let output = command
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{shown}: {error}; apt-get install tar coreutils"));
    assert!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Reads what the scanner asks for, and no byte more.
fn scan(path: &Path) -> Result<(LayerIndex, bool), ScanError> {
    let file = File::open(path).expect("open");
    let mut scanner = Scanner::new(file.metadata().expect("stat").len(), Limits::default());
    let mut builder = LayerIndexBuilder::new(Limits::default());
    let (mut at, mut window) = (0, Vec::new());
    loop {
        match scanner.step(at, &window)? {
            Step::Need(range) => {
                at = range.start;
                window = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut window, at).expect("read");
            }
            Step::Member(member) => builder.push(member)?,
            Step::End { trailing } => return Ok((builder.finish(), trailing)),
        }
    }
}

fn content(index: &LayerIndex, path: &Path, id: EntryId) -> Vec<u8> {
    let file = File::open(path).expect("open");
    let mut content = Vec::new();
    for segment in index.segments(id, 0..u64::MAX) {
        match segment {
            Segment::Hole(length) => content.resize(content.len() + length as usize, 0),
            Segment::Data(range) => {
                let start = content.len();
                content.resize(start + (range.end - range.start) as usize, 0);
                file.read_exact_at(&mut content[start..], range.start).expect("read");
            }
        }
    }
    content
}

/// What there is to compare of a name.
#[derive(Debug, PartialEq)]
struct Seen {
    kind: Kind,
    mode: u32,
    size: u64,
    mtime: (i64, u32),
    link: Vec<u8>,
    nlink: u32,
    /// The first name of the same inode.
    same_as: Vec<u8>,
    content: Vec<u8>,
}

fn compare(archive: &Path, options: &[&str]) -> LayerIndex {
    same_as_extracted(archive, options).unwrap_or_else(|complaint| panic!("{complaint}"))
}

/// The index, after it was compared with what `tar -x` made; or what `tar -x` complained of.
fn same_as_extracted(archive: &Path, options: &[&str]) -> Result<LayerIndex, String> {
    let (index, _) = scan(archive).unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let started = now.expect("a clock after 1970").as_secs() as i64;
    let extracted = tempfile::tempdir().expect("a temporary folder");
    let tar = Command::new("tar").args(options).arg("-xpf").arg(archive).arg("-C").arg(extracted.path()).output();
    let tar = tar.expect("tar: apt-get install tar");
    if !tar.status.success() {
        return Err(String::from_utf8_lossy(&tar.stderr).into_owned());
    }

    let (mut expected, mut first_names) = (BTreeMap::new(), HashMap::new());
    walk_folder(extracted.path(), b"", &mut first_names, &mut expected);
    let (mut found, mut first_names) = (BTreeMap::new(), HashMap::new());
    walk_index(&index, LayerIndex::ROOT, b"", archive, &mut first_names, &mut found);
    let names = |seen: &BTreeMap<Vec<u8>, Seen>| {
        seen.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&found), names(&expected));
    for (name, expected) in &mut expected {
        let found = &found[name];
        // A directory without a member of its own; or one that GNU tar had left, and a later hard link changed its
        // time.
        if expected.kind == Kind::Directory && expected.mtime.0 >= started {
            (expected.mtime, expected.mode) = (found.mtime, found.mode);
        }
        let shown = String::from_utf8_lossy(name);
        assert!(found.content == expected.content, "{shown}: another content");
        assert_eq!(brief(found), brief(expected), "{shown}");
    }
    assert_eq!(index.warnings(), [""; 0]);
    Ok(index)
}

type Brief<'a> = (Kind, u32, u64, (i64, u32), &'a [u8], u32, &'a [u8]);

fn brief(seen: &Seen) -> Brief<'_> {
    (seen.kind, seen.mode, seen.size, seen.mtime, &seen.link, seen.nlink, &seen.same_as)
}

fn walk_folder(
    folder: &Path,
    above: &[u8],
    first_names: &mut HashMap<u64, Vec<u8>>,
    seen: &mut BTreeMap<Vec<u8>, Seen>,
) {
    let mut names: Vec<_> =
        fs::read_dir(folder).expect("read_dir").map(|entry| entry.expect("entry").file_name()).collect();
    names.sort();
    for name in names {
        let path = folder.join(&name);
        let stat = fs::symlink_metadata(&path).expect("stat");
        let full = [above, b"/", name.as_bytes()].concat();
        let kind = match stat.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Symlink,
            kind if kind.is_fifo() => Kind::Fifo,
            kind if kind.is_char_device() => Kind::CharDevice,
            kind if kind.is_block_device() => Kind::BlockDevice,
            _ => Kind::File,
        };
        let is_link = kind == Kind::Symlink;
        seen.insert(
            full.clone(),
            Seen {
                kind,
                mode: if is_link { 0 } else { stat.mode() & 0o7777 },
                size: if kind == Kind::Directory { 0 } else { stat.size() },
                mtime: (stat.mtime(), stat.mtime_nsec() as u32),
                link: if is_link {
                    fs::read_link(&path).expect("readlink").as_os_str().as_bytes().to_vec()
                } else {
                    Vec::new()
                },
                nlink: stat.nlink() as u32,
                same_as: first_names.entry(stat.ino()).or_insert_with(|| full.clone()).clone(),
                content: if kind == Kind::File { fs::read(&path).expect("read") } else { Vec::new() },
            },
        );
        if kind == Kind::Directory {
            walk_folder(&path, &full, first_names, seen);
        }
    }
}

fn walk_index(
    index: &LayerIndex,
    directory: EntryId,
    above: &[u8],
    archive: &Path,
    first_names: &mut HashMap<EntryId, Vec<u8>>,
    seen: &mut BTreeMap<Vec<u8>, Seen>,
) {
    for child in index.children(directory) {
        let name = index.name_of(child);
        let id = child.entry();
        assert_eq!(index.lookup(directory, name), Some(id));
        let entry = index.entry(id).expect("an entry");
        let full = [above, b"/", name].concat();
        let is_link = entry.kind == Kind::Symlink;
        seen.insert(
            full.clone(),
            Seen {
                kind: entry.kind,
                mode: if is_link { 0 } else { u32::from(entry.mode) },
                size: entry.size,
                mtime: (entry.mtime.secs, entry.mtime.nanos),
                link: index.link_target(id).to_vec(),
                nlink: entry.nlink,
                same_as: first_names.entry(id).or_insert_with(|| full.clone()).clone(),
                content: content(index, archive, id),
            },
        );
        if entry.kind == Kind::Directory {
            assert_eq!(index.parent(id), directory);
            walk_index(index, id, &full, archive, first_names, seen);
        }
    }
}

/// Where a peer sees a damaged archive otherwise than we do: the damage, the peer, what it does, and why we do not.
/// Each is seen in at least one of the archives; everything else is seen alike: refused by both, or with the same
/// names, and by GNU tar with the same content.
const DIFFERENCES: [(&str, &str, &str, &str); 13] = [
    ("size past u64", "tarfile", "takes it", "of a directory of BSD's tar, whose size it does not use"),
    ("cut in a header", "GNU tar", "takes it", "it passes over half a header; we say that bytes are missing"),
    ("cut in a header", "tarfile", "takes it", "as GNU tar"),
    ("cut behind an extension", "GNU tar", "takes it", "the member that the extension is for is missing"),
    ("checksum off by one", "bsdtar", "takes it", "it looks for the next header, and leaves members out"),
    ("checksum off by one", "tarfile", "takes it", "it takes this for the end"),
    ("gap of zeros", "bsdtar", "refuses it", "between an extension and its member: the end, for GNU tar and us"),
    ("gap of zeros", "tarfile", "refuses it", "as bsdtar"),
    ("size below zero", "tarfile", "takes it", "it takes this for the end"),
    ("PAX length one more", "tarfile", "takes it", "it takes this for the end"),
    ("PAX length one less", "tarfile", "takes it", "it passes over the records"),
    ("PAX length none", "tarfile", "takes it", "it passes over the records"),
    ("PAX length huge", "tarfile", "takes it", "it passes over the records"),
];

/// Archives of each writer in each of its formats, cut at each header and beside it, with wrong checksums, sizes, PAX
/// lengths, and with zeros in the middle.
#[test]
fn damaged_archives_are_seen_as_others_see_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("deep")).expect("mkdir");
    fs::write(tree.join("a"), "hello").expect("write");
    fs::write(tree.join("block"), vec![7; 512]).expect("write");
    fs::write(tree.join("deep/file"), vec![8; 700]).expect("write");
    fs::write(tree.join("deep").join("n".repeat(97)), "a long name").expect("write");
    symlink("a", tree.join("link")).expect("symlink");
    for name in ["a", "block", "deep/file", "deep"] {
        run(Command::new("touch").arg("-d").arg("@1500000000.25").arg(tree.join(name)));
    }
    let damaged = folder.path().join("damaged");
    fs::create_dir(&damaged).expect("mkdir");
    let mut damages = Vec::new();
    for (writer, archive) in in_each_format(&tree, &folder.path().join("archive.tar")) {
        for (place, damage, bytes) in damages_of(&archive) {
            fs::write(damaged.join(damages.len().to_string()), bytes).expect("write");
            damages.push((writer.clone(), place, damage));
        }
    }
    let by_python = listed_by_python(&damaged, damages.len());
    let mut seen: BTreeMap<(&str, &str, &str), String> = BTreeMap::new();
    for (number, (writer, place, damage)) in damages.iter().enumerate() {
        let path = damaged.join(number.to_string());
        let ours = scan(&path).map(|(index, _)| names_in(&index)).ok();
        let gnu = extracted_by_gnu_tar(&path, ours.is_some());
        for (peer, theirs) in
            [("GNU tar", gnu), ("bsdtar", listed_by_bsdtar(&path)), ("tarfile", by_python[number].clone())]
        {
            let difference = match (&ours, &theirs) {
                (None, None) => continue,
                (Some(ours), Some(theirs)) if ours == theirs => continue,
                (None, Some(_)) => "takes it",
                (Some(_), None) => "refuses it",
                (Some(ours), Some(theirs)) if theirs.is_subset(ours) => "shows less",
                (Some(_), Some(_)) => "shows more",
            };
            let example = format!("{writer}, byte {place}: {ours:?} {theirs:?}");
            seen.entry((*damage, peer, difference)).or_insert(example);
        }
    }
    let known: Vec<_> = DIFFERENCES.iter().map(|(damage, peer, difference, _)| (*damage, *peer, *difference)).collect();
    let never: Vec<_> = known.iter().filter(|difference| !seen.contains_key(*difference)).collect();
    assert!(never.is_empty(), "differences that are not seen: {never:?}");
    seen.retain(|difference, _| !known.contains(difference));
    assert!(seen.is_empty(), "differences from others that nobody wrote down: {seen:#?}");
    assert!(damages.len() > 500, "only {} damages", damages.len());
}

fn in_each_format(tree: &Path, to: &Path) -> Vec<(String, Vec<u8>)> {
    let mut archives = Vec::new();
    let mut made_by = |writer: &str, format: &str, command: &mut Command| {
        // Its names have 99 bytes at most.
        run(if format == "v7" { command.arg("--exclude=nnn*") } else { command }.arg("."));
        archives.push((format!("{writer} {format}"), fs::read(to).expect("read")));
    };
    for format in ["v7", "ustar", "oldgnu", "gnu", "posix"] {
        let mut tar = Command::new("tar");
        made_by("tar", format, tar.args(["--sort=name", "--format", format, "-cf"]).arg(to).arg("-C").arg(tree));
    }
    for format in ["v7", "ustar", "gnutar", "pax"] {
        let mut bsdtar = Command::new("bsdtar");
        made_by("bsdtar", format, bsdtar.args(["--format", format, "-cf"]).arg(to).arg("-C").arg(tree));
    }
    for format in ["USTAR", "GNU", "PAX"] {
        let script = format!(
            "import sys, tarfile\nwith tarfile.open(sys.argv[1], 'w', format=tarfile.{format}_FORMAT) as t: t.add(sys.argv[2], '.')"
        );
        made_by("tarfile", format, Command::new("python3").arg("-c").arg(script).arg(to).arg(tree));
    }
    archives
}

/// Where it is, what it is, and the archive with it.
fn damages_of(archive: &[u8]) -> Vec<(usize, &'static str, Vec<u8>)> {
    let mut damages = Vec::new();
    let mut at = 0;
    while archive[at..].iter().take(512).any(|&byte| byte != 0) {
        let flag = archive[at + 156];
        let digits = archive[at + 124..at + 135].iter().filter(|byte| byte.is_ascii_digit());
        let size = digits.fold(0, |size, digit| size * 8 + usize::from(digit - b'0'));
        let next = at + 512 + if matches!(flag, b'1'..=b'6') { 0 } else { size.next_multiple_of(512) };
        let is_extension = matches!(flag, b'x' | b'g' | b'L' | b'K');
        for (damage, cut) in
            [("cut in a header", at + 1), ("cut behind a header", at + 512), ("cut before its end", next - 1)]
        {
            let damage = match damage {
                "cut behind a header" if next == at + 512 => "cut between members",
                "cut before its end" if next == at + 512 => "cut in a header",
                "cut before its end" if is_extension => "cut in an extension",
                "cut before its end" if at + 512 + size < next => "cut in what fills a member up",
                "cut before its end" => "cut in a member",
                "cut behind a header" if is_extension => "cut in an extension",
                "cut behind a header" => "cut in a member",
                other => other,
            };
            damages.push((cut, damage, archive[..cut].to_vec()));
        }
        let between = if is_extension { "cut behind an extension" } else { "cut between members" };
        damages.push((next, between, archive[..next].to_vec()));
        let mut changed = |damage: &'static str, place: usize, bytes: &[u8], sealed: bool| {
            let mut copy = archive.to_vec();
            copy[place..place + bytes.len()].copy_from_slice(bytes);
            if sealed {
                copy[at + 148..at + 156].fill(b' ');
                let sum: u32 = copy[at..at + 512].iter().map(|&byte| u32::from(byte)).sum();
                copy[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            damages.push((place, damage, copy));
        };
        let first = if at == 0 { "first checksum off by one" } else { "checksum off by one" };
        // The digit before its end, with its lowest bit changed.
        changed(first, at + 153, &[archive[at + 153] ^ 1], false);
        if !matches!(flag, b'1'..=b'6') {
            changed("size past the end", at + 124, b"00007777777\0", true);
            changed("size past u64", at + 124, b"\x80\x01\0\0\0\0\0\0\0\0\0\0", true);
            changed("size below zero", at + 124, &[0xff; 12], true);
        }
        if matches!(flag, b'x' | b'g') {
            let space = archive[at + 512..].iter().position(|&byte| byte == b' ').expect("a record");
            let last = at + 512 + space - 1;
            changed("PAX length one more", last, &[archive[last] + 1], false);
            changed("PAX length one less", last, &[archive[last] - 1], false);
            changed("PAX length none", last, b"x", false);
            changed("PAX length huge", at + 512, b"99", false);
        }
        if at > 0 {
            damages.push((at, "gap of zeros", [&archive[..at], &[0; 1024], &archive[at..]].concat()));
        }
        at = next;
    }
    damages
}

fn names_in(index: &LayerIndex) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut waiting = vec![(LayerIndex::ROOT, String::new())];
    while let Some((directory, above)) = waiting.pop() {
        for child in index.children(directory) {
            let name = format!("{above}{}", String::from_utf8_lossy(index.name_of(child)));
            waiting.push((child.entry(), format!("{name}/")));
            names.insert(name);
        }
    }
    names
}

/// `None`: it fails. When we do not, everything is compared.
fn extracted_by_gnu_tar(archive: &Path, compared: bool) -> Option<BTreeSet<String>> {
    if compared {
        return same_as_extracted(archive, &[]).ok().map(|index| names_in(&index));
    }
    let extracted = tempfile::tempdir().expect("a temporary folder");
    let tar = Command::new("tar").arg("-xpf").arg(archive).arg("-C").arg(extracted.path()).output().expect("tar");
    tar.status.success().then(BTreeSet::new)
}

fn listed_by_bsdtar(archive: &Path) -> Option<BTreeSet<String>> {
    let listed =
        Command::new("bsdtar").arg("-tf").arg(archive).output().expect("bsdtar: apt-get install libarchive-tools");
    let names =
        String::from_utf8_lossy(&listed.stdout).lines().map(plain_name).filter(|name| !name.is_empty()).collect();
    listed.status.success().then_some(names)
}

/// Of the archives `0` to `count` in a folder.
fn listed_by_python(folder: &Path, count: usize) -> Vec<Option<BTreeSet<String>>> {
    let script = "import sys, tarfile\n\
        for n in range(int(sys.argv[2])):\n    \
            try:\n        \
                with tarfile.open(f'{sys.argv[1]}/{n}', 'r:') as t:\n            \
                    members = t.getmembers()\n            \
                    for m in members:\n                \
                        if m.isreg(): t.extractfile(m).read()\n        \
                print('|'.join(ascii(m.name)[1:-1] for m in members))\n    \
            except Exception: print('!')";
    let listed = Command::new("python3").arg("-c").arg(script).arg(folder).arg(count.to_string()).output();
    let listed = listed.expect("python3: apt-get install python3");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let lines: Vec<_> = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .map(|line| {
            let names = || line.split('|').map(plain_name).filter(|name| !name.is_empty()).collect();
            (line != "!").then(names)
        })
        .collect();
    assert_eq!(lines.len(), count);
    lines
}

fn plain_name(name: &str) -> String {
    name.trim_start_matches('.').trim_matches('/').to_owned()
}

/// Random members with names that clash, repeat and lead through links, as `tar -x` extracts them. Archives that it
/// does not extract without complaint are passed over: what we make of them is told in the builder's documentation.
#[test]
fn clashing_members_end_up_as_tar_leaves_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("archive.tar");
    let mut seed = 1u64;
    let mut below = |limit: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % limit
    };
    let mut extracted = 0;
    for _ in 0..400 {
        let mut builder = tar::Builder::new(File::create(&path).expect("create"));
        for _ in 0..2 + below(5) {
            let mut name = |parts: u64| {
                let parts = (0..1 + below(parts)).map(|_| ["a", "b", "c"][below(3) as usize]);
                parts.collect::<Vec<_>>().join("/")
            };
            let (path, target) = (name(3), name(2));
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o640);
            header.set_mtime(below(1_000_000));
            header.set_size(0);
            match below(7) {
                0 => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(0o750);
                    builder.append_data(&mut header, path + "/", &b""[..]).expect("append");
                }
                1 => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    builder.append_link(&mut header, path, target).expect("append");
                }
                2 => {
                    header.set_entry_type(tar::EntryType::Link);
                    builder.append_link(&mut header, path, target).expect("append");
                }
                3 => {
                    header.set_entry_type(tar::EntryType::Fifo);
                    builder.append_data(&mut header, path, &b""[..]).expect("append");
                }
                _ => {
                    let content = below(1_000_000).to_string();
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, content.as_bytes()).expect("append");
                }
            }
        }
        builder.finish().expect("finish");
        extracted += usize::from(same_as_extracted(&path, &[]).is_ok());
    }
    assert!(extracted > 100, "only {extracted} archives were extracted without complaint");
}
