use super::*;

#[test]
fn v7_with_and_without_a_slash() {
    let blob = [Block::new("a", 0, 2).v7().with(b"hi"), Block::new("d/", 0, 0).v7().sealed(), end()];
    let found = members(&blob);
    assert_eq!(found[0].kind, MemberKind::Entry(Kind::File));
    assert_eq!((found[0].header, found[0].next, found[0].data.clone()), (0, 1024, 512..514));
    assert_eq!((found[0].mode, found[0].uid, found[0].gid), (0o644, 1000, 100));
    assert_eq!(found[0].mtime, Mtime { secs: 1000, nanos: 0 });
    assert_eq!(found[1].kind, MemberKind::Entry(Kind::Directory));
    assert_eq!(found[1].next, 1536);
}

#[test]
fn a_checksum_of_signed_bytes() {
    let block = Block::new("\u{e4}", b'0', 0).put(148, b"        ");
    let sum: i32 = block.0.iter().map(|&byte| i32::from(byte.cast_signed())).sum();
    let signed = block.put(148, format!("{sum:06o}\0 ").as_bytes()).0.to_vec();
    assert_eq!(only(&[signed, end()]).path, "\u{e4}".as_bytes());
}

#[test]
fn a_prefix_of_ustar_only() {
    let path = |block: Block| only(&[block.put(345, b"pre/fix").sealed()]).path;
    assert_eq!(path(Block::new("n", b'0', 0)), b"pre/fix/n");
    assert_eq!(path(Block::new("n", b'0', 0).put(263, b"  ")), b"pre/fix/n");
    assert_eq!(path(Block::new("n", b'0', 0).gnu()), b"n");
    assert_eq!(path(Block::new("n", b'0', 0).v7()), b"n");
    let full = only(&[Block::new([b'n'; 100], b'0', 0).put(345, &[b'p'; 155]).sealed()]);
    assert_eq!(full.path.len(), 256);
}

/// As `pax -o linkdata` writes them (POSIX). Sizes without data behind them are passed over, as ever.
#[test]
fn a_link_or_directory_that_brings_data_along_is_passed_over_with_it() {
    let data = [7; 700];
    let link = |flag, size| Block::new("l/", flag, size).link("a");
    let paths = |blocks: &[Vec<u8>]| members(blocks).into_iter().map(|member| member.path).collect::<Vec<_>>();
    for flag in [b'1', b'5', b'0'] {
        let with_data = [file("a", &data), link(flag, 700).with(&data), file("b", b"1")];
        assert_eq!(paths(&with_data), [&b"a"[..], b"l/", b"b"], "{flag}");
        let without = [file("a", &data), link(flag, 700).sealed(), file("b", b"1"), file("c", &[0; 900])];
        assert_eq!(paths(&without), [&b"a"[..], b"l/", b"b", b"c"], "{flag}");
    }
    // What ends behind the archive is none, and no other member's data is passed over.
    for blocks in [[link(b'1', 1 << 20).sealed(), vec![]], [link(b'1', 4000).sealed(), file("b", b"")]] {
        assert!(matches!(error(&[&blocks[..], &[vec![7; 8192]]].concat()), ScanError::Checksum { .. }));
    }
}

#[test]
fn gnu_long_names_and_links() {
    let long = "n/".repeat(200);
    let member = only(&[
        extension(b'K', b"wrong\0"),
        extension(b'L', format!("{long}x\0").as_bytes()),
        extension(b'K', b"target without NUL"),
        Block::new("short", b'2', 0).gnu().link("t").sealed(),
    ]);
    assert_eq!(member.path, format!("{long}x").as_bytes());
    assert_eq!(member.link, b"target without NUL");
    assert_eq!((member.header, member.next), (0, 7 * 512));
    let name = only(&[Block::new("L", b'L', 5).v7().with(b"long\0"), file("short", b"")]).path;
    assert_eq!(name, b"long", "whatever the magic");
}

#[test]
fn gnu_numbers_in_base_256() {
    let member = only(&[Block::new("a", b'0', 0)
        .gnu()
        .put(108, &[0x80, 0, 0, 0, 0, 0x20, 0, 0])
        .put(116, &[0x80, 0, 0, 1, 0, 0, 0, 0])
        .put(124, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3])
        .put(136, &[0xff; 12])
        .with(b"abc")]);
    assert_eq!((member.uid, member.gid, member.size), (0x20_0000, 65534, 3));
    assert_eq!(member.mtime, Mtime { secs: -1, nanos: 0 });
}

#[test]
fn a_size_that_is_none_is_an_error() {
    for size in [
        &b"            "[..],
        b"xyz12345678\0",
        &[0xff; 12],
        &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let blob = [file("a", b""), Block::new("b", b'0', 0).put(124, size).sealed()];
        assert_eq!(error(&blob), ScanError::Number { offset: 512, field: "size" }, "{size:?}");
    }
    let largest = [0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(error(&[Block::new("b", b'0', 0).put(124, &largest).sealed()]), ScanError::Truncated { .. }));
    for size in ["9223372036854775808", "18446744073709551615"] {
        let blob = [pax(b'x', &[("size", size)]), file("a", b"")];
        assert_eq!(error(&blob), ScanError::Number { offset: 0, field: "size" });
    }
    let blob = [pax(b'x', &[("size", "18446744073709551616")]), file("a", b"")];
    assert_eq!(error(&blob), ScanError::Pax { offset: 0, what: "a size that is no number" });
}

#[test]
fn other_numbers_that_are_none_are_passed_over() {
    let blob = Block::new("a", b'0', 0).put(100, b"zzzzzzz\0").put(108, b"        ").put(136, b"yesterday  \0");
    let member = only(&[blob.sealed()]);
    assert_eq!((member.mode, member.uid, member.mtime.secs), (0o7777, 0, 0));
}

#[test]
fn pax_records_replace_the_header() {
    let records = [
        ("hdrcharset", "BINARY"),
        ("path", "new/path"),
        ("linkpath", "new target"),
        ("uid", "70000"),
        ("gid", "-1"),
        ("mtime", "-1.5"),
        ("SCHILY.xattr.user.one", "1"),
        ("SCHILY.xattr.user.one", "2"),
        ("comment", "\0"),
    ];
    let member = only(&[pax(b'x', &records), symlink("old", "old target")]);
    assert_eq!((&member.path[..], &member.link[..]), (&b"new/path"[..], &b"new target"[..]));
    assert_eq!((member.uid, member.gid), (70000, 65534));
    assert_eq!(member.mtime, Mtime { secs: -2, nanos: 500_000_000 });
    assert_eq!(member.xattrs, [(b"user.one".to_vec(), b"2".to_vec())]);

    let member = only(&[pax(b'X', &[("size", "3")]), Block::new("solaris", b'0', 0).with(b"abc")]);
    assert_eq!((member.size, member.data, member.next), (3, 1536..1539, 2048));
}

#[test]
fn pax_header_beats_a_gnu_name_and_the_last_local_one_counts() {
    let member = only(&[
        extension(b'L', b"gnu\0"),
        pax(b'x', &[("path", "lost"), ("mtime", "5")]),
        pax(b'x', &[("path", "kept\0cut")]),
        file("a", b""),
    ]);
    assert_eq!((&member.path[..], member.mtime.secs), (&b"kept"[..], 1000));
}

#[test]
fn pax_records_that_are_not_for_us_or_empty() {
    let member = only(&[pax(b'x', &[("path", ""), ("mtime", ""), ("uid", "x"), ("odd \u{ff}", "1")]), file("a", b"")]);
    assert_eq!((&member.path[..], member.mtime.secs, member.uid), (&b"a"[..], 1000, 1000));
    let member = only(&[pax(b'x', &[("mtime", "1e-05")]), file("a", b"")]);
    assert_eq!(member.mtime.secs, 1000);
    assert_eq!(only(&[extension(b'x', b""), file("a", b"")]).path, b"a");
}

#[test]
fn pax_global_records_hold_until_the_next_global_header() {
    let found = members(&[
        pax(b'g', &[("mtime", "7.25"), ("SCHILY.xattr.user.g", "g"), ("path", "global")]),
        file("a", b""),
        pax(b'x', &[("path", "local"), ("mtime", ""), ("SCHILY.xattr.user.g", "l")]),
        file("b", b""),
        pax(b'g', &[("comment", "git writes one")]),
        file("c", b""),
    ]);
    let seen: Vec<_> = found.iter().map(|member| (&member.path[..], member.mtime.secs, member.xattrs.len())).collect();
    assert_eq!(seen, [(&b"global"[..], 7, 1), (b"local", 1000, 1), (b"c", 1000, 0)]);
    assert_eq!(found[1].xattrs[0].1, b"l");
    assert_eq!(found[0].header, 1024, "a global header belongs to no member");
}

#[test]
fn damaged_pax_headers_are_errors_with_their_offset() {
    let blob = [file("a", b""), extension(b'x', b"99 path=b\n"), file("b", b"")];
    assert_eq!(error(&blob), ScanError::Pax { offset: 512, what: "a record longer than the header" });
}

#[test]
fn no_data_behind_what_is_no_file() {
    for (flag, kind) in [
        (b'1', MemberKind::HardLink),
        (b'2', MemberKind::Entry(Kind::Symlink)),
        (b'3', MemberKind::Entry(Kind::CharDevice)),
        (b'4', MemberKind::Entry(Kind::BlockDevice)),
        (b'5', MemberKind::Entry(Kind::Directory)),
        (b'6', MemberKind::Entry(Kind::Fifo)),
    ] {
        for pax_size in [vec![], pax(b'x', &[("size", "512")])] {
            let found = members(&[pax_size, Block::new("a", flag, 512).sealed(), file("b", b"hi")]);
            assert_eq!((found[0].kind, found[0].size, found[0].data.is_empty()), (kind, 0, true));
            assert_eq!(found[1].path, b"b");
        }
    }
}

#[test]
fn devices_as_the_kernel_numbers_them() {
    let device = Block::new("a", b'3', 0).put(329, b"0000410\0").put(337, b"0001234\0");
    assert_eq!(only(&[device.clone().sealed()]).rdev, 0x0021_089c);
    assert_eq!(only(&[device.gnu().sealed()]).rdev, 0x0021_089c);
}

#[test]
fn unknown_and_contiguous_members_are_files_and_labels_are_none() {
    let with = |name, flag| Block::new(name, flag, 2).with(b"hi");
    let found = members(&[
        with("label", b'V'),
        with("contiguous", b'7'),
        with("unknown", b'Q'),
        with("ustar 'S'", b'S'),
        with("slash/", b'Q'),
        Block::new("dump", b'D', 3).gnu().with(b"Ya\0"),
    ]);
    let kinds: Vec<_> = found.iter().map(|member| (member.kind, member.size)).collect();
    let (file, directory) = (MemberKind::Entry(Kind::File), MemberKind::Entry(Kind::Directory));
    assert_eq!(kinds, [(file, 2), (file, 2), (file, 2), (directory, 0), (directory, 0)]);
}

#[test]
fn pieces_of_multi_volume_archives_are_refused() {
    let blob = [file("a", b""), Block::new("piece", b'M', 2).gnu().with(b"hi")];
    let error_of = error(&blob);
    assert_eq!(error_of, ScanError::MultiVolume { offset: 512, member: "piece".into() });
    assert_eq!(
        error_of.on("sha256:0").to_string(),
        "sha256:0: piece at byte 512 is a piece of a multi-volume archive (join the volumes into one archive before pushing)"
    );
    let blob = [pax(b'g', &[("GNU.volume.filename", "a"), ("GNU.volume.offset", "512")]), file("a", b"")];
    assert!(matches!(error(&blob), ScanError::MultiVolume { offset: 0, .. }));
}

#[test]
fn where_an_archive_ends() {
    let (a, b, zero) = (file("a", b"hi"), file("b", b"hi"), vec![0; 512]);
    let ends = |blocks: &[&[u8]]| {
        let (members, trailing) = members_of(&blocks.concat(), Limits::default()).expect("an archive");
        (members.len(), trailing)
    };
    assert_eq!(ends(&[&end()]), (0, false));
    assert_eq!(ends(&[&zero]), (0, false));
    assert_eq!(ends(&[&a, &end()]), (1, false));
    assert_eq!(ends(&[&a]), (1, false), "no end-of-archive blocks");
    assert_eq!(ends(&[&a, &zero]), (1, false), "one");
    assert_eq!(ends(&[&a, &zero[..100]]), (1, false), "not even one");
    assert_eq!(ends(&[&a, &zero, &b]), (1, true), "GNU tar stops at a lone zero block, too");
    assert_eq!(ends(&[&a, &end(), &b]), (1, true), "joined archives");
    assert_eq!(ends(&[&a, &vec![0; 10240], &b]), (1, true), "joined archives filled up to records");
    assert_eq!(ends(&[&a, &vec![0; 1 << 20]]), (1, false), "filled up to the largest record");
    assert_eq!(ends(&[&a, &vec![0; 3 << 20]]), (1, true), "nobody looked what is there");
    assert_eq!(ends(&[&a, &pax(b'x', &[("path", "b")]), &end()]), (1, false), "a header for no member");
}

fn sparse(member: &Member) -> Vec<(u64, u64, u64)> {
    let extents = member.sparse.as_ref().expect("a sparse member");
    extents.iter().map(|extent| (extent.offset, extent.length, extent.blob)).collect()
}

fn piece(offset: u64, length: u64) -> Vec<u8> {
    format!("{offset:011o}\0{length:011o}\0").into_bytes()
}

#[test]
fn gnu_sparse_with_extension_blocks() {
    let header = Block::new("s", b'S', 30).gnu().put(483, b"00000100000\0").put(482, &[1]);
    let header = (0..4).fold(header, |header, n| header.put(386 + 24 * n, &piece(n as u64 * 1000, 1)));
    let full: Vec<u8> = (4..25).flat_map(|n| piece(n * 1000, 1)).chain([b'1'; 8]).collect();
    let mut last: Vec<u8> = (25..30).flat_map(|n| piece(n * 1000, 1)).collect();
    last.resize(512, 0);
    let blob = [header.sealed(), full, last, filled(&[b'x'; 30]), file("b", b""), end()];
    let found = members(&blob);
    assert_eq!((found[0].size, found[0].data.clone(), found[0].next), (32768, 1536..1566, 2048));
    assert_eq!(sparse(&found[0])[29], (29000, 1, 1565));
    assert_eq!(sparse(&found[0]).len(), 30);
    assert_eq!(found[1].path, b"b");
}

#[test]
fn star_sparse() {
    let star = Block::new("s", b'S', 600).put(452, b"00000002000\0").put(476, b"00000000001 00000000001 ");
    let star = star.put(356, &piece(0, 512)).put(380, &piece(1000, 24)).put(508, b"tar\0");
    let member = only(&[star.with(&[b'x'; 600])]);
    assert_eq!((member.size, &member.path[..]), (1024, &b"s"[..]));
    assert_eq!(sparse(&member), [(0, 512, 512), (1000, 24, 1024)]);
}

#[test]
fn pax_sparse_in_each_version() {
    let common = ("GNU.sparse.numblocks", "2");
    let member = only(&[
        pax(
            b'x',
            &[
                ("GNU.sparse.size", "60"),
                common,
                ("GNU.sparse.offset", "5"),
                ("GNU.sparse.numbytes", "1"),
                ("GNU.sparse.offset", "60"),
                ("GNU.sparse.numbytes", "0"),
            ],
        ),
        file("v0.0", b"x"),
    ]);
    assert_eq!((member.size, sparse(&member)), (60, vec![(5, 1, 1536)]));

    let records =
        [("GNU.sparse.size", "60"), common, ("GNU.sparse.map", "5,1,6,2"), ("GNU.sparse.name", "real"), ("path", "p")];
    let member = only(&[pax(b'x', &records), file("GNUSparseFile.0/v0.1", b"xyz")]);
    assert_eq!((&member.path[..], member.size, sparse(&member)), (&b"real"[..], 60, vec![(5, 3, 1536)]));

    let records = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "1000000")];
    let pieces = 150;
    let map: String = (0..pieces).map(|n| format!("{}\n1\n", 5000 * n)).collect();
    let mut data = filled(format!("{pieces}\n{map}").as_bytes());
    let blocks = data.len();
    assert!(blocks > 1024);
    data.extend_from_slice(&[b'x'; 150]);
    let found = members(&[pax(b'x', &records), file("v1.0", &data), file("b", b"")]);
    assert_eq!((found[0].size, sparse(&found[0]).len()), (1_000_000, pieces));
    assert_eq!(found[0].data, 1536 + blocks as u64..1536 + data.len() as u64);
    assert_eq!(sparse(&found[0])[149], (745_000, 1, 1536 + blocks as u64 + 149));
    assert_eq!(found[1].path, b"b");
}

#[test]
fn pax_sparse_without_a_map() {
    let size = |size: &str| only(&[pax(b'x', &[("GNU.sparse.size", size)]), file("a", b"abc")]);
    assert_eq!((size("2").size, sparse(&size("2"))), (2, vec![(0, 2, 1536)]));
    assert_eq!((size("9").size, sparse(&size("9"))), (9, vec![(0, 3, 1536)]));
}

#[test]
fn sparse_maps_that_lie_are_errors() {
    let of = |records: &[(&str, &str)], data: &[u8]| match error(&[pax(b'x', records), file("a", data), end()]) {
        ScanError::Sparse { offset: 0, what } => what,
        other => panic!("{other}"),
    };
    let map = |map| of(&[("GNU.sparse.size", "60"), ("GNU.sparse.map", map)], b"xyz");
    assert_eq!(map("5,1,3,1"), "a map whose pieces overlap or go back");
    assert_eq!(map("5,1,60,1"), "a map past the end of the file");
    assert_eq!(map("5,18446744073709551615"), "a map past 2^64");
    assert_eq!(map("5,4"), "a map of more data than the member holds");
    assert_eq!(map("5"), "an offset without a length in its map");
    assert_eq!(map("5,-1"), "a map with a damaged number");
    let text = |data: &str| {
        let version = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "60")];
        of(&version, &filled(data.as_bytes()))
    };
    assert_eq!(text("2\n0\n1\n"), "a map with a damaged number", "NUL in the middle");
    assert_eq!(text(&"1".repeat(600)), "a map past 2^64");
    assert_eq!(text("\n"), "a map with an empty line");
    assert_eq!(text(""), "a map that does not end");
    assert_eq!(text(&format!("999\n{}", "1\n".repeat(255))[..512]), "a map that does not end");
    assert_eq!(of(&[("GNU.sparse.major", "2")], b""), "a map of an unknown version");
    let bad = Block::new("s", b'S', 0).gnu().put(483, b"00000100000\0").put(386, b"0000000000x 00000000001 ");
    assert!(matches!(error(&[bad.sealed()]), ScanError::Sparse { offset: 0, .. }));
}

#[test]
fn archives_of_the_tar_crate_and_of_tar_core() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o640);
    builder.append_data(&mut header, "n/".repeat(100) + "file", &b"hello"[..]).unwrap();
    builder.append_pax_extensions([("mtime", &b"1.5"[..]), ("SCHILY.xattr.user.a", b"\0\xff")]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", "n").unwrap();
    let found = members(&[builder.into_inner().unwrap()]);
    assert_eq!((found[0].path.len(), found[0].size, found[0].mode), (204, 5, 0o640));
    assert_eq!((found[1].mtime.nanos, &found[1].link[..]), (500_000_000, &b"n"[..]));
    assert_eq!(found[1].xattrs[0].1, [0, 0xff]);

    for mut builder in [tar_core::EntryBuilder::new_gnu(), tar_core::EntryBuilder::new_ustar()] {
        let path = "n/".repeat(150) + "file";
        builder.path(path.as_bytes()).size(2).unwrap();
        builder.mode(0o600).unwrap().mtime(5).unwrap().uid(9).unwrap().gid(8).unwrap();
        let found = only(&[builder.finish_bytes(), filled(b"hi"), end()]);
        assert_eq!((&found.path[..], found.size, found.mode, found.mtime.secs), (path.as_bytes(), 2, 0o600, 5));
    }
}

#[test]
fn a_scanner_that_starts_in_the_middle_joins_one_from_the_start() {
    let blob = [file("a", b"hi"), pax(b'x', &[("mtime", "5")]), file("b", b"hi"), pax(b'g', &[("mtime", "7")]), end()]
        .concat();
    let whole = members_of(&blob, Limits::default()).unwrap().0;
    assert!(is_header(&blob[1024..1536]) && !is_header(&blob[512..1024]) && !is_header(&blob[..100]));
    assert!(!is_header(&[0; 512]));
    let size = blob.len() as u64;
    let mut first = Scanner::new(size, Limits::default());
    assert_eq!(first.step(0, &blob), Ok(Step::Member(whole[0].clone())));
    assert_eq!((first.position(), first.has_global_records()), (Some(1024), false));
    let mut second = Scanner::starting_at(1024, size, Limits::default());
    assert_eq!(second.step(0, &blob), Ok(Step::Member(whole[1].clone())));
    assert_eq!(second.step(0, &blob), Ok(Step::End { trailing: false }));
    assert_eq!((second.position(), second.has_global_records()), (None, true));
    let mut half = Scanner::new(size, Limits::default());
    assert!(matches!(half.step(0, &blob[..1540]), Ok(Step::Member(_))));
    assert_eq!(half.step(0, &blob[..1540]), Ok(Step::Need(1536..1547)));
    assert_eq!(half.position(), None);
    let mut nowhere = Scanner::starting_at(u64::MAX, size, Limits::default());
    assert!(nowhere.step(0, &blob).is_ok());
}

/// As GNU tar and bsdtar see it; the next header was looked for behind data that is not there.
#[test]
fn a_directory_of_bsd_tar_has_no_data_whatever_its_size_says() {
    for flag in *b"0\x007" {
        let found = members(&[Block::new("d/", flag, 99_999).v7().sealed(), file("inner", b"a"), end()]);
        assert_eq!(found[0].kind, MemberKind::Entry(Kind::Directory));
        assert_eq!(found.iter().map(|member| &member.path[..]).collect::<Vec<_>>(), [&b"d/"[..], b"inner"]);
    }
}
