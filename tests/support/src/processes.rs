//! Processes, by what `/proc` shows of them.

use rustix::process::{Pid, Signal, kill_process};

/// Kills the process outright. Nothing happens if it is gone.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal. Nothing happens if the process is gone.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a process id");
    let _ = kill_process(pid, signal);
}
