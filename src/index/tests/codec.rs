//! Stored indexes: the same as before, or an error.

use super::properties::{added, model};
use super::*;
use crate::oci::Digest;

/// Everything that can be asked of an index.
fn facts(index: &LayerIndex) -> impl PartialEq + std::fmt::Debug {
    let entries: Vec<_> = (0..index.len() as u32)
        .map(|number| {
            let id = EntryId(number);
            let names: Vec<_> =
                index.children(id).iter().map(|child| (index.name_of(child).to_vec(), child.entry())).collect();
            let xattrs: Vec<_> = index.xattrs(id).map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
            let segments: Vec<_> = index.segments(id, 0..u64::MAX).collect();
            let target = index.link_target(id).to_vec();
            (index.entry(id), names, index.parent(id), target, xattrs, segments)
        })
        .collect();
    (entries, index.warnings().to_vec(), index.trailing())
}

fn digest() -> Digest {
    Digest::sha256_of(b"the blob")
}

fn stored(index: &LayerIndex, size: u64) -> Vec<u8> {
    encode(index, &digest(), size, Content::Blob).expect("an index can be stored")
}

fn loaded(bytes: &[u8], size: u64) -> Result<LayerIndex, CodecError> {
    decode(bytes, &digest(), size, &Limits::default()).map(|(index, _)| index)
}

/// Some of everything that an index can hold.
fn everything() -> Vec<u8> {
    let sparse = [("GNU.sparse.map", "10,3,100,2"), ("GNU.sparse.size", "200"), ("GNU.sparse.numblocks", "2")];
    let own = [("mtime", "-1.5"), ("uid", "4000000000"), ("SCHILY.xattr.user.a", "b"), ("SCHILY.xattr.user.c", "")];
    let device = |name, flag| Block::new(name, flag, 0).put(329, b"0000007\0").put(337, b"0000003\0").sealed();
    [
        directory("d/"),
        [pax(b'x', &own), file("d/first", b"hello")].concat(),
        file("d/first of all", &[7; 600]),
        symlink("d/link", "../d/first"),
        hard_link("again", "d/first"),
        [pax(b'x', &sparse), file("holes", b"abcde")].concat(),
        file("a/b/c/deep", b""),
        file(b"n\xe4me", b"latin-1"),
        device("tape", b'3'),
        device("disk", b'4'),
        Block::new("pipe", b'6', 0).sealed(),
        file("../out", b"kept inside"),
        end(),
        vec![0; 9000],
        file("behind", b"the end"),
        vec![0; 2 << 20],
    ]
    .concat()
}

fn index_of_everything() -> (LayerIndex, u64) {
    let blob = everything();
    let (_, trailing) = members_of(&blob, Limits::default()).unwrap();
    (index_of(&blob).unwrap().with_trailing(trailing), blob.len() as u64)
}

#[test]
fn everything_comes_back() {
    let (index, size) = index_of_everything();
    assert!(index.trailing() && index.warnings().len() == 1);
    let bytes = stored(&index, size);
    assert_eq!(facts(&loaded(&bytes, size).unwrap()), facts(&index));
    assert_eq!(stored(&loaded(&bytes, size).unwrap(), size), bytes);

    let empty = LayerIndexBuilder::new(Limits::default()).finish();
    assert_eq!(facts(&loaded(&stored(&empty, 0), 0).unwrap()), facts(&empty));
}

/// `index-v1.hex` was written when version 1 was new. It must never be made again: a change of the format is a new
/// version, with a file of its own, and programs go on reading this one or say that they do not.
#[test]
fn an_index_of_version_1_is_read_for_ever() {
    let hex: String = include_str!("index-v1.hex").split_whitespace().collect();
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    let (index, size) = index_of_everything();
    let (read, content) = decode(&bytes, &digest(), size, &Limits::default()).expect("the first version");
    assert_eq!(content, Content::Blob);
    assert_eq!(facts(&read), facts(&index));
    assert_eq!(read.len(), 15);
    let first = read.lookup(read.lookup(LayerIndex::ROOT, b"d").unwrap(), b"first").unwrap();
    let entry = read.entry(first).unwrap();
    assert_eq!((entry.mtime, entry.uid, entry.nlink), (Mtime { secs: -2, nanos: 500_000_000 }, 4_000_000_000, 2));
    assert_eq!(read.lookup(LayerIndex::ROOT, b"again"), Some(first));
    assert_eq!(read.segments(first, 0..9).collect::<Vec<_>>(), [Segment::Data(2048..2053)]);

    // What is written now is the same, however well it is compressed.
    let now = stored(&index, size);
    let parts = |bytes: &[u8]| {
        let (head, frame) = bytes[..bytes.len() - 8].split_at(64 + digest().as_str().len());
        [head, &zstd::decode_all(frame).unwrap()].concat()
    };
    let hex: Vec<String> = now.chunks(40).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    assert!(parts(&now) == parts(&bytes), "another format needs another version; this one's file:\n{}", hex.join("\n"));
}

#[test]
fn it_belongs_to_one_blob() {
    let (index, size) = index_of_everything();
    let bytes = stored(&index, size);
    let other = Digest::sha256_of(b"another blob");
    let error = decode(&bytes, &other, size, &Limits::default()).unwrap_err();
    assert_eq!(error, CodecError::OtherBlob);
    assert_eq!(loaded(&bytes, size + 1).unwrap_err(), CodecError::OtherBlob);

    let content = Content::Unpacked { size };
    let packed = encode(&index, &other, 99, content).unwrap();
    let (read, found) = decode(&packed, &other, 99, &Limits::default()).unwrap();
    assert_eq!((facts(&read), found), (facts(&index), content));
}

#[test]
fn each_damage_is_seen() {
    let (index, size) = index_of_everything();
    let bytes = stored(&index, size);
    for at in 0..bytes.len() {
        assert!(loaded(&bytes[..at], size).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(loaded(&damaged, size).is_err(), "bit {bit} of byte {at}");
        }
    }
    assert!(loaded(&[&bytes[..], b"\0"].concat(), size).is_err());
    assert_eq!(loaded(b"", size).unwrap_err(), CodecError::NotAnIndex);
    let newer = [&bytes[..8], &[2], &bytes[9..]].concat();
    assert_eq!(loaded(&newer, size).unwrap_err(), CodecError::Version(2));
}

/// 100,000 files in one directory and 100,000 in directories of ten: what is the size of an entry?
#[test]
fn an_entry_takes_few_bytes() {
    let (index, size) = large(100_000);
    let bytes = stored(&index, size);
    assert!(bytes.len() < index.len() * 24, "{} bytes an entry", bytes.len() / index.len());
    assert_eq!(facts(&loaded(&bytes, size).unwrap()), facts(&index));
}

/// Names, sizes and times as a dataset has them: alike, never the same.
fn large(count: u32) -> (LayerIndex, u64) {
    let mut builder = LayerIndexBuilder::new(Limits { index_bytes: 1 << 30, ..Limits::default() });
    let mut dice = Dice(7);
    let mut at = 0u64;
    for number in 0..2 * count {
        let path = match number % 2 {
            0 => format!("all/S2_{:07}.npy", number / 2),
            _ => format!("tile/{:05}/DATA_S2/S2_{:07}_2019.npy", number / 20, number / 2),
        };
        let size = dice.below(4_000_000) as u64;
        let data = at + 1536..at + 1536 + size;
        let next = data.end.next_multiple_of(512);
        builder
            .push(Member {
                header: at,
                next,
                path: path.into_bytes(),
                kind: MemberKind::Entry(Kind::File),
                mode: 0o644,
                uid: 1000,
                gid: 1000,
                mtime: Mtime { secs: 1_600_000_000 + i64::from(number / 7), nanos: dice.below(1_000_000_000) as u32 },
                size,
                data,
                sparse: None,
                link: Vec::new(),
                rdev: 0,
                xattrs: Vec::new(),
            })
            .unwrap();
        at = next;
    }
    (builder.finish(), at + 1024)
}

#[test]
fn a_directory_of_100_000_is_looked_up_at_once_and_its_offsets_stay() {
    let (index, _) = large(100_000);
    let all = index.lookup(LayerIndex::ROOT, b"all").unwrap();
    let children = index.children(all);
    assert_eq!(children.len(), 100_000);
    let started = std::time::Instant::now();
    for (at, child) in children.iter().enumerate() {
        let name = format!("S2_{at:07}.npy");
        // The position is the offset for readdir: in the order of names, whatever was asked before.
        assert_eq!(index.name_of(child), name.as_bytes());
        assert_eq!(index.lookup(all, name.as_bytes()), Some(child.entry()));
        assert_eq!(index.lookup(all, &name.as_bytes()[1..]), None);
    }
    // A search from one end would take 10^10 steps.
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_index_comes_back(members in prop::collection::vec(added(), 0..40)) {
        let (blob, _) = model(&members);
        let (index, size) = (index_of(&blob).unwrap(), blob.len() as u64);
        let bytes = stored(&index, size);
        let read = loaded(&bytes, size).unwrap();
        prop_assert_eq!(facts(&read), facts(&index));
        prop_assert_eq!(stored(&read, size), bytes);
    }

    #[test]
    fn any_damage_is_an_error(members in prop::collection::vec(added(), 0..10),
                              changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let (blob, _) = model(&members);
        let size = blob.len() as u64;
        let bytes = stored(&index_of(&blob).unwrap(), size);
        let mut damaged = bytes.clone();
        for (at, byte) in changes {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        prop_assert!(damaged == bytes || loaded(&damaged, size).is_err());
    }
}
