//! `eo-mount prefetch`: what was fetched ahead is read from disk, and nothing is fetched twice.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use eo_mount_testing::fixtures::PythonTar;
use eo_mount_testing::{ALWAYS, Artifact, EoMount, Fault, Finished, Home, Matcher, Mounted, ScriptedRegistry, run};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");
const MIB: u64 = 1 << 20;
/// A chunk at each end of a file may hold other bytes, too.
const SLACK: u64 = 2 * (64 << 10);

fn patch(id: u64) -> Vec<u8> {
    PythonTar::new()
        .file(&format!("DATA_S1/S1_{id}.npy"), 1.5, Vec::new(), id, 3 * MIB)
        .file(&format!("DATA_S2/S2_{id}.npy"), 1.5, Vec::new(), id + 1, 5 * MIB + 77)
        .file("METADATA.json", 1.5, b"{}".to_vec(), 0, 0)
        .finish()
        .to_bytes()
}

struct Dataset {
    registry: ScriptedRegistry,
    reference: String,
    digests: Vec<String>,
    sizes: Vec<u64>,
    home: Home,
}

impl Dataset {
    fn of(artifact: Artifact) -> Self {
        let registry = ScriptedRegistry::start();
        artifact.push(&registry, "pastis", "sample");
        let layers = artifact.layers();
        Self {
            reference: registry.reference("pastis:sample"),
            registry,
            digests: layers.iter().map(|layer| layer.digest.clone()).collect(),
            sizes: layers.iter().map(|layer| layer.size).collect(),
            home: Home::new(),
        }
    }

    fn patches() -> Self {
        let artifact = Artifact::new().config("{}", "application/json");
        let artifact = artifact.tar("10000.tar", patch(10000)).tar("10001.tar", patch(10001));
        Self::of(artifact.layer(Some("README.md"), "text/markdown", "# read me\n"))
    }

    fn call(&self, options: &[&str], rest: &[&str]) -> Finished {
        let arguments = [&["prefetch"], options, &[self.reference.as_str()], rest].concat();
        EoMount::bare(PROGRAM).home(&self.home).args(arguments).output()
    }

    /// The summary of a call that works, without a word besides.
    #[track_caller]
    fn fetch(&self, rest: &[&str]) -> Value {
        let said = self.call(&["--json"], rest).expect_success("prefetch");
        assert_eq!(said.stderr, "");
        serde_json::from_str(&said.text()).unwrap()
    }

    fn mount(&self) -> Mounted {
        EoMount::new(PROGRAM, &self.reference).home(&self.home).mount()
    }

    /// Reads the files in a new mount whose registry goes away.
    #[track_caller]
    fn read_without_the_registry(&self, files: &[&str]) {
        let mounted = self.mount();
        self.registry.go_down();
        for file in files {
            let bytes = fs::read(mounted.join(file)).unwrap();
            assert!(!bytes.is_empty(), "{file}");
        }
        mounted.unmount();
        self.registry.come_up();
    }
}

fn number(summary: &Value, key: &str) -> u64 {
    summary[key].as_u64().unwrap_or_else(|| panic!("{key}: {summary}"))
}

#[test]
fn files_folders_layers_and_globs_are_read_without_the_registry_afterwards() {
    let dataset = Dataset::patches();
    let one = dataset.fetch(&["10000/DATA_S2/S2_10000.npy", "README.md"]);
    assert_eq!((number(&one, "files"), number(&one, "layers")), (1, 2));
    let fetched = number(&one, "fetched");
    assert!((5 * MIB..5 * MIB + 2 * SLACK).contains(&fetched), "{one}");
    dataset.read_without_the_registry(&["10000/DATA_S2/S2_10000.npy", "README.md"]);

    let glob = dataset.fetch(&["*/DATA_S1/*.npy"]);
    assert_eq!((number(&glob, "files"), number(&glob, "layers")), (2, 2));
    assert!(number(&glob, "fetched") <= 6 * MIB + 2 * SLACK, "{glob}");
    dataset.read_without_the_registry(&["10000/DATA_S1/S1_10000.npy", "10001/DATA_S1/S1_10001.npy"]);

    let folder = dataset.fetch(&["/10001/DATA_S2/"]);
    assert_eq!(number(&folder, "files"), 1);
    let layer = dataset.fetch(&[&dataset.digests[1]]);
    assert!(number(&layer, "fetched") <= SLACK, "{layer}");
    dataset.read_without_the_registry(&["10001/DATA_S2/S2_10001.npy", "10001/METADATA.json"]);

    let all = dataset.fetch(&["--all"]);
    assert_eq!(number(&all, "wanted"), dataset.sizes.iter().sum::<u64>());
    let again = dataset.fetch(&["**"]);
    assert_eq!((number(&again, "fetched"), number(&again, "cached")), (0, number(&all, "wanted")));
}

#[test]
fn no_byte_is_fetched_twice_by_several_calls() {
    let dataset = Dataset::patches();
    for paths in [&["10000/DATA_S2"][..], &["*/*/*"], &["10000", "10001"], &["--all"]] {
        dataset.fetch(paths);
    }
    let blobs: u64 = dataset.sizes.iter().sum();
    // Headers are read beside the chunks.
    assert!(dataset.registry.blob_bytes() <= blobs + (256 << 10), "{} of {blobs}", dataset.registry.blob_bytes());
}

#[test]
fn what_fails_is_named_and_the_rest_fetched_and_the_next_call_fetches_only_that() {
    let dataset = Dataset::patches();
    let broken = Matcher::blob(&dataset.digests[0]).touching(6 * MIB..6 * MIB + 1);
    dataset.registry.fault(broken, Fault::status(404), ALWAYS);
    let said = dataset.call(&["--json"], &["*/DATA_S?/*"]);
    assert_eq!(said.code, 1);
    let summary: Value = serde_json::from_str(&said.text()).unwrap();
    assert_eq!(summary["failed"].as_array().unwrap().len(), 1, "{summary}");
    assert_eq!(summary["failed"][0]["path"], "10000/DATA_S2/S2_10000.npy");
    assert!(number(&summary, "fetched") > 14 * MIB, "{summary}");
    let lines: Vec<&str> = said.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{}", said.stderr);
    assert!(lines[0].starts_with("eo-mount: 10000/DATA_S2/S2_10000.npy: "), "{}", said.stderr);
    assert!(lines[1].contains("1 files or layers could not be fetched"), "{}", said.stderr);

    dataset.registry.clear_faults();
    let again = dataset.fetch(&["*/DATA_S?/*"]);
    assert!((1..=MIB).contains(&number(&again, "fetched")), "{again}");

    dataset.registry.fault(Matcher::blob(&dataset.digests[1]), Fault::status(404), ALWAYS);
    let said = dataset.call(&[], &["--cache-dir", dataset.home.tmp().join("other").to_str().unwrap(), "--all"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("eo-mount: 10001: "), "{}", said.stderr);
    assert!(said.text().starts_with("3 layers: "), "{}", said.text());
}

#[test]
fn what_has_another_digest_is_named() {
    let dataset = Dataset::patches();
    let wrong = Matcher::blob(&dataset.digests[0]).touching(6 * MIB..6 * MIB + 1);
    dataset.registry.fault(wrong, Fault::WrongBytes, ALWAYS);
    let said = dataset.call(&[], &["--all"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    let named = |line: &str| line.starts_with("eo-mount: 10000: ") && line.contains("has another digest");
    assert!(said.stderr.lines().any(named), "{}", said.stderr);
    dataset.registry.clear_faults();
    let again = dataset.fetch(&["--all"]);
    assert!(number(&again, "fetched") >= dataset.sizes[0], "{again}");
}

#[test]
fn a_call_that_was_killed_is_gone_on_with() {
    let dataset = Dataset::patches();
    // All but one piece comes.
    dataset.registry.fault(Matcher::blob(&dataset.digests[1]).touching(4 * MIB..4 * MIB + 1), Fault::Stall, 1);
    let mut command = Command::new(PROGRAM);
    command.args(["prefetch", &dataset.reference, "--all"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("XDG_CACHE_HOME", dataset.home.cache());
    let mut child = command.spawn().unwrap();
    let blobs: u64 = dataset.sizes.iter().sum();
    let cached = || {
        let said = EoMount::bare(PROGRAM).home(&dataset.home).args(["cache", "ls", "--json"]).output().text();
        said.lines().map(|line| number(&serde_json::from_str(line).unwrap(), "cached_bytes")).sum::<u64>()
    };
    let came = eo_mount_testing::wait::wait_until(Duration::from_secs(60), || cached() >= blobs - 2 * MIB);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(came);
    dataset.registry.clear_faults();
    let rest = dataset.fetch(&["--all"]);
    assert!((1..=2 * MIB).contains(&number(&rest, "fetched")), "{rest}");
}

/// Bytes of disk below a folder.
fn allocated(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of_one = |path: PathBuf| match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => allocated(&path),
        Ok(metadata) => std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        Err(_) => 0,
    };
    entries.map(|entry| of_one(entry.path())).sum()
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_fetched() {
    let tar = PythonTar::new().file("large", 1.5, Vec::new(), 1, 60 * MIB).finish().to_bytes();
    let dataset = Dataset::of(Artifact::new().tar("a.tar", tar));
    for paths in [&["--all"][..], &["a/large"], &["**/large"]] {
        dataset.registry.reset();
        let said = dataset.call(&["--cache-size", "64MiB"], paths);
        assert_eq!((said.code, said.stderr.lines().count()), (1, 1), "{}", said.stderr);
        assert!(said.stderr.contains("--cache-size") && said.stderr.contains("are wanted"), "{}", said.stderr);
        assert!(dataset.registry.blob_bytes() < MIB, "{}", dataset.registry.blob_bytes());
    }
}

#[test]
fn what_is_fetched_drives_out_what_is_older_and_not_itself() {
    let tar = |seed, size| PythonTar::new().file("x", 1.5, Vec::new(), seed, size * MIB).finish().to_bytes();
    let dataset = Dataset::of(Artifact::new().tar("old.tar", tar(1, 34)).tar("new.tar", tar(2, 36)));
    let call = |path: &str| {
        let said = dataset.call(&["--json", "--cache-size", "64MiB"], &[path]).expect_success("prefetch");
        serde_json::from_str::<Value>(&said.text()).unwrap()
    };
    call("old");
    let map = dataset.home.cache().join("eo-mount/blobs").join(format!("{}.map", dataset.digests[0].replace(':', "/")));
    // What was used in the last seconds counts as being read. Times of use stand behind the header, one for each 4 MiB.
    let map = fs::File::options().write(true).open(map).unwrap();
    map.write_all_at(&[0, 0, 0, 1].repeat(9), 64).unwrap();
    let new = call("new");
    assert_eq!(number(&new, "fetched"), dataset.sizes[1]);
    assert!(allocated(&dataset.home.cache()) <= 64 * MIB);
    let again = call("new");
    assert_eq!((number(&again, "fetched"), number(&again, "cached")), (0, dataset.sizes[1]));
}

#[test]
fn a_mountpoint_stands_for_exactly_what_is_mounted_there() {
    let dataset = Dataset::patches();
    let mounted = dataset.mount();
    // The tag moves on.
    Artifact::new().tar("other.tar", patch(3)).push(&dataset.registry, "pastis", "sample");
    let said = EoMount::bare(PROGRAM).home(&dataset.home).args(["prefetch", "--json"]).arg(mounted.path());
    let said = said.arg("10000").output().expect_success("prefetch");
    let summary: Value = serde_json::from_str(&said.text()).unwrap();
    assert_eq!(number(&summary, "wanted"), dataset.sizes[0]);
    // The mount reads what was fetched.
    dataset.registry.reset();
    assert_eq!(fs::read(mounted.join("10000/DATA_S2/S2_10000.npy")).unwrap().len() as u64, 5 * MIB + 77);
    assert!(dataset.registry.blob_bytes() < MIB);
}

#[test]
fn of_a_compressed_layer_its_blob_is_fetched_and_only_once() {
    let gzip = |bytes: Vec<u8>| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&bytes).unwrap();
        encoder.finish().unwrap()
    };
    let artifact = Artifact::new()
        .layer(Some("a.tar.gz"), "application/vnd.oci.image.layer.v1.tar+gzip", gzip(patch(1)))
        .layer(Some("b.tar.gz"), "application/vnd.oci.image.layer.v1.tar+gzip", gzip(patch(2)));
    let dataset = Dataset::of(artifact);
    let one = dataset.fetch(&["a/DATA_S2/*"]);
    assert_eq!((number(&one, "wanted"), number(&one, "files")), (dataset.sizes[0], 1));
    let all = dataset.fetch(&["--all"]);
    assert_eq!(number(&all, "wanted"), dataset.sizes.iter().sum::<u64>());
    let blobs: u64 = dataset.sizes.iter().sum();
    assert!(dataset.registry.blob_bytes() <= blobs + (256 << 10), "{} of {blobs}", dataset.registry.blob_bytes());
    dataset.registry.reset();
    let mounted = dataset.mount();
    for file in ["a/DATA_S2/S2_1.npy", "b/DATA_S2/S2_2.npy"] {
        assert_eq!(fs::read(mounted.join(file)).unwrap().len() as u64, 5 * MIB + 77);
    }
    assert!(dataset.registry.blob_bytes() <= 128 << 10, "{}", dataset.registry.blob_bytes());
}

#[test]
fn what_cannot_be_done_is_one_plain_line() {
    let dataset = Dataset::patches();
    for (arguments, code, cause) in [
        (&["nowhere"][..], 1, "nowhere: no such file or directory in the dataset"),
        (&["*/nothing*"], 1, "nothing in the dataset matches"),
        (&["10000["], 2, "10000["),
        (&["--all", "--no-disk-cache"], 2, "--no-disk-cache"),
    ] {
        let said = dataset.call(&[], arguments);
        assert_eq!((said.code, said.stderr.lines().count()), (code, 1), "{arguments:?}: {}", said.stderr);
        assert!(said.stderr.contains(cause), "{}", said.stderr);
    }
    assert_eq!(dataset.call(&[], &[]).code, 2);
    assert_eq!(dataset.call(&[], &["--all", "10000"]).code, 2);
    let layout = EoMount::bare(PROGRAM).args(["prefetch", "oci:/nowhere:x", "--all"]).output();
    assert_eq!(layout.code, 2, "{}", layout.stderr);
    assert!(layout.stderr.contains("on this machine already"), "{}", layout.stderr);
}

#[test]
fn a_terminal_sees_how_far_it_is_and_a_file_one_line() {
    let dataset = Dataset::patches();
    let said = dataset.call(&[], &["10000"]).expect_success("prefetch");
    assert_eq!((said.stderr.as_str(), said.text().lines().count()), ("", 1), "{}", said.text());
    assert!(said.text().starts_with("1 layers: 8.4 MB fetched, 0 B were here; "), "{}", said.text());
    let mut script = Command::new("script");
    let line =
        format!("'{PROGRAM}' prefetch --cache-dir '{}' {} 10001", dataset.home.cache().display(), dataset.reference);
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
    dataset.registry.fault(Matcher::blobs().touching(2 * MIB..3 * MIB), Fault::Delay(Duration::from_secs(1)), 4);
    let text = run(&mut script, Duration::from_secs(60)).expect_success("script (apt-get install bsdutils)").text();
    assert!(text.contains(" of 8.40 MB, ") && text.contains(" left"), "{text}");
}
