//! 48 patches sent to a registry that has nothing, and again to one that has all.

use std::path::Path;
use std::process::Command;

use eo_mount_testing::RealRegistry;

use super::{TAR, eo_mount_in, measured, oras_in};
use crate::harness::{Bench, Case, Unit};
use crate::read::patches::{Made, PATCHES, scratch};
use crate::report::Figures;
use crate::site::{Line, counted, folder};

const NAME: &str = "pastis:48";
const CONFIG: &str = "config.json:application/vnd.oci.image.config.v1+json";
/// A question for each layer and the config, and the manifest itself.
const QUESTIONS: f64 = (PATCHES + 1 + 1) as f64;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["push-48", "push-again"]) {
        return;
    }
    let patches = Made::new();
    let case = Case::new(
        "push-48",
        "48 patches pushed",
        "48 files of 32.7 MB and `config.json` to an empty registry. Loopback without a relay, docker-registry.",
    );
    let case = case
        .contestant("eo-mount push", || to_empty(eo_mount_in, &patches))
        .contestant("oras push", || to_empty(oras_in, &patches))
        .at_most(1.0, Unit::Times, "Time in that of `oras push`", |of| {
            of.seconds("eo-mount push") / of.seconds("oras push")
        });
    bench.run(case);
    if !bench.wants(&["push-again"]) {
        return;
    }
    let registry = RealRegistry::start_with("docker-registry".as_ref(), &folder());
    let home = scratch();
    push(oras_in(home.path()), &registry.reference(NAME), &patches);
    let link = Line::Fast.to(registry.address());
    let again = |client: fn(&Path) -> Command| {
        let home = scratch();
        let mut cpu = None;
        let figures = counted(&link, || {
            let figures = push(client(home.path()), &link.reference(NAME), &patches);
            cpu = figures.cpu;
            figures.seconds
        });
        // What comes back is headers.
        Figures { cpu, bytes: None, ..figures }
    };
    let case = Case::new(
        "push-again",
        "48 patches pushed to where they are",
        format!("The same call where all of it is there. {}, docker-registry.", Line::Fast.says()),
    );
    let case = case
        .contestant("eo-mount push", || again(eo_mount_in))
        .contestant("oras push", || again(oras_in))
        .at_most(QUESTIONS, Unit::Count, "Requests, one a blob and the manifest's", |of| of.requests("eo-mount push"))
        .at_most(1.0, Unit::Times, "Time in that of `oras push`", |of| {
            of.seconds("eo-mount push") / of.seconds("oras push")
        });
    bench.run(case);
}

/// The registry is new each time.
fn to_empty(client: impl Fn(&Path) -> Command, patches: &Made) -> Figures {
    let registry = RealRegistry::start_with("docker-registry".as_ref(), &folder());
    let home = scratch();
    push(client(home.path()), &registry.reference(NAME), patches)
}

/// The same words for both.
fn push(mut client: Command, reference: &str, patches: &Made) -> Figures {
    let tars = patches.layers.iter().map(|(id, _)| format!("{id}.tar:{TAR}"));
    client.current_dir(&patches.folder).args(["push", "--plain-http", reference, "--config", CONFIG]).args(tars);
    measured(&mut client)
}
