//! Compressed layers and ZIP archives, mounted: what the real tools write is what the real tools extract.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::files::xattr;
use eo_mount_testing::fixtures::noise;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{ALWAYS, Artifact, EoMount, Fault, Home, Kind, Matcher, Mounted, ScriptedRegistry, run, sh};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const GZIP_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A folder `tree` with small and large files, links and odd names.
fn tree() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("deep/er")).unwrap();
    let noise = |length: usize, seed: u64| {
        let mut state = seed;
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(&(state >> 40).to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    };
    fs::write(tree.join("large"), noise(9_000_001, 1)).unwrap();
    fs::write(tree.join("deep/middle"), noise(700_000, 2)).unwrap();
    fs::write(tree.join("deep/er/zeros"), vec![0; 3_000_000]).unwrap();
    fs::write(tree.join("empty"), b"").unwrap();
    for n in 0..40_u64 {
        fs::write(tree.join(format!("deep/small-{n}")), noise(n as usize * 97, n)).unwrap();
    }
    fs::write(tree.join("grün.txt"), "ü").unwrap();
    std::os::unix::fs::symlink("deep/middle", tree.join("link")).unwrap();
    folder
}

/// What there is below a folder: kind, size, time in seconds, and content or target.
fn listing(root: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = meta.mode() & 0o170_000;
            let (time, content) = if meta.is_dir() {
                folders.push(path.clone());
                (0, Vec::new())
            } else if meta.is_symlink() {
                (0, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes())
            } else {
                (meta.mtime(), fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
            };
            found.insert(path.strip_prefix(root).unwrap().to_path_buf(), (kind, time, content));
        }
    }
    found
}

#[track_caller]
fn same(mounted: &Path, original: &Path, what: &str) {
    let (mounted, original) = (listing(mounted), listing(original));
    let names = |all: &BTreeMap<PathBuf, _>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&mounted), names(&original), "{what}");
    for (path, entry) in &original {
        assert!(mounted[path] == *entry, "{what}: {} differs", path.display());
    }
}

fn call(registry: &ScriptedRegistry, name: &str) -> EoMount {
    EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference(name))
}

fn one_layer(registry: &ScriptedRegistry, title: &str, media_type: &str, bytes: Vec<u8>) -> EoMount {
    Artifact::new().layer(Some(title), media_type, bytes).push(registry, "d", "t");
    call(registry, "d:t")
}

/// zstd's seekable format, version 0.1.0: frames, and a table in a skippable frame at the end.
fn seekable(content: &Path, to: &Path, frame: usize) {
    let content = fs::read(content).unwrap();
    let (mut packed, mut table) = (Vec::new(), Vec::new());
    let frames = content.chunks(frame);
    let count = frames.len() as u32;
    for frame in frames {
        let frame_bytes = zstd::bulk::compress(frame, 3).unwrap();
        table.extend((frame_bytes.len() as u32).to_le_bytes());
        table.extend((frame.len() as u32).to_le_bytes());
        packed.extend(frame_bytes);
    }
    packed.extend(0x184D_2A5E_u32.to_le_bytes());
    packed.extend((table.len() as u32 + 9).to_le_bytes());
    packed.extend(table);
    packed.extend(count.to_le_bytes());
    packed.push(0);
    packed.extend(0x8F92_EAB1_u32.to_le_bytes());
    fs::write(to, packed).unwrap();
}

#[test]
fn archives_of_every_compressor_read_as_what_was_packed() {
    let folder = tree();
    let at = folder.path();
    sh(at, "tar -cf a.tar -C tree .");
    sh(at, "gzip -k a.tar; mv a.tar.gz gzip.tar.gz; gzip -1 <a.tar >fast.tgz; pigz -p 2 <a.tar >pigz.tar.gz");
    sh(
        at,
        "bgzip <a.tar >bgzip.tar.gz; (head -c 3000000 a.tar | gzip; tail -c +3000001 a.tar | gzip; head -c 600 /dev/zero) >joined.tar.gz",
    );
    sh(at, "zstd -q a.tar -o single.tar.zst; zstd -q -T0 -10 --long a.tar -o threads.tar.zst");
    sh(at, "split -b 1000000 a.tar part.; for p in part.*; do zstd -q -c $p; done >frames.tar.zst");
    sh(
        at,
        "bzip2 -k a.tar; mv a.tar.bz2 bzip2.tar.bz2; cp bzip2.tar.bz2 short.tbz2; xz -1 -k a.tar; mv a.tar.xz xz.tar.xz",
    );
    sh(at, "xz -0 -T2 --block-size=1MiB <a.tar >blocks.txz");
    seekable(&at.join("a.tar"), &at.join("seekable.tar.zst"), 1 << 20);
    let names = [
        "gzip.tar.gz",
        "fast.tgz",
        "pigz.tar.gz",
        "bgzip.tar.gz",
        "joined.tar.gz",
        "single.tar.zst",
        "threads.tar.zst",
        "frames.tar.zst",
        "seekable.tar.zst",
        "bzip2.tar.bz2",
        "short.tbz2",
        "xz.tar.xz",
        "blocks.txz",
    ];
    let registry = ScriptedRegistry::start();
    let mut artifact = Artifact::new();
    for name in names {
        artifact = artifact.layer(Some(name), "application/octet-stream", fs::read(at.join(name)).unwrap());
    }
    // Called something else altogether: the content counts.
    artifact = artifact.layer(Some("wrong.tar"), "application/x-bzip2", fs::read(at.join("xz.tar.xz")).unwrap());
    artifact.push(&registry, "d", "t");
    let mounted = call(&registry, "d:t").mount();
    for name in names {
        let shown = name.split('.').next().unwrap();
        same(&mounted.join(shown), &at.join("tree"), name);
    }
    same(&mounted.join("wrong"), &at.join("tree"), "wrong");
    mounted.unmount();
}

#[test]
fn a_random_read_after_the_pass_costs_one_distance() {
    let folder = tree();
    let at = folder.path();
    sh(at, "tar -cf a.tar -C tree . ; gzip -k a.tar");
    seekable(&at.join("a.tar"), &at.join("a.tar.zst"), 1 << 20);
    for (title, pass) in [("a.tar.gz", true), ("a.tar.zst", false)] {
        let registry = ScriptedRegistry::start();
        let packed = fs::read(at.join(title)).unwrap();
        let size = packed.len() as u64;
        let mounted = one_layer(&registry, title, GZIP_TYPE, packed).mount();
        let file = File::open(mounted.join("a/large")).unwrap();
        let looked = registry.blob_bytes();
        assert_eq!(looked > size, pass, "{title}: {looked} of {size}");
        registry.reset();
        let mut byte = [0; 4096];
        file.read_exact_at(&mut byte, 5_000_000).unwrap();
        let expected = fs::read(at.join("tree/large")).unwrap();
        assert_eq!(byte, expected[5_000_000..5_004_096]);
        assert!(registry.blob_bytes() < 5 * MIB / 2, "{title}: {}", registry.blob_bytes());
        drop(file);
        mounted.unmount();
    }
}

#[test]
fn a_second_mount_needs_no_pass() {
    let folder = tree();
    let at = folder.path();
    sh(at, "tar -cf a.tar -C tree . ; gzip -k a.tar");
    let registry = ScriptedRegistry::start();
    let packed = fs::read(at.join("a.tar.gz")).unwrap();
    let size = packed.len() as u64;
    let home = Home::new();
    let mounted = one_layer(&registry, "a.tar.gz", GZIP_TYPE, packed).home(&home).mount();
    same(&mounted.join("a"), &at.join("tree"), "first");
    mounted.unmount();
    registry.reset();
    let mounted = call(&registry, "d:t").home(&home).mount();
    let mut start = [0; 100];
    File::open(mounted.join("a/large")).unwrap().read_exact_at(&mut start, 100).unwrap();
    assert!(registry.blob_bytes() < size, "{} of {size}", registry.blob_bytes());
    same(&mounted.join("a"), &at.join("tree"), "second");
    mounted.unmount();
    // A stored table that was damaged is not believed.
    let tables: Vec<_> = fs::read_dir(home.cache().join("eo-mount/checkpoints")).unwrap().collect();
    assert_eq!(tables.len(), 1);
    for table in tables {
        let file = File::options().write(true).open(table.unwrap().path()).unwrap();
        let length = file.metadata().unwrap().len();
        file.write_all_at(&[0x55; 40], length - 60).unwrap();
    }
    let mounted = call(&registry, "d:t").home(&home).mount();
    same(&mounted.join("a"), &at.join("tree"), "third");
    mounted.unmount();
}

#[test]
fn a_pass_that_was_broken_off_goes_on_where_it_was() {
    let folder = tree();
    let at = folder.path();
    sh(at, "head -c 20000000 /dev/urandom >tree/random; tar -cf a.tar -C tree . ; gzip -1 -k a.tar");
    let registry = ScriptedRegistry::start();
    let packed = fs::read(at.join("a.tar.gz")).unwrap();
    let size = packed.len() as u64;
    assert!(size > 20 * MIB);
    let fault = registry.fault(Matcher::blobs().touching(16 * MIB..16 * MIB + 1), Fault::status(500), ALWAYS);
    let mounted = one_layer(&registry, "a.tar.gz", GZIP_TYPE, packed).args(["--timeout", "2s"]).mount();
    let first = |path: PathBuf| fs::read_dir(path).and_then(|mut folder| folder.next().transpose());
    first(mounted.join("a")).unwrap_err();
    std::thread::sleep(Duration::from_secs(3));
    assert!(fault.met() > 0);
    registry.clear_faults();
    registry.reset();
    assert!((0..20).any(|_| first(mounted.join("a")).is_ok()), "{}", mounted.log());
    let again = registry.blob_bytes();
    assert!(again < size - 11 * MIB, "{again} of {size} bytes were fetched after the break");
    same(&mounted.join("a"), &at.join("tree"), "after the break");
    mounted.unmount();
}

/// Chunks on disk would hide where the second mount begins.
#[test]
fn a_pass_that_was_killed_goes_on_in_the_next_mount() {
    let folder = tree();
    let at = folder.path();
    sh(at, "head -c 50000000 /dev/urandom >tree/random; tar -cf a.tar -C tree . ");
    sh(at, "gzip -1 -k a.tar; split -b 3000000 a.tar part.; for p in part.*; do zstd -q -1 -c $p; done >b.tar.zst");
    for title in ["a.tar.gz", "b.tar.zst"] {
        let registry = ScriptedRegistry::start();
        let packed = fs::read(at.join(title)).unwrap();
        let size = packed.len() as u64;
        assert!(size > 48 * MIB);
        let fault = registry.fault(Matcher::blobs().touching(40 * MIB..40 * MIB + 1), Fault::Stall, ALWAYS);
        let home = Home::new();
        let mut mounted = one_layer(&registry, title, GZIP_TYPE, packed).home(&home).arg("--no-disk-cache").mount();
        let path = mounted.join(&title[..1]);
        let looking = std::thread::spawn(move || fs::read_dir(path).map(|entries| entries.count()));
        let kept = |what: &str| {
            let files = fs::read_dir(home.cache().join("eo-mount/checkpoints"));
            let names = files.into_iter().flatten().map(|file| file.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.starts_with(what)).count()
        };
        assert!(wait_until(SOON, || fault.met() > 0 && kept("progress-") == 1 && kept("pass-") == 1));
        mounted.kill();
        let _ = looking.join().unwrap();
        drop(mounted);
        registry.clear_faults();
        registry.reset();

        let mounted = call(&registry, "d:t").home(&home).args(["--no-disk-cache", "-v"]).mount();
        assert!(fs::read_dir(mounted.join(&title[..1])).unwrap().count() > 0);
        assert!(mounted.log().contains("goes on at byte"), "{}", mounted.log());
        let ranges: Vec<_> =
            registry.requests_of(Kind::Blob).iter().filter_map(|request| request.byte_range()).collect();
        // Its first chunk tells what it is; the last ones whether it has a seek table.
        let before = ranges.iter().filter(|range| range.start < 12 * MIB).map(|range| range.end - range.start);
        assert!(before.sum::<u64>() <= 128 << 10, "{title}: {ranges:?}");
        assert!(registry.blob_bytes() < size - 12 * MIB, "{title}: {} of {size}", registry.blob_bytes());
        assert_eq!((kept("progress-"), kept("pass-"), kept("sha256-")), (0, 0, 1));
        same(&mounted.join(&title[..1]), &at.join("tree"), title);
        mounted.unmount();
    }
}

#[test]
fn what_is_left_of_a_pass_is_not_believed_when_it_is_damaged() {
    let folder = tree();
    let at = folder.path();
    sh(at, "head -c 26000000 /dev/urandom >tree/random; tar -cf a.tar -C tree . ; gzip -1 -k a.tar");
    let registry = ScriptedRegistry::start();
    let packed = fs::read(at.join("a.tar.gz")).unwrap();
    let home = Home::new();
    let kept = home.cache().join("eo-mount/checkpoints");
    let fault = Matcher::blobs().touching(24 * MIB..24 * MIB + 1);
    let mut call = one_layer(&registry, "a.tar.gz", GZIP_TYPE, packed).home(&home);
    let left = |prefix: &str| {
        let mut files = fs::read_dir(&kept).into_iter().flatten().map(|file| file.unwrap().path());
        files.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix))
    };
    type Damage = fn(&Path, &Path);
    let damages: [Damage; 4] = [
        |progress, _| {
            let mut bytes = fs::read(progress).unwrap();
            bytes[40] ^= 1;
            fs::write(progress, bytes).unwrap();
        },
        |progress, _| fs::write(progress, b"EOPASS").unwrap(),
        |_, pass| fs::write(pass, b"short").unwrap(),
        // What the decoder would start with.
        |_, pass| {
            let length = fs::metadata(pass).unwrap().len() as usize;
            fs::write(pass, vec![0x55; length]).unwrap();
        },
    ];
    for damage in damages {
        let stalled = registry.fault(fault.clone(), Fault::Stall, ALWAYS);
        let mut mounted = call.mount();
        let path = mounted.join("a");
        let looking = std::thread::spawn(move || fs::read_dir(path).map(|entries| entries.count()));
        assert!(wait_until(SOON, || stalled.met() > 0 && left("progress-").is_some()));
        mounted.kill();
        let _ = looking.join().unwrap();
        registry.clear_faults();
        damage(&left("progress-").unwrap(), &left("pass-").unwrap());
        drop(mounted);
        let mounted = self::call(&registry, "d:t").home(&home).arg("-v").mount();
        same(&mounted.join("a"), &at.join("tree"), "after damage");
        assert!(!mounted.log().contains("goes on at byte"), "{}", mounted.log());
        assert!(left("progress-").is_none() && left("pass-").is_none());
        mounted.unmount();
        fs::remove_dir_all(home.cache().join("eo-mount")).unwrap();
        call = self::call(&registry, "d:t").home(&home);
    }
}

fn zip(at: &Path, script: &str) {
    let script = format!("import zipfile, os, sys\nos.chdir('tree')\n{script}");
    let mut python = Command::new("python3");
    python.args(["-c", &script]).current_dir(at);
    run(&mut python, Duration::from_secs(120)).expect_success("python3 (apt-get install python3)");
}

#[test]
fn zip_archives_read_as_unzip_extracts_them() {
    let folder = tree();
    let at = folder.path();
    let walk = "names = [os.path.join(f, n) for f, d, ns in os.walk('.') for n in sorted(ns)]\n";
    sh(at, "cd tree; zip -q -r ../info.zip .; zip -q -r -y ../links.zip .; zip -q -0 -r ../stored.zip .");
    sh(at, "cd tree; zip -q -r - . | cat >../stream.zip; (echo '#!/bin/sh'; cat ../info.zip) >../prefix.zip");
    zip(
        at,
        &format!(
            "{walk}with zipfile.ZipFile('../python.zip', 'w', zipfile.ZIP_DEFLATED) as z:\n [z.write(n) for n in names]"
        ),
    );
    zip(
        at,
        &format!(
            "{walk}with zipfile.ZipFile('../zip64.zip', 'w') as z:\n for n in names:\n  i = zipfile.ZipInfo.from_file(n)\n  i.compress_type = zipfile.ZIP_DEFLATED\n  with z.open(i, 'w', force_zip64=True) as t: t.write(open(n, 'rb').read())"
        ),
    );
    let names = ["info", "links", "stored", "stream", "prefix", "python", "zip64"];
    let registry = ScriptedRegistry::start();
    let mut artifact = Artifact::new();
    for name in names {
        let bytes = fs::read(at.join(format!("{name}.zip"))).unwrap();
        artifact = artifact.layer(Some(&format!("{name}.zip")), "application/zip", bytes);
        // It warns of the prefix, and says so with its exit code.
        sh(at, &format!("unzip -q {name}.zip -d out-{name} || [ $? -eq 1 ]"));
    }
    artifact.push(&registry, "d", "t");
    let mounted = call(&registry, "d:t").env("TZ", "UTC").mount();
    for name in names {
        let (mut shown, mut extracted) = (listing(&mounted.join(name)), listing(&at.join(format!("out-{name}"))));
        if matches!(name, "python" | "zip64") {
            // FAT's times are local ones, for unzip.
            shown.values_mut().chain(extracted.values_mut()).for_each(|(_, time, _)| *time = 0);
        }
        assert_eq!(shown.keys().collect::<Vec<_>>(), extracted.keys().collect::<Vec<_>>(), "{name}");
        for (path, entry) in &extracted {
            assert!(shown[path] == *entry, "{name}: {} differs", path.display());
        }
    }
    mounted.unmount();
}

#[test]
fn members_that_cannot_be_read_are_listed_and_leave_the_others_alone() {
    let folder = tree();
    let at = folder.path();
    sh(at, "cd tree; zip -q ../a.zip empty deep/middle; zip -q -P secret ../a.zip large");
    zip(at, "with zipfile.ZipFile('../a.zip', 'a', zipfile.ZIP_LZMA) as z: z.write('deep/er/zeros')");
    let registry = ScriptedRegistry::start();
    let mut bytes = fs::read(at.join("a.zip")).unwrap();
    let mounted = one_layer(&registry, "a.zip", "application/zip", bytes.clone()).mount();
    assert_eq!(fs::metadata(mounted.join("a/large")).unwrap().len(), 9_000_001);
    for (name, reason) in [("large", "encrypted"), ("deep/er/zeros", "LZMA")] {
        let error = fs::read(mounted.join("a").join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{name}: {error}");
        assert!(mounted.log().contains(reason), "{name}: {}", mounted.log());
    }
    assert!(fs::read(mounted.join("a/deep/middle")).unwrap() == fs::read(at.join("tree/deep/middle")).unwrap());
    mounted.unmount();

    let middle = bytes.windows(11).position(|w| w == b"deep/middle").unwrap();
    bytes[middle + 100_000] ^= 1;
    let mounted = one_layer(&registry, "a.zip", "application/zip", bytes).mount();
    assert_eq!(fs::read(mounted.join("a/deep/middle")).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(fs::read(mounted.join("a/empty")).unwrap(), b"");
    mounted.unmount();
}

#[test]
fn damaged_archives_are_errors_with_a_reason() {
    let folder = tree();
    let at = folder.path();
    sh(
        at,
        "tar -cf a.tar -C tree . ; gzip -k a.tar; zstd -q a.tar; bzip2 -k a.tar; xz -0 -k a.tar; cd tree; zip -q -r ../a.zip .",
    );
    let registry = ScriptedRegistry::start();
    let mut artifact = Artifact::new().tar("good.tar", fs::read(at.join("a.tar")).unwrap());
    for ending in ["tar.gz", "tar.zst", "tar.bz2", "tar.xz", "zip"] {
        let bytes = fs::read(at.join(format!("a.{ending}"))).unwrap();
        let cut = bytes[..bytes.len() - 1000].to_vec();
        artifact = artifact.layer(
            Some(&format!("cut-{}.{ending}", ending.replace('.', "-"))),
            "application/octet-stream",
            cut,
        );
        if ending != "zip" {
            let mut flipped = bytes.clone();
            let middle = flipped.len() / 2;
            flipped[middle] ^= 0x10;
            artifact = artifact.layer(
                Some(&format!("bit-{}.{ending}", ending.replace('.', "-"))),
                "application/octet-stream",
                flipped,
            );
        }
    }
    artifact.push(&registry, "d", "t");
    let mounted = call(&registry, "d:t").mount();
    let mut seen = 0;
    for entry in fs::read_dir(mounted.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path != mounted.join("good") {
            seen += 1;
            let error = fs::read_dir(&path).and_then(|mut dir| dir.next().transpose()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(5), "{}: {error}", path.display());
        }
    }
    assert_eq!(seen, 9);
    same(&mounted.join("good"), &at.join("tree"), "good");
    mounted.unmount();
}

/// `zstd` writes a checksum behind each frame. Between two checkpoints gzip has none.
#[test]
fn a_blob_that_changes_after_the_pass_is_an_error_until_it_is_what_it_was() {
    let folder = tree();
    let at = folder.path();
    sh(
        at,
        "tar -cf a.tar -C tree . ; split -b 3000000 a.tar part.; for p in part.*; do zstd -q -c $p; done >a.tar.zst",
    );
    let registry = ScriptedRegistry::start();
    let packed = fs::read(at.join("a.tar.zst")).unwrap();
    let home = Home::new();
    let artifact = Artifact::new().layer(Some("a.tar.zst"), GZIP_TYPE, packed.clone());
    let digest = artifact.layers()[0].digest.clone();
    artifact.push(&registry, "d", "t");
    let mounted = call(&registry, "d:t").home(&home).mount();
    same(&mounted.join("a"), &at.join("tree"), "as it was");
    mounted.unmount();
    let mut changed = packed.clone();
    changed[packed.len() / 8..].fill(0xff);
    let shorter = packed[..packed.len() / 2].to_vec();
    for (what, bytes) in [("changed", changed), ("shorter", shorter)] {
        registry.put_blob_as(&digest, bytes);
        let mounted = call(&registry, "d:t").home(&home).arg("--no-disk-cache").mount();
        assert_eq!(fs::metadata(mounted.join("a/large")).unwrap().len(), 9_000_001, "{what}");
        let error = fs::read(mounted.join("a/large")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{what}: {error}");
        assert!(mounted.log().lines().any(|line| line.contains(&digest)), "{what}: {}", mounted.log());
        registry.put_blob_as(&digest, packed.clone());
        same(&mounted.join("a"), &at.join("tree"), what);
        mounted.unmount();
    }
}

#[test]
fn a_byte_that_changes_after_the_pass_is_noticed_though_it_can_be_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let (at, bytes) = (folder.path(), noise(5, 6_000_000));
    fs::write(at.join("noise"), &bytes).unwrap();
    sh(at, "tar -cf a.tar noise; gzip -1 a.tar");
    let registry = ScriptedRegistry::start();
    let (home, packed) = (Home::new(), fs::read(at.join("a.tar.gz")).unwrap());
    let artifact = Artifact::new().layer(Some("a.tar.gz"), GZIP_TYPE, packed.clone());
    let digest = artifact.layers()[0].digest.clone();
    artifact.push(&registry, "d", "t");
    let mount = || call(&registry, "d:t").home(&home).arg("--no-disk-cache").mount();
    assert!(fs::read(mount().join("a/noise")).unwrap() == bytes);
    // Noise is stored as it is.
    let mut changed = packed.clone();
    changed[packed.len() / 2] ^= 1;
    registry.put_blob_as(&digest, changed);
    let mounted = mount();
    let error = fs::read(mounted.join("a/noise")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let reason = "its content is not what it was when the layer was first read";
    assert!(mounted.log().contains(reason), "{}", mounted.log());
    assert!(xattr(mounted.join("a"), "user.eo.error").is_some_and(|error| error.contains(reason)));
    registry.put_blob_as(&digest, packed);
    assert!(fs::read(mounted.join("a/noise")).unwrap() == bytes);
    assert_eq!(xattr(mounted.join("a"), "user.eo.error"), None);
}

#[test]
fn what_follows_a_gap_of_zeros_is_not_shown_and_that_is_said() {
    let folder = tree();
    let at = folder.path();
    sh(
        at,
        "tar -b 1 -cf a.tar -C tree empty link; tar -b 1 -cf b.tar -C tree deep; cat a.tar b.tar >c.tar; gzip -k c.tar",
    );
    let registry = ScriptedRegistry::start();
    let mut artifact = Artifact::new();
    for title in ["c.tar", "c.tar.gz"] {
        artifact = artifact.layer(
            Some(&title.replace('c', &title.len().to_string())),
            GZIP_TYPE,
            fs::read(at.join(title)).unwrap(),
        );
    }
    artifact.push(&registry, "d", "t");
    let mounted = call(&registry, "d:t").mount();
    for layer in ["5", "8"] {
        assert_eq!(listing(&mounted.join(layer)).len(), 2, "{layer}");
    }
    let said = |line: &&str| line.contains("bytes follow the end of the archive") && line.contains("tar -i");
    assert_eq!(mounted.log().lines().filter(said).count(), 2, "{}", mounted.log());
    mounted.unmount();
}

#[test]
fn a_cache_folder_that_is_too_small_is_said() {
    let folder = tree();
    let at = folder.path();
    let cache = tempfile::tempdir().unwrap();
    sh(at, "tar -cf a.tar -C tree . ; gzip -k a.tar; bzip2 -k a.tar");
    // A tenth of it may be used.
    sh(at, &format!("mount -t tmpfs -o size=8m none {} # needs root", cache.path().display()));
    let registry = ScriptedRegistry::start();
    let mut artifact = Artifact::new();
    for name in ["small.tar.gz", "large.tar.bz2"] {
        let bytes = fs::read(at.join(name.replace("small", "a").replace("large", "a"))).unwrap();
        artifact = artifact.layer(Some(name), GZIP_TYPE, bytes);
    }
    artifact.push(&registry, "d", "t");
    let mounted = call(&registry, "d:t").env("EO_MOUNT_CACHE_DIR", cache.path()).mount();
    let full = fs::read_dir(mounted.join("large")).and_then(|mut folder| folder.next().transpose());
    let small = listing(&mounted.join("small"));
    let log = mounted.log();
    mounted.unmount();
    sh(at, &format!("umount {}", cache.path().display()));
    assert_eq!(full.unwrap_err().raw_os_error(), Some(28), "{log}");
    assert!(log.contains("--cache-dir"), "{log}");
    assert!(small == listing(&at.join("tree")));
}

fn without_cache(call: EoMount) -> Mounted {
    call.env("EO_MOUNT_CACHE_DIR", "/proc/no-such-folder").mount()
}

#[test]
fn without_a_cache_folder_gzip_is_read_and_xz_says_what_it_needs() {
    let folder = tree();
    let at = folder.path();
    sh(at, "tar -cf a.tar -C tree . ; gzip -k a.tar; xz -0 -k a.tar");
    let registry = ScriptedRegistry::start();
    let mounted = without_cache(one_layer(&registry, "a.tar.gz", GZIP_TYPE, fs::read(at.join("a.tar.gz")).unwrap()));
    same(&mounted.join("a"), &at.join("tree"), "gzip");
    mounted.unmount();
    let mounted = without_cache(one_layer(&registry, "a.tar.xz", GZIP_TYPE, fs::read(at.join("a.tar.xz")).unwrap()));
    fs::read_dir(mounted.join("a")).and_then(|mut dir| dir.next().transpose()).unwrap_err();
    assert!(mounted.log().contains("--cache-dir"), "{}", mounted.log());
    mounted.unmount();
}
