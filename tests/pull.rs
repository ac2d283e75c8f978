//! `eo-mount pull`: layers and files of a dataset as files of this machine, as `oras pull` and `tar -x` make them.

use std::fs;
use std::path::Path;

use eo_mount_testing::fixtures::{PythonTar, Sample};
use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Fault, Finished, Home, Matcher, Program, RealRegistry, ScriptedRegistry, sha256,
};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");
const MIB: u64 = 1 << 20;

fn noise(seed: u64, length: u64) -> Vec<u8> {
    PythonTar::new().file("noise", 1.5, Vec::new(), seed, length).finish().to_bytes()
}

struct Dataset {
    registry: ScriptedRegistry,
    reference: String,
    artifact: Artifact,
    home: Home,
    out: TempDir,
}

impl Dataset {
    fn of(artifact: Artifact) -> Self {
        let registry = ScriptedRegistry::start();
        artifact.push(&registry, "pastis", "sample");
        let reference = registry.reference("pastis:sample");
        Self { registry, reference, artifact, home: Home::new(), out: tempfile::tempdir().unwrap() }
    }

    fn two_layers() -> Self {
        let artifact = Artifact::new().config("{}", "application/json");
        Self::of(artifact.tar("10000.tar", noise(1, 5 * MIB + 77)).tar("sub/10001.tar", noise(2, 3 * MIB)))
    }

    fn pull(&self, arguments: &[&str]) -> Finished {
        let call = [&["pull", "-o", self.out.path().to_str().unwrap(), &self.reference], arguments].concat();
        EoMount::bare(PROGRAM).home(&self.home).args(call).output()
    }

    #[track_caller]
    fn pulled(&self, arguments: &[&str]) -> Value {
        let said = self.pull(&[&["--json"], arguments].concat()).expect_success("pull");
        assert_eq!(said.stderr, "");
        serde_json::from_str(&said.text()).unwrap()
    }

    fn digest(&self, layer: usize) -> String {
        self.artifact.layers()[layer].digest.clone()
    }

    fn names(&self) -> Vec<String> {
        names(self.out.path())
    }

    #[track_caller]
    fn assert_whole(&self) {
        for (name, layer) in ["10000.tar", "sub/10001.tar"].iter().zip(self.artifact.layers()) {
            assert_eq!(sha256(&fs::read(self.out.path().join(name)).unwrap()), layer.digest, "{name}");
        }
        assert_eq!(self.names(), ["10000.tar", "sub", "sub/10001.tar"]);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            names.push(path.strip_prefix(folder).unwrap().display().to_string());
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
    names.sort();
    names
}

#[track_caller]
fn what_oras_pushes_is_pulled_as_oras_pulls_it(program: Program) {
    let (registry, files) = (RealRegistry::of(program).start(), tempfile::tempdir().unwrap());
    let arguments = Sample::files_in(files.path()).push_arguments("");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    registry.push_with_oras(files.path(), "pastis-2433:sample", &arguments);
    let reference = registry.reference("pastis-2433:sample");
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    registry.oras(theirs.path(), &["pull", "--plain-http", &reference]);
    let call = ["pull", reference.as_str(), "--output", ours.path().to_str().unwrap()];
    EoMount::bare(PROGRAM).args(call).output().expect_success("pull");
    let sums = |folder: &Path| -> Vec<(String, String)> {
        let files = names(folder).into_iter().filter(|name| folder.join(name).is_file());
        files.map(|name| (sha256(&fs::read(folder.join(&name)).unwrap()), name)).collect()
    };
    assert_eq!(sums(ours.path()), sums(theirs.path()));
    assert!(sums(ours.path()).len() >= 3);
}

#[test]
fn what_oras_pushes_to_docker_registry_is_pulled_as_oras_pulls_it() {
    what_oras_pushes_is_pulled_as_oras_pulls_it(Program::DockerRegistry);
}

#[test]
fn what_oras_pushes_to_distribution_3_is_pulled_as_oras_pulls_it() {
    what_oras_pushes_is_pulled_as_oras_pulls_it(Program::Distribution3);
}

#[test]
fn what_oras_pushes_to_a_registry_with_referrers_is_pulled_as_oras_pulls_it() {
    what_oras_pushes_is_pulled_as_oras_pulls_it(Program::Referrers);
}

#[test]
fn layers_are_files_under_their_titles_and_a_second_pull_fetches_nothing() {
    let dataset = Dataset::two_layers();
    let first = dataset.pulled(&[]);
    assert_eq!((&first["in_folder"], &first["in_cache"]), (&0.into(), &0.into()));
    assert_eq!(first["missing"], first["bytes"]);
    dataset.assert_whole();
    dataset.registry.reset();
    let again = dataset.pulled(&[]);
    assert_eq!((&again["in_folder"], &again["missing"]), (&again["bytes"], &0.into()));
    assert_eq!(dataset.registry.blob_requests(), 0);
    fs::write(dataset.out.path().join("10000.tar"), "another").unwrap();
    dataset.pulled(&[]);
    dataset.assert_whole();
    assert_eq!(dataset.registry.blob_requests(), 0, "it is in the cache folder");
}

#[test]
fn some_layers_are_named_by_title_digest_path_or_glob() {
    for wanted in ["sub/10001.tar", "DIGEST", "sub/10001", "s*/1000?", "**/10001"] {
        let dataset = Dataset::two_layers();
        let wanted = wanted.replace("DIGEST", &dataset.digest(1));
        dataset.pulled(&[&wanted]);
        assert_eq!(dataset.names(), ["sub", "sub/10001.tar"], "{wanted}");
    }
    let dataset = Dataset::two_layers();
    let said = dataset.pull(&["nowhere"]);
    assert_eq!((said.code, said.stderr.lines().count()), (1, 1), "{}", said.stderr);
    assert_eq!(dataset.names().len(), 0);
}

#[test]
fn a_dry_run_asks_for_no_layer_and_tells_the_bytes() {
    let dataset = Dataset::two_layers();
    let told = dataset.pulled(&["--dry-run"]);
    let size: u64 = dataset.artifact.layers().iter().map(|layer| layer.size).sum();
    assert_eq!((&told["missing"], &told["layers"][1]["path"]), (&size.into(), &"sub/10001.tar".into()));
    assert_eq!((dataset.registry.blob_requests(), dataset.names().len()), (0, 0));
    dataset.pulled(&["10000.tar"]);
    let told = dataset.pulled(&["--dry-run"]);
    assert_eq!(told["missing"], dataset.artifact.layers()[1].size);
}

#[test]
fn what_a_mount_has_read_is_not_fetched_again() {
    let dataset = Dataset::two_layers();
    let mounted = EoMount::new(PROGRAM, &dataset.reference).home(&dataset.home).mount();
    assert_eq!(fs::read(mounted.join("10000/noise")).unwrap().len() as u64, 5 * MIB + 77);
    mounted.unmount();
    dataset.registry.reset();
    let told = dataset.pulled(&["10000.tar"]);
    assert!(told["in_cache"].as_u64().unwrap() >= 5 * MIB - (128 << 10), "{told}");
    assert!(dataset.registry.blob_bytes() < 256 << 10, "{} bytes", dataset.registry.blob_bytes());
    // And the other way round.
    dataset.pulled(&[]);
    dataset.registry.reset();
    let mounted = EoMount::new(PROGRAM, &dataset.reference).home(&dataset.home).mount();
    assert_eq!(fs::read(mounted.join("sub/10001/noise").as_path()).unwrap_or_default().len() as u64, 3 * MIB);
    mounted.unmount();
    assert!(dataset.registry.blob_bytes() < 256 << 10, "{} bytes", dataset.registry.blob_bytes());
}

#[test]
fn a_layer_with_other_bytes_is_named_with_both_digests_and_gets_no_name() {
    let dataset = Dataset::two_layers();
    let wrong = noise(3, 5 * MIB + 77);
    dataset.registry.put_blob_as(&dataset.digest(0), wrong.clone());
    let said = dataset.pull(&[]);
    assert_eq!(said.code, 1);
    for part in ["10000.tar", &dataset.digest(0), &sha256(&wrong)] {
        assert!(said.stderr.contains(part), "{part}: {}", said.stderr);
    }
    assert_eq!(dataset.names(), ["sub", "sub/10001.tar"]);
    dataset.artifact.push(&dataset.registry, "pastis", "sample");
    dataset.pulled(&[]);
    dataset.assert_whole();
}

#[test]
fn a_pull_that_broke_off_goes_on_inside_the_layer() {
    let dataset = Dataset::two_layers();
    let broken = Matcher::blob(&dataset.digest(0)).touching(4 * MIB..4 * MIB + 1);
    dataset.registry.fault(broken, Fault::status(404), ALWAYS);
    let said = dataset.pull(&["--no-disk-cache"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("10000.tar") && said.stderr.contains("call it again"), "{}", said.stderr);
    let names = dataset.names();
    assert!(names.len() == 3 && names[0].starts_with(".eo-mount-") && names[2] == "sub/10001.tar", "{names:?}");
    dataset.registry.clear_faults();
    dataset.registry.reset();
    let told = dataset.pulled(&["--no-disk-cache"]);
    assert_eq!(told["layers"][0]["in_folder"], 4 * MIB);
    assert!(dataset.registry.blob_bytes() < 3 * MIB / 2, "{} bytes", dataset.registry.blob_bytes());
    dataset.assert_whole();
}

#[test]
fn what_is_left_of_another_pull_and_wrong_is_fetched_anew() {
    let dataset = Dataset::two_layers();
    let hex = dataset.digest(0)["sha256:".len()..].to_owned();
    fs::write(dataset.out.path().join(format!(".eo-mount-{hex}.part")), vec![7; 2 * MIB as usize]).unwrap();
    dataset.pulled(&[]);
    dataset.assert_whole();
}

#[test]
fn titles_that_leave_the_folder_are_refused_and_links_in_it_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().join("signature.txt");
    for title in ["../signature.txt", absolute.to_str().unwrap(), "a/../../signature.txt"] {
        let dataset = Dataset::of(Artifact::new().layer(Some(title), "text/plain", "signed"));
        let said = dataset.pull(&[]);
        assert_eq!((said.code, said.stderr.lines().count()), (1, 1), "{}", said.stderr);
        assert!(said.stderr.contains("--allow-path-traversal"), "{}", said.stderr);
        assert_eq!(dataset.registry.blob_requests(), 0);
    }
    let dataset = Dataset::of(Artifact::new().layer(absolute.to_str(), "text/plain", "signed"));
    dataset.pulled(&["--allow-path-traversal"]);
    assert_eq!(fs::read(&absolute).unwrap(), b"signed");
    let dataset = Dataset::two_layers();
    std::os::unix::fs::symlink(outside.path(), dataset.out.path().join("sub")).unwrap();
    let said = dataset.pull(&[]);
    assert!(said.code == 1 && said.stderr.contains("symbolic link"), "{}", said.stderr);
    assert_eq!(names(outside.path()), ["signature.txt"]);
}

#[test]
fn two_layers_of_one_title_are_refused_unless_they_are_the_same() {
    let twice = Artifact::new().layer(Some("a.txt"), "text/plain", "a").layer(Some("a.txt"), "text/plain", "a");
    let dataset = Dataset::of(twice.clone());
    dataset.pulled(&[]);
    assert_eq!(dataset.names(), ["a.txt"]);
    for other in ["./a.txt", "a.txt/b"] {
        let dataset = Dataset::of(twice.clone().layer(Some(other), "text/plain", "b"));
        let said = dataset.pull(&[]);
        assert!(said.code == 2 && said.stderr.contains("a.txt: "), "{}", said.stderr);
        assert_eq!(dataset.names().len(), 0);
    }
}

#[test]
fn files_that_are_there_are_replaced_unless_they_are_to_be_kept() {
    let dataset = Dataset::two_layers();
    fs::write(dataset.out.path().join("10000.tar"), "mine").unwrap();
    let said = dataset.pull(&["--keep-old-files"]);
    assert!(said.code == 1 && said.stderr.contains("10000.tar"), "{}", said.stderr);
    assert_eq!(fs::read(dataset.out.path().join("10000.tar")).unwrap(), b"mine");
    assert!(dataset.out.path().join("sub/10001.tar").exists());
    dataset.pulled(&[]);
    dataset.assert_whole();
    dataset.pulled(&["--keep-old-files"]);
}

#[test]
fn what_is_in_the_cache_is_pulled_without_the_registry() {
    let dataset = Dataset::two_layers();
    EoMount::bare(PROGRAM).home(&dataset.home).args(["prefetch", &dataset.reference, "--all"]).output();
    dataset.registry.go_down();
    dataset.pulled(&["--offline"]);
    dataset.assert_whole();
    let other = Dataset::two_layers();
    let said = other.pull(&["--offline"]);
    assert!(said.code == 1 && said.stderr.contains("offline"), "{}", said.stderr);
}
