//! Registries that are slow, limited, away or back again, under many readers: no read that has time left fails, no byte
//! is wrong, and nobody is asked more often than needed.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use eo_mount_testing::files::pread;
use eo_mount_testing::fixtures::noise;
use eo_mount_testing::scripted_registry::CONFIG_TYPE;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{ALWAYS, Artifact, Cuts, EoMount, Fault, Kind, Link, Matcher, Mounted, ScriptedRegistry, Shape};

const READERS: u64 = 16;
const CHUNK: u64 = 64 << 10;
/// What each of them reads.
const SHARE: u64 = 12 * CHUNK;
/// Everything ends sooner, by far.
const LONG: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(20);

/// A file for all readers, behind the chunk that is known from the look which told that it is no archive.
struct Scene {
    registry: ScriptedRegistry,
    bytes: Vec<u8>,
    digest: String,
}

impl Scene {
    fn new() -> Self {
        let bytes = noise(11, (CHUNK + READERS * SHARE) as usize);
        let registry = ScriptedRegistry::start();
        let artifact = Artifact::new().config("{}", CONFIG_TYPE);
        let artifact = artifact.layer(Some("noise"), "application/octet-stream", bytes.clone());
        artifact.push(&registry, "pastis", "t");
        Self { registry, bytes, digest: artifact.layers()[0].digest.clone() }
    }

    fn mount(&self, arguments: &[&str]) -> Mounted {
        self.mount_at(&self.registry.reference("pastis:t"), arguments)
    }

    fn mount_at(&self, reference: &str, arguments: &[&str]) -> Mounted {
        EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference).args(arguments).mount()
    }

    /// All readers read their shares in pieces; `meanwhile` happens when they have begun.
    #[track_caller]
    fn read_all(&self, mounted: &Mounted, meanwhile: impl FnOnce()) {
        let together = Barrier::new(READERS as usize + 1);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS)
                .map(|reader| {
                    let together = &together;
                    scope.spawn(move || {
                        let file = std::fs::File::open(mounted.join("noise")).unwrap();
                        let mut piece = vec![0; CHUNK as usize];
                        together.wait();
                        for at in self.share(reader).step_by(CHUNK as usize) {
                            if let Err(error) = file.read_exact_at(&mut piece, at) {
                                panic!("{error} at {at}\n{}", mounted.log());
                            }
                            assert!(piece == self.bytes[at as usize..][..CHUNK as usize], "wrong bytes at {at}");
                            thread::sleep(Duration::from_millis(10));
                        }
                    })
                })
                .collect();
            together.wait();
            meanwhile();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    }

    fn share(&self, reader: u64) -> Range<u64> {
        let start = CHUNK + reader * SHARE;
        start..start + SHARE
    }

    #[track_caller]
    fn read_at(&self, mounted: &Mounted, reader: u64) -> std::io::Result<()> {
        let at = self.share(reader).start + 20_000;
        let bytes = pread(mounted.join("noise"), at..at + 100)?;
        assert_eq!(bytes, self.bytes[at as usize..][..100]);
        Ok(())
    }
}

#[test]
fn no_reader_of_sixteen_notices_that_the_registry_restarts() {
    let scene = Scene::new();
    let mounted = scene.mount(&["--timeout", "40s"]);
    scene.read_all(&mounted, || {
        thread::sleep(Duration::from_millis(30));
        scene.registry.go_down();
        thread::sleep(Duration::from_secs(3));
        scene.registry.come_up();
    });
    assert!(scene.registry.requests_of(Kind::Ping).len() <= 3, "one probe finds out when it is back");
}

#[test]
fn no_reader_of_sixteen_notices_that_connections_break() {
    let scene = Scene::new();
    let cuts = Cuts { seed: 3, per_mebibyte: 1.0 };
    let link = Link::new(scene.registry.address(), Shape { cuts: Some(cuts), ..Shape::default() });
    let mounted = scene.mount_at(&link.reference("pastis:t"), &["--timeout", "40s"]);
    scene.read_all(&mounted, || {});
    assert!(link.cut() >= 3, "{} connections broke", link.cut());
    let wanted = scene.bytes.len() as u64;
    assert!(link.bytes_down() < wanted + wanted / 2, "{} bytes for {wanted}", link.bytes_down());
}

#[test]
fn one_token_is_asked_for_when_one_expires_under_sixteen_readers() {
    let scene = Scene::new();
    scene.registry.require_token();
    let mounted = scene.mount(&["--timeout", "40s"]);
    scene.registry.expire_tokens();
    // All have asked before the first is refused.
    scene.registry.fault(Matcher::blobs(), Fault::Delay(Duration::from_millis(200)), 16);
    scene.read_all(&mounted, || {});
    let refused = scene.registry.requests_of(Kind::Blob).iter().filter(|request| request.status == 401).count();
    assert!(refused > 1, "{refused} refused: nobody was at the same time");
    assert_eq!(scene.registry.tokens_issued(), 2);
}

#[test]
fn a_dead_registry_costs_a_new_read_no_timeout_and_is_read_when_it_is_back() {
    let scene = Scene::new();
    let mounted = scene.mount(&["--timeout", "4s"]);
    scene.registry.go_down();
    let start = Instant::now();
    assert!(scene.read_at(&mounted, 0).is_err());
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert!(wait_until(SOON, || {
        // Reads that are still under way have time of their own.
        let _ = scene.read_at(&mounted, 1);
        mounted.log().contains("no answer from 127.0.0.1")
    }));
    let start = Instant::now();
    for reader in 2..READERS {
        assert!(scene.read_at(&mounted, reader).is_err());
    }
    // Fourteen reads, each asked for twice by the kernel: with timeouts they would take a minute.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    let log = mounted.log();
    assert!(log.contains("since 20") && log.contains("Connection refused"), "{log}");
    scene.registry.come_up();
    assert!(wait_until(SOON, || scene.read_at(&mounted, 0).is_ok()), "{}", mounted.log());
    scene.read_all(&mounted, || {});
}

/// A registry whose blobs lie elsewhere, where they are no more. 14 reads, each asked for twice by the kernel: with
/// timeouts they would take a minute.
#[track_caller]
fn a_storage_that_is_gone_costs_a_new_read_no_timeout(
    go: impl FnOnce(&ScriptedRegistry),
    come_back: impl FnOnce(&ScriptedRegistry),
) {
    let (scene, storage) = (Scene::new(), ScriptedRegistry::start());
    scene.registry.keep_blobs_at(&storage);
    let mounted = scene.mount(&["--timeout", "4s"]);
    scene.read_at(&mounted, 15).unwrap();
    go(&storage);
    let is_dead = || mounted.log().contains("no answer from 127.0.0.1");
    let mut longest = Duration::ZERO;
    assert!(wait_until(LONG, || {
        let start = Instant::now();
        let _ = scene.read_at(&mounted, 0);
        longest = longest.max(start.elapsed());
        is_dead()
    }));
    assert!(longest < SOON, "{longest:?}");
    scene.registry.reset();
    let start = Instant::now();
    for reader in 1..15 {
        assert!(scene.read_at(&mounted, reader).is_err());
    }
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(scene.registry.blob_requests() <= 2 * 14, "{}", scene.registry.blob_requests());
    come_back(&storage);
    assert!(wait_until(SOON, || scene.read_at(&mounted, 0).is_ok()), "{}", mounted.log());
    scene.read_all(&mounted, || {});
}

#[test]
fn a_dead_storage_behind_a_living_registry_costs_a_new_read_no_timeout_and_is_read_when_it_is_back() {
    a_storage_that_is_gone_costs_a_new_read_no_timeout(ScriptedRegistry::go_down, ScriptedRegistry::come_up);
}

#[test]
fn a_hanging_storage_behind_a_living_registry_costs_a_new_read_no_timeout_and_is_read_when_it_is_back() {
    let hang = |storage: &ScriptedRegistry| drop(storage.fault(Matcher::any(), Fault::Stall, ALWAYS));
    a_storage_that_is_gone_costs_a_new_read_no_timeout(hang, ScriptedRegistry::clear_faults);
}

#[test]
fn blobs_that_moved_while_their_storage_was_dead_are_read_from_the_other() {
    let (scene, [first, second]) = (Scene::new(), std::array::from_fn(|_| ScriptedRegistry::start()));
    scene.registry.keep_blobs_at(&first);
    let mounted = scene.mount(&["--timeout", "4s"]);
    scene.read_at(&mounted, 15).unwrap();
    first.go_down();
    assert!(wait_until(LONG, || {
        let _ = scene.read_at(&mounted, 0);
        mounted.log().contains("no answer from 127.0.0.1")
    }));
    scene.registry.keep_blobs_at(&second);
    scene.read_all(&mounted, || {});
}

#[test]
fn a_blob_that_hangs_does_not_make_the_registry_dead() {
    let scene = Scene::new();
    let mounted = scene.mount(&["--timeout", "3s"]);
    let first = scene.share(0);
    scene.registry.fault(Matcher::blobs().touching(first.clone()), Fault::Stall, ALWAYS);
    assert!(scene.read_at(&mounted, 0).is_err());
    thread::sleep(Duration::from_millis(1500));
    scene.read_at(&mounted, 8).expect("others are read");
    scene.registry.clear_faults();
    assert!(wait_until(SOON, || scene.read_at(&mounted, 0).is_ok()), "{}", mounted.log());
}

#[test]
fn all_readers_wait_when_the_registry_asks_one_for_patience() {
    for (status, wish) in [(429, "2".to_owned()), (503, "Fri, 31 Dec 1999 23:59:59 GMT".to_owned())] {
        let scene = Scene::new();
        let mounted = scene.mount(&["--timeout", "40s"]);
        let mut headers = vec![("Retry-After".to_owned(), wish)];
        // By the server's clock in two seconds.
        headers.push(("Date".to_owned(), "Fri, 31 Dec 1999 23:59:57 GMT".to_owned()));
        let busy = Fault::Status(status, headers, String::new());
        let script = scene.registry.fault(Matcher::blobs(), busy, ALWAYS);
        scene.read_all(&mounted, || {
            assert!(wait_until(LONG, || script.met() > 0));
            // Those that were under way when the first was refused.
            thread::sleep(Duration::from_millis(300));
            let refused = script.met();
            assert!(refused <= 16, "{refused}");
            thread::sleep(Duration::from_millis(700));
            assert_eq!(script.met(), refused, "somebody did not wait");
            scene.registry.clear_faults();
        });
    }
}

#[test]
fn a_bandwidth_is_kept_by_all_readers_together() {
    let scene = Scene::new();
    let mounted = scene.mount(&["--bandwidth", "4MiB"]);
    let start = Instant::now();
    scene.read_all(&mounted, || {});
    let least = Duration::from_secs_f64(scene.bytes.len() as f64 / f64::from(4 << 20)) - Duration::from_millis(500);
    assert!(start.elapsed() >= least, "{:?} for {} bytes", start.elapsed(), scene.bytes.len());
}

#[test]
fn a_thousand_ranges_of_a_redirected_blob_are_two_requests_to_the_registry() {
    let scene = Scene::new();
    let storage = ScriptedRegistry::start();
    let size = 1100 * 4 * CHUNK;
    let digest = format!("sha256:{:064x}", 0x0e0e);
    let fill = |at: u64, buffer: &mut [u8]| {
        for (offset, byte) in buffer.iter_mut().enumerate() {
            *byte = ((at + offset as u64) / 1000) as u8;
        }
    };
    let blob = scene.registry.put_sparse_blob(size, &digest, fill);
    let artifact = Artifact::new().config("{}", CONFIG_TYPE).layer_of(Some("long.bin"), blob);
    artifact.push(&scene.registry, "pastis", "long");
    scene.registry.keep_blobs_at(&storage);
    let mounted = scene.mount_at(&scene.registry.reference("pastis:long"), &["--no-disk-cache"]);
    let file = mounted.join("long.bin");
    for piece in 1..=1000 {
        let at = piece * 4 * CHUNK + 30_000;
        let mut expected = [0; 100];
        fill(at, &mut expected);
        assert_eq!(pread(&file, at..at + 100).unwrap(), expected);
    }
    assert!(storage.blob_requests() >= 1000, "{}", storage.blob_requests());
    let at_home = scene.registry.requests().iter().filter(|request| request.digest() == Some(&digest)).count();
    assert!((1..=2).contains(&at_home), "{at_home}");
    assert_ne!(digest, scene.digest);
}

#[test]
fn a_slow_link_is_read_from_start_to_end_though_all_of_it_takes_longer_than_the_timeout() {
    thread::scope(|scope| {
        for (bits_per_second, length) in [(256_000, 500_000), (1_000_000, 2_000_000)] {
            scope.spawn(move || {
                let (registry, bytes) = (ScriptedRegistry::start(), noise(3, length));
                let artifact = Artifact::new().layer(Some("a.bin"), "application/octet-stream", bytes.clone());
                artifact.push(&registry, "pastis", "t");
                let shape = Shape {
                    round_trip: Duration::from_millis(100),
                    bits_per_second: Some(bits_per_second),
                    ..Shape::default()
                };
                let link = Link::new(registry.address(), shape);
                let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), link.reference("pastis:t"));
                let mounted = call.args(["--timeout", "10s"]).mount();
                let read = std::fs::read(mounted.join("a.bin"));
                assert!(read.is_ok_and(|read| read == bytes), "{bits_per_second}: {}", mounted.log());
                // Hardly anything is fetched twice, or given up half way.
                assert!(link.bytes_down() < length as u64 * 5 / 4, "{bits_per_second}: {} bytes", link.bytes_down());
            });
        }
    });
}

#[test]
fn one_reader_uses_few_connections_where_one_fills_the_line_and_more_where_each_is_slow() {
    let megabits = 1_000_000;
    let used = |per_connection: Option<u64>| {
        let registry = ScriptedRegistry::start();
        let layer = Artifact::new().layer(Some("a.bin"), "application/octet-stream", noise(3, 144 << 20));
        layer.push(&registry, "pastis", "t");
        let (round_trip, line) = (Duration::from_millis(20), Some(160 * megabits));
        let shape = Shape { round_trip, bits_per_second: line, per_connection, ..Shape::default() };
        let link = Link::new(registry.address(), shape);
        let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), link.reference("pastis:t")).mount();
        let file = std::fs::File::open(mounted.join("a.bin")).unwrap();
        let mut piece = vec![0; 1 << 20];
        let mut read = |from: u64, to: u64| {
            (from..to).for_each(|mebibyte| file.read_exact_at(&mut piece, mebibyte << 20).unwrap());
        };
        read(0, 112);
        let before = link.bytes_down_of_each();
        read(112, 144);
        let after = link.bytes_down_of_each();
        after
            .iter()
            .zip(before.iter().chain(std::iter::repeat(&0)))
            .filter(|(after, before)| **after > **before + (1 << 20))
            .count()
    };
    let (few, more) = (used(None), used(Some(32 * megabits)));
    assert!(few <= 6 && more >= 7, "{few} and {more} connections");
}

#[test]
fn many_readers_of_a_slow_link_get_on_though_not_all_can_in_one_timeout() {
    let (registry, bytes) = (ScriptedRegistry::start(), noise(3, 16 << 20));
    Artifact::new().layer(Some("a.bin"), "application/octet-stream", bytes.clone()).push(&registry, "pastis", "t");
    let shape = Shape { round_trip: Duration::from_millis(100), bits_per_second: Some(256_000), ..Shape::default() };
    let link = Link::new(registry.address(), shape);
    let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), link.reference("pastis:t"));
    let mounted = mounted.args(["--timeout", "10s"]).mount();
    thread::scope(|scope| {
        for reader in 0..10_u64 {
            let (mounted, bytes) = (&mounted, &bytes);
            scope.spawn(move || {
                let at = (reader + 1) * (3 << 19) + 5000;
                let mut failed = 0;
                while let Err(error) = pread(mounted.join("a.bin"), at..at + 100) {
                    failed += 1;
                    assert!(failed < 4, "{error}\n{}", mounted.log());
                }
                assert_eq!(pread(mounted.join("a.bin"), at..at + 100).unwrap(), bytes[at as usize..][..100]);
            });
        }
    });
    assert!(link.bytes_down() < 10 * CHUNK * 3 / 2, "{} bytes", link.bytes_down());
}
