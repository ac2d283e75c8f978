//! `eo-mount copy`: artifacts move between registries and image layouts as they are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::fixtures::{Sample, noise};
use eo_mount_testing::scripted_registry::Kind;
use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Fault, Finished, Home, Matcher, Program, RealRegistry, ScriptedRegistry, Takes, run,
    sha256, tools,
};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");

fn call(home: &Home, verb: &str, arguments: &[&str]) -> Finished {
    EoMount::bare(PROGRAM).home(home).current_dir(home.path()).arg(verb).args(arguments).output()
}

#[track_caller]
fn copy(home: &Home, from: &str, to: &str) -> Value {
    let said = call(home, "copy", &[from, to, "--json"]).expect_success("copy");
    assert_eq!(said.stderr, "");
    serde_json::from_slice(&said.stdout).unwrap()
}

fn states(copied: &Value) -> Vec<&str> {
    copied["blobs"].as_array().unwrap().iter().map(|blob| blob["state"].as_str().unwrap()).collect()
}

#[test]
fn an_artifact_goes_from_registry_to_registry_to_layout_and_back_with_one_digest() {
    let (first, second) = (RealRegistry::start(), RealRegistry::of(Program::Distribution3).start());
    let home = Home::new();
    let sample = Sample::files_in(&home.path().join("sample"));
    let arguments = sample.push_arguments("sample/");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    first.push_with_oras(home.path(), "pastis:sample", &arguments);
    let fetched = ["manifest", "fetch", "--plain-http", &first.reference("pastis:sample")];
    let digest = sha256(&first.oras(home.path(), &fetched).stdout);
    let steps = [
        (first.reference("pastis:sample"), second.reference("a/pastis:v1")),
        (second.reference("a/pastis:v1"), "oci:layout:v2".to_owned()),
        ("oci:layout:v2".to_owned(), first.reference("back:v3")),
        (first.reference(&format!("back@{digest}")), "oci:other:v4".to_owned()),
        ("oci:layout:v2".to_owned(), "oci:other:v5".to_owned()),
    ];
    for (number, (from, to)) in steps.iter().enumerate() {
        let copied = copy(&home, from, to);
        assert_eq!(copied["digest"], digest, "{from} {to}");
        let expected = if number == 4 { "exists" } else { "sent" };
        assert_eq!(states(&copied), [expected; 4], "{from} {to}");
        assert_eq!(states(&copy(&home, from, to)), ["exists"; 4], "{from} {to}");
    }
    let layout = format!("oci:{}:v5", home.path().join("other").display());
    let mut skopeo = Command::new("skopeo");
    skopeo.args([
        "--insecure-policy",
        "copy",
        "--quiet",
        &layout,
        &format!("dir:{}", home.path().join("dir").display()),
    ]);
    run(&mut skopeo, Duration::from_secs(60)).expect_success("skopeo copy");
    first.oras(home.path(), &["pull", "--output", "pulled", "--oci-layout", "layout:v2"]);
    for title in &sample.titles {
        let read = |folder: &str| fs::read(Path::new(home.path()).join(folder).join("sample").join(title)).unwrap();
        assert!(read("pulled") == fs::read(home.path().join("sample").join(title)).unwrap(), "{title}");
    }
}

#[test]
fn what_the_cache_has_is_not_fetched_to_be_copied() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    registry.take_uploads(Takes::default());
    let sample = Sample::files_in(&home.path().join("sample"));
    call(&home, "push", &["sample", &registry.reference("pastis:1")]).expect_success("push");
    let target = ScriptedRegistry::start();
    target.take_uploads(Takes::default());
    let from = registry.reference("pastis:1");
    call(&home, "prefetch", &[&from, "--all"]).expect_success("prefetch");
    registry.reset();
    let copied = copy(&home, &from, &target.reference("b:1"));
    assert_eq!(states(&copied), ["sent"; 4]);
    assert_eq!(registry.requests_of(Kind::Blob).len(), 0);
    for (blob, title) in copied["blobs"].as_array().unwrap()[1..].iter().zip(&sample.titles) {
        let original = fs::read(home.path().join("sample").join(title)).unwrap();
        assert!(target.blob(blob["digest"].as_str().unwrap()).unwrap() == original, "{title}");
    }
}

#[test]
fn what_arrives_wrong_is_not_copied() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let target = ScriptedRegistry::start();
    target.take_uploads(Takes::default());
    Artifact::new().config("{}", "x/y").tar("a.tar", noise(1, 100_000)).push(&registry, "pastis", "1");
    registry.fault(Matcher::blobs(), Fault::WrongBytes, ALWAYS);
    for to in [target.reference("b:1"), "oci:layout:1".to_owned()] {
        let said = call(&home, "copy", &[&registry.reference("pastis:1"), &to]);
        assert!(
            !said.success() && said.stderr.contains("has the digest") || said.stderr.contains("have the digest"),
            "{}",
            said.stderr
        );
    }
    assert!(target.requests_of(Kind::Manifest).is_empty());
    assert!(!home.path().join("layout/index.json").exists());
}

#[test]
fn a_copy_that_broke_off_goes_on_inside_the_blob() {
    const MIB: u64 = 1 << 20;
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let artifact = Artifact::new().config("{}", "x/y").tar("a.tar", noise(1, 9 << 20));
    artifact.push(&registry, "pastis", "1");
    let layer = &artifact.layers()[0].digest;
    registry.fault(Matcher::blob(layer).touching(6 * MIB..6 * MIB + 1), Fault::status(404), ALWAYS);
    let from = registry.reference("pastis:1");
    assert_eq!(call(&home, "copy", &[&from, "oci:layout:1"]).code, 1);
    assert!(!home.path().join("layout/index.json").exists());
    registry.clear_faults();
    registry.reset();
    copy(&home, &from, "oci:layout:1");
    assert_eq!(registry.blob_bytes(), 3 * MIB);
    let blobs = fs::read_dir(home.path().join("layout/blobs/sha256")).unwrap();
    let mut blobs: Vec<_> = blobs.map(|blob| blob.unwrap().path()).collect();
    blobs.retain(|blob| sha256(&fs::read(blob).unwrap()).ends_with(blob.file_name().unwrap().to_str().unwrap()));
    assert_eq!(blobs.len(), 3);
}

#[test]
fn several_copies_into_one_layout_at_once_lose_nothing_of_each_other() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    for tag in ["1", "2", "3", "4"] {
        let artifact = Artifact::new().config("{}", "x/y").tar("same.tar", noise(1, 4 << 20));
        artifact.layer(Some(tag), "text/plain", tag.to_owned()).push(&registry, "pastis", tag);
    }
    std::thread::scope(|scope| {
        for tag in ["1", "2", "3", "4"] {
            let (from, home) = (registry.reference(&format!("pastis:{tag}")), &home);
            scope.spawn(move || copy(home, &from, &format!("oci:layout:{tag}")));
        }
    });
    for tag in ["1", "2", "3", "4"] {
        assert_eq!(states(&copy(&home, &format!("oci:layout:{tag}"), "oci:again:1")).len(), 3);
    }
}

#[test]
fn a_platform_is_refused_because_all_of_an_index_goes() {
    let home = Home::new();
    for verb in ["copy", "push"] {
        let said = call(&home, verb, &["oci:layout:1", "localhost:1/b:1", "--platform", "linux/arm64"]);
        assert_eq!(said.code, 2, "{}", said.stderr);
        assert!(said.stderr.contains("by digest"), "{}", said.stderr);
    }
}

#[test]
fn a_login_that_is_given_for_one_registry_is_not_shown_to_the_other() {
    let (registry, target, home) = (ScriptedRegistry::start(), ScriptedRegistry::start(), Home::new());
    target.take_uploads(Takes::default());
    Artifact::new().config("{}", "x/y").tar("a.tar", noise(1, 1000)).push(&registry, "pastis", "1");
    let gate = |password: &str| eo_mount_testing::scripted_registry::Gate {
        basic: true,
        users: vec![("me".to_owned(), password.to_owned())],
        ..Default::default()
    };
    target.guard(gate("secret"));
    let arguments = ["copy", &registry.reference("pastis:1"), &target.reference("b:1"), "--username", "me"];
    let call = || EoMount::bare(PROGRAM).home(&home).env("EO_MOUNT_PASSWORD", "secret").args(arguments).output();
    call().expect_success("copy");
    // Now it asks for a login, too.
    registry.guard(gate("other"));
    assert!(!call().success());
    let shown = registry.requests().into_iter().filter(|request| request.header("authorization").is_some());
    assert_eq!(shown.count(), 0);
}

/// All that is attached below `place`, level by level, as oras finds it.
fn attached(home: &Home, place: &str) -> BTreeSet<String> {
    fn collect(told: &Value, digests: &mut BTreeSet<String>) {
        for referrer in told["referrers"].as_array().into_iter().flatten() {
            digests.insert(referrer["digest"].as_str().unwrap().to_owned());
            collect(referrer, digests);
        }
    }
    let arguments = match place.strip_prefix("oci:") {
        Some(layout) => ["--oci-layout", layout],
        None => ["--plain-http", place],
    };
    let told = oras(home, &[&["discover", "--format", "json"], &arguments[..]].concat());
    let mut digests = BTreeSet::new();
    collect(&serde_json::from_slice(&told.stdout).unwrap(), &mut digests);
    digests
}

fn oras(home: &Home, arguments: &[&str]) -> Finished {
    let mut oras = Command::new(tools::oras());
    oras.args(arguments).current_dir(home.path()).env("HOME", home.path());
    run(&mut oras, Duration::from_secs(60)).expect_success("oras")
}

/// The digest that oras prints of what it has attached.
fn attach(home: &Home, place: &[&str], artifact_type: &str, file: &str) -> String {
    fs::write(home.path().join(file), file).unwrap();
    let arguments = [&["attach", "--plain-http", "--format", "json", "--artifact-type", artifact_type], place, &[file]];
    let told: Value = serde_json::from_slice(&oras(home, &arguments.concat()).stdout).unwrap();
    told["digest"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_attached_is_copied_level_by_level_with_what_it_is_attached_to() {
    let (with_api, without) = (RealRegistry::of(Program::Referrers).start(), RealRegistry::start());
    let home = Home::new();
    fs::write(home.path().join("data.txt"), "data").unwrap();
    with_api.push_with_oras(home.path(), "data:v1", &["data.txt:text/plain"]);
    let source = with_api.reference("data:v1");
    let signature = attach(&home, &[&source], "text/signature", "signature.txt");
    let note = attach(&home, &[&source], "text/note", "note.txt");
    let of_signature = with_api.reference(&format!("data@{signature}"));
    let countersignature = attach(&home, &[&of_signature], "text/signature", "countersignature.txt");
    let all = BTreeSet::from([signature, note, countersignature]);
    assert_eq!(attached(&home, &source), all);
    let steps = [
        (source.clone(), without.reference("a/data:v1")),
        (without.reference("a/data:v1"), "oci:layout:v1".to_owned()),
        ("oci:layout:v1".to_owned(), "oci:other:v2".to_owned()),
        ("oci:other:v2".to_owned(), with_api.reference("b/data:v3")),
        ("oci:other:v2".to_owned(), without.reference("b/data:v3")),
    ];
    for (from, to) in &steps {
        let said = call(&home, "copy", &["-r", from, to, "--json"]).expect_success("copy");
        assert_eq!(said.stderr, "", "{from} {to}");
        let copied: Value = serde_json::from_slice(&said.stdout).unwrap();
        assert_eq!(copied["attached"].as_array().unwrap().len(), 3, "{from} {to}");
        assert_eq!(attached(&home, to), all, "{from} {to}");
        let told = call(&home, "discover", &["-r", to]).expect_success("discover").text();
        assert!(all.iter().all(|digest| told.contains(digest)), "{told}");
    }
    // The same again sends no blob, and lists nothing twice.
    let index = || fs::read(home.path().join("layout/index.json")).unwrap();
    let before = index();
    let said = call(&home, "copy", &["-r", &source, "oci:layout:v1"]).expect_success("copy").text();
    assert!(said.contains("0 of 5 blobs sent") && said.contains("3 attached manifests"), "{said}");
    let manifests =
        |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap()["manifests"].as_array().unwrap().len();
    assert_eq!((manifests(&before), manifests(&index())), (4, 4));
    // As oras copies it: the same blobs, and nothing attached without -r.
    oras(&home, &["cp", "-r", "--from-plain-http", &source, "--to-oci-layout", "theirs:v1"]);
    let blobs = |layout: &str| {
        let entries = fs::read_dir(home.path().join(layout).join("blobs/sha256")).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>()
    };
    assert_eq!(blobs("layout"), blobs("theirs"));
    assert_eq!(copy(&home, &source, "oci:alone:v1")["attached"], Value::Null);
    assert_eq!(attached(&home, "oci:alone:v1"), BTreeSet::new());
}

#[test]
fn what_is_attached_to_a_manifest_of_an_index_is_copied_too() {
    let (registry, home) = (RealRegistry::start(), Home::new());
    for name in ["one", "two"] {
        fs::write(home.path().join(name), name).unwrap();
        oras(&home, &["push", "--oci-layout", &format!("layout:{name}"), &format!("{name}:text/plain")]);
    }
    oras(&home, &["manifest", "index", "create", "--oci-layout", "layout:all", "one", "two"]);
    let to_part = attach(&home, &["--oci-layout", "layout:two"], "text/note", "of-two.txt");
    let to_index = attach(&home, &["--oci-layout", "layout:all"], "text/note", "of-all.txt");
    let copied = call(&home, "copy", &["-r", "oci:layout:all", &registry.reference("all:1"), "--json"]);
    let copied: Value = serde_json::from_slice(&copied.expect_success("copy").stdout).unwrap();
    assert_eq!(copied["attached"].as_array().unwrap().len(), 2);
    assert_eq!(attached(&home, &registry.reference("all:1")), BTreeSet::from([to_index]));
    let part = oras(&home, &["resolve", "--oci-layout", "layout:two"]).text();
    let part = registry.reference(&format!("all@{}", part.trim()));
    assert_eq!(attached(&home, &part), BTreeSet::from([to_part]));
}

#[test]
fn what_is_listed_as_attached_and_is_not_is_left_out_and_the_rest_copied() {
    let (registry, target, home) = (ScriptedRegistry::start(), ScriptedRegistry::start(), Home::new());
    target.take_uploads(Takes::default());
    let data = Artifact::new().tar("a.tar", noise(1, 1000)).push(&registry, "data", "1");
    let other = Artifact::new().tar("b.tar", noise(2, 1000)).push(&registry, "data", "other");
    let real = Artifact::new().annotation("org.opencontainers.image.ref.name", "1").subject(data.clone());
    let real = real.layer(Some("n"), "text/plain", "n").push(&registry, "data", "real");
    let gone = serde_json::json!({ "mediaType": other.to_json()["mediaType"], "digest": format!("sha256:{:064x}", 7), "size": 3 });
    let list = serde_json::json!({ "manifests": [gone, other.to_json(), data.to_json(), real.to_json()] });
    let headers = vec![("Content-Type".to_owned(), "application/vnd.oci.image.index.v1+json".to_owned())];
    let path = format!("/v2/data/referrers/{}", data.digest);
    registry.fault(Matcher::path(&path), Fault::Status(200, headers, list.to_string()), ALWAYS);
    for to in [target.reference("b:1"), "oci:layout:1".to_owned()] {
        let said = call(&home, "copy", &["-r", "--json", &registry.reference("data:1"), &to]).expect_success("copy");
        let copied: Value = serde_json::from_slice(&said.stdout).unwrap();
        assert_eq!(copied["attached"], serde_json::json!([real.digest]));
        for cause in ["but not there", "which it does not name"] {
            assert!(said.stderr.contains(cause), "{cause}: {}", said.stderr);
        }
    }
    assert_eq!(target.tagged("b", "1"), data.digest);
    // Its annotation gives what is attached no tag.
    let told = call(&home, "inspect", &["--json", "oci:layout:1"]).expect_success("inspect");
    assert_eq!(serde_json::from_slice::<Value>(&told.stdout).unwrap()["digest"], data.digest);
}

#[test]
fn a_list_of_what_is_attached_that_cannot_be_had_is_no_empty_one_and_no_old_one() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    Artifact::new().tar("a.tar", noise(1, 1000)).push(&registry, "data", "1");
    let from = registry.reference("data:1");
    call(&home, "discover", &[&from]).expect_success("discover");
    registry.fault(Matcher::path("/referrers/"), Fault::status(503), ALWAYS);
    let said = call(&home, "copy", &["-r", "--timeout", "2s", &from, "oci:layout:1"]);
    assert!(said.code == 1 && said.stderr.contains("503"), "{}", said.stderr);
    assert!(!home.path().join("layout/index.json").exists());
    copy(&home, &from, "oci:layout:1");
}
