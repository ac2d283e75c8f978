//! `eo-mount copy`: artifacts move between registries and image layouts as they are.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::fixtures::{Sample, noise};
use eo_mount_testing::scripted_registry::Kind;
use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Fault, Finished, Home, Matcher, Program, RealRegistry, ScriptedRegistry, Takes, run,
    sha256,
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
