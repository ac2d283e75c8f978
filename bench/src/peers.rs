//! The programs that eo-mount is compared with, called as their users call them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use eo_mount_testing::mount_table::mounts_at;
use eo_mount_testing::tools::{oras, project};
use eo_mount_testing::wait::wait_until;

use crate::report::Setting;
use crate::site::timed;

/// Debian's, which GDAL's module is for.
pub const PYTHON: &str = "/usr/bin/python3";
/// No peer takes longer for anything here, in seconds.
const PATIENCE: &str = "1200";

/// Prints seconds and files. The start of Python does not count.
const GDAL_LIST: &str = "\
import sys, time
from osgeo import gdal
gdal.UseExceptions()
start, files = time.monotonic(), 0
for url in sys.argv[1:]:
    names = gdal.ReadDirRecursive('/vsitar/{/vsicurl/' + url + '}')
    files += sum(not name.endswith('/') for name in names)
print(time.monotonic() - start, files)
";

/// Name, how it is asked for its version, and the line that installs it.
fn all() -> Vec<(&'static str, Command, &'static str)> {
    let command = |program: PathBuf, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments);
        command
    };
    let gdal = "from osgeo import gdal; print(gdal.__version__)";
    vec![
        ("docker-registry", command("docker-registry".into(), &["--version"]), "apt-get install docker-registry"),
        ("distribution 3", command(distribution_3(), &["--version"]), "make bench (builds it with Go)"),
        ("GDAL", command(PYTHON.into(), &["-c", gdal]), "apt-get install python3-gdal"),
        ("ratarmount", command(ratarmount_program(), &["--version"]), "make bench (a Python environment)"),
        ("oras", command(oras(), &["version"]), "make test-tools (builds it with Go)"),
        ("fio", command("fio".into(), &["--version"]), "apt-get install fio"),
        ("ab", command("ab".into(), &["-V"]), "apt-get install apache2-utils"),
        ("curl", command("curl".into(), &["--version"]), "apt-get install curl"),
        ("zcat", command("zcat".into(), &["--version"]), "apt-get install gzip"),
        ("tar", command("tar".into(), &["--version"]), "apt-get install tar"),
        ("sha256sum", command("sha256sum".into(), &["--version"]), "apt-get install coreutils"),
        ("zstd", command("zstd".into(), &["--version"]), "apt-get install zstd"),
        ("fusermount3", command("fusermount3".into(), &["--version"]), "apt-get install fuse3"),
    ]
}

/// Names and versions, or a line for each one that is missing.
pub fn versions() -> Result<Setting, Vec<String>> {
    let (mut versions, mut missing) = (Setting::new(), Vec::new());
    for (name, mut command, install) in all() {
        let said = command.output().ok().filter(|output| output.status.success());
        let version = said.and_then(|output| version_in(&String::from_utf8_lossy(&output.stdout)));
        match version {
            Some(version) => versions.push((name.to_owned(), version)),
            None => missing.push(format!("{name} is missing: {install}")),
        }
    }
    if missing.is_empty() { Ok(versions) } else { Err(missing) }
}

/// The first word that has a digit and a point.
fn version_in(text: &str) -> Option<String> {
    let is_version = |word: &&str| {
        word.contains('.')
            && word.trim_start_matches("fio-").trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit())
    };
    text.split_whitespace().find(is_version).map(|word| word.trim_end_matches(',').to_owned())
}

pub fn distribution_3() -> PathBuf {
    project().join("target/tools/bin/registry")
}

fn ratarmount_program() -> PathBuf {
    project().join("target/tools/bench-venv/bin/ratarmount")
}

/// Lists archives with `/vsitar//vsicurl/`, one after the other. Seconds.
pub fn gdal_list(urls: &[String], files: usize) -> f64 {
    let mut command = patient(PYTHON);
    let said = said(command.args(["-c", GDAL_LIST]).args(urls));
    let mut words = said.split_whitespace();
    let seconds = words.next().and_then(|word| word.parse().ok()).expect("the script prints seconds");
    let found = words.next().and_then(|word| word.parse().ok());
    assert_eq!(found, Some(files), "files that GDAL lists");
    seconds
}

/// Mounts an archive with ratarmount and lists it. Seconds.
pub fn ratarmount_list(url: &str, files: usize) -> f64 {
    let mut found = 0;
    let seconds = ratarmount(&[url.to_owned()], |folder| found = list(folder));
    assert_eq!(found, files, "files in ratarmount's mount");
    seconds
}

/// Mounts archives over one another with ratarmount, their indexes in memory, and does something there. Seconds.
pub fn ratarmount(urls: &[String], work: impl FnOnce(&Path)) -> f64 {
    let home = tempfile::tempdir().expect("a temporary directory");
    let mountpoint = home.path().canonicalize().expect("a directory that was just made").join("mnt");
    std::fs::create_dir(&mountpoint).expect("a temporary directory can be written");
    let start = Instant::now();
    let mut command = patient(ratarmount_program());
    command.args(["--foreground", "--index-file", ":memory:"]).args(urls).arg(&mountpoint).env("HOME", home.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ratarmount can be started");
    let mut ended = false;
    let mounted = wait_until(Duration::from_secs(1200), || {
        ended = child.try_wait().expect("one's own child can be waited for").is_some();
        ended || !mounts_at(&mountpoint).is_empty()
    });
    assert!(mounted && !ended, "ratarmount does not mount {urls:?}");
    work(&mountpoint);
    let seconds = start.elapsed().as_secs_f64();
    said(patient("fusermount3").arg("-u").arg(&mountpoint));
    child.wait().expect("one's own child can be waited for");
    seconds
}

/// Gets the same range again and again over kept connections. Seconds.
pub fn ab(url: &str, bytes: u64, requests: u64, at_once: usize) -> f64 {
    let mut command = patient("ab");
    command.args(["-k", "-q", "-n", &requests.to_string(), "-c", &at_once.to_string()]);
    let said = said(command.arg("-H").arg(format!("Range: bytes=0-{}", bytes - 1)).arg(url));
    let figure = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next().map(str::to_owned)
    };
    assert!(figure("Non-2xx responses:").is_none(), "the registry refuses ab: {said}");
    assert_eq!(figure("Complete requests:"), Some(requests.to_string()), "{said}");
    figure("Time taken for tests:").and_then(|text| text.parse().ok()).expect("ab says how long it took")
}

/// Downloads without keeping, from the start again until it works. Seconds.
pub fn curl_with_retries(url: &str) -> f64 {
    let again = ["--retry", "100", "--retry-all-errors", "--retry-delay", "0"];
    // Not `--output /dev/null`, which it would truncate before it tries again, and cannot.
    let mut command = patient("curl");
    command.args(["--silent", "--fail"]).args(again).arg(url).stdout(Stdio::null());
    timed(|| {
        let status = command.status().expect("curl can be started");
        assert!(status.success(), "curl {url}: {status}");
    })
}

/// Downloads without keeping. Seconds.
pub fn curl(url: &str) -> f64 {
    let said = said(patient("curl").args([
        "--silent",
        "--fail",
        "--output",
        "/dev/null",
        "--write-out",
        "%{time_total}",
        url,
    ]));
    said.trim().parse().expect("curl says how long it took")
}

/// Unpacks without keeping. Seconds.
pub fn zcat(file: &Path) -> f64 {
    let start = Instant::now();
    let status = patient("zcat").arg(file).stdout(Stdio::null()).status().expect("zcat can be started");
    assert!(status.success(), "zcat {}: {status}", file.display());
    start.elapsed().as_secs_f64()
}

/// `ls -lR`; the number of files it finds.
pub fn list(folder: &Path) -> usize {
    said(patient("ls").arg("-lR").arg(folder)).lines().filter(|line| line.starts_with('-')).count()
}

/// Files that `find` finds.
pub fn find(folder: &Path) -> usize {
    said(patient("find").arg(folder).args(["-type", "f"])).lines().count()
}

/// With an end, and straight to the registry.
pub fn patient(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = straight("timeout");
    command.arg(PATIENCE).arg(program);
    command
}

/// Not through a proxy of this machine.
pub fn straight(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command
}

/// Panics with everything the command said if it fails.
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let cases = [
            ("docker-registry github.com/docker/distribution 2.8.2+ds1", "2.8.2+ds1"),
            ("target/registry github.com/distribution/distribution/v3 v3.1.2+unknown", "v3.1.2+unknown"),
            ("This is ApacheBench, Version 2.3 <$Revision: 1923142 $>", "2.3"),
            ("ratarmount 1.3.0\n\nLevel 2", "1.3.0"),
            ("3.6.2\n", "3.6.2"),
            ("Version:        1.3.3+unknown\nGo version:     go1.25.5\n", "1.3.3+unknown"),
            ("fio-3.33\n", "fio-3.33"),
        ];
        for (text, version) in cases {
            assert_eq!(version_in(text).as_deref(), Some(version));
        }
    }
}
