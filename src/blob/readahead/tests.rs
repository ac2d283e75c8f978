//! Readers as people and programs are, over the real cache and a line in virtual time: no kernel, no network.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const DATE: u64 = 320 * KIB;
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// 1 Gbit/s.
const LINE: f64 = 125e6;

/// A registry at the end of a line, which counts what it gives.
struct Far {
    line: Mutex<Instant>,
    /// Bytes a second of it.
    rate: f64,
    /// Bytes a second of one connection.
    connection: f64,
    connections: Semaphore,
    streams: usize,
    fetched: AtomicU64,
    requests: AtomicU64,
}

impl BlobSource for Far {
    fn read<'a>(&'a self, _blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            let _connection = self.connections.acquire().await;
            self.requests.fetch_add(1, Ordering::Relaxed);
            Ok(self.bring(range.end - range.start, Instant::now() + ROUND_TRIP).await.0)
        }
        .boxed()
    }

    fn stream<'a>(&'a self, _blob: &'a Descriptor, range: Range<u64>) -> BoxStream<'a, Result<Bytes>> {
        let piece = move |(at, under_way): (u64, Option<(SemaphorePermit<'a>, Instant)>)| async move {
            let (connection, last) = match under_way {
                Some(under_way) => under_way,
                None => {
                    let connection = self.connections.acquire().await.unwrap();
                    self.requests.fetch_add(1, Ordering::Relaxed);
                    (connection, Instant::now() + ROUND_TRIP)
                }
            };
            let end = range.end.min(at + 256 * KIB);
            // Timers are precise to a millisecond: what came late does not delay the rest.
            let (bytes, last) = self.bring(end - at, last).await;
            (at < end).then_some((Ok(bytes), (end, Some((connection, last)))))
        };
        stream::unfold((range.start, None), piece).boxed()
    }

    fn long_answers(&self) -> usize {
        self.streams
    }
}

impl Far {
    /// Bytes on one connection, the first of them at `first`, and when the last of them came.
    async fn bring(&self, length: u64, first: Instant) -> (Bytes, Instant) {
        self.fetched.fetch_add(length, Ordering::Relaxed);
        let takes = |rate: f64| Duration::from_secs_f64(length as f64 / rate);
        let on_line = {
            let mut line = self.line.lock().unwrap();
            *line = first.max(*line) + takes(self.rate);
            *line
        };
        let last = on_line.max(first + takes(self.connection));
        tokio::time::sleep_until(last).await;
        (Bytes::from(vec![0; length as usize]), last)
    }
}

/// A mount in small, with one layer in the shape of a PASTIS patch: eight files behind their headers.
struct Small {
    ahead: ReadAhead,
    far: Arc<Far>,
    blob: Descriptor,
    files: Vec<Range<u64>>,
    start: Instant,
}

/// File, and range in it, one after the other.
type Reads = Vec<(usize, Range<u64>)>;

/// What readers asked for, in chunks, and what was fetched.
struct Cost {
    read: u64,
    touched: u64,
    fetched: u64,
}

impl Cost {
    fn in_vain(&self) -> u64 {
        self.fetched - self.touched
    }
}

impl Small {
    fn new() -> Self {
        Self::with(256 * MIB, LINE)
    }

    fn with(memory: u64, connection: f64) -> Self {
        Self::on(LINE, memory, connection, 4)
    }

    /// With one file that begins the blob, on a line that is fast.
    fn of_one(length: u64, connection: f64, streams: usize) -> Self {
        let mut small = Self::on(1e9, 256 * MIB, connection, streams);
        small.files.truncate(1);
        small.files[0] = 1536..1536 + length;
        small.blob.size = 1536 + length + 10_240;
        small
    }

    fn on(rate: f64, memory: u64, connection: f64, streams: usize) -> Self {
        let mut at = 0;
        let mut files = Vec::new();
        for size in [43 * DATE + 128, 6_389_888, 6_881_408, 4_919_426, 49_280, 131_200, 131_200, 131_200_u64] {
            at += 1536;
            files.push(at..at + size);
            at += size.next_multiple_of(512);
        }
        let blob = Descriptor {
            digest: Digest::sha256_of(b""),
            size: at + 10_240,
            media_type: String::new(),
            annotations: std::collections::BTreeMap::new(),
        };
        let far = Arc::new(Far {
            line: Mutex::new(Instant::now()),
            rate,
            connection,
            connections: Semaphore::new(12),
            streams,
            fetched: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        let ahead = ReadAhead::new(Arc::new(ChunkCache::new(far.clone(), None, memory)));
        Self { ahead, far, blob, files, start: Instant::now() }
    }

    /// One file, in requests as the kernel makes them: two under way.
    async fn read(&self, file: usize, range: Range<u64>) {
        let whole = &self.files[file];
        let pieces = (range.start..range.end.min(whole.end - whole.start)).step_by(128 << 10).map(|at| {
            let end = (at + 128 * KIB).min(range.end).min(whole.end - whole.start);
            self.ahead.read_file(&self.blob, whole.clone(), whole.start + at..whole.start + end)
        });
        stream::iter(pieces).buffered(2).for_each(async |read| drop(read.unwrap())).await;
    }

    /// Does all of `reads`, one after the other: file, range in it.
    async fn cost(&self, reads: &[(usize, Range<u64>)]) -> Cost {
        let before = self.far.fetched.load(Ordering::Relaxed);
        let mut chunks = std::collections::BTreeSet::new();
        let mut read = 0;
        for (file, range) in reads {
            self.read(*file, range.clone()).await;
            let (start, end) = (self.files[*file].start + range.start, self.files[*file].start + range.end);
            chunks.extend(start / CHUNK..end.min(self.files[*file].end).div_ceil(CHUNK));
            read += range.end.min(self.files[*file].end - self.files[*file].start) - range.start;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let fetched = self.far.fetched.load(Ordering::Relaxed) - before;
        Cost { read, touched: (chunks.len() as u64 * CHUNK).min(fetched), fetched }
    }
}

fn dates(which: impl IntoIterator<Item = u64>) -> Reads {
    which.into_iter().map(|date| (0, 128 + date * DATE..128 + (date + 1) * DATE)).collect()
}

/// Patterns that do not read a file from its start.
fn pieces() -> Vec<(&'static str, Reads)> {
    let spot = 4_919_426 - 1280 * 3840;
    let rows = |from: u64, rows: u64, length: u64| {
        let row = move |n: u64| spot + (from + n) * 3840 + 2100;
        (0..rows).map(|n| (3, row(n)..row(n) + length)).collect::<Vec<_>>()
    };
    let random = (0..400_u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) % (13 * MIB));
    vec![
        ("one date", dates([5])),
        ("two dates in a row", dates([5, 6])),
        ("five scattered dates", dates([3, 11, 19, 27, 40])),
        ("every third date", dates((1..43).step_by(3))),
        ("dates backwards", dates((1..43).rev())),
        ("a band of each date", (1..43).map(|date| (0, 128 + date * DATE..128 + date * DATE + 32 * KIB)).collect()),
        ("a half of each date", (1..43).map(|date| (0, 128 + date * DATE..128 + date * DATE + 160 * KIB)).collect()),
        ("two dates in turn", (1..20).flat_map(|n| dates([n, n + 20])).collect()),
        ("64 × 64 pixels", rows(300, 64, 192)),
        ("256 × 256 pixels", rows(300, 256, 768)),
        ("256 rows", rows(300, 256, 3840)),
        ("4 KiB at random", random.map(|at| (0, at..at + 4 * KIB)).collect()),
        ("4 MiB in the middle", vec![(0, 5 * MIB..9 * MIB)]),
        ("the second half", vec![(0, 7 * MIB..15 * MIB)]),
        ("backwards by 128 KiB", (1..100).rev().map(|n| (0, n * 128 * KIB..(n + 1) * 128 * KIB)).collect()),
    ]
}

#[tokio::test(start_paused = true)]
async fn who_reads_pieces_of_files_is_fetched_a_fifth_in_vain_at_most() {
    for (name, reads) in pieces() {
        let cost = Small::new().cost(&reads).await;
        println!("{name}: {} / {} / {}", cost.read >> 10, cost.touched >> 10, cost.fetched >> 10);
        assert!(cost.in_vain() <= cost.read / 5, "{name}: {} for {}", cost.fetched, cost.read);
    }
}

#[tokio::test(start_paused = true)]
async fn who_begins_files_and_stops_is_fetched_a_fifth_in_vain_and_2_mib_once() {
    for (name, reads) in [
        ("first 192 KiB", vec![(0, 0..192 * KIB)]),
        ("first date", vec![(0, 0..128 + DATE)]),
        ("first 1 MiB", vec![(0, 0..MIB)]),
        ("first 4 MiB", vec![(0, 0..4 * MIB)]),
        ("first 1 MiB of each", (0..4).map(|file| (file, 0..MIB)).collect()),
        ("first 4 MiB of each", (0..4).map(|file| (file, 0..4 * MIB)).collect()),
        ("one file", vec![(3, 0..5 * MIB)]),
        ("two files apart", vec![(0, 0..15 * MIB), (2, 0..15 * MIB)]),
        ("heads", (0..8).map(|file| (file, 0..16 * KIB)).collect()),
    ] {
        let cost = Small::new().cost(&reads).await;
        println!("{name}: {} / {} / {}", cost.read >> 10, cost.touched >> 10, cost.fetched >> 10);
        assert!(cost.in_vain() <= cost.read / 5 + ALLOWANCE, "{name}: {} for {}", cost.fetched, cost.read);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_read_on_is_not_read_beyond_for_long() {
    // The same file of each of many layers.
    let small = Small::new();
    let mut in_vain = 0;
    for layer in 0..20_u8 {
        let blob = Descriptor { digest: Digest::sha256_of(&[layer]), ..small.blob.clone() };
        let before = small.far.fetched.load(Ordering::Relaxed);
        let file = small.files[1].clone();
        for at in (file.start..file.end).step_by(128 << 10) {
            small.ahead.read_file(&blob, file.clone(), at..(at + 128 * KIB).min(file.end)).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        in_vain +=
            (small.far.fetched.load(Ordering::Relaxed) - before).saturating_sub(file.end - file.start + 2 * CHUNK);
    }
    assert!(in_vain <= ALLOWANCE, "{in_vain}");
}

/// All of a patch, one file after the other: how much longer than one endless answer on the whole line it takes.
async fn whole_patch(small: &Small) -> f64 {
    let size = small.blob.size;
    let start = Instant::now();
    for (file, range) in small.files.iter().enumerate() {
        small.read(file, 0..range.end - range.start).await;
    }
    let took = start.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(small.far.fetched.load(Ordering::Relaxed) <= size, "nothing twice");
    took / (ROUND_TRIP.as_secs_f64() + size as f64 / LINE)
}

#[tokio::test(start_paused = true)]
async fn a_long_reader_makes_few_requests_and_fills_a_line_of_slow_connections() {
    let mut small = Small::with(256 * MIB, LINE / 5.0);
    let length = 256 * MIB;
    small.files[0] = 1536..1536 + length;
    small.blob.size = 1536 + length + 10_240;
    small.read(0, 0..length).await;
    let seconds = small.start.elapsed().as_secs_f64();
    assert!(seconds < 1.2 * length as f64 / LINE, "{seconds}");
    let requests = small.far.requests.load(Ordering::Relaxed);
    assert!(requests < 300, "{requests}");
}

/// Seconds and requests for a file of a GiB, without long answers and with them.
async fn very_much(connection: f64) -> [(f64, u64); 2] {
    let mut took = [(0.0, 0); 2];
    for (streams, took) in [0, 4].into_iter().zip(&mut took) {
        let small = Small::of_one(1 << 30, connection, streams);
        small.read(0, 0..1 << 30).await;
        *took = (small.start.elapsed().as_secs_f64(), small.far.requests.load(Ordering::Relaxed));
        assert!(small.far.fetched.load(Ordering::Relaxed) <= small.blob.size, "nothing twice");
    }
    println!("{took:.3?}");
    took
}

#[tokio::test(start_paused = true)]
async fn who_reads_very_much_over_a_fast_line_is_given_it_in_few_answers() {
    let [many, few] = very_much(1e9).await;
    assert!(few.0 < many.0 && few.1 < many.1 / 3);
}

#[tokio::test(start_paused = true)]
async fn who_reads_very_much_over_slow_connections_is_given_it_in_many() {
    let [many, tried] = very_much(5e7).await;
    assert!(tried.0 < many.0 * 1.2 && tried.1 > many.1 / 2);
}

#[tokio::test(start_paused = true)]
async fn who_reads_very_much_and_stops_is_fetched_a_fifth_in_vain_and_keeps_no_connection() {
    for read in [140 * MIB, 200 * MIB, 256 * MIB] {
        let small = Small::of_one(1 << 30, 1e9, 4);
        let cost = small.cost(&[(0, 0..read)]).await;
        println!("{} / {} / {}", cost.read >> 10, cost.touched >> 10, cost.fetched >> 10);
        assert!(cost.in_vain() <= 9 * MIB, "{} for {}", cost.fetched, cost.read);
        assert_eq!(small.far.connections.available_permits(), 12);
    }
}

#[tokio::test(start_paused = true)]
async fn a_patch_read_in_order_fills_the_line() {
    let ratio = whole_patch(&Small::new()).await;
    let capped = whole_patch(&Small::with(256 * MIB, LINE / 5.0)).await;
    let little_memory = whole_patch(&Small::with(64 * MIB, LINE)).await;
    println!("{ratio:.3} {capped:.3} {little_memory:.3}");
    assert!(ratio < 1.16, "{ratio}");
    assert!(capped < 1.26, "{capped}");
    assert!(little_memory < 1.16, "{little_memory}");
}

/// Layers like `small`'s, one after the other.
fn siblings(small: &Small, count: u8) -> Vec<Descriptor> {
    let layers: Vec<_> =
        (0..count).map(|layer| Descriptor { digest: Digest::sha256_of(&[layer]), ..small.blob.clone() }).collect();
    small.ahead.in_order(layers.clone());
    layers
}

#[tokio::test(start_paused = true)]
async fn layers_read_one_after_the_other_fill_the_line() {
    for (connection, most) in [(LINE, 1.04), (LINE / 5.0, 1.06)] {
        let mut small = Small::with(256 * MIB, connection);
        let layers = siblings(&small, 8);
        let start = Instant::now();
        for layer in &layers {
            small.blob = layer.clone();
            for (file, range) in small.files.iter().enumerate() {
                small.read(file, 0..range.end - range.start).await;
            }
        }
        let size = small.blob.size * layers.len() as u64;
        let ratio = start.elapsed().as_secs_f64() / (ROUND_TRIP.as_secs_f64() + size as f64 / LINE);
        println!("{ratio:.3}");
        assert!(ratio < most, "{ratio}");
        tokio::time::sleep(Duration::from_secs(10)).await;
        let fetched = small.far.fetched.load(Ordering::Relaxed);
        assert!(fetched <= size, "nothing twice: {fetched} of {size}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_is_not_gone_on_from_is_not_read_beyond() {
    // Every other layer, whole.
    let mut small = Small::new();
    let layers = siblings(&small, 40);
    let (mut read, mut fetched) = (0, 0);
    for layer in layers.iter().step_by(2) {
        small.blob = layer.clone();
        let whole: Reads = small.files.iter().enumerate().map(|(n, file)| (n, 0..file.end - file.start)).collect();
        let cost = small.cost(&whole).await;
        (read, fetched) = (read + small.blob.size.next_multiple_of(CHUNK), fetched + cost.fetched);
    }
    assert!(fetched <= read, "{fetched} for {read}");
}

#[tokio::test(start_paused = true)]
async fn two_readers_of_one_blob_share_the_line() {
    let small = Small::new();
    let timed = async |file: usize| {
        small.read(file, 0..6 * MIB).await;
        small.start.elapsed().as_secs_f64()
    };
    let (one, other) = tokio::join!(timed(1), timed(2));
    println!("{one:.3} {other:.3}");
    assert!(one.max(other) < 1.3 * one.min(other), "{one} {other}");
    assert!(one.max(other) < 1.6 * (0.02 + 12.0 * MIB as f64 / LINE), "{one} {other}");
}

#[tokio::test(start_paused = true)]
async fn requests_out_of_order_are_one_stream() {
    let small = Small::new();
    let file = small.files[0].clone();
    for pair in (0..32_u64).step_by(2) {
        for piece in [pair + 1, pair] {
            let at = file.start + piece * 128 * KIB;
            small.ahead.read_file(&small.blob, file.clone(), at..at + 128 * KIB).await.unwrap();
        }
    }
    let streams = small.ahead.streams.lock().unwrap();
    assert_eq!(streams.streams.len(), 1);
    assert!(streams.streams[0].ahead > file.start + 5 * MIB, "{}", streams.streams[0].ahead);
}
