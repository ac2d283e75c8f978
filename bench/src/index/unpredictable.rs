//! An archive whose sizes nobody can guess.

use bytes::Bytes;
use eo_mount::blob::BlobSource as _;
use eo_mount::index::{Limits, Scanner, Step};
use eo_mount::oci::{Descriptor, Reference};
use eo_mount::registry::{Registry, RegistryOptions};
use eo_mount_testing::fixtures::{PythonTar, VirtualTar, noise};
use eo_mount_testing::{Artifact, ScriptedRegistry};

use crate::harness::{Bench, Case, Unit};
use crate::report::Figures;
use crate::site::{LINK, counted, link, list, mount, put_virtual, timed};

const MEMBERS: usize = 4350;
/// Bytes; sizes are spread evenly below it, half of it in the mean.
const LARGEST: u64 = 8_000_000;
/// Members that the plain walk is timed over.
const WALKED: usize = 500;
/// Bytes of one of its reads.
const READ: u64 = 16 << 10;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["unpredictable"]) {
        return;
    }
    let registry = ScriptedRegistry::start();
    let descriptor = put_virtual(&registry, "unpredictable", tar());
    let blob = Descriptor {
        digest: descriptor.digest.parse().expect("a digest"),
        size: descriptor.size,
        media_type: String::new(),
        annotations: Default::default(),
    };
    Artifact::new().layer_of(Some("all.tar"), descriptor).push(&registry, "random", "full");
    let link = link(registry.address());
    let reference = link.reference("random:full");
    let case = Case::new(
        "unpredictable",
        "An archive that cannot be predicted",
        format!(
            "`ls -lR` of a layer of 17.4 GB with 4,350 members of random sizes, 4 MB in the mean, nothing cached. {LINK}, \
             scripted registry."
        ),
    );
    let case = case
        .contestant("eo-mount", || {
            let mounted = mount(&link, "random:full");
            counted(&link, || list(&mounted.join("all"), MEMBERS))
        })
        .slow_contestant(
            "plain walk",
            "our scanner with reads of 16 KiB one after the other; 500 members, scaled",
            || {
                let figures = counted(&link, || timed(|| walk(&reference, &blob)));
                let scale = |number: u64| number * MEMBERS as u64 / WALKED as u64;
                Figures {
                    seconds: figures.seconds * MEMBERS as f64 / WALKED as f64,
                    requests: figures.requests.map(scale),
                    bytes: figures.bytes.map(scale),
                    ..figures
                }
            },
        )
        .at_least(4.0, Unit::Times, "Faster than the plain walk", |of| {
            of.seconds("plain walk") / of.seconds("eo-mount")
        });
    bench.run(case);
}

fn tar() -> VirtualTar {
    let words = noise(4, MEMBERS * 8);
    let mut tar = PythonTar::new();
    for (number, word) in (0_u64..).zip(words.as_chunks::<8>().0) {
        let size = u64::from_le_bytes(*word) % LARGEST;
        tar = tar.file(&format!("data/{number:05}.bin"), 1.5, Vec::new(), number, size);
    }
    tar.finish()
}

/// Header after header.
fn walk(reference: &str, blob: &Descriptor) {
    // An error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Ok(Reference::Registry(reference)) = reference.parse() else { panic!("{reference} is no reference") };
    let options = RegistryOptions { plain_http: true, connections: 1, ..RegistryOptions::default() };
    let registry = Registry::new(reference, &options).expect("a client can be made");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut scanner = Scanner::new(blob.size, Limits::default());
    let (mut at, mut window) = (0, Bytes::new());
    let mut members = 0;
    while members < WALKED {
        match scanner.step(at, &window).expect("an archive without faults") {
            Step::Need(range) => {
                let end = range.end.max(range.start + READ).min(blob.size);
                at = range.start;
                window = runtime.block_on(registry.read(blob, at..end)).expect("the registry answers");
            }
            Step::Member(_) => members += 1,
            Step::End { .. } => panic!("the archive ends after {members} members"),
        }
    }
}
