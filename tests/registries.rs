//! Registries as they are: from a mount on each profile of the scripted registry everything is read, and every byte
//! compared.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use eo_mount_testing::files::{forget_pages, pread};
use eo_mount_testing::fixtures::{VirtualTar, noise, patch_tar_plan};
use eo_mount_testing::namespace::{self, in_own_namespace};
use eo_mount_testing::scripted_registry::CONFIG_TYPE;
use eo_mount_testing::scripted_registry::profiles::{self, Parts, Profile};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Fault, Finished, Home, Kind, Matcher, Mounted, ScriptedRegistry, Takes, run,
};
use serde_json::json;

const CONFIG: &str = r#"{"dataset":"PASTIS"}"#;
/// Everything ends sooner, by far.
const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);

macro_rules! everything_is_read_from {
    ($($profile:ident),+ $(,)?) => {
        mod everything_is_read_from {
            $(
                #[test]
                fn $profile() {
                    super::read_everything(super::profiles::$profile);
                }
            )+
        }
    };
}

everything_is_read_from!(
    distribution_2_8,
    distribution_3_pull_through_cache,
    zot,
    harbor_proxy_cache,
    quay,
    docker_hub,
    amazon_ecr,
    ghcr,
    gitlab,
    azure,
    artifactory,
    google_artifact_registry,
    object_store_behind_nginx,
    without_ranges,
    compresses_on_the_fly,
    http_1_0,
    chunked_ranges,
    wrong_content_length,
    docker_content_digest_missing,
    docker_content_digest_false_once,
    another_range_once,
    slow_first_byte,
    slow_trickle,
    rate_limited,
);

/// A registry, a host for its blobs and one for its tokens, and an artifact of two patches.
struct Scene {
    registry: ScriptedRegistry,
    storage: ScriptedRegistry,
    tokens: ScriptedRegistry,
    tars: [VirtualTar; 2],
    layers: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        let tars = [patch_tar_plan(10_000, 4), patch_tar_plan(10_001, 8)];
        let artifact = Artifact::new()
            .config(CONFIG, CONFIG_TYPE)
            .tar("10000.tar", tars[0].to_bytes())
            .tar("10001.tar", tars[1].to_bytes());
        let [registry, storage, tokens] = std::array::from_fn(|_| ScriptedRegistry::start());
        artifact.push(&registry, "pastis", "t");
        let layers = artifact.layers().into_iter().map(|layer| layer.digest).collect();
        Self { registry, storage, tokens, tars, layers }
    }

    fn odd(profile: Profile) -> Self {
        let scene = Self::new();
        let Self { registry, storage, tokens, layers, .. } = &scene;
        profile(&Parts { registry, storage, tokens, layers });
        scene
    }

    fn call(&self) -> EoMount {
        let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), self.registry.reference("pastis:t"));
        call.args(["--timeout", "30s"])
    }

    #[track_caller]
    fn compare(&self, mounted: &Mounted) {
        assert_eq!(std::fs::read_to_string(mounted.join("config.json")).unwrap(), CONFIG);
        for (layer, tar) in ["10000", "10001"].iter().zip(&self.tars) {
            same(&mounted.join(layer), tar, mounted);
        }
    }
}

/// All files of the tar, and no other, with all their bytes.
#[track_caller]
fn same(directory: &Path, tar: &VirtualTar, mounted: &Mounted) {
    let mut names = BTreeSet::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{error}\n{}", mounted.log()));
        for entry in entries {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => drop(names.insert(entry.path())),
            }
        }
    }
    assert_eq!(names, tar.members().iter().map(|member| directory.join(&member.path)).collect());
    for member in tar.members() {
        let path = directory.join(&member.path);
        let bytes =
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}\n{}", path.display(), mounted.log()));
        assert!(bytes == tar.read(member.data.clone()), "{} has other bytes", path.display());
    }
}

#[track_caller]
fn read_everything(profile: Profile) {
    let scene = Scene::odd(profile);
    let mounted = scene.call().mount();
    scene.compare(&mounted);
    let log = mounted.log();
    for secret in ["scripted-token", "scripted-signature"] {
        assert!(!log.contains(secret), "{log}");
    }
    mounted.unmount();
}

#[track_caller]
fn one_line(refused: &Finished, reason: &str) {
    assert_eq!((refused.code, refused.stderr.lines().count()), (1, 1), "{}", refused.stderr);
    assert!(refused.stderr.contains(reason), "{}", refused.stderr);
}

// Redirects.

#[test]
fn a_redirect_to_another_path_of_the_registry_is_resolved_once_too() {
    let scene = Scene::odd(profiles::google_artifact_registry);
    let mounted = scene.call().mount();
    scene.compare(&mounted);
    for layer in &scene.layers {
        let asked = format!("/v2/pastis/blobs/{layer}");
        let at_home = scene.registry.requests().iter().filter(|request| request.path == asked).count();
        assert!((1..=2).contains(&at_home), "{at_home} requests for {layer}");
    }
}

#[test]
fn an_address_that_expired_is_resolved_anew_once_and_no_reader_sees_it() {
    let scene = Scene::odd(profiles::ghcr);
    let mounted = scene.call().mount();
    std::fs::read_dir(mounted.join("10000")).unwrap().count();
    let before = scene.registry.requests_of(Kind::Blob).len();
    scene.storage.expire_signatures();
    scene.storage.fault(Matcher::blobs(), Fault::Delay(Duration::from_millis(100)), 16);
    std::thread::scope(|scope| {
        for member in scene.tars[0].members() {
            let (path, scene) = (mounted.join("10000").join(&member.path), &scene);
            scope.spawn(move || assert!(std::fs::read(path).unwrap() == scene.tars[0].read(member.data.clone())));
        }
    });
    let after = scene.registry.requests_of(Kind::Blob).len();
    assert_eq!(after - before, 1);
    assert!(scene.storage.requests().iter().any(|request| request.status == 403), "nothing had expired");
    assert_eq!(scene.registry.tokens_issued(), 1);
}

#[test]
fn a_registry_cannot_send_us_to_files_metadata_services_or_other_schemes() {
    for to in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1/x",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/latest/",
        "http://100.100.100.200/latest/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://2852039166/",
        "http://[64:ff9b::a9fe:a9fe]/latest/",
        "http://me:geheim@127.0.0.1:1/",
    ] {
        let scene = Scene::new();
        let script = scene.registry.fault(Matcher::kind(Kind::Config), Fault::Redirect(to.to_owned()), ALWAYS);
        one_line(&scene.call().output(), "refused");
        assert_eq!(script.met(), 1, "{to}");

        let scene = Scene::new();
        let challenge = format!("Bearer realm=\"{to}\",service=\"x\"");
        let refusal = Fault::Status(401, vec![("WWW-Authenticate".to_owned(), challenge)], String::new());
        let script = scene.registry.fault(Matcher::manifests(), refusal, ALWAYS);
        let why = if to.starts_with("http") { "refused" } else { "is no web server" };
        one_line(&scene.call().output(), why);
        assert_eq!(script.met(), 1, "{to}");
    }
}

#[test]
fn names_that_resolve_to_metadata_services_or_this_machine_lead_nowhere() {
    in_own_namespace("names_that_resolve_to_metadata_services_or_this_machine_lead_nowhere", || {
        let hosts = tempfile::NamedTempFile::new().unwrap();
        let names = "127.0.0.1 localhost registry.example here.example\n169.254.169.254 there.example\n";
        std::fs::write(hosts.path(), names).unwrap();
        namespace::mount(&["--bind", hosts.path().to_str().unwrap()], Path::new("/etc/hosts"));
        let other = ScriptedRegistry::start();
        let port = other.address().replace("127.0.0.1", "");
        for (to, why) in [("here.example", "this machine"), ("there.example", "a link-local address")] {
            let scene = Scene::new();
            let by_name = scene.registry.reference("pastis:t").replace("127.0.0.1", "registry.example");
            let address = format!("http://{to}{port}/token");
            let redirect = Fault::Redirect(address.clone());
            let challenge = vec![("WWW-Authenticate".to_owned(), format!("Bearer realm=\"{address}\""))];
            let challenge = Fault::Status(401, challenge, String::new());
            for (matcher, fault) in [(Matcher::kind(Kind::Config), redirect), (Matcher::manifests(), challenge)] {
                scene.registry.clear_faults();
                let script = scene.registry.fault(matcher, fault, ALWAYS);
                let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), by_name.clone()).without_log();
                one_line(&call.arg("--plain-http").output(), &format!("{to} resolves to {why}: refused"));
                assert_eq!(script.met(), 1);
            }
        }
        assert_eq!(other.connections(), 0);
    });
}

#[test]
fn a_storage_that_cannot_be_reached_is_named_when_there_is_no_mount_because_of_it() {
    let scene = Scene::new();
    let redirect = Fault::Redirect("http://127.0.0.1:1/signed?geheim".to_owned());
    scene.registry.fault(Matcher::kind(Kind::Config), redirect, ALWAYS);
    let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), scene.registry.reference("pastis:t")).without_log();
    let said = call.args(["--timeout", "2s"]).output();
    one_line(&said, "http://127.0.0.1:1");
    assert!(said.stderr.contains("Connection refused"), "{}", said.stderr);
    assert!(!said.stderr.contains("geheim"), "{}", said.stderr);
}

#[test]
fn signatures_and_tokens_are_in_no_log_at_any_level_and_in_no_error() {
    let scene = Scene::odd(profiles::quay);
    let mounted = scene.call().arg("-vvv").mount();
    scene.compare(&mounted);
    scene.storage.expire_signatures();
    scene.storage.fault(Matcher::any(), Fault::HangUp, 3);
    scene.storage.fault(Matcher::any(), Fault::status(500), 3);
    for member in scene.tars[0].members() {
        forget_pages(mounted.join("10000").join(&member.path));
    }
    scene.compare(&mounted);
    let log = mounted.log();
    assert!(log.contains("redirected to http://127.0.0.1"), "{log}");
    for secret in ["scripted-token", "scripted-signature", "X-Amz-Signature"] {
        assert!(!log.contains(secret), "{log}");
    }
    for request in scene.storage.requests() {
        assert!(request.header("referer").is_none() && request.header("authorization").is_none(), "{request:?}");
    }
}

// Servers without ranges.

#[test]
fn without_ranges_no_more_layers_are_downloaded_at_once_than_connections() {
    let registry = ScriptedRegistry::start();
    let contents: Vec<_> = (0..10).map(|seed| noise(seed, 6 << 20)).collect();
    let mut artifact = Artifact::new().config(CONFIG, CONFIG_TYPE);
    for (number, content) in contents.iter().enumerate() {
        artifact = artifact.layer(Some(&format!("{number}.bin")), "application/octet-stream", content.clone());
    }
    artifact.push(&registry, "pastis", "t");
    registry.fault(Matcher::blobs(), Fault::IgnoreRange, ALWAYS);
    let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t"));
    let mounted = call.args(["--connections", "2", "--no-disk-cache", "--timeout", "20s"]).mount();
    for round in 1..3_u64 {
        for (number, content) in contents.iter().enumerate() {
            let at = round << 20;
            let bytes = pread(mounted.join(format!("{number}.bin")), at..at + 4096);
            let bytes = bytes.unwrap_or_else(|error| panic!("{error}\n{}", mounted.log()));
            assert!(bytes == content[at as usize..][..4096]);
            // One that has ended is noticed a little later.
            let few = || registry.open_connections() <= 2;
            assert!(wait_until(SOON, few), "{} at once", registry.open_connections());
        }
    }
}

#[test]
fn a_download_that_nobody_reads_makes_room_for_a_range() {
    let registry = ScriptedRegistry::start();
    let [whole, ranges] = [1, 2].map(|seed| noise(seed, 6 << 20));
    let artifact = Artifact::new().config(CONFIG, CONFIG_TYPE);
    let artifact = artifact.layer(Some("whole.bin"), "application/octet-stream", whole.clone());
    let artifact = artifact.layer(Some("ranges.bin"), "application/octet-stream", ranges.clone());
    artifact.push(&registry, "pastis", "t");
    registry.fault(Matcher::blob(&artifact.layers()[0].digest), Fault::IgnoreRange, ALWAYS);
    let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t"));
    let mounted = call.args(["--connections", "1", "--no-disk-cache", "--timeout", "10s"]).mount();
    for at in [1 << 20, 3 << 20] {
        for (name, content) in [("whole.bin", &whole), ("ranges.bin", &ranges)] {
            let read = pread(mounted.join(name), at..at + 4096);
            let read = read.unwrap_or_else(|error| panic!("{name} at {at}: {error}\n{}", mounted.log()));
            assert!(read == content[at as usize..][..4096]);
        }
    }
}

#[test]
fn no_more_requests_than_connections_are_under_way_whatever_they_are_for() {
    let registry = ScriptedRegistry::start();
    let manifests: Vec<_> = (0..12)
        .map(|number| {
            let artifact = Artifact::new().config(CONFIG, CONFIG_TYPE).tar(&format!("{number}.tar"), vec![0; 1024]);
            let mut listed = artifact.push(&registry, "pastis", &number.to_string()).to_json();
            listed["platform"] = json!({"os": "linux", "architecture": number.to_string()});
            listed
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests});
    registry.put_manifest("pastis", "all", index.to_string());
    registry.fault(Matcher::any(), Fault::Delay(Duration::from_millis(30)), ALWAYS);
    let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:all"));
    let mounted = call.args(["--connections", "2"]).mount();
    for folder in std::fs::read_dir(mounted.path()).unwrap() {
        assert!(std::fs::read_dir(folder.unwrap().path()).unwrap().count() > 0);
    }
    assert!(registry.connections() <= 2, "{} connections", registry.connections());
}

#[test]
fn without_ranges_a_layer_is_downloaded_once_and_that_is_told_once() {
    let scene = Scene::odd(profiles::without_ranges);
    let mounted = scene.call().mount();
    scene.compare(&mounted);
    for layer in &scene.layers {
        let requests = scene.registry.requests();
        let sent: u64 =
            requests.iter().filter(|request| request.digest() == Some(layer)).map(|request| request.sent).sum();
        let size = scene.tars.iter().map(VirtualTar::size).max().unwrap();
        assert!(sent <= 2 * size, "{sent} bytes for a layer of {size} at most");
    }
    let log = mounted.log();
    assert_eq!(log.matches("does not support range requests").count(), 1, "{log}");
}

#[test]
fn without_ranges_and_without_a_disk_cache_everything_is_read_in_bounded_memory() {
    let scene = Scene::odd(profiles::without_ranges);
    let mounted = scene.call().args(["--no-disk-cache", "--memory", "16MiB"]).mount();
    scene.compare(&mounted);
}

#[test]
fn without_ranges_a_layer_is_checked_whole_before_it_is_read() {
    let scene = Scene::odd(profiles::without_ranges);
    let mounted = scene.call().args(["--verify", "blob"]).mount();
    scene.compare(&mounted);
}

#[test]
fn reading_far_behind_the_start_says_what_it_costs_and_works_when_the_download_got_there() {
    let bytes = noise(5, 20 << 20);
    let registry = ScriptedRegistry::start();
    let artifact = Artifact::new().layer(Some("noise.bin"), "application/octet-stream", bytes.clone());
    artifact.push(&registry, "pastis", "t");
    registry.fault(Matcher::blobs(), Fault::IgnoreRange, ALWAYS);
    registry.trickle_blobs(Duration::from_millis(15));
    let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:t"));
    let mounted = call.args(["--timeout", "3s"]).mount();
    let at = (19 << 20) + 12_345;
    let read = || pread(mounted.join("noise.bin"), at..at + 1000);
    // 320 drops take at least 4.8 s.
    assert!(read().is_err(), "read in less time than the download takes");
    assert!(mounted.log().contains("downloads 19."), "{}", mounted.log());
    let mut found = None;
    assert!(
        wait_until(LONG, || {
            found = read().ok();
            found.is_some()
        }),
        "{}",
        mounted.log()
    );
    assert!(found.unwrap() == bytes[at as usize..][..1000]);
    assert!(registry.blob_bytes() < 22 << 20, "{} bytes were sent", registry.blob_bytes());
    // What passed is there.
    let requests = registry.blob_requests();
    assert!(pread(mounted.join("noise.bin"), 7 << 20..(7 << 20) + 1000).unwrap() == bytes[7 << 20..][..1000]);
    assert_eq!(registry.blob_requests(), requests);
}

#[test]
fn a_registry_without_ranges_is_refused_where_they_are_required() {
    let scene = Scene::odd(profiles::without_ranges);
    let mounted = scene.call().arg("--require-ranges").mount();
    assert!(std::fs::read_dir(mounted.join("10000")).and_then(|mut names| names.next().transpose()).is_err());
    let said = || mounted.log().contains("does not support range requests");
    assert!(wait_until(SOON, said), "{}", mounted.log());
    scene.registry.clear_faults();
    scene.compare(&mounted);
}

// Requests of a mount.

#[test]
fn a_cold_mount_takes_four_requests() {
    let scene = Scene::new();
    scene.registry.require_token();
    let _mounted = scene.call().mount();
    let kinds: Vec<_> = scene.registry.requests().iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Manifest, Kind::Token, Kind::Manifest, Kind::Config]);
}

#[test]
fn a_mount_that_has_its_token_looks_up_what_is_attached_in_one_request() {
    let scene = Scene::new();
    scene.registry.require_token();
    let digest = scene.registry.tagged("pastis", "t");
    let reference = scene.registry.reference(&format!("pastis@{digest}"));
    let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference).mount();
    let nothing = vec![("Content-Type".to_owned(), "application/vnd.oci.image.index.v1+json".to_owned())];
    let nothing = Fault::Status(200, nothing, r#"{"manifests":[]}"#.to_owned());
    scene.registry.fault(Matcher::path("/referrers/"), nothing, ALWAYS);
    scene.registry.reset();
    assert_eq!(std::fs::read_dir(mounted.join(".oci/referrers")).unwrap().count(), 0);
    let asked: Vec<_> = scene.registry.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(asked, [format!("/v2/pastis/referrers/{digest}")]);
}

#[test]
fn a_tag_that_names_something_else_each_time_is_resolved_once() {
    let scene = Scene::new();
    let other = Artifact::new().config("{}", CONFIG_TYPE).tar("x.tar", scene.tars[1].to_bytes());
    let second = other.push(&scene.registry, "pastis", "other").digest;
    let artifact = Artifact::new()
        .config(CONFIG, CONFIG_TYPE)
        .tar("10000.tar", scene.tars[0].to_bytes())
        .tar("10001.tar", scene.tars[1].to_bytes());
    let first = artifact.push(&scene.registry, "pastis", "t").digest;
    // The list is turned before each answer.
    scene.registry.move_tag_each_time("pastis", "t", &[&second, &first]);
    let mounted = scene.call().arg("--no-index").mount();
    scene.compare(&mounted);
    assert_eq!(scene.registry.requests_of(Kind::Manifest).len(), 1);
}

// Mirrors.

#[test]
fn a_mirror_is_asked_first_and_the_registry_for_what_it_lacks() {
    let scene = Scene::new();
    let mirror = ScriptedRegistry::start();
    scene.registry.share_blobs_with(&mirror);
    mirror.remove_blob(&scene.layers[1]);
    scene.registry.require_token();
    let mounted = scene.call().arg("--mirror").arg(format!("http://{}/", mirror.address())).mount();
    scene.compare(&mounted);
    assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));
    let of = |registry: &ScriptedRegistry, layer: &str| {
        registry.requests().iter().filter(|request| request.digest() == Some(layer)).count()
    };
    assert_eq!(of(&scene.registry, &scene.layers[0]), 0);
    // Readers that came before the first answer have asked, too.
    assert!((1..=4).contains(&of(&mirror, &scene.layers[1])), "{} requests", of(&mirror, &scene.layers[1]));
    assert!(of(&mirror, &scene.layers[0]) > 1 && of(&scene.registry, &scene.layers[1]) > 1);
}

#[test]
fn a_mirror_that_fails_or_lies_makes_no_difference() {
    let faults = [
        Fault::status(500),
        Fault::status(403),
        Fault::HangUp,
        Fault::WrongContentRange,
        Fault::WrongDigestHeader,
        Fault::GarbageBody,
        Fault::Header("Content-Encoding", "gzip"),
        Fault::ShortBody,
        Fault::Redirect("file:///etc/passwd".to_owned()),
    ];
    for fault in faults {
        let scene = Scene::new();
        let mirror = ScriptedRegistry::start();
        scene.registry.share_blobs_with(&mirror);
        let script = mirror.fault(Matcher::any(), fault.clone(), ALWAYS);
        let mounted = scene.call().arg("--mirror").arg(format!("http://{}", mirror.address())).mount();
        scene.compare(&mounted);
        assert!((1..=10).contains(&script.met()), "{fault:?}: {}", script.met());
    }
    let scene = Scene::new();
    let mounted = scene.call().args(["--mirror", "http://127.0.0.1:1"]).mount();
    scene.compare(&mounted);
}

#[test]
fn a_mirror_with_other_bytes_is_found_out_by_the_digest_and_left_out() {
    let scene = Scene::new();
    let mirror = ScriptedRegistry::start();
    scene.registry.share_blobs_with(&mirror);
    mirror.fault(Matcher::blob(&scene.layers[0]), Fault::WrongBytes, ALWAYS);
    let mirrored = ["--verify", "blob", "--mirror", &format!("http://{}", mirror.address())];
    let mounted = scene.call().args(mirrored).mount();
    // The first look may fail; the next one asks the registry.
    let look = |layer: &Path| {
        !layer.is_dir() || std::fs::read_dir(layer).is_ok_and(|mut list| list.all(|entry| entry.is_ok()))
    };
    let all = || std::fs::read_dir(mounted.path()).unwrap().all(|layer| look(&layer.unwrap().path()));
    assert!(wait_until(SOON, all), "{}", mounted.log());
    assert!(mounted.log().contains("it is dropped"), "{}", mounted.log());
    scene.compare(&mounted);
}

#[test]
fn a_manifest_of_a_mirror_that_has_another_digest_is_not_believed() {
    let scene = Scene::new();
    let mirror = ScriptedRegistry::start();
    scene.registry.share_blobs_with(&mirror);
    let digest = scene.registry.tagged("pastis", "t");
    mirror.put_manifest_as("pastis", &digest, r#"{"schemaVersion":2,"layers":[]}"#);
    let conf = tempfile::NamedTempFile::new().unwrap();
    let table = format!(
        "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        scene.registry.address(),
        mirror.address()
    );
    std::fs::write(conf.path(), table).unwrap();
    let reference = scene.registry.reference(&format!("pastis@{digest}"));
    let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference);
    let mounted = call.env("CONTAINERS_REGISTRIES_CONF", conf.path()).mount();
    scene.compare(&mounted);
    assert_eq!(mirror.requests_of(Kind::Manifest).len(), 1);
}

#[test]
fn registries_conf_rewrites_locations_names_mirrors_and_blocks() {
    let scene = Scene::new();
    let mirror = ScriptedRegistry::start();
    scene.registry.share_blobs_with(&mirror);
    let conf = tempfile::NamedTempFile::new().unwrap();
    let call = |reference: &str| {
        let call = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference.to_owned());
        call.env("CONTAINERS_REGISTRIES_CONF", conf.path())
    };
    let table = format!(
        "[[registry]]\nprefix = \"data.example/eo\"\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n\
         pull-from-mirror = \"digest-only\"\n[[registry]]\nprefix = \"*.evil.example\"\nblocked = true\n",
        scene.registry.address(),
        mirror.address()
    );
    std::fs::write(conf.path(), table).unwrap();
    let mounted = call("data.example/eo/pastis:t").arg("--no-index").mount();
    scene.compare(&mounted);
    assert!(mirror.requests_of(Kind::Manifest).is_empty() && mirror.blob_requests() > 2);
    assert_eq!((scene.registry.blob_requests(), scene.registry.requests_of(Kind::Manifest).len()), (0, 1));
    one_line(&call("a.evil.example/x/y:t").output(), "registries.conf blocks *.evil.example");
    std::fs::write(conf.path(), "[[registry]").unwrap();
    let refused = call("data.example/eo/pastis:t").output();
    assert!(refused.code != 0 && refused.stderr.contains("not a valid registries.conf"), "{}", refused.stderr);
}

// What servers do not know.

/// Answers each request with the beginning, and then with the rest again and again, as long as somebody takes it.
fn without_end(beginning: &'static [u8], rest: &'static [u8], pace: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let mut sent = stream.write_all(beginning);
                while sent.is_ok() {
                    sent = stream.write_all(&rest.repeat(if pace.is_zero() { 1000 } else { 1 }));
                    std::thread::sleep(pace);
                }
            });
        }
    });
    address
}

#[test]
fn answers_without_an_end_are_errors_in_time_and_in_bounded_memory() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\n";
    let (at_once, slowly) = (Duration::ZERO, Duration::from_millis(100));
    let cases: [(&[u8], &[u8], Duration, &str); 8] = [
        (b"HTTP/1.1 200 ", b"OK", at_once, "head is too large"),
        (OK, b"X-Header: value\r\n", at_once, "head is too large"),
        (b"HTTP/1.1 200 OK\r\nX-Header: ", b"value", at_once, "head is too large"),
        (OK, b"X-Header: value\r\n", slowly, "no answer within 3s"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", slowly, "no answer within 3s"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"extension", at_once, "extensions"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n", at_once, "trailers"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"{", at_once, "larger than the 4 MiB"),
    ];
    let home = Home::new();
    for (beginning, rest, pace, why) in cases {
        let reference = format!("{}/a/b:t", without_end(beginning, rest, pace));
        // Kilobytes; more than a thousand times what may be kept.
        let mut call = Command::new("sh");
        call.args(["-c", "ulimit -v 4000000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_eo-mount")]);
        call.args(["ls", "--timeout", "3s", &reference]).env("HOME", home.path());
        let said = run(&mut call, LONG);
        one_line(&said, why);
    }
}

#[test]
fn a_registry_that_takes_no_head_is_asked_by_get_what_it_has() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    registry.take_uploads(Takes::default());
    std::fs::write(home.path().join("a.tar"), noise(1, 10 << 10)).unwrap();
    let refused = registry.fault(Matcher::any().method("HEAD"), Fault::status(405), ALWAYS);
    let push = || {
        let call = EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).home(&home).current_dir(home.path());
        call.args(["push", &registry.reference("a:v1"), "a.tar", "--json"]).output().expect_success("push").text()
    };
    assert!(push().contains("sent"));
    let received = registry.received();
    let again = push();
    assert!(again.contains("exists") && refused.met() > 1, "{again}");
    assert_eq!(registry.received(), received);
}

#[test]
fn a_server_that_speaks_no_http_that_we_know_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let made = run(
        Command::new("openssl").current_dir(directory.path()).args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-subj",
            "/CN=127.0.0.1",
            "-days",
            "2",
        ]),
        LONG,
    );
    assert!(made.success(), "openssl (apt-get install openssl): {}", made.stderr);
    // Free a moment ago; should another take it, openssl says so.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("openssl");
    server.current_dir(directory.path()).args(["s_server", "-alpn", "spdy/3", "-quiet", "-accept"]);
    server.arg(format!("127.0.0.1:{port}")).args(["-cert", "cert.pem", "-key", "key.pem"]);
    let _server = Server(server.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    assert!(wait_until(SOON, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()), "openssl does not listen");
    let scene = Scene::new();
    let mounted = scene.call().arg("--mirror").arg(format!("https://127.0.0.1:{port}")).mount();
    scene.compare(&mounted);
    let log = mounted.log();
    assert!(log.contains("the server speaks neither HTTP/1.1 nor HTTP/2"), "{log}");
}

/// Killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
