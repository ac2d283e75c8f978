//! `eo-mount cache`: looking after the cache folder, also while mounts use it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use eo_mount_testing::files::forget_pages;
use eo_mount_testing::fixtures::PythonTar;
use eo_mount_testing::{Artifact, EoMount, Finished, Home, ScriptedRegistry, sha256};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");
const MIB: u64 = 1 << 20;

struct Dataset {
    registry: ScriptedRegistry,
    reference: String,
    /// Of each layer, and its size.
    layers: Vec<(String, u64)>,
    home: Home,
}

impl Dataset {
    fn new() -> Self {
        let registry = ScriptedRegistry::start();
        let tar = |seed| PythonTar::new().file("x", 1.5, Vec::new(), seed, 20 * MIB + 9).finish().to_bytes();
        let artifact = Artifact::new().tar("a.tar", tar(1)).tar("b.tar", tar(2));
        artifact.push(&registry, "pastis", "sample");
        let layers = artifact.layers().into_iter().map(|layer| (layer.digest, layer.size)).collect();
        Self { reference: registry.reference("pastis:sample"), registry, layers, home: Home::new() }
    }

    fn call(&self, arguments: &[&str]) -> Finished {
        EoMount::bare(PROGRAM).home(&self.home).args(arguments).output()
    }

    #[track_caller]
    fn cache(&self, arguments: &[&str]) -> Value {
        let said = self.call(&[&["cache", "--json"], arguments].concat()).expect_success("cache");
        serde_json::from_str(&said.text()).unwrap()
    }

    #[track_caller]
    fn prefetch(&self, paths: &[&str]) -> Value {
        let said = self.call(&[&["prefetch", "--json", &self.reference], paths].concat()).expect_success("prefetch");
        serde_json::from_str(&said.text()).unwrap()
    }

    #[track_caller]
    fn ls(&self) -> Vec<Value> {
        let said = self.call(&["cache", "ls", "--json"]).expect_success("ls").text();
        let mut blobs: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        blobs.sort_by_key(|blob| self.layers.iter().position(|(digest, _)| blob["digest"] == digest.as_str()));
        blobs
    }

    fn folder(&self) -> PathBuf {
        self.home.cache().join("eo-mount")
    }

    fn blob(&self, layer: usize) -> PathBuf {
        self.folder().join("blobs").join(self.layers[layer].0.replace(':', "/"))
    }
}

#[test]
fn ls_and_size_say_what_is_there() {
    let dataset = Dataset::new();
    assert_eq!(dataset.call(&["cache", "ls"]).expect_success("ls").text(), "");
    assert_eq!(dataset.cache(&["size"])["bytes"], 0);
    dataset.prefetch(&["a"]);
    let half = dataset.home.tmp().join("mount");
    fs::create_dir_all(&half).unwrap();
    let mounted = EoMount::new(PROGRAM, &dataset.reference).home(&dataset.home).mount();
    let mut head = vec![0; 1000];
    fs::File::open(mounted.join("b/x")).unwrap().read_exact_at(&mut head, 10 * MIB).unwrap();
    mounted.unmount();
    let blobs = dataset.ls();
    assert_eq!(blobs.len(), 2);
    assert_eq!(
        (&blobs[0]["size"], &blobs[0]["cached_bytes"]),
        (&dataset.layers[0].1.into(), &dataset.layers[0].1.into())
    );
    assert_eq!(blobs[0]["share"], 1.0);
    assert!(blobs[1]["share"].as_f64().unwrap() < 0.2 && blobs[1]["cached_bytes"].as_u64().unwrap() >= 1000);
    assert!(blobs[1]["last_use"].as_str().unwrap().starts_with("20"), "{}", blobs[1]);
    let text = dataset.call(&["cache", "ls"]).text();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains(" 100% 20"), "{text}");
    let size = dataset.cache(&["size"]);
    assert!(size["blobs"].as_u64().unwrap() >= dataset.layers[0].1 && size["others"].as_u64().unwrap() > 0, "{size}");
}

#[test]
fn verify_drops_what_is_wrong_and_only_that_is_fetched_again() {
    let dataset = Dataset::new();
    dataset.prefetch(&["--all"]);
    let fine = dataset.cache(&["verify"]);
    assert_eq!((&fine["blobs"], &fine["damaged_chunks"], &fine["whole_blobs"]), (&2.into(), &0.into(), &2.into()));
    assert!(dataset.ls().iter().all(|blob| blob["verified"] == true));

    let file = fs::File::options().write(true).open(dataset.blob(1)).unwrap();
    file.write_all_at(b"flipped", 7 * MIB).unwrap();
    let said = dataset.call(&["cache", "verify"]);
    assert_eq!((said.code, said.stderr.lines().count()), (1, 1), "{}", said.stderr);
    assert!(said.stderr.contains(&dataset.layers[1].0) && said.stderr.contains("1 damaged"), "{}", said.stderr);
    assert!(said.text().contains("1 damaged; 1 whole blobs"), "{}", said.text());
    assert_eq!((&dataset.ls()[0]["verified"], &dataset.ls()[1]["verified"]), (&true.into(), &false.into()));
    assert_eq!(dataset.prefetch(&["--all"])["fetched"], 64 << 10);
    assert_eq!(dataset.cache(&["verify"])["whole_blobs"], 2);
}

#[test]
fn verify_drops_a_whole_blob_that_is_another() {
    let dataset = Dataset::new();
    dataset.prefetch(&["b"]);
    // Each chunk has its checksum, and all together are another layer.
    let digest = &dataset.layers[0].0;
    for extension in ["", "map"] {
        let file = |layer| dataset.blob(layer).with_extension(extension);
        fs::copy(file(1), file(0)).unwrap();
    }
    let said = dataset.call(&["cache", "verify", "--json"]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("another digest"), "{}", said.stderr);
    let summary: Value = serde_json::from_str(&said.text()).unwrap();
    assert_eq!(summary["wrong"][0], digest.as_str());
    assert_eq!(dataset.ls()[0]["cached_bytes"], 0);
}

#[test]
fn prune_goes_down_to_the_limit() {
    let dataset = Dataset::new();
    dataset.prefetch(&["--all"]);
    assert!(dataset.cache(&["size"])["bytes"].as_u64().unwrap() > 40 * MIB);
    let pruned = dataset.cache(&["prune", "--cache-size", "64MiB"]);
    assert_eq!((&pruned["freed"], &pruned["limit"]), (&0.into(), &(64 * MIB).into()));
    dataset.prefetch(&["--all"]);
    // Below what can be given as a limit nothing need go.
    let tar = PythonTar::new().file("x", 1.5, Vec::new(), 9, 40 * MIB).finish().to_bytes();
    Artifact::new().tar("c.tar", tar).push(&dataset.registry, "other", "x");
    dataset.call(&["prefetch", &dataset.registry.reference("other:x"), "--all"]).expect_success("prefetch");
    let pruned = dataset.cache(&["prune", "--cache-size", "64MiB"]);
    assert!(pruned["freed"].as_u64().unwrap() > 10 * MIB, "{pruned}");
    let size = dataset.cache(&["size"])["bytes"].as_u64().unwrap();
    assert!((50 * MIB..=64 * MIB).contains(&size), "{size}");
}

#[test]
fn clear_takes_what_is_ours_and_leaves_what_is_not() {
    let dataset = Dataset::new();
    dataset.prefetch(&["--all"]);
    let others = ["notes.txt", "blobs/notes.txt", "blobs/sha256/notes", "indexes/notes.txt", "mine/blobs/x"];
    for other in others {
        fs::create_dir_all(dataset.folder().join(other).parent().unwrap()).unwrap();
        fs::write(dataset.folder().join(other), b"mine").unwrap();
    }
    let cleared = dataset.cache(&["clear"]);
    assert!(cleared["freed"].as_u64().unwrap() > 40 * MIB && cleared["in_use"] == 0, "{cleared}");
    for other in others {
        assert_eq!(fs::read(dataset.folder().join(other)).unwrap(), b"mine");
    }
    assert!(!dataset.blob(0).exists() && !dataset.folder().join("indexes/sha256").exists());
    for other in others {
        fs::remove_file(dataset.folder().join(other)).unwrap();
    }
    fs::remove_dir_all(dataset.folder().join("mine")).unwrap();
    dataset.cache(&["clear"]);
    assert_eq!(fs::read_dir(dataset.folder()).unwrap().count(), 0);
}

#[test]
fn a_folder_that_is_no_cache_is_refused() {
    let dataset = Dataset::new();
    let layout = dataset.home.tmp().join("layout");
    Artifact::new().tar("a.tar", vec![0; 10240]).write_layout(&layout, "x");
    let documents = dataset.home.tmp().join("documents");
    fs::create_dir_all(documents.join("blobs/sha256")).unwrap();
    let blob = documents.join("blobs/sha256").join(&sha256(b"x")["sha256:".len()..]);
    for file in [&documents.join("letter.txt"), &blob] {
        fs::write(file, b"mine").unwrap();
    }
    for folder in [&layout, &documents] {
        for verb in ["ls", "size", "prune", "verify", "clear"] {
            let said = dataset.call(&["cache", verb, "--cache-dir", folder.to_str().unwrap()]);
            assert_eq!((said.code, said.stderr.lines().count()), (2, 1), "{verb}: {}", said.stderr);
            assert!(said.stderr.contains("not a cache folder of eo-mount"), "{}", said.stderr);
        }
    }
    assert_eq!(fs::read(&blob).unwrap(), b"mine");
    // Nor is it taken for one by those who would write to it.
    let said = dataset.call(&["prefetch", &dataset.reference, "--all", "--cache-dir", layout.to_str().unwrap()]);
    assert_eq!(said.code, 2, "{}", said.stderr);
    let nowhere = dataset.home.tmp().join("nowhere");
    assert_eq!(dataset.cache(&["clear", "--cache-dir", nowhere.to_str().unwrap()])["freed"], 0);
    assert!(!nowhere.exists());
}

#[test]
fn a_mount_goes_on_reading_while_its_cache_is_cleared() {
    let dataset = Dataset::new();
    let mounted = EoMount::new(PROGRAM, &dataset.reference).home(&dataset.home).arg("--memory").arg("16MiB").mount();
    let expected = fs::read(mounted.join("a/x")).unwrap();
    fs::read(mounted.join("b/x")).unwrap();
    let cleared = dataset.cache(&["clear"]);
    assert_eq!(cleared["in_use"], 2, "{cleared}");
    assert!(cleared["freed"].as_u64().unwrap() > 30 * MIB, "{cleared}");
    forget_pages(mounted.join("a/x"));
    assert!(fs::read(mounted.join("a/x")).unwrap() == expected);
    dataset.cache(&["verify"]);
    mounted.unmount();
    assert_eq!(dataset.cache(&["clear"])["in_use"], 0);
}
