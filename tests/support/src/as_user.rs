//! Commands as an ordinary user, when the tests run as root.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

/// A line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The login name.
    pub name: String,
    /// The user's number.
    pub uid: u32,
    /// The number of the user's own group.
    pub gid: u32,
}

impl User {
    /// `nobody`, who may do nothing in particular.
    pub fn nobody() -> Self {
        Self::named("nobody")
    }

    /// Panics for a user that this machine does not know.
    pub fn named(name: &str) -> Self {
        let table = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
        let user = table.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        });
        let (uid, gid) = user.unwrap_or_else(|| panic!("no user {name} in /etc/passwd"));
        Self { name: name.to_owned(), uid, gid }
    }

    /// The program run as this user without further groups and without privileges if we are root, and as oneself
    /// if not. Programs with the setuid bit, such as `fusermount3`, work as they do for any user. The program and
    /// the working directory must be reachable for the user.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        if !is_root() {
            return Command::new(program);
        }
        // Of util-linux, which is essential on Debian.
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid));
        command.args(["--clear-groups", "--"]).arg(program);
        command
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Lets every user open `/dev/fuse`, which udev does on an ordinary Debian and containers often do not. Does nothing
/// if we are not root.
pub fn open_fuse_to_all() {
    if is_root() {
        std::fs::set_permissions("/dev/fuse", std::fs::Permissions::from_mode(0o666))
            .expect("root can change /dev/fuse: is the fuse module loaded?");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::run::run;

    #[test]
    fn an_ordinary_user_is_not_root_and_has_no_capabilities() {
        let mut command = User::nobody().command("sh");
        command.current_dir("/").args(["-c", "id -u; id -G; grep CapEff /proc/self/status"]);
        let said = run(&mut command, Duration::from_secs(20)).expect_success("sh").text();
        let lines: Vec<&str> = said.lines().collect();
        assert_ne!(lines[0], "0");
        assert!(lines[2].ends_with("\t0000000000000000"), "{said}");
        if is_root() {
            let nobody = User::nobody();
            assert_eq!((lines[0], lines[1]), (nobody.uid.to_string().as_str(), nobody.gid.to_string().as_str()));
        }
    }
}
