//! A registry behind a link, the program under test, and what of both is counted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use eo_mount_testing::fixtures::VirtualTar;
use eo_mount_testing::scripted_registry::ScriptedRegistry;
use eo_mount_testing::tools::{project, python};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{Cuts, Descriptor, EoMount, Link, Mounted, Shape, sha256};

use crate::peers;
use crate::report::Figures;

/// The link that all promises are made for; what the table calls it.
pub const LINK: &str = "20 ms and 1 Gbit/s";

/// Answers have all come, and nothing new is asked, when nothing has changed for so long.
const QUIET: Duration = Duration::from_millis(150);

pub fn link(registry: impl AsRef<str>) -> Link {
    Line::Fast.to(registry)
}

/// The links of the read cases.
#[derive(Debug, Clone, Copy)]
pub enum Line {
    /// A plain relay that counts.
    Loopback,
    /// It breaks.
    Breaking,
    /// [`LINK`].
    Fast,
    /// As object stores are: one connection does not fill it.
    Capped,
    /// Long, slow, and it breaks.
    Bad,
}

impl Line {
    pub fn says(self) -> &'static str {
        match self {
            Self::Loopback => "Loopback",
            Self::Breaking => "Loopback, and 1 % of the MiB are cut",
            Self::Fast => LINK,
            Self::Capped => "20 ms and 1 Gbit/s, of which one connection gets 200 Mbit/s",
            Self::Bad => "80 ms and 100 Mbit/s, and of the requests for 1 MiB 0.5 % are cut",
        }
    }

    pub fn to(self, registry: impl AsRef<str>) -> Link {
        let (round_trip, megabits) = match self {
            Self::Loopback => return Link::new(registry, Shape::default()),
            Self::Breaking => {
                let cuts = Some(Cuts { seed: 1, per_mebibyte: 0.01 });
                return Link::new(registry, Shape { cuts, ..Shape::default() });
            }
            Self::Fast | Self::Capped => (20, 1000),
            Self::Bad => (80, 100),
        };
        let shape = Shape {
            round_trip: Duration::from_millis(round_trip),
            bits_per_second: Some(megabits * 1_000_000),
            per_connection: matches!(self, Self::Capped).then_some(200_000_000),
            cuts: matches!(self, Self::Bad).then_some(Cuts { seed: 1, per_mebibyte: 0.005 }),
        };
        Link::new(registry, shape)
    }
}

/// `http://…/v2/<repository>/blobs/<digest>` over the link.
pub fn blob_url(link: &Link, repository: &str, digest: &str) -> String {
    format!("http://{}/v2/{repository}/blobs/{digest}", link.address())
}

/// Where big files are made; `make clean` removes it.
pub fn folder() -> PathBuf {
    let folder = project().join("target/bench");
    std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder
}

/// Built beside this program.
pub fn eo_mount() -> PathBuf {
    let program = std::env::current_exe().expect("this program has a path").with_file_name("eo-mount");
    assert!(program.exists(), "{} is missing: make bench builds it", program.display());
    program
}

/// With an empty cache.
pub fn mount(link: &Link, name: &str) -> Mounted {
    EoMount::new(eo_mount(), link.reference(name)).mount()
}

/// Seconds of `ls -lR`, which must find so many files.
pub fn list(folder: &Path, files: usize) -> f64 {
    timed(|| assert_eq!(peers::list(folder), files, "files in {}", folder.display()))
}

pub fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// What went over the link for work that takes the seconds it returns, and because of it.
pub fn counted(link: &Link, work: impl FnOnce() -> f64) -> Figures {
    let count = || (link.requests(), link.bytes_down());
    let settle = || {
        let mut last = count();
        wait_until(Duration::from_secs(60), || {
            std::thread::sleep(QUIET);
            std::mem::replace(&mut last, count()) == count()
        });
        count()
    };
    let before = settle();
    let seconds = work();
    let after = settle();
    let (requests, bytes) = (Some(after.0 - before.0), Some(after.1 - before.1));
    Figures { seconds, requests, bytes, ..Figures::default() }
}

/// proc(5), `/proc/pid/stat`: fields 14 and 15, in ticks.
pub fn cpu_seconds(pid: u32) -> f64 {
    two_fields(&pid.to_string(), 14)
}

/// Of all children that were waited for, and of theirs: fields 16 and 17.
pub fn children_cpu_seconds() -> f64 {
    two_fields("self", 16)
}

fn two_fields(pid: &str, first: usize) -> f64 {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).expect("a living process");
    let (_, fields) = stat.rsplit_once(") ").expect("the name stands in parentheses");
    // The third comes first.
    let ticks: f64 = fields.split(' ').skip(first - 3).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

/// A blob that exists as a plan only. Its digest is its name's: nobody reads all of it.
pub fn put_virtual(registry: &ScriptedRegistry, name: &str, tar: VirtualTar) -> Descriptor {
    registry.put_sparse_blob(tar.size(), &sha256(name.as_bytes()), move |at, buffer| tar.fill(at, buffer))
}

/// The made-up dataset of `sample/`, made with these arguments unless it is there already.
pub fn sample(name: &str, arguments: &[&str]) -> PathBuf {
    let folder = folder().join(name);
    if !folder.exists() {
        let unfinished = folder.with_extension("part");
        let _ = std::fs::remove_dir_all(&unfinished);
        eprintln!("Making {}", folder.display());
        let script = project().join("sample/make_sample.py");
        peers::said(Command::new(python()).arg(script).args(arguments).arg("--folder").arg(&folder));
    }
    folder
}
