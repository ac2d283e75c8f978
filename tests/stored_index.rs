//! A layer's index is kept in the cache folder: a later mount lists without a request, and believes nothing that does
//! not hold.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use eo_mount_testing::fixtures::{patch_tar, tile_tar};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{ALWAYS, Artifact, EoMount, Fault, HangingDisk, Home, Matcher, Mounted, ScriptedRegistry, User};

const SOON: Duration = Duration::from_secs(20);

fn dataset() -> (ScriptedRegistry, String) {
    let registry = ScriptedRegistry::start();
    Artifact::new()
        .tar("10000.tar", patch_tar(10000, 32))
        .tar("10001.tar", patch_tar(10001, 32))
        .push(&registry, "pastis", "sample");
    let reference = registry.reference("pastis:sample");
    (registry, reference)
}

fn call(reference: &str, home: &Home) -> EoMount {
    EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference).home(home)
}

/// Names below a folder, sorted.
fn list(folder: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            }
            names.push(entry.path().strip_prefix(folder).unwrap().to_owned());
        }
    }
    names.sort();
    names
}

fn stored(home: &Home) -> Vec<PathBuf> {
    let folder = home.cache().join("eo-mount/indexes/sha256");
    let mut files: Vec<_> = fs::read_dir(folder).into_iter().flatten().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// Mounts, lists, and waits until so many indexes are there.
fn mount_and_list(reference: &str, home: &Home, files: usize) -> (Mounted, Vec<PathBuf>) {
    let mounted = call(reference, home).mount();
    let names = list(mounted.path());
    assert!(wait_until(SOON, || stored(home).len() == files), "{:?}", stored(home));
    (mounted, names)
}

#[test]
fn a_second_mount_lists_without_a_request() {
    let (registry, reference) = dataset();
    let home = Home::new();
    let (first, names) = mount_and_list(&reference, &home, 2);
    first.unmount();
    assert!(registry.blob_requests() > 0);
    for file in stored(&home) {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    }
    assert_eq!(fs::read_dir(home.cache().join("eo-mount/indexes/new")).unwrap().count(), 0);

    registry.reset();
    let second = call(&reference, &home).mount();
    assert_eq!(list(second.path()), names);
    assert_eq!(registry.blob_requests(), 0);
    let file = second.join("10001/DATA_S2/S2_10001.npy");
    let tar = patch_tar(10001, 32);
    let bytes = fs::read(&file).unwrap();
    assert!(bytes.len() > 1000 && tar.windows(bytes.len()).any(|window| window == bytes));
    second.unmount();
}

#[test]
fn layers_of_unknown_form_are_known_by_their_index() {
    let registry = ScriptedRegistry::start();
    Artifact::new().layer(Some("data"), "application/octet-stream", patch_tar(1, 32)).push(&registry, "a", "b");
    let (reference, home) = (registry.reference("a:b"), Home::new());
    let (first, names) = mount_and_list(&reference, &home, 1);
    first.unmount();
    registry.reset();
    let second = call(&reference, &home).mount();
    assert_eq!(list(second.path()), names);
    assert_eq!(registry.blob_requests(), 0);
}

#[test]
fn what_does_not_hold_is_dropped_and_rebuilt() {
    let (registry, reference) = dataset();
    let home = Home::new();
    let (first, names) = mount_and_list(&reference, &home, 2);
    first.unmount();
    let [one, two] = <[PathBuf; 2]>::try_from(stored(&home)).unwrap();
    let good = (fs::read(&one).unwrap(), fs::read(&two).unwrap());
    let mut damaged = good.0.clone();
    damaged[good.0.len() / 2] ^= 1;
    let mut newer = good.0.clone();
    newer[8] = 2;
    let wrong = [damaged, good.0[..good.0.len() / 2].to_vec(), Vec::new(), newer, good.1.clone(), vec![0; 1 << 20]];
    for bytes in wrong {
        fs::write(&one, &bytes).unwrap();
        registry.reset();
        let mounted = call(&reference, &home).mount();
        assert_eq!(list(mounted.path()), names);
        assert!(registry.blob_requests() > 0, "the wrong one was believed");
        assert!(mounted.log().contains("the layer indexed anew"), "{}", mounted.log());
        assert!(wait_until(SOON, || fs::read(&one).is_ok_and(|now| now == good.0)), "not rebuilt");
        mounted.unmount();
        assert_eq!(fs::read(&two).unwrap(), good.1);
    }
}

#[test]
fn a_cache_folder_that_cannot_be_written_is_no_error() {
    let (registry, reference) = dataset();
    let user = User::nobody();
    let home = Home::of(&user);
    let as_user = || call(&reference, &home).as_user(&user);
    let first = as_user().mount();
    let names = list_as_owner(&first, &user);
    assert!(wait_until(SOON, || stored(&home).len() == 2));
    first.unmount();

    // What is there is read; what is not there cannot be added.
    fs::remove_file(&stored(&home)[0]).unwrap();
    let folders = ["eo-mount", "eo-mount/indexes", "eo-mount/indexes/new", "eo-mount/indexes/sha256"];
    let set_mode = |mode| {
        for folder in folders {
            fs::set_permissions(home.cache().join(folder), fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set_mode(0o500);
    registry.reset();
    let second = as_user().mount();
    assert_eq!(list_as_owner(&second, &user), names);
    let asked: std::collections::BTreeSet<_> = registry
        .requests_of(eo_mount_testing::Kind::Blob)
        .iter()
        .filter_map(|request| request.digest().map(str::to_owned))
        .collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    second.unmount();
    set_mode(0o700);
    assert_eq!(stored(&home).len(), 1);
}

/// A mount is its owner's alone, even before root.
fn list_as_owner(mounted: &Mounted, user: &User) -> Vec<String> {
    let mut find = user.command("find");
    find.current_dir("/").arg(mounted.path()).args(["-printf", "%P\\n"]);
    let mut names: Vec<String> =
        eo_mount_testing::run(&mut find, SOON).expect_success("find").text().lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn two_processes_write_the_same_index_at_once() {
    let (registry, reference) = dataset();
    registry.fault(Matcher::blobs(), Fault::Delay(Duration::from_millis(200)), ALWAYS);
    let home = Home::new();
    let mounts = [call(&reference, &home).mount(), call(&reference, &home).mount()];
    let names: Vec<_> = std::thread::scope(|scope| {
        let lists: Vec<_> = mounts.iter().map(|mounted| scope.spawn(|| list(mounted.path()))).collect();
        lists.into_iter().map(|list| list.join().unwrap()).collect()
    });
    assert_eq!(names[0], names[1]);
    assert!(wait_until(SOON, || stored(&home).len() == 2));
    mounts.into_iter().for_each(Mounted::unmount);
    registry.reset();
    let third = call(&reference, &home).mount();
    assert_eq!(list(third.path()), names[0]);
    assert_eq!(registry.blob_requests(), 0);
    assert_eq!(fs::read_dir(home.cache().join("eo-mount/indexes/new")).unwrap().count(), 0);
}

/// Killed at any time between the first look and the index on disk: the next mount finds a whole index or none.
#[test]
fn a_process_killed_in_between_leaves_nothing_wrong() {
    let registry = ScriptedRegistry::start();
    let tar = tile_tar("t30uxv", 10000..10100, 64);
    Artifact::new().tar("t30uxv.tar", tar.to_bytes()).push(&registry, "pastis", "t4");
    let (reference, home) = (registry.reference("pastis:t4"), Home::new());
    for pause in [0, 5, 10, 20, 40] {
        for file in stored(&home) {
            fs::remove_file(file).unwrap();
        }
        let mut mounted = call(&reference, &home).mount();
        let path = mounted.join("t30uxv");
        let looking = std::thread::spawn(move || fs::read_dir(path).map(|entries| entries.count()));
        std::thread::sleep(Duration::from_millis(pause));
        mounted.kill();
        let _ = looking.join().unwrap();
        drop(mounted);

        let again = call(&reference, &home).mount();
        assert_eq!(list(&again.join("t30uxv")).len(), 1 + 100 * 9, "after {pause} ms");
        assert!(!again.log().contains("indexed anew"), "{}", again.log());
        assert!(wait_until(SOON, || stored(&home).len() == 1));
        again.unmount();
    }
}

#[test]
fn a_compressed_layer_is_listed_at_once_and_unpacked_when_it_is_read() {
    let registry = ScriptedRegistry::start();
    let tar = patch_tar(7, 32);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &tar).unwrap();
    Artifact::new().tar("7.tar.gz", gzip.finish().unwrap()).push(&registry, "a", "b");
    let (reference, home) = (registry.reference("a:b"), Home::new());
    let (first, names) = mount_and_list(&reference, &home, 1);
    let file = "7/DATA_S2/S2_7.npy";
    let content = fs::read(first.join(file)).unwrap();
    first.unmount();

    registry.reset();
    // Chunks on disk would do without the registry.
    let second = call(&reference, &home).arg("--no-disk-cache").mount();
    assert_eq!(list(second.path()), names);
    assert_eq!(fs::metadata(second.join(file)).unwrap().len(), content.len() as u64);
    assert_eq!(registry.blob_requests(), 0);
    let fault = registry.fault(Matcher::blobs(), Fault::status(404), ALWAYS);
    assert!(fs::read(second.join(file)).is_err());
    assert!(fault.met() > 0);
    registry.clear_faults();
    assert_eq!(fs::read(second.join(file)).unwrap(), content);
}

#[test]
fn a_cache_folder_whose_disk_hangs_holds_up_neither_mounting_nor_listing() {
    let disk = HangingDisk::mount();
    let registry = ScriptedRegistry::start();
    let tar = disk.path().join("10002.tar");
    fs::write(&tar, patch_tar(10002, 32)).unwrap();
    let gzip = Command::new("gzip").arg("-c").arg(&tar).output().expect("apt-get install gzip").stdout;
    Artifact::new()
        .tar("10000.tar", patch_tar(10000, 32))
        .tar("10001.tar", patch_tar(10001, 32))
        .layer(Some("10002.tar.gz"), "application/vnd.oci.image.layer.v1.tar+gzip", gzip)
        .push(&registry, "pastis", "sample");
    let reference = registry.reference("pastis:sample");
    // Of a mount that waits for the disk, this is what it takes.
    let timeout = Duration::from_secs(120);
    let cache = disk.path().join("cache");
    let call = || {
        let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), &reference).args(["--timeout", "120s"]);
        mounted.arg("--cache-dir").arg(&cache)
    };
    let first = call().mount();
    let one = list(&first.join("10000"));
    let stored = || fs::read_dir(cache.join("indexes/sha256")).into_iter().flatten().count();
    assert!(wait_until(SOON, || stored() == 1), "{}", first.log());

    disk.hang();
    let start = Instant::now();
    let second = call().mount();
    let layers = ["10001", "10002"];
    for mounted in [&first, &second] {
        for layer in layers {
            assert_eq!(list(&mounted.join(layer)).len(), one.len(), "{}", mounted.log());
        }
        assert_eq!(list(&mounted.join("10000")), one);
        assert!(mounted.log().contains("the disk does not answer"), "{}", mounted.log());
    }
    assert!(start.elapsed() < timeout / 3, "{:?}\n{}\n{}", start.elapsed(), first.log(), second.log());
    disk.go_on();
    // What was begun while it hung is kept now, or by the next who looks.
    second.unmount();
    first.unmount();
    let third = call().mount();
    assert_eq!(list(third.path()).len(), 3 * (one.len() + 1) + 1);
    assert!(wait_until(SOON, || stored() == 3), "{}", third.log());
    assert_eq!(third.log(), "");
    third.unmount();
}
