//! Runs eo-mount beside its peers, in the same run on the same link: `make bench`.
//!
//! `ONLY="tile patch"`: cases whose name has one of these words. `RUNS="5 soak=1"`: runs of each contestant, and of
//! those of one case. `SECONDS=600`: of the soak. `DOCS=docs`: where the figures go. `KEEP=1`: leaves the big files
//! that it made.

mod harness;
mod index;
mod peers;
mod read;
mod report;
mod site;
mod storage;
mod transfer;

use std::process::ExitCode;

use eo_mount_testing::tools::project;

use crate::harness::{Bench, Runs};
use crate::report::Report;

fn main() -> ExitCode {
    let keys: &'static [&'static str] =
        index::KEYS.iter().chain(&read::KEYS).chain(&transfer::KEYS).copied().collect::<Vec<_>>().leak();
    let setting = match peers::versions() {
        Ok(versions) => machine().into_iter().chain(versions).collect(),
        Err(missing) => {
            missing.iter().for_each(|line| eprintln!("{line}"));
            return ExitCode::FAILURE;
        }
    };
    let only: Vec<String> = variable("ONLY").split_whitespace().map(str::to_owned).collect();
    if let Some(unknown) = only.iter().find(|only| !keys.iter().any(|key| key.contains(only.as_str()))) {
        eprintln!("ONLY={unknown}: there are {}", keys.join(", "));
        return ExitCode::from(2);
    }
    let Some(runs) = Runs::parse(&variable("RUNS")) else {
        eprintln!("RUNS={}: a number, and KEY=number for cases that are to run more or less often", variable("RUNS"));
        return ExitCode::from(2);
    };
    let seconds = match variable("SECONDS").as_str() {
        "" => 600,
        text => text.parse().unwrap_or_else(|_| panic!("SECONDS={text} is no number")),
    };
    // Figures of a trial do not go into the project's page.
    let docs =
        Some(variable("DOCS")).filter(|docs| !docs.is_empty()).map_or_else(|| project().join("docs"), Into::into);
    let mut bench = Bench::new(only, runs, Report::new(docs, setting, keys));
    index::run(&mut bench);
    read::run(&mut bench, seconds);
    transfer::run(&mut bench);
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
