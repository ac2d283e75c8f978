//! Names that the kernel knows.

use eo_mount_testing::fixtures::tile_tar;
use eo_mount_testing::{Artifact, EoMount, ScriptedRegistry};

use crate::harness::{Bench, Case, Unit};
use crate::index::small;
use crate::report::Figures;
use crate::site::{eo_mount, list, put_virtual, timed};
use crate::storage::layer;

const TILE: &str = "t30uxv";
const MEMBERS: usize = 4248;

pub fn run(bench: &mut Bench) {
    if bench.wants(&["stat"]) {
        run_stat(bench);
    }
    if bench.wants(&["stat-ls"]) {
        run_ls(bench);
    }
}

fn run_stat(bench: &mut Bench) {
    let registry = ScriptedRegistry::start();
    let tar = small::tar();
    let digest = eo_mount_testing::sha256(&tar);
    let descriptor = layer(&digest, tar.len() as u64);
    registry.put_blob(tar);
    Artifact::new().layer_of(Some("small.tar"), descriptor).push(&registry, "small", "full");
    let mounted = EoMount::new(eo_mount(), registry.reference("small:full")).mount();
    let paths: Vec<_> = (0..small::MEMBERS).map(|number| mounted.join("small").join(small::path(number))).collect();
    let stat_all = || {
        let stat = |path| std::fs::metadata(path).unwrap_or_else(|error| panic!("{error}")).len();
        assert!(paths.iter().all(|path| stat(path) == 1024));
    };
    stat_all();
    let case = Case::new(
        "stat",
        "`stat` of what was listed",
        "One thread, 100,000 files in 100 folders by their whole paths; time of one.",
    );
    let one = |seconds: f64| Figures { seconds: seconds / small::MEMBERS as f64, ..Figures::default() };
    let case =
        case.contestant("eo-mount", || one(timed(stat_all)))
            .at_least(300_000.0, Unit::Count, "Calls a second", |of| 1.0 / of.seconds("eo-mount"));
    bench.run(case);
}

fn run_ls(bench: &mut Bench) {
    let registry = ScriptedRegistry::start();
    let descriptor = put_virtual(&registry, TILE, tile_tar(TILE, 10_000..10_531, 1));
    Artifact::new().layer_of(Some("t30uxv.tar"), descriptor).push(&registry, "pastis-t4", "full");
    let mounted = EoMount::new(eo_mount(), registry.reference("pastis-t4:full")).mount();
    let tile = mounted.join(TILE);
    list(&tile, MEMBERS);
    let case = Case::new("stat-ls", "A tile that was listed before", "`ls -lR` of 4,248 members, again.");
    let case = case.contestant("eo-mount", || Figures { seconds: list(&tile, MEMBERS), ..Figures::default() }).at_most(
        0.1,
        Unit::Seconds,
        "Time",
        |of| of.seconds("eo-mount"),
    );
    bench.run(case);
}
