//! How long it takes to know what is in an archive.

mod gzip;
mod memory;
mod patches;
pub mod small;
mod stored;
mod tile;
mod unpredictable;

use crate::harness::Bench;

/// In the order of the table.
pub const KEYS: [&str; 12] = [
    "patch",
    "patch-siblings",
    "find",
    "tile-docker-registry",
    "tile-distribution",
    "tile-scripted",
    "unpredictable",
    "small",
    "scanner",
    "stored",
    "gzip",
    "gzip-random",
];

pub fn run(bench: &mut Bench) {
    patches::run(bench);
    patches::run_find(bench);
    tile::run(bench);
    unpredictable::run(bench);
    small::run(bench);
    memory::run(bench);
    stored::run(bench);
    gzip::run(bench);
}
