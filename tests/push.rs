//! `eo-mount push`: what arrives is what oras would have sent, and nothing goes twice over the line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use eo_mount_testing::fixtures::{Sample, noise};
use eo_mount_testing::scripted_registry::{Gate, Kind};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    ALWAYS, EoMount, Fault, Finished, Home, Link, Matcher, Program, RealRegistry, ScriptedRegistry, Shape, Takes,
    TokenServer, run, sha256, tools,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");
const PATIENCE: Duration = Duration::from_secs(120);
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const DATE: &str = "org.opencontainers.image.created=2026-01-31T12:00:00Z";
const MIB: u64 = 1 << 20;

/// A folder of files, and who pushes from it.
struct Publisher {
    dir: TempDir,
    home: Home,
}

impl Publisher {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), home: Home::new() }
    }

    /// Has the published sample in the folder `sample`.
    fn of_sample() -> (Self, Sample) {
        let publisher = Self::new();
        let sample = Sample::files_in(&publisher.path("sample"));
        (publisher, sample)
    }

    /// Has a large layer, `big.tar`.
    fn of_large_layer(size: u64) -> Self {
        let publisher = Self::new();
        fs::write(publisher.path("big.tar"), noise(7, size as usize)).unwrap();
        publisher
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn call(&self, arguments: &[&str]) -> Finished {
        self.eo_mount(arguments).output()
    }

    fn eo_mount(&self, arguments: &[&str]) -> EoMount {
        EoMount::bare(PROGRAM).home(&self.home).current_dir(self.dir.path()).arg("push").args(arguments)
    }

    /// A push that is not waited for.
    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(PROGRAM);
        command.current_dir(self.dir.path()).arg("push").args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        command.env("HOME", self.home.path()).env("XDG_CACHE_HOME", self.home.cache()).spawn().unwrap()
    }

    /// What a push that works says as JSON, and on standard error.
    #[track_caller]
    fn push(&self, arguments: &[&str]) -> (Value, String) {
        let said = self.call(&[arguments, &["--json"]].concat()).expect_success("push");
        (serde_json::from_slice(&said.stdout).unwrap(), said.stderr)
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let said = self.call(arguments);
        assert!(!said.success(), "{arguments:?} worked: {}", said.text());
        assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
        said.stderr
    }

    fn uploads(&self) -> usize {
        fs::read_dir(self.home.cache().join("eo-mount/uploads")).map_or(0, Iterator::count)
    }
}

fn states(pushed: &Value) -> Vec<&str> {
    pushed["blobs"].as_array().unwrap().iter().map(|blob| blob["state"].as_str().unwrap()).collect()
}

fn text(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[track_caller]
fn succeeds(program: &Path, arguments: &[&str]) -> Vec<u8> {
    run(Command::new(program).args(arguments), PATIENCE).expect_success(&format!("{arguments:?}")).stdout
}

#[track_caller]
fn what_we_push_everybody_reads(program: Program) {
    let (registry, (publisher, sample)) = (RealRegistry::of(program).start(), Publisher::of_sample());
    let reference = registry.reference("pastis-2433:sample");
    let arguments = sample.push_arguments("sample/");
    let (pushed, said) = publisher.push(&[&[reference.as_str()], &text(&arguments)[..]].concat());
    assert_eq!((said.as_str(), states(&pushed)), ("", vec!["sent"; 4]));
    let digest = pushed["digest"].as_str().unwrap();

    let manifest = registry.oras(publisher.dir.path(), &["manifest", "fetch", "--plain-http", &reference]).stdout;
    assert_eq!(sha256(&manifest), digest);
    let crane = succeeds(&tools::built("crane"), &["manifest", "--insecure", &reference]);
    assert_eq!(String::from_utf8_lossy(&crane).trim_end(), String::from_utf8_lossy(&manifest));
    let pulled = tempfile::tempdir().unwrap();
    registry.oras(pulled.path(), &["pull", "--plain-http", &reference]);
    for title in &sample.titles {
        let original = fs::read(publisher.path("sample").join(title)).unwrap();
        assert!(fs::read(pulled.path().join("sample").join(title)).unwrap() == original, "{title}");
        let blob = format!("{}@{}", registry.reference("pastis-2433"), sha256(&original));
        let fetched = registry.oras(pulled.path(), &["blob", "fetch", "--plain-http", "--output", "-", &blob]).stdout;
        assert!(fetched == original, "{title}");
    }
    let layout = format!("oci:{}:sample", pulled.path().join("layout").display());
    let source = format!("docker://{reference}");
    let copy = ["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false"];
    succeeds("skopeo".as_ref(), &[&copy[..], &[&source, &layout]].concat());
    assert!(pulled.path().join("layout/blobs").join(digest.replace(':', "/")).exists());

    // And a layout, as its bytes are, under another name; then again.
    let other = registry.reference("again/pastis:sample");
    let (again, _) = publisher.push(&[&layout, &other]);
    assert_eq!(again["digest"], digest);
    let (again, _) = publisher.push(&[&layout, &other]);
    assert_eq!(states(&again), ["exists"; 4]);
    assert_eq!(again["sent"], 0);
    assert_eq!(publisher.uploads(), 0);
}

#[test]
fn what_we_push_to_docker_registry_is_read_by_oras_skopeo_and_crane() {
    what_we_push_everybody_reads(Program::DockerRegistry);
}

#[test]
fn what_we_push_to_distribution_3_is_read_by_oras_skopeo_and_crane() {
    what_we_push_everybody_reads(Program::Distribution3);
}

#[test]
fn what_we_push_to_a_registry_with_referrers_is_read_by_oras_skopeo_and_crane() {
    what_we_push_everybody_reads(Program::Referrers);
}

#[test]
fn the_manifest_of_pushed_files_is_byte_for_byte_that_of_oras() {
    let (registry, (publisher, sample)) = (RealRegistry::start(), Publisher::of_sample());
    fs::write(publisher.path("annotations.json"), json!({
        "$manifest": {"org.opencontainers.image.created": "2026-01-31T12:00:00Z", "note": "<a> & \u{e9}\u{2028}\"\\\u{1}"},
        "$config": {"of": "config"},
        "sample/10000.tar": {"z": "last", "a": "first"}
    }).to_string()).unwrap();
    let published = sample.push_arguments("sample/");
    let published = [&text(&published)[..], &["--annotation", DATE]].concat();
    let lines: [&[&str]; 9] = [
        &published,
        &["sample/10000.tar", "--annotation", DATE],
        &["./sample//10001.tar:", "sample/10000.tar:x/y", "--annotation", DATE, "--annotation", "a=b=c"],
        &["--artifact-type", "application/vnd.x", "sample/10000.tar", "--annotation", DATE],
        &["--config", "sample/config.json", "sample/10000.tar", "--annotation", DATE],
        &["--config", "sample/config.json:x/y", "--annotation", DATE],
        &["--annotation-file", "annotations.json", "sample/10000.tar", "sample/10001.tar:text/plain"],
        &["--annotation-file", "annotations.json", "--config", "sample/config.json", "sample/10000.tar"],
        &["sample/10000.tar", "sample/../annotations.json:application/json", "--annotation", DATE],
    ];
    for line in lines {
        registry.push_with_oras(publisher.dir.path(), "by-oras:1", line);
        let fetch = ["manifest", "fetch", "--plain-http", &registry.reference("by-oras:1")];
        let theirs = registry.oras(publisher.dir.path(), &fetch).text();
        let (pushed, _) = publisher.push(&[&[registry.reference("by-us:1").as_str()], line].concat());
        let fetch = ["manifest", "fetch", "--plain-http", &registry.reference("by-us:1")];
        let ours = registry.oras(publisher.dir.path(), &fetch).text();
        assert_eq!(ours, theirs, "{line:?}");
        assert_eq!(pushed["digest"], sha256(theirs.as_bytes()));
    }
}

#[test]
fn a_published_sample_of_three_layers_is_not_sent_again_with_all_of_them() {
    let (registry, publisher) = (RealRegistry::start(), Publisher::new());
    let names: Vec<String> = (0..6).map(|number| format!("1000{number}.tar:{TAR}")).collect();
    for (number, name) in names.iter().enumerate() {
        fs::write(publisher.path(name.split_once(':').unwrap().0), noise(number as u64, 100_000)).unwrap();
    }
    let reference = registry.reference("pastis:all");
    publisher.push(&[&[reference.as_str()], &text(&names[..3])[..]].concat());
    let said = publisher.call(&[&[reference.as_str()], &text(&names)[..]].concat()).expect_success("push").text();
    let lines: Vec<&str> = said.lines().collect();
    for (number, line) in lines[1..7].iter().enumerate() {
        let state = if number < 3 { "exists " } else { "sent   " };
        assert_eq!(*line, format!("{state} 1000{number}.tar"), "{said}");
    }
    assert!(lines[7].starts_with("3 of 7 blobs sent, 300.0 kB; 4 were there"), "{said}");
    assert!(lines[8].starts_with("sha256:"), "{said}");
    // From another repository of the same registry, without sending.
    let other = registry.reference("other:1");
    let (mounted, _) = publisher.push(&[&[other.as_str(), "--mount-from", "pastis"], &text(&names)[..]].concat());
    assert_eq!((states(&mounted), &mounted["sent"]), (vec!["mounted"; 7], &json!(0)));
    registry.oras(publisher.dir.path(), &["manifest", "fetch-config", "--plain-http", &other]);
}

#[test]
fn a_repository_to_mount_from_that_may_not_be_read_costs_no_push() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::new());
    registry.take_uploads(Takes::default());
    fs::write(publisher.path("a.tar"), "layer").unwrap();
    let mount = registry.fault(Matcher::kind(Kind::Upload).method("POST"), Fault::status(401), 1);
    let reference = registry.reference("pastis:1");
    let (pushed, _) = publisher.push(&[&reference, "a.tar", "--mount-from", "secret", "--jobs", "1"]);
    assert!(mount.met() == 1 && states(&pushed).contains(&"sent"), "{pushed}");
}

#[test]
fn a_second_push_takes_one_request_a_blob() {
    let (registry, (publisher, _)) = (ScriptedRegistry::start(), Publisher::of_sample());
    registry.take_uploads(Takes::default());
    let reference = registry.reference("pastis:1");
    publisher.push(&["sample", &reference]);
    registry.reset();
    publisher.push(&["sample", &reference]);
    let methods: Vec<String> = registry.requests().into_iter().map(|request| request.method).collect();
    assert_eq!((methods.len(), methods.iter().filter(|method| *method == "HEAD").count()), (5, 4), "{methods:?}");
    // The tag comes last.
    assert_eq!(methods.last().unwrap(), "PUT");
}

#[test]
fn an_index_is_pushed_with_all_that_it_lists_and_as_its_bytes_are() {
    let (registry, publisher) = (RealRegistry::start(), Publisher::new());
    let layout = publisher.path("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| {
        let digest = sha256(bytes);
        fs::write(layout.join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
        digest
    };
    let manifests: Vec<Value> = ["amd64", "arm64"]
        .map(|architecture| {
            let layer = noise(architecture.len() as u64, 1000);
            let layer = json!({"digest": put(&layer), "size": layer.len(), "mediaType": "application/vnd.odd+type"});
            let config = json!({"mediaType": "x/y", "digest": put(b"{}"), "size": 2});
            let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config, "layers": [layer], "annotations": {"architecture": architecture}});
            let manifest = serde_json::to_vec_pretty(&manifest).unwrap();
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": put(&manifest),
                "size": manifest.len(), "platform": {"os": "linux", "architecture": architecture}})
        })
        .into();
    let index = json!({"manifests": manifests, "schemaVersion": 2, "odd field": true,
        "mediaType": "application/vnd.oci.image.index.v1+json"});
    let index = serde_json::to_vec_pretty(&index).unwrap();
    let entry =
        json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": put(&index), "size": index.len()});
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let reference = registry.reference("multi:1");
    let (pushed, _) = publisher.push(&["oci:layout", &reference]);
    assert_eq!(pushed["digest"], sha256(&index));
    assert!(registry.oras(publisher.dir.path(), &["manifest", "fetch", "--plain-http", &reference]).stdout == index);
    registry.oras(publisher.dir.path(), &["copy", "--from-plain-http", &reference, "--to-oci-layout", "back:1"]);
}

#[test]
fn distribution_3_goes_on_at_the_byte_that_it_has() {
    let (registry, publisher) = (RealRegistry::of(Program::Distribution3).start(), Publisher::of_large_layer(64 * MIB));
    let shape = Shape { bits_per_second: Some(80_000_000), ..Shape::default() };
    let link = Link::new(registry.address(), shape);
    let reference = link.reference("pastis:1");
    let mut child = publisher.start(&[&reference, "big.tar"]);
    let sent = wait_until(PATIENCE, || link.bytes_up() >= 28 * MIB);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(sent && publisher.uploads() == 1);
    publisher.push(&[&reference, "big.tar"]);
    // What was in the sockets of the two relays is lost.
    assert!(link.bytes_up() < 80 * MIB, "{}", link.bytes_up() / MIB);
    let fetch = ["blob", "fetch", "--plain-http", "--output", "back.tar"];
    let blob = registry.reference(&format!("pastis@{}", sha256(&fs::read(publisher.path("big.tar")).unwrap())));
    registry.oras(publisher.dir.path(), &[&fetch[..], &[&blob]].concat());
    assert!(fs::read(publisher.path("back.tar")).unwrap() == fs::read(publisher.path("big.tar")).unwrap());
}

#[test]
fn docker_registry_goes_on_where_an_interrupted_push_has_stopped() {
    let (registry, publisher) = (RealRegistry::start(), Publisher::of_large_layer(64 * MIB));
    let link = Link::new(registry.address(), Shape { bits_per_second: Some(80_000_000), ..Shape::default() });
    let reference = link.reference("pastis:1");
    let child = publisher.start(&[&reference, "big.tar"]);
    let sent = wait_until(PATIENCE, || link.bytes_up() >= 20 * MIB);
    let mut kill = Command::new("kill");
    run(kill.args(["-INT", &child.id().to_string()]), PATIENCE).expect_success("kill");
    let ended = child.wait_with_output().unwrap();
    assert!(sent && ended.status.code() == Some(130) && publisher.uploads() == 1, "{ended:?}");
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(
        said.contains("stopped by SIGINT; layers that have arrived are kept") && said.lines().count() == 1,
        "{said}"
    );
    let (_, said) = publisher.push(&[&reference, "big.tar"]);
    assert_eq!(said, "");
    assert!(link.bytes_up() < 66 * MIB, "{}", link.bytes_up() / MIB);
}

/// Bytes of the blob that were sent after a push was killed in the middle of it.
#[track_caller]
fn killed_and_called_again(takes: Takes, size: u64) -> (u64, String) {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(size));
    registry.take_uploads(takes);
    let reference = registry.reference("pastis:1");
    // In the middle of the third chunk.
    let stall = registry.fault(Matcher::kind(Kind::Upload).method("PATCH").nth(3), Fault::StallUploadAfter(5 * MIB), 1);
    let mut child = publisher.start(&[&reference, "big.tar"]);
    let stalled = wait_until(PATIENCE, || stall.met() == 1 && registry.received() >= 37 * MIB);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(stalled, "{}", registry.received());
    assert_eq!(publisher.uploads(), 1);
    let (pushed, said) = publisher.push(&[&reference, "big.tar"]);
    let digest = pushed["blobs"][1]["digest"].as_str().unwrap();
    assert!(registry.blob(digest).unwrap() == fs::read(publisher.path("big.tar")).unwrap());
    assert_eq!(publisher.uploads(), 0);
    (registry.received(), said)
}

#[test]
fn a_push_that_was_killed_goes_on_at_the_byte_that_the_registry_has() {
    let (sent, said) = killed_and_called_again(Takes::default(), 80 * MIB);
    assert!(sent < 84 * MIB, "{sent}");
    assert_eq!(said, "");
}

#[test]
fn where_the_registry_cannot_go_on_it_is_said_and_the_blob_sent_again() {
    let (sent, said) = killed_and_called_again(Takes { parts: false, ..Takes::default() }, 48 * MIB);
    assert!(sent >= 85 * MIB, "{sent}");
    assert!(said.contains("cannot go on") && said.contains("it begins again"), "{said}");
    let (_, said) = killed_and_called_again(Takes { status: false, ..Takes::default() }, 48 * MIB);
    assert!(said.contains("cannot go on"), "{said}");
}

#[test]
fn an_upload_that_begins_again_is_written_down_too() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(48 * MIB));
    registry.take_uploads(Takes::default());
    let reference = registry.reference("pastis:1");
    let patches = || Matcher::kind(Kind::Upload).method("PATCH");
    registry.fault(patches().nth(2), Fault::status(403), 1);
    publisher.refused(&[&reference, "big.tar"]);
    // The registry has forgotten that one; of the next it takes two chunks.
    registry.fault(Matcher::kind(Kind::Upload).method("GET"), Fault::status(404), 1);
    registry.fault(patches().nth(3), Fault::status(403), 1);
    assert!(publisher.call(&[&reference, "big.tar"]).stderr.contains("it begins again"));
    assert_eq!(publisher.uploads(), 1);
    let (_, said) = publisher.push(&[&reference, "big.tar"]);
    assert_eq!(said, "");
}

#[test]
fn an_outage_when_an_upload_is_to_go_on_does_not_begin_it_again() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(48 * MIB));
    registry.take_uploads(Takes::default());
    let reference = registry.reference("pastis:1");
    registry.fault(Matcher::kind(Kind::Upload).method("PATCH").nth(3), Fault::status(403), 1);
    publisher.refused(&[&reference, "big.tar"]);
    // More than somebody at a terminal waits for.
    let outage = registry.fault(Matcher::kind(Kind::Upload).method("GET"), Fault::HangUp, 5);
    let (_, said) = publisher.push(&[&reference, "big.tar"]);
    assert_eq!(outage.met(), 5);
    assert_eq!(said, "");
    assert!(registry.received() < 52 * MIB, "{}", registry.received());
}

#[test]
fn what_is_kept_of_an_upload_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(40 * MIB));
    registry.take_uploads(Takes::default());
    registry.fault(Matcher::kind(Kind::Upload).method("PATCH"), Fault::status(403), ALWAYS);
    let said = publisher.refused(&[&registry.reference("pastis:1"), "big.tar"]);
    assert!(said.contains("403") && !said.contains("_state"), "{said}");
    assert_eq!(publisher.uploads(), 1);
    let folder = publisher.home.cache().join("eo-mount/uploads");
    for file in fs::read_dir(folder).unwrap().flatten() {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn connections_that_are_cut_cost_what_was_on_its_way_and_no_more() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(64 * MIB));
    registry.take_uploads(Takes::default());
    let patches = || Matcher::kind(Kind::Upload).method("PATCH");
    let cut = registry.fault(patches(), Fault::CutUploadAfter(5 * MIB), 3);
    publisher.push(&[&registry.reference("pastis:1"), "big.tar"]);
    assert_eq!(cut.met(), 3);
    assert!(registry.received() < 67 * MIB, "{}", registry.received());
}

#[test]
fn servers_that_are_busy_are_asked_again() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(40 * MIB));
    registry.take_uploads(Takes::default());
    let wait = vec![("Retry-After".to_owned(), "1".to_owned())];
    for (method, fault) in [
        ("HEAD", Fault::status(503)),
        ("POST", Fault::Status(429, wait.clone(), String::new())),
        ("PATCH", Fault::Status(503, Vec::new(), String::new())),
        ("PATCH", Fault::Status(429, wait, String::new())),
        ("PATCH", Fault::HangUp),
        ("PUT", Fault::HangUp),
    ] {
        registry.fault(Matcher::any().method(method), fault, 1);
    }
    registry.fault(Matcher::manifests().method("PUT"), Fault::status(500), 1);
    let (pushed, _) = publisher.push(&[&registry.reference("pastis:1"), "big.tar"]);
    assert_eq!(registry.tagged("pastis", "1"), pushed["digest"].as_str().unwrap());
    assert!(registry.received() < 43 * MIB, "{}", registry.received());
}

#[test]
fn registries_without_chunks_get_the_blob_in_one_request_and_that_is_said() {
    for takes in [Takes { chunks: false, ..Takes::default() }, Takes { least: Some(1 << 30), ..Takes::default() }] {
        let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(40 * MIB));
        let says = !takes.chunks;
        registry.take_uploads(takes);
        let (pushed, said) = publisher.push(&[&registry.reference("pastis:1"), "big.tar"]);
        assert!(registry.blob(pushed["blobs"][1]["digest"].as_str().unwrap()).is_some());
        assert_eq!(said.contains("the registry takes no chunks"), says, "{said}");
        let puts = registry.requests_of(Kind::Upload).into_iter().filter(|request| request.method == "PUT");
        assert_eq!(puts.map(|request| request.received).max(), Some(40 * MIB));
    }
}

#[test]
fn an_upload_that_the_registry_forgot_begins_again() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(40 * MIB));
    registry.take_uploads(Takes::default());
    let forgotten =
        Fault::Status(404, Vec::new(), r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"gone"}]}"#.into());
    registry.fault(Matcher::kind(Kind::Upload).method("PATCH").nth(2), forgotten.clone(), 1);
    let (_, said) = publisher.push(&[&registry.reference("pastis:1"), "big.tar"]);
    assert!(said.contains("BLOB_UPLOAD_UNKNOWN gone") && said.contains("it begins again"), "{said}");
    // But not for ever.
    registry.fault(Matcher::kind(Kind::Upload).method("PUT"), forgotten, ALWAYS);
    fs::write(publisher.path("small.tar"), "other").unwrap();
    let said = publisher.call(&[&registry.reference("pastis:1"), "small.tar"]);
    assert!(!said.success() && said.stderr.contains("gone"), "{}", said.stderr);
}

#[test]
fn a_token_that_expires_in_the_middle_is_renewed() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(60 * MIB));
    registry.take_uploads(Takes::default());
    registry.guard(Gate { expires_in: Some(5), untold: true, ..Gate::default() });
    registry.fault(Matcher::kind(Kind::Upload).method("PATCH"), Fault::Delay(Duration::from_secs(2)), ALWAYS);
    publisher.push(&[&registry.reference("pastis:1"), "big.tar"]);
    assert!(registry.tokens_issued() > 1);
}

#[test]
fn who_may_not_push_is_told_which_right_is_missing() {
    let publisher = Publisher::of_large_layer(1000);
    let tokens = TokenServer::start();
    let registry = RealRegistry::of(Program::DockerRegistry).token(&tokens).start();
    let reference = registry.reference("pastis:1");
    let said = publisher.refused(&[&reference, "big.tar"]);
    let place = registry.reference("pastis");
    assert!(said.contains("`push`") && said.contains(&place) && said.contains("eo-mount login"), "{said}");
    assert!(tokens.asked().iter().any(|asked| asked.scopes == ["repository:pastis:pull,push"]));
    let call = publisher.eo_mount(&[&reference, "big.tar"]).env("DOCKER_CONFIG", registry.docker_config());
    call.output().expect_success("push with a login");
}

#[test]
fn what_a_registry_refuses_is_told_in_its_own_words_and_short() {
    let publisher = Publisher::of_large_layer(1000);
    let body = |code: &str, message: &str| json!({"errors": [{"code": code, "message": message}]}).to_string();
    let noise = body("DENIED", &format!("quota\u{1b}[31m exceeded\n{}", "x".repeat(100_000)));
    for (method, status, body, words) in [
        ("POST", 403, noise, "quota is used up"),
        ("PUT", 413, "<html>too large</html>".into(), "larger quota"),
        ("PUT", 507, String::new(), "no room left"),
        ("POST", 403, body("DENIED", "requested access is denied"), "the right `push` for"),
        (
            "POST",
            405,
            body("UNSUPPORTED", "read-only"),
            "takes nothing: it answers 405 Method Not Allowed: UNSUPPORTED read-only",
        ),
        ("POST", 404, body("NAME_UNKNOWN", "no such project"), "NAME_UNKNOWN no such project"),
    ] {
        let registry = ScriptedRegistry::start();
        registry.take_uploads(Takes::default());
        registry.fault(Matcher::kind(Kind::Upload).method(method), Fault::Status(status, Vec::new(), body), ALWAYS);
        let said = publisher.refused(&[&registry.reference("pastis:1"), "big.tar"]);
        assert!(said.contains(words) && said.len() < 800 && !said.contains('\u{1b}'), "{status}: {said}");
    }
    let registry = ScriptedRegistry::start();
    registry.take_uploads(Takes::default());
    let immutable = Fault::Status(409, Vec::new(), body("TAG_INVALID", "the tag 1 is immutable"));
    registry.fault(Matcher::manifests().method("PUT"), immutable, ALWAYS);
    let said = publisher.refused(&[&registry.reference("pastis:1"), "big.tar"]);
    assert!(said.contains("pastis:1: ") && said.contains("TAG_INVALID the tag 1 is immutable"), "{said}");
}

#[test]
fn files_that_make_no_good_artifact_are_refused_before_anything_is_sent() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(1000));
    fs::create_dir_all(publisher.path("tars/sub")).unwrap();
    fs::create_dir_all(publisher.path("sub")).unwrap();
    let reference = registry.reference("pastis:1");
    let absolute = publisher.path("big.tar").display().to_string();
    for (arguments, words) in [
        (vec![&*reference, "big.tar", "./big.tar:x/y"], "two files of this title"),
        (vec![&*reference, "missing.tar"], "missing.tar: no such file"),
        (vec![&*reference, "sub/../../elsewhere.tar"], "--disable-path-validation"),
        (vec![&*reference, &*absolute], "--disable-path-validation"),
        (vec![&*reference, "sub"], "eo-mount pack makes layers of folders"),
        (vec![&*reference], "REFERENCE FILE:TYPE"),
        (vec![&*reference, "--config", "missing.json", "big.tar"], "missing.json: no such file"),
        (vec![&*reference, "--annotation", "org.opencontainers.image.created=today", "big.tar"], "no date"),
        (vec![&*reference, "--annotation", "a=1", "--annotation", "a=2", "big.tar"], "given twice"),
        (vec!["tars", &*reference], "neither a tar nor config.json"),
        (vec!["sub", &*reference], "no tars in it"),
        (vec!["sub"], "one reference belongs behind"),
        (vec!["oci:sub", &*reference], "no image layout"),
        (vec!["oci:sub", &*reference, "--artifact-type", "x/y"], "pushed as it is"),
        (vec!["oci:sub", "oci:out:1"], "not a place in a registry"),
        (vec!["localhost:5000/x:not a tag", "big.tar"], "not a reference"),
    ] {
        let said = publisher.refused(&arguments);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    assert_eq!(registry.requests().len(), 0);
    let (pushed, _) = {
        registry.take_uploads(Takes::default());
        publisher.push(&[&reference, "sub/../big.tar", &absolute, "--disable-path-validation"])
    };
    assert_eq!(pushed["blobs"].as_array().unwrap().len(), 2);
}

#[test]
fn a_config_that_is_no_json_is_pushed_with_a_warning() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(1000));
    registry.take_uploads(Takes::default());
    fs::write(publisher.path("config.json"), "no: JSON").unwrap();
    let (_, said) = publisher.push(&[&registry.reference("pastis:1"), "big.tar", "--config", "config.json:x/y"]);
    assert!(said.contains("config.json: the config is no JSON"), "{said}");
}

#[test]
fn a_file_that_changes_while_it_is_pushed_is_named_and_nothing_gets_the_tag() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::of_large_layer(40 * MIB));
    registry.take_uploads(Takes::default());
    let delay =
        registry.fault(Matcher::kind(Kind::Upload).method("PATCH"), Fault::Delay(Duration::from_secs(1)), ALWAYS);
    let reference = registry.reference("pastis:1");
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| publisher.refused(&[&reference, "big.tar"]));
        assert!(wait_until(PATIENCE, || delay.met() >= 1));
        fs::write(publisher.path("big.tar"), noise(8, 40 * MIB as usize)).unwrap();
        let said = pushing.join().unwrap();
        assert!(said.contains("big.tar: it changed while it was pushed"), "{said}");
    });
    assert!(!registry.requests_of(Kind::Manifest).iter().any(|request| request.method == "PUT"));
}

#[test]
fn a_damaged_layout_is_not_pushed() {
    let (registry, publisher) = (ScriptedRegistry::start(), Publisher::new());
    registry.take_uploads(Takes::default());
    let source = tools::project().join("sample/pastis");
    succeeds("cp".as_ref(), &["-r", source.to_str().unwrap(), publisher.path("layout").to_str().unwrap()]);
    let blobs = fs::read_dir(publisher.path("layout/blobs/sha256")).unwrap().flatten();
    let largest = blobs.max_by_key(|blob| blob.metadata().unwrap().len()).unwrap().path();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[1000] ^= 1;
    fs::write(&largest, bytes).unwrap();
    let said = publisher.refused(&["oci:layout:sample", &registry.reference("pastis:1")]);
    let name = largest.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(name) && said.contains("what was read of it has the digest"), "{said}");
    assert!(!registry.requests_of(Kind::Manifest).iter().any(|request| request.method == "PUT"));
}
