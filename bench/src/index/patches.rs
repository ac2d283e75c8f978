//! Patches of PASTIS-2433: eight members in 32.7 MB.

use std::time::Duration;

use eo_mount_testing::fixtures::patch_tar_plan;
use eo_mount_testing::{Artifact, Link, RealRegistry, ScriptedRegistry, Shape, sha256};

use crate::harness::{Bench, Case, Unit};
use crate::peers::{find, gdal_list, ratarmount_list};
use crate::site::{LINK, blob_url, counted, folder, link, list, mount, put_virtual, timed};
use crate::storage::{Source, layer, place};

const PATCHES: usize = 2433;
const MEMBERS: usize = 8;
/// Patches that GDAL lists of them.
const SAMPLE: usize = 20;
/// So long that the time tells how often somebody waited for the other side.
const LONG: Duration = Duration::from_millis(200);

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["patch", "patch-siblings"]) {
        return;
    }
    let registry = RealRegistry::start_with("docker-registry".as_ref(), &folder());
    let tars: Vec<Vec<u8>> = (10_000..10_004).map(|id| patch_tar_plan(id, 1).to_bytes()).collect();
    let digests: Vec<String> = tars.iter().map(|tar| sha256(tar)).collect();
    let mut artifact = Artifact::new();
    for (id, (tar, digest)) in (10_000..).zip(tars.iter().zip(&digests)) {
        artifact = artifact.layer_of(Some(&format!("{id}.tar")), layer(digest, tar.len() as u64));
    }
    let blobs: Vec<_> = digests.iter().map(String::as_str).zip(tars.iter().map(|tar| Source::Bytes(tar))).collect();
    place(&registry, "pastis", "full", &artifact, &blobs);

    let link = link(registry.address());
    let url = blob_url(&link, "pastis", &digests[0]);
    let case = Case::new(
        "patch",
        "The first look into a patch",
        format!("`ls -lR` of a layer of 32.7 MB with 8 members, nothing cached. {LINK}, docker-registry."),
    );
    let case = case
        .contestant("eo-mount", || {
            let mounted = mount(&link, "pastis:full");
            counted(&link, || list(&mounted.join("10000"), MEMBERS))
        })
        .contestant_but("eo-mount, mounting included", "the others are given the layer's URL", || {
            counted(&link, || {
                let mut mounted = None;
                let mounting = timed(|| mounted = Some(mount(&link, "pastis:full")));
                mounting + list(&mounted.as_ref().expect("it is mounted").join("10000"), MEMBERS)
            })
        })
        .contestant_but("GDAL", "without the start of Python", || {
            counted(&link, || gdal_list(std::slice::from_ref(&url), MEMBERS))
        })
        .contestant_but("ratarmount", "with the start of Python", || counted(&link, || ratarmount_list(&url, MEMBERS)))
        .at_most(1.0, Unit::Times, "Time in that of GDAL", |of| of.seconds("eo-mount") / of.seconds("GDAL"))
        .at_most(10.0, Unit::Count, "Requests", |of| of.requests("eo-mount"))
        .at_most(200e3, Unit::Bytes, "Bytes from the registry", |of| of.bytes("eo-mount"));
    bench.run(case);
    run_siblings(bench, &registry, &digests[0]);
}

/// Not in the order of the tree: that would be a walk, which is run ahead of.
fn run_siblings(bench: &mut Bench, registry: &RealRegistry, digest: &str) {
    let link = Link::new(registry.address(), Shape { round_trip: LONG, ..Shape::default() });
    let url = blob_url(&link, "pastis", digest);
    let looks = |earlier: &[&str], now: &str| {
        let mounted = mount(&link, "pastis:full");
        for patch in earlier {
            list(&mounted.join(patch), MEMBERS);
        }
        counted(&link, || list(&mounted.join(now), MEMBERS))
    };
    let round_trips = |seconds: f64| (seconds / LONG.as_secs_f64()).floor();
    let case = Case::new(
        "patch-siblings",
        "Round trips for a patch, and for the next ones of the same artifact",
        "`ls -lR` of one layer after another, not in the order of the tree. 200 ms and no limit of rate, docker-registry: \
         the time in 200 ms is the number of round trips.",
    );
    let case = case
        .contestant("first patch", || looks(&[], "10000"))
        .contestant("second patch", || looks(&["10000"], "10002"))
        .contestant("third patch", || looks(&["10000", "10002"], "10001"))
        .contestant("GDAL, each", || counted(&link, || gdal_list(std::slice::from_ref(&url), MEMBERS)))
        .at_most(3.0, Unit::Count, "Round trips for the second patch", move |of| {
            round_trips(of.seconds("second patch"))
        })
        .at_most(3.0, Unit::Count, "Round trips for the third patch", move |of| round_trips(of.seconds("third patch")))
        .at_most(10.0, Unit::Count, "Round trips for the first patch", move |of| {
            round_trips(of.seconds("first patch"))
        });
    bench.run(case);
}

/// A walk over the whole dataset.
pub fn run_find(bench: &mut Bench) {
    if !bench.wants(&["find"]) {
        return;
    }
    let registry = ScriptedRegistry::start();
    let mut artifact = Artifact::new();
    let mut digests = Vec::new();
    for id in (10_000..).take(PATCHES) {
        let name = id.to_string();
        let descriptor = put_virtual(&registry, &name, patch_tar_plan(id, 1));
        digests.push(descriptor.digest.clone());
        artifact = artifact.layer_of(Some(&format!("{name}.tar")), descriptor);
    }
    artifact.push(&registry, "pastis", "2433");
    let link = link(registry.address());
    let urls: Vec<String> = digests.iter().take(SAMPLE).map(|digest| blob_url(&link, "pastis", digest)).collect();
    let case = Case::new(
        "find",
        "A walk over 2,433 patches",
        format!(
            "`find -type f` over a mount of 2,433 layers of 32.7 MB, nothing cached. {LINK}, scripted registry: each layer \
             has content and offsets of its own, made when asked for."
        ),
    );
    let case = case
        .contestant("eo-mount", || {
            let mounted = mount(&link, "pastis:2433");
            counted(&link, || {
                timed(|| assert_eq!(find(mounted.path()), PATCHES * MEMBERS + 1, "files, with config.json"))
            })
        })
        .slow_contestant("GDAL", "20 patches, scaled to 2,433", || {
            let figures = counted(&link, || gdal_list(&urls, SAMPLE * MEMBERS));
            let scale = |number: u64| number * PATCHES as u64 / SAMPLE as u64;
            crate::report::Figures {
                seconds: figures.seconds * PATCHES as f64 / SAMPLE as f64,
                requests: figures.requests.map(scale),
                bytes: figures.bytes.map(scale),
                ..figures
            }
        })
        .at_most(60.0, Unit::Seconds, "Time", |of| of.seconds("eo-mount"))
        .at_most(30.0, Unit::Seconds, "Time hoped for", |of| of.seconds("eo-mount"));
    bench.run(case);
}
