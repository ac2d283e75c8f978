//! `eo-mount pull`: layers and files of a dataset as files of this machine, as `oras pull` and `tar -x` make them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::fixtures::{PythonTar, RawTar, Sample, TarFormat, everything_tar, patch_tar};
use eo_mount_testing::processes::Signal;
use eo_mount_testing::python::python_says;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Fault, Finished, Home, Matcher, Program, RealRegistry, ScriptedRegistry, run, sha256,
    xattr,
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
fn a_mount_checks_what_a_pull_has_left_in_the_cache() {
    let dataset = Dataset::two_layers();
    dataset.pulled(&[]);
    let mounted = EoMount::new(PROGRAM, &dataset.reference).home(&dataset.home).mount();
    let file = mounted.join("10000/noise");
    fs::read(&file).unwrap();
    let verified = || xattr::get(&file, "user.eo.verified").unwrap().unwrap();
    assert!(wait_until(Duration::from_secs(60), || verified() == "blob"), "{}", verified());
    mounted.unmount();
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

/// So many that each comes in one answer.
fn many_layers() -> Dataset {
    let artifact = Artifact::new().config("{}", "application/json");
    Dataset::of(
        (0..13).fold(artifact, |artifact, number| artifact.tar(&format!("{number}.tar"), noise(number, MIB + 600_000))),
    )
}

#[track_caller]
fn assert_all_are_there(dataset: &Dataset) {
    assert_eq!(dataset.names().len(), 13);
    for (number, layer) in dataset.artifact.layers().iter().enumerate() {
        assert_eq!(sha256(&fs::read(dataset.out.path().join(format!("{number}.tar"))).unwrap()), layer.digest);
    }
}

#[test]
fn many_layers_come_in_one_request_each_and_are_kept() {
    let dataset = many_layers();
    dataset.pulled(&[]);
    assert_eq!(dataset.registry.blob_requests(), 13);
    assert_all_are_there(&dataset);
    // From the cache folder, and what is not there in one request.
    for name in dataset.names() {
        fs::remove_file(dataset.out.path().join(name)).unwrap();
    }
    dataset.registry.reset();
    dataset.pulled(&["--offline"]);
    assert_eq!(dataset.registry.requests().len(), 0);
    assert_all_are_there(&dataset);
}

#[test]
fn an_answer_that_breaks_or_stalls_goes_on_at_its_byte() {
    for cache in [&[][..], &["--no-disk-cache"]] {
        let dataset = many_layers();
        let size: u64 = dataset.artifact.layers().iter().map(|layer| layer.size).sum();
        dataset.registry.fault(Matcher::blob(&dataset.digest(1)), Fault::CutAfter(600_000), 2);
        dataset.registry.fault(Matcher::blob(&dataset.digest(2)), Fault::StallAfter(700_000), 1);
        dataset.pulled(&[&["--timeout", "2s"], cache].concat());
        assert_eq!(dataset.registry.blob_requests(), 13 + 3);
        assert_all_are_there(&dataset);
        assert!(dataset.registry.blob_bytes() < size + MIB, "{} bytes", dataset.registry.blob_bytes());
    }
}

#[test]
fn many_layers_whose_registry_gives_up_go_on_where_they_were() {
    let dataset = many_layers();
    for layer in 0..13 {
        let broken = Matcher::blob(&dataset.digest(layer)).touching(MIB..MIB + 1);
        dataset.registry.fault(broken.clone(), Fault::CutAfter(MIB), 1);
        dataset.registry.fault(broken, Fault::status(404), ALWAYS);
    }
    assert_eq!(dataset.pull(&["--no-disk-cache"]).code, 1);
    dataset.registry.clear_faults();
    dataset.registry.reset();
    dataset.pulled(&["--no-disk-cache"]);
    assert!(dataset.registry.blob_bytes() < 13 * MIB, "{} bytes", dataset.registry.blob_bytes());
    assert_all_are_there(&dataset);
}

#[test]
fn many_layers_come_from_a_registry_without_ranges_or_with_wrong_bytes_too() {
    let dataset = many_layers();
    dataset.registry.fault(Matcher::blob(&dataset.digest(3)), Fault::WrongBytes, 1);
    dataset.registry.fault(Matcher::blobs(), Fault::IgnoreRange, ALWAYS);
    let said = dataset.pull(&[]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("3.tar") && said.stderr.contains(&dataset.digest(3)), "{}", said.stderr);
    assert_eq!(dataset.names().len(), 12);
    dataset.pull(&[]).expect_success("pull");
    assert_all_are_there(&dataset);
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
    assert_eq!(told["layers"][0]["in_folder"], 3 * MIB);
    assert!(dataset.registry.blob_bytes() < 5 * MIB / 2, "{} bytes", dataset.registry.blob_bytes());
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
fn titles_that_are_names_of_unfinished_files_are_refused() {
    for title in [".eo-mount-extracted", "sub/.eo-mount-00.part", ".eo-mount-x/a"] {
        let dataset = Dataset::of(Artifact::new().layer(Some(title), "text/plain", "a"));
        let said = dataset.pull(&[]);
        assert!(said.code == 1 && said.stderr.contains("this program keeps"), "{}", said.stderr);
        assert_eq!(dataset.registry.blob_requests(), 0);
    }
}

#[test]
fn titles_that_cannot_name_a_file_are_pulled_under_the_name_that_a_mount_gives() {
    let long = "n".repeat(300);
    for title in ["", ".", "/", "a\0b", "a\n\x1b[31mb", &long] {
        let dataset = Dataset::of(Artifact::new().layer(Some(title), "text/plain", "a"));
        let said = dataset.pull(&[]).expect_success("pull");
        assert!(said.stderr.contains("cannot be a file n"), "{}", said.stderr);
        let short = &dataset.digest(0)["sha256:".len()..][..12];
        assert_eq!(dataset.names(), [format!("layer-0000-{short}")], "{title:?}");
    }
}

#[test]
fn what_is_no_archive_leaves_no_folder_and_is_told_with_a_way_out() {
    let dataset = Dataset::of(Artifact::new().tar("10000.tar", vec![7; 5000]));
    let said = dataset.pull(&["--extract"]);
    assert!(said.code == 1 && said.stderr.contains("oras blob fetch"), "{}", said.stderr);
    assert!(said.text().contains("5.0 kB to fetch"), "{}", said.text());
    assert!(!dataset.out.path().join("10000").exists());
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

/// Everything but what a file system has its own idea of.
#[track_caller]
fn listing(folder: &Path) -> Vec<String> {
    let mut find = Command::new("find");
    find.current_dir(folder).args([".", "-mindepth", "1", "!", "-name", "*-device"]);
    find.args(["-type", "d", "-printf", "%P d %m %T@\\n", "-o", "-printf", "%P %y %m %s %T@ %l %n\\n"]);
    let text = run(&mut find, Duration::from_secs(60)).expect_success("find").stdout;
    let mut lines: Vec<String> = text.split(|&b| b == b'\n').map(|line| line.escape_ascii().to_string()).collect();
    lines.sort();
    lines
}

#[track_caller]
fn tar_extracts(archive: &Path, into: &Path) {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 022; exec tar \"$@\"", "tar", "--xattrs", "--xattrs-include=user.*"]);
    command.args(["--exclude=*-device", "--no-same-permissions", "--no-same-owner", "-x", "-f"]).arg(archive);
    command.arg("-C").arg(into).env("LC_ALL", "C");
    run(&mut command, Duration::from_secs(120)).expect_success("tar -x");
}

fn diff(a: &Path, b: &Path) -> String {
    let mut diff = Command::new("diff");
    diff.args(["-r", "--no-dereference"]).args([a, b]);
    let said = run(&mut diff, Duration::from_secs(60));
    said.text().lines().filter(|line| !line.contains("-device") && !line.contains("is a fifo")).collect()
}

#[test]
fn members_that_cannot_be_read_are_named_and_the_others_extracted() {
    let archives = tempfile::tempdir().unwrap();
    let script = "
import os, sys, tarfile, zipfile
os.chdir(sys.argv[1])
link = zipfile.ZipInfo('link')
link.create_system, link.external_attr = 3, 0o120777 << 16
with zipfile.ZipFile('zip.zip', 'w') as z:
    z.writestr('a', 'whole')
    z.writestr('bzip2', 'b' * 1000, zipfile.ZIP_BZIP2)
    z.writestr('damaged', 'before')
    z.writestr(link, 'broken')
    z.writestr('z', 'whole')
data = open('zip.zip', 'rb').read()
open('zip.zip', 'wb').write(data.replace(b'before', b'behind').replace(b'broken', b'wrecks'))
with tarfile.open('tar.tar', 'w') as t:
    for name, kind in (('a', tarfile.REGTYPE), ('nowhere', tarfile.SYMTYPE), ('z', tarfile.REGTYPE)):
        member = tarfile.TarInfo(name)
        member.type = kind
        t.addfile(member)
";
    python_says(script, &[archives.path()]);
    let read = |name: &str| fs::read(archives.path().join(name)).unwrap();
    let artifact = Artifact::new().tar("tar.tar", read("tar.tar"));
    let dataset = Dataset::of(artifact.layer(Some("zip.zip"), "application/zip", read("zip.zip")));
    let said = dataset.pull(&["--extract"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    for path in ["tar/nowhere: ", "zip/link: "] {
        assert_eq!(said.stderr.matches(path).count(), 1, "{path} in {}", said.stderr);
    }
    assert!(said.stderr.contains("; 2 more cannot be read, either ("), "{}", said.stderr);
    let names: Vec<String> = dataset.names().into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(names, ["config.json", "tar", "tar/a", "tar/z", "zip", "zip/a", "zip/z"]);
    assert_eq!(fs::read(dataset.out.path().join("zip/a")).unwrap(), b"whole");
}

#[test]
fn what_is_extracted_is_what_tar_extracts() {
    let archives = tempfile::tempdir().unwrap();
    let everything = everything_tar(TarFormat::Posix("1.0"));
    let patch = patch_tar(10000, 32);
    fs::write(archives.path().join("all.tar"), &everything).unwrap();
    let mut gzip = Command::new("gzip");
    gzip.arg("-k").arg(archives.path().join("all.tar"));
    run(&mut gzip, Duration::from_secs(60)).expect_success("gzip");
    let packed = fs::read(archives.path().join("all.tar.gz")).unwrap();
    let artifact = Artifact::new().config("{}", "application/json").tar("all.tar", everything);
    let artifact = artifact.layer(Some("packed.tar.gz"), "application/vnd.oci.image.layer.v1.tar+gzip", packed);
    let dataset = Dataset::of(artifact.tar("10000.tar", patch.clone()).layer(Some("README"), "text/plain", "read"));
    dataset.pull(&["--extract"]).expect_success("pull --extract");
    assert_eq!(fs::read(dataset.out.path().join("README")).unwrap(), b"read");
    assert_eq!(fs::read(dataset.out.path().join("config.json")).unwrap(), b"{}");
    fs::write(archives.path().join("10000.tar"), patch).unwrap();
    for (archive, name) in [("all.tar", "all"), ("all.tar", "packed"), ("10000.tar", "10000")] {
        let expected = tempfile::tempdir().unwrap();
        tar_extracts(&archives.path().join(archive), expected.path());
        let ours = dataset.out.path().join(name);
        let (mut ours_listed, mut expected_listed) = (listing(&ours), listing(expected.path()));
        if name == "10000" {
            // Folders that the archive does not hold have no time of their own.
            ours_listed.retain(|line| !line.contains(" d "));
            expected_listed.retain(|line| !line.contains(" d "));
        }
        assert_eq!(ours_listed, expected_listed, "{name}");
        assert_eq!(diff(&ours, expected.path()), "", "{name}");
    }
    let left: Vec<_> = dataset.names().into_iter().filter(|name| name.contains(".eo-mount")).collect();
    assert_eq!(left, Vec::<String>::new());
    let sparse = fs::metadata(dataset.out.path().join("all/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < sparse.len(), "holes are holes");
}

#[test]
fn some_files_and_folders_are_pulled_at_their_paths() {
    let artifact = Artifact::new().config("{}", "application/json");
    let dataset = Dataset::of(artifact.tar("10000.tar", patch_tar(10000, 32)).tar("10001.tar", patch_tar(10001, 32)));
    dataset.pulled(&["10000/ANNOTATIONS", "*/INSTANCE*/HEAT*", "config.json"]);
    let names = dataset.names();
    for name in ["10000/ANNOTATIONS/ParcelIDs_10000.npy", "10001/INSTANCE_ANNOTATIONS/HEATMAP_10001.npy", "config.json"]
    {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("DATA_S2")), "{names:?}");
}

#[test]
fn a_layer_that_a_mirror_gives_wrongly_comes_from_the_registry() {
    let dataset = Dataset::two_layers();
    let mirror = ScriptedRegistry::start();
    dataset.artifact.push(&mirror, "pastis", "sample");
    mirror.put_blob_as(&dataset.digest(0), noise(3, 5 * MIB + 77));
    let said = dataset.pull(&["--mirror", &format!("http://{}", mirror.address())]).expect_success("pull");
    assert_eq!(said.stderr, "");
    dataset.assert_whole();
    assert!(mirror.blob_bytes() >= 8 * MIB && dataset.registry.blob_bytes() < 6 * MIB, "one from each");
}

#[test]
fn nothing_of_a_wrong_layer_is_extracted() {
    let dataset = Dataset::two_layers();
    dataset.registry.put_blob_as(&dataset.digest(0), noise(3, 5 * MIB + 77));
    let said = dataset.pull(&["--extract"]);
    assert!(said.code == 1 && said.stderr.contains(&dataset.digest(0)), "{}", said.stderr);
    assert!(!dataset.out.path().join("10000").exists());
    assert_eq!(fs::metadata(dataset.out.path().join("sub/10001/noise")).unwrap().len(), 3 * MIB);
    dataset.artifact.push(&dataset.registry, "pastis", "sample");
    dataset.registry.reset();
    dataset.pull(&["--extract", "--no-disk-cache"]).expect_success("pull");
    assert!(dataset.registry.blob_bytes() < 7 * MIB, "what was extracted is not fetched again");
    assert_eq!(dataset.names(), ["10000", "10000/noise", "config.json", "sub", "sub/10001", "sub/10001/noise"]);
}

#[test]
fn an_extraction_that_was_killed_behind_the_last_byte_makes_its_tree_and_leaves_no_archive() {
    let dataset = Dataset::two_layers();
    let archive = |layer: usize| dataset.out.path().join(format!(".eo-mount-{}.layer", &dataset.digest(layer)[7..]));
    fs::write(archive(0), noise(1, 5 * MIB + 77)).unwrap();
    fs::write(archive(1), noise(2, 3 * MIB)).unwrap();
    // Of the second even the tree was made.
    let done = format!("{} \"sub/10001\"\n", dataset.digest(1));
    fs::write(dataset.out.path().join(".eo-mount-extracted"), done).unwrap();
    dataset.pulled(&["--extract"]);
    assert_eq!(dataset.names(), ["10000", "10000/noise", "config.json"]);
    assert!(dataset.registry.blob_bytes() < 1000, "{} bytes fetched", dataset.registry.blob_bytes());
}

#[test]
fn several_extractions_into_one_folder_at_once_make_one_tree() {
    let layer = |number: u64| {
        let files = (0..40).fold(PythonTar::new(), |tar, file| {
            tar.file(&format!("d{}/{file}", file % 7), 1.5, Vec::new(), number * 100 + file, 50_000)
        });
        files.finish().to_bytes()
    };
    let artifact =
        (0..6).fold(Artifact::new(), |artifact, number| artifact.tar(&format!("{number}.tar"), layer(number)));
    let dataset = Dataset::of(artifact);
    std::thread::scope(|scope| {
        let pulls = [(); 4].map(|()| scope.spawn(|| dataset.pull(&["--extract", "--no-disk-cache"])));
        for pull in pulls {
            pull.join().unwrap().expect_success("pull --extract");
        }
    });
    dataset.pulled(&["--extract"]);
    for number in 0..6 {
        let expected = tempfile::tempdir().unwrap();
        fs::write(expected.path().join("a.tar"), layer(number)).unwrap();
        let tree = expected.path().join("tree");
        fs::create_dir(&tree).unwrap();
        tar_extracts(&expected.path().join("a.tar"), &tree);
        let pulled = dataset.out.path().join(number.to_string());
        run(Command::new("diff").arg("-r").arg(&tree).arg(&pulled), Duration::from_secs(20)).expect_success("diff");
    }
    let own = fs::read_dir(dataset.out.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(own.filter(|name| name.starts_with('.')).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn extracting_follows_no_link_and_leaves_the_folder_by_none() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "precious").unwrap();
    let hostile = RawTar::new()
        .symlink("way", outside.path().to_str().unwrap())
        .file("way/file", b"overwritten")
        .file("../../file", b"overwritten")
        .file("/tmp/eo-mount-hostile", b"overwritten")
        .symlink("end", outside.path().join("file").to_str().unwrap())
        .file("end", b"overwritten")
        .finish();
    let dataset = Dataset::of(Artifact::new().tar("x.tar", hostile));
    dataset.pull(&["--extract"]).expect_success("pull");
    assert_eq!(names(outside.path()), ["file"]);
    assert!(!Path::new("/tmp/eo-mount-hostile").exists());
    // Links that were there before.
    let dataset = Dataset::two_layers();
    fs::create_dir(dataset.out.path().join("10000")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("file"), dataset.out.path().join("10000/noise")).unwrap();
    std::os::unix::fs::symlink(outside.path(), dataset.out.path().join("sub")).unwrap();
    let said = dataset.pull(&["--extract"]);
    assert!(said.code == 1 && said.stderr.contains("symbolic link"), "{}", said.stderr);
    assert!(dataset.out.path().join("10000/noise").symlink_metadata().unwrap().is_file());
    assert_eq!(names(outside.path()), ["file"]);
    assert_eq!(fs::read(outside.path().join("file")).unwrap(), b"precious");
}

#[test]
fn a_folder_that_oras_packed_is_unpacked_as_oras_does() {
    let (registry, files) = (RealRegistry::start(), tempfile::tempdir().unwrap());
    fs::create_dir_all(files.path().join("patch/sub")).unwrap();
    fs::write(files.path().join("patch/sub/a.txt"), "a").unwrap();
    fs::write(files.path().join("patch/b.txt"), "b").unwrap();
    registry.push_with_oras(files.path(), "x:folder", &["patch"]);
    let reference = registry.reference("x:folder");
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    registry.oras(theirs.path(), &["pull", "--plain-http", &reference]);
    EoMount::bare(PROGRAM).args(["pull", &reference, "-o", ours.path().to_str().unwrap()]).output().expect_success("");
    assert_eq!(names(ours.path()), names(theirs.path()));
    assert_eq!(diff(ours.path(), theirs.path()), "");
}

#[test]
fn an_image_layout_has_all_and_skopeo_and_oras_read_it() {
    let (registry, files) = (RealRegistry::start(), tempfile::tempdir().unwrap());
    let arguments = Sample::files_in(files.path()).push_arguments("");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    registry.push_with_oras(files.path(), "pastis-2433:sample", &arguments);
    let reference = registry.reference("pastis-2433:sample");
    let out = tempfile::tempdir().unwrap();
    let layout = out.path().join("layout");
    let call = ["pull", &reference, "--to-oci-layout", "-o", layout.to_str().unwrap()];
    EoMount::bare(PROGRAM).args(call).output().expect_success("pull");
    for blob in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let name = format!("sha256:{}", blob.file_name().to_str().unwrap());
        assert_eq!(sha256(&fs::read(blob.path()).unwrap()), name);
    }
    registry.push_with_skopeo(out.path(), "oci:layout:sample", "by-skopeo:sample");
    registry.oras(
        out.path(),
        &["cp", "--from-oci-layout", "--to-plain-http", "layout:sample", &registry.reference("by-oras:sample")],
    );
    let digest = |name: &str| registry.oras(out.path(), &["resolve", "--plain-http", &registry.reference(name)]).text();
    assert_eq!(digest("by-skopeo:sample"), digest("pastis-2433:sample"));
    assert_eq!(digest("by-oras:sample"), digest("pastis-2433:sample"));
}

/// With and without what the cache folder keeps of it.
#[test]
fn a_pull_that_was_killed_fetches_less_than_16_mib_twice() {
    const SIZE: u64 = 192 * MIB;
    for more in [&[][..], &["--no-disk-cache"]] {
        let dataset = Dataset::of(Artifact::new().tar("large.tar", noise(7, SIZE)));
        let hex = dataset.digest(0)["sha256:".len()..].to_owned();
        let unfinished = dataset.out.path().join(format!(".eo-mount-{hex}.part"));
        let mut command = Command::new(PROGRAM);
        command.arg("pull").args(more).arg("-o").arg(dataset.out.path()).arg(&dataset.reference);
        command.env("XDG_CACHE_HOME", dataset.home.cache());
        let mut child = command.spawn().unwrap();
        let begun = || fs::metadata(&unfinished).is_ok_and(|found| found.len() > SIZE / 3);
        let half = wait_until(Duration::from_secs(60), begun);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(half && unfinished.exists() && !dataset.out.path().join("large.tar").exists());
        dataset.pulled(more);
        let (sent, size) = (dataset.registry.blob_bytes(), dataset.artifact.layers()[0].size);
        assert!(sent <= size + 16 * MIB, "{} bytes fetched twice, {more:?}", sent - size);
        assert_eq!(sha256(&fs::read(dataset.out.path().join("large.tar")).unwrap()), dataset.digest(0));
        assert_eq!(dataset.names(), ["large.tar"]);
    }
}

/// As is a prefetch.
#[test]
fn a_pull_that_a_signal_ends_says_what_is_kept_and_that_the_same_call_goes_on() {
    let calls = [("pull", Signal::INT, 130), ("pull", Signal::TERM, 143), ("prefetch", Signal::INT, 130)];
    for (verb, signal, code) in calls {
        let dataset = Dataset::of(Artifact::new().tar("a.tar", noise(1, 2 * MIB)).tar("b.tar", noise(2, 2 * MIB)));
        let out = dataset.out.path().to_str().unwrap();
        let (call, kept) = match verb {
            "pull" => (vec!["pull", "-o", out, &dataset.reference], out),
            _ => (vec!["prefetch", "--all", &dataset.reference], "the cache folder"),
        };
        let (first, second) = (dataset.digest(0), dataset.digest(1));
        let stalled = dataset.registry.fault(Matcher::blob(&second), Fault::Stall, ALWAYS);
        let mut running = EoMount::bare(PROGRAM).home(&dataset.home).args(&call).spawn();
        let map = dataset.home.cache().join("eo-mount/blobs/sha256").join(&first["sha256:".len()..]);
        let is_kept = || fs::metadata(&map).is_ok_and(|found| found.blocks() * 512 >= 2 * MIB);
        let half = wait_until(Duration::from_secs(60), || stalled.met() > 0 && is_kept());
        running.signal(signal);
        let ended = running.wait_ended(Duration::from_secs(20)).unwrap();
        assert!(half, "{}", ended.stderr);
        assert_eq!(ended.code, code, "{}", ended.stderr);
        let name = if code == 130 { "SIGINT" } else { "SIGTERM" };
        let says = format!("stopped by {name}; what has come is kept in {kept} (the same command goes on)");
        assert_eq!(ended.stderr, format!("eo-mount: {}: {says}\n", dataset.reference));
        dataset.registry.clear_faults();
        dataset.registry.reset();
        EoMount::bare(PROGRAM).home(&dataset.home).args(&call).output().expect_success(verb);
        let sizes: Vec<u64> = dataset.artifact.layers().iter().map(|layer| layer.size).collect();
        assert!(dataset.registry.blob_bytes() <= sizes[1], "{verb}: {} bytes", dataset.registry.blob_bytes());
    }
}

#[test]
fn a_dataset_larger_than_the_cache_is_pulled_once() {
    let dataset = Dataset::of(Artifact::new().tar("a.tar", noise(8, 70 * MIB)).tar("b.tar", noise(9, 70 * MIB)));
    dataset.pulled(&["--cache-size", "64MiB", "--memory", "16MiB"]);
    let size: u64 = dataset.artifact.layers().iter().map(|layer| layer.size).sum();
    assert!(dataset.registry.blob_bytes() < size + MIB, "{} of {size}", dataset.registry.blob_bytes());
    let kept = names(&dataset.home.cache())
        .into_iter()
        .map(|name| dataset.home.cache().join(name).metadata().unwrap().blocks());
    assert!(kept.sum::<u64>() * 512 < MIB, "what does not fit is not kept");
    let other = Dataset { out: tempfile::tempdir().unwrap(), ..dataset };
    other.registry.reset();
    other.pulled(&["--cache-size", "64MiB", "--memory", "16MiB", "--extract"]);
    assert!(other.registry.blob_bytes() < size + MIB, "{} of {size}", other.registry.blob_bytes());
    assert_eq!(fs::metadata(other.out.path().join("b/noise")).unwrap().len(), 70 * MIB);
}

/// A file system of its own, of 8 MiB.
#[test]
fn a_full_folder_is_told_and_what_is_there_is_gone_on_with() {
    let dataset = Dataset::of(Artifact::new().tar("a.tar", noise(10, 12 * MIB)));
    let out = dataset.out.path();
    let mount = |verb: &str, arguments: &[&str]| {
        let mut command = Command::new(verb);
        run(command.args(arguments).arg(out), Duration::from_secs(30))
    };
    mount("mount", &["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).expect_success("mount (as root)");
    let said = dataset.pull(&[]);
    let left: Vec<u64> = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    let larger = mount("mount", &["-o", "remount,size=32m"]);
    let again = dataset.pull(&["--json"]);
    let names = dataset.names();
    mount("umount", &[]).expect_success("umount");
    assert!(said.code == 1 && said.stderr.contains("a.tar") && said.stderr.contains("make room"), "{}", said.stderr);
    assert!(left.len() == 1 && left[0] >= 6 * MIB, "{left:?}");
    larger.expect_success("remount");
    let told: Value = serde_json::from_str(&again.expect_success("pull").text()).unwrap();
    assert_eq!((told["in_folder"].as_u64(), names), (Some(left[0]), vec!["a.tar".to_owned()]));
}
