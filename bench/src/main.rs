//! Runs eo-mount beside its peers, in the same run on the same link: `make bench`.
//!
//! `ONLY="tile patch"`: cases whose name has one of these words. `RUNS=5`: runs of each contestant. `KEEP=1`: leaves the big
//! files that it made.

mod harness;
mod index;
mod peers;
mod report;
mod site;
mod storage;

use std::process::ExitCode;

use eo_mount_testing::tools::project;

use crate::harness::Bench;
use crate::report::Report;

fn main() -> ExitCode {
    let setting = match peers::versions() {
        Ok(versions) => machine().into_iter().chain(versions).collect(),
        Err(missing) => {
            missing.iter().for_each(|line| eprintln!("{line}"));
            return ExitCode::FAILURE;
        }
    };
    let only: Vec<String> = variable("ONLY").split_whitespace().map(str::to_owned).collect();
    if let Some(unknown) = only.iter().find(|only| !index::KEYS.iter().any(|key| key.contains(only.as_str()))) {
        eprintln!("ONLY={unknown}: there are {}", index::KEYS.join(", "));
        return ExitCode::from(2);
    }
    let runs = match variable("RUNS").as_str() {
        "" => 5,
        text => text.parse().unwrap_or_else(|_| panic!("RUNS={text} is no number")),
    };
    let mut bench = Bench::new(only, runs, Report::new(project().join("docs"), setting, &index::KEYS));
    index::run(&mut bench);
    if variable("KEEP").is_empty() {
        // An error says that there is nothing.
        let _ = std::fs::remove_dir_all(site::folder());
    }
    ExitCode::SUCCESS
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn machine() -> [(String, String); 3] {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = memory.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    [
        ("cores", cores.to_string()),
        // Right to what the kernel takes for itself.
        ("memory", format!("{:.0} GiB", kibibytes / f64::from(1 << 20))),
        ("kernel", format!("Linux {kernel}")),
    ]
    .map(|(what, which)| (what.to_owned(), which))
}
