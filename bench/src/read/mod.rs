//! How fast what is in an archive arrives, and what it costs.

pub mod big;
mod dates;
mod disk;
mod kill;
mod latency;
mod memory_fs;
pub mod patches;
mod soak;
mod stat;

use crate::harness::Bench;

/// In the order of the table.
pub const KEYS: [&str; 18] = [
    "patch-cat-l1",
    "patch-cat-l2",
    "patch-cat-l3",
    "patches-copy-l1",
    "patches-copy-l2",
    "dates",
    "big-member",
    "disk-sequential",
    "disk-random",
    "kernel-pages",
    "kernel-random",
    "kernel-mmap",
    "latency",
    "stat",
    "stat-ls",
    "kill",
    "soak",
    "soak-breaking",
];

/// `seconds`: how long the soak takes.
pub fn run(bench: &mut Bench, seconds: u64) {
    patches::run(bench);
    big::run(bench);
    disk::run(bench);
    latency::run(bench);
    stat::run(bench);
    kill::run(bench);
    soak::run(bench, seconds);
}
