//! The Python that has numpy and rasterio.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::run::run;
use crate::tools;

/// See [`tools::python`].
#[track_caller]
pub fn python() -> Command {
    Command::new(tools::python())
}

/// What a script prints, without the end of its last line. Its arguments are in `sys.argv[1:]`.
#[track_caller]
pub fn python_says(script: &str, arguments: &[&Path]) -> String {
    let mut command = python();
    command.arg("-c").arg(script).args(arguments);
    run(&mut command, Duration::from_secs(120)).expect_success("a Python script").text().trim_end().to_owned()
}
