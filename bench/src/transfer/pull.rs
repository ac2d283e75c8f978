//! Layers fetched into a folder: many, one over connections that are capped, one after a crash.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use eo_mount_testing::Link;
use eo_mount_testing::wait::wait_until;

use super::{eo_mount_in, measured, oras_in};
use crate::harness::{Bench, Case, Unit};
use crate::read::big::{self, Big};
use crate::read::patches::{self, Patches, scratch};
use crate::report::Figures;
use crate::site::{Line, counted, timed};

const LARGE: u64 = 1_000_000_000;
const MOST_TWICE: f64 = (16_u64 << 20) as f64;
/// A client, and what it needs for an empty home.
pub type Client = fn(&Path) -> Command;
const CLIENTS: [(&str, Client); 2] = [("eo-mount pull", eo_mount_in), ("oras pull", oras_in)];
const IN_THAT_OF_ORAS: &str = "Time in that of `oras pull`";

pub fn run(bench: &mut Bench) {
    if bench.wants(&["pull-48-l1"]) {
        let patches = Patches::place();
        let link = Line::Fast.to(patches.registry.address());
        let case = Case::new(
            "pull-48-l1",
            "48 patches pulled",
            format!("48 layers, 1.57 GB, to a disk. {}, docker-registry.", Line::Fast.says()),
        );
        let case = pulls(case, &link, patches::NAME)
            .at_most(1.0, Unit::Times, IN_THAT_OF_ORAS, |of| of.seconds("eo-mount pull") / of.seconds("oras pull"));
        bench.run(case);
    }
    if !bench.wants(&["pull-layer-l2", "pull-resume"]) {
        return;
    }
    let big = Big::place(LARGE);
    let link = Line::Capped.to(big.registry.address());
    let case = Case::new(
        "pull-layer-l2",
        "A layer of 1 GB pulled",
        format!("To a disk. {}, docker-registry.", Line::Capped.says()),
    );
    let case = pulls(case, &link, big::NAME).at_least(4.0, Unit::Times, "Speed in that of `oras pull`", |of| {
        of.seconds("oras pull") / of.seconds("eo-mount pull")
    });
    bench.run(case);
    let link = Line::Fast.to(big.registry.address());
    let mut case = Case::new(
        "pull-resume",
        "A pull killed in the middle",
        format!(
            "`kill -9` when half of a layer of 1 GB has come over the line, and the same call again. {}, docker-registry. \
             Counted on the link is what was fetched beyond the layer's size, HTTP's headers included.",
            Line::Fast.says()
        ),
    );
    for (name, client) in CLIENTS {
        let (link, size) = (&link, big.size);
        case = case.contestant_but(name, "until the second call has ended", move || {
            let figures = counted(link, || timed(|| crash_and_go_on(client, link, size)));
            Figures { bytes: figures.bytes.map(|bytes| bytes.saturating_sub(size)), ..figures }
        });
    }
    let case = case.at_most(MOST_TWICE, Unit::Bytes, "Fetched twice, of 16 MiB", |of| of.bytes("eo-mount pull"));
    bench.run(case);
}

fn pulls<'a>(mut case: Case<'a>, link: &'a Link, name: &'static str) -> Case<'a> {
    for (contestant, client) in CLIENTS {
        case = case.contestant(contestant, move || {
            let (home, target) = (scratch(), scratch());
            let mut cost = Figures::default();
            let figures = counted(link, || {
                cost = measured(&mut pull(client, home.path(), &link.reference(name), target.path()));
                cost.seconds
            });
            Figures { cpu: cost.cpu, memory: cost.memory, ..figures }
        });
    }
    case
}

fn crash_and_go_on(client: Client, link: &Link, size: u64) {
    let (home, target) = (scratch(), scratch());
    let mut command = pull(client, home.path(), &link.reference(big::NAME), target.path());
    let before = link.bytes_down();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a client can be started");
    let half = wait_until(Duration::from_secs(120), || link.bytes_down() - before >= size / 2);
    child.kill().expect("one's own child can be killed");
    child.wait().expect("one's own child can be waited for");
    assert!(half, "{command:?} has not fetched half of the layer");
    measured(&mut command);
    let found = std::fs::metadata(target.path().join("big.tar")).expect("the layer");
    assert_eq!(found.len(), size);
}

/// The same words for both.
pub fn pull(client: Client, home: &Path, reference: &str, target: &Path) -> Command {
    let mut command = client(home);
    command.args(["pull", "--plain-http", reference, "--output"]).arg(target);
    command
}
