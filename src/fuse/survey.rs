//! Whether this system lets us mount, in words.

use std::process::{Command, Stdio};

use super::attach::available;
use crate::error::{Error, ErrorKind, Result};

const FUSE_CONF: &str = "/etc/fuse.conf";
/// Bit of CAP_SYS_ADMIN (capability.h).
const SYS_ADMIN: u32 = 21;

/// What was looked at, and what was found. Blocks.
pub fn survey() -> Vec<(&'static str, Result<String>)> {
    vec![
        ("/dev/fuse", available().map(|()| "can be opened".to_owned())),
        ("mounting", mounting()),
        ("allow_other", allow_other()),
    ]
}

fn mounting() -> Result<String> {
    if may_mount() {
        return Ok("as root".to_owned());
    }
    let missing = |cause: String| {
        Error::new(ErrorKind::Unsupported, "fusermount3", format!("{cause}; without it only root can mount"))
            .hint("apt-get install fuse3; in a container: --device /dev/fuse --cap-add SYS_ADMIN")
    };
    let said = Command::new("fusermount3").arg("--version").stdin(Stdio::null()).output();
    match said.map_err(|error| missing(error.to_string()))? {
        said if said.status.success() => Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned()),
        said => Err(missing(said.status.to_string())),
    }
}

/// proc(5), `/proc/[pid]/status`.
fn may_mount() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    capabilities.is_some_and(|bits| bits >> SYS_ADMIN & 1 == 1)
}

fn allow_other() -> Result<String> {
    let configured = std::fs::read_to_string(FUSE_CONF).unwrap_or_default();
    match may_mount() || configured.lines().any(|line| line.trim() == "user_allow_other") {
        true => Ok("--allow-other may be used".to_owned()),
        false => Err(Error::new(ErrorKind::Denied, FUSE_CONF, "--allow-other may not be used")
            .hint("only if you need it, as root: add the line user_allow_other")),
    }
}
