//! Indexes with a right checksum that nobody could have made of an archive.

use super::super::build::LayerIndexBuilder;
use super::super::layer::{Dirent, Node, SPARSE};
use super::super::member::{Member, MemberKind, Mtime};
use super::super::{EntryId, Segment};
use super::wire::Packer;
use super::*;

const SIZE: u64 = 10_000;

fn digest() -> Digest {
    Digest::sha256_of(b"the blob")
}

fn member(path: &str, kind: Kind, link: &str) -> Member {
    Member {
        header: 0,
        next: 512,
        path: path.into(),
        kind: MemberKind::Entry(kind),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Mtime::default(),
        size: if kind == Kind::File { 100 } else { 0 },
        data: 512..612,
        sparse: None,
        link: link.into(),
        rdev: 0,
        xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
    }
}

/// 0 the root, 1 `a`, 2 `a/b`, 3 `a/b/f`, 4 `a/b/s` with extents, 5 `l`.
fn honest() -> LayerIndex {
    let mut builder = LayerIndexBuilder::new(Limits::default());
    let sparse =
        vec![SparseExtent { offset: 1, length: 9, blob: 1024 }, SparseExtent { offset: 50, length: 10, blob: 1033 }];
    builder.push(member("a/b/f", Kind::File, "")).unwrap();
    builder.push(Member { sparse: Some(sparse), ..member("a/b/s", Kind::File, "") }).unwrap();
    builder.push(member("l", Kind::Symlink, "a/b")).unwrap();
    builder.finish()
}

fn stored(index: &LayerIndex) -> Vec<u8> {
    encode(index, &digest(), SIZE, Content::Blob).unwrap()
}

fn read(bytes: &[u8]) -> Result<LayerIndex, CodecError> {
    decode(bytes, &digest(), SIZE, &Limits::default()).map(|(index, _)| index)
}

#[track_caller]
fn refused(change: impl FnOnce(&mut LayerIndex)) -> String {
    let mut index = honest();
    change(&mut index);
    read(&stored(&index)).expect_err("hostile").to_string()
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - CHECKSUM;
    let checksum = xxh3_64(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&checksum);
    bytes
}

fn at(index: &LayerIndex, parent: u32, name: &[u8]) -> usize {
    let found = |dirent: &Dirent| dirent.parent == parent && index.name_of(dirent) == name;
    index.dirents.iter().position(found).unwrap()
}

#[test]
fn the_honest_one_is_read() {
    assert_eq!(read(&stored(&honest())).unwrap().len(), 6);
}

#[test]
fn data_outside_of_the_blob() {
    assert!(refused(|index| index.nodes[3].place = SIZE - 99).contains("outside of the blob"));
    assert!(refused(|index| index.nodes[3].place = u64::MAX - 5).contains("outside of the blob"));
    assert!(refused(|index| index.nodes[3].extent = u64::MAX).contains("outside of the blob"));
    assert!(refused(|index| index.extents[1].blob = SIZE - 9).contains("outside of the blob"));
    assert!(refused(|index| index.extents[1].blob = u64::MAX).contains("outside of the blob"));
}

#[test]
fn extents_that_overlap_or_leave_their_file() {
    for (offset, length) in [(9, 10), (0, 5), (95, 6), (u64::MAX, 2), (50, 0), (50, u64::MAX)] {
        let line = refused(|index| (index.extents[1].offset, index.extents[1].length) = (offset, length));
        assert!(line.contains("past its file") || line.contains("outside of the blob"), "{offset} {length}: {line}");
    }
    assert!(refused(|index| index.nodes[4].extent = u64::MAX).contains("a size"));
}

#[test]
fn names_that_are_none() {
    for name in [&b"."[..], b"..", b"", b"x/y", b"/", b"x\0", &[b'x'; 256]] {
        let line = refused(|index| {
            let f = at(index, 2, b"f");
            (index.dirents[f].name_at, index.dirents[f].name_len) = (index.text.len() as u32, name.len() as u16);
            index.text.extend_from_slice(name);
        });
        assert!(line.contains("a name") || line.contains("part_bytes"), "{name:?}: {line}");
    }
    assert!(refused(|index| index.dirents.swap(3, 4)).contains("out of order"));
    let twice = refused(|index| {
        let (f, s) = (at(index, 2, b"f"), at(index, 2, b"s"));
        index.dirents[s].name_at = index.dirents[f].name_at;
    });
    assert!(twice.contains("out of order"));
}

#[test]
fn link_targets_that_are_none() {
    assert!(
        refused(|index| {
            let at = index.nodes[5].place as usize;
            index.text[at] = 0;
        })
        .contains("a link target")
    );
    assert!(
        refused(|index| {
            (index.nodes[5].place, index.nodes[5].extent) = (index.text.len() as u64, 5000);
            index.text.extend([b'x'; 5000]);
        })
        .contains("name_bytes")
    );
}

#[test]
fn directories_that_are_no_tree() {
    let circle = "a directory in two places or in itself";
    // `a` within itself, twice in the root; the root in `a`; `a/b` within itself.
    assert!(refused(|index| index.dirents[2].entry = 1).contains(circle));
    assert!(refused(|index| index.dirents[1].entry = 1).contains(circle));
    assert!(refused(|index| index.dirents[2].entry = 0).contains(circle));
    assert!(refused(|index| index.dirents[3].entry = 2).contains(circle));
    assert!(refused(|index| index.dirents[2].entry = 6).contains("a name of no entry"));
    assert!(refused(|index| index.dirents[2].entry = u32::MAX).contains("a name of no entry"));
    assert!(refused(|index| index.dirents[3].entry = 4).contains("an entry without a name"));
    // Two directories that hold each other and hang on nothing.
    let island = refused(|index| {
        let directory = Node { flags: 0, children: 1, place: 0, ..index.nodes[1] };
        let dirent = |parent, entry| Dirent { parent, entry, ..index.dirents[0] };
        let (there, back) = (dirent(6, 7), dirent(7, 6));
        let first = index.dirents.len() as u64;
        index.dirents.extend([there, back]);
        index.nodes.extend([Node { place: first, ..directory }, Node { place: first + 1, ..directory }]);
    });
    assert!(island.contains(circle), "{island}");
    assert!(refused(|index| index.nodes[0].kind = Kind::Fifo).contains("no root"));
    assert!(read(&stored(&LayerIndex::default())).unwrap_err().to_string().contains("no root"));
}

#[test]
fn links_are_counted_not_told() {
    let mut index = honest();
    index.nodes[3].links = 77;
    index.nodes[0].links = 77;
    let read = read(&stored(&index)).unwrap();
    assert_eq!(read.entry(EntryId(3)).unwrap().nlink, 1);
    assert_eq!(read.entry(LayerIndex::ROOT).unwrap().nlink, 3);
}

#[test]
fn numbers_out_of_range() {
    assert!(refused(|index| index.nodes[3].mode = 0o10000).contains("a mode"));
    assert!(refused(|index| index.nodes[3].nanos = 1_000_000_000).contains("a time"));
    assert!(refused(|index| index.nodes[0].flags |= SPARSE).contains("extents of no file"));
    let device = refused(|index| (index.nodes[3].kind, index.nodes[3].place) = (Kind::CharDevice, 1 << 32));
    assert!(device.contains("past 2^32"), "{device}");
    assert!(refused(|index| index.warnings = vec!["x".repeat(5000)]).contains("a long warning"));
}

#[test]
fn limits_are_named() {
    let bytes = stored(&honest());
    let refused = |limits: Limits| decode(&bytes, &digest(), SIZE, &limits).unwrap_err().to_string();
    for (name, limits) in [
        ("entries", Limits { entries: 4, ..Limits::default() }),
        ("index_bytes", Limits { index_bytes: 300, ..Limits::default() }),
        ("part_bytes", Limits { part_bytes: 0, ..Limits::default() }),
        ("name_bytes", Limits { name_bytes: 2, ..Limits::default() }),
        ("sparse_extents", Limits { sparse_extents: 1, ..Limits::default() }),
        ("xattr_bytes", Limits { xattr_bytes: 3, ..Limits::default() }),
    ] {
        assert!(refused(limits).contains(&format!("limit {name} of")), "{name}: {}", refused(limits));
    }
    let many = LayerIndex { warnings: vec![String::new(); 102], ..honest() };
    assert!(read(&stored(&many)).unwrap_err().to_string().contains("limit warnings of"));
}

/// Each count of the header, one more or less than what follows; and so many that the memory for them would be missed.
#[test]
fn counts_that_lie() {
    let bytes = stored(&honest());
    for count in 0..8 {
        let place = FIXED - 32 + 4 * count;
        let told = u32::from_le_bytes(bytes[place..place + 4].try_into().unwrap());
        for lie in [told.wrapping_sub(1), told + 1, 3_000_000, u32::MAX] {
            let mut forged = bytes.clone();
            forged[place..place + 4].copy_from_slice(&lie.to_le_bytes());
            assert!(read(&sealed(forged)).is_err(), "count {count}: {lie}");
        }
    }
}

#[test]
fn a_frame_that_is_none_or_has_more() {
    let bytes = stored(&honest());
    let frame = FIXED + digest().as_str().len();
    let header = || bytes[..frame].to_vec();
    let with = |mut bytes: Vec<u8>, frame: &[u8]| {
        bytes.extend_from_slice(frame);
        bytes.extend([0; CHECKSUM]);
        read(&sealed(bytes))
    };
    let body = &bytes[frame..bytes.len() - CHECKSUM];
    assert!(with(header(), body).is_ok());
    assert!(with(header(), &[]).is_err());
    assert!(with(header(), &body[..body.len() - 1]).is_err());
    assert!(with(header(), b"no frame at all").is_err());
    assert!(with(header(), &[body, b"x"].concat()).unwrap_err().to_string().contains("more than its counts tell"));
    assert!(with(header(), &[body, body].concat()).is_err());
    // A window of 128 MiB.
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(27).unwrap();
    std::io::Write::write_all(&mut wide, &[0; 100]).unwrap();
    assert!(with(header(), &wide.finish().unwrap()).is_err());
    // A number of eleven bytes.
    let mut packer = Packer::new(header()).unwrap();
    packer.byte(1);
    packer.bytes(&[0xff; 11]);
    assert!(with(packer.finish().unwrap(), &[]).unwrap_err().to_string().contains("past 2^64"));
    for place in [12, 13, 15] {
        let mut forged = bytes.clone();
        forged[place] = 7;
        assert!(read(&sealed(forged)).is_err(), "byte {place}");
    }
}

/// Whatever a frame holds, with a right checksum: an error, or a tree whose every part can be looked at.
#[test]
fn any_frame_is_an_error_or_a_tree() {
    let honest = stored(&honest());
    let frame = FIXED + digest().as_str().len();
    let body = zstd::decode_all(&honest[frame..honest.len() - CHECKSUM]).unwrap();
    let (mut trees, mut dice) = (0, 1u64);
    let mut below = |limit: usize| {
        dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (dice >> 33) as usize % limit
    };
    for _ in 0..4000 {
        let mut body = body.clone();
        for _ in 0..=below(3) {
            let at = below(body.len());
            body[at] = match below(3) {
                0 => below(256) as u8,
                1 => body[at].wrapping_add(1),
                _ => body[at].wrapping_sub(1),
            };
        }
        let mut packer = Packer::new(honest[..frame].to_vec()).unwrap();
        packer.bytes(&body);
        let mut bytes = packer.finish().unwrap();
        bytes.extend([0; CHECKSUM]);
        let Ok(index) = read(&sealed(bytes)) else { continue };
        trees += 1;
        walk(&index);
    }
    assert!(trees > 20, "{trees}: the test changes too much");
}

fn walk(index: &LayerIndex) {
    let mut seen = 0;
    let mut waiting = vec![LayerIndex::ROOT];
    while let Some(directory) = waiting.pop() {
        for child in index.children(directory) {
            seen += 1;
            let (name, id) = (index.name_of(child), child.entry());
            assert!(!name.is_empty() && !name.contains(&b'/'));
            assert_eq!(index.lookup(directory, name), Some(id));
            if index.entry(id).expect("an entry").kind == Kind::Directory {
                assert_eq!(index.parent(id), directory);
                waiting.push(id);
            }
            for segment in index.segments(id, 0..1 << 20) {
                assert!(!matches!(segment, Segment::Data(range) if range.end > SIZE || range.start > range.end));
            }
        }
    }
    assert_eq!(seen, 5);
}
