//! `--verify-key`: what is not signed by the key that the user trusts is not mounted. The signatures are cosign's own.

use std::path::{Path, PathBuf};

use eo_mount_testing::fixtures::Sample;
use eo_mount_testing::{Artifact, EoMount, Finished, Home, Program, RealRegistry, ScriptedRegistry, tools};

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn fixture(name: &str) -> PathBuf {
    tools::project().join("tests/support/src/fixtures/cosign").join(name)
}

/// Where the signature is.
#[derive(Clone, Copy)]
enum By {
    Tag,
    Referrer,
}

/// The sample, and its signature.
fn signed(program: Program, by: By) -> RealRegistry {
    let registry = RealRegistry::of(program).start();
    registry.push_with_skopeo(tools::project(), Sample::REFERENCE, "pastis-2433:sample");
    let repository = registry.on_localhost("pastis-2433");
    let digest = registry.oras(Path::new("."), &["resolve", &format!("{repository}:sample")]).text().trim().to_owned();
    let folder = fixture("");
    for blob in ["payload.json", "tag-config.json"] {
        registry.oras(&folder, &["blob", "push", &repository, blob]);
    }
    let push = |reference: &str, manifest: &str| {
        registry.oras(&folder, &["manifest", "push", "--media-type", MANIFEST_TYPE, reference, manifest]);
    };
    match by {
        By::Tag => push(&format!("{repository}:{}.sig", digest.replace(':', "-")), "tag.json"),
        By::Referrer => push(&repository, "referrer.json"),
    }
    registry
}

fn ls(home: &Home, reference: &str, key: &str, options: &[&str]) -> Finished {
    let key = fixture(key);
    let call = EoMount::bare(PROGRAM).home(home).arg("ls").arg("--verify-key").arg(key);
    call.args(options).arg(reference).output()
}

#[track_caller]
fn only_the_right_key_opens_it(program: Program, by: By) {
    let (registry, home) = (signed(program, by), Home::new());
    let reference = registry.on_localhost("pastis-2433:sample");
    let call = || EoMount::new(PROGRAM, &reference).home(&home).arg("--verify-key");
    let mounted = call().arg(fixture("cosign.pub")).mount();
    assert!(mounted.join("config.json").exists());
    mounted.unmount();
    let refused = call().arg(fixture("other.pub")).output();
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("none of its 1 signatures is by the key"), "{}", refused.stderr);
    assert_eq!(ls(&home, &reference, "other.pub", &[]).code, 1);
    // What was found once is enough without the registry.
    drop(registry);
    ls(&home, &reference, "cosign.pub", &["--offline"]).expect_success("ls --offline");
    assert_eq!(ls(&home, &reference, "other.pub", &["--offline"]).code, 1);
}

#[test]
fn a_signature_under_cosigns_tag_opens_the_artifact_for_its_key_only() {
    only_the_right_key_opens_it(Program::DockerRegistry, By::Tag);
}

#[test]
fn a_signature_that_is_attached_opens_the_artifact_for_its_key_only() {
    only_the_right_key_opens_it(Program::Referrers, By::Referrer);
}

#[test]
fn a_signature_that_is_attached_without_an_api_opens_the_artifact_for_its_key_only() {
    only_the_right_key_opens_it(Program::Distribution3, By::Referrer);
}

#[test]
fn what_is_not_signed_and_what_bears_the_signature_of_another_is_refused() {
    let (registry, home) = (signed(Program::DockerRegistry, By::Tag), Home::new());
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("a.txt"), "a").unwrap();
    registry.push_with_oras(files.path(), "pastis-2433:other", &["a.txt:text/plain"]);
    let reference = registry.on_localhost("pastis-2433:other");
    let refused = ls(&home, &reference, "cosign.pub", &[]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("it has no signature"), "{}", refused.stderr);
    // The right signature, of another manifest.
    let digest = registry.oras(files.path(), &["resolve", &reference]).text().trim().replace(':', "-");
    let tag = registry.on_localhost(&format!("pastis-2433:{digest}.sig"));
    registry.oras(&fixture(""), &["manifest", "push", "--media-type", MANIFEST_TYPE, &tag, "tag.json"]);
    let refused = ls(&home, &reference, "cosign.pub", &[]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("none of its 1 signatures"), "{}", refused.stderr);
}

#[test]
fn nothing_of_an_artifact_is_fetched_before_its_signature_is_checked() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    Artifact::new().config("{}", "application/json").tar("a.tar", b"x".repeat(1024)).push(&registry, "data", "v1");
    let reference = registry.reference("data:v1");
    let out = home.path().join("out");
    let (out, layout) = (out.to_str().unwrap(), format!("oci:{}:v1", home.path().join("layout").display()));
    for verb in [
        &["ls", &reference][..],
        &["index", &reference],
        &["prefetch", "--all", &reference],
        &["pull", &reference, "-o", out],
        &["copy", &reference, &layout],
        &["discover", &reference],
    ] {
        let call = EoMount::bare(PROGRAM).home(&home).args(verb).arg("--verify-key").arg(fixture("cosign.pub"));
        let refused = call.output();
        assert_eq!(refused.code, 1, "{verb:?}");
        assert!(refused.stderr.contains("it has no signature"), "{verb:?}: {}", refused.stderr);
    }
    assert!(registry.requests().iter().all(|request| !request.path.contains("/blobs/")));
}

#[test]
fn a_key_that_cannot_check_anything_is_told_before_anybody_is_asked() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    for (key, cause) in [("p384.pub", "P-256"), ("payload.json", "no public key"), ("missing.pub", "No such file")] {
        let refused = ls(&home, &registry.reference("data:v1"), key, &[]);
        assert_eq!(refused.code, 2, "{key}");
        assert!(refused.stderr.contains(cause) && refused.stderr.contains("cosign.pub"), "{}", refused.stderr);
    }
    assert!(registry.requests().is_empty());
}
