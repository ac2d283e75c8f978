//! Looking into an artifact without a mount: `inspect`, `cat`, `du` and `diff`.

use std::process::{Command, Stdio};

use eo_mount_testing::fixtures::{PythonTar, Sample, patch_tar};
use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Fault, Finished, Home, Matcher, Program, RealRegistry, ScriptedRegistry, sha256,
};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");

struct Dataset {
    registry: ScriptedRegistry,
    artifact: Artifact,
    home: Home,
}

impl Dataset {
    fn new() -> Self {
        let registry = ScriptedRegistry::start();
        let artifact = Artifact::new()
            .config(r#"{"dataset":"PASTIS"}"#, "application/json")
            .tar("10000.tar", patch_tar(10000, 32))
            .annotation("org.example.note", "a\nb")
            .layer(Some("README.md"), "text/markdown", "# read me\n");
        artifact.push(&registry, "pastis", "sample");
        Self { registry, artifact, home: Home::new() }
    }

    fn call(&self, arguments: &[&str]) -> Finished {
        let reference = self.registry.reference("pastis:sample");
        let other = self.registry.reference("pastis:other");
        let arguments: Vec<_> = arguments
            .iter()
            .map(|argument| match *argument {
                "REF" => reference.as_str(),
                "OTHER" => other.as_str(),
                argument => argument,
            })
            .collect();
        EoMount::bare(PROGRAM).home(&self.home).args(arguments).output()
    }

    #[track_caller]
    fn bytes(&self, arguments: &[&str]) -> Vec<u8> {
        self.call(arguments).expect_success("eo-mount").stdout
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.bytes(arguments)).unwrap()
    }
}

#[test]
fn the_manifest_and_its_layers_are_shown_and_what_of_them_is_cached() {
    let dataset = Dataset::new();
    let layers = dataset.artifact.layers();
    assert_eq!(dataset.bytes(&["inspect", "--raw", "REF"]), dataset.artifact.manifest());
    assert_eq!(dataset.bytes(&["inspect", "--config", "REF"]), br#"{"dataset":"PASTIS"}"#);
    let told = dataset.json(&["inspect", "--json", "REF"]);
    assert_eq!(told["digest"], sha256(&dataset.artifact.manifest()));
    assert_eq!(
        (&told["layers"][0]["title"], &told["layers"][0]["size"]),
        (&"10000.tar".into(), &layers[0].size.into())
    );
    assert_eq!((&told["layers"][0]["path"], &told["layers"][0]["cached"]), (&"10000".into(), &0.into()));
    assert_eq!(told["layers"][0]["annotations"]["org.example.note"], "a\nb");
    assert_eq!(told["config"]["media_type"], "application/json");
    assert_eq!(dataset.registry.blob_requests(), 0);
    dataset.bytes(&["prefetch", "REF", "10000"]);
    let told = dataset.json(&["inspect", "--json", "REF"]);
    assert_eq!(told["layers"][0]["cached"], layers[0].size);
    let table = dataset.call(&["inspect", "REF"]).expect_success("inspect").text();
    for part in ["10000.tar", "README.md", "text/markdown", "org.example.note=a\\nb", &layers[0].digest[7..19]] {
        assert!(table.contains(part), "{part}\n{table}");
    }
}

#[test]
fn what_is_attached_is_inspected_and_where_that_cannot_be_told_the_rest_is() {
    let dataset = Dataset::new();
    assert_eq!(dataset.json(&["inspect", "--json", "REF"])["referrers"], serde_json::json!([]));
    let table = dataset.call(&["inspect", "REF"]).expect_success("inspect");
    assert!(table.text().contains("Attached       0") && table.stderr.is_empty(), "{}", table.text());
    let digest = sha256(&dataset.artifact.manifest());
    let note = serde_json::json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{:064x}", 7),
        "size": 1234, "artifactType": "text/note", "annotations": { "k": "a\nb" } });
    let list = serde_json::json!({ "manifests": [note] });
    dataset.registry.put_manifest("pastis", &digest.replace(':', "-"), list.to_string());
    let told = dataset.json(&["inspect", "--json", "REF"]);
    let referrer = &told["referrers"][0];
    assert_eq!((&referrer["digest"], &referrer["size"]), (&note["digest"], &1234.into()));
    assert_eq!((&referrer["artifact_type"], &referrer["annotations"]["k"]), (&"text/note".into(), &"a\nb".into()));
    let table = dataset.call(&["inspect", "REF"]).expect_success("inspect").text();
    for part in ["Attached       1", "000000000000", "1.2 kB  text/note", "k=a\\nb"] {
        assert!(table.contains(part), "{part}\n{table}");
    }
    dataset.registry.reset();
    dataset.bytes(&["inspect", "--raw", "REF"]);
    assert!(dataset.registry.requests().iter().all(|request| !request.path.contains("referrers")));
    dataset.registry.fault(Matcher::path("/referrers/"), Fault::status(403), ALWAYS);
    let said = dataset.call(&["inspect", "--json", "REF"]).expect_success("inspect");
    assert!(said.stderr.contains("403"), "{}", said.stderr);
    assert_eq!(serde_json::from_slice::<Value>(&said.stdout).unwrap()["referrers"], Value::Null);
}

#[track_caller]
fn what_oras_pushes_is_inspected_and_read(program: Program) {
    let (registry, files) = (RealRegistry::of(program).start(), tempfile::tempdir().unwrap());
    let sample = Sample::files_in(files.path());
    let arguments = sample.push_arguments("");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    registry.push_with_oras(files.path(), "pastis-2433:sample", &arguments);
    let reference = registry.reference("pastis-2433:sample");
    let call = |arguments: &[&str]| EoMount::bare(PROGRAM).args(arguments).output().expect_success("eo-mount").stdout;
    let theirs = registry.oras(files.path(), &["manifest", "fetch", "--plain-http", &reference]).stdout;
    let ours = call(&["inspect", "--raw", &reference]);
    assert_eq!(ours, theirs);
    let manifest: Value = serde_json::from_slice(&ours).unwrap();
    let told: Value = serde_json::from_slice(&call(&["inspect", "--json", &reference])).unwrap();
    let layer = &manifest["layers"][1];
    assert_eq!((&told["layers"][1]["digest"], &told["artifact_type"]), (&layer["digest"], &manifest["artifactType"]));
    let digest = layer["digest"].as_str().unwrap();
    assert_eq!(sha256(&call(&["cat", &reference, digest])), digest);
}

#[test]
fn what_oras_pushes_to_docker_registry_is_inspected_and_read() {
    what_oras_pushes_is_inspected_and_read(Program::DockerRegistry);
}

#[test]
fn what_oras_pushes_to_distribution_3_is_inspected_and_read() {
    what_oras_pushes_is_inspected_and_read(Program::Distribution3);
}

#[test]
fn what_oras_pushes_to_a_registry_with_referrers_is_inspected_and_read() {
    what_oras_pushes_is_inspected_and_read(Program::Referrers);
}

#[test]
fn cat_gives_files_layers_and_ranges_of_them() {
    let dataset = Dataset::new();
    let whole = dataset.bytes(&["cat", "REF", "10000/ANNOTATIONS/TARGET_10000.npy"]);
    assert!(whole.starts_with(b"\x93NUMPY"));
    let range = |range: &str| dataset.bytes(&["cat", "--range", range, "REF", "10000/ANNOTATIONS/TARGET_10000.npy"]);
    assert_eq!(range("1-5"), b"NUMPY");
    assert_eq!(range("100-"), whole[100..]);
    assert_eq!(range("-7"), whole[whole.len() - 7..]);
    assert_eq!(dataset.bytes(&["cat", "REF", "config.json"]), br#"{"dataset":"PASTIS"}"#);
    assert_eq!(dataset.bytes(&["cat", "REF", "README.md"]), b"# read me\n");
    let digest = &dataset.artifact.layers()[0].digest;
    assert_eq!(sha256(&dataset.bytes(&["cat", "REF", digest])), *digest);
    for (arguments, cause) in [
        (&["cat", "REF", "10000"][..], "a directory has no bytes"),
        (&["cat", "REF", "nowhere"], "no such file"),
        (&["cat", "-r", "99999999-", "REF", "README.md"], "the range begins behind"),
        (&["cat", "-r", "5-1", "REF", "README.md"], "FIRST-LAST"),
    ] {
        let said = dataset.call(arguments);
        assert!(said.code != 0 && said.stdout.is_empty() && said.stderr.contains(cause), "{}", said.stderr);
    }
}

#[test]
fn cat_is_quiet_when_nobody_reads_on() {
    let registry = ScriptedRegistry::start();
    let tar = PythonTar::new().file("large", 1.5, Vec::new(), 1, 20 << 20).finish().to_bytes();
    Artifact::new().tar("a.tar", tar).push(&registry, "x", "y");
    let (home, reference) = (Home::new(), registry.reference("x:y"));
    let mut cat = Command::new(PROGRAM);
    cat.args(["cat", &reference, "a/large"]).env("XDG_CACHE_HOME", home.cache());
    let mut child = cat.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut head = Command::new("head");
    head.args(["-c", "5"]).stdin(child.stdout.take().unwrap());
    let read = head.output().unwrap();
    // Which has the end of the pipe, too.
    drop(head);
    let said = child.wait_with_output().unwrap();
    assert_eq!((read.stdout.len(), said.status.code(), said.stderr.len()), (5, Some(0), 0));
}

#[test]
fn du_tells_bytes_and_those_in_the_cache() {
    let dataset = Dataset::new();
    let text = dataset.call(&["du", "-d", "1", "REF"]).expect_success("du").text();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!((lines[0][2], lines[1][2], lines.len()), ("10000", ".", 2));
    let bytes = |line: usize| lines[line][0].parse::<u64>().unwrap();
    assert_eq!(bytes(1), bytes(0) + 20 + 10);
    let file = dataset.json(&["du", "--json", "REF", "*/ANNOTATIONS/TARGET*"]);
    let whole = dataset.bytes(&["cat", "REF", "10000/ANNOTATIONS/TARGET_10000.npy"]);
    assert_eq!((&file["bytes"], &file["path"]), (&whole.len().into(), &"10000/ANNOTATIONS/TARGET_10000.npy".into()));
    let again = dataset.json(&["du", "--json", "REF", "10000/ANNOTATIONS/TARGET_10000.npy"]);
    assert_eq!(again["cached"], whole.len());
}

#[test]
fn diff_names_layers_and_what_is_in_those_that_differ() {
    let dataset = Dataset::new();
    assert_eq!(dataset.call(&["diff", "REF", "REF"]).expect_success("diff").stdout, b"");
    let changed = PythonTar::new().file("a", 1.5, b"one".to_vec(), 0, 0).file("b", 1.5, b"same".to_vec(), 0, 0);
    let before = changed.finish().to_bytes();
    let after = PythonTar::new().file("a", 2.5, b"three".to_vec(), 0, 0).file("b", 1.5, b"same".to_vec(), 0, 0);
    let after = after.file("c", 1.5, b"new".to_vec(), 0, 0).finish().to_bytes();
    let both = Artifact::new().config("{}", "application/json").tar("same.tar", patch_tar(1, 32));
    both.clone().tar("x.tar", before).tar("gone.tar", patch_tar(2, 32)).push(&dataset.registry, "pastis", "sample");
    both.tar("x.tar", after).tar("come.tar", patch_tar(3, 32)).push(&dataset.registry, "pastis", "other");
    let said = dataset.call(&["diff", "REF", "OTHER"]);
    assert_eq!((said.code, said.stderr.as_str()), (1, ""));
    let lines: Vec<String> =
        said.text().lines().map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        ["+ layer come.tar", "- layer gone.tar", "~ layer x.tar", "~ x/a -rw-r--r--", "+ x/c -rw-r--r--"]
    );
    let told: Value = serde_json::from_slice(&dataset.call(&["diff", "--json", "REF", "OTHER"]).stdout).unwrap();
    assert_eq!((&told["same_layers"], &told["members"][0]["new"]["size"]), (&1.into(), &5.into()));
    dataset.registry.reset();
    assert_eq!(dataset.call(&["diff", "--brief", "REF", "OTHER"]).code, 1);
    assert_eq!(dataset.registry.blob_requests(), 0);
    assert_eq!(dataset.call(&["diff", "REF", "nowhere.invalid/x:y", "--timeout", "2s"]).code, 2);
}

#[test]
fn diff_of_content_tells_touched_members_from_those_that_changed_unseen() {
    let dataset = Dataset::new();
    let tar = |touched: f64, unseen: &str, grown: &str| {
        let tar =
            PythonTar::new().file("touched", touched, b"same".to_vec(), 0, 0).file("same", 1.5, b"s".to_vec(), 0, 0);
        tar.file("unseen", 1.5, unseen.into(), 0, 0).file("grown", 1.5, grown.into(), 0, 0).finish().to_bytes()
    };
    let artifact = |tar: Vec<u8>, text: &str| {
        Artifact::new().tar("x.tar", tar).layer(Some("README.md"), "text/plain", text.to_owned())
    };
    artifact(tar(1.5, "one", "g").to_vec(), "a").push(&dataset.registry, "pastis", "sample");
    artifact(tar(2.5, "two", "gg").to_vec(), "b").push(&dataset.registry, "pastis", "other");
    let members = |arguments: &[&str]| {
        let said = dataset.call(arguments);
        assert_eq!((said.code, said.stderr.as_str()), (1, ""));
        let told: Value = serde_json::from_slice(&said.stdout).unwrap();
        let members = told["members"].as_array().unwrap().clone();
        members.into_iter().map(|member| (member["path"].as_str().unwrap().to_owned(), member)).collect::<Vec<_>>()
    };
    let paths = |members: &[(String, Value)]| members.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    dataset.registry.reset();
    let without = members(&["diff", "--json", "REF", "OTHER"]);
    // Of a file that is a layer the manifest tells.
    assert_eq!(paths(&without), ["README.md", "x/grown", "x/touched"]);
    assert_eq!(without[0].1["old"]["digest"], sha256(b"a"));
    assert_eq!(without[2].1["old"]["digest"], Value::Null);
    let with = members(&["diff", "--content", "--json", "REF", "OTHER"]);
    assert_eq!(paths(&with), ["README.md", "x/grown", "x/touched", "x/unseen"]);
    let digests = |number: usize| ["old", "new"].map(|side| with[number].1[side]["digest"].clone());
    assert_eq!(digests(1), [Value::Null, Value::Null]);
    assert_eq!(digests(2), [Value::from(sha256(b"same")), Value::from(sha256(b"same"))]);
    assert_eq!(digests(3), [Value::from(sha256(b"one")), Value::from(sha256(b"two"))]);
    let text = dataset.call(&["diff", "--content", "REF", "OTHER"]).text();
    assert!(
        text.lines().any(|line| line.starts_with("~ x/unseen ") && line.contains(&sha256(b"two")[7..19])),
        "{text}"
    );
    assert_eq!(dataset.call(&["diff", "--content", "--brief", "REF", "OTHER"]).code, 2);
}
