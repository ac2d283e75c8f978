//! A layer of 10 GB, up and down: what it takes of memory.

use std::fs::File;

use eo_mount_testing::RealRegistry;

use super::{TAR, eo_mount_in, measured, oras_in, pull};
use crate::harness::{Bench, Case, Unit};
use crate::read::big::{self, Big};
use crate::read::patches::scratch;
use crate::report::Figures;
use crate::site::folder;

const LARGE: u64 = 10_000_000_000;
const MOST: f64 = (256_u64 << 20) as f64;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["memory-10g"]) {
        return;
    }
    let big = Big::place(LARGE);
    let case = Case::new(
        "memory-10g",
        "A layer of 10 GB pushed and pulled",
        "Zeros from a file that is a hole, to an empty registry and to a disk, the cache bounded to 1 GiB. Loopback without a \
         relay, docker-registry.",
    );
    let case = case
        .contestant("eo-mount push", || push(eo_mount_in))
        .contestant("eo-mount pull", || {
            let (home, target) = (scratch(), scratch());
            let reference = big.registry.reference(big::NAME);
            measured(pull::pull(eo_mount_in, home.path(), &reference, target.path()).args(["--cache-size", "1GiB"]))
        })
        .slow_contestant("oras push", "", || push(oras_in))
        .slow_contestant("oras pull", "", || {
            let (home, target) = (scratch(), scratch());
            measured(&mut pull::pull(oras_in, home.path(), &big.registry.reference(big::NAME), target.path()))
        })
        .at_most(MOST, Unit::Bytes, "Memory of the push, of 256 MiB", |of| of.memory("eo-mount push"))
        .at_most(MOST, Unit::Bytes, "Memory of the pull, of 256 MiB", |of| of.memory("eo-mount pull"));
    bench.run(case);
}

fn push(client: super::pull::Client) -> Figures {
    let registry = RealRegistry::start_with("docker-registry".as_ref(), &folder());
    let (home, source) = (scratch(), scratch());
    let file = File::create(source.path().join("big.bin")).expect("a temporary folder can be written");
    file.set_len(LARGE).expect("a file system with holes");
    let mut command = client(home.path());
    command.current_dir(source.path()).args(["push", "--plain-http", &registry.reference("big:full")]);
    measured(command.arg(format!("big.bin:{TAR}")))
}
