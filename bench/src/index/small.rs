//! An archive of many small members.

use eo_mount_testing::fixtures::{RawTar, noise};
use eo_mount_testing::{Artifact, RealRegistry, sha256};

use crate::harness::{Bench, Case, Unit};
use crate::peers::curl;
use crate::site::{LINK, blob_url, counted, folder, link, list, mount, timed};
use crate::storage::{Source, layer, place};

pub const MEMBERS: usize = 100_000;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["small"]) {
        return;
    }
    let registry = RealRegistry::start_with("docker-registry".as_ref(), &folder());
    let tar = tar();
    let digest = sha256(&tar);
    let artifact = Artifact::new().layer_of(Some("small.tar"), layer(&digest, tar.len() as u64));
    place(&registry, "small", "full", &artifact, &[(&digest, Source::Bytes(&tar))]);
    let link = link(registry.address());
    let url = blob_url(&link, "small", &digest);
    let case = Case::new(
        "small",
        "100,000 members of 1 KB",
        format!("A layer of 153.6 MB, nothing cached. {LINK}, docker-registry."),
    );
    let case = case
        .contestant_but("eo-mount", "`ls -lR`", || {
            let mounted = mount(&link, "small:full");
            counted(&link, || list(&mounted.join("small"), MEMBERS))
        })
        .contestant_but("eo-mount, indexing alone", "`stat` of the last file", || {
            let mounted = mount(&link, "small:full");
            let last = mounted.join("small").join(path(MEMBERS - 1));
            counted(&link, || timed(|| assert_eq!(std::fs::metadata(&last).expect("the last file").len(), 1024)))
        })
        .contestant_but("curl", "downloads the layer", || counted(&link, || curl(&url)))
        .at_most(1.3, Unit::Times, "Time of `ls -lR` in that of the download", |of| {
            of.seconds("eo-mount") / of.seconds("curl")
        })
        .at_most(1.3, Unit::Times, "Time of indexing in that of the download", |of| {
            of.seconds("eo-mount, indexing alone") / of.seconds("curl")
        });
    bench.run(case);
}

pub fn tar() -> Vec<u8> {
    let content = noise(1, 1024);
    (0..MEMBERS).fold(RawTar::new(), |tar, number| tar.file(path(number), &content)).finish()
}

pub fn path(number: usize) -> String {
    format!("{:03}/{number:05}.txt", number / 1000)
}
