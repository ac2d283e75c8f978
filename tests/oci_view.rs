//! `.oci` in a mount: the artifact as an image layout, with what is attached to it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::files::{errno, names_in};
use eo_mount_testing::fixtures::Sample;
use eo_mount_testing::{
    ALWAYS, Artifact, Descriptor, EoMount, Fault, Finished, Home, Matcher, RealRegistry, ScriptedRegistry, run, sha256,
    tools,
};
use serde_json::{Value, json};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const EIO: Option<i32> = Some(5);
const ENOENT: Option<i32> = Some(2);

fn mount(reference: impl Into<String>) -> EoMount {
    EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference)
}

fn call(program: impl AsRef<Path>, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program.as_ref());
    run(command.args(arguments), Duration::from_secs(120)).expect_success(&format!("{arguments:?}"))
}

/// Attaches files to an artifact of a scripted registry by the tag that stands in for the API.
fn attach(registry: &ScriptedRegistry, subject: &Descriptor, artifacts: &[(&str, Artifact)]) -> Vec<Descriptor> {
    let attached: Vec<Descriptor> = artifacts
        .iter()
        .map(|(name, artifact)| artifact.clone().subject(subject.clone()).push(registry, "data", name))
        .collect();
    let entries = attached.iter().zip(artifacts).map(|(descriptor, (name, _))| {
        let mut entry = descriptor.to_json();
        entry["artifactType"] = json!(format!("text/{name}"));
        entry
    });
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries.collect::<Vec<_>>() });
    registry.put_manifest("data", &subject.digest.replace(':', "-"), list.to_string());
    attached
}

fn note(title: &str, text: &str) -> Artifact {
    Artifact::new().layer(Some(title), "text/plain", text.to_owned())
}

fn dataset(registry: &ScriptedRegistry) -> Descriptor {
    note("data.txt", "data").config(r#"{"a":1}"#, "application/json").push(registry, "data", "v1")
}

fn look_ups(registry: &ScriptedRegistry) -> usize {
    registry.requests().iter().filter(|request| request.path.contains("/referrers/")).count()
}

#[test]
fn the_published_signature_is_a_file_and_the_layout_is_copied_by_every_client() {
    let (registry, files, home) = (RealRegistry::start(), tempfile::tempdir().unwrap(), Home::new());
    let sample = Sample::files_in(files.path());
    let arguments = sample.push_arguments("");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    registry.push_with_oras(files.path(), "pastis-2433:sample", &arguments);
    let reference = registry.on_localhost("pastis-2433:sample");
    let digest = registry.oras(files.path(), &["resolve", &reference]).text().trim().to_owned();
    let signature = files.path().join("signature.txt");
    fs::write(&signature, "signed by me\n").unwrap();
    // As it is published.
    registry.oras(
        files.path(),
        &[
            "attach",
            &registry.on_localhost(&format!("pastis-2433@{digest}")),
            "--artifact-type",
            "application/vnd.oci.artifact.signature.v1+text",
            "--disable-path-validation",
            &format!("{}:text/plain", signature.display()),
        ],
    );
    let mounted = mount(&reference).home(&home).mount();
    let oci = mounted.join(".oci");
    assert!(!names_in(mounted.path()).contains(&".oci".to_owned()));
    let found = call("find", &[mounted.path().to_str().unwrap(), "-name", ".oci*"]).text();
    assert_eq!(found, "");
    assert_eq!(names_in(&oci), ["blobs", "index.json", "oci-layout", "referrers"]);

    let folder = oci.join("referrers/application_vnd.oci.artifact.signature.v1+text");
    let [short] = &names_in(&folder)[..] else { panic!("{:?}", names_in(&folder)) };
    let folder = folder.join(short);
    assert_eq!(names_in(&folder), ["manifest.json", "signature.txt"]);
    assert_eq!(fs::read_to_string(folder.join("signature.txt")).unwrap(), "signed by me\n");
    let manifest = fs::read(folder.join("manifest.json")).unwrap();
    assert!(sha256(&manifest)["sha256:".len()..].starts_with(short.as_str()));
    // What is attached is among the blobs, too, by name.
    let blob = |digest: &str| oci.join("blobs").join(digest.replace(':', "/"));
    assert_eq!(fs::read(blob(&sha256(&manifest))).unwrap(), manifest);
    assert_eq!(fs::read(blob(&sha256(b"signed by me\n"))).unwrap(), b"signed by me\n");
    assert_eq!(errno(fs::read(blob(&sha256(b"nobody has this")))), ENOENT);

    let blobs = names_in(&oci.join("blobs/sha256"));
    assert_eq!(blobs.len(), 2 + sample.titles.len());
    let sums = call("sh", &["-c", &format!("cd {}/blobs/sha256 && sha256sum *", oci.display())]).text();
    for (line, name) in sums.lines().zip(&blobs) {
        assert_eq!(line, format!("{name}  {name}"));
    }
    let source = format!("{}:sample", oci.display());
    registry.oras(files.path(), &["copy", "--from-oci-layout", &source, &registry.on_localhost("by-oras:1")]);
    registry.push_with_skopeo(files.path(), &format!("oci:{source}"), "by-skopeo:1");
    let crane = tools::built("crane");
    call(&crane, &["push", oci.to_str().unwrap(), &registry.reference("by-crane:1")]);
    for name in ["by-oras:1", "by-skopeo:1", "by-crane:1"] {
        let copied = registry.oras(files.path(), &["resolve", &registry.on_localhost(name)]).text();
        assert_eq!(copied.trim(), digest, "{name}");
    }
    mounted.unmount();

    // What was looked at is there without the registry.
    drop(registry);
    let mounted = mount(&reference).home(&home).arg("--offline").mount();
    let folder = mounted.join(".oci/referrers/application_vnd.oci.artifact.signature.v1+text").join(short);
    assert_eq!(fs::read_to_string(folder.join("signature.txt")).unwrap(), "signed by me\n");
    mounted.unmount();
}

#[test]
fn what_is_attached_is_looked_up_once_by_who_asks_first() {
    let registry = ScriptedRegistry::start();
    let subject = dataset(&registry);
    attach(&registry, &subject, &[("a", note("a.txt", "A")), ("b", note("b.txt", "B"))]);
    let mounted = mount(registry.reference("data:v1")).mount();
    let oci = mounted.join(".oci");
    assert_eq!(names_in(&oci.join("blobs/sha256")).len(), 3);
    let index: Value = serde_json::from_slice(&fs::read(oci.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], subject.digest);
    assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "v1");
    assert_eq!(look_ups(&registry), 0, "nobody has asked for what is attached");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(names_in(&oci.join("referrers")), ["text_a", "text_b"]));
        }
    });
    assert_eq!(look_ups(&registry), 1);
    mounted.unmount();
}

#[test]
fn a_look_up_that_failed_is_tried_again() {
    let registry = ScriptedRegistry::start();
    let subject = dataset(&registry);
    let attached = attach(&registry, &subject, &[("a", note("a.txt", "A"))]);
    let mounted = mount(registry.reference("data:v1")).mount();
    let blob = mounted.join(".oci/blobs").join(attached[0].digest.replace(':', "/"));
    registry.fault(Matcher::path("/referrers/"), Fault::status(403), ALWAYS);
    assert_eq!(errno(fs::read_dir(mounted.join(".oci/referrers")).and_then(|mut names| names.next().unwrap())), EIO);
    assert_eq!(errno(fs::read(&blob)), EIO);
    registry.clear_faults();
    assert_eq!(names_in(&mounted.join(".oci/referrers")), ["text_a"]);
    assert_eq!(sha256(&fs::read(&blob).unwrap()), attached[0].digest);
    mounted.unmount();
}

#[test]
fn without_oci_and_beside_a_layer_of_that_name_there_is_no_layout() {
    let registry = ScriptedRegistry::start();
    dataset(&registry);
    note(".oci/mine.txt", "mine").layer(Some("b.txt"), "text/plain", "b").push(&registry, "data", "own");
    let mounted = mount(registry.reference("data:v1")).arg("--no-oci").mount();
    assert_eq!(errno(fs::metadata(mounted.join(".oci"))), ENOENT);
    mounted.unmount();
    let mounted = mount(registry.reference("data:own")).mount();
    assert_eq!(names_in(&mounted.join(".oci")), ["mine.txt"]);
    mounted.unmount();
}

#[test]
fn names_of_what_is_attached_lead_nowhere_and_what_is_broken_leaves_the_rest_alone() {
    let registry = ScriptedRegistry::start();
    let subject = dataset(&registry);
    let hostile =
        note("../../../etc/passwd", "p").layer(Some("manifest.json"), "text/plain", "m").layer(None, "x", "n");
    let attached =
        attach(&registry, &subject, &[("../..", hostile), ("a", note("a.txt", "A")), ("gone", note("g.txt", "G"))]);
    let gone = &attached[2].digest;
    registry.put_manifest_as("data", gone, "other bytes");
    let mounted = mount(registry.reference("data:v1")).mount();
    let referrers = mounted.join(".oci/referrers");
    assert_eq!(names_in(&referrers), ["text_.._..", "text_a", "text_gone"]);
    let short = |number: usize| &attached[number].digest["sha256:".len()..][..12];
    let shown = names_in(&referrers.join("text_.._..").join(short(0)));
    assert!(shown[0] == "etc" && shown[1].starts_with("layer-0002-") && shown[2] == "manifest.json", "{shown:?}");
    let a = referrers.join("text_a").join(short(1));
    assert_eq!(fs::read_to_string(a.join("a.txt")).unwrap(), "A");
    let broken = referrers.join("text_gone").join(short(2)).join("manifest.json");
    assert_eq!(errno(fs::read(broken)), EIO);
    mounted.unmount();
}

#[test]
fn an_index_is_copied_with_the_attestations_that_the_mount_does_not_show() {
    let (registry, target) = (ScriptedRegistry::start(), RealRegistry::start());
    let image = note("data.txt", "data").push(&registry, "data", "image");
    let attestation = note("in-toto.json", "{}").push(&registry, "data", "attestation");
    let mut entries = [image.to_json(), attestation.to_json()];
    entries[0]["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    entries[1]["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries }).to_string();
    let digest = registry.put_manifest("data", "v1", index);
    let mounted = mount(registry.reference("data:v1")).mount();
    assert_eq!(names_in(mounted.path()), ["linux-amd64"]);
    assert!(names_in(&mounted.join(".oci/blobs/sha256")).contains(&attestation.digest["sha256:".len()..].to_owned()));
    let source = format!("{}:v1", mounted.join(".oci").display());
    target.oras(mounted.home().path(), &["copy", "--from-oci-layout", &source, &target.on_localhost("copy:1")]);
    let copied = target.oras(mounted.home().path(), &["resolve", &target.on_localhost("copy:1")]).text();
    assert_eq!(copied.trim(), digest);
    mounted.unmount();
}

#[test]
fn a_mounted_layout_has_one_too() {
    let mounted = mount(Sample::REFERENCE).mount();
    let blobs = mounted.join(".oci/blobs/sha256");
    let layout = tools::project().join("sample/pastis/blobs/sha256");
    for name in names_in(&blobs) {
        assert!(fs::read(blobs.join(&name)).unwrap() == fs::read(layout.join(&name)).unwrap(), "{name}");
    }
    assert_eq!(names_in(&blobs), names_in(&layout));
    assert_eq!(names_in(&mounted.join(".oci/referrers")), [""; 0]);
    mounted.unmount();
}
