//! How fast datasets go up and down, and what that costs.

mod memory;
mod pack;
mod pull;
mod push;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use eo_mount_testing::processes::peak_resident_bytes;
use eo_mount_testing::tools::oras;

use crate::harness::Bench;
use crate::peers::{patient, straight};
use crate::report::Figures;
use crate::site::{children_cpu_seconds, eo_mount};

/// In the order of the table.
pub const KEYS: [&str; 8] =
    ["push-48", "push-again", "pull-48-l1", "pull-layer-l2", "pull-resume", "pack", "pack-zstd", "memory-10g"];

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(1200);

pub fn run(bench: &mut Bench) {
    push::run(bench);
    pull::run(bench);
    pack::run(bench);
    memory::run(bench);
}

/// eo-mount with nothing but this home.
fn eo_mount_in(home: &Path) -> Command {
    let mut command = straight(eo_mount());
    command.env("HOME", home).env("XDG_CACHE_HOME", home.join("cache"));
    command
}

fn oras_in(home: &Path) -> Command {
    let mut command = straight(oras());
    command.env("HOME", home);
    command
}

/// Time, CPU time and the most memory of a program that must succeed.
fn measured(command: &mut Command) -> Figures {
    let (before, start) = (children_cpu_seconds(), Instant::now());
    let mut child =
        command.stdout(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    let mut memory = None;
    let status = loop {
        if let Some(status) = child.try_wait().expect("one's own child can be waited for") {
            break status;
        }
        memory = peak_resident_bytes(child.id()).or(memory);
        if start.elapsed() > PATIENCE {
            // It may have ended by itself.
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let seconds = start.elapsed().as_secs_f64();
    assert!(status.success(), "{command:?}: {status}");
    Figures { seconds, memory, cpu: Some(children_cpu_seconds() - before), ..Figures::default() }
}

/// Time and CPU time of what a shell does.
fn measured_shell(folder: &Path, line: &str) -> Figures {
    let mut shell = patient("bash");
    shell.args(["-o", "pipefail", "-c", line]).current_dir(folder);
    // The shell's own is no program's.
    Figures { memory: None, ..measured(&mut shell) }
}
