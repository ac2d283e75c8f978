//! A folder of patches made into layers.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{eo_mount_in, measured, measured_shell};
use crate::harness::{Bench, Case, Unit};
use crate::peers::said;
use crate::read::patches::{Made, scratch};
use crate::report::Figures;
use crate::site::folder;

const PATCHES: usize = 16;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["pack", "pack-zstd"]) {
        return;
    }
    let source = source();
    // Where `scripts/bench.sh` cleans up.
    let memory = std::env::var_os("IN_MEMORY").unwrap_or_else(|| "/dev/shm".into());
    let memory = || tempfile::tempdir_in(&memory).expect("a file system in memory");
    let case = Case::new(
        "pack",
        "16 patches packed",
        "16 folders of 8 files, 524 MB, which the kernel holds, made into 16 tars and hashed.",
    );
    let case = case
        .contestant_but("eo-mount pack", "into a layout in memory", || pack(&source, memory, "tar"))
        .contestant_but("eo-mount pack to a disk", "with each layer safe on it", || pack(&source, scratch, "tar"))
        .contestant_but("tar, sha256sum", "`tar -c . | sha256sum`, kept nowhere", || {
            measured_shell(&source, "tar -c . | sha256sum >/dev/null")
        })
        .at_least(0.8, Unit::Times, "Speed in that of `tar` and `sha256sum`", |of| {
            of.seconds("tar, sha256sum") / of.seconds("eo-mount pack")
        });
    bench.run(case);
    let case = Case::new(
        "pack-zstd",
        "16 patches packed and compressed",
        "The same folders as tar+zstd in frames that can be read one by one.",
    );
    let case = case
        .contestant_but("eo-mount pack", "into a layout in memory", || pack(&source, memory, "tar+zstd"))
        .contestant_but("tar, zstd -3", "one frame", || {
            let out = memory();
            let target = out.path().join("all.tar.zst");
            let line = format!("tar -c . | zstd -3 -q -o '{}'", target.display());
            let figures = measured_shell(&source, &line);
            Figures { disk: Some(length(&target)), ..figures }
        })
        .at_most(1.05, Unit::Times, "Size in that of `zstd -3`", |of| {
            of.disk("eo-mount pack") / of.disk("tar, zstd -3")
        });
    bench.run(case);
}

/// Patches as files, read once.
fn source() -> PathBuf {
    let (patches, files) = (Made::new(), folder().join("patches-files"));
    let _ = std::fs::remove_dir_all(&files);
    for (id, _) in &patches.layers[..PATCHES] {
        let target = files.join(id);
        std::fs::create_dir_all(&target).unwrap_or_else(|error| panic!("{}: {error}", target.display()));
        let tar = patches.folder.join(format!("{id}.tar"));
        said(Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(target));
    }
    files
}

fn pack(source: &Path, out: impl Fn() -> tempfile::TempDir, format: &str) -> Figures {
    let (home, out) = (scratch(), out());
    let mut command = eo_mount_in(home.path());
    command.arg("pack").arg(source).arg(format!("oci:{}:all", out.path().display()));
    let figures = measured(command.args(["--per-dir", "--format", format]));
    let blobs = out.path().join("blobs/sha256");
    let blobs = std::fs::read_dir(&blobs).unwrap_or_else(|error| panic!("{}: {error}", blobs.display()));
    let sizes = blobs.map(|blob| length(&blob.expect("a folder can be read").path()));
    Figures { disk: Some(sizes.sum()), ..figures }
}

fn length(file: &Path) -> u64 {
    std::fs::metadata(file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).len()
}
