//! Attached indexes: made once, found by every mount, and believed no further than the layers bear them out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use eo_mount::index::{
    AttachedPart, ChunkDigests, Content, DIGEST_CHUNK, LayerIndexBuilder, Limits, Member, Scanner, Step, encode,
    write_attached,
};
use eo_mount_testing::fixtures::{RawTar, noise, patch_tar};
use eo_mount_testing::python::python_says;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    ALWAYS, Artifact, Descriptor, EoMount, Fault, Finished, Home, Kind, Matcher, Mounted, Program, RealRegistry,
    ScriptedRegistry, Takes, xattr,
};
use serde_json::{Value, json};

const TYPE: &str = "application/vnd.eo-mount.index.v1";
const CREATED: &str = "org.opencontainers.image.created";

fn eo_mount(home: &Home, arguments: &[&str]) -> Finished {
    EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).home(home).args(arguments).output()
}

fn mount(reference: &str, arguments: &[&str]) -> Mounted {
    EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference).args(arguments).arg("-v").mount()
}

/// Names below a folder with their sizes, sorted.
fn list(folder: &Path) -> Vec<(PathBuf, u64)> {
    let (mut names, mut waiting) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
            let size = if metadata.is_file() { metadata.len() } else { 0 };
            names.push((entry.path().strip_prefix(folder).unwrap().to_owned(), size));
        }
    }
    names.sort();
    names
}

fn members(archive: &[u8]) -> Vec<Member> {
    let mut scanner = Scanner::new(archive.len() as u64, Limits::default());
    std::iter::from_fn(|| match scanner.step(0, archive) {
        Ok(Step::Member(member)) => Some(member),
        _ => None,
    })
    .collect()
}

/// The index that eo-mount makes of an archive, said to be of this layer.
fn index_as(archive: &[u8], layer: &Descriptor) -> AttachedPart {
    index_of(members(archive), layer)
}

fn index_of(members: Vec<Member>, layer: &Descriptor) -> AttachedPart {
    let mut builder = LayerIndexBuilder::new(Limits::default());
    members.into_iter().for_each(|member| builder.push(member).unwrap());
    let digest = layer.digest.parse().unwrap();
    let index = encode(&builder.finish(), &digest, layer.size, Content::Blob).unwrap();
    AttachedPart { digest, size: layer.size, index, digests: None }
}

/// A registry with the referrers API, as far as a mount asks it, and a dataset `d:t` with layers `0`, `1`, ….
struct Dataset {
    registry: ScriptedRegistry,
    layers: Vec<Vec<u8>>,
    artifact: Artifact,
    manifest: Descriptor,
}

impl Dataset {
    fn of(layers: Vec<Vec<u8>>) -> Self {
        let registry = ScriptedRegistry::start();
        let titled = layers.iter().enumerate();
        let artifact =
            titled.fold(Artifact::new(), |artifact, (number, tar)| artifact.tar(&format!("{number}.tar"), tar.clone()));
        let manifest = artifact.push(&registry, "d", "t");
        let dataset = Self { registry, layers, artifact, manifest };
        dataset.tell(&[]);
        dataset
    }

    fn reference(&self) -> String {
        self.registry.reference("d:t")
    }

    /// Of all layers, each said to be this other archive.
    fn parts_as(&self, archives: &[Vec<u8>]) -> Vec<AttachedPart> {
        self.artifact.layers().iter().zip(archives).map(|(layer, archive)| index_as(archive, layer)).collect()
    }

    fn parts(&self) -> Vec<AttachedPart> {
        self.parts_as(&self.layers)
    }

    /// Puts an index there, and tells how the list of referrers has it.
    fn put(&self, parts: Vec<AttachedPart>, date: &str) -> Value {
        let written = write_attached(parts).unwrap();
        self.put_bytes(written.bytes, written.indexes, written.footer.as_str(), date)
    }

    fn put_bytes(&self, bytes: Vec<u8>, begins: u64, footer: &str, date: &str) -> Value {
        let artifact = Artifact::new()
            .artifact_type(TYPE)
            .subject(self.manifest.clone())
            .annotation(CREATED, date)
            .layer(None, TYPE, bytes)
            .annotation("vnd.eo-mount.index.tail", &begins.to_string())
            .annotation("vnd.eo-mount.index.footer", footer);
        let mut listed = artifact.push(&self.registry, "d", "index").to_json();
        listed["artifactType"] = json!(TYPE);
        listed["annotations"] = json!({ CREATED: date });
        listed
    }

    /// From now on the list of referrers has these.
    fn tell(&self, referrers: &[Value]) {
        self.registry.clear_faults();
        let headers = vec![("Content-Type".to_owned(), "application/vnd.oci.image.index.v1+json".to_owned())];
        let list = json!({ "schemaVersion": 2, "manifests": referrers }).to_string();
        self.registry.fault(Matcher::path("/referrers/"), Fault::Status(200, headers, list), ALWAYS);
        self.registry.reset();
    }

    /// Requests for bytes of layers.
    fn layer_requests(&self) -> usize {
        let layers: Vec<String> = self.artifact.layers().into_iter().map(|layer| layer.digest).collect();
        let of_layer = |digest: &str| layers.iter().any(|layer| layer == digest);
        self.registry.requests_of(Kind::Blob).iter().filter(|request| request.digest().is_some_and(of_layer)).count()
    }
}

fn two_files(names: [&str; 2], sizes: [usize; 2]) -> Vec<u8> {
    let files = names.into_iter().zip(sizes).zip(1..);
    let tar = files.fold(RawTar::new().directory("d/"), |tar, ((name, size), seed)| tar.file(name, noise(seed, size)));
    tar.finish()
}

/// Each a folder and a file.
fn tiny_layers() -> Vec<Vec<u8>> {
    let tar = |number| RawTar::new().directory("d/").file(format!("d/{number}.txt"), format!("{number}\n").repeat(100));
    (0..2433).map(|number: u32| tar(number).finish()).collect()
}

#[track_caller]
fn find_takes(most: usize, dataset: &Dataset) {
    dataset.registry.reset();
    let mounted = mount(&dataset.reference(), &[]);
    let names = list(mounted.path());
    // Each layer, its folder and file; and the config.
    assert_eq!(names.len(), 3 * 2433 + 1);
    let asked: Vec<String> = dataset.registry.requests().iter().map(|request| request.path.clone()).collect();
    assert!(asked.len() <= most, "{} requests: {asked:#?}", asked.len());
    let file = mounted.join("2000/d/2000.txt");
    assert_eq!(fs::read_to_string(file).unwrap(), "2000\n".repeat(100));
    assert_eq!(dataset.registry.requests().len(), asked.len() + 1, "header and content are one chunk");
    mounted.unmount();
}

#[test]
fn find_over_2433_layers_with_an_attached_index_takes_five_requests() {
    let dataset = Dataset::of(tiny_layers());
    dataset.tell(&[dataset.put(dataset.parts(), "2026-01-01T00:00:00Z")]);
    // Manifest, config, list, the index's manifest and end.
    find_takes(5, &dataset);
}

#[test]
fn find_over_2433_layers_with_an_attached_index_takes_six_requests_without_an_api() {
    let dataset = Dataset::of(tiny_layers());
    dataset.registry.clear_faults();
    dataset.registry.take_uploads(Takes::default());
    eo_mount(&Home::new(), &["index", "--attach", &dataset.reference()]).expect_success("index --attach");
    // Manifest, config, API, tag, the index's manifest and end.
    find_takes(6, &dataset);
}

#[test]
fn looking_for_an_index_costs_the_first_layer_one_request_with_an_api_and_without() {
    let dataset = Dataset::of((1..4).map(|number| patch_tar(number, 32)).collect());
    let asked = |path: &str| dataset.registry.requests().iter().filter(|request| request.path.contains(path)).count();
    for has_api in [true, false] {
        if !has_api {
            dataset.registry.clear_faults();
        }
        let [(mounted, requests), (without, fewer)] = [&[][..], &["--no-index"]].map(|arguments| {
            dataset.registry.reset();
            let mounted = mount(&dataset.reference(), arguments);
            assert!(list(&mounted.join("0")).len() > 8);
            (mounted, dataset.registry.requests().len())
        });
        assert_eq!(requests, fewer + 1, "with an API: {has_api}");
        without.unmount();
        assert_eq!(asked("/manifests/sha256-"), 0);
        dataset.registry.reset();
        assert!(list(&mounted.join("1")).len() > 8 && list(&mounted.join("2")).len() > 8);
        let tags = usize::from(!has_api);
        assert_eq!((asked("/referrers/"), asked("/manifests/sha256-")), (0, tags), "with an API: {has_api}");
        mounted.unmount();
    }
}

/// What a look into all layers asks the registry of what is attached: its API, and the tag in its place.
#[track_caller]
fn looking_asks(home: &Home, dataset: &Dataset, tag: &str, of_api: usize, of_tag: usize) -> String {
    dataset.registry.reset();
    // As far as earlier looks have made them.
    let _ = fs::remove_dir_all(home.cache().join("eo-mount/indexes"));
    let reference = dataset.registry.reference(tag);
    let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference).args(["-vv"]).home(home).mount();
    assert!(list(mounted.path()).len() > 3 * 8);
    let asked = |path: &str| dataset.registry.requests().iter().filter(|request| request.path.contains(path)).count();
    assert_eq!((asked("/referrers/"), asked("/manifests/sha256-")), (of_api, of_tag), "{tag}");
    let log = mounted.log();
    mounted.unmount();
    fs::remove_file(home.log_file()).unwrap();
    log
}

fn found_to_have_no_api() -> (Dataset, Home) {
    let dataset = Dataset::of((1..4).map(|number| patch_tar(number, 32)).collect());
    dataset.registry.clear_faults();
    let home = Home::new();
    looking_asks(&home, &dataset, "d:t", 1, 1);
    (dataset, home)
}

#[test]
fn where_there_was_no_api_the_tag_alone_is_asked_for_a_day() {
    let (dataset, home) = found_to_have_no_api();
    looking_asks(&home, &dataset, "d:t", 0, 1);
    let other = |number| Artifact::new().tar("0.tar", patch_tar(number, 32)).tar("1.tar", patch_tar(number + 1, 32));
    other(5).tar("2.tar", patch_tar(7, 32)).push(&dataset.registry, "d", "u");
    looking_asks(&home, &dataset, "d:u", 0, 1);
    // An index that is attached is found, and its layers are not asked for.
    dataset.registry.take_uploads(Takes::default());
    eo_mount(&Home::new(), &["index", "--attach", &dataset.reference()]).expect_success("index --attach");
    assert!(looking_asks(&home, &dataset, "d:t", 0, 1).contains("attached index"));
    // Other repositories of the registry may have one.
    other(5).tar("2.tar", patch_tar(7, 32)).push(&dataset.registry, "e", "t");
    looking_asks(&home, &dataset, "e:t", 1, 1);
    looking_asks(&home, &dataset, "e:t", 0, 1);
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(25 * 3600);
    for file in fs::read_dir(home.cache().join("eo-mount/manifests/tags")).unwrap() {
        fs::File::open(file.unwrap().path()).unwrap().set_modified(yesterday).unwrap();
    }
    looking_asks(&home, &dataset, "d:t", 1, 1);
}

#[test]
fn an_api_that_comes_is_believed_when_somebody_looks_for_what_is_attached() {
    let (dataset, home) = found_to_have_no_api();
    let index = dataset.put(dataset.parts(), "2026-01-01T00:00:00Z");
    dataset.tell(std::slice::from_ref(&index));
    let found = eo_mount(&home, &["discover", "--json", &dataset.reference()]).expect_success("discover").text();
    assert!(found.contains(index["digest"].as_str().unwrap()), "the API is asked all the same: {found}");
    assert!(looking_asks(&home, &dataset, "d:t", 1, 0).contains("attached index"));
}

#[test]
fn an_answer_that_does_not_tell_whether_there_is_an_api_is_not_remembered() {
    let dataset = Dataset::of((1..4).map(|number| patch_tar(number, 32)).collect());
    let unknown = |code| json!({ "errors": [{ "code": code, "message": "" }] }).to_string();
    for fault in [
        Fault::Status(404, Vec::new(), unknown("NAME_UNKNOWN")),
        Fault::Status(404, Vec::new(), unknown("MANIFEST_UNKNOWN")),
        Fault::Status(200, Vec::new(), "<html>log in</html>".into()),
        Fault::status(500),
        Fault::StallAfter(3),
    ] {
        dataset.registry.clear_faults();
        dataset.registry.fault(Matcher::path("/referrers/"), fault.clone(), ALWAYS);
        let home = Home::new();
        let mounted =
            EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), dataset.reference()).home(&home).without_log().mount();
        list(mounted.path());
        mounted.unmount();
        let index = dataset.put(dataset.parts(), "2026-01-01T00:00:00Z");
        dataset.tell(&[index]);
        assert!(looking_asks(&home, &dataset, "d:t", 1, 0).contains("attached index"), "{fault:?}");
    }
}

#[test]
fn a_large_layer_is_worth_asking_for_the_tag_at_once() {
    let registry = ScriptedRegistry::start();
    let digest = format!("sha256:{}", "1".repeat(64));
    let layer = registry.put_sparse_blob((1 << 30) + 512, &digest, |_, bytes| bytes.fill(0));
    Artifact::new().layer_of(Some("0.tar"), layer).push(&registry, "d", "t");
    let mounted = mount(&registry.reference("d:t"), &[]);
    list(mounted.path());
    assert!(registry.requests().iter().any(|request| request.path.contains("/manifests/sha256-")));
    mounted.unmount();
}

#[track_caller]
fn what_one_attaches_another_mounts(program: Program, most: u64) {
    let (files, registry) = (tempfile::tempdir().unwrap(), RealRegistry::of(program).start());
    let mut arguments = Vec::new();
    for number in 0..12 {
        fs::write(files.path().join(format!("{number}.tar")), patch_tar(number, 32)).unwrap();
        arguments.push(format!("{number}.tar:application/vnd.oci.image.layer.v1.tar"));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    registry.push_with_oras(files.path(), "pastis:t", &arguments);
    let reference = registry.reference("pastis:t");
    let told = eo_mount(&Home::new(), &["index", "--attach", &reference]).expect_success("index --attach").text();
    let digest = told.lines().last().unwrap().strip_prefix("attached ").unwrap().to_owned();
    let seen =
        registry.oras(files.path(), &["discover", "--format", "json", &registry.on_localhost("pastis:t")]).text();
    assert!(seen.contains(&digest), "{seen}");

    let requests = |mounted: &Mounted| {
        let stats: Value =
            serde_json::from_str(&xattr::get(mounted.path(), "user.eo.stats").unwrap().unwrap()).unwrap();
        stats["network"]["requests"].as_u64().unwrap()
    };
    let (with, without) = (mount(&reference, &[]), mount(&reference, &["--no-index"]));
    assert_eq!(list(with.path()), list(without.path()));
    assert!(requests(&with) <= most, "{}", requests(&with));
    assert!(requests(&without) > 12, "{}", requests(&without));
    let file = "7/DATA_S2/S2_7.npy";
    assert!(fs::read(with.join(file)).unwrap() == fs::read(without.join(file)).unwrap());
    assert!(!with.log().contains("indexed anew"), "{}", with.log());
    let pinned = mount(&reference, &["--index", &digest]);
    assert_eq!(list(pinned.path()), list(without.path()));
    for mounted in [with, without, pinned] {
        mounted.unmount();
    }
}

#[test]
fn what_one_attaches_another_mounts_on_a_registry_with_referrers() {
    // Manifest, config, list, the index's manifest and end.
    what_one_attaches_another_mounts(Program::Referrers, 5);
}

#[test]
fn what_one_attaches_another_mounts_on_docker_registry() {
    // Manifest, config, no list, two layers in five, the tag in its place, the index's manifest and end.
    what_one_attaches_another_mounts(Program::DockerRegistry, 11);
}

#[test]
fn where_nothing_is_attached_a_mount_asks_once_and_with_no_index_never() {
    let dataset = Dataset::of(vec![patch_tar(1, 32), patch_tar(2, 32)]);
    let referrers =
        || dataset.registry.requests().iter().filter(|request| request.path.contains("/referrers/")).count();
    let mounted = mount(&dataset.reference(), &[]);
    assert_eq!(referrers(), 0, "not before an index is missing");
    let names = list(mounted.path());
    assert_eq!(referrers(), 1);
    mounted.unmount();
    dataset.registry.reset();
    let mounted = mount(&dataset.reference(), &["--no-index"]);
    assert_eq!(list(mounted.path()), names);
    assert_eq!(referrers(), 0);
    mounted.unmount();
    dataset.tell(&[dataset.put(dataset.parts(), "2026-01-01T00:00:00Z")]);
    let mounted = mount(&dataset.reference(), &["--no-index"]);
    assert_eq!((list(mounted.path()), referrers()), (names, 0));
    mounted.unmount();
}

#[test]
fn a_registry_that_fails_or_hangs_over_referrers_costs_a_part_of_the_timeout() {
    let dataset = Dataset::of((1..4).map(|number| patch_tar(number, 32)).collect());
    let of_api = [Fault::status(500), Fault::status(403), Fault::GarbageBody, Fault::Stall, Fault::HangUp];
    let of_tag = [Fault::GarbageBody, Fault::Stall];
    let of_api = of_api.into_iter().map(|fault| ("/referrers/", fault));
    for (path, fault) in of_api.chain(of_tag.map(|fault| ("/manifests/sha256-", fault))) {
        dataset.registry.clear_faults();
        dataset.registry.fault(Matcher::path(path), fault.clone(), ALWAYS);
        let mounted = mount(&dataset.reference(), &["--timeout", "20s"]);
        let begin = Instant::now();
        assert!(list(mounted.path()).len() > 16, "{path} {fault:?}");
        assert!(begin.elapsed() < Duration::from_secs(19), "{path} {fault:?}: {:?}", begin.elapsed());
        mounted.unmount();
    }
}

/// All that is read through a mount from a lying index is right, and said to be so once.
#[track_caller]
fn a_lie(lie: Vec<u8>, layer: Vec<u8>) -> (Mounted, Dataset) {
    let dataset = Dataset::of(vec![layer]);
    dataset.tell(&[dataset.put(dataset.parts_as(&[lie]), "2026-01-01T00:00:00Z")]);
    (mount(&dataset.reference(), &[]), dataset)
}

#[track_caller]
fn is_said_once(mounted: Mounted) {
    let log = mounted.log();
    assert_eq!(log.matches("its attached index is wrong").count(), 1, "{log}");
    mounted.unmount();
}

#[test]
fn a_wrong_offset_gives_the_right_bytes_and_a_warning() {
    let truth = two_files(["d/a", "d/b"], [5000, 70_000]);
    let lie = RawTar::new().directory("d/").file("d/b", noise(2, 70_000)).file("d/a", noise(1, 5000)).finish();
    let (mounted, dataset) = a_lie(lie, truth);
    assert_eq!(list(mounted.path()).len(), 5);
    assert_eq!(dataset.layer_requests(), 0, "a listing believes it");
    assert!(fs::read(mounted.join("0/d/b")).unwrap() == noise(2, 70_000));
    assert!(fs::read(mounted.join("0/d/a")).unwrap() == noise(1, 5000));
    is_said_once(mounted);
}

#[test]
fn a_wrong_size_is_an_error_first_and_then_the_right_bytes() {
    let truth = two_files(["d/a", "d/b"], [5000, 70_000]);
    for (wrong, other) in [(100, 70_000), (4000, 70_000), (40_000, 10_000)] {
        let (mounted, _dataset) = a_lie(two_files(["d/a", "d/b"], [wrong, other]), truth.clone());
        let file = mounted.join("0/d/a");
        assert_eq!(fs::metadata(&file).unwrap().len(), wrong as u64, "a listing believes it");
        let first = fs::read(&file);
        assert!(first.is_err(), "{} bytes of {wrong}", first.unwrap().len());
        let right = || fs::read(&file).is_ok_and(|bytes| bytes == noise(1, 5000));
        assert!(wait_until(Duration::from_secs(10), right));
        assert_eq!(fs::metadata(&file).unwrap().len(), 5000);
        assert!(wait_until(Duration::from_secs(10), || {
            fs::read(mounted.join("0/d/b")).is_ok_and(|bytes| bytes == noise(2, 70_000))
        }));
        is_said_once(mounted);
    }
}

#[test]
fn a_name_that_does_not_exist_is_an_error_and_the_true_one_is_there() {
    let truth = two_files(["d/a", "d/true"], [5000, 70_000]);
    let (mounted, _dataset) = a_lie(two_files(["d/a", "d/false"], [5000, 70_000]), truth);
    assert!(fs::metadata(mounted.join("0/d/true")).is_err());
    assert_eq!(fs::read(mounted.join("0/d/false")).unwrap_err().raw_os_error(), Some(5));
    let names = || list(mounted.path()).iter().map(|(name, _)| name.display().to_string()).collect::<Vec<_>>();
    let told = || names().contains(&"0/d/true".to_owned()) && !names().contains(&"0/d/false".to_owned());
    assert!(wait_until(Duration::from_secs(10), told), "{:?}", names());
    assert!(fs::read(mounted.join("0/d/true")).unwrap() == noise(2, 70_000));
    assert!(fs::read(mounted.join("0/d/a")).unwrap() == noise(1, 5000));
    is_said_once(mounted);
}

#[test]
fn what_no_file_system_can_hold_is_left_out_by_scanned_stored_and_attached_indexes_alike() {
    let name = "n".repeat(256);
    let layer = RawTar::new().file("a", noise(1, 100_000)).file(&name, noise(2, 700)).file("b", noise(3, 100_000));
    let dataset = Dataset::of(vec![layer.finish()]);
    let home = Home::new();
    // The log of a home goes on.
    let seen = |arguments: &[&str], home: &Home, told: usize| {
        let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), dataset.reference()).home(home).args(arguments);
        let mounted = call.mount();
        let names = list(&mounted.join("0"));
        assert_eq!(names, [("a".into(), 100_000), ("b".into(), 100_000)]);
        let requests = dataset.layer_requests();
        assert_eq!(fs::read(mounted.join("0/b")).unwrap(), noise(3, 100_000));
        let log = mounted.log();
        assert_eq!(log.matches(&format!("{name}: left out")).count(), told, "{log}");
        assert!(!log.contains("is wrong"), "{log}");
        mounted.unmount();
        requests
    };
    assert!(seen(&["--no-index"], &home, 1) > 0);
    dataset.registry.reset();
    assert_eq!(seen(&["--no-index"], &home, 2), 0, "the index is kept");
    dataset.tell(&[dataset.put(dataset.parts(), "2026-01-01T00:00:00Z")]);
    assert_eq!(seen(&[], &Home::new(), 1), 0, "the index is attached");
}

#[test]
fn links_are_believed_only_when_the_layer_was_indexed() {
    let truth = RawTar::new().file("a", noise(1, 900)).file("b", noise(2, 900)).symlink("s", "a").hard_link("h", "a");
    let lie = RawTar::new().file("a", noise(1, 900)).file("b", noise(2, 900)).symlink("s", "b").hard_link("h", "b");
    let (mounted, _dataset) = a_lie(lie.finish(), truth.finish());
    assert_eq!(list(mounted.path()).len(), 6);
    assert_eq!(fs::read_link(mounted.join("0/s")).unwrap(), Path::new("a"));
    let right = || fs::read(mounted.join("0/h")).is_ok_and(|bytes| bytes == noise(1, 900));
    assert!(wait_until(Duration::from_secs(10), right));
    assert!(fs::read(mounted.join("0/s")).unwrap() == noise(1, 900));
    mounted.unmount();
}

#[test]
fn verbs_believe_no_more_than_a_mount() {
    let dataset = Dataset::of(vec![two_files(["d/a", "d/b"], [5000, 70_000])]);
    let lie = two_files(["d/b", "d/a"], [70_000, 5000]);
    dataset.tell(&[dataset.put(dataset.parts_as(&[lie]), "2026-01-01T00:00:00Z")]);
    let (home, to) = (Home::new(), tempfile::tempdir().unwrap());
    let out = to.path().display().to_string();
    eo_mount(&home, &["pull", "--extract", "-o", &out, &dataset.reference()]).expect_success("pull");
    assert!(fs::read(to.path().join("0/d/a")).unwrap() == noise(1, 5000));
    assert!(fs::read(to.path().join("0/d/b")).unwrap() == noise(2, 70_000));
}

#[test]
fn the_newest_that_holds_is_used() {
    let dataset = Dataset::of(vec![patch_tar(1, 32), patch_tar(2, 32)]);
    let good = dataset.put(dataset.parts(), "2026-01-02T00:00:00Z");
    let written = write_attached(dataset.parts()).unwrap();
    let mut damaged = written.bytes.clone();
    let at = damaged.len() - 100;
    damaged[at] ^= 1;
    let damaged = dataset.put_bytes(damaged, written.indexes, written.footer.as_str(), "2026-01-05T00:00:00Z");
    let other = Dataset::of(vec![patch_tar(3, 32)]);
    let foreign = other.put(other.parts(), "2026-01-04T00:00:00Z");
    let garbage = dataset.put_bytes(vec![7; 100_000], 9, "sha256:none", "2026-01-03T00:00:00Z");
    let old = dataset.put(dataset.parts_as(&[two_files(["x", "y"], [1, 1]), Vec::new()]), "2026-01-01T00:00:00Z");
    dataset.tell(&[garbage, old, good, damaged, foreign]);
    let (mounted, without) = (mount(&dataset.reference(), &[]), mount(&dataset.reference(), &["--no-index"]));
    assert_eq!(list(mounted.path()), list(without.path()));
    let log = mounted.log();
    assert_eq!(log.matches("it is passed over").count(), 3, "{log}");
    mounted.unmount();
    without.unmount();
}

#[test]
fn layers_that_it_lacks_are_indexed_and_those_that_a_manifest_lacks_are_passed_over() {
    let dataset = Dataset::of(vec![patch_tar(1, 32), patch_tar(2, 32)]);
    let mut parts = dataset.parts();
    parts.remove(1);
    parts.extend((0..300_u32).map(|number| {
        let layer = Artifact::new().tar("x", number.to_le_bytes().to_vec()).layers().remove(0);
        index_as(b"", &layer)
    }));
    // A frame that is none.
    dataset.tell(&[dataset.put(parts, "2026-01-01T00:00:00Z")]);
    let (mounted, without) = (mount(&dataset.reference(), &[]), mount(&dataset.reference(), &["--no-index"]));
    assert_eq!(list(&mounted.join("0")), list(&without.join("0")));
    without.unmount();
    dataset.registry.reset();
    let names = list(&mounted.join("1"));
    assert!(names.len() > 8 && dataset.layer_requests() > 0);
    mounted.unmount();
}

#[test]
fn a_frame_that_is_no_index_costs_a_warning_and_a_scan() {
    let dataset = Dataset::of(vec![patch_tar(1, 32), patch_tar(2, 32)]);
    let mut parts = dataset.parts();
    parts[0].index = vec![0; 32 << 20];
    let of_other = parts[0].digest.clone();
    parts[1].index = encode(&LayerIndexBuilder::new(Limits::default()).finish(), &of_other, 1, Content::Blob).unwrap();
    dataset.tell(&[dataset.put(parts, "2026-01-01T00:00:00Z")]);
    let (mounted, without) = (mount(&dataset.reference(), &[]), mount(&dataset.reference(), &["--no-index"]));
    assert_eq!(list(mounted.path()), list(without.path()));
    let log = mounted.log();
    assert_eq!(log.matches("it is indexed anew").count(), 2, "{log}");
    mounted.unmount();
    without.unmount();
}

#[test]
fn a_layer_that_was_listed_from_its_headers_keeps_its_inodes_when_the_index_can_be_had_later() {
    let large = (0..50_000).fold(RawTar::new(), |tar, number| tar.file(format!("{number:06}"), b"")).finish();
    let mut layers = vec![RawTar::new().file("a", noise(1, 5000)).file("b", noise(2, 5000)).finish()];
    layers.extend((0..5).map(|number| [large.as_slice(), &[number; 512]].concat()));
    let dataset = Dataset::of(layers);
    // Right, but in another order. What follows keeps its frame apart from the index's end.
    let other = index_of(members(&dataset.layers[0]).into_iter().rev().collect(), &dataset.artifact.layers()[0]);
    let digest = format!("sha256:{}", "f".repeat(64)).parse().unwrap();
    let padding = AttachedPart { digest, size: 1, index: noise(3, 300_000).to_vec(), digests: None };
    let written = write_attached(vec![other, padding]).unwrap();
    let begins = written.bytes.len() as u64 - 1000;
    let index = eo_mount_testing::sha256(&written.bytes);
    let listed = [dataset.put_bytes(written.bytes, begins, written.footer.as_str(), "2026-01-01T00:00:00Z")];
    dataset.tell(&listed);
    dataset.registry.fault(Matcher::blob(&index).touching(0..1), Fault::status(404), ALWAYS);
    // Without a cache folder, because what is kept of a layer comes before what is attached.
    let mounted = mount(&dataset.reference(), &["--memory", "16MiB", "--cache-dir", "/dev/null/none"]);
    assert_eq!(list(&mounted.join("0")).len(), 2);
    assert!(mounted.log().contains("it is indexed anew"), "{}", mounted.log());
    dataset.tell(&listed);
    // Indexes of 4 MiB each drive out that of the first layer.
    for number in 1..6 {
        assert_eq!(list(&mounted.join(number.to_string())).len(), 50_000);
    }
    for (name, seed) in [("a", 1), ("b", 2)] {
        assert!(fs::read(mounted.join("0").join(name)).unwrap() == noise(seed, 5000), "{name}");
    }
    mounted.unmount();
}

#[test]
fn an_index_that_is_attached_is_not_kept_as_if_it_were_proven() {
    let dataset = Dataset::of(vec![patch_tar(1, 32)]);
    dataset.tell(&[dataset.put(dataset.parts(), "2026-01-01T00:00:00Z")]);
    let mounted = mount(&dataset.reference(), &[]);
    list(mounted.path());
    assert!(fs::read(mounted.join("0/DATA_S2/S2_1.npy")).unwrap().len() > 1000);
    let kept = mounted.home().cache().join("eo-mount/indexes/sha256");
    assert!(fs::read_dir(&kept).map_or(0, Iterator::count) == 0);
    eo_mount(mounted.home(), &["index", &dataset.reference()]).expect_success("index");
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 1);
    mounted.unmount();
}

/// Of these bytes of a layer.
fn digests_of(bytes: &[u8]) -> Option<ChunkDigests> {
    let mut digests = ChunkDigests::default();
    bytes.chunks(DIGEST_CHUNK as usize).for_each(|chunk| digests.push(chunk));
    Some(digests)
}

#[test]
fn a_pinned_index_checks_every_chunk_that_arrives() {
    let tar = RawTar::new().file("a", noise(1, 300_000)).file("b", noise(2, 300_000)).finish();
    let dataset = Dataset::of(vec![tar.clone()]);
    let mut parts = dataset.parts();
    let mut wrong = tar.clone();
    wrong[400_000] ^= 1;
    parts[0].digests = digests_of(&wrong);
    let pinned = dataset.put(parts, "2026-01-01T00:00:00Z");
    let digest = pinned["digest"].as_str().unwrap();
    let mounted = mount(&dataset.reference(), &["--index", digest]);
    let verified = |name: &str| xattr::get(mounted.join(name), "user.eo.verified").unwrap().unwrap();
    assert_eq!(verified("0/a"), "unverified");
    // The last chunk of `a` comes in a run with the wrong one where read-ahead asks for both.
    let reads = wait_until(Duration::from_secs(10), || {
        fs::read(mounted.join("0/a")).is_ok_and(|bytes| bytes == noise(1, 300_000))
    });
    assert!(reads, "{}", mounted.log());
    assert_eq!(verified("0/a"), "chunk");
    for _ in 0..2 {
        assert_eq!(fs::read(mounted.join("0/b")).unwrap_err().raw_os_error(), Some(5));
    }
    let chunk = 400_000 / DIGEST_CHUNK * DIGEST_CHUNK;
    let log = mounted.log();
    assert!(log.contains(&format!("bytes {chunk} to {} have the digest sha256:", chunk + DIGEST_CHUNK)), "{log}");
    assert!(log.contains("; the index has sha256:"), "{log}");
    assert_eq!(verified("0/b"), "unverified");
    mounted.unmount();
    let mounted = mount(&dataset.reference(), &[]);
    assert!(fs::read(mounted.join("0/b")).unwrap() == noise(2, 300_000), "nobody trusts its digests");
    assert_eq!(xattr::get(mounted.join("0/a"), "user.eo.verified").unwrap().unwrap(), "unverified");
    mounted.unmount();
}

#[test]
fn a_pinned_index_that_cannot_be_had_is_an_error_at_mount() {
    let dataset = Dataset::of(vec![patch_tar(1, 32)]);
    let elsewhere = Dataset::of(vec![patch_tar(2, 32)]);
    let attached_to = |subject: &Descriptor| {
        let bytes = write_attached(dataset.parts()).unwrap().bytes;
        let artifact = Artifact::new().artifact_type(TYPE).subject(subject.clone()).layer(None, TYPE, bytes);
        artifact.push(&dataset.registry, "d", "index").digest
    };
    let (foreign, nameless) = (attached_to(&elsewhere.manifest), attached_to(&dataset.manifest));
    let missing = format!("sha256:{}", "0".repeat(64));
    let digests = [&missing, &foreign, &dataset.manifest.digest, &nameless];
    let says = [
        "no such tag or digest",
        "not attached to what is mounted",
        "not attached to what is mounted",
        "does not name its footer",
    ];
    for (digest, says) in digests.into_iter().zip(says) {
        let refused = eo_mount(&Home::new(), &["ls", "--index", digest, &dataset.reference()]);
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(refused.stderr.contains(says) && refused.stderr.contains(digest), "{}", refused.stderr);
    }
    for more in ["--no-index", "--verify=blob"] {
        let refused = eo_mount(&Home::new(), &["ls", "--index", &missing, more, &dataset.reference()]);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
    }
}

#[test]
fn index_attach_digests_pins_what_the_layers_hold() {
    let dataset = Dataset::of(vec![patch_tar(1, 8), patch_tar(2, 8)]);
    dataset.registry.clear_faults();
    dataset.registry.take_uploads(Takes::default());
    let told = eo_mount(&Home::new(), &["index", "--attach", "--digests", "--json", &dataset.reference()]);
    let told: Value = serde_json::from_str(&told.expect_success("index").text()).unwrap();
    let digest = told["attached"][0].as_str().unwrap();
    let mounted = mount(&dataset.reference(), &["--index", digest]);
    for (file, _) in list(mounted.path()).iter().filter(|(file, size)| *size > 0 && file.starts_with("1")) {
        let path = mounted.join(file);
        assert!(!fs::read(&path).unwrap().is_empty());
        assert_ne!(xattr::get(&path, "user.eo.verified").unwrap().unwrap(), "unverified", "{}", file.display());
    }
    mounted.unmount();
    dataset.registry.fault(Matcher::blob(&dataset.artifact.layers()[0].digest), Fault::WrongBytes, ALWAYS);
    let refused = eo_mount(&Home::new(), &["index", "--attach", "--digests", &dataset.reference()]);
    assert_eq!(refused.code, 1, "digests of wrong bytes are not attached: {}", refused.stderr);
}

#[test]
fn seekable_zstd_is_attached_and_gzip_is_not() {
    let tar = two_files(["d/a", "d/b"], [200_000, 300_000]);
    let registry = ScriptedRegistry::start();
    registry.take_uploads(Takes::default());
    let gzip = {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    let artifact = Artifact::new()
        .layer(Some("zstd.tar.zst"), "application/vnd.oci.image.layer.v1.tar+zstd", seekable(&tar, 64 << 10))
        .layer(Some("gzip.tar.gz"), "application/vnd.oci.image.layer.v1.tar+gzip", gzip)
        .tar("plain.tar", patch_tar(1, 32));
    artifact.push(&registry, "d", "t");
    let reference = registry.reference("d:t");
    eo_mount(&Home::new(), &["index", "--attach", &reference]).expect_success("index");
    registry.reset();
    let mounted = mount(&reference, &[]);
    let layer = artifact.layers().remove(0).digest;
    let of_layer = || registry.requests().iter().filter(|request| request.digest() == Some(&layer)).count();
    // No tag is asked for two layers.
    assert!(list(&mounted.join("plain")).len() > 8);
    assert_eq!(list(&mounted.join("gzip")).len(), 3);
    assert!(fs::read(mounted.join("gzip/d/a")).unwrap() == noise(1, 200_000));
    assert_eq!(list(&mounted.join("zstd")).len(), 3);
    assert_eq!(of_layer(), 0);
    assert!(fs::read(mounted.join("zstd/d/b")).unwrap() == noise(2, 300_000));
    assert!(!mounted.log().contains("indexed anew"), "{}", mounted.log());
    mounted.unmount();
}

#[test]
fn an_index_is_attached_in_an_image_layout_too() {
    let folder = tempfile::tempdir().unwrap();
    let reference = format!("oci:{}:t", folder.path().display());
    let artifact = Artifact::new().tar("1.tar", patch_tar(1, 32)).tar("2.tar", patch_tar(2, 32));
    artifact.write_layout(folder.path(), "t");
    let told = eo_mount(&Home::new(), &["index", "--attach", &reference]).expect_success("index").text();
    let digest = told.lines().last().unwrap().strip_prefix("attached ").unwrap().to_owned();
    let (found, without) = (mount(&reference, &["-vv"]), mount(&reference, &["--no-index"]));
    assert_eq!(list(found.path()), list(without.path()));
    assert!(found.log().contains(&format!("attached index {digest}: it has 2 layers")), "{}", found.log());
    let file = "2/DATA_S2/S2_2.npy";
    assert!(fs::read(found.join(file)).unwrap() == fs::read(without.join(file)).unwrap());
    found.unmount();
    without.unmount();
}

/// zstd's seekable format, version 0.1.0.
fn seekable(content: &[u8], frame: usize) -> Vec<u8> {
    let (mut packed, mut table) = (Vec::new(), Vec::new());
    for frame in content.chunks(frame) {
        let bytes = zstd::bulk::compress(frame, 3).unwrap();
        table.extend((bytes.len() as u32).to_le_bytes());
        table.extend((frame.len() as u32).to_le_bytes());
        packed.extend(bytes);
    }
    let (length, count) = (table.len() as u32 + 9, (table.len() / 8) as u32);
    packed.extend([0x184D_2A5E_u32.to_le_bytes(), length.to_le_bytes()].concat());
    packed.extend(table);
    packed.extend(count.to_le_bytes());
    packed.push(0);
    packed.extend(0x8F92_EAB1_u32.to_le_bytes());
    packed
}

/// By the document alone, with `zstd` and `struct`.
const ANOTHER_IMPLEMENTATION: &str = r#"
import hashlib, struct, subprocess, sys
blob = open(sys.argv[1], "rb").read()
checksum, length, version, reserved, magic = struct.unpack("<32sQI4s8s", blob[-56:])
assert (version, reserved, magic) == (1, bytes(4), b"\x89EOATT\r\n")
table = blob[-56 - length:-56]
assert hashlib.sha256(table).digest() == checksum and length % 136 == 0
assert blob[-64 - length:-56 - length] == struct.pack("<II", 0x184D2A5E, length + 56)
def frame(at, size, digest):
    packed = blob[at:at + size]
    assert hashlib.sha256(packed).digest() == digest
    return subprocess.run(["zstd", "-dc"], input=packed, stdout=subprocess.PIPE, check=True).stdout
for row in range(0, length, 136):
    layer, size = struct.unpack("<32sQ", table[row:row + 40])
    index = frame(*struct.unpack("<QQ32s", table[row + 40:row + 88]))
    digests = frame(*struct.unpack("<QQ32s", table[row + 88:row + 136])) if any(table[row + 88:row + 136]) else b""
    assert index[:8] == b"\x89EOIDX\r\n" and index[64:135] == b"sha256:" + layer.hex().encode()
    print(layer.hex(), size, struct.unpack("<I", index[32:36])[0], digests.hex())
"#;

#[test]
fn another_implementation_reads_it_by_its_description() {
    let dataset = Dataset::of(vec![two_files(["d/a", "d/b"], [70_000, 3]), RawTar::new().file("x", "x").finish()]);
    let mut parts = dataset.parts();
    parts[0].digests = digests_of(&dataset.layers[0]);
    let expected: BTreeMap<String, String> = dataset
        .artifact
        .layers()
        .into_iter()
        .zip(["4", "2"])
        .zip([true, false])
        .map(|((layer, entries), has_digests)| {
            let chunks = dataset.layers[0].chunks(DIGEST_CHUNK as usize).filter(|_| has_digests);
            let digests: String =
                chunks.map(|chunk| eo_mount_testing::sha256(chunk)["sha256:".len()..].to_owned()).collect();
            let hex = layer.digest["sha256:".len()..].to_owned();
            (hex.clone(), format!("{hex} {} {entries} {digests}", layer.size).trim_end().to_owned())
        })
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), write_attached(parts).unwrap().bytes).unwrap();
    let told = python_says(ANOTHER_IMPLEMENTATION, &[file.path()]);
    let told: Vec<&str> = told.lines().map(str::trim_end).collect();
    assert_eq!(told, expected.values().map(String::as_str).collect::<Vec<_>>());
}
