//! What was fetched before: from the cache folder, and from the kernel's pages.

use std::path::Path;
use std::time::Duration;

use eo_mount_testing::tools::python;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{Home, Mounted};

use super::big::Big;
use super::memory_fs::MemoryFs;
use super::patches::cat;
use crate::harness::{Bench, Case, Unit};
use crate::peers::{patient, said};
use crate::report::Figures;
use crate::site::cpu_seconds;

const MEMBER: u64 = 1 << 30;
/// `cat` of all of it, so often that starting `cat` does not count.
const TIMES: usize = 4;
/// Seconds.
const RANDOM: &str = "10";
/// Seconds that a file takes.
type Measure = dyn Fn(&Path) -> f64;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["disk-sequential", "disk-random", "kernel-pages", "kernel-random", "kernel-mmap"]) {
        return;
    }
    assert!(
        eo_mount_testing::as_user::is_root(),
        "only root can drop the kernel's pages: start the disk cases as root"
    );
    let big = Big::place(MEMBER);
    let home = filled(&big);
    let (cached, memory) = (big.cache_file(&home), MemoryFs::mount(MEMBER));
    // A new process each time: it has verified nothing yet, and holds nothing in memory.
    let mount = || big.call(big.registry.address()).home(&home).arg("--offline").mount();
    let sequential = |file: &Path| {
        drop_pages();
        figures(cat(&[file]))
    };
    let case = Case::new(
        "disk-sequential",
        "1 GiB from the cache folder, in order",
        "`cat` in a new process without the kernel's pages (`echo 1 > /proc/sys/vm/drop_caches`) and without the registry.",
    );
    let case = case
        .contestant("eo-mount", || {
            let mounted = mount();
            sequential(&Big::member(&mounted))
        })
        .contestant_but("cache file", "the file in the cache folder itself, likewise", || sequential(&cached))
        .contestant_but("FUSE ceiling", "a file system that answers from memory", || sequential(&memory.file()))
        .at_least(0.7, Unit::Times, "Speed in that of the slower of the two", |of| {
            of.seconds("cache file").max(of.seconds("FUSE ceiling")) / of.seconds("eo-mount")
        });
    bench.run(case);
    let random = |file: &Path| {
        drop_pages();
        figures(1.0 / fio(file, &["--direct=1"]))
    };
    let case = Case::new(
        "disk-random",
        "4 KiB anywhere from the cache folder",
        "`fio`: `O_DIRECT`, 4 jobs for 10 s in 1 GiB, in a new process, without the kernel's pages at the start and without the \
         registry. Time of a read: the reciprocal of what fio gives as IOPS.",
    );
    let case = case
        .contestant("eo-mount", || {
            let mounted = mount();
            random(&Big::member(&mounted))
        })
        .contestant_but("cache file", "the file in the cache folder itself, likewise", || random(&cached))
        .contestant_but("FUSE ceiling", "a file system that answers from memory", || random(&memory.file()))
        .at_least(0.5, Unit::Times, "Reads a second in those of the slower of the two", |of| {
            of.seconds("cache file").max(of.seconds("FUSE ceiling")) / of.seconds("eo-mount")
        });
    bench.run(case);
    if !bench.wants(&["kernel-pages", "kernel-random", "kernel-mmap"]) {
        return;
    }
    let mounted = mount();
    let member = Big::member(&mounted);
    // Once to fetch them.
    cat(&[&member, &cached, &memory.file()]);
    let cases: [(&str, &str, &str, &Measure); 3] = [
        ("kernel-pages", "1 GiB that the kernel holds", "`cat` of a file read before, four times over.", &|file| {
            cat(&[file; TIMES]) / TIMES as f64
        }),
        (
            "kernel-random",
            "4 KiB anywhere of what the kernel holds",
            "`fio`: buffered, 4 jobs for 10 s in 1 GiB that was read before. Time of a read: the reciprocal of what fio gives as IOPS.",
            // It would drop the pages first.
            &|file| 1.0 / fio(file, &["--direct=0", "--invalidate=0"]),
        ),
        (
            "kernel-mmap",
            "1 GiB that the kernel holds, through a memory map",
            "`numpy.memmap(FILE, numpy.uint64).sum()` of a file read before. The start of Python does not count.",
            &numpy_sum,
        ),
    ];
    for (key, title, what, measure) in cases {
        let case = Case::new(key, title, what)
            .contestant("eo-mount", || figures(measure(&member)))
            .contestant_but("cache file", "the file in the cache folder itself", || figures(measure(&cached)))
            .contestant_but("FUSE ceiling", "a file system that answers from memory, and is not asked", || {
                figures(measure(&memory.file()))
            })
            .at_least(0.9, Unit::Times, "Speed in that of the file", |of| {
                of.seconds("cache file") / of.seconds("eo-mount")
            });
        bench.run(case);
    }
}

/// A home in whose cache folder the whole member is, checked against its digest.
fn filled(big: &Big) -> Home {
    let home = Home::new();
    let mounted = big.call(big.registry.address()).home(&home).mount();
    cat(&[Big::member(&mounted)]);
    settle(&mounted);
    mounted.unmount();
    let held = eo_mount_testing::files::bytes_of_files(&home.cache());
    assert!(held >= MEMBER, "the cache folder holds {held} bytes of {MEMBER}: is there room for more?");
    home
}

/// Until what goes on behind a reader's back is done.
fn settle(mounted: &Mounted) {
    let mut before = f64::NAN;
    let idle = wait_until(Duration::from_secs(120), || {
        std::thread::sleep(Duration::from_millis(500));
        let now = cpu_seconds(mounted.pid());
        std::mem::replace(&mut before, now) == now
    });
    assert!(idle, "the process that serves the mount does not come to rest");
}

fn figures(seconds: f64) -> Figures {
    Figures { seconds, ..Figures::default() }
}

/// Clean ones only, hence written first.
fn drop_pages() {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "1").expect("root may drop the kernel's pages");
}

/// Seconds that the sum of all its numbers takes.
fn numpy_sum(file: &Path) -> f64 {
    let script = "import sys, time, numpy\n\
                  start = time.monotonic()\n\
                  numpy.memmap(sys.argv[1], numpy.uint64, 'r').sum()\n\
                  print(time.monotonic() - start)";
    said(patient(python()).args(["-c", script]).arg(file)).trim().parse().expect("the script prints seconds")
}

/// Reads a second.
fn fio(file: &Path, how: &[&str]) -> f64 {
    let mut command = patient("fio");
    command.args(["--name=random", "--readonly", "--allow_file_create=0", "--rw=randread", "--bs=4k"]).args(how);
    command.args(["--ioengine=psync", "--numjobs=4", "--group_reporting", "--time_based", "--output-format=json"]);
    command.arg(format!("--runtime={RANDOM}")).arg(format!("--size={MEMBER}"));
    let said = said(command.arg(format!("--filename={}", file.display())).current_dir(std::env::temp_dir()));
    let json: serde_json::Value = serde_json::from_str(&said).expect("fio prints JSON");
    json["jobs"][0]["read"]["iops"].as_f64().filter(|iops| *iops > 0.0).expect("fio counts its reads")
}
