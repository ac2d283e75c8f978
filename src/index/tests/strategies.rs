//! Whatever is guessed, and in whatever order bytes arrive: the index is that of a plain walk.

use bytes::Bytes;

use super::*;

/// What an indexing took.
#[derive(Debug, Default)]
struct Cost {
    requests: usize,
    bytes: usize,
    longest: u64,
    /// Times that something was waited for, if all that was asked for together arrives together.
    round_trips: usize,
}

/// Fetches what the indexer asks for, `free` at a time; `pick` says which arrives next.
fn drive(
    blob: &[u8],
    tuning: Tuning,
    habits: Habits,
    free: usize,
    mut pick: impl FnMut(usize) -> usize,
) -> Result<(LayerIndex, bool, Habits, Cost), ScanError> {
    let mut indexer = Indexer::new(blob.len() as u64, Limits::default(), tuning, habits);
    let mut under_way: Vec<std::ops::Range<u64>> = Vec::new();
    let mut cost = Cost::default();
    indexer.arrived(&(0..0), Bytes::new())?;
    while !indexer.is_done() {
        let requests = indexer.requests(free - under_way.len());
        assert!(requests.len() + under_way.len() <= free);
        for range in &requests {
            assert!(range.start < range.end && range.end <= blob.len() as u64, "{range:?}");
            assert!(range.end - range.start <= tuning.largest.max(1 << 20), "{range:?}");
            cost.requests += 1;
            cost.bytes += (range.end - range.start) as usize;
        }
        under_way.extend(requests);
        assert!(!under_way.is_empty(), "it waits for nothing");
        let range = under_way.remove(pick(under_way.len()) % under_way.len());
        cost.round_trips += 1;
        indexer.arrived(&range, Bytes::copy_from_slice(&blob[range.start as usize..range.end as usize]))?;
    }
    let (index, trailing, habits) = indexer.finish().unwrap();
    Ok((index, trailing, habits, cost))
}

/// As if everything that is under way arrives in one round trip.
fn drive_in_turns(blob: &[u8], habits: Habits, free: usize) -> (LayerIndex, Habits, Cost) {
    let mut indexer = Indexer::new(blob.len() as u64, Limits::default(), Tuning::default(), habits);
    let mut cost = Cost::default();
    indexer.arrived(&(0..0), Bytes::new()).unwrap();
    while !indexer.is_done() {
        let requests = indexer.requests(free);
        cost.round_trips += 1;
        for range in requests {
            cost.requests += 1;
            cost.bytes += (range.end - range.start) as usize;
            cost.longest = cost.longest.max(range.end - range.start);
            indexer.arrived(&range, Bytes::copy_from_slice(&blob[range.start as usize..range.end as usize])).unwrap();
        }
    }
    let (index, _, habits) = indexer.finish().unwrap();
    (index, habits, cost)
}

fn walk(blob: &[u8]) -> Result<(LayerIndex, bool), ScanError> {
    let mut scanner = Scanner::new(blob.len() as u64, Limits::default());
    let mut builder = LayerIndexBuilder::new(Limits::default());
    loop {
        match scanner.step(0, blob)? {
            Step::Need(range) => panic!("{range:?} is in the blob"),
            Step::Member(member) => builder.push(member)?,
            Step::End { trailing } => return Ok((builder.finish(), trailing)),
        }
    }
}

fn dump(index: &LayerIndex) -> String {
    format!("{index:?}")
}

/// Members of a patch, and their data's sizes as published.
const PATCH: [(&str, usize); 8] = [
    ("S2", 14_090_368),
    ("S1A", 6_389_888),
    ("S1D", 6_881_408),
    ("SPOT", 4_919_414),
    ("TARGET", 49_280),
    ("ParcelIDs", 131_200),
    ("INSTANCES", 131_200),
    ("HEATMAP", 131_200),
];

/// Patches of eight members, as in a tile; data divided by `scale`.
fn tile(patches: usize, scale: usize) -> Vec<u8> {
    let mut blob = Vec::new();
    for patch in 0..patches {
        for (name, size) in PATCH {
            blob.extend(pax(b'x', &[("mtime", "1700000000.123456")]));
            blob.extend(file(format!("t30uxv/{}/{name}_{patch}.npy", 10_000 + patch), &vec![7; size / scale]));
        }
    }
    blob.extend(end());
    blob
}

#[test]
fn a_tile_whose_members_recur_takes_few_round_trips() {
    let blob = tile(40, 16);
    let (plain, _) = walk(&blob).unwrap();
    let (index, habits, cost) = drive_in_turns(&blob, Habits::default(), 16);
    assert_eq!(dump(&index), dump(&plain));
    assert!(cost.round_trips < 20, "{cost:?}");
    // A sibling of it is expected from its first byte on.
    let (index, _, cost) = drive_in_turns(&tile(1, 16), habits, 16);
    assert_eq!(index.len(), walk(&tile(1, 16)).unwrap().0.len());
    assert!(cost.round_trips <= 3 && cost.requests <= 10, "{cost:?}");
}

#[test]
fn a_tile_of_17_gb_takes_hardly_more_than_four_requests_a_patch() {
    // Headers by their offsets; zeros for data.
    let (mut headers, mut size) = (std::collections::BTreeMap::new(), 0);
    for patch in 0..531 {
        for (name, length) in PATCH {
            let name = format!("t30uxv/{}/{name}_{patch}.npy", 10_000 + patch);
            headers.insert(size, Block::new(name, b'0', length).sealed());
            size += 512 + length.next_multiple_of(512);
        }
    }
    size += 1024;
    let read = |range: &std::ops::Range<u64>| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let (start, end) = (range.start as usize, range.end as usize);
        for (at, header) in headers.range(start.saturating_sub(511)..end) {
            let (from, to) = (start.max(*at), end.min(at + 512));
            bytes[from - start..to - start].copy_from_slice(&header[from - at..to - at]);
        }
        Bytes::from(bytes)
    };
    let mut indexer = Indexer::new(size as u64, Limits::default(), Tuning::default(), Habits::default());
    let mut under_way = std::collections::VecDeque::new();
    let (mut requests, mut bytes) = (0, 0);
    indexer.arrived(&(0..0), Bytes::new()).unwrap();
    while !indexer.is_done() {
        under_way.extend(indexer.requests(16 - under_way.len()));
        let range = under_way.pop_front().unwrap();
        (requests, bytes) = (requests + 1, bytes + range.end - range.start);
        indexer.arrived(&range, read(&range)).unwrap();
    }
    assert_eq!(indexer.finish().unwrap().0.len(), 531 * 9 + 2);
    assert!(requests < 531 * 4 + 16 && bytes < 250_000_000, "{requests} requests, {bytes} bytes");
}

#[test]
fn the_end_of_a_tile_comes_in_one_request() {
    let mut blob = tile(40, 64);
    // GNU tar and Python fill the last 10 KiB up.
    let members = blob.len() as u64 - 1024;
    blob.resize(blob.len() + 9 * 1024, 0);
    let mut indexer = Indexer::new(blob.len() as u64, Limits::default(), Tuning::default(), Habits::default());
    let mut behind_all = 0;
    indexer.arrived(&(0..0), Bytes::new()).unwrap();
    while !indexer.is_done() {
        for range in indexer.requests(16) {
            behind_all += usize::from(range.end > members);
            indexer.arrived(&range, Bytes::copy_from_slice(&blob[range.start as usize..range.end as usize])).unwrap();
        }
    }
    assert_eq!(behind_all, 1);
}

#[test]
fn small_members_are_fetched_as_a_stream() {
    let mut blob = Vec::new();
    for n in 0..20_000_usize {
        blob.extend(file(format!("{}/{n}", n % 7), &vec![1; (n * 7919) % 2000]));
    }
    blob.extend(end());
    let (index, _, cost) = drive_in_turns(&blob, Habits::default(), 8);
    assert_eq!(dump(&index), dump(&walk(&blob).unwrap().0));
    assert!(cost.bytes < blob.len() * 13 / 10, "{cost:?} for {}", blob.len());
    assert!(cost.requests < 100 && cost.round_trips < 15, "{cost:?}");
    assert!(cost.longest <= 512 << 10, "as many at once as there may be: {cost:?}");
}

#[test]
fn an_archive_that_nobody_can_expect_is_walked_by_many() {
    let mut blob = Vec::new();
    let mut random: u64 = 1;
    for n in 0..400 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        blob.extend(file(format!("{n}"), &vec![0; 1000 + (random >> 44) as usize % 400_000]));
    }
    blob.extend(end());
    let (index, _, cost) = drive_in_turns(&blob, Habits::default(), 16);
    assert_eq!(dump(&index), dump(&walk(&blob).unwrap().0));
    assert!(cost.round_trips < 130, "{cost:?}");
}

#[test]
fn habits_of_a_quite_different_archive_do_no_harm() {
    let (_, _, habits, _) = drive(&tile(3, 64), Tuning::default(), Habits::default(), 4, |_| 0).unwrap();
    let mut blob: Vec<u8> = (0..30).flat_map(|n| file(format!("t30uxv/{n}/S2_{n}.npy"), &vec![9; n * 3000])).collect();
    blob.extend(end());
    let (index, ..) = drive(&blob, Tuning::default(), habits, 4, |n| n - 1).unwrap();
    assert_eq!(dump(&index), dump(&walk(&blob).unwrap().0));
}

#[derive(Debug, Clone)]
enum Thing {
    File(usize, usize),
    Pax(usize),
    Directory(usize),
    LinkWithData(usize),
    TooLong(usize),
    ArchiveInside,
}

fn archive(things: &[Thing]) -> Vec<u8> {
    let mut blob = Vec::new();
    for (n, thing) in things.iter().enumerate() {
        match thing {
            Thing::File(name, size) => blob.extend(file(format!("d{}/f{name}_{n}", n % 3), &vec![n as u8; *size])),
            Thing::Pax(size) => {
                blob.extend(pax(b'x', &[("mtime", "1.5"), ("path", &format!("p/{n}"))]));
                blob.extend(file("cut", &vec![n as u8; *size]));
            }
            Thing::Directory(name) => blob.extend(directory(&format!("dir{name}/"))),
            Thing::LinkWithData(size) => {
                blob.extend(Block::new(format!("l{n}"), b'1', *size).link("p/0").with(&vec![1; *size]));
            }
            Thing::TooLong(size) => {
                blob.extend(pax(b'x', &[("path", &"n".repeat(256))]));
                blob.extend(file("cut", &vec![n as u8; *size]));
            }
            Thing::ArchiveInside => {
                blob.extend(file(
                    format!("inside{n}.tar"),
                    &[file("a", &[1; 3000]), file("b", &[2; 70_000]), end()].concat(),
                ));
            }
        }
    }
    blob.extend(end());
    blob
}

fn things() -> impl Strategy<Value = Vec<Thing>> {
    let size = prop_oneof![2 => Just(5000_usize), 2 => Just(200_000), 1 => 0..300_000_usize, 1 => 0..3000_usize];
    let thing = prop_oneof![
        4 => (0..3_usize, size.clone()).prop_map(|(name, size)| Thing::File(name, size)),
        2 => size.clone().prop_map(Thing::Pax),
        1 => size.clone().prop_map(Thing::LinkWithData),
        1 => size.prop_map(Thing::TooLong),
        1 => (0..3_usize).prop_map(Thing::Directory),
        1 => Just(Thing::ArchiveInside),
    ];
    let period = prop::collection::vec(thing, 1..12);
    (period, 1..20_usize)
        .prop_map(|(period, times)| period.iter().cycle().take(period.len() * times).cloned().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_strategy_makes_the_index_of_a_plain_walk(
        things in things(),
        other in things(),
        free in 1..20_usize,
        smallest in prop_oneof![Just(512_u64), Just(16 << 10)],
        largest in prop_oneof![Just(4096_u64), Just(64 << 10), Just(1 << 20)],
        gap in prop_oneof![Just(0_u64), Just(256 << 10)],
        store in prop_oneof![Just(0_u64), Just(64 << 20)],
        order in prop::collection::vec(any::<usize>(), 1..50),
        cut in prop::option::of(0.0..1.0_f64),
    ) {
        let mut blob = archive(&things);
        if let Some(cut) = cut {
            blob.truncate((blob.len() as f64 * cut) as usize);
        }
        let tuning = Tuning { smallest, largest, gap, store };
        let learnt = drive(&archive(&other), tuning, Habits::default(), free, |_| 0).unwrap().2;
        let plain = walk(&blob);
        for habits in [Habits::default(), learnt] {
            let mut turns = order.iter().cycle();
            let guessed = drive(&blob, tuning, habits, free, |_| *turns.next().unwrap());
            match (&plain, guessed) {
                (Ok((plain, trailing)), Ok((index, guessed_trailing, ..))) => {
                    prop_assert_eq!(dump(&index), dump(plain));
                    prop_assert_eq!(guessed_trailing, *trailing);
                }
                (Err(plain), Err(error)) => prop_assert_eq!(&error, plain),
                (plain, guessed) => prop_assert!(false, "{:?} {:?}", plain.as_ref().err(), guessed.err()),
            }
        }
    }
}
