//! Servers that answer wrongly and links that break: a read gives the right bytes or fails with EIO or ETIMEDOUT within
//! its time, other layers go on, and when the cause is gone the next read works.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use eo_mount_testing::files::{forget_pages, pread, xattr};
use eo_mount_testing::fixtures::{VirtualTar, noise, patch_tar_plan};
use eo_mount_testing::processes::{self, Signal};
use eo_mount_testing::scripted_registry::CONFIG_TYPE;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{ALWAYS, Artifact, EoMount, Fault, Finished, Kind, Matcher, Mounted, ScriptedRegistry};
use rustix::io::Errno;

/// Everything ends sooner, by far.
const LONG: Duration = Duration::from_secs(60);
/// What `--timeout 3s` may become on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Bytes that are fetched at once, or less.
const CHUNK: usize = 64 << 10;

const S2: &str = "DATA_S2/S2_10000.npy";
const TARGET: &str = "ANNOTATIONS/TARGET_10000.npy";

// Wrong answers to ranges. Each on the headers of a layer and on its data.

#[test]
fn another_range_is_an_error() {
    refused(Fault::WrongContentRange, "the registry answers with `bytes ");
    refused(Fault::ShorterRange, "the registry answers with `bytes ");
}

#[test]
fn another_blob_is_an_error_where_the_registry_says_so() {
    refused(Fault::WrongDigestHeader, "the registry answers with another blob, sha256:");
}

#[test]
fn a_range_that_is_not_said_is_an_error() {
    refused(Fault::ContentRangeMissing, "the registry answers with ``");
}

#[test]
fn a_blob_of_another_size_is_an_error() {
    refused(Fault::WrongTotal, "the registry answers with `bytes ");
}

#[test]
fn more_bytes_than_asked_for_are_an_error() {
    refused(Fault::ExtraBody, "the registry announces");
}

#[test]
fn a_compressed_answer_is_an_error() {
    refused(Fault::Header("Content-Encoding", "gzip"), "compresses its answer");
}

#[test]
fn a_web_page_is_an_error() {
    refused(Fault::GarbageBody, "the registry");
}

#[test]
fn a_missing_blob_is_an_error_and_no_missing_name() {
    refused(Fault::status(404), "the registry does not have it");
}

#[test]
fn a_forbidden_blob_is_an_error() {
    refused(Fault::status(403), "403 Forbidden");
}

#[test]
fn a_blob_shorter_than_its_manifest_says_is_an_error() {
    refused(Fault::status(416), "shorter than");
}

#[test]
fn a_server_that_stays_broken_is_an_error() {
    refused(Fault::status(500), "500 Internal Server Error");
}

#[test]
fn connections_that_always_break_are_an_error() {
    at_once([Fault::HangUp, Fault::CutAfter(0)], |fault| refused(fault, "the connection broke"));
}

#[test]
fn a_server_that_never_answers_is_an_error_in_time() {
    refused(Fault::Stall, "within");
}

#[test]
fn a_body_that_stops_is_an_error_in_time() {
    refused(Fault::StallAfter(0), "within");
}

#[test]
fn a_server_that_asks_for_more_patience_than_there_is_is_an_error_and_left_alone_for_that_time() {
    let scene = Scene::new();
    let headers = vec![("Retry-After".to_owned(), "3600".to_owned())];
    let busy = Fault::Status(503, headers, String::new());
    let script = scene.registry.fault(Matcher::blob(&scene.digest), busy, ALWAYS);
    let error = list(&scene.mounted.join("10000")).expect_err("listed nevertheless");
    assert!(is_data_error(error), "{error}");
    assert!(scene.log_says("503 Service Unavailable"), "{}", scene.mounted.log());
    let met = script.met();
    assert!(list(&scene.mounted.join("10000")).is_err_and(is_data_error));
    assert_eq!(script.met(), met, "it was asked again at once");
    scene.registry.clear_faults();
    assert!(wait_until(SOON, || list(&scene.mounted.join("10000")).is_ok()), "{}", scene.mounted.log());
    scene.expect_read();
    scene.expect_other();
}

#[test]
fn redirects_in_a_circle_are_an_error() {
    let scene = Scene::new();
    scene.expect_list("10000");
    let circle = scene.registry.blob_url("pastis", &scene.digest);
    let script = scene.registry.fault(Matcher::blob(&scene.digest), Fault::Redirect(circle), ALWAYS);
    assert_eq!(scene.read(), Err(Errno::IO));
    assert!(scene.log_says("more than ten redirects"), "{}", scene.mounted.log());
    // The kernel asks twice, for two pieces each.
    assert!(script.met() <= 4 * 12, "{}", script.met());
    scene.registry.clear_faults();
    scene.expect_read();
}

// What passes.

#[test]
fn a_server_that_is_broken_for_a_while_is_asked_again() {
    survived(Fault::status(500), 3);
    survived(Fault::status(502), 1);
    survived(Fault::HangUp, 2);
}

#[test]
fn a_server_that_stops_is_given_up_for_another_attempt() {
    at_once([Fault::Stall, Fault::StallAfter(1000)], |fault| survived(fault, 1));
}

#[test]
fn an_answer_without_a_length_is_as_good() {
    survived(Fault::NoLength, ALWAYS);
}

#[test]
fn a_broken_body_goes_on_at_the_byte_where_it_broke() {
    survived(Fault::ShortBody, 1);
    let scene = Scene::new();
    scene.expect_list("10000");
    let before = scene.registry.blob_requests();
    let script = scene.registry.fault(Matcher::blob(&scene.digest), Fault::CutAfter(10_000), 2);
    scene.expect_read();
    assert_eq!(script.met(), 2);
    let ranges: Vec<_> = scene.registry.requests_of(Kind::Blob)[before..]
        .iter()
        .map(|request| request.byte_range().expect("a single range"))
        .collect();
    let resumed = |cut: u64| {
        let of = |start: u64, end: u64| ranges.contains(&(start..end));
        ranges.iter().any(|range| of(range.start + cut, range.end) && of(range.start, range.end))
    };
    assert!(resumed(10_000), "{ranges:?}");
}

#[test]
fn a_server_that_asks_for_patience_gets_it() {
    for status in [429, 503] {
        let scene = Scene::with("20s");
        scene.expect_list("10000");
        let headers = vec![("Retry-After".to_owned(), "2".to_owned())];
        let busy = Fault::Status(status, headers, "busy".to_owned());
        let at = scene.tar.member(TARGET).data.clone();
        let script = scene.registry.fault(Matcher::blob(&scene.digest), busy, 1);
        let (before, start) = (scene.registry.blob_requests(), Instant::now());
        assert_eq!(pread(scene.path(TARGET), 0..100).unwrap(), scene.tar.read(at.start..at.start + 100));
        assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!((script.met(), scene.registry.blob_requests() - before), (1, 2));
    }
}

#[test]
fn five_seconds_of_503_are_outlasted() {
    let scene = Scene::with("60s");
    scene.expect_list("10000");
    let script = scene.registry.fault(Matcher::blob(&scene.digest), Fault::status(503), ALWAYS);
    thread::scope(|scope| {
        let reader = scope.spawn(|| scene.expect_read());
        thread::sleep(Duration::from_secs(5));
        assert!(script.met() > 1 && !reader.is_finished());
        scene.registry.clear_faults();
    });
}

// Manifests and configs.

#[test]
fn a_manifest_that_cannot_be_had_is_said_in_one_line() {
    let cases = [
        (Fault::status(404), "no such tag"),
        (Fault::status(403), "403 Forbidden"),
        (Fault::status(500), "500 Internal Server Error"),
        (Fault::HangUp, "the connection broke"),
        (Fault::Stall, "no answer within 3s"),
        (Fault::StallAfter(10), "no answer within 3s"),
        (Fault::GarbageBody, "no OCI manifest"),
        (Fault::ShortBody, "the connection broke"),
    ];
    at_once(cases, |(fault, reason)| refuses_to_mount(Matcher::manifests(), fault, reason));
}

#[test]
fn a_config_that_cannot_be_had_is_said_in_one_line() {
    let cases = [
        (Fault::status(404), "does not have it"),
        (Fault::status(403), "403 Forbidden"),
        (Fault::status(500), "500 Internal Server Error"),
        (Fault::HangUp, "the connection broke"),
        (Fault::Stall, "within 3s"),
        (Fault::StallAfter(0), "within 3s"),
        (Fault::GarbageBody, "the registry announces"),
        (Fault::WrongContentRange, "the registry answers with"),
        (Fault::ContentRangeMissing, "the registry answers with"),
        (Fault::WrongTotal, "the registry answers with"),
        (Fault::ExtraBody, "the registry announces"),
        (Fault::Header("Content-Encoding", "gzip"), "compresses"),
    ];
    at_once(cases, |(fault, reason)| refuses_to_mount(Matcher::kind(Kind::Config), fault, reason));
}

#[test]
fn wrong_bytes_in_a_config_are_noticed() {
    refuses_to_mount(Matcher::kind(Kind::Config), Fault::WrongBytes, "digest");
}

#[test]
fn wrong_bytes_in_a_manifest_named_by_its_digest_are_noticed() {
    let (registry, artifact, ..) = dataset();
    let digest = artifact.push(&registry, "pastis", "t").digest;
    let script = registry.fault(Matcher::manifests(), Fault::WrongBytes, ALWAYS);
    let call = || EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference(&format!("pastis@{digest}")));
    let refused = call().output();
    assert!(script.met() > 0);
    one_line(&refused, &digest);
    one_line(&refused, "digest");
    registry.clear_faults();
    drop(call().mount());
}

#[test]
fn wrong_bytes_in_a_manifest_named_by_its_tag_are_noticed_where_the_registry_tells_its_digest() {
    for fault in [Fault::WrongBytes, Fault::WrongDigestHeader] {
        let (registry, artifact, ..) = dataset();
        artifact.annotation("note", &"so that the middle is no digest ".repeat(100)).push(&registry, "pastis", "t");
        let script = registry.fault(Matcher::manifests(), fault, ALWAYS);
        let refused = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t")).output();
        assert!(script.met() > 0);
        one_line(&refused, "digest");
    }
}

#[test]
fn a_manifest_without_end_is_not_read_to_its_end() {
    let registry = ScriptedRegistry::start();
    let huge = serde_json::json!({"schemaVersion": 2, "layers": [], "annotations": {"x": "y".repeat(64 << 20)}});
    registry.put_manifest("pastis", "t", huge.to_string());
    registry.fault(Matcher::manifests(), Fault::NoLength, ALWAYS);
    let refused = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t")).output();
    one_line(&refused, "larger than the 4 MiB");
    let sent: u64 = registry.requests().iter().map(|request| request.sent).sum();
    assert!(sent < 32 << 20, "{sent} bytes were sent");
}

#[test]
fn mounting_survives_what_passes() {
    for matcher in [Matcher::manifests(), Matcher::kind(Kind::Config)] {
        let (registry, artifact, ..) = dataset();
        artifact.push(&registry, "pastis", "t");
        let busy = Fault::Status(503, vec![("Retry-After".to_owned(), "1".to_owned())], String::new());
        let faults = [Fault::status(500), Fault::HangUp, busy, Fault::ShortBody];
        for fault in faults {
            let script = registry.fault(matcher.clone(), fault.clone(), 1);
            let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t")).mount();
            assert_eq!(script.met(), 1, "{fault:?}");
            assert_eq!(std::fs::read_to_string(mounted.join("config.json")).unwrap(), CONFIG, "{fault:?}");
        }
    }
}

#[test]
fn a_config_may_come_whole() {
    let (registry, artifact, ..) = dataset();
    artifact.push(&registry, "pastis", "t");
    let script = registry.fault(Matcher::kind(Kind::Config), Fault::IgnoreRange, ALWAYS);
    let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t")).mount();
    assert_eq!((script.met(), std::fs::read_to_string(mounted.join("config.json")).unwrap().as_str()), (1, CONFIG));
}

// Registries that go away.

#[test]
fn what_is_indexed_is_listed_while_the_registry_is_down() {
    let scene = Scene::new();
    scene.expect_list("10000");
    scene.registry.go_down();
    assert!(scene.read().is_err_and(is_data_error));
    assert!(list(&scene.mounted.join("10001")).is_err_and(is_data_error), "not indexed yet");
    let start = scene.registry.requests().len();
    scene.expect_list("10000");
    for member in scene.tar.members() {
        let path = scene.path(&member.path);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), member.data.end - member.data.start);
        let probe = std::fs::metadata(format!("{}.aux.xml", path.display()));
        assert_eq!(probe.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
    let sizes = rustix::fs::statvfs(scene.mounted.path()).unwrap();
    assert!(sizes.f_blocks * sizes.f_frsize >= scene.tar.size());
    assert_eq!(scene.registry.requests().len(), start);
    assert!(scene.log_says("cannot connect"), "{}", scene.mounted.log());
    scene.registry.come_up();
    assert!(wait_until(SOON, || scene.read().is_ok()), "{}", scene.mounted.log());
    scene.expect_list("10001");
    scene.expect_other();
}

#[test]
fn a_read_outlasts_a_registry_that_restarts() {
    let scene = Scene::with("60s");
    scene.expect_list("10000");
    scene.registry.go_down();
    thread::scope(|scope| {
        let reader = scope.spawn(|| scene.expect_read());
        thread::sleep(Duration::from_millis(500));
        assert!(!reader.is_finished());
        scene.registry.come_up();
    });
}

#[test]
fn a_stalled_read_does_not_block_other_readers() {
    let scene = Scene::with("20s");
    scene.expect_list("10000");
    let stalled = scene.tar.member(S2).data.clone();
    let script = scene.registry.fault(Matcher::blob(&scene.digest).touching(stalled), Fault::Stall, ALWAYS);
    let _reader = cat(&scene.path(S2));
    assert!(wait_until(LONG, || script.met() >= 1));
    scene.expect_other();
    let at = scene.tar.member(TARGET).data.clone();
    assert_eq!(pread(scene.path(TARGET), 0..100).unwrap(), scene.tar.read(at.start..at.start + 100));
}

#[test]
fn forty_stalled_reads_of_a_layer_do_not_block_other_layers() {
    let (registry, artifact, _, other) = dataset();
    let artifact = artifact.layer(Some("noise"), "application/octet-stream", noise(5, 41 * CHUNK));
    artifact.push(&registry, "pastis", "t");
    let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t"));
    let mounted = call.args(["--timeout", "9s"]).mount();
    let script = registry.fault(Matcher::blob(&artifact.layers()[2].digest), Fault::Stall, ALWAYS);
    thread::scope(|scope| {
        for reader in 0..40 {
            let file = mounted.join("noise");
            // The first chunk is known from the look that told that it is no archive.
            let at = (reader + 1) * CHUNK as u64 + 20_000;
            scope.spawn(move || assert!(pread(file, at..at + 100).is_err_and(|e| is_data_error(errno(&e)))));
        }
        assert!(wait_until(LONG, || script.met() >= 10));
        assert_eq!(list(&mounted.join("10001")).map_err(|e| e.to_string()), Ok(members(&other)), "{}", mounted.log());
        let member = "DATA_S2/S2_10001.npy";
        assert_eq!(same_until_error(&mounted.join("10001").join(member), &other, member), Ok(()), "{}", mounted.log());
    });
}

#[test]
fn a_thousand_reads_of_a_dead_registry_end_in_time() {
    // As many chunks as readers, behind the one that is known from the look that told that it is no archive.
    let bytes = noise(3, 1001 * CHUNK);
    let registry = ScriptedRegistry::start();
    Artifact::new().layer(Some("noise"), "application/octet-stream", bytes.clone()).push(&registry, "pastis", "t");
    let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t"));
    let mounted = call.args(["--timeout", "3s", "--memory", "16MiB"]).mount();
    let file = File::open(mounted.join("noise")).unwrap();
    registry.fault(Matcher::blobs(), Fault::Stall, ALWAYS);
    let together = Barrier::new(1000);
    let longest = thread::scope(|scope| {
        let read = |reader: u64| {
            let (file, together) = (&file, &together);
            move || {
                let mut bytes = [0; 4096];
                together.wait();
                let start = Instant::now();
                let result =
                    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, (reader + 1) * CHUNK as u64 + 20_000);
                assert!(result.is_err_and(|error| is_data_error(errno(&error))), "reader {reader}");
                start.elapsed()
            }
        };
        let readers: Vec<_> = (0..1000)
            .map(|reader| thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, read(reader)).unwrap())
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).max().unwrap()
    });
    assert!(longest < SOON, "{longest:?}");
    let peak = mounted.peak_resident_bytes();
    assert!(peak < 96 << 20, "{peak} bytes were resident");
    registry.clear_faults();
    assert_eq!(pread(mounted.join("noise"), 0..4096).unwrap(), bytes[..4096]);
    drop(file);
    mounted.unmount();
}

#[test]
fn a_signal_ends_a_mount_whose_registry_is_dead() {
    let scene = Scene::with("120s");
    scene.expect_list("10000");
    let script = scene.registry.fault(Matcher::blobs(), Fault::Stall, ALWAYS);
    let Scene { mut mounted, tar, .. } = scene;
    let readers: Vec<_> = tar.members().iter().map(|member| cat(&mounted.join("10000").join(&member.path))).collect();
    assert!(wait_until(LONG, || script.met() >= 4));
    // Five seconds are promised, and as many are left to a busy machine.
    mounted.signal(Signal::TERM);
    assert!(mounted.wait_ended(Duration::from_secs(10)).is_some(), "{}", mounted.log());
    assert!(mounted.mount_entry().is_none());
    for mut reader in readers {
        assert!(wait_until(SOON, || reader.0.try_wait().unwrap().is_some()), "a reader hangs");
        assert!(!reader.0.wait().unwrap().success());
    }
}

#[test]
fn an_interrupted_reader_returns_at_once() {
    let scene = Scene::with("120s");
    scene.expect_list("10000");
    let script = scene.registry.fault(Matcher::blobs(), Fault::Stall, ALWAYS);
    let mut reader = cat(&scene.path(S2));
    assert!(wait_until(LONG, || script.met() >= 1));
    processes::signal(reader.0.id(), Signal::INT);
    assert!(wait_until(SOON, || reader.0.try_wait().unwrap().is_some()), "cat hangs");
    // Others do not wait for what the interrupted one had begun.
    scene.registry.clear_faults();
    scene.expect_other();
}

// Tokens and redirects.

#[test]
fn a_registry_that_hands_tokens_to_everybody_is_read() {
    let scene = Scene::secured();
    scene.expect_list("10000");
    scene.expect_read();
    assert_eq!(scene.registry.tokens_issued(), 1);
    assert!(!scene.mounted.log().contains("scripted-token"));
}

#[test]
fn an_expired_token_is_renewed_once_for_all_readers() {
    let scene = Scene::secured();
    scene.expect_list("10000");
    scene.registry.expire_tokens();
    // All have asked before the first is refused.
    scene.registry.fault(Matcher::blobs(), Fault::Delay(Duration::from_millis(300)), 16);
    let together = Barrier::new(16);
    thread::scope(|scope| {
        for reader in 0..16 {
            let (scene, together) = (&scene, &together);
            scope.spawn(move || {
                let at = reader * (50 << 10);
                let start = scene.tar.member(S2).data.start + at;
                together.wait();
                assert_eq!(pread(scene.path(S2), at..at + 100).unwrap(), scene.tar.read(start..start + 100));
            });
        }
    });
    let refused = scene.registry.requests().iter().filter(|request| request.status == 401).count();
    // One by the mount before its first token.
    assert!(refused > 2, "{refused} refused: nobody was at the same time");
    assert_eq!(scene.registry.tokens_issued(), 2);
    scene.expect_read();
    assert_eq!(scene.registry.tokens_issued(), 2);
}

#[test]
fn a_redirected_blob_is_read_and_the_token_stays_at_home() {
    let scene = Scene::secured();
    let storage = ScriptedRegistry::start();
    let content = scene.tar.clone();
    storage.put_sparse_blob(scene.tar.size(), &scene.digest, move |at, buffer| content.fill(at, buffer));
    let to = Fault::Redirect(storage.blob_url("elsewhere", &scene.digest));
    scene.registry.fault(Matcher::blob(&scene.digest), to, ALWAYS);
    scene.expect_list("10000");
    scene.expect_read();
    let at_home = scene.registry.requests_of(Kind::Blob);
    assert!(at_home.iter().all(|request| request.header("authorization").is_some()), "{at_home:?}");
    let elsewhere = storage.requests();
    assert!(elsewhere.len() > 2 && at_home.len() <= 4, "{} at home", at_home.len());
    assert!(elsewhere.iter().all(|request| request.header("authorization").is_none()), "{elsewhere:?}");
    assert!(elsewhere.iter().all(|request| request.status == 206), "{elsewhere:?}");
    storage.go_down();
    forget_pages(scene.path(S2));
    scene.expect_read();
    assert!(pread(scene.path("DATA_S1D/S1D_10000.npy"), 100_000..100_100).is_err_and(|e| is_data_error(errno(&e))));
    storage.come_up();
    let read = || pread(scene.path("DATA_S1D/S1D_10000.npy"), 100_000..100_100).is_ok();
    assert!(wait_until(SOON, read), "the storage is back");
}

const CONFIG: &str = r#"{"dataset":"PASTIS"}"#;

/// A mount of two patches, one of which is to be broken.
struct Scene {
    registry: ScriptedRegistry,
    tar: VirtualTar,
    digest: String,
    other: VirtualTar,
    mounted: Mounted,
}

fn dataset() -> (ScriptedRegistry, Artifact, VirtualTar, VirtualTar) {
    let (tar, other) = (patch_tar_plan(10_000, 4), patch_tar_plan(10_001, 8));
    let artifact =
        Artifact::new().config(CONFIG, CONFIG_TYPE).tar("10000.tar", tar.to_bytes()).tar("10001.tar", other.to_bytes());
    (ScriptedRegistry::start(), artifact, tar, other)
}

impl Scene {
    fn new() -> Self {
        Self::with("3s")
    }

    fn with(timeout: &str) -> Self {
        Self::start(timeout, |_| {})
    }

    /// A registry that wants tokens.
    fn secured() -> Self {
        Self::start("3s", ScriptedRegistry::require_token)
    }

    fn start(timeout: &str, prepare: impl Fn(&ScriptedRegistry)) -> Self {
        let (registry, artifact, tar, other) = dataset();
        artifact.push(&registry, "pastis", "t");
        prepare(&registry);
        let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t"));
        let mounted = call.args(["--timeout", timeout]).mount();
        let digest = artifact.layers()[0].digest.clone();
        Self { registry, tar, digest, other, mounted }
    }

    /// Of a member of the layer that is to be broken.
    fn path(&self, member: &str) -> PathBuf {
        self.mounted.join("10000").join(member)
    }

    /// Reads a member in order. What comes before a failure is right.
    #[track_caller]
    fn read(&self) -> Result<(), Errno> {
        same_until_error(&self.path(S2), &self.tar, S2)
    }

    #[track_caller]
    fn expect_read(&self) {
        assert_eq!(self.read(), Ok(()), "{}", self.mounted.log());
    }

    /// Lists a layer that is known to work, and all that is in it.
    #[track_caller]
    fn expect_list(&self, layer: &str) {
        let tar = if layer == "10000" { &self.tar } else { &self.other };
        let listed = list(&self.mounted.join(layer)).unwrap_or_else(|error| panic!("{error}\n{}", self.mounted.log()));
        assert_eq!(listed, members(tar));
    }

    /// The other layer works.
    #[track_caller]
    fn expect_other(&self) {
        self.expect_list("10001");
        let member = "DATA_S2/S2_10001.npy";
        let path = self.mounted.join("10001").join(member);
        forget_pages(&path);
        assert_eq!(same_until_error(&path, &self.other, member), Ok(()), "{}", self.mounted.log());
    }

    fn log_says(&self, text: &str) -> bool {
        wait_until(SOON, || self.mounted.log().contains(text))
    }
}

/// The fault, while it lasts, is an error on headers and on data that the log and the xattr name; then all works.
#[track_caller]
fn refused(fault: Fault, reason: &str) {
    let scene = Scene::new();
    let script = scene.registry.fault(Matcher::blob(&scene.digest), fault.clone(), ALWAYS);
    let start = Instant::now();
    let error = list(&scene.mounted.join("10000")).expect_err("listed nevertheless");
    assert!(is_data_error(error) && start.elapsed() < SOON, "{fault:?}: {error} after {:?}", start.elapsed());
    assert!(script.met() > 0);
    let said = || xattr(scene.mounted.join("10000"), "user.eo.error");
    assert!(wait_until(SOON, || said().is_some_and(|said| said.contains(reason))), "{fault:?}: {:?}", said());
    assert!(scene.log_says(&scene.digest), "{fault:?}: {}", scene.mounted.log());
    scene.expect_other();
    scene.registry.clear_faults();
    scene.expect_list("10000");
    assert_eq!(said(), None, "{fault:?}");

    let script = scene.registry.fault(Matcher::blob(&scene.digest), fault.clone(), ALWAYS);
    let start = Instant::now();
    let error = scene.read().expect_err("read nevertheless");
    assert!(is_data_error(error) && start.elapsed() < SOON, "{fault:?}: {error} after {:?}", start.elapsed());
    assert!(script.met() > 0);
    assert!(scene.log_says(&format!("read: {}", scene.digest)), "{fault:?}: {}", scene.mounted.log());
    assert!(scene.log_says(reason), "{fault:?}: {}", scene.mounted.log());
    scene.expect_list("10000");
    scene.expect_other();
    scene.registry.clear_faults();
    if error == Errno::TIMEDOUT {
        // A request may outlive the read that gave up on it by a moment.
        wait_until(SOON, || scene.read().is_ok());
    }
    scene.expect_read();
}

/// The fault makes no difference, neither on headers nor on data.
#[track_caller]
fn survived(fault: Fault, times: u32) {
    let scene = Scene::with("9s");
    let script = scene.registry.fault(Matcher::blob(&scene.digest), fault.clone(), times);
    scene.expect_list("10000");
    let met = script.met();
    assert!(met == times || times == ALWAYS && met > 0, "{fault:?}: {met}");
    scene.registry.clear_faults();
    let script = scene.registry.fault(Matcher::blob(&scene.digest), fault.clone(), times);
    scene.expect_read();
    let met = script.met();
    assert!(met == times || times == ALWAYS && met > 0, "{fault:?}: {met}");
}

/// Most of these tests wait.
fn at_once<T: Send>(cases: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    let test = &test;
    thread::scope(|scope| cases.into_iter().for_each(|case| drop(scope.spawn(move || test(case)))));
}

#[track_caller]
fn refuses_to_mount(matcher: Matcher, fault: Fault, reason: &str) {
    let (registry, artifact, ..) = dataset();
    artifact.push(&registry, "pastis", "t");
    let script = registry.fault(matcher, fault.clone(), ALWAYS);
    let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t"));
    let start = Instant::now();
    let refused = call.args(["--timeout", "3s"]).output();
    assert!(script.met() > 0 && start.elapsed() < SOON, "{fault:?}: {:?}", start.elapsed());
    one_line(&refused, reason);
}

#[track_caller]
fn one_line(refused: &Finished, reason: &str) {
    assert_eq!((refused.code, refused.stderr.lines().count()), (1, 1), "{}", refused.stderr);
    assert!(refused.stderr.contains(reason), "{}", refused.stderr);
}

/// `cat`, killed when dropped.
struct Cat(std::process::Child);

fn cat(path: &Path) -> Cat {
    let mut command = Command::new("cat");
    Cat(command.arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cat: apt-get install coreutils"))
}

impl Drop for Cat {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All files below a directory.
fn list(directory: &Path) -> Result<BTreeSet<String>, Errno> {
    fn walk(directory: &Path, prefix: &str, names: &mut BTreeSet<String>) -> io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                walk(&entry.path(), &format!("{name}/"), names)?;
            } else {
                names.insert(name);
            }
        }
        Ok(())
    }
    let mut names = BTreeSet::new();
    walk(directory, "", &mut names).map_err(|error| errno(&error))?;
    Ok(names)
}

fn members(tar: &VirtualTar) -> BTreeSet<String> {
    tar.members().iter().map(|member| member.path.clone()).collect()
}

#[track_caller]
fn same_until_error(path: &Path, tar: &VirtualTar, member: &str) -> Result<(), Errno> {
    let data = tar.member(member).data.clone();
    let mut file = File::open(path).map_err(|error| errno(&error))?;
    let mut at = data.start;
    let mut piece = vec![0; 100_000];
    loop {
        let length = file.read(&mut piece).map_err(|error| errno(&error))? as u64;
        if length == 0 {
            assert_eq!(at, data.end, "{member} ends too early");
            return Ok(());
        }
        assert!(
            piece[..length as usize] == tar.read(at..at + length),
            "wrong bytes at {} of {member}",
            at - data.start
        );
        at += length;
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or_else(|| panic!("{error} is none of the system's"))
}

/// What a read may fail with.
fn is_data_error(errno: Errno) -> bool {
    [Errno::IO, Errno::TIMEDOUT].contains(&errno)
}
