//! What a scientist does: push with oras, mount, and read with the programs at hand.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::files::{errno, names_in, strays_in_cache};
use eo_mount_testing::fixtures::{PythonTar, Sample, TarFormat, everything_tar, gnu_tar, noise};
use eo_mount_testing::scripted_registry::{CONFIG_TYPE, TAR_TYPE};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{Artifact, EoMount, Extracted, Home, Mounted, RealRegistry, User, run, sha256, tools};
use serde_json::json;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);

fn eo_mount(reference: &str) -> EoMount {
    EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference)
}

// The sample, pushed and mounted as its users do.

/// Unmounted before its registry ends.
struct Pushed {
    mounted: Mounted,
    sample: Sample,
    files: TempDir,
    registry: RealRegistry,
}

impl Pushed {
    /// With exactly the command that the dataset's publisher uses.
    #[track_caller]
    fn sample() -> Self {
        let (registry, files) = (RealRegistry::start(), folder());
        let sample = Sample::files_in(files.path());
        let reference = registry.on_localhost("pastis-2433:sample");
        push(&registry, files.path(), &reference, &sample.push_arguments(""));
        Self { mounted: eo_mount(&reference).mount(), sample, files, registry }
    }

    /// A patch as the mount shows it, and as `tar -x` makes it.
    fn patch(&self, number: usize) -> (PathBuf, Extracted) {
        let (tar, name) = self.sample.patches().nth(number).expect("a patch");
        (self.mounted.join(name), Extracted::of(&tar))
    }
}

#[track_caller]
fn push(registry: &RealRegistry, directory: &Path, reference: &str, arguments: &[String]) {
    let arguments: Vec<&str> = ["push", reference].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    registry.oras(directory, &arguments);
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// What a command prints in a directory.
#[track_caller]
fn said(directory: &Path, program: impl AsRef<OsStr>, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).env("LC_ALL", "C.UTF-8");
    let shown = format!("{command:?}");
    run(&mut command, PATIENCE).expect_success(&shown).text()
}

#[test]
fn the_sample_pushed_by_oras_is_what_tar_extracts() {
    let pushed = Pushed::sample();
    assert_eq!(names_in(pushed.mounted.path()), ["10000", "10001", "10002", "config.json"]);
    for (tar, name) in pushed.sample.patches() {
        // Eight members and the seven folders that they stand in.
        assert_eq!(Extracted::of(&tar).assert_shown_in(&pushed.mounted.join(name)), 15);
    }
    let config = fs::read(pushed.mounted.join("config.json")).unwrap();
    assert!(config == fs::read(pushed.files.path().join("config.json")).unwrap());
    let npy = pushed.mounted.join("10001/DATA_S2/S2_10001.npy");
    let stat = fs::metadata(npy).unwrap();
    assert!(stat.mode() & 0o7777 == 0o444 && stat.mtime_nsec() > 0, "{stat:?}");
    assert_eq!(pushed.mounted.log(), "");
    pushed.mounted.unmount();
}

#[test]
fn directories_that_all_titles_share_are_dropped() {
    let (registry, above) = (RealRegistry::start(), folder());
    let sample = Sample::files_in(&above.path().join("sample"));
    let reference = registry.on_localhost("pastis-2433:sample");
    push(&registry, above.path(), &reference, &sample.push_arguments("sample/"));
    let mounted = eo_mount(&reference).mount();
    assert_eq!(names_in(mounted.path()), ["10000", "10001", "10002", "config.json"]);
    for (tar, name) in sample.patches() {
        Extracted::of(&tar).assert_shown_in(&mounted.join(name));
    }
    let title = xattr(&mounted.join("10002"), "user.oci.annotation.org.opencontainers.image.title");
    assert_eq!(title.as_deref(), Some("sample/10002.tar"));
}

#[test]
fn the_embedded_sample_mounts_without_a_server() {
    let files = folder();
    let sample = Sample::files_in(files.path());
    let mounted = eo_mount(Sample::REFERENCE).current_dir(tools::project()).mount();
    assert_eq!(names_in(mounted.path()), ["10000", "10001", "10002", "config.json"]);
    for (tar, name) in sample.patches() {
        Extracted::of(&tar).assert_shown_in(&mounted.join(name));
    }
    let config = mounted.join("config.json");
    assert!(fs::read(&config).unwrap() == fs::read(files.path().join("config.json")).unwrap());
    // What no archive tells of has the time that the manifest was made at.
    for path in [&config, &mounted.join("10000"), mounted.path()] {
        assert_eq!(fs::metadata(path).unwrap().mtime(), 1_704_067_200, "{}", path.display());
    }
}

// The programs at hand.

#[test]
fn gdalinfo_says_of_the_image_what_it_says_of_the_extracted_one() {
    let pushed = Pushed::sample();
    for number in 0..3 {
        let (shown, extracted) = pushed.patch(number);
        let image = image_in(&shown);
        let info = |directory: &Path| said(directory, "gdalinfo", &["-checksum", "-hist", &image]);
        let expected = info(extracted.path());
        assert!(expected.contains("ID[\"EPSG\",2154]") && expected.contains("Checksum="), "{expected}");
        assert_eq!(info(&shown), expected);
    }
}

/// Its path in the patch.
fn image_in(patch: &Path) -> String {
    let folder = "DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019";
    format!("{folder}/{}", names_in(&patch.join(folder))[0])
}

#[test]
fn rasterio_windows_and_numpy_memory_maps_give_the_numbers_of_the_extracted_files() {
    const SCRIPT: &str = r#"
import hashlib, pathlib, random
import numpy, rasterio
from rasterio.windows import Window

def show(what, array):
    print(what, array.dtype, array.shape, hashlib.sha256(numpy.ascontiguousarray(array).tobytes()).hexdigest())

chance = random.Random(7)
for path in sorted(pathlib.Path('.').rglob('*.npy')):
    array = numpy.load(path, mmap_mode='r')
    assert isinstance(array, numpy.memmap)
    for _ in range(5):
        at = chance.randrange(array.shape[0])
        show((str(path), at), array[at])
    show((str(path), 'strided'), array[::-3, ..., 1::5])
    print(path, float(array.astype('float64').mean()))
for path in sorted(pathlib.Path('.').rglob('*.tif')):
    with rasterio.open(path) as image:
        print(path, image.crs, tuple(image.transform), image.count, image.shape)
        for _ in range(20):
            wide, high = chance.randrange(1, image.width), chance.randrange(1, image.height)
            window = Window(chance.randrange(image.width - wide), chance.randrange(image.height - high), wide, high)
            show(window, image.read(window=window))
        show('reduced', image.read(out_shape=(3, 32, 32)))
"#;
    let pushed = Pushed::sample();
    let (shown, extracted) = pushed.patch(1);
    let numbers = |directory: &Path| said(directory, tools::python(), &["-c", SCRIPT]);
    let expected = numbers(extracted.path());
    assert_eq!(expected.lines().count(), 7 * 7 + 22, "{expected}");
    assert!(expected.contains("int16") && expected.contains("float16") && expected.contains("EPSG:2154"), "{expected}");
    assert_eq!(numbers(&shown), expected);
}

#[test]
fn find_file_md5sum_and_du_see_what_they_see_of_the_extracted_files() {
    let pushed = Pushed::sample();
    let (shown, extracted) = pushed.patch(2);
    for script in [
        "find . -type f -printf '%P %s %T@ %u %l\\n' | sort",
        "find . -name '*.npy' -size +90k | sort",
        "find . -type d | sort",
        "find . -type f -print0 | sort -z | xargs -0 file",
        "find . -type f -print0 | sort -z | xargs -0 md5sum",
        "grep -rc NUMPY . | sort",
        "du -ab --exclude=. DATA_S2/*",
    ] {
        let output = |directory: &Path| said(directory, "sh", &["-e", "-c", script]);
        let expected = output(extracted.path());
        assert!(!expected.is_empty(), "{script}");
        assert_eq!(output(&shown), expected, "{script}");
    }
}

#[test]
fn cp_and_tar_copy_everything_out_of_a_mount() {
    let pushed = Pushed::sample();
    let mount = pushed.mounted.path().to_str().unwrap();
    let copies = folder();
    said(copies.path(), "cp", &["-r", mount, "copied"]);
    said(
        copies.path(),
        "sh",
        &["-c", "mkdir packed && tar -C \"$0\" --format=posix -c . | tar -x -p -C packed", mount],
    );
    for (tar, name) in pushed.sample.patches() {
        let extracted = Extracted::of(&tar);
        extracted.assert_shown_in(&copies.path().join("packed").join(name));
        let copied = copies.path().join("copied").join(name);
        // Silent if nothing differs.
        assert_eq!(said(extracted.path(), "diff", &["-r", ".", copied.to_str().unwrap()]), "");
    }
    said(copies.path(), "cmp", &["copied/config.json", "packed/config.json"]);
    // So that an ordinary user can remove them.
    said(copies.path(), "chmod", &["-R", "u+w", "."]);
}

#[test]
fn two_processes_map_one_file_into_memory_at_once() {
    const SCRIPT: &str = r#"
import hashlib, mmap, sys
with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
    starts = range(0, len(pages), 4096)
    if sys.argv[2] == 'backwards':
        starts = reversed(starts)
    parts = {start: pages[start:start + 4096] for start in starts}
    print(hashlib.sha256(b''.join(parts[start] for start in sorted(parts))).hexdigest())
"#;
    let pushed = Pushed::sample();
    let (shown, extracted) = pushed.patch(0);
    let (name, content) = extracted.files().into_iter().find(|(name, _)| name.starts_with("DATA_S2")).unwrap();
    let file = shown.join(name);
    let python = tools::python();
    let read = |order| said(&shown, &python, &["-c", SCRIPT, file.to_str().unwrap(), order]);
    let sums = std::thread::scope(|scope| {
        let both = ["forwards", "backwards"].map(|order| scope.spawn(move || read(order)));
        both.map(|thread| thread.join().unwrap())
    });
    let expected = sha256(&content).replace("sha256:", "") + "\n";
    assert_eq!(sums, [expected.clone(), expected]);
}

#[test]
fn thirty_two_readers_at_once_get_the_right_bytes() {
    let pushed = Pushed::sample();
    let files: Vec<(PathBuf, Vec<u8>)> = (0..3)
        .flat_map(|number| {
            let (shown, extracted) = pushed.patch(number);
            extracted.files().into_iter().map(move |(name, content)| (shown.join(name), content))
        })
        .collect();
    assert_eq!(files.len(), 24);
    let files = &files;
    let random = |reader: u64| {
        let bytes = noise(reader, 40 * 16);
        bytes.as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word) as usize).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        for reader in 0..32_u64 {
            scope.spawn(move || {
                // Where to begin, and how long, in another file each time; every fourth reads whole files.
                for numbers in random(reader).chunks(2) {
                    let (path, content) = &files[numbers[0] % files.len()];
                    let start = if reader % 4 == 0 { 0 } else { numbers[1] % content.len() };
                    let end = if reader % 4 == 0 { content.len() } else { content.len().min(start + 70_000) };
                    let mut bytes = vec![0; end - start];
                    File::open(path).unwrap().read_exact_at(&mut bytes, start as u64).unwrap();
                    assert!(bytes == content[start..end], "{} from {start} to {end}", path.display());
                }
            });
        }
    });
}

#[test]
fn programs_that_lock_send_and_run_files_do_so_in_a_mount() {
    // A GeoPackage is an SQLite database; HDF5 takes a lock too.
    const MAKE: &str = r#"
import sqlite3
database = sqlite3.connect('table.gpkg')
database.execute('create table parcels (id integer, area real)')
database.executemany('insert into parcels values (?, ?)', ((n, n / 4) for n in range(20000)))
database.commit()
open('script.sh', 'w').write('#!/bin/sh\necho ran\n')
"#;
    const USE: &str = r#"
import fcntl, mmap, os, shutil, sqlite3, subprocess, sys
print(sqlite3.connect('table.gpkg').execute('select count(*), sum(area) from parcels where id % 3 = 0').fetchone())
content = open('table.gpkg', 'rb').read()
with open('table.gpkg', 'rb') as file:
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
shutil.copyfile('table.gpkg', sys.argv[1])
print(open(sys.argv[1], 'rb').read() == content)
direct, page = os.open('table.gpkg', os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096)
print(os.preadv(direct, [page], 8192), page[:] == content[8192:12288])
print(os.access('table.gpkg', os.R_OK), os.access('table.gpkg', os.W_OK), os.access('script.sh', os.X_OK))
print(subprocess.check_output('./script.sh'))
"#;
    let (tree, layout) = (folder(), folder());
    said(tree.path(), tools::python(), &["-c", MAKE]);
    fs::set_permissions(tree.path().join("script.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    Artifact::new().tar("files.tar", gnu_tar(tree.path(), TarFormat::Gnu)).write_layout(layout.path(), "t");
    let mounted = eo_mount(&format!("oci:{}:t", layout.path().display())).mount();
    let copy = layout.path().join("copy");
    let output = said(&mounted.join("files"), tools::python(), &["-c", USE, copy.to_str().unwrap()]);
    let expected = ["(6667, 16665833.25)", "True", "4096 True", "True False True", "b'ran\\n'"];
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);
}

// Everything that a tar can hold.

/// The archives by the names that they have in the mount.
fn everything() -> BTreeMap<&'static str, Vec<u8>> {
    let formats = [
        ("gnu", TarFormat::Gnu),
        ("posix-0.0", TarFormat::Posix("0.0")),
        ("posix-0.1", TarFormat::Posix("0.1")),
        ("posix-1.0", TarFormat::Posix("1.0")),
    ];
    formats.into_iter().map(|(name, format)| (name, everything_tar(format))).collect()
}

#[test]
fn everything_that_gnu_tar_packs_comes_through_a_registry() {
    let (registry, files) = (RealRegistry::start(), folder());
    let everything = everything();
    let mut arguments = Vec::new();
    for (name, tar) in &everything {
        fs::write(files.path().join(format!("{name}.tar")), tar).unwrap();
        arguments.push(format!("{name}.tar:{TAR_TYPE}"));
    }
    let reference = registry.on_localhost("everything:all");
    push(&registry, files.path(), &reference, &arguments);
    assert_everything(&eo_mount(&reference).mount(), &everything);
}

#[test]
fn everything_that_gnu_tar_packs_comes_through_an_image_layout() {
    let layout = folder();
    let everything = everything();
    let named = |artifact: Artifact, (name, tar): (&&str, &Vec<u8>)| artifact.tar(&format!("{name}.tar"), tar.clone());
    everything.iter().fold(Artifact::new(), named).write_layout(layout.path(), "all");
    let reference = format!("oci:{}:all", layout.path().display());
    assert_everything(&eo_mount(&reference).mount(), &everything);
}

#[track_caller]
fn assert_everything(mounted: &Mounted, everything: &BTreeMap<&str, Vec<u8>>) {
    let archives = folder();
    for (name, tar) in everything {
        let archive = archives.path().join(name);
        fs::write(&archive, tar).unwrap();
        let shown = mounted.join(name);
        // tests/support says what is in there.
        let compared = Extracted::of(&archive).assert_shown_in(&shown);
        assert!(compared >= 30, "{name}: {compared}");

        // The comparison sees all these only if they are there.
        let stat =
            |path: &str| fs::symlink_metadata(shown.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(fs::read_link(shown.join("climbing")).unwrap(), Path::new("../../etc/passwd"));
        assert_eq!(fs::read_link(shown.join("long-symlink")).unwrap().as_os_str().len(), 300);
        assert_eq!(stat("plain").ino(), stat("directory/hardlink").ino());
        assert_eq!((stat("plain").nlink(), stat("empty").len()), (2, 0));
        assert_eq!(fs::read(shown.join(OsStr::from_bytes(b"n\xe4me"))).unwrap(), b"n\xe4me");
        assert_eq!(fs::read(shown.join("x".repeat(240))).unwrap(), b"long name");
        assert_eq!((stat("old").mtime(), stat("far").mtime()), (-86_400, 4_500_000_000));
        assert_eq!((stat("setuid").mode() & 0o7777, stat("plain").mode() & 0o7777), (0o555, 0o551));
        let posix = name.starts_with("posix");
        assert_eq!(stat("plain").mtime_nsec(), if posix { 123_456_789 } else { 0 });
        assert_eq!(xattr(&shown.join("xattr"), "user.note").as_deref(), posix.then_some("seen"));

        // Holes are told of, and read as zeros.
        for (path, size, most) in [("sparse", 3 << 20, 64 << 10), ("all-hole", 1 << 20, 4096)] {
            let stat = stat(path);
            assert_eq!(stat.len(), size, "{path}");
            assert!(stat.blocks() * 512 <= most, "{name}: {path} takes {} blocks", stat.blocks());
        }
        let mut byte = [1];
        File::open(shown.join("sparse")).unwrap().read_exact_at(&mut byte, 2 << 20).unwrap();
        assert_eq!(byte, [0]);

        // Listed, but no way to a device.
        let (char_device, block_device) = (stat("char-device"), stat("block-device"));
        assert!(char_device.file_type().is_char_device() && block_device.file_type().is_block_device());
        assert_eq!((char_device.rdev(), block_device.rdev()), (0x103, 0x700));
        assert_eq!(errno(File::open(shown.join("char-device"))), errnos::ACCES);
        assert!(stat("fifo").file_type().is_fifo());
    }
}

/// Errnos of Linux by name.
mod errnos {
    use rustix::io::Errno;
    pub const ACCES: Option<i32> = Some(Errno::ACCESS.raw_os_error());
    pub const ROFS: Option<i32> = Some(Errno::ROFS.raw_os_error());
}

/// As text.
#[track_caller]
fn xattr(path: &Path, name: &str) -> Option<String> {
    let mut value = vec![0_u8; 64 << 10];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(length) => Some(String::from_utf8_lossy(&value[..length]).into_owned()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => panic!("{name} of {}: {error}", path.display()),
    }
}

#[test]
fn offsets_beyond_four_gibibytes_are_read_where_they_are() {
    let (tree, layout) = (folder(), folder());
    let path = tree.path().join("large");
    let file = File::create(&path).unwrap();
    file.set_len(5 << 30).unwrap();
    let places = [0, (4 << 30) - 2000, (5 << 30) - 4096];
    for (seed, place) in (1..).zip(places) {
        file.write_all_at(&noise(seed, 4096), place).unwrap();
    }
    let tar = gnu_tar(tree.path(), TarFormat::Posix("1.0"));
    assert!(tar.len() < 1 << 20, "the archive has no holes");
    Artifact::new().tar("large.tar", tar).write_layout(layout.path(), "large");
    let mounted = eo_mount(&format!("oci:{}:large", layout.path().display())).mount();
    let file = File::open(mounted.join("large/large")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5 << 30);
    for (seed, place) in (1..).zip(places) {
        let mut bytes = vec![0; 4096];
        file.read_exact_at(&mut bytes, place).unwrap();
        assert!(bytes == noise(seed, 4096), "at {place}");
    }
}

#[test]
fn a_directory_of_five_thousand_files_is_listed_whole() {
    let (tree, layout) = (folder(), folder());
    let name = |number: usize| format!("{number}-{}", "n".repeat(number % 200));
    for number in 0..5000 {
        fs::write(tree.path().join(name(number)), number.to_string()).unwrap();
    }
    Artifact::new().tar("many.tar", gnu_tar(tree.path(), TarFormat::Gnu)).write_layout(layout.path(), "many");
    let mounted = eo_mount(&format!("oci:{}:many", layout.path().display())).mount();
    let shown = mounted.join("many");
    assert_eq!(names_in(&shown), names_in(tree.path()));
    // Once more, from what the kernel keeps, with all attributes.
    assert_eq!(said(&shown, "sh", &["-c", "ls -l | tail -n +2 | wc -l"]), "5000\n");
    assert_eq!(fs::read_to_string(shown.join(name(4321))).unwrap(), "4321");
}

// Layers that are packed, and layers that are no archives.

#[test]
fn gzip_and_zstd_layers_are_what_tar_extracts_whatever_their_media_type_says() {
    let (registry, files) = (RealRegistry::start(), folder());
    let sample = Sample::files_in(&files.path().join("sample"));
    let tars: Vec<PathBuf> = sample.patches().map(|(tar, _)| tar).collect();
    let everything = files.path().join("everything.tar");
    fs::write(&everything, everything_tar(TarFormat::Posix("1.0"))).unwrap();
    let packed = |program: &str, options: &[&str], from: &Path| {
        let mut command = Command::new(program);
        command.args(options).arg("-c").arg(from);
        run(&mut command, PATIENCE).expect_success(program).stdout
    };
    let both_halves = || {
        let tar = fs::read(&tars[1]).unwrap();
        let half = files.path().join("half");
        let pack = |bytes: &[u8]| {
            fs::write(&half, bytes).unwrap();
            packed("gzip", &["-1"], &half)
        };
        [pack(&tar[..500_000]), pack(&tar[500_000..])].concat()
    };
    let (gzip, zstd) = ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+zstd");
    let layers = [
        // Name in the mount, title, media type, bytes.
        ("gzip", "gzip.tar.gz", gzip, packed("gzip", &[], &everything)),
        ("short", "short.tgz", gzip, packed("gzip", &["-9"], &tars[0])),
        ("two-members", "two-members.tar.gz", gzip, both_halves()),
        ("zstd", "zstd.tar.zst", zstd, packed("zstd", &["-q"], &everything)),
        ("no-frame-size", "no-frame-size.tar.zst", zstd, packed("zstd", &["-q", "--no-content-size"], &tars[2])),
        ("gzip-called-tar", "gzip-called-tar.tar", TAR_TYPE, packed("gzip", &[], &tars[0])),
        ("tar-called-gzip", "tar-called-gzip.tar.gz", gzip, fs::read(&tars[1]).unwrap()),
        ("zstd-called-gzip", "zstd-called-gzip.tar", gzip, packed("zstd", &["-q", "-19"], &tars[2])),
        ("gzip-called-nothing", "gzip-called-nothing", TAR_TYPE, packed("gzip", &[], &tars[1])),
    ];
    for (_, title, _, bytes) in &layers {
        fs::write(files.path().join(title), bytes).unwrap();
    }
    let arguments: Vec<String> = layers.iter().map(|(_, title, kind, _)| format!("{title}:{kind}")).collect();
    let reference = registry.on_localhost("packed:all");
    push(&registry, files.path(), &reference, &arguments);
    let mounted = eo_mount(&reference).mount();
    let mut names: Vec<&str> = layers.iter().map(|(name, ..)| *name).chain(["config.json"]).collect();
    names.sort();
    assert_eq!(names_in(mounted.path()), names);
    for (name, title, ..) in &layers {
        Extracted::of(&files.path().join(title)).assert_shown_in(&mounted.join(name));
    }
    // What was unpacked has no name, not even while it is in use, until it is there whole.
    let home = mounted.home().clone();
    let strays = || strays_in_cache(&home.cache().join("eo-mount"));
    // An index is written beside its place.
    assert!(wait_until(PATIENCE, || strays().is_empty()), "{:?}", strays());
    mounted.unmount();
    assert_eq!(strays(), [""; 0]);
}

#[test]
fn a_layer_that_is_no_archive_is_a_file_named_by_its_title() {
    let (registry, files) = (RealRegistry::start(), folder());
    let sample = Sample::files_in(files.path());
    let image = {
        let extracted = Extracted::of(&files.path().join(&sample.titles[0]));
        fs::read(extracted.path().join(image_in(extracted.path()))).unwrap()
    };
    let contents = [
        // oras calls it a tar, as everything that it is not told the type of.
        ("README.md", "README.md", b"# PASTIS\n".to_vec()),
        ("LICENSE", "LICENSE", noise(3, 5000)),
        ("spot.tif", "spot.tif:image/tiff", image),
        ("table.csv", "table.csv:text/csv", b"a,b\n1,2\n".to_vec()),
        ("empty", "empty", Vec::new()),
        ("blob.bin", "blob.bin:application/octet-stream", noise(4, 300_000)),
    ];
    for (title, _, bytes) in &contents {
        fs::write(files.path().join(title), bytes).unwrap();
    }
    let mut arguments: Vec<String> = contents.iter().map(|(_, argument, _)| (*argument).to_owned()).collect();
    // An archive without a type or an ending is one all the same.
    fs::copy(files.path().join(&sample.titles[1]), files.path().join("patch")).unwrap();
    arguments.push("patch".to_owned());
    let reference = registry.on_localhost("mixed:all");
    push(&registry, files.path(), &reference, &arguments);
    let mounted = eo_mount(&reference).mount();
    let mut names: Vec<&str> = contents.iter().map(|(title, ..)| *title).chain(["config.json", "patch"]).collect();
    names.sort();
    assert_eq!(names_in(mounted.path()), names);
    for (title, _, bytes) in &contents {
        let path = mounted.join(title);
        let stat = fs::metadata(&path).unwrap();
        assert_eq!((stat.is_file(), stat.mode() & 0o7777, stat.len()), (true, 0o444, bytes.len() as u64), "{title}");
        assert!(fs::read(&path).unwrap() == *bytes, "{title}");
        assert_eq!(xattr(&path, "user.oci.digest"), Some(sha256(bytes)), "{title}");
    }
    Extracted::of(&files.path().join("patch")).assert_shown_in(&mounted.join("patch"));
    assert!(said(mounted.path(), "gdalinfo", &["spot.tif"]).contains("ID[\"EPSG\",2154]"));
}

#[test]
fn layers_without_titles_are_named_by_the_config() {
    let (registry, files) = (RealRegistry::start(), folder());
    let sample = Sample::files_in(files.path());
    let tars: Vec<Vec<u8>> = sample.patches().map(|(tar, _)| fs::read(tar).unwrap()).collect();
    // The sample's own config knows the digests of its tars; the last layer is in no config.
    let other = PythonTar::new().file("file", 1.5, Vec::new(), 1, 10).finish().to_bytes();
    let artifact = tars.iter().chain([&other]).fold(
        Artifact::new().config(fs::read(files.path().join("config.json")).unwrap(), CONFIG_TYPE),
        |artifact, tar| artifact.layer(None, TAR_TYPE, tar.clone()),
    );
    let layout = files.path().join("layout");
    artifact.write_layout(&layout, "untitled");
    let plain = format!("layer-0003-{}", &sha256(&other)["sha256:".len()..][..12]);
    let expected = ["10000", "10001", "10002", "config.json", &plain];
    let direct = eo_mount(&format!("oci:{}:untitled", layout.display())).mount();
    assert_eq!(names_in(direct.path()), expected);
    let reference = registry.on_localhost("untitled:all");
    let from = format!("{}:untitled", layout.display());
    registry.oras(files.path(), &["copy", "--from-oci-layout", &from, &reference]);
    let mounted = eo_mount(&reference).mount();
    assert_eq!(names_in(mounted.path()), expected);
    for (tar, name) in sample.patches() {
        Extracted::of(&tar).assert_shown_in(&mounted.join(name));
    }
    assert_eq!(names_in(&mounted.join(&plain)), ["file"]);
}

#[test]
fn a_layer_called_config_json_stands_in_its_place() {
    let layout = folder();
    Artifact::new()
        .config("{\"the\":\"config\"}", CONFIG_TYPE)
        .layer(Some("config.json"), "application/json", "{\"a\":\"layer\"}")
        .write_layout(layout.path(), "t");
    let mounted = eo_mount(&format!("oci:{}:t", layout.path().display())).mount();
    assert_eq!(names_in(mounted.path()), ["config.json"]);
    assert_eq!(fs::read_to_string(mounted.join("config.json")).unwrap(), "{\"a\":\"layer\"}");
}

// What the mount tells of the artifact.

#[test]
fn layer_directories_tell_of_their_blob_in_xattrs() {
    let (registry, files) = (RealRegistry::start(), folder());
    let sample = Sample::files_in(files.path());
    let annotations = json!({"10001.tar": {"org.example.tile": "t30uxv", "org.example.note": "Blé d'hiver"}});
    fs::write(files.path().join("annotations.json"), annotations.to_string()).unwrap();
    let mut arguments = sample.push_arguments("");
    arguments.extend(["--annotation-file", "annotations.json"].map(str::to_owned));
    let reference = registry.on_localhost("annotated:all");
    push(&registry, files.path(), &reference, &arguments);
    let mounted = eo_mount(&reference).mount();
    let tar = fs::read(files.path().join("10001.tar")).unwrap();
    let expected = |digest: &str| {
        BTreeMap::from([
            ("user.eo.cached-bytes", "0".to_owned()),
            ("user.eo.verified", "unverified".to_owned()),
            ("user.oci.annotation.org.example.note", "Blé d'hiver".to_owned()),
            ("user.oci.annotation.org.example.tile", "t30uxv".to_owned()),
            ("user.oci.annotation.org.opencontainers.image.title", "10001.tar".to_owned()),
            ("user.oci.digest", digest.to_owned()),
            ("user.oci.media-type", TAR_TYPE.to_owned()),
            ("user.oci.size", tar.len().to_string()),
        ])
    };
    let listed = said(mounted.path(), "getfattr", &["-m", "^user", "10001"]);
    let listed: Vec<&str> = listed.lines().filter(|line| line.starts_with("user.")).collect();
    let expected = expected(&sha256(&tar));
    assert_eq!(listed, expected.keys().copied().collect::<Vec<_>>());
    for (name, value) in &expected {
        let shown = said(mounted.path(), "getfattr", &["--only-values", "-n", name, "10001"]);
        assert_eq!(shown, *value, "{name}");
    }
    assert_eq!(xattr(&mounted.join("10000"), "user.oci.annotation.org.example.tile"), None);
    let manifest = registry.oras(files.path(), &["resolve", &reference]).text();
    assert_eq!(xattr(mounted.path(), "user.oci.digest").as_deref(), Some(manifest.trim()));
}

#[test]
fn statfs_gives_the_size_of_the_dataset() {
    let pushed = Pushed::sample();
    let sizes = pushed.sample.titles.iter().map(String::as_str).chain(["config.json"]);
    let bytes: u64 = sizes.map(|name| fs::metadata(pushed.files.path().join(name)).unwrap().len()).sum();
    let mount = pushed.mounted.path().to_str().unwrap();
    let shown = said(Path::new("/"), "df", &["--output=size,used,avail,pcent", "-B4096", mount]);
    let blocks = bytes.div_ceil(4096).to_string();
    let line: Vec<&str> = shown.lines().nth(1).expect("a line").split_whitespace().collect();
    assert_eq!(line, [blocks.as_str(), blocks.as_str(), "0", "100%"]);
}

#[test]
fn nothing_can_be_written_created_renamed_or_removed() {
    let pushed = Pushed::sample();
    let (patch, _) = pushed.patch(0);
    let (mount, file) = (pushed.mounted.path(), patch.join("DATA_S2/S2_10000.npy"));
    let at = |name: &str| patch.join(name);
    let mode = fs::Permissions::from_mode(0o644);
    let touched = || File::open(&file)?.set_modified(std::time::SystemTime::UNIX_EPOCH);
    let set_xattr = || {
        let flags = rustix::fs::XattrFlags::empty();
        Ok(rustix::fs::setxattr(&file, "user.note", b"x", flags)?)
    };
    let attempts = [
        ("write", errno(File::options().write(true).open(&file))),
        ("append", errno(File::options().append(true).open(&file))),
        ("truncate", errno(File::options().write(true).truncate(true).open(&file))),
        ("create", errno(File::create(at("new")))),
        ("create in the root", errno(File::create(mount.join("new")))),
        ("mkdir", errno(fs::create_dir(at("new")))),
        ("mkdir in the root", errno(fs::create_dir(mount.join("new")))),
        ("symlink", errno(std::os::unix::fs::symlink("x", at("new")))),
        ("link", errno(fs::hard_link(&file, at("new")))),
        ("rename", errno(fs::rename(&file, at("new")))),
        ("rename of a layer", errno(fs::rename(&patch, mount.join("new")))),
        ("remove", errno(fs::remove_file(&file))),
        ("remove of the config", errno(fs::remove_file(mount.join("config.json")))),
        ("rmdir", errno(fs::remove_dir(at("ANNOTATIONS")))),
        ("chmod", errno(fs::set_permissions(&file, mode))),
        ("chown", errno(std::os::unix::fs::chown(&file, Some(1), Some(1)))),
        ("touch", errno(touched())),
        ("setxattr", errno::<()>(set_xattr())),
    ];
    for (what, errno) in attempts {
        assert_eq!(errno, errnos::ROFS, "{what}");
    }
    for arguments in [["-n", "user.note"], ["-x", "user.oci.size"]] {
        let mut command = Command::new("setfattr");
        command.args(arguments).arg(mount.join("10000")).env("LC_ALL", "C");
        let refused = run(&mut command, PATIENCE);
        assert!(refused.stderr.contains("Read-only file system"), "{}", refused.stderr);
    }
    assert_eq!(names_in(mount), ["10000", "10001", "10002", "config.json"]);
}

#[test]
fn files_belong_to_the_mounter_or_to_whom_the_options_say() {
    let layout = folder();
    // Python's tar: all of user and group 1000.
    let tar = PythonTar::new().file("folder/file", 1.5, Vec::new(), 1, 10).finish().to_bytes();
    Artifact::new().tar("layer.tar", tar).write_layout(layout.path(), "t");
    let reference = format!("oci:{}:t", layout.path().display());
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owners = |options: &[&str]| {
        let mounted = eo_mount(&reference).args(options).mount();
        ["", "config.json", "layer", "layer/folder/file"].map(|path| {
            let stat = fs::metadata(mounted.join(path)).unwrap();
            (stat.uid(), stat.gid())
        })
    };
    assert_eq!(owners(&[]), [own; 4]);
    assert_eq!(owners(&["--uid", "1234", "--gid", "4321"]), [(1234, 4321); 4]);
    assert_eq!(owners(&["--gid", "4321"]), [(own.0, 4321); 4]);
    assert_eq!(owners(&["--preserve-owner"]), [own, own, own, (1000, 1000)]);
    // Whoever they belong to, the mounter reads them.
    if eo_mount_testing::as_user::is_root() {
        let user = User::nobody();
        let home = Home::of(&user);
        let moved = home.path().join("layout");
        said(Path::new("/"), "cp", &["-r", layout.path().to_str().unwrap(), moved.to_str().unwrap()]);
        said(Path::new("/"), "chmod", &["-R", "a+rX", moved.to_str().unwrap()]);
        let reference = format!("oci:{}:t", moved.display());
        let mounted = eo_mount(&reference).home(&home).as_user(&user).arg("--preserve-owner").mount();
        let mut command = user.command("stat");
        command.args(["-c", "%u %g %a"]).arg(mounted.join("layer/folder/file")).current_dir("/");
        assert_eq!(run(&mut command, PATIENCE).expect_success("stat").text(), "1000 1000 444\n");
    }
}

// References.

#[test]
fn a_tag_a_digest_and_both_name_an_artifact() {
    let registry = RealRegistry::start();
    let files = folder();
    let pushed = |text: &str| {
        fs::write(files.path().join("which.txt"), text).unwrap();
        let reference = registry.on_localhost("org/data:latest");
        push(&registry, files.path(), &reference, &["which.txt:text/plain".to_owned()]);
        registry.oras(files.path(), &["resolve", &reference]).text().trim().to_owned()
    };
    let first = pushed("first");
    let second = pushed("second");
    assert_ne!(first, second);
    let which = |name: &str| {
        let mounted = eo_mount(&registry.on_localhost(name)).mount();
        fs::read_to_string(mounted.join("which.txt")).unwrap()
    };
    assert_eq!(which("org/data:latest"), "second");
    // As docker and oras: no tag is this tag.
    assert_eq!(which("org/data"), "second");
    assert_eq!(which(&format!("org/data@{first}")), "first");
    assert_eq!(which(&format!("org/data@{second}")), "second");
    // Of both, the digest counts.
    assert_eq!(which(&format!("org/data:latest@{first}")), "first");
    assert_eq!(which(&format!("org/data:no-such-tag@{second}")), "second");
}

#[test]
fn a_tag_that_is_moved_changes_nothing_in_a_mount() {
    let Pushed { mounted, sample, files, registry } = Pushed::sample();
    let (tar, name) = sample.patches().next().unwrap();
    Extracted::of(&tar).assert_shown_in(&mounted.join(name));

    let other = folder();
    for title in ["10000.tar", "10003.tar"] {
        let tar = PythonTar::new().file("other", 1.5, title.into(), 1, 10).finish().to_bytes();
        fs::write(other.path().join(title), tar).unwrap();
    }
    let arguments = ["10000.tar", "10003.tar"].map(|title| format!("{title}:{TAR_TYPE}"));
    let reference = registry.on_localhost("pastis-2433:sample");
    push(&registry, other.path(), &reference, &arguments);

    assert_eq!(names_in(mounted.path()), ["10000", "10001", "10002", "config.json"]);
    // Also what nobody has looked at so far.
    for (tar, name) in sample.patches() {
        Extracted::of(&tar).assert_shown_in(&mounted.join(name));
    }
    assert!(fs::read(mounted.join("config.json")).unwrap() == fs::read(files.path().join("config.json")).unwrap());
    let after = eo_mount(&reference).mount();
    assert_eq!(names_in(after.path()), ["10000", "10003", "config.json"]);
    assert_eq!(names_in(&after.join("10000")), ["other"]);
}
