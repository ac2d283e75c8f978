use super::*;

fn tree(blocks: &[Vec<u8>]) -> String {
    listing(&blocks.concat())
}

fn warnings(blocks: &[Vec<u8>]) -> Vec<String> {
    index_of(&blocks.concat()).expect("an archive").warnings().to_vec()
}

#[test]
fn the_last_member_of_a_name_wins() {
    let blob = [file("a", b"1"), hard_link("h", "a"), file("a", b"2"), symlink("s", "x"), file("s", b"3")];
    assert_eq!(tree(&blob), "f1 a=2\nf1 h=1\nf1 s=3");
    assert!(warnings(&blob).is_empty());
    assert_eq!(index_of(&blob.concat()).unwrap().len(), 4, "nothing is kept that has no name");
}

#[test]
fn directories_without_a_member_get_one() {
    let blob = [file("a/b/c", b"")];
    assert_eq!(tree(&blob), "d755 a/\nd755 a/b/\nf1 a/b/c=");
    let index = index_of(&blob.concat()).unwrap();
    let a = index.lookup(LayerIndex::ROOT, b"a").unwrap();
    let entry = index.entry(a).unwrap();
    assert_eq!((entry.mtime.secs, entry.uid, entry.nlink, entry.size), (1000, 1000, 3, 0));
    assert_eq!(index.entry(LayerIndex::ROOT).unwrap().nlink, 3);
}

#[test]
fn a_directorys_own_member_may_come_late_or_twice() {
    let own = |mode: &[u8], mtime: &[u8]| Block::new("d", b'5', 0).put(100, mode).put(136, mtime).sealed();
    let blob = [file("d/x", b""), own(b"0000700\0", b"00000000007\0"), own(b"0000711\0", b"00000000011\0")];
    assert_eq!(tree(&blob), "d711 d/\nf1 d/x=");
    let index = index_of(&blob.concat()).unwrap();
    let d = index.lookup(LayerIndex::ROOT, b"d").unwrap();
    assert_eq!(index.entry(d).unwrap().mtime.secs, 9);
}

#[test]
fn the_layers_directory_takes_what_its_member_says() {
    let root = Block::new("./", b'5', 0).put(100, b"0000750\0").put(136, b"00000000011\0").sealed();
    let blob = [pax(b'x', &[("SCHILY.xattr.user.a", "b")]), root, file("./a", b"")];
    let index = index_of(&blob.concat()).unwrap();
    let entry = index.entry(LayerIndex::ROOT).unwrap();
    assert_eq!((entry.mode, entry.mtime.secs), (0o750, 9));
    assert_eq!(index.xattrs(LayerIndex::ROOT).collect::<Vec<_>>(), [(&b"user.a"[..], &b"b"[..])]);
    assert_eq!(index.parent(LayerIndex::ROOT), LayerIndex::ROOT);

    let blob = [file("..", b"x"), file("", b"y"), hard_link("/", "a"), file("a", b"")];
    assert_eq!(tree(&blob), "f1 a=");
    assert_eq!(warnings(&blob).len(), 4);
}

#[test]
fn a_file_where_a_member_needs_a_directory() {
    let blob = [file("a", b"1"), file("a/b", b"2")];
    assert_eq!(tree(&blob), "d755 a/\nf1 a/b=2");
    assert_eq!(warnings(&blob), ["a/b: replaces what stood where it needs a directory"]);
    assert_eq!(tree(&[file("a", b"1"), directory("a/"), file("a/b", b"2")]), "d755 a/\nf1 a/b=2");
}

#[test]
fn a_directory_where_a_member_would_be_a_file() {
    assert_eq!(tree(&[directory("d/"), file("d", b"1")]), "f1 d=1");
    let blob = [file("d/x", b"1"), file("d", b"2"), symlink("d", "e"), file("a", b""), hard_link("d", "a")];
    assert_eq!(tree(&blob), "f1 a=\nd755 d/\nf1 d/x=1");
    assert_eq!(warnings(&blob), ["d: left out: a directory with entries has its name"; 3]);
}

#[test]
fn hard_links_share_the_entry_that_the_name_had() {
    let blob = [file("a", b"1"), hard_link("h", "/../a"), hard_link("d/h", "./h"), hard_link("a", "a")];
    assert_eq!(tree(&blob), "f3 a=1\nd755 d/\nf3 d/h=1\nf3 h=1");
    assert_eq!(tree(&[symlink("s", "b"), hard_link("h", "s")]), "l2 h->b\nl2 s->b");
    assert_eq!(tree(&[file("a", b"1"), file("b", b"2"), hard_link("a", "b")]), "f2 a=2\nf2 b=2");
}

#[test]
fn hard_links_to_nothing_or_to_a_directory_are_left_out() {
    let blob = [hard_link("h", "later"), file("later", b""), hard_link("later", "none"), hard_link("x/y", "later/z")];
    assert_eq!(tree(&blob), "f1 later=");
    assert_eq!(warnings(&blob)[0], "h: left out: a hard link to a name that is not there");
    assert_eq!(warnings(&blob).len(), 3);
    let blob = [directory("d/"), hard_link("h", "d"), hard_link("i", "")];
    assert_eq!(tree(&blob), "d755 d/");
    assert_eq!(warnings(&blob).len(), 2);
}

#[test]
fn members_below_a_symlink_go_where_it_leads() {
    let blob = [directory("d/"), symlink("s", "d"), symlink("t", "./s/"), file("t/f", b"1"), hard_link("h", "s/f")];
    assert_eq!(tree(&blob), "d755 d/\nf2 d/f=1\nf2 h=1\nl1 s->d\nl1 t->./s/");
    assert!(warnings(&blob).is_empty());
    let blob = [directory("x/d/"), symlink("x/s", "../x/d"), file("x/s/f", b"1")];
    assert_eq!(tree(&blob), "d755 x/\nd755 x/d/\nf1 x/d/f=1\nl1 x/s->../x/d");
    let blob = [directory("d/"), symlink("s", "d"), directory("s/"), file("s/f", b"1")];
    assert_eq!(tree(&blob), "d755 d/\nd755 s/\nf1 s/f=1");
}

#[test]
fn no_symlink_leads_out_of_the_layer() {
    for target in ["/etc", "..", "../../etc", "missing", "s", "", "d/../.."] {
        let blob = [directory("d/"), pax(b'x', &[("linkpath", target)]), symlink("s", ""), file("s/f", b"1")];
        assert_eq!(tree(&blob), "d755 d/\nd755 s/\nf1 s/f=1", "{target}");
        assert_eq!(warnings(&blob).len(), 1, "{target}");
    }
}

#[test]
fn names_that_lead_out_are_placed_within() {
    let blob = [file("../../a/x", b"1"), file("b/../c/y", b"2"), file("/abs//./z", b"3")];
    assert_eq!(tree(&blob), "d755 a/\nf1 a/x=1\nd755 abs/\nf1 abs/z=3\nd755 c/\nf1 c/y=2");
    assert_eq!(warnings(&blob).len(), 2, "for those with `..`");
}

#[test]
fn segments_are_clipped_to_range_and_file() {
    let blob = [pax(b'x', &[("GNU.sparse.size", "100"), ("GNU.sparse.map", "10,5,20,10")]), file("s", &[b'x'; 15])];
    let index = index_of(&blob.concat()).unwrap();
    let s = index.lookup(LayerIndex::ROOT, b"s").unwrap();
    let of = |range| index.segments(s, range).collect::<Vec<_>>();
    use Segment::{Data, Hole};
    assert_eq!(of(0..u64::MAX), [Hole(10), Data(1536..1541), Hole(5), Data(1541..1551), Hole(70)]);
    assert_eq!(of(12..22), [Data(1538..1541), Hole(5), Data(1541..1543)]);
    assert_eq!(of(15..20), [Hole(5)]);
    assert_eq!(of(30..40), [Hole(10)]);
    assert_eq!(of(99..101), [Hole(1)]);
    assert_eq!(of(100..200), []);
    assert_eq!(of(5..5), []);
    #[expect(clippy::reversed_empty_ranges)]
    let reversed = of(20..10);
    assert_eq!(reversed, []);
    let entry = index.entry(s).unwrap();
    assert_eq!((entry.size, entry.allocated), (100, 15));
    assert_eq!(index.segments(LayerIndex::ROOT, 0..9).next(), None);
    assert_eq!(index.segments(EntryId(99), 0..9).next(), None);
}

#[test]
fn what_is_not_there_is_none() {
    let index = index_of(&[directory("d/"), file("f", b"")].concat()).unwrap();
    let f = index.lookup(LayerIndex::ROOT, b"f").unwrap();
    assert_eq!(index.lookup(LayerIndex::ROOT, b"g"), None);
    assert_eq!(index.lookup(LayerIndex::ROOT, b""), None);
    assert_eq!(index.lookup(f, b"f"), None);
    assert_eq!(index.lookup(EntryId(7), b"f"), None);
    assert!(index.entry(EntryId(7)).is_none());
    assert!(index.children(f).is_empty());
    assert_eq!(index.link_target(f), b"");
    assert_eq!(index.xattrs(f).count(), 0);
}

#[test]
fn warnings_are_bounded_and_of_one_line() {
    let name = hard_link("x\n\x1b[31m", "none");
    let index = index_of(&vec![name; 1000].concat()).unwrap();
    assert_eq!(index.warnings().len(), 101);
    assert_eq!(index.warnings()[0], "x  [31m: left out: a hard link to a name that is not there");
    assert_eq!(index.warnings()[100], "900 more warnings");
}

fn plain(path: Vec<u8>) -> Member {
    Member { path, ..only(&[file("a", b"hi")]) }
}

#[test]
fn a_large_directory_is_small_in_memory_and_quick_to_look_up() {
    let count = 1_000_000u32;
    let template = plain(Vec::new());
    let mut builder = LayerIndexBuilder::new(Limits::default());
    for n in 0..count {
        let path = format!("t30uxv/10000/DATA_S2/S2_{n:07}.npy").into_bytes();
        builder.push(Member { path, ..template.clone() }).unwrap();
    }
    let built = builder.memory() / u64::from(count);
    let index = builder.finish();
    let bytes = index.memory() / u64::from(count);
    assert!(bytes <= 100, "{bytes} bytes an entry");
    assert!(built <= 200, "{built} bytes an entry while it is built");
    let directory = [&b"t30uxv"[..], b"10000", b"DATA_S2"]
        .iter()
        .fold(LayerIndex::ROOT, |at, part| index.lookup(at, part).unwrap());
    let children = index.children(directory);
    assert_eq!(children.len(), count as usize);
    assert_eq!(index.name_of(&children[7]), b"S2_0000007.npy");
    for n in (0..count).step_by(977) {
        let name = format!("S2_{n:07}.npy");
        assert_eq!(index.lookup(directory, name.as_bytes()), Some(children[n as usize].entry()));
    }
}

#[test]
fn a_member_that_no_file_system_can_hold_is_left_out_and_told() {
    let named = |length: usize| extension(b'L', format!("d/{}", "n".repeat(length)).as_bytes());
    let path = |length: usize| extension(b'L', "nn/".repeat(length).as_bytes());
    let blob = [
        file("before", b"1"),
        [named(256), file("cut", &[7; 600])].concat(),
        [named(255), file("cut", b"longest")].concat(),
        [named(256), hard_link("cut", "before")].concat(),
        [path(1366), file("cut", &[7; 600])].concat(),
        [extension(b'K', &[b't'; 4096]), symlink("away", "")].concat(),
        [extension(b'K', &[b't'; 4095]), symlink("farthest", "")].concat(),
        [named(256), pax(b'x', &[("GNU.sparse.map", "10,3"), ("GNU.sparse.size", "20")]), file("cut", b"abc")].concat(),
        file("behind", b"2"),
    ];
    let target = "t".repeat(4095);
    let longest = "n".repeat(255);
    assert_eq!(
        tree(&blob),
        format!("f1 before=1\nf1 behind=2\nd755 d/\nf1 d/{longest}=longest\nl1 farthest->{target}")
    );
    let told = warnings(&blob);
    let name = format!("d/{}", "n".repeat(256));
    let part = format!("{name}: left out: a part of its name is longer than Linux allows");
    assert_eq!((&told[0], &told[1], &told[4]), (&part, &part, &part));
    assert!(told[2].starts_with("nn/nn/") && told[2].ends_with("…: left out: its path is longer than Linux allows"));
    assert_eq!(told[3], "away: left out: its target is longer than Linux allows");
    assert!(told.iter().all(|line| line.len() < 400) && told.len() == 5, "{told:?}");
}

#[test]
fn many_members_that_are_left_out_are_counted() {
    let blob: Vec<_> = (0..1000).flat_map(|n| [pax(b'x', &[("path", &format!("{n:0300}"))]), file("x", b"")]).collect();
    let told = warnings(&blob);
    assert_eq!((told.len(), told.last().map(String::as_str)), (101, Some("900 more warnings")));
}

#[test]
fn each_limit_is_named_when_it_is_reached() {
    let of = |limits: Limits, blocks: &[Vec<u8>]| {
        let mut builder = LayerIndexBuilder::new(limits);
        let found = members_of(&blocks.concat(), limits)
            .and_then(|(members, _)| members.into_iter().try_for_each(|member| builder.push(member)));
        match found {
            Err(ScanError::Limit { limit, .. }) => limit,
            other => panic!("{other:?}"),
        }
    };
    let usual = Limits::default();
    let long = |length: usize| extension(b'L', "n/".repeat(length / 2).as_bytes());
    assert_eq!(of(usual, &[pax(b'g', &[("path", &"n".repeat(4096))]), file("a", b"")]), "name_bytes");
    assert_eq!(of(usual, &[long(2050), file("a", b"")]), "depth");
    assert_eq!(of(usual, &[extension(b'x', &vec![0; (1 << 20) + 1])]), "pax_bytes");
    assert_eq!(of(usual, &[extension(b'L', &vec![0; (1 << 20) + 1])]), "pax_bytes");
    let xattr = pax(b'x', &[("SCHILY.xattr.user.a", &"x".repeat(128 << 10))]);
    assert_eq!(of(usual, &[xattr, file("a", b"")]), "xattr_bytes");

    let few = Limits { sparse_extents: 2, ..usual };
    let records = [("GNU.sparse.size", "60"), ("GNU.sparse.map", "0,1,2,1,4,1")];
    assert_eq!(of(few, &[pax(b'x', &records), file("a", b"xyz")]), "sparse_extents");
    let version = [("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "60")];
    assert_eq!(of(few, &[pax(b'x', &version), file("a", &filled(b"99999999999\n"))]), "sparse_extents");
    let piece = b"00000000001 00000000001 ";
    let header = Block::new("s", b'S', 0).gnu().put(483, b"00000100000\0");
    let header = (0..4).fold(header, |header, n| header.put(386 + 24 * n, piece));
    assert_eq!(of(few, &[header.sealed()]), "sparse_extents");

    let files: Vec<_> = (0..4).map(|n| file(format!("d{n}/f"), b"")).collect();
    assert_eq!(of(Limits { entries: 3, ..usual }, &files), "entries");
    assert_eq!(of(Limits { entries: 6, ..usual }, &files), "entries", "directories are entries, too");
    assert_eq!(of(Limits { index_bytes: 1000, ..usual }, &files), "index_bytes");
    let winding = [directory("d/"), symlink("s", &"d/../".repeat(10)), file("s/a", b""), file("s/b", b"")];
    assert_eq!(of(Limits { link_parts: 30, ..usual }, &winding), "link_parts");

    let mut chain = vec![directory("s0/")];
    chain.extend((0..5).map(|n| symlink(&format!("s{}", n + 1), &format!("s{n}"))));
    chain.push(file("s5/f", b""));
    let mut builder = LayerIndexBuilder::new(Limits { link_hops: 4, ..usual });
    for member in members(&chain) {
        builder.push(member).unwrap();
    }
    assert_eq!(builder.finish().warnings(), ["s5/f: replaces what stood where it needs a directory"]);
}

/// The archive is never there as a whole: its headers are made when they are asked for. `EO_MEASURE_ENTRIES=10000000`
/// makes it one of so many members, within 256 MiB; `--nocapture` shows what was resident.
#[test]
fn an_archive_of_too_many_members_is_refused_with_the_limits_name_before_memory_runs_out() {
    let count = std::env::var("EO_MEASURE_ENTRIES").map_or(100_000, |count| count.parse::<u64>().expect("a number"));
    let limits = Limits { index_bytes: (256 << 20) / (10_000_000 / count), ..Limits::default() };
    let mut indexer = Indexer::new(count * 512 + 1024, limits, Tuning::default(), Habits::default());
    indexer.arrived(&(0..0), bytes::Bytes::new()).expect("a start");
    let mut asked = 0;
    let error = loop {
        let range = indexer.requests(1).pop().expect("more to ask for");
        asked += range.end - range.start;
        let headers = (range.start / 512..range.end.div_ceil(512)).map(|n| match n < count {
            true => file(format!("t30uxv/{}/DATA_S2/S2_{n:08}.npy", n / 1000), b""),
            false => vec![0; 512],
        });
        let skip = (range.start % 512) as usize;
        let blocks = bytes::Bytes::from(headers.collect::<Vec<_>>().concat());
        let bytes = blocks.slice(skip..skip + (range.end - range.start) as usize);
        if let Err(error) = indexer.arrived(&range, bytes) {
            break error;
        }
    };
    assert!(matches!(error, ScanError::Limit { limit: "index_bytes", .. }), "{error}");
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).expect("the peak");
    println!("{count} members: {error}, after {asked} bytes; {peak}");
}
