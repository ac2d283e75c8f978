//! A tile of PASTIS-t4: 4,248 members in 17.4 GB.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use eo_mount_testing::fixtures::tile_tar;
use eo_mount_testing::{Artifact, Link, RealRegistry, ScriptedRegistry};

use crate::harness::{Bench, Case, Unit};
use crate::peers::{self, ab, gdal_list, ratarmount_list};
use crate::report::Figures;
use crate::site::{LINK, blob_url, counted, folder, link, list, mount, put_virtual, sample};
use crate::storage::{Source, layer, place};

const TILE: &str = "t30uxv";
const MEMBERS: usize = 4248;
/// Requests at once: what `--connections` is unless set.
const AT_ONCE: usize = 16;
/// Bytes of disk for the tile, and some to spare.
const ROOM: u64 = 19 << 30;

pub fn run(bench: &mut Bench) {
    run_real(bench, "tile-docker-registry", "docker-registry", Path::new("docker-registry"));
    run_real(bench, "tile-distribution", "distribution 3", &peers::distribution_3());
    run_scripted(bench);
}

fn run_real(bench: &mut Bench, key: &'static str, name: &str, program: &Path) {
    if !bench.wants(&[key]) {
        return;
    }
    let (tar, digest) = make();
    let size = tar.metadata().unwrap_or_else(|error| panic!("{}: {error}", tar.display())).len();
    let registry = RealRegistry::start_with(program, &folder());
    let artifact = Artifact::new().layer_of(Some(&format!("{TILE}.tar")), layer(&digest, size));
    place(&registry, "pastis-t4", "full", &artifact, &[(&digest, Source::File(&tar))]);
    let link = link(registry.address());
    let url = blob_url(&link, "pastis-t4", &digest);
    let ours = Cell::default();
    let case = Case::new(key, format!("A tile of 17.4 GB, {name}"), what(name));
    let mut case = contestants(case, &link, &url, &ours);
    if key == "tile-docker-registry" {
        case = case
            .slow_contestant("GDAL", "one run", || counted(&link, || gdal_list(std::slice::from_ref(&url), MEMBERS)))
            .slow_contestant("ratarmount", "one run", || counted(&link, || ratarmount_list(&url, MEMBERS)));
    } else {
        case = case.at_most(3.0, Unit::Seconds, "Time", |of| of.seconds("eo-mount"));
    }
    bench.run(case);
}

fn run_scripted(bench: &mut Bench) {
    if !bench.wants(&["tile-scripted"]) {
        return;
    }
    let registry = ScriptedRegistry::start();
    let descriptor = put_virtual(&registry, TILE, tile_tar(TILE, 10_000..10_531, 1));
    let digest = descriptor.digest.clone();
    let artifact = Artifact::new().layer_of(Some(&format!("{TILE}.tar")), descriptor);
    artifact.push(&registry, "pastis-t4", "full");
    let link = link(registry.address());
    let url = blob_url(&link, "pastis-t4", &digest);
    let ours = Cell::default();
    let case = Case::new(
        "tile-scripted",
        "A tile of 17.4 GB, scripted registry",
        what("scripted registry, which makes the bytes when they are asked for"),
    );
    let case = contestants(case, &link, &url, &ours);
    bench.run(case.at_most(3.0, Unit::Seconds, "Time", |of| of.seconds("eo-mount")));
}

fn what(registry: &str) -> String {
    format!("`ls -lR` of a layer with 4,248 members, nothing cached. {LINK}, {registry}.")
}

/// Ours, and `ab` with as many requests of their mean size as ours took just before.
fn contestants<'a>(case: Case<'a>, link: &'a Link, url: &'a str, ours: &'a Cell<Figures>) -> Case<'a> {
    case.contestant("eo-mount", || {
        let mounted = mount(link, "pastis-t4:full");
        ours.set(counted(link, || list(&mounted.join(TILE), MEMBERS)));
        ours.get()
    })
    .contestant_but("ab -k", "as many ranges of our mean size, 16 at once", || {
        let (requests, bytes) = (ours.get().requests.unwrap_or(1).max(1), ours.get().bytes.unwrap_or(1));
        counted(link, || ab(url, bytes / requests, requests, AT_ONCE))
    })
    .at_most(2200.0, Unit::Count, "Requests", |of| of.requests("eo-mount"))
    .at_most(300e6, Unit::Bytes, "Bytes from the registry", |of| of.bytes("eo-mount"))
    .at_most(1.3, Unit::Times, "Time in that of `ab -k`", |of| of.seconds("eo-mount") / of.seconds("ab -k"))
}

/// The tar and its digest, which was computed while it was written.
fn make() -> (PathBuf, String) {
    let stat = rustix::fs::statvfs(folder()).expect("the folder is there");
    let room = stat.f_bavail * stat.f_frsize;
    let there = folder().join(TILE).exists();
    assert!(
        there || room > ROOM,
        "the tile takes 17.4 GB in {}: free some (or ONLY=tile-scripted)",
        folder().display()
    );
    let made = sample(TILE, &["--tile", TILE]);
    let config = made.join("config.json");
    let text = std::fs::read(&config).unwrap_or_else(|error| panic!("{}: {error}", config.display()));
    let config: serde_json::Value = serde_json::from_slice(&text).expect("the sample's JSON");
    let digest = config["tiles"][0]["layer_digest"].as_str().expect("the tile's digest");
    (made.join(format!("{TILE}.tar")), digest.to_owned())
}
