use std::io::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use tokio::runtime::{EnterGuard, Runtime};

use super::*;
use crate::cache::CacheFolder;
use crate::oci::Digest;

struct Held {
    bytes: Vec<u8>,
    given: AtomicU64,
}

impl BlobSource for Held {
    fn read<'a>(&'a self, _blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        self.given.fetch_add(range.end - range.start, Ordering::Relaxed);
        let bytes = Bytes::copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
        std::future::ready(Ok(bytes)).boxed()
    }
}

#[derive(Default)]
struct Gather(Vec<u8>);

impl Sink for Gather {
    fn content(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        assert_eq!(at, self.0.len() as u64);
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn notes(&mut self) -> Option<Vec<u8>> {
        Some(self.0.len().to_le_bytes().to_vec())
    }
}

fn descriptor(packed: &[u8]) -> Descriptor {
    Descriptor {
        digest: Digest::sha256_of(packed),
        size: packed.len() as u64,
        media_type: String::new(),
        annotations: Default::default(),
    }
}

/// Where side files are read and written, as in a mount.
fn threads() -> EnterGuard<'static> {
    static THREADS: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    THREADS.enter()
}

fn side() -> Side {
    let folder = CacheFolder::open(&std::env::temp_dir(), None).unwrap();
    let (file, space) = folder.unnamed_file().unwrap();
    Side::file(file, space, folder.turns().clone())
}

fn pass(packed: &[u8], compression: Compression, limits: ContentLimits, side: Side) -> Result<(Content, Arc<Held>)> {
    let _threads = threads();
    let blob = descriptor(packed);
    let mut pass = Pass::new(blob.clone(), compression, limits, side)?;
    let mut sink = Gather::default();
    for bytes in packed.chunks(1_000_003) {
        pass.feed(bytes, &mut sink)?;
    }
    let made = pass.finish()?;
    assert!(made.0.is_plausible(blob.size));
    assert_eq!(made.0.content, sink.0.len() as u64);
    let held = Arc::new(Held { bytes: packed.to_vec(), given: AtomicU64::new(0) });
    Ok((Content::new(held.clone(), blob, compression, limits, made), held))
}

/// Half of it can be compressed.
fn sample(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = state.to_le_bytes();
        bytes.extend_from_slice(if state.is_multiple_of(3) { &word } else { b"an array" });
    }
    bytes.truncate(length);
    bytes
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

fn zstd_frames(content: &[u8], frame: usize) -> Vec<u8> {
    content.chunks(frame).flat_map(|frame| zstd::bulk::compress(frame, 1).unwrap()).collect()
}

fn bzip2(content: &[u8]) -> Vec<u8> {
    let mut writer = ::bzip2::write::BzEncoder::new(Vec::new(), ::bzip2::Compression::fast());
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

fn xz(content: &[u8]) -> Vec<u8> {
    let mut writer = liblzma::write::XzEncoder::new(Vec::new(), 0);
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

/// Each with the most bytes of blob that a read of one byte may cost.
fn all_forms(content: &[u8]) -> Vec<(&'static str, Compression, Vec<u8>, u64)> {
    let bgzip = content.chunks(60_000).flat_map(gzip).collect();
    vec![
        ("gzip", Compression::Gzip, gzip(content), 2 << 20),
        ("small members", Compression::Gzip, bgzip, 1 << 20),
        ("joined", Compression::Gzip, [gzip(&content[..100]), gzip(&content[100..])].concat(), 2 << 20),
        ("one frame", Compression::Zstd, zstd_frames(content, content.len()), 2 << 20),
        ("frames", Compression::Zstd, zstd_frames(content, 3_000_000), 5 << 18),
        ("bzip2", Compression::Bzip2, bzip2(content), 0),
        ("bzip2, joined", Compression::Bzip2, [bzip2(&content[..100]), bzip2(&content[100..])].concat(), 0),
        ("xz", Compression::Xz, xz(content), 0),
        ("xz, joined", Compression::Xz, [xz(&content[..100]), xz(&content[100..])].concat(), 0),
    ]
}

async fn read(content: &Content, range: Range<u64>) -> Result<Bytes> {
    content.read(&descriptor(b""), range).await
}

#[tokio::test]
async fn any_range_is_what_one_pass_gives_and_costs_one_distance() {
    let plain = sample(6 << 20);
    for (name, compression, packed, cost) in all_forms(&plain) {
        let (content, held) = pass(&packed, compression, ContentLimits::default(), side()).unwrap();
        assert_eq!(content.size(), plain.len() as u64, "{name}");
        let mut state = 1_u64;
        for _ in 0..12 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let start = (state >> 20) % (plain.len() as u64 - 300_000);
            let range = start..start + [1, 4096, 131_072, 300_000][(state >> 60) as usize % 4];
            held.given.store(0, Ordering::Relaxed);
            let bytes = read(&content, range.clone()).await.unwrap();
            assert!(bytes == plain[range.start as usize..range.end as usize], "{name} {range:?}");
            let segments = content.decoding.table.segments(range.clone()).count() as u64;
            let given = held.given.load(Ordering::Relaxed);
            assert!(given <= cost * segments, "{name} {range:?}: {given} bytes");
        }
        let all = read(&content, 0..content.size()).await.unwrap();
        assert!(all == plain, "{name}");
        assert!(read(&content, 1..content.size() + 1).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn a_seek_table_that_lies_is_found_out() {
    let plain = sample(300_000);
    let frames: Vec<_> = plain.chunks(100_000).map(|frame| zstd::bulk::compress(frame, 1).unwrap()).collect();
    let packed = frames.concat();
    let table = |lengths: [u32; 3]| {
        let sizes =
            frames.iter().zip(lengths).map(|(frame, content)| FrameSize { packed: frame.len() as u32, content });
        let held = Arc::new(Held { bytes: packed.clone(), given: AtomicU64::new(0) });
        Content::of_frames(held, descriptor(&packed), ContentLimits::default(), &sizes.collect::<Vec<_>>())
    };
    let honest = table([100_000; 3]).unwrap();
    assert!(read(&honest, 50_000..250_000).await.unwrap() == plain[50_000..250_000]);
    for lie in [[100_001, 99_999, 100_000], [99_999, 100_001, 100_000], [100_000, 100_000, 7]] {
        let lying = table(lie).unwrap();
        let error = read(&lying, 0..lying.size()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{lie:?}: {error}");
    }
    assert!(table([100_000, 9 << 20, 100_000]).is_none());
}

#[tokio::test]
async fn a_damaged_window_is_replaced_by_an_earlier_one() {
    let plain = sample(12 << 20);
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(&plain).unwrap();
    let (content, _) = pass(&writer.finish().unwrap(), Compression::Gzip, ContentLimits::default(), side()).unwrap();
    let file = content.decoding.side.as_file().unwrap();
    let damaged = std::os::unix::fs::FileExt::write_all_at(file, &[0xff; 60_000], 20_000);
    damaged.unwrap();
    let all = read(&content, 0..content.size()).await.unwrap();
    assert!(all == plain);
}

#[test]
fn more_reads_at_once_than_there_are_threads_find_their_windows() {
    let plain = sample(3 << 20);
    let packed = gzip(&plain);
    let (content, held) = pass(&packed, Compression::Gzip, ContentLimits::default(), side()).unwrap();
    let Decoding { table, side, blob, .. } = content.decoding.as_ref();
    // One knows what it is decoding: each reads for itself.
    let each = |_| {
        let made = (table.clone(), Arc::clone(side));
        Content::new(held.clone(), blob.clone(), Compression::Gzip, ContentLimits::default(), made)
    };
    let all: Vec<_> = (0..100).map(each).collect();
    let few = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(80).enable_all().build().unwrap();
    let last = plain.len() as u64 - 1..plain.len() as u64;
    few.block_on(async {
        let found = futures_util::future::join_all(all.iter().map(|content| read(content, last.clone()))).await;
        assert!(found.into_iter().all(|byte| byte.unwrap() == plain[last.start as usize..]));
    });
}

#[test]
fn each_limit_is_reached_and_named() {
    let zeros = vec![0; 4 << 20];
    let default = ContentLimits::default();
    for (limits, name) in [
        (ContentLimits { content_bytes: 1 << 20, ..default }, "content_bytes of 1048576"),
        (ContentLimits { expansion: 50, expansion_from: 1 << 20, ..default }, "expansion of 50"),
        (ContentLimits { points: 2, ..default }, "points of 2"),
    ] {
        for (form, compression, packed, _) in all_forms(&zeros) {
            if name.starts_with("points") && !matches!(form, "bzip2" | "xz") {
                continue;
            }
            let Err(error) = pass(&packed, compression, limits, side()) else { panic!("{form}: {name}") };
            assert_eq!(error.kind, ErrorKind::Limit, "{form}: {error}");
            assert!(error.to_string().contains(name), "{form}: {error}");
        }
    }
    let small = ContentLimits { window_bytes: 1 << 20, ..default };
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(23).unwrap();
    wide.write_all(&sample(9 << 20)).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
    xz.write_all(&zeros).unwrap();
    let wide_xz = xz.finish().unwrap();
    for (compression, packed) in [(Compression::Zstd, wide.finish().unwrap()), (Compression::Xz, wide_xz)] {
        let error = pass(&packed, compression, small, side()).err().unwrap();
        assert!(error.to_string().contains("window_bytes of 1048576"), "{compression:?}: {error}");
    }
}

/// Broken off after each megabyte, by which the side file has grown further than what is known of it.
#[tokio::test]
async fn a_pass_goes_on_from_the_progress_of_another() {
    let _threads = threads();
    let plain = sample(12 << 20);
    let limits = ContentLimits::default();
    for (name, compression, packed, _) in all_forms(&plain) {
        let blob = descriptor(&packed);
        let reopened = |pass: &Pass| {
            let folder = CacheFolder::open(&std::env::temp_dir(), None).unwrap();
            let file = pass.side().as_file().unwrap().try_clone().unwrap();
            Side::file(file, folder.unnamed_file().unwrap().1, folder.turns().clone())
        };
        let mut pass = Pass::new(blob.clone(), compression, limits, side()).unwrap();
        let (mut at, mut from, mut turns) = (0, 0, 0);
        while at < packed.len() {
            let end = packed.len().min(at + 1_000_003);
            let mut sink = Gather(plain[..from].to_vec());
            pass.feed(&packed[at..end], &mut sink).unwrap();
            (at, from) = (end, sink.0.len());
            let Some(progress) = pass.progress() else { continue };
            let bytes = encode_progress(&progress, compression, &blob.digest);
            let (_, progress) = decode_progress(&bytes, &blob.digest, blob.size).unwrap();
            (at, from) = (progress.table.packed as usize, progress.table.content as usize);
            let notes: Vec<_> = Pass::read_notes(pass.side(), &progress.notes).map(Result::unwrap).collect();
            assert_eq!(notes.last().unwrap(), &from.to_le_bytes(), "{name}");
            let side = reopened(&pass);
            let again = Pass::resume(blob.clone(), compression, limits, side, progress).unwrap();
            assert_eq!(again.position(), at as u64);
            // Without an end it would stand still where a point is further off than this.
            if turns < 20 {
                (pass, turns) = (again, turns + 1);
            } else {
                (at, from) = (end, sink.0.len());
            }
        }
        let found = pass.finish().unwrap();
        assert_eq!(turns > 0, !matches!(name, "bzip2" | "xz" | "bzip2, joined" | "xz, joined"), "{name}");
        let held = Arc::new(Held { bytes: packed.clone(), given: AtomicU64::new(0) });
        let content = Content::new(held, blob, compression, limits, found);
        assert!(read(&content, 0..plain.len() as u64).await.unwrap() == plain, "{name}");
    }
}

#[test]
fn a_blob_that_is_cut_or_changed_is_an_error() {
    let plain = sample(3 << 20);
    for (name, compression, packed, _) in all_forms(&plain) {
        for end in [packed.len() - 1, packed.len() / 2] {
            let error = pass(&packed[..end], compression, ContentLimits::default(), side()).err().unwrap();
            assert_eq!(error.kind, ErrorKind::Corrupt, "{name} {end}: {error}");
        }
        let _threads = threads();
        let mut pass = Pass::new(descriptor(b"else"), compression, ContentLimits::default(), side()).unwrap();
        pass.feed(&packed, &mut Gather::default()).unwrap();
        let error = pass.finish().err().unwrap();
        assert!(error.to_string().contains("have the digest"), "{name}: {error}");
    }
}

#[test]
fn without_a_folder_gzip_works_and_the_others_say_what_they_need() {
    let plain = sample(6 << 20);
    for (name, compression, packed, _) in all_forms(&plain) {
        let cache = crate::cache::ChunkCache::new(
            Arc::new(crate::blob::Layout::new(crate::oci::LayoutReference {
                directory: "x".into(),
                tag: None,
                digest: None,
            })),
            None,
            64 << 20,
        );
        let memory = Side::memory(cache.reserve(4 << 20));
        let made = pass(&packed, compression, ContentLimits::default(), memory);
        match name {
            "one frame" | "bzip2" | "xz" | "bzip2, joined" | "xz, joined" => {
                let error = made.err().unwrap();
                assert!(error.to_string().contains("--cache-dir"), "{name}: {error}");
            }
            _ => assert!(made.is_ok(), "{name}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_make_a_pass_panic_or_hang(head in 0..7_usize, bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let starts: [(&[u8], Compression); 7] = [
            (b"\x1f\x8b\x08\0\0\0\0\0\0\0", Compression::Gzip),
            (b"", Compression::Deflate),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"BZh91AY&SY", Compression::Bzip2),
            (b"\xfd7zXZ\0\0\x04", Compression::Xz),
            (b"", Compression::Gzip),
            (b"\x50\x2a\x4d\x18", Compression::Zstd),
        ];
        let (start, compression) = starts[head];
        let _ = pass(&[start, &bytes].concat(), compression, ContentLimits::default(), Side::memory(None));
        let _ = compression.head(&[start, &bytes].concat());
    }

    #[test]
    fn a_bit_flipped_in_the_middle_never_panics(at in 0.0..1.0_f64, bit in 0..8_u8) {
        let plain = sample(100_000);
        for (_, compression, mut packed, _) in all_forms(&plain) {
            let at = (packed.len() as f64 * at) as usize;
            packed[at] ^= 1 << bit;
            let _ = pass(&packed, compression, ContentLimits::default(), side());
        }
    }
}
