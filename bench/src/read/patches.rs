//! Whole patches of the made-up PASTIS-2433: one read in order, and 48 copied.

use std::path::{Path, PathBuf};
use std::process::Command;

use eo_mount_testing::tools::oras;
use eo_mount_testing::{Artifact, Mounted, RealRegistry};

use super::dates;
use crate::harness::{Bench, Case, Unit};
use crate::peers::{curl, curl_with_retries, patient, said};
use crate::site::{Line, blob_url, counted, folder, list, mount, sample, timed};
use crate::storage::{Source, layer, place};

pub const PATCHES: usize = 48;
/// Of a reference.
pub const NAME: &str = "pastis:48";
const MEMBERS: usize = 8;
/// Contestants: a patch of which nothing is known, and one whose names are.
const FIRST: &str = "eo-mount";
const LISTED: &str = "eo-mount, listed";
/// `oras pull` fetches three layers at once, each over a connection of 200 Mbit/s, on a line that has 1,000.
const WHAT_THE_CAP_GIVES: f64 = 0.6;

/// 48 tars and `config.json`.
pub struct Made {
    /// Title without `.tar`, and digest.
    pub layers: Vec<(String, String)>,
    pub folder: PathBuf,
}

/// As layers in a docker-registry.
pub struct Patches {
    pub registry: RealRegistry,
    pub layers: Vec<(String, String)>,
    folder: PathBuf,
}

pub fn run(bench: &mut Bench) {
    let cat = [("patch-cat-l1", Line::Fast), ("patch-cat-l2", Line::Capped), ("patch-cat-l3", Line::Bad)];
    let copy = [("patches-copy-l1", Line::Fast), ("patches-copy-l2", Line::Capped)];
    let keys: Vec<&str> = cat.iter().chain(&copy).map(|(key, _)| *key).chain(["dates"]).collect();
    if !bench.wants(&keys) {
        return;
    }
    let patches = Patches::place();
    for (key, line) in cat {
        run_cat(bench, &patches, key, line);
    }
    for (key, line) in copy {
        run_copy(bench, &patches, key, line);
    }
    dates::run(bench, &patches);
}

impl Made {
    pub fn new() -> Self {
        // Eight lands under 48 ids: the SPOT image's place differs, and so the digest.
        let folder = sample("patches", &["--patches", &PATCHES.to_string(), "--distinct", "8"]);
        let config = std::fs::read(folder.join("config.json")).expect("the sample's config");
        let config: serde_json::Value = serde_json::from_slice(&config).expect("the sample's JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("the sample's text").to_owned();
        let patches = config["patches"].as_array().expect("the sample's patches");
        let layers: Vec<(String, String)> =
            patches.iter().map(|patch| (text(&patch["patch_id"]), text(&patch["layer_digest"]))).collect();
        assert_eq!(layers.len(), PATCHES, "remove {}: it is of another kind", folder.display());
        Self { layers, folder }
    }
}

impl Patches {
    pub fn place() -> Self {
        let Made { layers, folder } = Made::new();
        let tars: Vec<PathBuf> = layers.iter().map(|(id, _)| folder.join(format!("{id}.tar"))).collect();
        let mut artifact = Artifact::new();
        for ((id, digest), tar) in layers.iter().zip(&tars) {
            let size = tar.metadata().unwrap_or_else(|error| panic!("{}: {error}", tar.display())).len();
            artifact = artifact.layer_of(Some(&format!("{id}.tar")), layer(digest, size));
        }
        let registry = RealRegistry::start_with("docker-registry".as_ref(), &crate::site::folder());
        let digests = layers.iter().map(|(_, digest)| digest.as_str());
        let blobs: Vec<_> = digests.zip(tars.iter().map(|tar| Source::File(tar))).collect();
        let (repository, tag) = NAME.split_once(':').expect("a name with a tag");
        place(&registry, repository, tag, &artifact, &blobs);
        Self { registry, layers, folder }
    }

    /// Members of the first patch, in the archive's order.
    fn members(&self) -> Vec<String> {
        let tar = self.folder.join(format!("{}.tar", self.layers[0].0));
        let members: Vec<String> = said(Command::new("tar").arg("-tf").arg(tar)).lines().map(str::to_owned).collect();
        assert_eq!(members.len(), MEMBERS);
        members
    }
}

fn run_cat(bench: &mut Bench, patches: &Patches, key: &'static str, line: Line) {
    if !bench.wants(&[key]) {
        return;
    }
    let link = line.to(patches.registry.address());
    let (id, digest) = &patches.layers[0];
    let (url, members) = (blob_url(&link, "pastis", digest), patches.members());
    let case = Case::new(
        key,
        "A patch read from end to end",
        format!(
            "`cat` of the 8 members of a layer of 32.7 MB in the archive's order, in a new mount with an empty cache: the first \
             of an artifact, of which nothing is known, and one whose names were listed before (`ls -lR`, which does not \
             count). {}, docker-registry.",
            line.says()
        ),
    );
    let files =
        |mounted: &Mounted| -> Vec<PathBuf> { members.iter().map(|member| mounted.join(id).join(member)).collect() };
    let case = case
        .contestant(FIRST, || {
            let mounted = mount(&link, NAME);
            counted(&link, || cat(&files(&mounted)))
        })
        .contestant_but(LISTED, "its names were listed before", || {
            let mounted = mount(&link, NAME);
            list(&mounted.join(id), MEMBERS);
            counted(&link, || cat(&files(&mounted)))
        })
        .contestant_but("curl", "downloads the layer", || {
            counted(&link, || if matches!(line, Line::Bad) { curl_with_retries(&url) } else { curl(&url) })
        });
    bench.run(match line {
        Line::Capped => case
            .at_least(4.0, Unit::Times, "Speed in that of curl, nothing known", |of| {
                of.seconds("curl") / of.seconds(FIRST)
            })
            .at_least(4.0, Unit::Times, "Speed in that of curl, names listed", |of| {
                of.seconds("curl") / of.seconds(LISTED)
            }),
        Line::Bad | Line::Breaking => case,
        Line::Fast | Line::Loopback => case
            .at_most(1.05, Unit::Times, "Time in that of curl, nothing known", |of| {
                of.seconds(FIRST) / of.seconds("curl")
            })
            .at_most(1.05, Unit::Times, "Time in that of curl, names listed", |of| {
                of.seconds(LISTED) / of.seconds("curl")
            }),
    });
}

fn run_copy(bench: &mut Bench, patches: &Patches, key: &'static str, line: Line) {
    if !bench.wants(&[key]) {
        return;
    }
    let link = line.to(patches.registry.address());
    let limit = if matches!(line, Line::Capped) { WHAT_THE_CAP_GIVES } else { 1.0 };
    let case = Case::new(
        key,
        "48 patches copied",
        format!(
            "`cp -r` of 48 layers, 1.57 GB, to a disk, mounting and an empty cache included. {}, docker-registry.",
            line.says()
        ),
    );
    let case = case
        .contestant("eo-mount", || {
            let target = scratch();
            let mut mounted = None;
            counted(&link, || {
                timed(|| {
                    let mounted = mounted.insert(mount(&link, NAME));
                    said(patient("cp").arg("-r").arg(mounted.join(".")).arg(target.path()));
                })
            })
        })
        .contestant_but("oras pull, tar -x", "keeps the layers as well, as eo-mount does in its cache", || {
            let target = scratch();
            counted(&link, || timed(|| pull(&link.reference(NAME), target.path())))
        })
        .at_most(limit, Unit::Times, "Time in that of `oras pull` and `tar -x`", |of| {
            of.seconds("eo-mount") / of.seconds("oras pull, tar -x")
        });
    bench.run(case);
}

/// Where what is fetched is written; gone when dropped.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(folder()).expect("a temporary directory")
}

/// To nowhere. Seconds.
pub fn cat(files: &[impl AsRef<std::ffi::OsStr>]) -> f64 {
    timed(|| {
        let mut command = patient("cat");
        let status = command.args(files).stdout(std::process::Stdio::null()).status().expect("cat can be started");
        assert!(status.success(), "cat: {status}");
    })
}

fn pull(reference: &str, target: &Path) {
    said(patient(oras()).args(["pull", "--plain-http", reference, "--output"]).arg(target).env("HOME", target));
    let unpack = "for tar in *.tar; do mkdir \"${tar%.tar}\" && tar -xf \"$tar\" -C \"${tar%.tar}\" || exit; done";
    said(patient("sh").args(["-c", unpack]).current_dir(target));
}
