//! What is fetched twice after a crash.

use std::fs::File;
use std::io::Read as _;

use super::big::Big;
use super::patches::cat;
use crate::harness::{Bench, Case, Unit};
use crate::report::Figures;
use crate::site::{LINK, counted, link, timed};

const MEMBER: u64 = 500_000_000;
const MOST: f64 = (16_u64 << 20) as f64;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["kill"]) {
        return;
    }
    let big = Big::place(MEMBER);
    let link = link(big.registry.address());
    let case = Case::new(
        "kill",
        "Killed in the middle",
        format!(
            "`kill -9` when half of a member of 500 MB has been read in order; a new mount reads it all. {LINK}, docker-registry. \
             Counted on the link is what was fetched beyond the layer's size, HTTP's headers included."
        ),
    );
    let case = case
        .contestant_but("eo-mount", "until the new mount has read all", || {
            let figures = counted(&link, || timed(|| crash_and_go_on(&big, &link.address())));
            let twice = figures.bytes.map(|bytes| bytes.saturating_sub(big.size));
            Figures { bytes: twice, ..figures }
        })
        .at_most(MOST, Unit::Bytes, "Fetched twice, of 16 MiB", |of| of.bytes("eo-mount"));
    bench.run(case);
}

fn crash_and_go_on(big: &Big, address: &str) {
    let mut mounted = big.call(address).mount();
    let mut file = File::open(Big::member(&mounted)).expect("the member");
    let mut buffer = vec![0; 128 << 10];
    let mut left = MEMBER / 2;
    while left > 0 {
        let count = file.read(&mut buffer).expect("the mount answers");
        left = left.saturating_sub(count as u64);
    }
    mounted.kill();
    drop(file);
    let again = big.call(address).in_place_of(&mounted).mount();
    cat(&[Big::member(&again)]);
}
