//! The Python that has numpy and rasterio.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::run::run;

/// The program named in `EO_MOUNT_TEST_PYTHON`, else the one that `make test-tools` makes. Panics if there is neither.
#[track_caller]
pub fn python() -> Command {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/venv/bin/python");
    let program = std::env::var_os("EO_MOUNT_TEST_PYTHON").map_or(made, Into::into);
    assert!(program.exists(), "no Python with numpy and rasterio at {}: make test-tools", program.display());
    Command::new(program)
}

/// What a script prints, without the end of its last line. Its arguments are in `sys.argv[1:]`.
#[track_caller]
pub fn python_says(script: &str, arguments: &[&Path]) -> String {
    let mut command = python();
    command.arg("-c").arg(script).args(arguments);
    run(&mut command, Duration::from_secs(120)).expect_success("a Python script").text().trim_end().to_owned()
}
