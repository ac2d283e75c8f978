use super::*;

/// Some of everything in a few blocks.
fn mixed() -> Vec<u8> {
    let sparse = Block::new("gnu sparse", b'S', 3).gnu().put(483, b"00000100000\0").put(482, &[1]);
    let sparse = (0..4).fold(sparse, |header, _| header.put(386, b"00000000001 00000000001 "));
    let sparse =
        (1..4).fold(sparse, |header, n| header.put(386 + 24 * n, format!("{:011o}\0{:011o}\0", 100 * n, 0).as_bytes()));
    let mut more = b"00000001000 00000000002 ".to_vec();
    more.resize(512, 0);
    let text = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "60")];
    [
        pax(b'g', &[("comment", "a global one")]),
        directory("d/"),
        file("d/a", b"hello"),
        [extension(b'L', b"d/long name\0"), Block::new("short", b'0', 600).gnu().with(&[7; 600])].concat(),
        [pax(b'x', &[("path", "d/b"), ("mtime", "1.5"), ("SCHILY.xattr.user.a", "b")]), symlink("x", "a")].concat(),
        hard_link("d/c", "d/a"),
        [sparse.sealed(), more, filled(b"xyz")].concat(),
        [pax(b'x', &text), file("text map", &[filled(b"1\n10\n3\n"), b"xyz".to_vec()].concat())].concat(),
        end(),
    ]
    .concat()
}

#[test]
fn the_whole_is_fine() {
    let (found, trailing) = members_of(&mixed(), Limits::default()).unwrap();
    assert_eq!((found.len(), trailing), (7, false));
}

/// Cut within a member or header it is an error that names where that starts; cut between members it cannot be told.
#[test]
fn truncated_at_any_byte() {
    let blob = mixed();
    let (whole, _) = members_of(&blob, Limits::default()).unwrap();
    for length in 0..blob.len() {
        let cut = length as u64;
        let complete = whole.iter().filter(|member| member.next <= cut).count();
        let boundary = cut >= blob.len() as u64 - 1024 || cut == 1024 || whole.iter().any(|member| member.next == cut);
        match members_of(&blob[..length], Limits::default()) {
            Ok((found, _)) => {
                assert!(boundary, "cut at {length}");
                assert_eq!(found[..], whole[..complete], "cut at {length}");
            }
            Err(ScanError::NotTar { offset: 0 }) => assert!(length < 512),
            Err(ScanError::Truncated { offset, end, blob_size, .. }) => {
                assert!(!boundary && offset < cut && end > cut && blob_size == cut, "cut at {length}: {offset} {end}");
            }
            Err(other) => panic!("cut at {length}: {other}"),
        }
    }
}

#[test]
fn the_error_names_offset_and_member() {
    let blob = [file("first", b"hi"), file("second\x1b", &[1; 600])].concat();
    let error = members_of(&blob[..1600], Limits::default()).unwrap_err();
    assert_eq!(error.offset(), 1024);
    let shown = error.on("sha256:7cff").to_string();
    assert_eq!(shown, "sha256:7cff: truncated archive: second  at byte 1024 ends at byte 2560 of 1600");
}

#[test]
fn a_wrong_checksum_and_no_archive_at_all() {
    let mut blob = [file("a", b"hi"), file("b", b"hi")].concat();
    blob[1024 + 3] ^= 1;
    assert_eq!(members_of(&blob, Limits::default()), Err(ScanError::Checksum { offset: 1024 }));
    for blob in [&b""[..], b"x", &[0; 511], &[b'x'; 2000], b"PK\x03\x04"] {
        assert_eq!(members_of(blob, Limits::default()), Err(ScanError::NotTar { offset: 0 }));
    }
}

#[test]
fn an_error_and_the_end_are_final() {
    let blob = vec![b'x'; 1024];
    let mut scanner = Scanner::new(1024, Limits::default());
    for _ in 0..3 {
        assert_eq!(scanner.step(0, &blob), Err(ScanError::NotTar { offset: 0 }));
    }
    let blob = end();
    let mut scanner = Scanner::new(1024, Limits::default());
    for _ in 0..3 {
        assert_eq!(scanner.step(0, &blob), Ok(Step::End { trailing: false }));
        assert!(scanner.step(5, &[]).is_ok());
    }
}

fn index_or_error(blob: &[u8]) {
    if let Ok(index) = index_of(blob) {
        let mut waiting = vec![LayerIndex::ROOT];
        let mut names = 0;
        while let Some(directory) = waiting.pop() {
            for child in index.children(directory) {
                names += 1;
                let entry = index.entry(child.entry()).unwrap();
                let covered = index.segments(child.entry(), 0..u64::MAX).fold(0, |sum, segment| match segment {
                    Segment::Data(range) => {
                        assert!(range.start < range.end && range.end <= blob.len() as u64);
                        sum + range.end - range.start
                    }
                    Segment::Hole(length) => {
                        assert!(length > 0);
                        sum + length
                    }
                });
                assert!(entry.kind != Kind::File || covered == entry.size);
                waiting.extend((entry.kind == Kind::Directory).then_some(child.entry()));
            }
        }
        assert!(names + 1 >= index.len(), "an entry that no name leads to");
    }
}

/// The checksum is made right again, so that the damage gets through.
fn seal(blob: &mut [u8], at: usize) {
    let block: &mut [u8] = &mut blob[at / 512 * 512..][..512];
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn no_single_damaged_byte_panics_or_hangs() {
    let blob = mixed();
    for at in 0..blob.len() {
        // Two of these for each byte: no field is so short that it does not get all of them.
        let values = [0, b'7', b'/', 0xff, blob[at] ^ 0x10];
        for value in [values[at % 5], values[(at + 2) % 5]] {
            let mut damaged = blob.clone();
            damaged[at] = value;
            index_or_error(&damaged);
            // An extension's content has no checksum, and what becomes one in it does no harm.
            seal(&mut damaged, at);
            index_or_error(&damaged);
        }
    }
}

#[test]
fn no_heap_of_damage_panics_or_hangs() {
    let mut dice = Dice(7);
    let blob = mixed();
    for _ in 0..8_000 {
        let mut damaged = blob.clone();
        for _ in 0..1 + dice.below(6) {
            let at = dice.below(blob.len());
            match dice.below(4) {
                0 => damaged[at] = dice.below(256) as u8,
                1 => {
                    let from = dice.below(blob.len() - 12);
                    let to = at.min(blob.len() - 12);
                    damaged.copy_within(from..from + 12, to);
                }
                2 => {
                    let (from, to) = (dice.below(blob.len() / 512) * 512, at / 512 * 512);
                    damaged.copy_within(from..from + 512, to);
                }
                _ => damaged[at / 512 * 512 + 156] = b"0123456LKxgXSDVM7"[dice.below(17)],
            }
            seal(&mut damaged, at);
        }
        let length = if dice.below(4) == 0 { dice.below(blob.len()) } else { blob.len() };
        index_or_error(&damaged[..length]);
    }
}
