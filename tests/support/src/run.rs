//! A command run to its end, or to the end of our patience.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::wait::wait_until;

/// What a command left behind.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The exit code; 128 + the signal's number for a command that was killed, as shells say it.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, as text.
    pub stderr: String,
}

impl Finished {
    /// Exit code 0.
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Panics with everything the command said unless it succeeded.
    #[track_caller]
    pub fn expect_success(self, what: &str) -> Self {
        assert!(
            self.success(),
            "{what} failed with exit code {}\nstdout: {}\nstderr: {}",
            self.code,
            self.text(),
            self.stderr
        );
        self
    }
}

/// Runs the command to its end. Its output goes to files, so that a background process which inherits
/// them does not hold us up. Kills it and panics after `limit`.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    let mut started = Started::new(command);
    match started.wait(limit) {
        Some(finished) => finished,
        None => {
            let said = started.kill();
            panic!("{command:?} did not end within {limit:?} and was killed; stderr: {}", said.stderr)
        }
    }
}

/// Runs a script of bash in a folder, which must succeed.
#[track_caller]
pub fn sh(folder: &Path, script: &str) {
    let mut shell = Command::new("bash");
    shell.args(["-ec", script]).current_dir(folder);
    run(&mut shell, Duration::from_secs(120))
        .expect_success(&format!("{script} (make test-tools installs what it needs)"));
}

/// A running command whose output goes to unnamed files.
pub(crate) struct Started {
    pub child: Child,
    stdout: File,
    stderr: File,
}

impl Started {
    /// With an empty standard input.
    #[track_caller]
    pub fn new(command: &mut Command) -> Self {
        Self::with_input(command.stdin(Stdio::null()))
    }

    /// With the standard input that the command has.
    #[track_caller]
    pub fn with_input(command: &mut Command) -> Self {
        Self::try_new(command).unwrap_or_else(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            match error.kind() {
                // A folder in PATH that is not for us hides that the others do not have it.
                ErrorKind::NotFound | ErrorKind::PermissionDenied => {
                    panic!("{program} is not installed, or not for us ({error}): {}", install_line(&program))
                }
                _ => panic!("{program} cannot be started: {error}"),
            }
        })
    }

    pub fn try_new(command: &mut Command) -> io::Result<Self> {
        let stdout = tempfile::tempfile()?;
        let stderr = tempfile::tempfile()?;
        let child = command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?).spawn()?;
        Ok(Self { child, stdout, stderr })
    }

    pub fn wait(&mut self, limit: Duration) -> Option<Finished> {
        let mut status = None;
        wait_until(limit, || {
            status = self.child.try_wait().expect("one's own child can be waited for");
            status.is_some()
        });
        status.map(|status| self.finished(status))
    }

    pub fn kill(&mut self) -> Finished {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let status = self.child.wait().expect("one's own child can be waited for");
        self.finished(status)
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&content(&self.stderr)).into_owned()
    }

    fn finished(&mut self, status: ExitStatus) -> Finished {
        Finished {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: content(&self.stdout),
            stderr: self.stderr(),
        }
    }
}

/// Reads at offsets: the writer shares the file's position with us.
fn content(file: &File) -> Vec<u8> {
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).expect("a temporary file can be read");
    bytes
}

/// The line to type when a program that the tests need is missing.
fn install_line(program: &str) -> &'static str {
    match program.rsplit('/').next().unwrap_or(program) {
        "oras" => "make test-tools (or go install oras.land/oras/cmd/oras@v1.3.3)",
        "docker-registry" => "apt-get install docker-registry",
        "nginx" => "apt-get install nginx libnginx-mod-http-perl",
        "fusermount3" => "apt-get install fuse3",
        "tar" => "apt-get install tar",
        "python3" => "apt-get install python3",
        "setpriv" => "apt-get install util-linux",
        "gdalinfo" => "apt-get install gdal-bin",
        "getfattr" | "setfattr" => "apt-get install attr",
        "gzip" => "apt-get install gzip",
        "openssl" => "apt-get install openssl",
        "skopeo" => "apt-get install skopeo",
        "zstd" => "apt-get install zstd",
        "file" => "apt-get install file",
        "umount" => "apt-get install mount",
        _ => "look for it in your distribution's packages",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn code_and_output_are_kept() {
        let finished = run(&mut shell("echo out; echo err >&2; exit 3"), Duration::from_secs(30));
        assert_eq!((finished.code, finished.text().as_str(), finished.stderr.as_str()), (3, "out\n", "err\n"));
    }

    #[test]
    fn a_background_process_that_keeps_the_output_open_does_not_hold_us_up() {
        let finished = run(&mut shell("sleep 30 & echo $!"), Duration::from_secs(20));
        let pid = finished.text().trim().parse().expect("a pid");
        crate::processes::kill(pid);
    }

    #[test]
    #[should_panic(expected = "did not end within")]
    fn a_command_that_hangs_is_killed() {
        run(&mut shell("exec sleep 600"), Duration::from_millis(50));
    }

    #[test]
    #[should_panic(expected = "is not installed")]
    fn a_missing_program_is_said() {
        run(&mut Command::new("no-such-program-anywhere"), Duration::from_secs(5));
    }
}
