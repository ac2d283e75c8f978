//! A cache folder on a disk that stops answering: whoever just uses it goes on without it, or says so in time.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use eo_mount_testing::files::forget_pages;
use eo_mount_testing::fixtures::{VirtualTar, noise, patch_tar, patch_tar_plan};
use eo_mount_testing::scripted_registry::Takes;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    Artifact, EoMount, Fault, Finished, HangingDisk, Home, Matcher, Mounted, ScriptedRegistry, run,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");
const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);
const GZIP_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    packed("gzip", bytes)
}

fn packed(packer: &str, bytes: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    fs::write(&path, bytes).unwrap();
    let install = format!("{packer} (apt-get install gzip xz-utils)");
    run(Command::new(packer).args(["-1", "-c"]).arg(&path), LONG).expect_success(&install).stdout
}

#[track_caller]
fn expect(mounted: &Mounted, layer: &str, tar: &VirtualTar) {
    for member in tar.members() {
        let path = mounted.join(layer).join(&member.path);
        forget_pages(&path);
        let read = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}\n{}", path.display(), mounted.log()));
        assert!(read == tar.read(member.data.clone()), "{}", path.display());
    }
}

fn mount(registry: &ScriptedRegistry, disk: &HangingDisk, timeout: &str) -> Mounted {
    let call = EoMount::new(PROGRAM, registry.reference("pastis:t")).args(["--timeout", timeout]);
    call.arg("--cache-dir").arg(disk.path().join("cache")).mount()
}

#[test]
fn a_pass_whose_disk_begins_to_hang_ends_in_time_and_the_next_goes_on_without_it() {
    let (registry, disk) = (ScriptedRegistry::start(), HangingDisk::mount());
    let large = patch_tar_plan(10_000, 1);
    let small = [10_001, 10_002].map(|id| patch_tar_plan(id, 8));
    let artifact = Artifact::new()
        .layer(Some("10000.tar.gz"), GZIP_TYPE, gzip(&large.to_bytes()))
        .tar("10001.tar", small[0].to_bytes())
        .layer(Some("10002.tar.gz"), GZIP_TYPE, gzip(&small[1].to_bytes()));
    artifact.push(&registry, "pastis", "t");
    let late = Matcher::blob(&artifact.layers()[0].digest).touching(12 * MIB..13 * MIB);
    let late = registry.fault(late, Fault::Delay(Duration::from_secs(3)), 1);
    let timeout = Duration::from_secs(30);
    let mounted = mount(&registry, &disk, "30s");
    let look = || fs::read_dir(mounted.join("10000")).map(Iterator::count);
    std::thread::scope(|scope| {
        let first = scope.spawn(look);
        assert!(wait_until(LONG, || late.met() > 0));
        disk.hang();
        let start = Instant::now();
        expect(&mounted, "10001", &small[0]);
        expect(&mounted, "10002", &small[1]);
        let _ = first.join().unwrap();
        assert!(start.elapsed() < timeout, "{:?}\n{}", start.elapsed(), mounted.log());
        assert!(wait_until(timeout, || look().is_ok()), "{}", mounted.log());
        expect(&mounted, "10000", &large);
        assert!(start.elapsed() < 2 * timeout, "{:?}\n{}", start.elapsed(), mounted.log());
    });
    assert!(mounted.log().contains("does not answer"), "{}", mounted.log());
    disk.go_on();
    expect(&mounted, "10000", &large);
    mounted.unmount();
}

#[test]
fn a_disk_that_takes_long_to_store_what_a_pass_left_is_not_taken_for_one_that_hangs() {
    let (registry, disk) = (ScriptedRegistry::start(), HangingDisk::mount());
    let tars = [10_000, 10_001].map(|id| patch_tar_plan(id, 8));
    let xz = tars.each_ref().map(|tar| packed("xz", &tar.to_bytes()));
    Artifact::new()
        .layer(Some("10000.tar.xz"), GZIP_TYPE, xz[0].clone())
        .layer(Some("10001.tar.xz"), GZIP_TYPE, xz[1].clone())
        .push(&registry, "pastis", "t");
    let mounted = mount(&registry, &disk, "60s");
    disk.sync_takes(Duration::from_secs(15));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| fs::read_dir(mounted.join("10000")).map(Iterator::count));
        assert!(wait_until(LONG, || disk.syncs() > 0), "{}", mounted.log());
        // Longer than one that hangs is waited for.
        std::thread::sleep(Duration::from_secs(7));
        disk.sync_takes(Duration::ZERO);
        expect(&mounted, "10001", &tars[1]);
        first.join().unwrap().unwrap();
    });
    expect(&mounted, "10000", &tars[0]);
    assert!(!mounted.log().contains("does not answer"), "{}", mounted.log());
    mounted.unmount();
}

#[test]
fn what_was_unpacked_onto_a_disk_that_hangs_is_an_error_in_time_until_it_answers() {
    let (registry, disk) = (ScriptedRegistry::start(), HangingDisk::mount());
    let tars = [10_000, 10_001].map(|id| patch_tar_plan(id, 2));
    Artifact::new()
        .layer(Some("10000.tar.gz"), GZIP_TYPE, gzip(&tars[0].to_bytes()))
        .tar("10001.tar", tars[1].to_bytes())
        .push(&registry, "pastis", "t");
    let mounted = mount(&registry, &disk, "40s");
    assert!(fs::read_dir(mounted.join("10000")).unwrap().count() > 0);
    let member = tars[0].members().iter().max_by_key(|member| member.data.end).unwrap();
    let read = || fs::read(mounted.join("10000").join(&member.path));
    disk.hang();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
        expect(&mounted, "10001", &tars[1]);
        // What is in memory is read.
        readers.into_iter().for_each(|reader| drop(reader.join().unwrap()));
    });
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}\n{}", start.elapsed(), mounted.log());
    disk.go_on();
    assert!(wait_until(LONG, || read().is_ok_and(|bytes| bytes == tars[0].read(member.data.clone()))));
    expect(&mounted, "10000", &tars[0]);
    mounted.unmount();
}

#[test]
fn members_of_a_zip_archive_are_read_without_a_disk_that_hangs() {
    let (registry, disk) = (ScriptedRegistry::start(), HangingDisk::mount());
    let folder = tempfile::tempdir().unwrap();
    let large = noise(5, 9_000_001);
    fs::write(folder.path().join("large"), &large).unwrap();
    let script = "import zipfile; zipfile.ZipFile('x.zip', 'w', zipfile.ZIP_DEFLATED).write('large')";
    let mut python = Command::new("python3");
    run(python.args(["-c", script]).current_dir(&folder), LONG).expect_success("python3 (apt-get install python3)");
    let zip = fs::read(folder.path().join("x.zip")).unwrap();
    Artifact::new()
        .layer(Some("a.zip"), "application/zip", zip)
        .tar("10001.tar", patch_tar(10_001, 16))
        .push(&registry, "pastis", "t");
    let mounted = mount(&registry, &disk, "30s");
    let layer = fs::read_dir(mounted.path()).unwrap().map(|entry| entry.unwrap().path());
    let layer = layer.into_iter().find(|path| path.join("large").exists()).unwrap();
    disk.hang();
    let start = Instant::now();
    assert!(fs::read(layer.join("large")).unwrap() == large, "{}", mounted.log());
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}\n{}", start.elapsed(), mounted.log());
    disk.go_on();
    mounted.unmount();
}

#[test]
fn index_says_that_the_disk_of_its_cache_folder_does_not_answer_and_push_does_without_it() {
    let (registry, disk, home) = (ScriptedRegistry::start(), HangingDisk::mount(), Home::new());
    registry.take_uploads(Takes::default());
    Artifact::new().tar("10001.tar", patch_tar(10_001, 16)).push(&registry, "pastis", "t");
    let (folder, large) = (tempfile::tempdir().unwrap(), noise(3, 40_000_000));
    fs::write(folder.path().join("large.bin"), &large).unwrap();
    let call = |arguments: &[&str]| -> Finished {
        let call = EoMount::bare(PROGRAM).home(&home).current_dir(folder.path()).args(arguments);
        call.args(["--timeout", "40s", "--cache-dir"]).arg(disk.path().join("cache")).output()
    };
    call(&["push", &registry.reference("pastis:before"), "large.bin"]).expect_success("push");
    disk.hang();
    let start = Instant::now();
    let index = call(&["index", &registry.reference("pastis:t")]);
    assert_eq!((index.code, index.stderr.lines().count()), (2, 1), "{}", index.stderr);
    assert!(index.stderr.contains("does not answer") && index.stderr.contains("--cache-dir"), "{}", index.stderr);
    fs::write(folder.path().join("other.bin"), noise(4, 40_000_000)).unwrap();
    call(&["push", &registry.reference("pastis:after"), "other.bin"]).expect_success("push");
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    disk.go_on();
}
