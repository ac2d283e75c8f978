//! Where the programs are that no distribution packages, and how one gets them.

use std::path::{Path, PathBuf};

/// The folder of the project: where `Cargo.toml`, `sample/` and `target/` are.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this crate is in tests/support")
}

/// `oras`: the one that `make test-tools` installs, else the one in the path.
pub fn oras() -> PathBuf {
    let own = project().join("target/tools/bin/oras");
    if own.exists() { own } else { PathBuf::from("oras") }
}

/// A program that `make test-tools` builds.
#[track_caller]
pub fn built(name: &str) -> PathBuf {
    let program = project().join("target/tools/bin").join(name);
    assert!(program.exists(), "{}: make test-tools builds it", program.display());
    program
}

/// A Python with numpy and rasterio: what `EO_MOUNT_TEST_PYTHON` names, else the one of `make test-tools`.
#[track_caller]
pub fn python() -> PathBuf {
    let named = std::env::var_os("EO_MOUNT_TEST_PYTHON").map(PathBuf::from);
    let python = named.unwrap_or_else(|| project().join("target/tools/venv/bin/python"));
    assert!(python.exists(), "{}: a Python with numpy and rasterio is needed: make test-tools", python.display());
    python
}
