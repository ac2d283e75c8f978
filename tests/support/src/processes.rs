//! Processes, by what `/proc` shows of them.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

/// Kills the process outright. Nothing happens if it is gone.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal. Nothing happens if the process is gone.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    let _ = kill_process(pid, signal);
}

/// Neither gone nor a zombie without threads: only then are its files closed, and its mounts dead.
pub fn is_alive(pid: u32) -> bool {
    // Not from the list of its threads, which the kernel breaks off where one ends while it is read.
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    // proc(5): the name stands in parentheses and may hold any character; then the state, field 3, and the number of
    // threads, field 20.
    let Some((_, fields)) = stat.rsplit_once(") ") else {
        return false;
    };
    let fields: Vec<&str> = fields.split(' ').collect();
    let threads: u32 = fields.get(17).and_then(|count| count.parse().ok()).unwrap_or(0);
    !matches!(fields.first(), Some(&"Z" | &"X")) || threads > 1
}

/// The program that the process runs, if we may know.
pub fn program(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// Resident memory in bytes (`VmRSS`), right to some pages a thread; none for a process that is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    status_kibibytes(pid, "VmRSS:")
}

/// The most it ever was (`VmHWM`).
pub fn peak_resident_bytes(pid: u32) -> Option<u64> {
    status_kibibytes(pid, "VmHWM:")
}

fn status_kibibytes(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Living processes, other than this one, with `name=value` in their environment.
pub fn marked(name: &str, value: &str) -> Vec<u32> {
    let variable = format!("{name}={value}");
    living(|pid| holds(&format!("/proc/{pid}/environ"), variable.as_bytes()))
}

/// Living processes, other than this one, with this among their arguments.
pub fn with_argument(argument: &Path) -> Vec<u32> {
    living(|pid| holds(&format!("/proc/{pid}/cmdline"), argument.as_os_str().as_encoded_bytes()))
}

fn living(wanted: impl Fn(u32) -> bool) -> Vec<u32> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| pid != own && wanted(pid) && is_alive(pid)).collect()
}

/// Items in these files end with a NUL each.
fn holds(file: &str, wanted: &[u8]) -> bool {
    let bytes = fs::read(file).unwrap_or_default();
    bytes.split(|&byte| byte == 0).any(|item| item == wanted)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::wait::wait_until;

    #[test]
    fn a_process_is_found_by_its_variable_and_by_its_argument() {
        let value = std::process::id().to_string();
        let mut child = Command::new("sleep").arg("613").env("TEST_PROCESSES", &value).spawn().unwrap();
        let pid = child.id();
        let soon = std::time::Duration::from_secs(10);
        assert!(wait_until(soon, || marked("TEST_PROCESSES", &value) == [pid]));
        assert!(with_argument(Path::new("613")).contains(&pid));
        assert!(resident_bytes(pid).unwrap() > 0 && peak_resident_bytes(pid).unwrap() > 0);
        kill(pid);
        assert!(wait_until(soon, || !is_alive(pid)), "a zombie is not alive");
        child.wait().unwrap();
        assert!(marked("TEST_PROCESSES", &value).is_empty());
    }
}
