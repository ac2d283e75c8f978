//! Writes the corpus's first inputs, each named after what it is:
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`. Inputs that a fuzzer found are named by their hash and
//! stay as they are.

use std::fs;
use std::path::Path;

use eo_mount::blob::content::{Compression, Place, Point, Stored, Table, encode_table};
use eo_mount::index::{
    AttachedPart, ChunkDigests, Content, EntryId, Kind, LayerIndex, LayerIndexBuilder, Limits, Member, ScanError,
    Scanner, Segment, Step, TRAILER, encode, footer_length, write_attached,
};
use eo_mount::oci::Digest;

#[allow(dead_code)]
#[path = "../../src/index/tests/archive.rs"]
mod archive;

use archive::*;

fn main() {
    for (name, archive) in archives() {
        // The seed of the windows, and whether checksums are mended: see `as_archive`.
        for how in [0, 1] {
            save("scanner", &format!("{name}-{how}"), &[&[how, 7], &archive[..]].concat());
        }
        let Ok(index) = index_of(&archive) else { continue };
        let digest = Digest::sha256_of(b"fuzz");
        let file = encode(&index, &digest, 1 << 20, Content::Blob).expect("an index");
        let frame = 64 + digest.as_str().len()..file.len() - 8;
        let body = zstd::stream::decode_all(&file[frame.clone()]).expect("its frame");
        let fixed = [&file[12..14], &file[24..64]].concat();
        save("stored_index", &name, &[&[1], &fixed[..], &body].concat());
        save("stored_index", &format!("{name}-file"), &[&[0], &file[..frame.end]].concat());
    }
    for (name, kind, records) in extensions() {
        save("pax", name, &[&[kind], &records[..]].concat());
    }
    save("indexer", "recurring", &plan(&[[0x66, 1, 0, 200], [11, 2, 9, 0], [0x4b, 4, 60, 0], [0, 2, 90, 0]]));
    save("indexer", "small", &plan(&[[11, 1, 9, 0], [0x2b, 5, 3, 0], [5, 1, 0, 0], [0, 2, 250, 0]]));
    let alone: Vec<_> = (0..90_u8).map(|n| [0x6b, n, n.wrapping_mul(37) | 64, n]).collect();
    save("indexer", "unpredictable", &plan(&alone));
    save("indexer", "archives-inside", &plan(&[[0x49, 1, 90, 0], [0x2b, 4, 30, 3], [0, 1, 40, 0], [3, 0, 200, 1]]));
    zips();
    tables();
    attached();
}

fn save(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(name), bytes).expect("a file");
}

fn archives() -> Vec<(String, Vec<u8>)> {
    let piece = b"00000000001 00000000001 ";
    let sparse = Block::new("sparse", b'S', 3).gnu().put(483, b"00000100000\0").put(482, &[1]);
    let sparse = (0..4).fold(sparse, |header, n| header.put(386 + 24 * n, piece));
    let sparse =
        (1..4).fold(sparse, |header, n| header.put(386 + 24 * n, format!("{:011o}\0{:011o}\0", 100 * n, 0).as_bytes()));
    let mut more = b"00000001000 00000000002 ".to_vec();
    more.resize(512, 0);
    let version1 = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "60")];
    let long = [extension(b'L', b"d/long name\0"), Block::new("short", b'0', 600).gnu().with(&[7; 600])].concat();
    let own = [("path", "d/b"), ("mtime", "1.5"), ("uid", "4000000000"), ("SCHILY.xattr.user.a", "b")];
    let big = Block::new("big", b'0', 0).gnu().put(124, b"\x80\0\0\0\0\0\0\0\0\0\x02\0");
    [
        ("plain", vec![directory("d/"), file("d/a", b"hello"), file("./d//b", b""), end()]),
        ("gnu-names", vec![long, [extension(b'K', b"d/a\0"), symlink("l", "")].concat(), end()]),
        ("pax", vec![pax(b'g', &[("mtime", "2.5"), ("comment", "all")]), pax(b'x', &own), file("x", b"a"), end()]),
        (
            "links",
            vec![file("a", b"1"), hard_link("b", "a"), symlink("s", "d/.."), file("s/c", b"2"), hard_link("c", "b")],
        ),
        ("gnu-sparse", vec![sparse.sealed(), more, filled(b"xyz"), end()]),
        (
            "pax-sparse",
            vec![
                pax(b'x', &version1),
                file("s", &[filled(b"1\n10\n3\n"), b"xyz".to_vec()].concat()),
                pax(b'x', &[("GNU.sparse.size", "60"), ("GNU.sparse.map", "0,1,2,1,4,1")]),
                file("t", b"xyz"),
                end(),
            ],
        ),
        ("base-256", vec![big.with(&[5; 512]), Block::new("v7", b'\0', 1).v7().with(b"1"), end()]),
        (
            "devices",
            vec![Block::new("fifo", b'6', 0).sealed(), Block::new("c", b'3', 0).put(329, b"0000001\0").sealed(), end()],
        ),
        ("two-archives", vec![file("a", b"1"), end(), file("b", b"2"), end()]),
    ]
    .map(|(name, blocks)| (name.to_owned(), blocks.concat()))
    .into()
}

/// Numbers of kinds are those of `pax`.
fn extensions() -> Vec<(&'static str, u8, Vec<u8>)> {
    let records = |all: &[(&str, &str)]| all.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<_>>();
    let sparse1 = records(&[("GNU.sparse.major", "1"), ("GNU.sparse.name", "s"), ("GNU.sparse.realsize", "2000")]);
    vec![
        ("usual", 0, records(&[("path", "a/b"), ("mtime", "-1.25"), ("uid", "1"), ("gid", "-2"), ("size", "1000")])),
        ("link", 0, records(&[("linkpath", "../x"), ("path", ""), ("hdrcharset", "BINARY")])),
        (
            "xattrs",
            0,
            records(&[("SCHILY.xattr.user.a%3D%25", "x\ny"), ("SCHILY.xattr.user.a", ""), ("LIBARCHIVE.x", "")]),
        ),
        (
            "sparse-0.0",
            0,
            records(&[
                ("GNU.sparse.size", "2000"),
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.offset", "0"),
                ("GNU.sparse.numbytes", "10"),
                ("GNU.sparse.offset", "100"),
                ("GNU.sparse.numbytes", "20"),
            ]),
        ),
        (
            "sparse-0.1",
            0,
            records(&[("GNU.sparse.size", "5000"), ("GNU.sparse.map", "0,10,20,30,1000,5"), ("GNU.sparse.name", "m")]),
        ),
        ("sparse-1.0", 0, sparse1),
        (
            "global-and-local",
            1,
            [records(&[("path", "g"), ("mtime", "5")]), vec![0xff, 0xff], records(&[("path", ""), ("mtime", "")])]
                .concat(),
        ),
        ("long-name", 2, b"a/../b//c/./d\0rest".to_vec()),
        ("long-link", 3, b"somewhere\0".to_vec()),
        ("volume", 0, records(&[("GNU.volume.offset", "1"), ("GNU.volume.size", "2")])),
    ]
}

/// How the indexer asks, and twice the same steps: once to learn from, and then twice as many of them.
fn plan(steps: &[[u8; 4]]) -> Vec<u8> {
    let steps = steps.concat();
    [&[4, 5, 8, 9, 7, 0][..], &steps, &steps, &steps].concat()
}

fn attached() {
    let part = |name: &str, digests: bool| {
        let archive = [directory("d/"), file("d/a", name.as_bytes()), end()].concat();
        let (digest, size) = (Digest::sha256_of(name.as_bytes()), archive.len() as u64);
        let index = encode(&index_of(&archive).expect("an archive"), &digest, size, Content::Blob).expect("an index");
        let mut of_chunks = ChunkDigests::default();
        of_chunks.push(&archive);
        AttachedPart { digest, size, index, digests: digests.then_some(of_chunks) }
    };
    let all = [("none", vec![]), ("one", vec![part("a", false)]), ("two", vec![part("a", false), part("b", true)])];
    for (name, parts) in all {
        let blob = write_attached(parts).expect("a blob").bytes;
        let length = footer_length(&blob, &Limits::default()).expect("a footer") as usize;
        let table = blob.len() - length + 8..blob.len() - TRAILER as usize;
        save("attached_index", name, &[&[0], &blob[..]].concat());
        save("attached_index", &format!("{name}-table"), &[&[1], &blob[table]].concat());
    }
}

fn zips() {
    let record = |name: &[u8], method: u16, external: u32, extra: &[u8], header: u32| {
        let mut record = b"PK\x01\x02\x1e\x03\x14\0\0\0".to_vec();
        record.extend(method.to_le_bytes());
        record.extend([0x51, 0x64, 0x5d, 0x50, 1, 2, 3, 4, 4, 0, 0, 0, 4, 0, 0, 0]);
        record.extend([(name.len() as u16).to_le_bytes(), (extra.len() as u16).to_le_bytes()].concat());
        record.extend([0; 6]);
        record.extend([external.to_le_bytes(), header.to_le_bytes()].concat());
        [&record, name, extra].concat()
    };
    let regular = 0o100_640 << 16;
    let time = b"UT\x05\0\x01\xfb\xff\xff\xff";
    let owner = b"ux\x0b\0\x01\x04\xe8\x03\0\0\x04\x64\0\0\0";
    let usual = [
        record(b"dir/", 0, 0o040_755 << 16, b"", 0),
        record(b"dir/a", 0, regular, time, 100),
        record(b"dir/b", 8, regular, owner, 200),
        record(b"link", 0, 0o120_777 << 16, b"", 300),
    ];
    save("zip", "directory", &[&[5], &usual.concat()[..]].concat());
    save("zip", "directory-64", &[&[7], &usual.concat()[..]].concat());
    let mut large = record(b"caf\x82/../x\\y", 14, 0, b"\x01\0\x10\0\x04\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0", 500);
    large[20..28].fill(0xff);
    save("zip", "zip64-field", &[&[5], &large[..]].concat());
    let whole = [b"PK\x03\x04".to_vec(), vec![0; 26], b"adata".to_vec(), record(b"a", 0, regular, b"", 0)].concat();
    let end =
        [b"PK\x05\x06\0\0\0\0\x01\0\x01\0".to_vec(), vec![47, 0, 0, 0, 35, 0, 0, 0, 4, 0], b"note".to_vec()].concat();
    save("zip", "whole-with-comment", &[&[0], &whole[..], &end].concat());
}

fn tables() {
    let stored = |at| Stored { at, length: 50 };
    let point = |content, place| Point { content, packed: content / 2, place };
    let block = |at| Place::Block { bits: 3, bit_buffer: 5, window: stored(at) };
    for (name, points) in [
        ("one", vec![point(0, Place::Start)]),
        ("windows", vec![point(0, Place::Start), point(100, block(0)), point(100, block(50)), point(300, block(100))]),
        ("pieces", vec![point(0, Place::Piece(stored(0))), point(1000, Place::Piece(stored(50)))]),
    ] {
        let table = Table { points, content: 4000, packed: 2000 };
        let bytes = encode_table(&table, Compression::Gzip, 200, &Digest::sha256_of(b"fuzz"));
        save("checkpoints", name, &bytes[..bytes.len() - 32]);
    }
    let entries = |more: &[u8]| {
        [(10_u32, 100_u32), (20, 0), (30, 70_000)]
            .map(|(packed, content)| [&packed.to_le_bytes()[..], &content.to_le_bytes(), more].concat())
            .concat()
    };
    save("seek_table", "entries", &[&[1], &entries(b"")[..]].concat());
    save("seek_table", "entries-with-checksums", &[&[3], &entries(b"sums")[..]].concat());
    let whole = [&b"\0\x5e\x2a\x4d\x18\x21\0\0\0"[..], &entries(b""), b"\x03\0\0\0\0\xb1\xea\x92\x8f"].concat();
    save("seek_table", "whole", &whole);
}
