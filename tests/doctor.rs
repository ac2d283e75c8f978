//! `eo-mount doctor`: what works, what does not, and what to do about it; and whether a mount can work at all.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use eo_mount_testing::fixtures::{RawTar, noise};
use eo_mount_testing::namespace::{in_own_namespace, mount};
use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Fault, Finished, Home, Kind, Matcher, RealRegistry, ScriptedRegistry,
};
use serde_json::Value;

fn doctor(arguments: &[&str]) -> Finished {
    EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).home(&Home::new()).arg("doctor").args(arguments).output()
}

fn pushed(registry: &ScriptedRegistry) -> String {
    let tar = RawTar::new().file("file", noise(1, 1 << 20)).finish();
    Artifact::new().config("{}", "application/json").tar("data.tar", tar).push(registry, "data", "v1");
    registry.reference("data:v1")
}

/// The line about this.
#[track_caller]
fn line<'a>(said: &'a str, check: &str) -> &'a str {
    let is_it = |line: &&str| line.split_whitespace().nth(1) == Some(check);
    said.lines().find(is_it).unwrap_or_else(|| panic!("nothing about {check}:\n{said}"))
}

/// Checks the marks: what is fine, and what is not with a part of what is said of it.
#[track_caller]
fn marks(said: &str, fine: &[&str], wrong: &[(&str, &str)]) {
    for check in fine {
        assert!(line(said, check).starts_with('✓'), "{said}");
    }
    for (check, part) in wrong {
        assert!(line(said, check).starts_with('✗') && line(said, check).contains(part), "{part}\n{said}");
    }
    let failed = said.lines().filter(|line| line.starts_with('✗')).count();
    assert_eq!(failed, wrong.len(), "{said}");
}

const LOCAL: [&str; 5] = ["cache", "holes", "/dev/fuse", "mounting", "allow_other"];
const NO_REFERRERS: (&str, &str) = ("referrers", "cannot list what is attached");

#[test]
fn a_healthy_registry_has_a_tick_a_line() {
    let (registry, files) = (RealRegistry::start(), tempfile::tempdir().unwrap());
    fs::write(files.path().join("data.tar"), RawTar::new().file("file", noise(1, 8 << 20)).finish()).unwrap();
    registry.push_with_oras(files.path(), "data:v1", &["data.tar:application/vnd.oci.image.layer.v1.tar"]);
    let reference = registry.on_localhost("data:v1");
    let said = doctor(&[&reference]).expect_success("doctor").text();
    let remote = ["name", "connection", "login", "manifest", "range", "redirect", "rate"];
    // docker-registry 2.8 has no referrers API; a mount needs none.
    marks(&said, &[&remote[..], &LOCAL].concat(), &[NO_REFERRERS]);
    assert!(line(&said, "manifest").contains("sha256:") && line(&said, "rate").contains("4.2 MB in"), "{said}");

    let said = doctor(&["--json", &reference]).expect_success("doctor").text();
    let report: Value = serde_json::from_str(&said).expect("one object");
    assert_eq!((&report["ok"], &report["reference"]), (&true.into(), &reference.as_str().into()));
    let check = |name: &str| report["checks"].as_array().unwrap().iter().find(|check| check["check"] == name).unwrap();
    assert_eq!((&check("range")["ok"], &check("range")["needed"]), (&true.into(), &true.into()));
    assert!(check("referrers")["hint"].as_str().is_some_and(|hint| hint.contains("nothing to be done")));
    let absent = doctor(&[&registry.on_localhost("data:v2")]);
    assert_eq!(absent.code, 1);
    marks(&absent.text(), &["connection", "login", "/dev/fuse"], &[("manifest", "no such tag")]);
}

#[test]
fn limits_redirects_and_referrers_are_told() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    registry.fault(Matcher::manifests(), Fault::Header("ratelimit-remaining", "76;w=21600"), ALWAYS);
    registry.fault(Matcher::path("/referrers/"), Fault::Status(200, Vec::new(), "{}".to_owned()), ALWAYS);
    let said = doctor(&[&reference]).expect_success("doctor").text();
    marks(&said, &["limits", "referrers", "redirect"], &[]);
    assert!(line(&said, "limits").contains("76 requests left in 6h"), "{said}");
    assert!(line(&said, "redirect").contains("the registry itself"), "{said}");

    registry.clear_faults();
    registry.fault(Matcher::manifests(), Fault::Header("ratelimit-remaining", "0;w=21600"), ALWAYS);
    let elsewhere = ScriptedRegistry::start();
    pushed(&elsewhere);
    let layer = registry.requests_of(Kind::Blob)[0].digest().unwrap().to_owned();
    registry.fault(Matcher::blobs(), Fault::Redirect(elsewhere.blob_url("data", &layer)), ALWAYS);
    let said = doctor(&[&reference]).text();
    marks(&said, &["range", "rate"], &[("limits", "no requests left in 6h"), NO_REFERRERS]);
    assert!(line(&said, "redirect").contains(&elsewhere.address()), "{said}");
    assert!(elsewhere.blob_requests() > 0);
}

#[test]
fn a_registry_without_ranges_is_found_out_and_costs_no_layer() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    registry.fault(Matcher::blobs(), Fault::IgnoreRange, ALWAYS);
    let said = doctor(&[&reference]);
    assert_eq!(said.code, 1);
    marks(&said.text(), &["manifest", "/dev/fuse"], &[("range", "the whole blob"), NO_REFERRERS]);
    assert_eq!(registry.blob_requests(), 1);
    registry.clear_faults();
    registry.fault(Matcher::blobs(), Fault::WrongContentRange, ALWAYS);
    let said = doctor(&[&reference]);
    assert_eq!(said.code, 1);
    marks(&said.text(), &["manifest"], &[("range", "the registry answers with `bytes"), NO_REFERRERS]);
}

#[test]
fn doctor_looks_where_registries_conf_sends_a_mount() {
    let [registry, mirror] = std::array::from_fn(|_| ScriptedRegistry::start());
    pushed(&registry);
    let conf = tempfile::NamedTempFile::new().unwrap();
    let table = format!(
        "[[registry]]\nprefix = \"data.example\"\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\n\
         [[registry]]\nprefix = \"evil.example\"\nblocked = true\n",
        registry.address(),
        mirror.address()
    );
    fs::write(conf.path(), table).unwrap();
    let home = Home::new();
    let doctor = |reference: &str| {
        let call = EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).home(&home).args(["doctor", reference]);
        call.env("CONTAINERS_REGISTRIES_CONF", conf.path()).output()
    };
    let said = doctor("data.example/data:v1").expect_success("doctor").text();
    marks(&said, &["name", "mirror", "connection", "manifest", "range", "redirect"], &[NO_REFERRERS]);
    assert!(line(&said, "name").contains("127.0.0.1") && line(&said, "mirror").contains(&mirror.address()), "{said}");
    assert!(line(&said, "redirect").contains("the registry itself"), "{said}");
    mirror.go_down();
    let said = doctor("data.example/data:v1").expect_success("doctor").text();
    marks(&said, &["connection", "manifest"], &[("mirror", "Connection refused"), NO_REFERRERS]);
    let said = doctor("evil.example/data:v1");
    assert_eq!(said.code, 1);
    marks(&said.text(), &LOCAL, &[("connection", "registries.conf blocks evil.example")]);
}

#[test]
fn a_dead_registry_does_not_hide_what_is_here() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    registry.go_down();
    let said = doctor(&[&reference]);
    assert_eq!(said.code, 1);
    marks(&said.text(), &[&["name"][..], &LOCAL].concat(), &[("connection", "cannot connect")]);
    let said = doctor(&["registry.invalid/data:v1"]);
    marks(&said.text(), &LOCAL, &[("name", "no address"), ("connection", "and the network")]);
}

#[test]
fn a_registry_that_does_not_answer_is_given_up_in_time() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    for (matcher, wrong) in [(Matcher::any(), "connection"), (Matcher::blobs(), "range")] {
        registry.clear_faults();
        registry.fault(matcher, Fault::Stall, ALWAYS);
        let started = Instant::now();
        let said = doctor(&["--timeout", "3s", &reference]);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        assert_eq!(said.code, 1);
        assert!(line(&said.text(), wrong).starts_with('✗'), "{}", said.text());
        assert!(line(&said.text(), "/dev/fuse").starts_with('✓'), "{}", said.text());
    }
}

#[test]
fn a_missing_login_is_told_and_nothing_that_needs_one_is_tried() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    let challenge = vec![("WWW-Authenticate".to_owned(), "Basic realm=\"x\"".to_owned())];
    registry.fault(Matcher::any(), Fault::Status(401, challenge, String::new()), ALWAYS);
    let said = doctor(&[&reference]);
    assert_eq!(said.code, 1);
    marks(&said.text(), &[&["name", "connection"][..], &LOCAL].concat(), &[("login", "login")]);
    registry.clear_faults();
    registry.require_token();
    marks(&doctor(&[&reference]).expect_success("doctor").text(), &["login", "manifest", "rate"], &[NO_REFERRERS]);
}

#[test]
fn a_system_without_fuse_is_told_beside_a_registry_that_works() {
    in_own_namespace("a_system_without_fuse_is_told_beside_a_registry_that_works", || {
        let registry = ScriptedRegistry::start();
        let reference = pushed(&registry);
        let device = Path::new("/dev/fuse");
        mount(&["--bind", "/dev/fuse"], device);
        mount(&["-o", "remount,bind,nodev"], device);
        let said = doctor(&[&reference]);
        assert_eq!(said.code, 3);
        marks(&said.text(), &["manifest", "range"], &[("/dev/fuse", "chmod 666 /dev/fuse"), NO_REFERRERS]);
    });
}

#[test]
fn a_cache_folder_that_cannot_be_used_is_told_and_not_needed() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    let file = tempfile::NamedTempFile::new().unwrap();
    let folder = file.path().join("cache").display().to_string();
    let said = doctor(&["--cache-dir", &folder, &reference]).expect_success("doctor").text();
    marks(&said, &["range"], &[("cache", "choose another with --cache-dir"), NO_REFERRERS]);
    let huge = doctor(&["--cache-min-free", "1EiB", &reference]).expect_success("doctor").text();
    marks(&huge, &["holes"], &[("cache", "make room"), NO_REFERRERS]);
}

#[test]
fn an_image_layout_is_looked_at_too() {
    let folder = tempfile::tempdir().unwrap();
    let tar = RawTar::new().file("file", b"content").finish();
    Artifact::new().tar("data.tar", tar).write_layout(folder.path(), "v1");
    let said = doctor(&[&format!("oci:{}:v1", folder.path().display())]).expect_success("doctor").text();
    marks(&said, &[&["manifest"][..], &LOCAL].concat(), &[]);
    let said = doctor(&[&format!("oci:{}:v2", folder.path().display())]);
    assert_eq!(said.code, 1);
    marks(&said.text(), &LOCAL, &[("manifest", "no such tag")]);
    assert_eq!(doctor(&["no reference"]).code, 2);
}
