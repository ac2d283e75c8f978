//! The cache on disk: what was read is not fetched again, whatever happens to processes, disks, clocks and files.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use eo_mount_testing::files::{forget_pages, pread, xattr};
use eo_mount_testing::fixtures::{VirtualTar, noise, patch_tar_plan};
use eo_mount_testing::namespace::{in_own_namespace, mount};
use eo_mount_testing::processes::Signal;
use eo_mount_testing::scripted_registry::TAR_TYPE;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{ALWAYS, Artifact, EoMount, Fault, HangingDisk, Home, Matcher, Mounted, ScriptedRegistry};
use rustix::io::Errno;

const MIB: u64 = 1 << 20;
/// Everything ends sooner, by far.
const LONG: Duration = Duration::from_secs(60);
const S2: &str = "DATA_S2/S2_10000.npy";

#[test]
fn a_second_mount_reads_everything_without_a_request() {
    let data = Data::new(&[10_000, 10_001], 4);
    let first = data.mount();
    data.expect_all(&first);
    first.unmount();
    data.registry.reset();
    let second = data.mount();
    data.expect_all(&second);
    assert_eq!(data.registry.blob_requests(), 0);
}

#[test]
fn after_kill_9_little_is_fetched_again() {
    let data = Data::new(&[10_000], 1);
    let mut first = data.mount();
    let mut file = fs::File::open(first.join("10000").join(S2)).unwrap();
    let mut half = vec![0; (file.metadata().unwrap().len() / 2) as usize];
    file.read_exact(&mut half).unwrap();
    first.kill();
    drop(file);
    let mounted = data.call().in_place_of(&first).mount();
    data.expect_all(&mounted);
    let size = data.tars[0].1.size();
    let sent = data.registry.blob_bytes();
    assert!(sent <= size + 16 * MIB, "{sent} bytes for {size}");
}

#[test]
fn a_flipped_bit_is_fetched_again() {
    let data = Data::new(&[10_000], 4);
    let first = data.mount();
    data.expect_all(&first);
    wait_verified(&first.join("10000"), "blob");
    first.unmount();
    let blob = data.blob(0);
    let at = data.tars[0].1.member(S2).data.start + 100;
    let file = fs::File::options().write(true).read(true).open(&blob).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    data.registry.reset();
    let second = data.mount();
    data.expect_all(&second);
    let fetched = data.registry.blob_bytes();
    assert!((1..=2 * MIB).contains(&fetched), "{fetched}");
    assert!(second.log().contains("is damaged"), "{}", second.log());
    wait_verified(&second.join("10000"), "blob");
}

#[test]
fn files_and_layers_tell_what_is_cached_and_checked() {
    let data = Data::new(&[10_000], 4);
    let mounted = data.mount();
    let (layer, file) = (mounted.join("10000"), mounted.join("10000").join(S2));
    // Who opens a path without that is taken for a reader of all.
    assert!(fs::read_dir(&layer).unwrap().count() > 0);
    for path in [&layer, &file] {
        assert_eq!(xattr(path, "user.eo.verified").as_deref(), Some("unverified"));
        assert_eq!(xattr(path, "user.eo.cached-bytes").as_deref(), Some("0"));
    }
    let size = fs::metadata(&file).unwrap().len();
    data.expect(&mounted, 0, S2);
    assert!(wait_until(LONG, || xattr(&file, "user.eo.cached-bytes") == Some(size.to_string())));
    assert_eq!(xattr(&layer, "user.eo.verified").as_deref(), Some("unverified"));
    data.expect_all(&mounted);
    wait_verified(&layer, "blob");
    wait_verified(&file, "blob");
    assert_eq!(xattr(&layer, "user.eo.cached-bytes"), Some(data.tars[0].1.size().to_string()));
}

#[test]
fn a_blob_that_is_not_its_digest_is_noticed_when_it_is_whole_and_never_read_again() {
    let _mounts = MOUNTS.read().unwrap_or_else(PoisonError::into_inner);
    let registry = ScriptedRegistry::start();
    let bytes = noise(7, 600_000);
    let mut wrong = bytes.clone();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 0x55;
    let artifact = Artifact::new().layer(Some("blob.bin"), "application/octet-stream", bytes.clone());
    artifact.push(&registry, "pastis", "one");
    let digest = artifact.layers()[0].digest.clone();
    registry.put_blob_as(&digest, wrong);
    let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("pastis:one")).mount();
    let file = mounted.join("blob.bin");
    let _ = fs::read(&file);
    let noticed = || mounted.log().lines().any(|line| line.matches("sha256:").count() == 2 && line.contains("ERROR"));
    assert!(wait_until(LONG, noticed), "{}", mounted.log());
    // Also of what the kernel has kept.
    assert!(wait_until(LONG, || pread(&file, 0..4096).is_err()), "{}", mounted.log());
    assert_eq!(errno(pread(&file, 0..4096)), Errno::IO);
    assert_eq!(xattr(&file, "user.eo.verified").as_deref(), Some("unverified"));
    // The registry is right again: all of it is fetched, checked and read.
    registry.put_blob_as(&digest, bytes.clone());
    assert!(fs::read(&file).unwrap() == bytes);
    wait_verified(&file, "blob");
}

#[test]
fn with_verify_blob_a_layer_is_checked_before_its_first_byte() {
    let data = Data::new(&[10_000, 10_001], 4);
    let digest = &data.artifact.layers()[1].digest;
    let fault = data.registry.fault(Matcher::blob(digest).touching(MIB..MIB + 1), Fault::WrongBytes, ALWAYS);
    let mounted = data.call().arg("--verify=blob").mount();
    let (right, wrong) = (mounted.join("10000"), mounted.join("10001"));
    assert_eq!(errno(fs::read_dir(&wrong).and_then(|mut names| names.next().unwrap())), Errno::IO);
    assert!(fault.met() > 0);
    assert_eq!(xattr(&right, "user.eo.cached-bytes").as_deref(), Some("0"), "nobody has looked into it");
    data.expect(&mounted, 0, S2);
    assert_eq!(xattr(&right, "user.eo.verified").as_deref(), Some("blob"));
    data.registry.clear_faults();
    data.expect_all(&mounted);
    assert_eq!(xattr(&wrong, "user.eo.verified").as_deref(), Some("blob"));
}

#[test]
fn verify_blob_needs_a_disk_cache() {
    let data = Data::new(&[10_000], 16);
    let refused = data.call().arg("--verify=blob").arg("--no-disk-cache").output();
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("--cache-dir"), "{}", refused.stderr);
}

#[test]
fn no_disk_cache_keeps_no_chunks() {
    let data = Data::new(&[10_000], 16);
    let mounted = data.call().arg("--no-disk-cache").mount();
    data.expect_all(&mounted);
    mounted.unmount();
    assert!(!data.folder().join("blobs").exists());
}

#[test]
fn a_full_disk_is_done_without() {
    alone("a_full_disk_is_done_without", || {
        let data = Data::new(&[10_000], 4);
        fs::create_dir_all(data.folder()).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &data.folder());
        let mounted = data.call().args(["--cache-size", "1GiB", "--cache-min-free", "0B"]).mount();
        data.expect_all(&mounted);
        assert!(mounted.log().contains("nothing is kept on disk"), "{}", mounted.log());
        mounted.unmount();
        // What was kept before is still used.
        data.registry.reset();
        let again = data.mount();
        data.expect_all(&again);
        let size = data.tars[0].1.size();
        let sent = data.registry.blob_bytes();
        assert!(sent <= size - MIB / 2, "{sent} bytes of {size}\n{}", again.log());
    });
}

#[test]
fn a_folder_that_becomes_read_only_or_goes_away_is_done_without() {
    alone("a_folder_that_becomes_read_only_or_goes_away_is_done_without", || {
        let data = Data::new(&[10_000, 10_001, 10_002], 8);
        let mounted = data.mount();
        data.expect(&mounted, 0, S2);
        let elsewhere = data.home.path().join("elsewhere");
        fs::rename(data.folder(), &elsewhere).unwrap();
        data.expect(&mounted, 1, "DATA_S2/S2_10001.npy");
        fs::remove_dir_all(&elsewhere).unwrap();
        fs::remove_dir_all(data.folder()).ok();
        fs::create_dir_all(data.folder()).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=64m,ro", "tmpfs"], &data.folder());
        data.expect_all(&mounted);
    });
}

#[test]
fn a_cache_folder_on_a_disk_that_hangs_is_done_without_until_it_answers() {
    let disk = HangingDisk::mount();
    let data = Data::new(&[10_000, 10_001, 10_002, 10_003], 2);
    let (cache, timeout) = (disk.path().join("cache"), Duration::from_secs(20));
    let cache = cache.to_str().expect("a path in UTF-8");
    // Less memory than two layers: they are on the disk only.
    let call =
        data.call().args(["--cache-dir", cache, "--memory", "16MiB", "--timeout", "20s", "--cache-size", "1GiB"]);
    let mounted = call.mount();
    (0..3).for_each(|layer| data.expect_layer(&mounted, layer));
    wait_verified(&mounted.join("10002"), "blob");
    let forget = || {
        for layer in data.artifact.layers() {
            let blob = disk.path().join("cache/blobs").join(layer.digest.replace(':', "/"));
            forget_pages(&blob);
        }
        forget_all(&mounted, &data);
    };
    forget();
    disk.hang();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for layer in 0..3 {
            let (data, mounted) = (&data, &mounted);
            scope.spawn(move || data.expect_layer(mounted, layer));
        }
    });
    assert!(mounted.log().contains("the disk does not answer"), "{}", mounted.log());
    // Where its index may be, only the disk can tell.
    let _ = fs::read_dir(mounted.join("10003")).map(Iterator::count);
    assert!(xattr(mounted.join("10000"), "user.eo.verified").is_some());
    assert!(start.elapsed() < 3 * timeout, "{:?}", start.elapsed());
    disk.go_on();
    data.expect_all(&mounted);
    let size = data.tars[3].1.size().to_string();
    let is_kept = || xattr(mounted.join("10003"), "user.eo.cached-bytes");
    assert!(wait_until(LONG, || is_kept().as_ref() == Some(&size)), "{:?}", is_kept());
    forget();
    disk.hang();
    let _ = pread(mounted.join("10000").join(S2), 0..4096);
    let mut mounted = mounted;
    mounted.signal(Signal::TERM);
    assert!(mounted.wait_ended(Duration::from_secs(10)).is_some(), "{}", mounted.log());
}

#[test]
fn a_cache_folder_that_is_read_only_is_read() {
    alone("a_cache_folder_that_is_read_only_is_read", || {
        let data = Data::new(&[10_000, 10_001], 4);
        let first = data.mount();
        data.expect_layer(&first, 0);
        wait_verified(&first.join("10000"), "blob");
        mount(&["--bind", "-o", "ro", &data.folder().to_string_lossy()], &data.folder());
        mount(&["-o", "remount,bind,ro"], &data.folder());
        fs::write(data.folder().join("x"), "").expect_err("it is read-only");
        forget_all(&first, &data);
        data.expect_all(&first);
        first.unmount();
        data.registry.reset();
        let second = data.mount();
        data.expect_layer(&second, 0);
        assert_eq!(data.registry.blob_requests(), 0);
        data.expect_layer(&second, 1);
        assert!(second.log().contains("what is in it is used, and nothing is added"), "{}", second.log());
    });
}

#[test]
fn a_process_that_may_open_few_files_keeps_more_blobs_than_that() {
    let _mounts = MOUNTS.read().unwrap_or_else(PoisonError::into_inner);
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let blobs: Vec<Vec<u8>> = (0..150).map(|n| noise(n, 1000)).collect();
    let artifact = blobs.iter().enumerate().fold(Artifact::new(), |artifact, (n, bytes)| {
        artifact.layer(Some(&format!("{n}.bin")), "application/octet-stream", bytes.clone())
    });
    artifact.push(&registry, "pastis", "many");
    let program = home.path().join("eo-mount-with-few-files");
    fs::write(&program, format!("#!/bin/sh\nulimit -n 64\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_eo-mount"))).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for most in [blobs.len(), blobs.len() / 2] {
        registry.reset();
        let mounted = EoMount::new(&program, registry.reference("pastis:many")).home(&home).mount();
        for (n, bytes) in blobs.iter().enumerate() {
            assert!(fs::read(mounted.join(format!("{n}.bin"))).unwrap() == *bytes, "{n}");
        }
        let requests = registry.blob_requests();
        assert!(requests <= most && mounted.log().is_empty(), "{requests}\n{}", mounted.log());
        mounted.unmount();
    }
}

#[test]
fn two_mounts_share_a_small_cache_within_its_bound() {
    alone("two_mounts_share_a_small_cache_within_its_bound", || {
        let data = Data::new(&[10_000, 10_001, 10_002, 10_003], 1);
        let limit = 64 * MIB;
        // A file system of its own tells what is used at one moment, and of removed files that are open, too.
        fs::create_dir_all(data.folder()).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=256m", "tmpfs"], &data.folder());
        let small = ["--cache-size", "64MiB", "--cache-min-free", "0B", "--memory", "16MiB"];
        let mounts = [data.call().args(small).mount(), data.call().args(small).mount()];
        std::thread::scope(|scope| {
            let readers: Vec<_> = [[0, 1, 2, 3], [2, 3, 0, 1]]
                .into_iter()
                .zip(&mounts)
                .map(|(order, mounted)| {
                    let data = &data;
                    scope.spawn(move || {
                        for layer in order.into_iter().chain(order) {
                            data.expect_layer(mounted, layer);
                        }
                    })
                })
                .collect();
            let mut most = 0;
            while !readers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                let now = rustix::fs::statvfs(data.folder()).unwrap();
                most = most.max((now.f_blocks - now.f_bfree) * now.f_frsize);
                assert!(most <= limit, "{most} bytes are used");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(most > limit / 4, "{most} bytes at most: nothing was kept");
        });
        for mounted in &mounts {
            assert!(!mounted.log().contains("ERROR") && !mounted.log().contains("damaged"), "{}", mounted.log());
        }
    });
}

/// A new namespace has a copy of every mount, which would outlive its unmounting: no two of these tests at once.
static MOUNTS: RwLock<()> = RwLock::new(());

#[track_caller]
fn alone(test: &str, body: impl FnOnce()) {
    let inside = std::env::var_os("EO_MOUNT_TEST_NAMESPACE").is_some();
    let _alone = (!inside).then(|| MOUNTS.write().unwrap_or_else(PoisonError::into_inner));
    in_own_namespace(test, body);
}

/// A dataset, and one home for all who mount it.
struct Data {
    _mounts: RwLockReadGuard<'static, ()>,
    registry: ScriptedRegistry,
    artifact: Artifact,
    tars: Vec<(u32, VirtualTar)>,
    home: Home,
}

impl Data {
    fn new(ids: &[u32], scale: u32) -> Self {
        let _mounts = MOUNTS.read().unwrap_or_else(PoisonError::into_inner);
        let registry = ScriptedRegistry::start();
        let tars: Vec<_> = ids.iter().map(|id| (*id, patch_tar_plan(*id, scale))).collect();
        let mut artifact = Artifact::new();
        for (id, tar) in &tars {
            artifact = artifact.layer(Some(&format!("sample/{id}.tar")), TAR_TYPE, tar.to_bytes());
        }
        artifact.push(&registry, "pastis", "some");
        Self { _mounts, registry, artifact, tars, home: Home::new() }
    }

    fn call(&self) -> EoMount {
        EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), self.registry.reference("pastis:some")).home(&self.home)
    }

    fn mount(&self) -> Mounted {
        self.call().mount()
    }

    fn folder(&self) -> PathBuf {
        self.home.cache().join("eo-mount")
    }

    fn blob(&self, layer: usize) -> PathBuf {
        self.folder().join("blobs").join(self.artifact.layers()[layer].digest.replace(':', "/"))
    }

    /// Where a layer is: a single one is not named by what all titles share.
    fn path(&self, mounted: &Mounted, layer: usize, member: &str) -> PathBuf {
        mounted.join(self.tars[layer].0.to_string()).join(member)
    }

    #[track_caller]
    fn expect(&self, mounted: &Mounted, layer: usize, member: &str) {
        let path = self.path(mounted, layer, member);
        let tar = &self.tars[layer].1;
        let read = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}\n{}", path.display(), mounted.log()));
        assert!(read == tar.read(tar.member(member).data.clone()), "{}", path.display());
    }

    #[track_caller]
    fn expect_layer(&self, mounted: &Mounted, layer: usize) {
        for member in self.tars[layer].1.members() {
            let path = self.path(mounted, layer, &member.path);
            forget_pages(&path);
            self.expect(mounted, layer, &member.path);
        }
    }

    #[track_caller]
    fn expect_all(&self, mounted: &Mounted) {
        (0..self.tars.len()).for_each(|layer| self.expect_layer(mounted, layer));
    }
}

fn forget_all(mounted: &Mounted, data: &Data) {
    for (layer, (_, tar)) in data.tars.iter().enumerate() {
        tar.members().iter().for_each(|member| forget_pages(data.path(mounted, layer, &member.path)));
    }
}

#[track_caller]
fn wait_verified(path: &Path, how: &str) {
    let verified = || xattr(path, "user.eo.verified");
    assert!(wait_until(LONG, || verified().as_deref() == Some(how)), "{:?}", verified());
}

fn errno<T>(result: std::io::Result<T>) -> Errno {
    let error = result.err().expect("an error");
    Errno::from_io_error(&error).expect("an error of the system")
}
