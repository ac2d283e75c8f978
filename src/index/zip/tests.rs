use proptest::prelude::*;

use super::*;

/// Through windows of the blob, as a reader would give them; links lead to `target`.
fn scan(blob: &[u8]) -> Result<ZipIndex, ZipError> {
    let mut scanner = ZipScanner::new(blob.len() as u64, Limits::default());
    let (mut at, mut bytes) = (0, &[][..]);
    let mut needs = 0;
    loop {
        match scanner.step(at, bytes)? {
            ZipStep::Need(range) => {
                needs += 1;
                assert!(needs < 100 && range.end <= blob.len() as u64 && !range.is_empty(), "{range:?}");
                at = range.start;
                bytes = &blob[range.start as usize..range.end as usize];
            }
            ZipStep::Link(member) => scanner.link((member.crc != 0).then_some(b"target"))?,
            ZipStep::End(index) => return Ok(*index),
        }
    }
}

struct Entry<'a> {
    name: &'a [u8],
    flags: u16,
    method: u16,
    host: u8,
    external: u32,
    data: &'a [u8],
    size: u32,
    extra: &'a [u8],
}

const PLAIN: Entry<'static> =
    Entry { name: b"a", flags: 0, method: 0, host: 3, external: 0o100_640 << 16, data: b"data", size: 4, extra: b"" };

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let (mut blob, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let header = blob.len() as u32;
        blob.extend(b"PK\x03\x04");
        blob.extend([0; 22]);
        blob.extend((entry.name.len() as u16).to_le_bytes());
        blob.extend([0; 2]);
        blob.extend(entry.name);
        blob.extend(entry.data);
        directory.extend(b"PK\x01\x02\x1e");
        directory.push(entry.host);
        directory.extend([20, 0]);
        directory.extend(entry.flags.to_le_bytes());
        directory.extend(entry.method.to_le_bytes());
        // 2020-02-29 12:34:56.
        directory.extend(((12 << 11 | 34 << 5 | 28) as u16).to_le_bytes());
        directory.extend((40_u16 << 9 | 2 << 5 | 29).to_le_bytes());
        directory.extend(crc32fast::hash(entry.data).to_le_bytes());
        directory.extend((entry.data.len() as u32).to_le_bytes());
        directory.extend(entry.size.to_le_bytes());
        directory.extend((entry.name.len() as u16).to_le_bytes());
        directory.extend((entry.extra.len() as u16).to_le_bytes());
        directory.extend([0; 6]);
        directory.extend(entry.external.to_le_bytes());
        directory.extend(header.to_le_bytes());
        directory.extend(entry.name);
        directory.extend(entry.extra);
    }
    let start = blob.len() as u32;
    blob.extend(&directory);
    blob.extend(b"PK\x05\x06\0\0\0\0");
    blob.extend((entries.len() as u16).to_le_bytes().repeat(2));
    blob.extend((directory.len() as u32).to_le_bytes());
    blob.extend(start.to_le_bytes());
    blob.extend([0, 0]);
    blob
}

#[test]
fn modes_times_and_names_are_those_of_the_writer() {
    let time = [&0x5455_u16.to_le_bytes()[..], &[5, 0, 1], &(-5_i32).to_le_bytes()].concat();
    let of_winzip =
        [b"\x75\x70\x0b\0\x01", &crc32fast::hash(b"dir/\x81").to_le_bytes()[..], "dir\\ü".as_bytes()].concat();
    let blob = archive(&[
        Entry { extra: &time, ..PLAIN },
        Entry { name: b"caf\x82", host: 0, external: 0, ..PLAIN },
        Entry { name: b"dir\\x", host: 0, external: 0, ..PLAIN },
        Entry { name: "dir\\ö".as_bytes(), flags: 1 << 11, host: 0, external: 0, ..PLAIN },
        Entry { name: b"dir\\below\\", host: 0, external: 0, data: b"", size: 0, ..PLAIN },
        Entry { name: b"dir/\x81", host: 0, external: 0, extra: &of_winzip, ..PLAIN },
        Entry { name: b"bytes\xff", ..PLAIN },
        Entry { name: "ü".as_bytes(), flags: 1 << 11, host: 0, ..PLAIN },
        Entry { name: b"link", external: 0o120_777 << 16, ..PLAIN },
        Entry { name: b"/abs/../../b", ..PLAIN },
    ]);
    let ZipIndex { index, members, .. } = scan(&blob).unwrap();
    let entry = |path: &[&str]| {
        let id = path.iter().fold(LayerIndex::ROOT, |at, name| index.lookup(at, name.as_bytes()).expect(name));
        index.entry(id).unwrap()
    };
    let a = entry(&["a"]);
    assert_eq!((a.mode, a.mtime.secs, a.size), (0o640, -5, 4));
    let cafe = entry(&["café"]);
    assert_eq!((cafe.mode, cafe.mtime.secs), (0o644, 1_582_979_696));
    for name in ["x", "ö", "ü"] {
        assert_eq!(entry(&["dir", name]).kind, Kind::File);
    }
    assert_eq!(entry(&["dir", "below"]).kind, Kind::Directory);
    entry(&["ü"]);
    entry(&["b"]);
    assert!(index.lookup(LayerIndex::ROOT, b"bytes\xff").is_some());
    assert_eq!(index.link_target(index.lookup(LayerIndex::ROOT, b"link").unwrap()), b"target");
    assert_eq!((members.len(), index.warnings().len()), (8, 1));
    for member in &members {
        let start = data_start(member.header, &blob[member.header as usize..]).unwrap() as usize;
        assert_eq!(&blob[start..start + 4], b"data");
    }
}

/// `zip` notes what it was fed from: a pipe, as `-`. All readers make a file of it.
#[test]
fn what_came_from_a_pipe_is_a_file() {
    let index = scan(&archive(&[Entry { name: b"-", external: 0o010_600 << 16, ..PLAIN }])).unwrap().index;
    let entry = index.entry(index.lookup(LayerIndex::ROOT, b"-").unwrap()).unwrap();
    assert_eq!((entry.kind, entry.size, entry.mode), (Kind::File, 4, 0o600));
}

/// Such an index could be stored, and would have been refused when it was read.
#[test]
fn a_name_with_a_nul_ends_there() {
    let blob = archive(&[Entry { name: b"a\0b", ..PLAIN }, Entry { name: b"d\0/", host: 0, external: 0, ..PLAIN }]);
    let found = scan(&blob).unwrap().index;
    let names: Vec<_> = found.children(LayerIndex::ROOT).iter().map(|child| found.name_of(child)).collect();
    assert_eq!(names, [b"a", b"d"]);
    let mut scanner = ZipScanner::new(1000, Limits::default());
    let member = scan(&blob).unwrap().members.remove(0);
    let made = Member {
        header: 0,
        next: 0,
        path: b"link".to_vec(),
        kind: MemberKind::Entry(Kind::Symlink),
        mode: 0o777,
        uid: 0,
        gid: 0,
        mtime: crate::index::Mtime::default(),
        size: 0,
        data: 0..0,
        sparse: None,
        link: Vec::new(),
        rdev: 0,
        xattrs: Vec::new(),
    };
    scanner.pending = Some(Box::new((made, member)));
    scanner.link(Some(b"target\0more")).unwrap();
    let index = scanner.finish().index;
    assert_eq!(index.link_target(index.lookup(LayerIndex::ROOT, b"link").unwrap()), b"target");
}

#[test]
fn each_limit_is_named_when_it_is_reached() {
    let limit = |limits: Limits, entries: &[Entry<'_>]| {
        let blob = archive(entries);
        let mut scanner = ZipScanner::new(blob.len() as u64, limits);
        match scanner.step(0, &blob).expect_err("a limit") {
            ZipError::Limit { limit, .. } | ZipError::Tree(ScanError::Limit { limit, .. }) => limit,
            other => panic!("{other}"),
        }
    };
    let usual = Limits::default();
    let many = [PLAIN, Entry { name: b"b", ..PLAIN }, Entry { name: b"c/d", ..PLAIN }];
    assert_eq!(limit(usual, &[Entry { name: &b"a/".repeat(1025), ..PLAIN }]), "depth");
    assert_eq!(limit(Limits { entries: 2, ..usual }, &many), "entries");
    assert_eq!(limit(Limits { index_bytes: 100, ..usual }, &many), "index_bytes");
}

#[test]
fn a_member_that_no_file_system_can_hold_is_left_out_and_told() {
    let path = b"ab/".repeat(1400);
    let blob = archive(&[
        Entry { name: &[b'n'; 256], ..PLAIN },
        PLAIN,
        Entry { name: &path, ..PLAIN },
        Entry { name: &[b'n'; 255], ..PLAIN },
    ]);
    let index = scan(&blob).unwrap().index;
    let names: Vec<_> = index.children(LayerIndex::ROOT).iter().map(|child| index.name_of(child)).collect();
    assert_eq!(names, [&b"a"[..], &[b'n'; 255]]);
    let told = index.warnings();
    assert!(told.len() == 2 && told[0].contains("a part of its name") && told[1].contains("its path"), "{told:?}");
}

#[test]
fn what_cannot_be_read_is_listed_with_the_reason() {
    let huge = u32::MAX - 1;
    for (entry, reason) in [
        (Entry { flags: 1, ..PLAIN }, "encrypted"),
        (Entry { method: 14, ..PLAIN }, "LZMA"),
        (Entry { method: 77, ..PLAIN }, "not known"),
        (Entry { flags: 1, external: 0o120_777 << 16, ..PLAIN }, "encrypted"),
        (Entry { method: 8, size: 0, data: &[0; 70_000], ..PLAIN }, "more bytes"),
        (Entry { size: 5, ..PLAIN }, "two lengths"),
        (Entry { method: 8, size: huge, ..PLAIN }, "cannot be as long"),
    ] {
        let found = scan(&archive(&[entry])).unwrap();
        let Method::Unreadable(said) = found.members[0].method else { panic!("{reason}") };
        assert!(said.contains(reason), "{said}");
        assert_eq!(found.index.len(), 2);
    }
}

/// One link was the end of the whole layer.
#[test]
fn a_link_that_is_damaged_is_a_file_that_cannot_be_read() {
    let mut blob = archive(&[Entry { name: b"link", external: 0o120_777 << 16, ..PLAIN }, PLAIN]);
    let crc = blob.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap() + 16;
    blob[crc..crc + 4].fill(0);
    let ZipIndex { index, members, .. } = scan(&blob).unwrap();
    let link = index.entry(index.lookup(LayerIndex::ROOT, b"link").unwrap()).unwrap();
    assert_eq!((link.kind, link.size), (Kind::File, 4));
    assert!(matches!(members[0].method, Method::Unreadable(_)) && members[1].method == Method::Stored);
}

/// It shared the place of the next one, which was not found there when its local header came first in the blob.
#[test]
fn an_empty_member_has_a_place_of_its_own() {
    let found = scan(&archive(&[Entry { name: b"empty", data: b"", size: 0, ..PLAIN }, PLAIN])).unwrap();
    assert!(found.members[0].place < found.members[1].place, "{:?}", found.members);
    assert!(found.members[1].place + found.members[1].size <= found.end);
}

#[test]
fn members_that_share_bytes_are_not_read() {
    let mut blob = archive(&[PLAIN, Entry { name: b"b", ..PLAIN }, Entry { name: b"c", ..PLAIN }]);
    // The second record gets the first one's local header.
    let second = blob.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap() - 47;
    blob[second + 42..second + 46].fill(0);
    let methods: Vec<_> = scan(&blob).unwrap().members.iter().map(|member| member.method).collect();
    assert!(matches!(methods[..], [Method::Unreadable(_), Method::Unreadable(_), Method::Stored]), "{methods:?}");
}

#[test]
fn comments_prefixes_and_cuts() {
    let blob = archive(&[PLAIN, Entry { name: b"b", ..PLAIN }]);
    let mut commented = blob.clone();
    let at = commented.len() - 2;
    commented[at] = 30;
    commented.extend(b"PK\x05\x06 looks like the end record");
    assert_eq!(scan(&commented[..at + 32]).unwrap().members.len(), 2);
    assert_eq!(scan(&blob[..at].iter().copied().chain([30, 0, b'c']).collect::<Vec<_>>()).unwrap().members.len(), 2);
    let prefixed = [&[7; 1000], &blob[..]].concat();
    let found = scan(&prefixed).unwrap();
    assert_eq!(found.members[0].header, 1000);
    for end in 0..blob.len() {
        assert!(scan(&blob[..end]).is_err(), "{end}");
    }
    assert!(scan(&archive(&[])).unwrap().members.is_empty());
}

/// A ZIP64 end record and its locator in front of the end record, which leaves the numbers to them.
fn with_end64(mut blob: Vec<u8>, extensible: &[u8]) -> Vec<u8> {
    let end = blob.split_off(blob.len() - 22);
    let (at, number) = (blob.len() as u64, |at| u64::from(field32(&end, at).unwrap()).to_le_bytes());
    blob.extend(b"PK\x06\x06");
    blob.extend((44 + extensible.len() as u64).to_le_bytes());
    blob.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    blob.extend([2, 0, 0, 0, 0, 0, 0, 0].repeat(2));
    blob.extend([number(12), number(16)].concat());
    blob.extend([extensible, b"PK\x06\x07\0\0\0\0"].concat());
    blob.extend(at.to_le_bytes());
    blob.extend([1, 0, 0, 0]);
    [blob, b"PK\x05\x06\0\0\0\0".to_vec(), vec![0xff; 12], vec![0, 0]].concat()
}

/// The locator says where the end record was before the archive got something in front: a program that unpacks it.
#[test]
fn a_zip64_archive_with_something_in_front_is_read() {
    let blob = archive(&[PLAIN, Entry { name: b"b", ..PLAIN }]);
    for (extensible, before) in [(&b""[..], 0), (b"extensible data", 0), (b"", 1000), (b"", 10)] {
        let found = scan(&[vec![7; before], with_end64(blob.clone(), extensible)].concat()).unwrap();
        let headers: Vec<_> = found.members.iter().map(|member| member.header).collect();
        assert_eq!(headers, [before as u64, before as u64 + 35], "{before}");
    }
    assert!(scan(&with_end64(blob, b"")[1..]).is_err());
    // What a member's name makes of it is none.
    let name = [&b"PK\x06\x06".repeat(13)[..], b"xPK\x06\x07", &[b'x'; 16]].concat();
    assert_eq!(scan(&archive(&[PLAIN, Entry { name: &name[3..], ..PLAIN }])).unwrap().members.len(), 2);
}

proptest! {
    #[test]
    fn no_change_of_an_archive_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut blob = archive(&[
            PLAIN,
            Entry { name: b"deep/er/name", method: 8, ..PLAIN },
            Entry { name: b"link", external: 0o120_777 << 16, extra: b"\x01\0\x08\x0012345678ux\x0b\0\x01\x04abcd\x04abcd", ..PLAIN },
        ]);
        let at = at.index(blob.len());
        blob[at] = byte;
        if let Ok(found) = scan(&blob) {
            for member in &found.members {
                prop_assert!(member.place.checked_add(member.size).is_some_and(|end| end <= found.end));
            }
        }
        let _ = scan(&blob[..cut.index(blob.len())]);
    }
}
