//! Manifests of every kind: of images and artifacts, docker's, indexes of several, large ones, and what they say of
//! blobs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use eo_mount_testing::files::{pread, xattr};
use eo_mount_testing::fixtures::{RawTar, noise};
use eo_mount_testing::namespace::{self, in_own_namespace};
use eo_mount_testing::{
    ALWAYS, Artifact, Descriptor, EoMount, Fault, Finished, Home, Kind, Matcher, Mounted, RealRegistry,
    ScriptedRegistry, sha256,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const LIST_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const EIO: Option<i32> = Some(5);

fn mount(reference: impl Into<String>) -> EoMount {
    EoMount::new(PROGRAM, reference)
}

fn verb(home: &Home, arguments: &[&str]) -> Finished {
    EoMount::bare(PROGRAM).home(home).args(arguments).output()
}

/// An archive of one file.
fn tar(content: &[u8]) -> Vec<u8> {
    RawTar::new().file("file", content).finish()
}

/// One layer, `data.tar`, in which `file` holds the text.
fn artifact(text: &str) -> Artifact {
    Artifact::new().config(json!({"of": text}).to_string(), "application/json").tar("data.tar", tar(text.as_bytes()))
}

/// As an index lists it.
fn listed(manifest: &Descriptor, more: Value) -> Value {
    let mut entry = manifest.to_json();
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

fn linux(architecture: &str) -> Value {
    json!({"platform": {"os": "linux", "architecture": architecture}})
}

/// Puts an index into the registry.
fn put_index(registry: &ScriptedRegistry, tag: &str, media_type: &str, manifests: &[Value]) -> Descriptor {
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).to_string();
    let digest = registry.put_manifest("data", tag, index.clone());
    Descriptor { digest, size: index.len() as u64, media_type: media_type.to_owned(), annotations: Default::default() }
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

fn short(descriptor: &Descriptor) -> &str {
    &descriptor.digest["sha256:".len()..][..12]
}

#[track_caller]
fn refused(reference: String, options: &[&str], parts: &[&str]) {
    let said = mount(reference).without_log().args(options).output();
    assert_eq!((said.code, said.stderr.lines().count()), (1, 1), "{}", said.stderr);
    for part in parts {
        assert!(said.stderr.contains(part), "{part}\n{}", said.stderr);
    }
}

// Indexes.

#[test]
fn an_index_made_by_oras_is_a_folder_a_platform_for_every_verb() {
    let (registry, files, home) = (RealRegistry::start(), tempfile::tempdir().unwrap(), Home::new());
    for platform in ["linux/amd64", "linux/arm64/v8"] {
        fs::write(files.path().join("10000.tar"), tar(platform.as_bytes())).unwrap();
        let tag = platform.replace('/', "-");
        let layer = "10000.tar:application/vnd.oci.image.layer.v1.tar";
        let kind = ["--artifact-type", "application/vnd.whatever.v1+tar", "--artifact-platform", platform, layer];
        registry.push_with_oras(files.path(), &format!("data:{tag}"), &kind);
    }
    let reference = registry.reference("data:all");
    let index = ["manifest", "index", "create", "--plain-http", &reference, "linux-amd64", "linux-arm64-v8"];
    registry.oras(files.path(), &index);

    let mounted = mount(&reference).home(&home).mount();
    assert_eq!(names(mounted.path()), set(["linux-amd64", "linux-arm64-v8"]));
    assert_eq!(fs::read(mounted.join("linux-amd64/10000/file")).unwrap(), b"linux/amd64");
    assert_eq!(fs::read(mounted.join("linux-arm64-v8/10000/file")).unwrap(), b"linux/arm64/v8");
    assert_eq!(xattr(mounted.join("linux-arm64-v8"), "user.oci.platform").as_deref(), Some("linux/arm64/v8"));
    let kind = xattr(mounted.join("linux-amd64"), "user.oci.artifact-type");
    assert_eq!(kind.as_deref(), Some("application/vnd.whatever.v1+tar"));
    let fetched =
        verb(&home, &["prefetch", mounted.path().to_str().unwrap(), "linux-arm64-v8"]).expect_success("prefetch");
    assert!(fetched.text().starts_with("1 layers"), "{}", fetched.text());
    mounted.unmount();

    let listing = verb(&home, &["ls", "-R", &reference]).expect_success("ls").text();
    assert!(listing.contains("linux-arm64-v8/10000:\nfile\n"), "{listing}");
    let one = verb(&home, &["ls", "--platform", "linux/arm64", &reference]).expect_success("ls").text();
    assert_eq!(one, "10000\nconfig.json\n");
    let indexed = verb(&home, &["index", &reference, "linux-amd64/10000"]).expect_success("index").text();
    assert!(indexed.starts_with("1 layers"), "{indexed}");
    verb(&home, &["prefetch", &reference, "--all"]).expect_success("prefetch");
    drop(registry);
    let mounted = mount(&reference).home(&home).arg("--offline").mount();
    assert_eq!(fs::read(mounted.join("linux-arm64-v8/10000/file")).unwrap(), b"linux/arm64/v8");
}

#[test]
fn an_image_layout_of_an_index_has_attestations_too() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let [shown, hidden] = ["1", "2"].map(|text| artifact(text).push(&registry, "data", text));
    let attestation = json!({"annotations": {"vnd.docker.reference.type": "attestation-manifest"}});
    let entries = [listed(&shown, linux("amd64")), listed(&hidden, attestation)];
    put_index(&registry, "all", INDEX_TYPE, &entries);
    let out = home.path().join("layout");
    let reference = registry.reference("data:all");
    let pull = |more: &[&str]| -> Value {
        let call = ["pull", &reference, "--to-oci-layout", "--json", "-o", out.to_str().unwrap()];
        let told = verb(&home, &[&call, more].concat()).expect_success("pull");
        serde_json::from_slice(&told.stdout).unwrap()
    };
    let told = pull(&["--dry-run"]);
    assert!(!out.exists());
    registry.reset();
    assert_eq!(pull(&[])["missing"], told["missing"]);
    let ranges = registry.requests().into_iter().filter_map(|request| request.byte_range());
    let fetched: u64 = ranges.map(|range| range.end - range.start).sum();
    assert_eq!(told["missing"], fetched, "what a dry run told is what was fetched");
    let manifests: u64 = [&shown, &hidden].iter().map(|manifest| manifest.size).sum();
    assert!(told["manifests"].as_u64().unwrap() > manifests, "{told}");
    assert_eq!(told["layers"].as_array().unwrap().len(), 4);
    // An index; of each manifest itself, its config and its layer.
    assert_eq!(names(&out.join("blobs/sha256")).len(), 7);
    assert!(out.join("blobs").join(hidden.digest.replace(':', "/")).is_file());
    let copied = format!("oci:{}:all", out.display());
    verb(&home, &["copy", &copied, &format!("oci:{}:all", home.path().join("again").display())]).expect_success("copy");
}

#[test]
fn manifests_of_an_index_are_named_by_platform_name_or_place() {
    let registry = ScriptedRegistry::start();
    let push = |text: &str| artifact(text).push(&registry, "data", text);
    let [first, second, named, plain, unknown] = ["1", "2", "3", "4", "5"].map(push);
    let attestation = json!({"platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"}});
    let inner = put_index(&registry, "inner", INDEX_TYPE, &[listed(&named, linux("amd64"))]);
    let foreign = Descriptor { media_type: "application/vnd.example.unknown+json".to_owned(), ..plain.clone() };
    let variant = json!({"platform": {"os": "linux", "architecture": "arm", "variant": "v7"}});
    let entries = [
        listed(&first, linux("amd64")),
        listed(&second, linux("amd64")),
        listed(&first, variant),
        listed(&named, json!({"annotations": {"org.opencontainers.image.ref.name": "example.org/a:b"}})),
        listed(&plain, json!({"annotations": {"org.opencontainers.image.ref.name": ".."}})),
        listed(&unknown, attestation),
        listed(&unknown, json!({"platform": {"os": "../..", "architecture": "a/b"}})),
        listed(&foreign, json!({})),
        listed(&inner, json!({"annotations": {"org.opencontainers.image.ref.name": "inner"}})),
        listed(&first, linux("amd64")),
    ];
    for (tag, media_type) in [("oci", INDEX_TYPE), ("docker", LIST_TYPE)] {
        let index = put_index(&registry, tag, media_type, &entries);
        let mounted = mount(registry.reference(&format!("data:{tag}"))).mount();
        let clashing = [&first, &second].map(|manifest| format!("linux-amd64-{}", short(manifest)));
        let place = format!("manifest-0004-{}", short(&plain));
        let expected =
            set([&clashing[0], &clashing[1], "linux-arm-v7", "example.org_a:b", &place, "..-..-a-b", "inner"]);
        assert_eq!(names(mounted.path()), expected);
        assert_eq!(fs::read(mounted.join(&clashing[1]).join("data/file")).unwrap(), b"2");
        assert_eq!(fs::read(mounted.join("inner/linux-amd64/data/file")).unwrap(), b"3");
        assert_eq!(fs::read(mounted.join("linux-arm-v7/config.json")).unwrap(), br#"{"of":"1"}"#);
        let said = |path: &str, name: &str| xattr(mounted.join(path), name);
        assert_eq!(said("", "user.oci.digest").as_deref(), Some(&*index.digest));
        assert_eq!(said("", "user.oci.media-type").as_deref(), Some(media_type));
        assert_eq!(said("inner", "user.oci.digest").as_deref(), Some(&*inner.digest));
        assert_eq!(said("linux-arm-v7", "user.oci.digest").as_deref(), Some(&*first.digest));
        let name = said("example.org_a:b", "user.oci.annotation.org.opencontainers.image.ref.name");
        assert_eq!(name.as_deref(), Some("example.org/a:b"));
    }
}

#[test]
fn platform_picks_one_manifest_of_an_index() {
    let registry = ScriptedRegistry::start();
    let [amd, arm] = ["amd", "arm"].map(|text| artifact(text).push(&registry, "data", text));
    let arm_platform = json!({"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}});
    put_index(&registry, "all", INDEX_TYPE, &[listed(&amd, linux("amd64")), listed(&arm, arm_platform)]);
    let reference = registry.reference("data:all");
    for wanted in ["linux/arm64", "linux/arm64/v8"] {
        let mounted = mount(&reference).args(["--platform", wanted]).mount();
        assert_eq!(names(mounted.path()), set(["config.json", "data"]));
        assert_eq!(fs::read(mounted.join("data/file")).unwrap(), b"arm");
        assert_eq!(xattr(mounted.path(), "user.oci.digest").as_deref(), Some(&*arm.digest));
    }
    assert!(registry.requests().iter().all(|request| !request.path.ends_with(&amd.digest)), "it was not wanted");
    let hint = ["no manifest of the index is for windows/amd64", "linux/amd64, linux/arm64/v8"];
    refused(reference, &["--platform", "windows/amd64"], &hint);
}

#[test]
fn a_manifest_that_is_not_there_is_a_folder_that_says_why() {
    let registry = ScriptedRegistry::start();
    let here = artifact("here").push(&registry, "data", "here");
    let missing = Descriptor { digest: sha256(b"missing"), ..here.clone() };
    let garbage = registry.put_manifest("data", "garbage", "{}");
    let garbage = Descriptor { digest: garbage, size: 2, ..here.clone() };
    let wrong_size = Descriptor { size: here.size + 1, ..here.clone() };
    let broken = [listed(&missing, linux("a")), listed(&garbage, linux("b")), listed(&wrong_size, linux("c"))];
    put_index(&registry, "some", INDEX_TYPE, &[&broken[..], &[listed(&here, linux("amd64"))]].concat());
    let home = Home::new();
    let mounted = mount(registry.reference("data:some")).home(&home).mount();
    assert_eq!(names(mounted.path()), set(["linux-a", "linux-amd64", "linux-b", "linux-c"]));
    assert_eq!(fs::read(mounted.join("linux-amd64/data/file")).unwrap(), b"here");
    for (name, why) in
        [("linux-a", "no such tag or digest"), ("linux-b", "no OCI manifest"), ("linux-c", "in the index")]
    {
        assert_eq!(fs::read_dir(mounted.join(name)).unwrap().next().unwrap().err().unwrap().raw_os_error(), EIO);
        let said = xattr(mounted.join(name), "user.eo.error").unwrap();
        assert!(said.contains(why) && mounted.log().contains(why), "{said}");
    }
    let all = verb(&home, &["prefetch", &registry.reference("data:some"), "--all"]);
    assert!(all.code == 1 && all.stderr.contains("linux-a"), "{}", all.stderr);
    put_index(&registry, "none", INDEX_TYPE, &broken);
    refused(registry.reference("data:none"), &[], &["no such tag or digest"]);
}

#[test]
fn a_registry_that_fails_while_an_index_is_read_refuses_the_mount() {
    let registry = ScriptedRegistry::start();
    let [first, second] = ["1", "2"].map(|text| artifact(text).push(&registry, "data", text));
    put_index(&registry, "all", INDEX_TYPE, &[listed(&first, linux("1")), listed(&second, linux("2"))]);
    let fault = registry.fault(Matcher::path(&second.digest), Fault::status(503), ALWAYS);
    refused(registry.reference("data:all"), &[], &["503", "try again later"]);
    assert!(fault.met() > 1);
}

#[test]
fn indexes_are_bounded_in_number_depth_and_bytes() {
    let registry = ScriptedRegistry::start();
    let leaf = artifact("leaf").push(&registry, "data", "leaf");
    let many: Vec<Value> = (0..1000).map(|number| listed(&leaf, linux(&format!("{number}")))).collect();
    put_index(&registry, "many", INDEX_TYPE, &many);
    refused(registry.reference("data:many"), &[], &["more than 1000 manifests", "--platform"]);
    let mut inner = leaf.clone();
    for depth in 0..5 {
        inner = put_index(&registry, &format!("deep-{depth}"), INDEX_TYPE, &[listed(&inner, linux("amd64"))]);
    }
    let mounted = mount(registry.reference("data:deep-3")).mount();
    let deep = "linux-amd64/linux-amd64/linux-amd64/linux-amd64/data/file";
    assert_eq!(fs::read(mounted.join(deep)).unwrap(), b"leaf");
    refused(registry.reference("data:deep-4"), &[], &["more than 4 deep"]);
    let heavy = Descriptor { size: 65 << 20, ..leaf };
    put_index(&registry, "heavy", INDEX_TYPE, &[listed(&heavy, linux("amd64"))]);
    registry.reset();
    refused(registry.reference("data:heavy"), &[], &["67108864 bytes of manifests"]);
    assert_eq!(registry.requests().len(), 1, "nothing that is too large is asked for");
}

#[test]
fn an_index_in_an_image_layout_is_shown_the_same() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), ScriptedRegistry::start());
    let manifest = artifact("in a layout").write_layout(folder.path(), "one");
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [listed(&manifest, linux("amd64"))]});
    let index = index.to_string();
    let digest = sha256(index.as_bytes());
    fs::write(folder.path().join("blobs/sha256").join(&digest["sha256:".len()..]), index).unwrap();
    let mounted = mount(format!("oci:{}@{digest}", folder.path().display())).mount();
    assert_eq!(fs::read(mounted.join("linux-amd64/data/file")).unwrap(), b"in a layout");
    assert_eq!(registry.requests().len(), 0);
}

// Other manifests.

#[test]
fn manifests_of_docker_and_artifact_manifests_are_mounted() {
    let registry = ScriptedRegistry::start();
    let layer = registry.put_blob(tar(b"content"));
    let titled = listed(&layer, json!({"annotations": {"org.opencontainers.image.title": "data.tar"}}));
    let artifact = json!({"mediaType": "application/vnd.oci.artifact.manifest.v1+json",
        "artifactType": "application/vnd.example", "blobs": [titled], "annotations": {"org.example.note": "kept"}});
    registry.put_manifest("data", "artifact", artifact.to_string());
    let mounted = mount(registry.reference("data:artifact")).mount();
    assert_eq!(names(mounted.path()), set(["data"]));
    assert_eq!(fs::read(mounted.join("data/file")).unwrap(), b"content");
    assert_eq!(xattr(mounted.path(), "user.oci.artifact-type").as_deref(), Some("application/vnd.example"));
    assert_eq!(xattr(mounted.path(), "user.oci.annotation.org.example.note").as_deref(), Some("kept"));

    let config = registry.put_blob("{}");
    let docker = json!({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": listed(&config, json!({"mediaType": "application/vnd.docker.container.image.v1+json"})),
        "layers": [listed(&layer, json!({"mediaType": "application/vnd.docker.image.rootfs.diff.tar"}))]});
    registry.put_manifest("data", "docker", docker.to_string());
    let mounted = mount(registry.reference("data:docker")).mount();
    assert_eq!(fs::read(mounted.join(format!("layer-0000-{}/file", short(&layer)))).unwrap(), b"content");
    let kind = xattr(mounted.join("config.json"), "user.oci.media-type");
    assert_eq!(kind.as_deref(), Some("application/vnd.docker.container.image.v1+json"));

    // As programs in Go write a list without members.
    registry.put_manifest("data", "empty", r#"{"schemaVersion":2,"layers":null,"annotations":null}"#);
    assert_eq!(names(mount(registry.reference("data:empty")).mount().path()), set([]));
}

#[test]
fn ten_thousand_layers_are_mounted_and_listed_in_bounded_memory() {
    let registry = ScriptedRegistry::start();
    for count in [2433, 10_000] {
        let mut artifact = Artifact::new().config("{}", "application/json");
        for number in 0..count {
            let digest = sha256(format!("{number}").as_bytes());
            let layer = registry.put_sparse_blob(32 << 20, &digest, |_, bytes| bytes.fill(0));
            artifact = artifact.layer_of(Some(&format!("{number:05}.tar")), layer);
        }
        artifact.push(&registry, "data", "many");
        registry.reset();
        let mounted = mount(registry.reference("data:many")).mount_foreground();
        assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), count + 1);
        assert_eq!(registry.requests().len(), 2, "manifest and config");
        assert!(mounted.peak_resident_bytes() < 96 << 20, "{}", mounted.peak_resident_bytes());
    }
}

#[test]
fn a_manifest_over_4_mib_is_refused_in_plain_words() {
    let registry = ScriptedRegistry::start();
    let layer = tar(b"content");
    let with_note = |length: usize| {
        Artifact::new().annotation("org.example.note", &"x".repeat(length)).tar("data.tar", layer.clone())
    };
    let rest = with_note(0).manifest().len();
    with_note((4 << 20) - rest).push(&registry, "data", "largest");
    assert_eq!(names(mount(registry.reference("data:largest")).mount().path()), set(["config.json", "data"]));
    with_note((4 << 20) - rest + 1).push(&registry, "data", "larger");
    refused(registry.reference("data:larger"), &[], &["the manifest is larger than the 4 MiB", "publisher"]);
}

// What manifests say of blobs.

#[test]
fn blobs_that_the_manifest_brings_along_cost_no_request() {
    let registry = ScriptedRegistry::start();
    let (config, text, wrong) = (registry.put_blob("{}"), registry.put_blob("text"), registry.put_blob("right"));
    let titled = |blob: &Descriptor, title: &str, data: &str| {
        let annotations = json!({"org.opencontainers.image.title": title});
        listed(blob, json!({"mediaType": "text/plain", "annotations": annotations, "data": data}))
    };
    // "wrong" has the right length; what is no base64 is nothing.
    let layers =
        [titled(&text, "a.txt", "dGV4dA=="), titled(&wrong, "b.txt", "d3Jvbmc="), titled(&wrong, "c.txt", "*")];
    let manifest = json!({"config": listed(&config, json!({"data": "e30="})), "layers": layers});
    registry.put_manifest("data", "v1", manifest.to_string());
    registry.remove_blob(&config.digest);
    registry.remove_blob(&text.digest);
    registry.reset();
    let mounted = mount(registry.reference("data:v1")).mount();
    assert_eq!(fs::read(mounted.join("config.json")).unwrap(), b"{}");
    assert_eq!(fs::read(mounted.join("a.txt")).unwrap(), b"text");
    assert_eq!(registry.requests().len(), 1, "the manifest");
    assert_eq!(fs::read(mounted.join("b.txt")).unwrap(), b"right");
    assert_eq!(fs::read(mounted.join("c.txt")).unwrap(), b"right");
}

#[test]
fn a_layer_that_is_elsewhere_is_named_with_its_address_and_nobody_there_is_asked() {
    let (registry, other) = (ScriptedRegistry::start(), ScriptedRegistry::start());
    let layer = other.put_blob(tar(b"elsewhere"));
    let url = other.blob_url("data", &layer.digest);
    let foreign = listed(
        &layer,
        json!({"urls": [url, "file:///etc/passwd"],
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "annotations": {"org.opencontainers.image.title": "data.tar"}}),
    );
    registry.put_manifest("data", "v1", json!({"layers": [foreign]}).to_string());
    let mounted = mount(registry.reference("data:v1")).mount();
    let failed = fs::read(mounted.join("data/file")).unwrap_err();
    assert_eq!(failed.raw_os_error(), EIO);
    let said = xattr(mounted.join("data"), "user.eo.error").unwrap();
    assert!(said.contains(&url), "{said}");
    assert_eq!(other.requests().len(), 0);
    registry.put_blob(tar(b"elsewhere"));
    assert_eq!(fs::read(mounted.join("data/file")).unwrap(), b"elsewhere", "the registry may have it after all");
}

fn sha512(bytes: &[u8]) -> String {
    let hex: String = Sha512::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha512:{hex}")
}

#[test]
fn blobs_with_sha512_digests_are_read_checked_and_kept() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let content = noise(1, 300_000);
    let layer = tar(&content);
    let layer = registry.put_blob_as(&sha512(&layer), layer);
    let config = registry.put_blob_as(&sha512(b"{}"), "{}");
    let layer = listed(&layer, json!({"annotations": {"org.opencontainers.image.title": "data.tar"}}));
    let manifest = json!({"config": config.to_json(), "layers": [layer]}).to_string();
    let digest = sha512(manifest.as_bytes());
    registry.put_manifest("data", &digest, manifest);
    let reference = registry.reference(&format!("data@{digest}"));
    let call = || mount(&reference).home(&home).args(["--verify", "blob"]);
    let unchecked = mount(&reference).home(&home).mount();
    assert_eq!(pread(unchecked.join("data/file"), 5..50).unwrap(), &content[5..50]);
    unchecked.unmount();
    let read = |mounted: Mounted| {
        assert_eq!(fs::read(mounted.join("config.json")).unwrap(), b"{}");
        assert_eq!(pread(mounted.join("data/file"), 100_000..200_000).unwrap(), &content[100_000..200_000]);
        assert_eq!(xattr(mounted.path(), "user.oci.digest").as_deref(), Some(&*digest));
        assert_eq!(xattr(mounted.join("data"), "user.eo.verified").as_deref(), Some("blob"));
        mounted.unmount();
    };
    read(call().mount());
    registry.go_down();
    read(call().arg("--offline").mount());
}

// References and time.

/// A port of `::1` alone, from which a registry is reached.
fn by_ipv6(registry: &ScriptedRegistry) -> u16 {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).expect("IPv6 on the loopback interface");
    let port = listener.local_addr().unwrap().port();
    let to = registry.address();
    // They end with the registry and the program.
    std::thread::spawn(move || {
        for from in listener.incoming().map_while(Result::ok) {
            let Ok(to) = TcpStream::connect(&to) else { return };
            for (mut from, mut to) in
                [(from.try_clone().unwrap(), to.try_clone().unwrap()), (to.try_clone().unwrap(), from)]
            {
                std::thread::spawn(move || io::copy(&mut from, &mut to));
            }
        }
    });
    port
}

#[test]
fn a_registry_with_an_ipv6_address_is_mounted() {
    let registry = ScriptedRegistry::start();
    artifact("by IPv6").push(&registry, "data", "v1");
    let mounted = mount(format!("[::1]:{}/data:v1", by_ipv6(&registry))).mount();
    assert_eq!(fs::read(mounted.join("data/file")).unwrap(), b"by IPv6");
}

#[test]
fn a_registry_whose_name_has_an_ipv6_address_alone_is_mounted() {
    in_own_namespace("a_registry_whose_name_has_an_ipv6_address_alone_is_mounted", || {
        let registry = ScriptedRegistry::start();
        artifact("by IPv6").push(&registry, "data", "v1");
        let hosts = tempfile::NamedTempFile::new().unwrap();
        fs::write(hosts.path(), "127.0.0.1 localhost\n::1 ipv6.example\n").unwrap();
        namespace::mount(&["--bind", hosts.path().to_str().unwrap()], Path::new("/etc/hosts"));
        let port = by_ipv6(&registry);
        let mounted = mount(format!("ipv6.example:{port}/data:v1")).arg("--plain-http").mount();
        assert_eq!(fs::read(mounted.join("data/file")).unwrap(), b"by IPv6");
    });
}

#[test]
fn a_mount_begins_within_the_timeout_whatever_is_slow() {
    let registry = ScriptedRegistry::start();
    let manifests: Vec<Value> = (0..3)
        .map(|number| {
            let text = number.to_string();
            listed(&artifact(&text).push(&registry, "data", &text), linux(&text))
        })
        .collect();
    put_index(&registry, "all", INDEX_TYPE, &manifests);
    registry.fault(Matcher::manifests(), Fault::Delay(Duration::from_secs(3)), ALWAYS);
    registry.fault(Matcher::kind(Kind::Config), Fault::Delay(Duration::from_secs(3)), ALWAYS);
    let started = Instant::now();
    refused(registry.reference("data:all"), &["--timeout", "5s"], &["5s", "--timeout"]);
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}
