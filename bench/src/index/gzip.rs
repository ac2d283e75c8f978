//! A compressed layer: the pass that makes it readable anywhere, and reads after it. On loopback: this is about CPU.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use eo_mount_testing::fixtures::noise;
use eo_mount_testing::{Artifact, Link, Mounted, ScriptedRegistry, Shape};
use rustix::fs::Advice;

use crate::harness::{Bench, Case, Unit};
use crate::peers::{said, zcat};
use crate::report::Figures;
use crate::site::{counted, cpu_seconds, list, mount, sample};

const TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const PATCHES: &str = "8";
const MEMBERS: usize = 64;
/// Ticks of CPU time are 10 ms.
const READS: usize = 1000;
const READ: u64 = 128 << 10;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["gzip", "gzip-random"]) {
        return;
    }
    let packed = packed();
    let registry = ScriptedRegistry::start();
    let bytes = std::fs::read(&packed).unwrap_or_else(|error| panic!("{}: {error}", packed.display()));
    Artifact::new().layer(Some("tile.tar.gz"), TYPE, bytes).push(&registry, "gzip", "full");
    let link = Link::new(registry.address(), Shape::default());
    let case = Case::new(
        "gzip",
        "A compressed layer, the first look",
        "`ls -lR` of a tar+gzip layer of 8 patches, 262 MB unpacked, without a slow link.",
    );
    let case = case
        .contestant("eo-mount", || {
            let mounted = mount(&link, "gzip:full");
            counted(&link, || list(&mounted.join("tile"), MEMBERS))
        })
        .contestant_but("zcat", "from a file to nowhere", || Figures { seconds: zcat(&packed), ..Figures::default() })
        .at_least(0.8, Unit::Times, "Speed in that of zcat", |of| of.seconds("zcat") / of.seconds("eo-mount"));
    bench.run(case);
    if !bench.wants(&["gzip-random"]) {
        return;
    }
    let mounted = mount(&link, "gzip:full");
    list(&mounted.join("tile"), MEMBERS);
    let case = Case::new(
        "gzip-random",
        "A compressed layer, reads anywhere",
        "128 KiB at a random place, after the first look, without a slow link; CPU time of the process that serves it.",
    );
    let case = case.contestant_but("eo-mount", "CPU time of a read", || read_anywhere(&mounted)).at_most(
        10.0,
        Unit::Milliseconds,
        "CPU time of a read",
        |of| 1e3 * of.seconds("eo-mount"),
    );
    bench.run(case);
}

fn packed() -> PathBuf {
    let folder = sample("packed", &["--tile", "t30uxv", "--patches", PATCHES]);
    let tar = folder.join("t30uxv.tar");
    let packed = folder.join("t30uxv.tar.gz");
    if !packed.exists() {
        said(std::process::Command::new("gzip").args(["--keep", "--force"]).arg(tar));
    }
    packed
}

/// Of the largest member of each patch, so that hardly any place comes twice.
fn read_anywhere(mounted: &Mounted) -> Figures {
    let files: Vec<File> = (10_000..10_008)
        .map(|id| mounted.join(format!("tile/t30uxv/{id}/S2_{id}.npy")))
        .map(|path| File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .collect();
    let mut buffer = vec![0; READ as usize];
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
    let words = noise(seed, READS * 8);
    let before = cpu_seconds(mounted.pid());
    for (number, word) in words.as_chunks::<8>().0.iter().enumerate() {
        let file = &files[number % files.len()];
        rustix::fs::fadvise(file, 0, None, Advice::Random).expect("a file can be read in any order");
        let size = file.metadata().expect("an open file").len();
        file.read_exact_at(&mut buffer, u64::from_le_bytes(*word) % (size - READ)).expect("the mount answers");
    }
    let seconds = (cpu_seconds(mounted.pid()) - before) / READS as f64;
    Figures { seconds, ..Figures::default() }
}
