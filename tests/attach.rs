//! `eo-mount attach` and `eo-mount discover`: what one client attaches, all others find.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Fault, Finished, Home, Matcher, Program, RealRegistry, ScriptedRegistry, run, tools,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const SIGNATURE_TYPE: &str = "application/vnd.oci.artifact.signature.v1+text";
const DATE: &str = "org.opencontainers.image.created=2026-01-31T12:00:00Z";

/// Somebody with files, who has pushed an artifact, the same each time, as `data:v1`.
struct Publisher {
    files: TempDir,
    home: Home,
    registry: RealRegistry,
}

impl Publisher {
    fn at(program: Program) -> Self {
        let (files, registry) = (tempfile::tempdir().unwrap(), RealRegistry::of(program).start());
        fs::write(files.path().join("data.txt"), "data\n").unwrap();
        fs::write(files.path().join("signature.txt"), "signed by me\n").unwrap();
        let publisher = Self { files, home: Home::new(), registry };
        publisher.push("data:v1");
        publisher
    }

    fn push(&self, name: &str) {
        self.registry.push_with_oras(self.files.path(), name, &["--annotation", DATE, "data.txt:text/plain"]);
    }

    fn oras(&self, arguments: &[&str]) -> Finished {
        self.registry.oras(self.files.path(), arguments)
    }

    fn call(&self, arguments: &[&str]) -> Finished {
        eo_mount(&self.home, self.files.path(), arguments)
    }

    /// Of `name`, as `oras discover` tells it.
    fn seen_by_oras(&self, name: &str) -> Value {
        let reference = self.registry.on_localhost(name);
        let told = self.oras(&["discover", "--format", "json", "--depth", "1", &reference]);
        serde_json::from_slice(&told.stdout).unwrap()
    }

    fn seen_by_us(&self, name: &str) -> Value {
        let told = self.call(&["discover", "--json", &self.registry.on_localhost(name)]).expect_success("discover");
        serde_json::from_slice(&told.stdout).unwrap()
    }

    fn seen_by_regctl(&self, name: &str) -> String {
        let regctl = |arguments: &[&str]| {
            let mut command = Command::new(tools::built("regctl"));
            command.args(arguments).env("HOME", self.files.path());
            run(&mut command, Duration::from_secs(60)).expect_success("regctl").text()
        };
        regctl(&["registry", "set", "--tls", "disabled", self.registry.address()]);
        regctl(&["artifact", "list", &self.registry.reference(name)])
    }
}

fn eo_mount(home: &Home, folder: &Path, arguments: &[&str]) -> Finished {
    EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).home(home).current_dir(folder).args(arguments).output()
}

fn digests(seen: &Value) -> BTreeSet<String> {
    let referrers = seen["referrers"].as_array().unwrap();
    referrers.iter().map(|referrer| referrer["digest"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn what_oras_attaches_is_discovered(program: Program) {
    let publisher = Publisher::at(program);
    let reference = publisher.registry.on_localhost("data:v1");
    assert_eq!(publisher.seen_by_us("data:v1")["referrers"], json!([]));
    // The published command.
    let signature = format!("{}:text/plain", publisher.files.path().join("signature.txt").display());
    let attach = ["attach", &reference, "--artifact-type", SIGNATURE_TYPE, "--disable-path-validation", &signature];
    publisher.oras(&attach);
    publisher.oras(&["attach", &reference, "--artifact-type", "text/note", "--annotation", "k=v", "data.txt"]);
    let (ours, theirs) = (publisher.seen_by_us("data:v1"), publisher.seen_by_oras("data:v1"));
    assert_eq!(digests(&ours).len(), 2);
    assert_eq!(digests(&ours), digests(&theirs));
    // go-containerregistry tells the type of the config, which oras believes.
    if theirs["referrers"][0]["artifactType"] != "application/vnd.oci.empty.v1+json" {
        for referrer in ours["referrers"].as_array().unwrap() {
            assert!(theirs["referrers"].as_array().unwrap().contains(referrer), "{referrer}\n{theirs}");
        }
    }
    let tree = publisher.call(&["discover", &reference, "--artifact-type", "text/note"]).text();
    let lines: Vec<&str> = tree.lines().collect();
    assert_eq!((lines[1], lines.len()), ("└── text/note", 6), "{tree}");
    assert!(lines[4].ends_with("├── k: v") && !tree.contains(SIGNATURE_TYPE), "{tree}");
}

#[test]
fn what_oras_attaches_is_discovered_on_docker_registry() {
    what_oras_attaches_is_discovered(Program::DockerRegistry);
}

#[test]
fn what_oras_attaches_is_discovered_on_distribution_3() {
    what_oras_attaches_is_discovered(Program::Distribution3);
}

#[test]
fn what_oras_attaches_is_discovered_on_a_registry_with_referrers() {
    what_oras_attaches_is_discovered(Program::Referrers);
}

#[track_caller]
fn what_is_attached_is_what_oras_attaches(program: Program) {
    let publisher = Publisher::at(program);
    publisher.push("other:v1");
    let attach = |name: &str, signature: &str| {
        let reference = publisher.registry.on_localhost(name);
        let arguments = ["attach", "--artifact-type", SIGNATURE_TYPE, "--annotation", DATE, "--annotation", "a=<b>"];
        [&arguments[..], &[&reference, signature]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let ours = attach("data:v1", "signature.txt:text/plain");
    let told = publisher.call(&ours.iter().map(String::as_str).collect::<Vec<_>>()).expect_success("attach").text();
    let theirs = attach("other:v1", "signature.txt:text/plain");
    publisher.oras(&theirs.iter().map(String::as_str).collect::<Vec<_>>());
    let digest = told.lines().next().unwrap();
    // Of the same bytes: all fields in the same order.
    assert_eq!(digests(&publisher.seen_by_oras("other:v1")), BTreeSet::from([digest.to_owned()]));
    assert_eq!(digests(&publisher.seen_by_oras("data:v1")), BTreeSet::from([digest.to_owned()]));
    assert_eq!(publisher.seen_by_us("data:v1")["referrers"][0]["artifactType"], SIGNATURE_TYPE);
    let listed = publisher.seen_by_regctl("data:v1");
    assert!(listed.contains(digest), "{listed}");
    let again = publisher.call(&ours.iter().map(String::as_str).collect::<Vec<_>>()).expect_success("attach");
    assert!(again.text().starts_with(digest));
    assert_eq!(digests(&publisher.seen_by_oras("data:v1")).len(), 1, "the same again is there once");
}

#[test]
fn what_is_attached_is_what_oras_attaches_on_docker_registry() {
    what_is_attached_is_what_oras_attaches(Program::DockerRegistry);
}

#[test]
fn what_is_attached_is_what_oras_attaches_on_distribution_3() {
    what_is_attached_is_what_oras_attaches(Program::Distribution3);
}

#[test]
fn what_is_attached_is_what_oras_attaches_on_a_registry_with_referrers() {
    what_is_attached_is_what_oras_attaches(Program::Referrers);
}

#[test]
fn ten_who_attach_at_once_lose_nothing_of_each_other() {
    let publisher = Publisher::at(Program::DockerRegistry);
    let reference = publisher.registry.on_localhost("data:v1");
    publisher.oras(&["attach", &reference, "--artifact-type", "text/first", "signature.txt"]);
    std::thread::scope(|scope| {
        for number in 0..10 {
            let (publisher, reference) = (&publisher, &reference);
            scope.spawn(move || {
                let name = format!("{number}.txt");
                fs::write(publisher.files.path().join(&name), &name).unwrap();
                let arguments = ["attach", "--artifact-type", "text/note", "--timeout", "5m", reference, &name];
                publisher.call(&arguments).expect_success("attach");
            });
        }
    });
    let seen = publisher.seen_by_oras("data:v1");
    assert_eq!(digests(&seen).len(), 11);
    assert_eq!(digests(&publisher.seen_by_us("data:v1")), digests(&seen));
}

#[test]
fn what_is_attached_to_what_is_attached_is_shown_when_asked_for() {
    let publisher = Publisher::at(Program::Referrers);
    let reference = publisher.registry.on_localhost("data:v1");
    let first = publisher.call(&["attach", &reference, "--artifact-type", "text/a", "data.txt"]).text();
    let first = publisher.registry.on_localhost(&format!("data@{}", first.lines().next().unwrap()));
    publisher.call(&["attach", &first, "--artifact-type", "text/b", "signature.txt"]).expect_success("attach");
    let flat = publisher.call(&["discover", &reference]).text();
    assert!(flat.contains("text/a") && !flat.contains("text/b"), "{flat}");
    let deep = publisher.call(&["discover", "-r", &reference]).text();
    assert!(deep.contains("└── text/a") && deep.contains("        └── text/b"), "{deep}");
}

#[test]
fn what_oras_attaches_in_an_image_layout_is_discovered() {
    let (files, home) = (tempfile::tempdir().unwrap(), Home::new());
    Artifact::new().tar("a.tar", b"x".repeat(1024)).write_layout(&files.path().join("layout"), "v1");
    fs::write(files.path().join("note.txt"), "n").unwrap();
    let mut oras = Command::new(tools::oras());
    oras.args(["attach", "--oci-layout", "layout:v1", "--artifact-type", "text/note", "note.txt:text/plain"]);
    run(oras.current_dir(files.path()), Duration::from_secs(60)).expect_success("oras attach");
    let told = eo_mount(&home, files.path(), &["discover", "oci:layout:v1"]).expect_success("discover").text();
    assert!(told.contains("└── text/note"), "{told}");
}

#[test]
fn what_is_attached_in_an_image_layout_is_what_oras_attaches_there() {
    let (files, home) = (tempfile::tempdir().unwrap(), Home::new());
    for layout in ["ours", "theirs"] {
        Artifact::new().tar("a.tar", b"x".repeat(1024)).write_layout(&files.path().join(layout), "v1");
    }
    fs::write(files.path().join("note.txt"), "n").unwrap();
    let annotations = json!({ "$manifest": { "org.opencontainers.image.created": "2026-01-31T12:00:00Z", "k": "<v>" },
        "$config": { "c": "d" }, "note.txt": { "a": "b" } });
    fs::write(files.path().join("annotations.json"), annotations.to_string()).unwrap();
    let arguments = ["--artifact-type", "text/note", "--annotation-file", "annotations.json", "note.txt:text/plain"];
    let oras = |arguments: &[&str]| {
        let mut oras = Command::new(tools::oras());
        run(oras.args(arguments).current_dir(files.path()), Duration::from_secs(60)).expect_success("oras").text()
    };
    oras(&[&["attach", "--oci-layout", "theirs:v1"], &arguments[..]].concat());
    let call = || eo_mount(&home, files.path(), &[&["attach", "oci:ours:v1"], &arguments[..]].concat());
    let told = call().expect_success("attach").text();
    let digest = told.lines().next().unwrap();
    assert!(told.contains("attached to oci:ours@sha256:"), "{told}");
    call().expect_success("attach again");
    let seen = |layout: &str| -> Value {
        serde_json::from_str(&oras(&["discover", "--oci-layout", "--format", "json", layout])).unwrap()
    };
    // There once, and the same but for the subject, of which oras repeats all that index.json says, such as its tag.
    assert_eq!(digests(&seen("ours:v1")), BTreeSet::from([digest.to_owned()]));
    let attached = |layout: &str| -> (Value, Value) {
        let read = |path: &str| -> Value {
            serde_json::from_slice(&fs::read(files.path().join(layout).join(path)).unwrap()).unwrap()
        };
        let mut entry = read("index.json")["manifests"][1].take();
        let digest = entry["digest"].take();
        entry["size"].take();
        let mut manifest = read(&digest.as_str().unwrap().replace("sha256:", "blobs/sha256/"));
        for field in ["annotations", "artifactType"] {
            manifest["subject"].as_object_mut().unwrap().remove(field);
        }
        (entry, manifest)
    };
    assert_eq!(attached("ours"), attached("theirs"));
    let ours = eo_mount(&home, files.path(), &["discover", "oci:ours:v1"]).expect_success("discover").text();
    assert!(ours.contains("└── text/note") && ours.contains(digest), "{ours}");
    oras(&["pull", "--oci-layout", &format!("ours@{digest}"), "--output", "pulled"]);
    assert_eq!(fs::read(files.path().join("pulled/note.txt")).unwrap(), b"n");
    let missing = eo_mount(&home, files.path(), &[&["attach", "oci:nowhere:v1"], &arguments[..]].concat());
    assert!(missing.code == 1 && !files.path().join("nowhere").exists(), "{}", missing.stderr);
}

#[test]
fn what_was_attached_is_told_without_the_registry_too() {
    let publisher = Publisher::at(Program::Referrers);
    let reference = publisher.registry.on_localhost("data:v1");
    let missing = publisher.call(&["discover", "--offline", &reference]);
    assert_eq!(missing.code, 1, "{}", missing.stderr);
    publisher.call(&["attach", &reference, "--artifact-type", "text/note", "data.txt"]).expect_success("attach");
    let told = publisher.call(&["discover", &reference]).expect_success("discover").text();
    let Publisher { files, home, registry } = publisher;
    drop(registry);
    for arguments in [&["discover", "--offline", &reference][..], &["discover", "--timeout", "5s", &reference]] {
        assert_eq!(eo_mount(&home, files.path(), arguments).expect_success("discover").text(), told);
    }
}

/// Page `number` of a list, with one referrer, and a link to `next`.
fn page(registry: &ScriptedRegistry, path: &str, number: u32, next: Option<&str>) {
    let digest = format!("sha256:{number:064x}");
    let entry = json!({ "mediaType": "m", "digest": digest, "size": 1, "artifactType": format!("text/{number}") });
    let mut headers = vec![("Content-Type".to_owned(), INDEX_TYPE.to_owned())];
    headers.extend(next.map(|next| ("Link".to_owned(), format!("<{next}>; rel=\"next\""))));
    registry.fault(
        Matcher::path(path),
        Fault::Status(200, headers, json!({ "manifests": [entry] }).to_string()),
        ALWAYS,
    );
}

#[test]
fn a_list_of_several_pages_is_read_to_its_end() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    Artifact::new().tar("a.tar", b"x".repeat(1024)).push(&registry, "data", "v1");
    page(&registry, "/list/3", 3, None);
    page(&registry, "/list/2", 2, Some("3"));
    page(&registry, "/referrers/", 1, Some("/v2/data/list/2"));
    let told = eo_mount(&home, home.path(), &["discover", &registry.reference("data:v1")]).expect_success("discover");
    for number in 1..=3 {
        assert!(told.text().contains(&format!("── text/{number}")), "{}", told.text());
    }
}

#[test]
fn a_list_that_goes_on_at_another_host_or_for_ever_is_refused() {
    let (registry, other, home) = (ScriptedRegistry::start(), ScriptedRegistry::start(), Home::new());
    Artifact::new().tar("a.tar", b"x".repeat(1024)).push(&registry, "data", "v1");
    let discover = || eo_mount(&home, home.path(), &["discover", &registry.reference("data:v1")]);
    let elsewhere = format!("http://{}/v2/x/referrers/y", other.address());
    page(&registry, "/referrers/", 1, Some(&elsewhere));
    let told = discover();
    assert_eq!(told.code, 1);
    assert!(told.stderr.contains("goes on at another registry"), "{}", told.stderr);
    assert!(other.requests().is_empty());
    registry.clear_faults();
    page(&registry, "/referrers/", 1, Some("?more"));
    let told = discover();
    assert_eq!(told.code, 1);
    assert!(told.stderr.contains("more than 1000 pages"), "{}", told.stderr);
}

#[test]
fn a_page_for_people_and_a_refusal_are_told_apart() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    Artifact::new().tar("a.tar", b"x".repeat(1024)).push(&registry, "data", "v1");
    let discover = || eo_mount(&home, home.path(), &["discover", &registry.reference("data:v1")]);
    let html = vec![("Content-Type".to_owned(), "text/html".to_owned())];
    registry.fault(Matcher::path("/referrers/"), Fault::Status(200, html, "<html>".into()), 1);
    assert_eq!(discover().expect_success("discover").text().lines().count(), 1);
    registry.fault(Matcher::path("/referrers/"), Fault::status(403), ALWAYS);
    let told = discover();
    assert_eq!(told.code, 1);
    assert!(told.stderr.contains("403"), "{}", told.stderr);
}

#[test]
fn a_tag_that_is_no_list_is_left_alone() {
    let publisher = Publisher::at(Program::DockerRegistry);
    let reference = publisher.registry.on_localhost("data:v1");
    let digest = publisher.oras(&["resolve", &reference]).text().trim().to_owned();
    let list = format!("data:{}", digest.replace(':', "-"));
    publisher.push(&list);
    let told = publisher.call(&["attach", &reference, "--artifact-type", "text/note", "signature.txt"]);
    assert_eq!(told.code, 1);
    assert!(told.stderr.contains("names something else"), "{}", told.stderr);
    let now = publisher.oras(&["resolve", &publisher.registry.on_localhost(&list)]).text();
    assert_eq!(now.trim(), digest);
}
