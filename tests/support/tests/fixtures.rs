//! The archives are what their names say, by the word of Python, GNU tar and GDAL.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::fixtures::{self, RawTar, TarFormat, VirtualTar};
use eo_mount_testing::{run, sha256};

fn python(script: &str, arguments: &[&Path]) -> String {
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).args(arguments);
    run(&mut command, Duration::from_secs(120)).expect_success("python3").text()
}

fn unpack(tar: &[u8]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("archive.tar");
    fs::write(&file, tar).unwrap();
    let mut command = Command::new("tar");
    command.args(["--xattrs", "--exclude=*-device", "-xf", "archive.tar"]).current_dir(directory.path());
    run(&mut command, Duration::from_secs(60)).expect_success("unpacking");
    fs::remove_file(file).unwrap();
    directory
}

#[test]
fn a_full_size_patch_has_the_published_sizes() {
    let plan = fixtures::patch_tar_plan(10000, 1);
    let sizes: Vec<(&str, u64)> =
        plan.members().iter().map(|member| (member.path.as_str(), member.data.end - member.data.start)).collect();
    assert_eq!(sizes[0], ("DATA_S2/S2_10000.npy", 14_090_368));
    assert_eq!(sizes[1], ("DATA_S1A/S1A_10000.npy", 65 * 3 * 128 * 128 * 2 + 128));
    assert_eq!(sizes[2], ("DATA_S1D/S1D_10000.npy", 70 * 3 * 128 * 128 * 2 + 128));
    assert_eq!(sizes[3].0, "DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_10000.tif");
    assert!((4_915_200..4_930_000).contains(&sizes[3].1), "{sizes:?}");
    assert_eq!(sizes[4], ("ANNOTATIONS/TARGET_10000.npy", 49_280));
    assert_eq!(sizes[5], ("ANNOTATIONS/ParcelIDs_10000.npy", 131_200));
    assert_eq!(sizes[6], ("INSTANCE_ANNOTATIONS/INSTANCES_10000.npy", 131_200));
    assert_eq!(sizes[7], ("INSTANCE_ANNOTATIONS/HEATMAP_10000.npy", 131_200));
    assert_eq!(plan.size(), plan.to_bytes().len() as u64);
}

/// Python's own tarfile writes the same bytes for the same members.
#[test]
fn a_patch_is_byte_for_byte_what_pythons_tarfile_writes() {
    let plan = fixtures::patch_tar_plan(10001, 16);
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (directory.path().join("ours.tar"), directory.path().join("theirs.tar"));
    fs::write(&ours, plan.to_bytes()).unwrap();
    let script = "
import sys, tarfile
with tarfile.open(sys.argv[1]) as ours, tarfile.open(sys.argv[2], 'w') as theirs:
    for member in ours:
        again = tarfile.TarInfo(member.name)
        again.size, again.mode, again.mtime = member.size, member.mode, member.mtime
        again.uid = again.gid = 1000
        again.uname = again.gname = 'eo'
        assert isinstance(member.mtime, float) and member.mtime % 1, member.mtime
        theirs.addfile(again, ours.extractfile(member))
        print(member.name)
";
    let names = python(script, &[&ours, &theirs]);
    let ours: Vec<&str> = plan.members().iter().map(|member| member.path.as_str()).collect();
    assert_eq!(names.lines().collect::<Vec<_>>(), ours);
    assert!(fs::read(theirs).unwrap() == plan.to_bytes(), "the archives differ");
}

#[test]
fn members_stand_where_the_plan_says_and_differ() {
    let plan = fixtures::patch_tar_plan(10000, 8);
    let unpacked = unpack(&plan.to_bytes());
    let mut digests = Vec::new();
    for member in plan.members() {
        let bytes = fs::read(unpacked.path().join(&member.path)).unwrap();
        assert!(bytes == plan.read(member.data.clone()), "{}", member.path);
        digests.push(sha256(&bytes));
    }
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 8);
    assert_ne!(plan.digest(), fixtures::patch_tar_plan(10001, 8).digest());
}

#[test]
fn the_image_is_a_geotiff_and_the_arrays_have_numpys_header() {
    let unpacked = unpack(&fixtures::patch_tar(10000, 2));
    let image = unpacked.path().join("DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_10000.tif");
    let info = run(Command::new("gdalinfo").arg("-checksum").arg(image), Duration::from_secs(60));
    let info = info.expect_success("gdalinfo").text();
    for part in ["Size is 640, 640", "Lambert-93", "Pixel Size = (1.0", "Band 3 Block=640x2 Type=Byte"] {
        assert!(info.contains(part), "{part} in {info}");
    }
    let head = fs::read(unpacked.path().join("DATA_S2/S2_10000.npy")).unwrap();
    let text = "{'descr': '<i2', 'fortran_order': False, 'shape': (43, 10, 64, 64), }";
    assert_eq!(&head[..10], b"\x93NUMPY\x01\0v\0");
    assert_eq!(String::from_utf8_lossy(&head[10..128]), format!("{text:<117}\n"));
}

#[test]
fn a_tile_of_gigabytes_is_a_plan() {
    let tile = fixtures::tile_tar("t30uxv", 10000..10531, 1);
    assert_eq!(tile.members().len(), 4248);
    assert!(tile.size() > 17_000_000_000, "{}", tile.size());
    let last = tile.member("t30uxv/10530/HEATMAP_10530.npy");
    assert_eq!(&tile.read(last.data.start..last.data.start + 6), b"\x93NUMPY");
    assert_eq!(&tile.read(last.data.start - 512..last.data.start - 512 + 13), b"t30uxv/10530/");
    assert!(tile.read(tile.size() - 1024..tile.size()).iter().all(|&byte| byte == 0));
    let small = fixtures::tile_tar("t", [1, 2], 64);
    assert_eq!(small.digest(), sha256(&small.to_bytes()));
    assert_every_range_is_the_same(&small);
}

fn assert_every_range_is_the_same(tar: &VirtualTar) {
    let whole = tar.to_bytes();
    for start in (0..tar.size()).step_by(777) {
        let end = (start + 1234).min(tar.size());
        assert!(tar.read(start..end) == whole[start as usize..end as usize], "{start}..{end}");
    }
}

#[test]
fn the_archive_with_everything_unpacks_to_the_tree() {
    let tree = tempfile::tempdir().unwrap();
    fixtures::everything_tree(tree.path());
    for format in [TarFormat::Gnu, TarFormat::Posix("0.0"), TarFormat::Posix("0.1"), TarFormat::Posix("1.0")] {
        let tar = fixtures::everything_tar(format);
        assert_eq!((&tar[..11], tar[156], tar[512 + 156]), (&b"char-device"[..], b'3', b'4'));
        let unpacked = unpack(&tar);
        let mut differ = Command::new("diff");
        differ.args(["-r", "--no-dereference", "--exclude=fifo"]).arg(tree.path()).arg(unpacked.path());
        run(&mut differ, Duration::from_secs(60)).expect_success(&format!("comparing {format:?}"));
        let metadata = |name: &str| fs::symlink_metadata(unpacked.path().join(name)).unwrap();
        assert!(metadata("fifo").file_type().is_fifo());
        assert_eq!(metadata("plain").ino(), metadata("directory/hardlink").ino());
        assert_eq!((metadata("plain").mtime(), metadata("old").mtime()), (1_500_000_000, -86_400));
        assert_eq!(metadata("far").mtime(), 4_500_000_000);
        assert_eq!(metadata("plain").mode() & 0o7777, 0o751);
        assert!(metadata("sparse").blocks() < 200, "{format:?} keeps the holes");
        if matches!(format, TarFormat::Posix(_)) {
            assert_eq!(metadata("plain").mtime_nsec(), 123_456_789);
            let mut value = [0; 16];
            let length = rustix::fs::getxattr(unpacked.path().join("xattr"), "user.binary", &mut value).unwrap();
            assert_eq!(&value[..length], b"\0\x01\xff");
        }
    }
}

#[test]
fn raw_archives_say_what_they_are_told_to() {
    let long = "x".repeat(150);
    let tar = RawTar::new()
        .mode(0o4755)
        .file("../escape", b"data")
        .symlink(&long, "/etc/passwd")
        .pax(&[("path", b"a\nb")])
        .character_device("short", 1, 3)
        .finish();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tar).unwrap();
    let mut list = Command::new("tar");
    list.args(["--list", "--verbose", "--absolute-names", "--file"]).arg(file.path());
    let listed = run(&mut list, Duration::from_secs(30)).expect_success("tar").text();
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].starts_with("-rwsr-xr-x") && lines[0].ends_with(" ../escape"), "{listed}");
    assert!(lines[1].starts_with('l') && lines[1].ends_with(&format!("{long} -> /etc/passwd")), "{listed}");
    assert!(lines[2].starts_with('c') && lines[2].contains("1,3") && lines[2].ends_with(" a\\nb"), "{listed}");
}
