//! A mount namespace of one's own: file systems that only one test sees, and that are gone with it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::as_user::is_root;
use crate::run::run;

const INSIDE: &str = "EO_MOUNT_TEST_NAMESPACE";

/// Runs `body` in this very test, started again where it may mount what it likes: as root, or as the root of a user
/// namespace. `test` is the name of the test function that calls this and nothing else.
#[track_caller]
pub fn in_own_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut command = Command::new("unshare");
    if !is_root() {
        command.arg("--map-root-user");
    }
    // Processes that are left end with the namespace.
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    command.arg(std::env::current_exe().expect("a running program has a file"));
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let said = run(&mut command, Duration::from_secs(300)).expect_success(test);
    assert!(said.text().contains(" 1 passed"), "no test is called {test}: {}", said.text());
}

/// Mounts for the rest of the namespace: the arguments of mount(8).
#[track_caller]
pub fn mount(arguments: &[&str], at: &Path) {
    run(Command::new("mount").args(arguments).arg(at), Duration::from_secs(30)).expect_success("mount");
}
