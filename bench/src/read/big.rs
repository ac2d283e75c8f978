//! One large member.

use std::path::PathBuf;

use eo_mount_testing::{Artifact, EoMount, Home, Mounted, RealRegistry};

use super::patches::cat;
use crate::harness::{Bench, Case, Unit};
use crate::peers::{curl, said};
use crate::report::Figures;
use crate::site::{eo_mount, folder};
use crate::storage::{Source, layer, place};

/// 10 GB: the size is a number in base 256 in the header.
const LARGE: u64 = 10_000_000_000;
/// `--memory`, as it is unless set, and what may come on top: bytes.
const MEMORY: f64 = (256_u64 << 20) as f64;
const ON_TOP: f64 = (64_u64 << 20) as f64;
/// Of a reference.
pub const NAME: &str = "big:full";

/// A tar with a single member of zeros in a docker-registry; a hole in its storage, so that it takes no disk there.
pub struct Big {
    pub registry: RealRegistry,
    pub digest: String,
    pub size: u64,
}

impl Big {
    pub fn place(member: u64) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_path("big.bin").expect("a short path");
        header.set_size(member);
        header.set_mode(0o644);
        header.set_cksum();
        let size = 512 + member.next_multiple_of(512) + 1024;
        let file = tempfile::NamedTempFile::new_in(folder()).expect("a temporary file");
        std::fs::write(file.path(), header.as_bytes()).expect("a temporary file can be written");
        file.as_file().set_len(size).expect("a file system with holes");
        // The true one: what was read whole is checked against it.
        let said = said(std::process::Command::new("sha256sum").arg(file.path()));
        let digest = format!("sha256:{}", said.split(' ').next().unwrap_or_default());
        let registry = RealRegistry::start_with("docker-registry".as_ref(), &folder());
        let artifact = Artifact::new().layer_of(Some("big.tar"), layer(&digest, size));
        place(&registry, "big", "full", &artifact, &[(&digest, Source::File(file.path()))]);
        Self { registry, digest, size }
    }

    /// Over any link.
    pub fn call(&self, address: &str) -> EoMount {
        EoMount::new(eo_mount(), format!("{address}/{NAME}"))
    }

    pub fn member(mounted: &Mounted) -> PathBuf {
        mounted.join("big/big.bin")
    }

    /// Where the cache in this home keeps the layer.
    pub fn cache_file(&self, home: &Home) -> PathBuf {
        home.cache().join("eo-mount/blobs").join(self.digest.replace(':', "/"))
    }
}

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["big-member"]) {
        return;
    }
    let big = Big::place(LARGE);
    let url = format!("http://{}/v2/big/blobs/{}", big.registry.address(), big.digest);
    let read = |arguments: &[&str]| {
        // Not through the relay, which costs processor.
        let mounted = big.call(big.registry.address()).args(arguments).mount();
        let seconds = cat(&[Big::member(&mounted)]);
        Figures { seconds, memory: Some(mounted.peak_resident_bytes()), ..Figures::default() }
    };
    let case = Case::new(
        "big-member",
        "A member of 10 GB read once through",
        "`cat` in a new mount with an empty cache of 10 GiB. Loopback without a relay, docker-registry, in whose storage the \
         member is one hole. A row has the most memory of the process that serves the mount.",
    );
    let case = case
        .contestant("eo-mount", || read(&[]))
        .contestant("eo-mount --no-disk-cache", || read(&["--no-disk-cache"]))
        .contestant_but("curl", "downloads the layer", || Figures { seconds: curl(&url), ..Figures::default() })
        .at_least(1.0, Unit::Times, "Speed in that of 1 GB/s or in 0.7 of that of curl, whichever is lower", |of| {
            let goal = (LARGE as f64 / 1e9).max(of.seconds("curl") / 0.7);
            goal / of.seconds("eo-mount")
        })
        .at_most(MEMORY + ON_TOP, Unit::Bytes, "Memory, of `--memory` 256 MiB and 64 MiB more", |of| {
            of.memory("eo-mount")
        });
    bench.run(case);
}
