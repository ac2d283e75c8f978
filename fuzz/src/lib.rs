//! What each fuzz target does with its input. Also a module of `tests/fuzz_corpus.rs`, which runs the targets over the
//! corpus. A target panics when a parser does not keep its word; an input that is refused is none of its business.

use std::collections::HashSet;
use std::ops::Range;

use bytes::Bytes;
use eo_mount::blob::content::{
    ContentLimits, FOOTER, Table, decode_progress, decode_table, encode_progress, encode_table, parse_table,
    table_length,
};
use eo_mount::index::{
    Content, EntryId, Habits, Indexer, Kind, LayerIndex, LayerIndexBuilder, Limits, Member, ScanError, Scanner,
    Segment, Step, StreamIndexer, Tuning, ZipIndex, ZipScanner, ZipStep, decode, encode, footer_length, read_footer,
};
use eo_mount::oci::Digest;
use sha2::Digest as _;
use xxhash_rust::xxh3::xxh3_64;

const BLOCK: usize = 512;

/// What may be reached by archives of this size, too.
fn limits() -> Limits {
    Limits { pax_bytes: 64 << 10, sparse_extents: 1000, entries: 10_000, index_bytes: 16 << 20, ..Limits::default() }
}

fn digest() -> Digest {
    Digest::sha256_of(b"fuzz")
}

/// Byte 0 says how the rest is an archive: see [`as_archive`]; byte 1 seeds the windows.
pub fn scanner(input: &[u8]) {
    let [how, seed, archive @ ..] = input else { return };
    let blob = as_archive(*how, archive);
    let whole = walk(&blob);
    let mut dice = Dice(u64::from(*seed));
    assert_eq!(in_windows(&blob, &mut dice), whole, "windows change what is found");
    if let Ok((members, _)) = &whole {
        check_members(members, blob.len() as u64);
    }
    let index = whole.and_then(|(members, trailing)| Ok(index_of(members)?.with_trailing(trailing)));
    match (index, as_stream(&blob, &mut dice)) {
        (Ok(index), Ok(streamed)) => {
            assert_eq!(format!("{index:?}"), format!("{streamed:?}"), "a stream is indexed otherwise");
            check_index(&index, blob.len() as u64);
            check_stored(&index, blob.len() as u64);
        }
        (Err(_), Err(_)) => {}
        (index, streamed) => panic!("a stream is seen otherwise: {:?} {:?}", index.err(), streamed.err()),
    }
}

/// Bytes 0 to 5 say how the indexer asks and in which order it is answered, the rest is the plan of two archives: what
/// is learnt in the first is expected of the second.
pub fn indexer(input: &[u8]) {
    let [free, smallest, largest, gap, seed, cut, plan @ ..] = input else { return };
    let free = 1 + usize::from(free % 20);
    let tuning = Tuning {
        smallest: 512 << (smallest % 6),
        largest: 4096 << (largest % 9),
        gap: if gap % 4 == 0 { 0 } else { 1024 << (gap % 9) },
        store: if gap % 8 == 0 { 0 } else { 1 << 20 },
    };
    let (first, second) = plan.split_at(plan.len() / 3);
    let mut dice = Dice(u64::from(*seed));
    let mut blob = planned(second);
    if cut % 4 == 1 {
        blob.truncate(blob.len() * usize::from(*cut) / 256);
    }
    let plain = walk(&blob).and_then(|(members, trailing)| Ok((format!("{:?}", index_of(members)?), trailing)));
    let blob = Bytes::from(blob);
    let learnt = drive(&planned(first).into(), tuning, Habits::default(), free, &mut dice).map(|found| found.2);
    for habits in [Some(Habits::default()), learnt.ok()].into_iter().flatten() {
        let guessed = drive(&blob, tuning, habits, free, &mut dice);
        assert_eq!(guessed.map(|(index, trailing, _)| (index, trailing)), plain, "guesses change what is found");
    }
}

/// Byte 0 is the kind of extension header, the rest its content, which a member follows; then that of a second one,
/// behind 0xFF 0xFF.
pub fn pax(input: &[u8]) {
    let [kind, content @ ..] = input else { return };
    let kind = b"xgLKX"[usize::from(kind % 5)];
    let mut blob = Vec::new();
    let cut = content.windows(2).position(|bytes| bytes == [0xff, 0xff]);
    let (first, second) = cut.map_or((content, None), |cut| (&content[..cut], Some(&content[cut + 2..])));
    blob.extend(header(kind, b"extension", first.len()));
    blob.extend(filled(first));
    if let Some(second) = second {
        blob.extend(header(b'x', b"extension", second.len()));
        blob.extend(filled(second));
    }
    blob.extend(header(b'0', b"member", 2000));
    blob.extend(filled(&[b"3\n0\n10\n20\n30\n1000\n5\n".to_vec(), vec![b'1'; 1980]].concat()));
    blob.extend(header(b'5', b"directory/", 0));
    blob.extend([0; 1024]);
    let whole = walk(&blob);
    assert_eq!(in_windows(&blob, &mut Dice(content.len() as u64)), whole, "windows change what is found");
    let Ok((members, _)) = whole else { return };
    check_members(&members, blob.len() as u64);
    if let Ok(index) = index_of(members) {
        check_index(&index, blob.len() as u64);
        check_stored(&index, blob.len() as u64);
    }
}

/// Byte 0: even, the rest is the blob; odd, the rest is a directory, to which a right end record is added, of the
/// 64-bit kind if the next bit is set.
pub fn zip(input: &[u8]) {
    let [how, rest @ ..] = input else { return };
    let mut blob = if how & 4 != 0 { vec![7; 1000] } else { Vec::new() };
    let start = blob.len() as u64;
    blob.extend_from_slice(rest);
    if how & 1 != 0 {
        let (at, size) = (blob.len() as u64, rest.len() as u64);
        if how & 2 != 0 {
            blob.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
            blob.extend([0; 16]);
            blob.extend([size.to_le_bytes(), start.to_le_bytes()].concat());
            blob.extend(b"PK\x06\x07\0\0\0\0");
            blob.extend(at.to_le_bytes());
            blob.extend(1_u32.to_le_bytes());
        }
        blob.extend(b"PK\x05\x06\0\0\0\0\0\0\0\0");
        blob.extend([(size as u32).to_le_bytes(), (start as u32).to_le_bytes()].concat());
        blob.extend([0; 2]);
    }
    let found = scan_zip(&blob, |range, _| range);
    let mut dice = Dice(blob.len() as u64);
    let again = scan_zip(&blob, |range, all| {
        range.start.saturating_sub(dice.below(300))..range.end.saturating_add(dice.below(300)).min(all)
    });
    match (found, again) {
        (Ok(found), Ok(again)) => {
            assert_eq!(format!("{found:?}"), format!("{again:?}"), "windows change what is found");
            let mut end = blob.len() as u64;
            for member in &found.members {
                assert!(member.place >= end, "places overlap");
                end = member.place.checked_add(member.size).expect("a place has an end");
                let past = member.header.checked_add(30).and_then(|at| at.checked_add(member.packed));
                let readable = !matches!(member.method, eo_mount::index::Method::Unreadable(_));
                assert!(!readable || past.is_some_and(|past| past <= blob.len() as u64), "{member:?}");
            }
            assert!(end <= found.end);
            check_index(&found.index, found.end);
            check_stored(&found.index, found.end);
        }
        (Err(found), Err(again)) => assert_eq!(found, again),
        (found, again) => panic!("windows change what is found: {:?} {:?}", found.err(), again.err()),
    }
}

/// Byte 0: even, the rest is the blob; odd, it is the table of a footer.
pub fn attached_index(input: &[u8]) {
    let [how, rest @ ..] = input else { return };
    let mut blob = rest.to_vec();
    if how & 1 == 1 {
        let table = &rest[..rest.len() - rest.len() % 136];
        let length = table.len() as u64;
        blob = [&0x184D_2A5E_u32.to_le_bytes()[..], &(length as u32 + 56).to_le_bytes(), table].concat();
        blob.extend(sha2::Sha256::digest(table));
        blob.extend([&length.to_le_bytes()[..], &1_u64.to_le_bytes(), b"\x89EOATT\r\n"].concat());
    }
    let Ok(length) = footer_length(&blob, &limits()) else { return };
    let Some(start) = (blob.len() as u64).checked_sub(length) else { return };
    let Ok(layers) = read_footer(&blob[start as usize..], blob.len() as u64, &limits(), |_| true) else { return };
    assert!(layers.len() as u64 <= limits().footer_bytes / 136);
    let piece = |range: &Range<u64>| {
        assert!(range.start <= range.end && range.end <= start, "{range:?} of {start}");
        &blob[range.start as usize..range.end as usize]
    };
    for layer in layers.values() {
        if let Ok(index) = layer.open_index(piece(&layer.index.range), &limits()) {
            assert!(index.len() as u64 <= limits().index_bytes);
            let _ = decode(&index, &digest(), layer.size, &limits());
        }
        if let Some(frame) = &layer.digests
            && let Ok(digests) = layer.open_digests(piece(&frame.range))
        {
            assert!(digests.get(layer.size.div_ceil(65_536)).is_none());
        }
    }
}

/// Byte 0: even, the rest stands for the file, with a right checksum; odd, it is flags, content size, counts and what
/// the compressed frame holds, of which a file is made.
pub fn stored_index(input: &[u8]) {
    let [how, rest @ ..] = input else { return };
    let (digest, size) = (digest(), 1 << 20);
    let mut file = Vec::new();
    if how & 1 == 0 {
        let _ = decode(rest, &digest, size, &limits());
        file.extend_from_slice(rest);
    } else {
        let Some((fixed, body)) = rest.split_at_checked(42) else { return };
        file.extend(b"\x89EOIDX\r\n\x01\0\0\0");
        file.extend([fixed[0], fixed[1], digest.as_str().len() as u8, 0]);
        file.extend(u64::to_le_bytes(size));
        let content = if fixed[0] == 0 { &size.to_le_bytes()[..] } else { &fixed[2..10] };
        file.extend_from_slice(content);
        file.extend_from_slice(&fixed[10..]);
        file.extend_from_slice(digest.as_str().as_bytes());
        file.extend(zstd::bulk::compress(body, 1).expect("a frame"));
    }
    file.extend(xxh3_64(&file).to_le_bytes());
    if let Ok((index, content)) = decode(&file, &digest, size, &limits()) {
        let content = match content {
            Content::Blob => size,
            Content::Unpacked { size } => size,
        };
        check_index(&index, content);
        assert!(index.memory() <= limits().index_bytes + (1 << 20), "{} bytes of memory", index.memory());
        let encoded = encode(&index, &digest, content, Content::Blob).expect("an index can be stored");
        let (again, _) = decode(&encoded, &digest, content, &limits()).expect("what was stored can be read");
        assert_eq!(format!("{again:?}"), format!("{index:?}"));
    }
}

/// Points and a trailer without its checksum, of a blob of 1 MiB.
pub fn checkpoints(input: &[u8]) {
    let (blob, size) = (digest(), 1 << 20);
    let _ = decode_table(input, &blob, size);
    let sum = sha2::Sha256::new().chain_update(blob.as_str()).chain_update(input).finalize();
    let file = [input, &sum[..]].concat();
    if let Some((compression, table)) = decode_table(&file, &blob, size) {
        check_table(&table, size);
        let side = input.len().checked_sub(16).and_then(|at| input[at..].first_chunk()).map(|n| u64::from_le_bytes(*n));
        let encoded = encode_table(&table, compression, side.expect("a trailer"), &blob);
        assert_eq!(decode_table(&encoded, &blob, size), Some((compression, table.clone())));
        // A pass that has come so far. What follows a length in the input's first byte is state and notes.
        let length = usize::from(input[0]);
        let hasher = input[..length.min(input.len())].to_vec();
        let progress =
            [b"EOPASS\0\x01", &(file.len() as u64).to_le_bytes()[..], &file, &[length as u8], input].concat();
        let sum = sha2::Sha256::new().chain_update(blob.as_str()).chain_update(&progress).finalize();
        if let Some((compression, progress)) = decode_progress(&[&progress, &sum[..]].concat(), &blob, size) {
            assert_eq!((&progress.table, &progress.hasher), (&table, &hasher));
            let encoded = encode_progress(&progress, compression, &blob);
            assert_eq!(decode_progress(&encoded, &blob, size), Some((compression, progress)));
        }
    }
}

/// The end of a blob that may bring a table of zstd frames along. Byte 0: even, as it is; odd, the rest is the table's
/// entries, which get a right frame around them.
pub fn seek_table(input: &[u8]) {
    let [how, rest @ ..] = input else { return };
    let entry = if how & 2 == 0 { 8 } else { 12 };
    let mut table = rest.to_vec();
    if how & 1 != 0 {
        let entries = &rest[..rest.len() / entry * entry];
        let count = (entries.len() / entry) as u32;
        table = [&0x184D_2A5E_u32.to_le_bytes()[..], &(entries.len() as u32 + 9).to_le_bytes(), entries].concat();
        table.extend(count.to_le_bytes());
        table.push(if entry == 12 { 0x80 } else { 0 });
        table.extend(0x8F92_EAB1_u32.to_le_bytes());
        assert_eq!(table_length(&table[table.len() - FOOTER as usize..]), Some(table.len() as u64));
    }
    let _ = table_length(&table);
    let packed: u64 = rest
        .chunks_exact(entry)
        .map(|entry| u64::from(u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]])))
        .sum();
    for size in [table.len() as u64, packed.saturating_add(table.len() as u64), u64::MAX] {
        let Some(frames) = parse_table(&table, size) else { continue };
        let sum: u64 = frames.iter().map(|frame| u64::from(frame.packed)).sum();
        assert_eq!(sum + table.len() as u64, size, "the frames fill the blob");
        if let Some(table) = Table::of_frames(&frames, &ContentLimits { points: 1000, ..ContentLimits::default() }) {
            assert!(frames.is_empty() || table.is_plausible(size));
            check_table(&table, size);
        }
    }
}

/// Every byte of content is in one segment, and each segment's bytes are in the blob.
fn check_table(table: &Table, blob_size: u64) {
    let mut at = 0;
    for segment in table.segments(0..table.content) {
        let point = table.points[segment.point];
        assert_eq!(point.content, at, "a gap before {segment:?}");
        assert!(at < segment.content_end && point.packed <= segment.packed_end && segment.packed_end <= blob_size);
        at = segment.content_end;
    }
    assert_eq!(at, table.content);
}

/// Bit 0: headers that are come upon get right checksums. Bits 1 and 2: zeros follow, so that members have room.
fn as_archive(how: u8, archive: &[u8]) -> Vec<u8> {
    let mut blob = archive.to_vec();
    blob.resize(blob.len() + [0, 1024, 40_000, 1_500_000][usize::from(how >> 1 & 3)], 0);
    if how & 1 != 0 {
        for _ in 0..64 {
            match walk(&blob) {
                Err(ScanError::Checksum { offset } | ScanError::NotTar { offset }) => {
                    let at = offset as usize;
                    let Some(block) = blob.get_mut(at..at + BLOCK) else { break };
                    seal(block);
                }
                _ => break,
            }
        }
    }
    blob
}

/// The members of an archive whose bytes are all at hand, and whether bytes follow it.
fn walk(blob: &[u8]) -> Result<(Vec<Member>, bool), ScanError> {
    let mut scanner = Scanner::new(blob.len() as u64, limits());
    let mut members = Vec::new();
    loop {
        match scanner.step(0, blob)? {
            Step::Need(range) => panic!("{range:?} is at hand"),
            Step::Member(member) => members.push(member),
            Step::End { trailing } => return Ok((members, trailing)),
        }
    }
}

/// The same through windows of any size around what is asked for, helpful or not.
fn in_windows(blob: &[u8], dice: &mut Dice) -> Result<(Vec<Member>, bool), ScanError> {
    let mut scanner = Scanner::new(blob.len() as u64, limits());
    let mut members = Vec::new();
    let (mut window, mut turns) = (0..0, 0);
    loop {
        match scanner.step(window.start, part(blob, &window))? {
            Step::Need(range) => {
                turns += 1;
                assert!(turns < 100 + blob.len() / 16, "it asks without an end");
                assert!(range.start < range.end && range.end <= blob.len() as u64, "{range:?}");
                let useless = dice.below(8) == 0;
                let start = range.start.saturating_sub(dice.below(2000));
                let end = if useless { range.start + dice.below(512) } else { range.end + dice.below(4000) };
                window = start..end.min(blob.len() as u64);
            }
            Step::Member(member) => members.push(member),
            Step::End { trailing } => return Ok((members, trailing)),
        }
    }
}

fn as_stream(blob: &[u8], dice: &mut Dice) -> Result<LayerIndex, ScanError> {
    let mut indexer = StreamIndexer::new(limits());
    let mut at = 0;
    let largest = 1 + dice.below(1 + blob.len() as u64 / 20);
    while at < blob.len() as u64 {
        let end = (at + 1 + dice.below(largest)).min(blob.len() as u64);
        indexer.push(at, part(blob, &(at..end)))?;
        at = end;
    }
    let streamed = indexer.finish(at)?;
    Ok(streamed.index.with_trailing(streamed.trailing))
}

fn index_of(members: Vec<Member>) -> Result<LayerIndex, ScanError> {
    let mut builder = LayerIndexBuilder::new(limits());
    members.into_iter().try_for_each(|member| builder.push(member))?;
    Ok(builder.finish())
}

/// Members are inside of the blob, behind each other, and their data lies in them.
fn check_members(members: &[Member], size: u64) {
    let mut end = 0;
    for member in members {
        assert!(member.header >= end && member.header < member.data.start, "{member:?}");
        assert!(member.data.start <= member.data.end && member.data.end <= member.next, "{member:?}");
        assert!(member.data.end <= size, "{member:?} ends behind byte {size}");
        let mut pos = 0;
        for extent in member.sparse.iter().flatten() {
            assert!(extent.offset >= pos && extent.length > 0, "{member:?}");
            pos = extent.offset.checked_add(extent.length).expect("an extent has an end");
            assert!(pos <= member.size, "{member:?}");
            let blob = extent.blob..extent.blob.checked_add(extent.length).expect("data has an end");
            assert!(member.data.start <= blob.start && blob.end <= member.data.end, "{member:?}");
        }
        end = member.next;
    }
}

/// Each entry is reached from the root, is found by its name, and has its bytes in the content.
fn check_index(index: &LayerIndex, content_size: u64) {
    let mut waiting = vec![LayerIndex::ROOT];
    let mut seen = HashSet::from([LayerIndex::ROOT]);
    while let Some(directory) = waiting.pop() {
        let mut before: Option<&[u8]> = None;
        for child in index.children(directory) {
            let (id, name) = (child.entry(), index.name_of(child));
            assert!(before < Some(name), "names are in order");
            assert!(
                !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/')),
                "{name:?}"
            );
            assert_eq!(index.lookup(directory, name), Some(id));
            before = Some(name);
            let entry = index.entry(id).expect("a name stands for an entry");
            if entry.kind == Kind::Directory {
                assert_eq!(index.parent(id), directory);
                assert!(!seen.contains(&id), "a directory has one name");
                waiting.push(id);
            }
            if seen.insert(id) {
                check_entry(index, id, content_size);
            }
        }
    }
    assert_eq!(seen.len(), index.len(), "each entry has a name");
}

fn check_entry(index: &LayerIndex, id: EntryId, content_size: u64) {
    let entry = index.entry(id).expect("an entry");
    assert_eq!(index.xattrs(id).count(), index.xattrs(id).map(|(name, _)| name).collect::<Vec<_>>().len());
    assert!(!index.link_target(id).contains(&0));
    let mut length = 0_u64;
    for segment in index.segments(id, 0..u64::MAX) {
        length += match segment {
            Segment::Data(range) => {
                assert!(range.start <= range.end && range.end <= content_size, "{range:?} of {content_size}");
                range.end - range.start
            }
            Segment::Hole(length) => length,
        };
    }
    assert_eq!(length, if entry.kind == Kind::File { entry.size } else { 0 });
}

/// What was built can be stored, and is read back as it was.
fn check_stored(index: &LayerIndex, content_size: u64) {
    let bytes = encode(index, &digest(), content_size, Content::Blob).expect("an index can be stored");
    let (again, _) = decode(&bytes, &digest(), content_size, &limits()).expect("what was stored can be read");
    assert_eq!(shown(&again), shown(index));
}

/// All that can be asked of an index.
fn shown(index: &LayerIndex) -> String {
    let entries = (0..index.len() as u32).map(EntryId).map(|id| {
        let names: Vec<_> = index.children(id).iter().map(|child| (index.name_of(child), child.entry())).collect();
        let xattrs: Vec<_> = index.xattrs(id).collect();
        let segments: Vec<_> = index.segments(id, 0..u64::MAX).collect();
        format!("{:?}\n", (index.entry(id), names, index.parent(id), index.link_target(id), xattrs, segments))
    });
    format!("{}{:?}{}", entries.collect::<String>(), index.warnings(), index.trailing())
}

/// Brings what the indexer asks for, in any order.
fn drive(
    blob: &Bytes,
    tuning: Tuning,
    habits: Habits,
    free: usize,
    dice: &mut Dice,
) -> Result<(String, bool, Habits), ScanError> {
    let mut indexer = Indexer::new(blob.len() as u64, limits(), tuning, habits);
    let mut under_way: Vec<Range<u64>> = Vec::new();
    let mut asked = 0;
    indexer.arrived(&(0..0), Bytes::new())?;
    while !indexer.is_done() {
        let requests = indexer.requests(free - under_way.len());
        assert!(requests.len() + under_way.len() <= free, "more requests than there is room for");
        for range in &requests {
            assert!(range.start < range.end && range.end <= blob.len() as u64, "{range:?}");
        }
        asked += requests.len();
        assert!(asked < 1000 + blob.len() / 64, "it asks without an end");
        under_way.extend(requests);
        assert!(!under_way.is_empty(), "it waits for nothing");
        let range = under_way.remove(dice.below(under_way.len() as u64) as usize);
        indexer.arrived(&range, blob.slice(range.start as usize..range.end as usize))?;
    }
    let (index, trailing, habits) = indexer.finish().expect("it is done");
    Ok((format!("{index:?}"), trailing, habits))
}

/// An archive from a plan: four bytes a step, of which the first is the kind and the second the name.
fn planned(plan: &[u8]) -> Vec<u8> {
    const LARGEST: usize = 1 << 20;
    let mut blob = Vec::new();
    let mut steps: Vec<[u8; 4]> = Vec::new();
    let mut rest = plan;
    while let Some((step, behind)) = rest.split_first_chunk::<4>() {
        rest = behind;
        let [kind, name, a, b] = *step;
        match kind % 16 {
            // The last steps once more, some times.
            0 | 1 => {
                let last = steps[steps.len() - steps.len().min(1 + usize::from(name % 16))..].to_vec();
                for _ in 0..a {
                    for step in &last {
                        write(&mut blob, *step, steps.len());
                        steps.push(*step);
                    }
                    if blob.len() > LARGEST {
                        break;
                    }
                }
            }
            // What follows in the plan, as it is.
            2 => {
                let length = rest.len().min(usize::from(a) * 4);
                blob.extend(filled(&rest[..length]));
                rest = &rest[length..];
            }
            // A byte becomes another.
            3 if !blob.is_empty() => {
                let at = (usize::from(name) << 8 | usize::from(a)) * (1 + blob.len() / (1 << 16)) % blob.len();
                blob[at] ^= b;
            }
            4 => blob.resize(blob.len() + usize::from(a % 8) * BLOCK, 0),
            _ => {
                write(&mut blob, *step, steps.len());
                steps.push(*step);
            }
        }
        if blob.len() > LARGEST || steps.len() > 800 {
            break;
        }
    }
    blob.extend([0; 1024]);
    blob
}

fn write(blob: &mut Vec<u8>, [kind, name, a, b]: [u8; 4], number: usize) {
    let size = usize::from(a) << 8 | usize::from(b);
    let size = match kind >> 5 & 3 {
        0 => usize::from(a),
        1 => size,
        2 => size / 2,
        _ => usize::from(a) * 256,
    };
    let path = format!("d{}/{}{number}", name % 3, ["S2_", "x", "very/deep/", ""][usize::from(name >> 2 & 3)]);
    match kind % 16 {
        5 => blob.extend(header(b'5', format!("dir{name}/").as_bytes(), 0)),
        6 | 7 => {
            let record = format!("{} path=p/{path}\n", path.len() + 11);
            let record = if kind % 16 == 6 { record } else { "13 mtime=1.5\n".to_owned() };
            blob.extend(header(b'x', b"././@PaxHeader", record.len()));
            blob.extend(filled(record.as_bytes()));
            blob.extend(header(b'0', path.as_bytes(), size));
            blob.resize(blob.len() + size.next_multiple_of(BLOCK), name);
        }
        8 => {
            blob.extend(header(b'g', b"global", 13));
            blob.extend(filled(b"13 mtime=2.5\n"));
        }
        // Archives in an archive look like members to whoever searches for them.
        9 => {
            let inner = [header(b'0', b"inner", size), vec![1; size.next_multiple_of(BLOCK)], vec![0; 1024]].concat();
            blob.extend(header(b'0', path.as_bytes(), inner.len()));
            blob.extend(inner);
        }
        10 => blob.extend(header(b'2', path.as_bytes(), 0)),
        _ => {
            blob.extend(header(b'0', path.as_bytes(), size));
            blob.resize(blob.len() + size.next_multiple_of(BLOCK), name);
        }
    }
}

fn scan_zip(
    blob: &[u8],
    mut widened: impl FnMut(Range<u64>, u64) -> Range<u64>,
) -> Result<ZipIndex, eo_mount::index::ZipError> {
    let mut scanner = ZipScanner::new(blob.len() as u64, limits());
    let (mut window, mut turns) = (0..0, 0);
    loop {
        match scanner.step(window.start, part(blob, &window))? {
            ZipStep::Need(range) => {
                turns += 1;
                assert!(turns < 100 + blob.len(), "it asks without an end");
                assert!(!range.is_empty() && range.end <= blob.len() as u64, "{range:?}");
                window = widened(range, blob.len() as u64);
            }
            ZipStep::Link(member) => {
                assert!(member.size <= limits().name_bytes);
                scanner.link(Some(b"target"))?;
            }
            ZipStep::End(index) => return Ok(*index),
        }
    }
}

fn part<'a>(blob: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    &blob[range.start as usize..range.end as usize]
}

fn header(flag: u8, name: &[u8], size: usize) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, b"0000644\0" as &[u8]);
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000001750\0");
    put(156, &[flag]);
    put(157, if flag == b'2' { b"target" } else { b"" });
    put(257, b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn filled(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// Small numbers from a seed, always the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit.max(1)
    }
}
