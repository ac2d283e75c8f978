//! A layer that was indexed before, in a new mount.

use std::cell::Cell;

use eo_mount::cache::{FolderTurns, Indexes};
use eo_mount::index::Limits;
use eo_mount::oci::Descriptor;
use eo_mount_testing::fixtures::RawTar;
use eo_mount_testing::{Artifact, EoMount, Home, Link, ScriptedRegistry, Shape};

use crate::harness::{Bench, Case, Unit};
use crate::report::Figures;
use crate::site::{counted, eo_mount, timed};
use crate::storage::layer;

const MEMBERS: usize = 1_000_000;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["stored"]) {
        return;
    }
    let registry = ScriptedRegistry::start();
    let tar = (0..MEMBERS).fold(RawTar::new(), |tar, number| tar.file(path(number), "")).finish();
    let digest = eo_mount_testing::sha256(b"a million members");
    let size = tar.len() as u64;
    registry.put_blob_as(&digest, tar);
    Artifact::new().layer_of(Some("million.tar"), layer(&digest, size)).push(&registry, "million", "full");
    let blob = Descriptor {
        digest: digest.parse().expect("a digest"),
        size,
        media_type: String::new(),
        annotations: Default::default(),
    };
    // Only counts.
    let link = Link::new(registry.address(), Shape::default());
    let (first, loading) = (Cell::default(), Cell::default());
    let look = |home: &Home| {
        let call = EoMount::new(eo_mount(), link.reference("million:full")).args(["--memory", "1GiB"]);
        let mounted = call.home(home).mount();
        let file = mounted.join("million").join(path(MEMBERS / 2));
        let figures = counted(&link, || timed(|| assert!(std::fs::metadata(&file).expect("a file").is_file())));
        mounted.unmount();
        figures
    };
    let case = Case::new(
        "stored",
        "A layer of a million members that was listed before",
        "`stat` of one file in a new mount, without a slow link.",
    );
    let case = case
        .contestant("a new mount", || {
            let home = Home::new();
            first.set(look(&home));
            let folder = home.cache().join("eo-mount");
            let indexes = Indexes::new(&folder, &FolderTurns::new(&folder));
            let limits = Limits { index_bytes: 1 << 30, ..Limits::default() };
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().expect("a runtime");
            let load = || assert!(runtime.block_on(indexes.load(&blob, &limits)).is_some(), "the index is kept");
            loading.set(Figures { seconds: timed(load), ..Figures::default() });
            look(&home)
        })
        .contestant_but("loading alone", "from file to tree", || -> Figures { loading.get() })
        .contestant_but("the first look", "all headers are read, 512 MB", || -> Figures { first.get() })
        .at_most(0.3, Unit::Seconds, "Loading", |of| of.seconds("loading alone"))
        .at_most(0.3, Unit::Seconds, "Time in a new mount", |of| of.seconds("a new mount"))
        .at_most(0.0, Unit::Count, "Requests", |of| of.requests("a new mount"));
    bench.run(case);
}

fn path(number: usize) -> String {
    format!("{:03}/{number:06}.npy", number / 1000)
}
