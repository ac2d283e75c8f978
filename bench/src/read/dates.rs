//! What lazy reading is for: one date of each patch.

use std::cell::Cell;
use std::path::Path;

use eo_mount_testing::tools::{oras, python};

use super::patches::{NAME, Patches, scratch};
use crate::harness::{Bench, Case, Unit};
use crate::peers::{PYTHON, patient, ratarmount, said};
use crate::site::{LINK, blob_url, counted, link, mount, timed};

/// Processes at once, of every contestant.
const AT_ONCE: &str = "8";
/// Of the 43 dates.
const DATE: &str = "20";

/// Prints seconds and a checksum. The start of Python does not count.
const NUMPY: &str = "\
import sys, time, zlib
from multiprocessing import Pool
import numpy
def date(path):
    return zlib.crc32(numpy.ascontiguousarray(numpy.load(path, mmap_mode='r')[int(sys.argv[2])]))
with Pool(int(sys.argv[1])) as pool:
    start = time.monotonic()
    sums = pool.map(date, sys.argv[3:], chunksize=1)
    print(time.monotonic() - start, zlib.crc32(repr(sums).encode()))
";

/// The same with GDAL's file system, which has no driver for arrays of numpy.
const GDAL: &str = "\
import struct, sys, time, zlib
from multiprocessing import Pool
from osgeo import gdal
gdal.UseExceptions()
SIZE = 10 * 128 * 128 * 2
def date(path):
    file = gdal.VSIFOpenL(path, 'rb')
    head = gdal.VSIFReadL(1, 10, file)
    gdal.VSIFSeekL(file, 10 + struct.unpack('<H', head[8:10])[0] + int(sys.argv[2]) * SIZE, 0)
    found = gdal.VSIFReadL(1, SIZE, file)
    assert len(found) == SIZE
    return zlib.crc32(found)
with Pool(int(sys.argv[1])) as pool:
    start = time.monotonic()
    sums = pool.map(date, sys.argv[3:], chunksize=1)
    print(time.monotonic() - start, zlib.crc32(repr(sums).encode()))
";

pub fn run(bench: &mut Bench, patches: &Patches) {
    if !bench.wants(&["dates"]) {
        return;
    }
    let link = link(patches.registry.address());
    let digests: Vec<&str> = patches.layers.iter().map(|(_, digest)| digest.as_str()).collect();
    let urls: Vec<String> = digests.iter().map(|digest| blob_url(&link, "pastis", digest)).collect();
    let ids: Vec<&str> = patches.layers.iter().map(|(id, _)| id.as_str()).collect();
    let sums = Cell::default();
    let case = Case::new(
        "dates",
        "One date of each of 48 patches",
        format!(
            "Sentinel-2, 328 KB of each layer of 32.7 MB, by 8 processes of Python with `numpy.load(mmap_mode=\"r\")`, nothing \
             cached, mounting included. {LINK}, docker-registry."
        ),
    );
    let case = case
        .contestant("eo-mount", || {
            let mut kept = None;
            counted(&link, || {
                let mut files = Vec::new();
                let mounting = timed(|| {
                    let mounted = kept.insert(mount(&link, NAME));
                    files = ids.iter().map(|id| mounted.join(format!("{id}/DATA_S2/S2_{id}.npy"))).collect();
                });
                mounting + dates(python().as_ref(), NUMPY, &files, &sums)
            })
        })
        .contestant_but("oras blob fetch", "of whole layers to disk, 8 at once; nothing read from them yet", || {
            counted(&link, || timed(|| fetch(&link.reference("pastis"), &digests)))
        })
        .contestant_but("GDAL", "`/vsitar/{/vsicurl/…}`, 8 processes of Python", || {
            let files: Vec<String> = ids
                .iter()
                .zip(&urls)
                .map(|(id, url)| format!("/vsitar/{{/vsicurl/{url}}}/DATA_S2/S2_{id}.npy"))
                .collect();
            counted(&link, || dates(PYTHON.as_ref(), GDAL, &files, &sums))
        })
        .slow_contestant("ratarmount", "48 layers mounted over one another, then as with eo-mount", || {
            counted(&link, || {
                ratarmount(&urls, |folder| {
                    let files: Vec<_> = ids.iter().map(|id| folder.join(format!("DATA_S2/S2_{id}.npy"))).collect();
                    dates(python().as_ref(), NUMPY, &files, &sums);
                })
            })
        })
        .at_least(10.0, Unit::Times, "Bytes of `oras blob fetch` in ours", |of| {
            of.bytes("oras blob fetch") / of.bytes("eo-mount")
        })
        .at_least(5.0, Unit::Times, "Time of `oras blob fetch` in ours", |of| {
            of.seconds("oras blob fetch") / of.seconds("eo-mount")
        });
    bench.run(case);
}

/// Seconds; the checksum must be that of all before.
fn dates(python: &Path, script: &str, files: &[impl AsRef<std::ffi::OsStr>], sums: &Cell<Option<u64>>) -> f64 {
    let said = said(patient(python).args(["-c", script, AT_ONCE, DATE]).args(files));
    let mut words = said.split_whitespace();
    let seconds = words.next().and_then(|word| word.parse().ok()).expect("the script prints seconds");
    let sum = words.next().and_then(|word| word.parse().ok()).expect("the script prints a checksum");
    assert!(sums.replace(Some(sum)).is_none_or(|before| before == sum), "another contestant read other bytes");
    seconds
}

fn fetch(repository: &str, digests: &[&str]) {
    let target = scratch();
    let script = "printf '%s\\n' \"$@\" | xargs -P \"$AT_ONCE\" -I DIGEST \
                  \"$ORAS\" blob fetch --plain-http --output \"$HOME/DIGEST\" \"$REPOSITORY@DIGEST\"";
    let mut command = patient("sh");
    command.args(["-c", script, "sh"]).args(digests).env("HOME", target.path());
    said(command.env("AT_ONCE", AT_ONCE).env("ORAS", oras()).env("REPOSITORY", repository));
}
