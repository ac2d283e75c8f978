//! What is fetched for what is read, counted by the registry: full-size patches, read as people and programs do.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use eo_mount_testing::files::{forget_pages, pread, xattr};
use eo_mount_testing::fixtures::{PythonTar, S2_DATE_BYTES, VirtualTar, patch_tar_plan};
use eo_mount_testing::python::python_says;
use eo_mount_testing::scripted_registry::{CONFIG_TYPE, Request};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{ALWAYS, Artifact, EoMount, Fault, Kind, Matcher, Mounted, ScriptedRegistry, run, sha256};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// What a random read may fetch, and what is fetched at once.
const MOST_FOR_A_READ: u64 = 128 * KIB;
/// Everything ends sooner, by far.
const LONG: Duration = Duration::from_secs(120);

const S2: &str = "DATA_S2/S2_10000.npy";
const SPOT: &str = "DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_10000.tif";

#[test]
fn the_root_of_2433_layers_lists_after_four_requests_in_64_mib() {
    let registry = ScriptedRegistry::start();
    let layer = |number: usize| PythonTar::new().file("a", 1.5, number.to_string().into_bytes(), 0, 0).finish();
    let mut artifact = Artifact::new();
    let mut patches = Vec::new();
    for number in 0..2433 {
        artifact = artifact.tar(&format!("sample/{}.tar", 10_000 + number), layer(number).to_bytes());
        let ring: Vec<[f64; 2]> = (0..5).map(|n| [391_504.735_545_086_3 + f64::from(n), 6_956_805.9]).collect();
        patches.push(serde_json::json!({
            "patch_id": (10_000 + number).to_string(),
            "parcel_count": 119,
            "temporal_coverage": {"start": "2018-09-24", "end": "2019-12-04"},
            "geometry": {"type": "MultiPolygon", "coordinates": [[ring]]},
            "layer_digest": artifact.layers()[number].digest,
            "layer_mediaType": "application/vnd.oci.image.layer.v1.tar",
        }));
    }
    let config = serde_json::to_string_pretty(&serde_json::json!({"tile": "t30uxv", "patches": patches})).unwrap();
    assert!((2_000_000..3_000_000).contains(&config.len()), "{}", config.len());
    artifact.config(config.clone(), CONFIG_TYPE).push(&registry, "pastis", "2433");

    let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:2433")).mount();
    let names: BTreeSet<PathBuf> =
        std::fs::read_dir(mounted.path()).unwrap().map(|entry| entry.unwrap().file_name().into()).collect();
    let expected = (10_000..12_433).map(|id| id.to_string().into()).chain([PathBuf::from("config.json")]);
    assert_eq!(names, expected.collect());
    let asked = registry.requests().iter().filter(|request| request.kind != Kind::Ping).count();
    assert!(asked <= 4, "{asked} requests");
    assert_eq!(registry.blob_requests(), 0, "no layer was looked into");
    let resident = mounted.peak_resident_bytes();
    assert!(resident < 64 * MIB, "{resident} bytes resident");
    assert_eq!(std::fs::read_to_string(mounted.join("config.json")).unwrap(), config);
    assert_eq!(pread(mounted.join("12432/a"), 0..4).unwrap(), b"2432");
}

#[test]
fn a_first_look_at_all_of_a_patch_takes_ten_requests_and_200_kb() {
    let patches = Patches::new(&[10_000, 10_001]);
    let mounted = patches.mount();
    let start = patches.mark();
    let listing = run(Command::new("ls").arg("-lR").arg(mounted.join("10000")), LONG).expect_success("ls -lR");
    assert!(listing.text().contains("S2_10000.npy") && listing.text().contains("HEATMAP_10000.npy"));
    let cost = patches.since(start);
    assert!(cost.requests <= 10 && cost.bytes <= 200_000, "{cost:?}");
    let start = patches.mark();
    run(Command::new("ls").arg("-lR").arg(mounted.join("10000")), LONG).expect_success("ls -lR");
    assert_eq!(patches.since(start), Cost::NOTHING, "a second look");
    patches.check(&mounted);
}

#[test]
fn one_date_of_sentinel_2_costs_768_kib() {
    let patches = Patches::new(&[10_000]);
    let mounted = patches.mount();
    let date = 128 + 5 * S2_DATE_BYTES..128 + 6 * S2_DATE_BYTES;
    let file = mounted.join("10000").join(S2);
    let read = || {
        assert_eq!(pread(&file, 0..128).unwrap(), patches.bytes(10_000, S2, 0..128));
        assert_eq!(pread(&file, date.clone()).unwrap(), patches.bytes(10_000, S2, date.clone()));
    };
    patches.costs_once(&file, 768 * KIB, read);
    patches.check(&mounted);
}

#[test]
fn one_date_of_sentinel_2_through_a_memory_map_of_numpy_costs_a_mebibyte() {
    let patches = Patches::new(&[10_000]);
    let mounted = patches.mount();
    let date = 128 + 5 * S2_DATE_BYTES..128 + 6 * S2_DATE_BYTES;
    let expected = sha256(&patches.bytes(10_000, S2, date));
    let file = mounted.join("10000").join(S2);
    let script = "import sys, hashlib, numpy\n\
                  date = numpy.load(sys.argv[1], mmap_mode='r')[5]\n\
                  print('sha256:' + hashlib.sha256(numpy.ascontiguousarray(date)).hexdigest())";
    patches.costs_once(&file, MIB, || assert_eq!(python_says(script, &[&file]), expected));
    patches.check(&mounted);
}

#[test]
fn a_window_of_the_spot_image_row_by_row_costs_1600_kib() {
    let patches = Patches::new(&[10_000]);
    let mounted = patches.mount();
    let file = mounted.join("10000").join(SPOT);
    let size = std::fs::metadata(&file).unwrap().len();
    let pixels = size - 1280 * 1280 * 3;
    let read = || {
        let image = File::open(&file).unwrap();
        let mut piece = vec![0; 16 << 10];
        image.read_exact_at(&mut piece, 0).unwrap();
        assert_eq!(piece, patches.bytes(10_000, SPOT, 0..16 << 10));
        for row in 300..556 {
            let start = pixels + row * 3840 + 700 * 3;
            let mut piece = vec![0; 768];
            image.read_exact_at(&mut piece, start).unwrap();
            assert_eq!(piece, patches.bytes(10_000, SPOT, start..start + 768), "row {row}");
        }
    };
    patches.costs_once(&file, 1600 * KIB, read);
    patches.check(&mounted);
}

#[test]
fn gdal_reads_a_window_of_a_geotiff_for_two_mebibytes() {
    for layout in ["tiled=False", "tiled=True, blockxsize=256, blockysize=256"] {
        let directory = tempfile::tempdir().unwrap();
        let tar = directory.path().join("image.tar");
        let make = format!(
            "import sys, tarfile, numpy, rasterio\n\
             image = numpy.random.default_rng(7).integers(0, 256, (3, 1280, 1280), numpy.uint8)\n\
             profile = dict(driver='GTiff', width=1280, height=1280, count=3, dtype='uint8', crs='EPSG:2154', \
             interleave='pixel', transform=rasterio.Affine(1, 0, 391504, 0, -1, 6956805), {layout})\n\
             with rasterio.open(sys.argv[1] + '.tif', 'w', **profile) as file: file.write(image)\n\
             with tarfile.open(sys.argv[1], 'w') as tar: tar.add(sys.argv[1] + '.tif', 'SPOT/image.tif')\n"
        );
        python_says(&make, &[&tar]);
        let registry = ScriptedRegistry::start();
        Artifact::new().tar("10000.tar", std::fs::read(&tar).unwrap()).push(&registry, "pastis", "full");
        let patches = Patches { registry, tars: Vec::new() };
        let mounted = patches.mount();
        let file = mounted.join("10000/SPOT/image.tif");
        let look = "import sys, hashlib, rasterio\n\
                    from rasterio.windows import Window\n\
                    with rasterio.open(sys.argv[1]) as file:\n\
                    \x20   assert file.crs.to_epsg() == 2154 and file.shape == (1280, 1280), (file.crs, file.shape)\n\
                    \x20   print(hashlib.sha256(file.read(window=Window(700, 300, 256, 256)).tobytes()).hexdigest())";
        let original = tar.with_extension("tar.tif");
        let expected = python_says(look, &[&original]);
        patches.costs_once(&file, 2 * MIB, || assert_eq!(python_says(look, &[&file]), expected, "{layout}"));
        patches.check(&mounted);
    }
}

#[test]
fn four_thousand_stats_of_known_and_missing_names_ask_nobody() {
    let patches = Patches::new(&[10_000]);
    let mounted = patches.mount();
    let root = mounted.join("10000");
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 6);
    let start = patches.mark();
    let members: Vec<PathBuf> = patches.tar(10_000).members().iter().map(|member| root.join(&member.path)).collect();
    let mut stats = 0;
    for round in 0..100 {
        for member in &members {
            assert!(std::fs::symlink_metadata(member).unwrap().is_file());
            for probe in [".aux.xml".to_owned(), ".ovr".into(), ".msk".into(), format!(".{round}")] {
                let name = format!("{}{probe}", member.display());
                let missing = std::fs::symlink_metadata(name).unwrap_err();
                assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
            }
            stats += 5;
        }
    }
    assert!(stats >= 4000);
    assert_eq!(patches.since(start), Cost::NOTHING);
    patches.check(&mounted);
}

#[test]
fn a_random_read_of_4_kib_fetches_128_kib_at_most() {
    let patches = Patches::new(&[10_000]);
    let mounted = patches.mount();
    let file = mounted.join("10000").join(S2);
    let size = std::fs::metadata(&file).unwrap().len();
    let mut at = 12_345;
    for _ in 0..100 {
        // Steps of the golden ratio never come close to each other soon.
        at = (at + size * 618_034 / 1_000_000) % (size - 4096);
        let start = patches.mark();
        assert_eq!(pread(&file, at..at + 4096).unwrap(), patches.bytes(10_000, S2, at..at + 4096));
        let cost = patches.since(start);
        assert!(cost.bytes <= MOST_FOR_A_READ, "{cost:?} at {at}");
    }
    patches.check(&mounted);
}

#[test]
fn looking_at_the_head_of_every_file_starts_no_read_ahead() {
    for size in [30 * KIB, 150 * KIB, 500 * KIB] {
        let mut tar = PythonTar::new();
        for number in 0..40 {
            tar = tar.file(&format!("files/{number:03}"), 1.5, Vec::new(), number, size);
        }
        let patches = Patches::of([(1, tar.finish())]);
        let mounted = patches.mount();
        assert_eq!(std::fs::read_dir(mounted.join("1/files")).unwrap().count(), 40);
        let start = patches.mark();
        let count = patches.registry.requests().len();
        for member in patches.tar(1).members() {
            let expected = patches.bytes(1, &member.path, 0..4096);
            let mut head = vec![0; 4096];
            File::open(mounted.join("1").join(&member.path)).unwrap().read_exact(&mut head).unwrap();
            assert_eq!(head, expected);
        }
        let cost = patches.since(start);
        assert!(cost.bytes <= 40 * MOST_FOR_A_READ, "{cost:?} for files of {size} bytes");
        for request in &patches.registry.requests()[count..] {
            let range = request.byte_range().unwrap();
            let near = |data: &Range<u64>| {
                range.start + MOST_FOR_A_READ >= data.start && range.end <= data.start + MOST_FOR_A_READ
            };
            let heads = patches.tar(1).members().iter().any(|member| near(&member.data));
            assert!(heads, "{range:?} is no head of a file of {size} bytes");
        }
        patches.check(&mounted);
    }
}

#[test]
fn only_layers_that_are_looked_into_are_asked_for() {
    let patches = Patches::new(&[10_000, 10_001, 10_002]);
    let mounted = patches.mount();
    for id in ["10000", "10001", "10002"] {
        assert!(std::fs::metadata(mounted.join(id)).unwrap().is_dir());
        assert_eq!(
            xattr(mounted.join(id), "user.oci.media-type").as_deref(),
            Some("application/vnd.oci.image.layer.v1.tar")
        );
    }
    assert_eq!(patches.registry.blob_requests(), 0);
    pread(mounted.join("10001/ANNOTATIONS/TARGET_10001.npy"), 0..10_000).unwrap();
    patches.settle();
    let touched: BTreeSet<String> =
        patches.blobs().iter().map(|request| request.digest().unwrap().to_owned()).collect();
    assert_eq!(touched, BTreeSet::from([patches.tars[1].digest.clone()]));
    patches.check(&mounted);
}

#[test]
fn thirty_two_readers_of_one_chunk_cause_one_request() {
    let patches = Patches::new(&[10_000]);
    let mounted = patches.mount();
    let file = mounted.join("10000").join(S2);
    std::fs::metadata(&file).unwrap();
    let start = patches.mark();
    patches.registry.fault(Matcher::blobs(), Fault::Delay(Duration::from_millis(300)), ALWAYS);
    // Past the kernel's pages and its read-ahead, so that each reader's wish reaches the mount.
    let chunk = {
        let data = &patches.tar(10_000).member(S2).data;
        (data.start + 11 * MIB).next_multiple_of(64 * KIB) - data.start
    };
    let together = Barrier::new(32);
    std::thread::scope(|scope| {
        for reader in 0..32 {
            let (file, together, patches) = (&file, &together, &patches);
            scope.spawn(move || {
                let at = chunk + reader * 2 * KIB;
                let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
                let file = File::options().read(true).custom_flags(flags).open(file).unwrap();
                let mut bytes = vec![0; 2 << 10];
                together.wait();
                file.read_exact_at(&mut bytes, at).unwrap();
                assert_eq!(bytes, patches.bytes(10_000, S2, at..at + 2 * KIB));
            });
        }
    });
    let cost = patches.since(start);
    assert_eq!(cost, Cost { requests: 1, bytes: 64 * KIB });
    patches.check(&mounted);
}

#[test]
fn whole_patches_are_fetched_once_in_bounded_memory() {
    let ids: Vec<u32> = (10_000..10_007).collect();
    let patches = Patches::new(&ids);
    let mounted = patches.call().args(["--memory", "16MiB"]).mount();
    let mut read = 0;
    for id in ids {
        for member in patches.tar(id).members() {
            let mut file = File::open(mounted.join(id.to_string()).join(&member.path)).unwrap();
            let mut piece = vec![0; 128 << 10];
            let mut at = member.data.start;
            loop {
                let length = file.read(&mut piece).unwrap();
                if length == 0 {
                    break;
                }
                let same = piece[..length] == patches.tar(id).read(at..at + length as u64);
                assert!(same, "{} of {id} at {}", member.path, at - member.data.start);
                at += length as u64;
            }
            assert_eq!(at, member.data.end);
            read += member.data.end - member.data.start;
        }
    }
    assert!(read > 200 * MIB, "{read}");
    patches.settle();
    for Tar { digest, tar, .. } in &patches.tars {
        let requests = patches.blobs().into_iter().filter(|request| request.digest() == Some(digest));
        let (mut sent, mut count) = (0, 0);
        for request in requests {
            sent += request.sent;
            count += 1;
        }
        // Members' headers are read for the index first, and chunks at the end of a member with the next member.
        let most = tar.size() + 8 * 16 * KIB + 8 * 64 * KIB;
        assert!(sent <= most, "{sent} of {} bytes in {count} requests", tar.size());
        assert!(count <= 300, "{count} requests");
    }
    let peak = mounted.peak_resident_bytes();
    assert!(peak < 96 * MIB, "{peak} bytes were resident");
    patches.check(&mounted);
}

#[test]
fn an_archive_of_100_000_small_members_is_indexed_for_little_more_than_its_bytes() {
    let mut tar = PythonTar::new();
    for number in 0..100_000_u64 {
        let text = format!("{number:>1024}").into_bytes();
        tar = tar.file(&format!("{:03}/{number}.txt", number / 1000), 1.5, text, 0, 0);
    }
    let patches = Patches::of([(1, tar.finish())]);
    let mounted = patches.mount();
    let start = patches.mark();
    assert_eq!(std::fs::read_dir(mounted.join("1")).unwrap().count(), 100);
    let cost = patches.since(start);
    let size = patches.tar(1).size();
    assert!(cost.bytes <= size * 13 / 10 && cost.requests <= 700, "{cost:?} for {size} bytes");
    for directory in [0, 57, 99] {
        assert_eq!(std::fs::read_dir(mounted.join(format!("1/{directory:03}"))).unwrap().count(), 1000);
    }
    assert_eq!(patches.since(start), cost, "all names are known then");
    let resident = mounted.peak_resident_bytes();
    assert!(resident < 128 * MIB, "{resident} bytes resident");
    assert_eq!(pread(mounted.join("1/099/99999.txt"), 1019..1024).unwrap(), b"99999");
    patches.check(&mounted);
}

/// Archives in a registry that counts.
struct Patches {
    registry: ScriptedRegistry,
    tars: Vec<Tar>,
}

struct Tar {
    id: u32,
    digest: String,
    tar: VirtualTar,
}

/// What was asked of the registry, configs and manifests apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    requests: usize,
    bytes: u64,
}

impl Cost {
    const NOTHING: Self = Self { requests: 0, bytes: 0 };
}

impl Patches {
    /// Patches of full size.
    fn new(ids: &[u32]) -> Self {
        Self::of(ids.iter().map(|id| (*id, patch_tar_plan(*id, 1))))
    }

    fn of(tars: impl IntoIterator<Item = (u32, VirtualTar)>) -> Self {
        let registry = ScriptedRegistry::start();
        let mut artifact = Artifact::new();
        let tars = tars.into_iter().map(|(id, tar)| Tar { id, digest: tar.digest(), tar }).collect::<Vec<_>>();
        for Tar { id, digest, tar } in &tars {
            let content = tar.clone();
            let fill = move |at, buffer: &mut [u8]| content.fill(at, buffer);
            let descriptor = registry.put_sparse_blob(tar.size(), digest, fill);
            artifact = artifact.layer_of(Some(&format!("{id}.tar")), descriptor);
        }
        artifact.push(&registry, "pastis", "full");
        Self { registry, tars }
    }

    fn call(&self) -> EoMount {
        EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), self.registry.reference("pastis:full"))
    }

    fn mount(&self) -> Mounted {
        self.call().mount()
    }

    fn tar(&self, id: u32) -> &VirtualTar {
        &self.tars.iter().find(|known| known.id == id).expect("a patch of this dataset").tar
    }

    /// A range of a member.
    fn bytes(&self, id: u32, path: &str, range: Range<u64>) -> Vec<u8> {
        let start = self.tar(id).member(path).data.start;
        self.tar(id).read(start + range.start..start + range.end)
    }

    fn blobs(&self) -> Vec<Request> {
        self.registry.requests_of(Kind::Blob)
    }

    /// Waits until all answers are sent and nothing new is asked: read-ahead goes on behind a read.
    fn settle(&self) {
        let settled = wait_until(LONG, || {
            let before = self.registry.requests();
            std::thread::sleep(Duration::from_millis(30));
            let complete = |request: &Request| {
                request.status != 0 && request.byte_range().is_none_or(|range| request.sent == range.end - range.start)
            };
            before.len() == self.registry.requests().len() && before.iter().all(complete)
        });
        assert!(settled, "the registry is asked without end: {:?}", self.registry.requests().last());
    }

    fn mark(&self) -> Cost {
        self.settle();
        Cost { requests: self.registry.blob_requests(), bytes: self.registry.blob_bytes() }
    }

    fn since(&self, start: Cost) -> Cost {
        let now = self.mark();
        Cost { requests: now.requests - start.requests, bytes: now.bytes - start.bytes }
    }

    /// Of an indexed layer. At first at most so many bytes; then nothing, neither from the kernel's pages nor without
    /// them.
    #[track_caller]
    fn costs_once(&self, file: &Path, most: u64, read: impl Fn()) {
        std::fs::metadata(file).expect("an indexed member");
        let start = self.mark();
        read();
        let cost = self.since(start);
        assert!(cost.bytes <= most, "{cost:?}");
        read();
        forget_pages(file);
        read();
        assert_eq!(self.since(start), cost, "the second time");
    }

    /// What holds for every download: proper requests, and a mount that says what it fetched.
    #[track_caller]
    fn check(&self, mounted: &Mounted) {
        self.settle();
        let requests = self.registry.requests();
        for request in requests.iter().filter(|request| request.kind == Kind::Blob) {
            let ranges = request.headers.iter().filter(|(name, _)| name == "range").count();
            assert_eq!((ranges, request.method.as_str(), request.status), (1, "GET", 206), "{request:?}");
            let range = request.byte_range().unwrap_or_else(|| panic!("no single range: {request:?}"));
            let tar = self.tars.iter().find(|tar| request.digest() == Some(&tar.digest));
            let size = tar.map_or(u64::MAX, |tar| tar.tar.size());
            assert!(range.start < range.end && range.end <= size, "{range:?} of {size}");
        }
        let stats: serde_json::Value =
            serde_json::from_str(&xattr(mounted.path(), "user.eo.stats").expect("statistics")).unwrap();
        // Nobody reads on that there is no list of what is attached, but why the API gives none.
        let sent: u64 = requests
            .iter()
            .filter(|request| request.status < 300 || request.path.contains("/referrers/"))
            .map(|request| request.sent)
            .sum();
        assert_eq!(stats["network"]["requests"], requests.len() as u64, "{stats}");
        assert_eq!(stats["network"]["bytes"], sent, "{stats}");
        assert_eq!(stats["network"]["retries"], 0, "{stats}");
    }
}
