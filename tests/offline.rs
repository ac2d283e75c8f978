//! Without a registry: what was listed or read before still is, in a new mount too, and what is missing says so.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use eo_mount_testing::files::{pread, xattr};
use eo_mount_testing::fixtures::{Sample, patch_tar};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Extracted, Fault, Home, Kind, Matcher, Mounted, RealRegistry, ScriptedRegistry, sh,
};
use tempfile::TempDir;

const EIO: Option<i32> = Some(5);
const S2: &str = "DATA_S2/S2_10000.npy";
const SPOT: &str = "DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_10000.tif";
const MIB: u64 = 1 << 20;

fn call(reference: impl Into<String>, home: &Home) -> EoMount {
    EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference).home(home)
}

fn offline(reference: impl Into<String>, home: &Home) -> EoMount {
    call(reference, home).arg("--offline")
}

/// Two patches with a config, as `pastis:sample`; the manifest's digest.
fn dataset(registry: &ScriptedRegistry) -> String {
    Artifact::new()
        .config(r#"{"dataset":"PASTIS"}"#, "application/vnd.oci.image.config.v1+json")
        .tar("10000.tar", patch_tar(10000, 4))
        .tar("10001.tar", patch_tar(10001, 32))
        .push(registry, "pastis", "sample")
        .digest
}

fn kept(home: &Home, folder: &str) -> Vec<PathBuf> {
    let folder = home.cache().join("eo-mount/manifests").join(folder);
    fs::read_dir(folder).into_iter().flatten().map(|file| file.unwrap().path()).collect()
}

#[track_caller]
fn is_missing(mounted: &Mounted, result: std::io::Result<impl Sized>) {
    assert_eq!(result.err().and_then(|error| error.raw_os_error()), EIO);
    assert!(mounted.log().contains("offline: not in the cache"), "{}", mounted.log());
}

#[test]
fn everything_read_before_is_read_without_the_registry() {
    let (registry, files, home) = (RealRegistry::start(), tempfile::tempdir().unwrap(), Home::new());
    let sample = Sample::files_in(files.path());
    let reference = registry.on_localhost("pastis-2433:sample");
    let arguments = sample.push_arguments("");
    let push: Vec<&str> = ["push", &reference].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    registry.oras(files.path(), &push);
    let extracted: Vec<_> = sample.patches().map(|(tar, name)| (Extracted::of(&tar), name.to_owned())).collect();
    let check = |mounted: &Mounted| {
        assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 4);
        for (extracted, name) in &extracted {
            assert_eq!(extracted.assert_shown_in(&mounted.join(name)), 15);
        }
        let config = fs::read(files.path().join("config.json")).unwrap();
        assert!(fs::read(mounted.join("config.json")).unwrap() == config);
    };
    let mounted = call(&reference, &home).mount();
    check(&mounted);
    let digest = xattr(mounted.path(), "user.oci.digest").unwrap();
    mounted.unmount();
    drop(registry);

    let mut mounted = offline(&reference, &home).mount();
    check(&mounted);
    assert_eq!(mounted.log(), "");
    mounted.kill();
    drop(mounted);
    let mounted = offline(&reference, &home).mount();
    check(&mounted);
    mounted.unmount();
    let by_digest = reference.replace(":sample", &format!("@{digest}"));
    let log = fs::read_to_string(home.log_file()).unwrap();
    assert_eq!(log, "");
    for (reference, warnings) in [(&by_digest, 0), (&reference, 1)] {
        let mounted = call(reference, &home).mount();
        check(&mounted);
        assert_eq!(mounted.log().matches("going on with what the cache has of it").count(), warnings);
        assert_eq!(mounted.log().lines().count(), warnings, "{}", mounted.log());
        mounted.unmount();
    }
    let log = fs::read_to_string(home.log_file()).unwrap();
    assert!(log.contains(&digest) && log.contains(" ago: ") && log.contains("cannot connect"), "{log}");
}

#[test]
fn what_is_missing_offline_is_an_error_at_once() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let digest = dataset(&registry);
    let reference = registry.reference("pastis:sample");
    let mounted = call(&reference, &home).mount();
    let file = mounted.join("10000").join(S2);
    let size = fs::metadata(&file).unwrap().len();
    assert!(size > MIB / 2, "{size}");
    let head = pread(&file, 0..4096).unwrap();
    mounted.unmount();
    registry.reset();

    let by_digest = registry.reference(&format!("pastis@{digest}"));
    let with_tag = registry.reference(&format!("pastis:other@{digest}"));
    for reference in [&reference, &by_digest, &with_tag] {
        let mounted = offline(reference, &home).mount();
        let file = mounted.join("10000").join(S2);
        assert_eq!(fs::metadata(&file).unwrap().len(), size);
        assert_eq!(pread(&file, 0..4096).unwrap(), head);
        is_missing(&mounted, pread(&file, size - 4096..size));
        is_missing(&mounted, fs::read_dir(mounted.join("10001")).and_then(|mut names| names.next().transpose()));
        let why = xattr(mounted.join("10001"), "user.eo.error").unwrap();
        assert!(why.contains("offline: not in the cache"), "{why}");
        assert!(
            fs::symlink_metadata(mounted.join("10000/DATA_S2/no.such")).unwrap_err().kind()
                == std::io::ErrorKind::NotFound
        );
        mounted.unmount();
    }
    for unseen in ["pastis:other", "other:sample", &format!("pastis@{}", eo_mount_testing::sha256(b"other"))] {
        let refused = offline(registry.reference(unseen), &home).without_log().output();
        assert_eq!((refused.code, refused.stderr.lines().count()), (1, 1), "{}", refused.stderr);
        assert!(refused.stderr.contains("offline: not in the cache"), "{}", refused.stderr);
    }
    let ls = |arguments: &[&str]| {
        let call = EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).home(&home);
        call.arg("ls").args(arguments).env("EO_MOUNT_OFFLINE", "1").output()
    };
    assert_eq!(ls(&[&reference]).text(), "10000\n10001\nconfig.json\n");
    assert_eq!(ls(&[&reference, "10001"]).code, 1);
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
}

#[test]
fn offline_needs_a_cache_folder() {
    let home = Home::new();
    let without = |arguments: &[&str]| {
        let call = offline("localhost:1/a:b", &home).args(arguments).without_log();
        call.env("HOME", "").env("XDG_CACHE_HOME", "").output()
    };
    let refused = without(&[]);
    assert_eq!((refused.code, refused.stderr.lines().count()), (2, 1), "{}", refused.stderr);
    assert!(refused.stderr.contains("--cache-dir"), "{}", refused.stderr);
    let refused = without(&["--cache-dir", "/dev/null/x"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
}

#[test]
fn without_its_registry_a_tag_is_what_it_was_and_reads_work_when_it_is_back() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let digest = dataset(&registry);
    let reference = registry.reference("pastis:sample");
    call(&reference, &home).mount().unmount();
    let short = || call(&reference, &home).args(["--timeout", "2s"]);

    for fault in [Fault::status(503), Fault::status(500), Fault::Stall, Fault::HangUp] {
        let fault_met = registry.fault(Matcher::any(), fault, ALWAYS);
        let mounted = short().mount();
        assert!(fault_met.met() > 0);
        assert_eq!(xattr(mounted.path(), "user.oci.digest"), Some(digest.clone()));
        assert!(mounted.log().contains(&digest), "{}", mounted.log());
        registry.clear_faults();
        mounted.unmount();
        fs::remove_file(home.log_file()).unwrap();
    }
    for status in [401, 403, 404] {
        let fault_met = registry.fault(Matcher::manifests(), Fault::status(status), ALWAYS);
        let refused = short().output();
        assert_eq!((refused.code, refused.stderr.lines().count()), (1, 1), "{status}: {}", refused.stderr);
        assert!(fault_met.met() > 0);
        registry.clear_faults();
    }

    registry.go_down();
    let mounted = short().mount();
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 3);
    assert!(fs::read_dir(mounted.join("10000")).and_then(|mut names| names.next().transpose()).is_err());
    registry.come_up();
    let tar = patch_tar(10000, 4);
    // It is known to be dead until it was tried again.
    let back = |path: &std::path::Path| wait_until(Duration::from_secs(20), || fs::read(path).is_ok());
    assert!(back(&mounted.join("10000").join(S2)), "{}", mounted.log());
    let bytes = fs::read(mounted.join("10000").join(S2)).unwrap();
    assert!(tar.windows(bytes.len()).any(|window| window == bytes));
    registry.go_down();
    let missing = mounted.join("10000").join(SPOT);
    assert!(fs::read(&missing).is_err());
    assert!(fs::read(mounted.join("10000").join(S2)).unwrap() == bytes);
    registry.come_up();
    assert!(back(&missing), "{}", mounted.log());
    let bytes = fs::read(&missing).unwrap();
    assert!(tar.windows(bytes.len()).any(|window| window == bytes));
    mounted.unmount();
}

#[test]
fn a_tag_that_was_moved_is_what_it_was_when_last_seen() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let first = dataset(&registry);
    let reference = registry.reference("pastis:sample");
    call(&reference, &home).mount().unmount();
    let second = Artifact::new().tar("10002.tar", patch_tar(10002, 32)).push(&registry, "pastis", "sample").digest;
    let shown = |call: EoMount| {
        let mounted = call.mount();
        let digest = xattr(mounted.path(), "user.oci.digest").unwrap();
        mounted.unmount();
        digest
    };
    assert_eq!(shown(offline(&reference, &home)), first);
    assert_eq!(shown(call(&reference, &home)), second);
    assert_eq!(shown(offline(&reference, &home)), second);
    assert_eq!(shown(offline(registry.reference(&format!("pastis@{first}")), &home)), first);
}

#[test]
fn a_known_digest_costs_no_request_and_a_tag_one() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let digest = dataset(&registry);
    let requests = |reference: &str| {
        registry.reset();
        let mounted = call(registry.reference(reference), &home).mount();
        assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 3);
        assert_eq!(fs::read(mounted.join("config.json")).unwrap(), br#"{"dataset":"PASTIS"}"#);
        mounted.unmount();
        registry.requests().iter().map(|request| request.kind).collect::<Vec<_>>()
    };
    assert_eq!(requests("pastis:sample"), [Kind::Manifest, Kind::Config]);
    assert_eq!(requests("pastis:sample"), [Kind::Manifest]);
    assert_eq!(requests(&format!("pastis@{digest}")), []);
}

#[test]
fn damaged_manifests_configs_and_tags_are_dropped_and_asked_for_again() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let digest = dataset(&registry);
    let references = [registry.reference("pastis:sample"), registry.reference(&format!("pastis@{digest}"))];
    call(&references[0], &home).mount().unmount();
    let files = [kept(&home, "sha256"), kept(&home, "tags")].concat();
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(kept(&home, "new").is_empty());
    for reference in &references {
        for wrong in [&b"{}"[..], b""] {
            for file in &files {
                fs::write(file, wrong).unwrap();
            }
            let refused = offline(reference, &home).without_log().output();
            assert_eq!(refused.code, 1, "{}", refused.stderr);
            let mounted = call(reference, &home).mount();
            assert_eq!(fs::read(mounted.join("config.json")).unwrap(), br#"{"dataset":"PASTIS"}"#);
            mounted.unmount();
        }
    }
    offline(&references[1], &home).mount().unmount();
}

#[test]
fn without_chunks_on_disk_a_dataset_is_listed_offline() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    dataset(&registry);
    let reference = registry.reference("pastis:sample");
    let mounted = call(&reference, &home).arg("--no-disk-cache").mount();
    fs::read(mounted.join("10000").join(S2)).unwrap();
    mounted.unmount();
    let mounted = offline(&reference, &home).mount();
    assert!(fs::metadata(mounted.join("10000").join(S2)).unwrap().len() > 0);
    is_missing(&mounted, fs::read(mounted.join("10000").join(S2)));
    mounted.unmount();
}

// Compressed layers.

/// Archives of one tree, packed in all ways; their names in a mount.
fn packed(registry: &ScriptedRegistry) -> (TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sh(
        at,
        "mkdir -p tree/deep; head -c 12000000 /dev/urandom >tree/large; seq 200000 >tree/deep/text; echo x >tree/small",
    );
    sh(at, "ln -s deep/text tree/link; tar -C tree -cf a.tar .");
    sh(
        at,
        "gzip -1 <a.tar >gz.tar.gz; zstd -q -1 a.tar -o long.tar.zst; bzip2 -1 <a.tar >bz.tar.bz2; xz -0 <a.tar >xz.tar.xz",
    );
    sh(at, "cd tree; zip -q -1 -r -y ../zip.zip .; zip -q -0 -r -y ../plain.zip .");
    fs::write(at.join("seek.tar.zst"), seekable(&fs::read(at.join("a.tar")).unwrap())).unwrap();
    let titles = ["gz.tar.gz", "long.tar.zst", "seek.tar.zst", "bz.tar.bz2", "xz.tar.xz", "zip.zip", "plain.zip"];
    let artifact = titles.iter().fold(Artifact::new(), |artifact, title| {
        artifact.layer(Some(title), "application/octet-stream", fs::read(at.join(title)).unwrap())
    });
    artifact.push(registry, "packed", "all");
    let names = titles.map(|title| title.split('.').next().unwrap().to_owned());
    (folder, names.to_vec())
}

/// zstd's seekable format, version 0.1.0, in frames of 1 MiB.
fn seekable(content: &[u8]) -> Vec<u8> {
    let (mut packed, mut table, mut count) = (Vec::new(), Vec::new(), 0_u32);
    for frame in content.chunks(1 << 20) {
        let bytes = zstd::bulk::compress(frame, 3).unwrap();
        table.extend([bytes.len() as u32, frame.len() as u32].map(u32::to_le_bytes).concat());
        packed.extend(bytes);
        count += 1;
    }
    packed.extend([0x184D_2A5E, table.len() as u32 + 9].map(u32::to_le_bytes).concat());
    packed.extend(table);
    packed.extend(count.to_le_bytes());
    packed.push(0);
    packed.extend(0x8F92_EAB1_u32.to_le_bytes());
    packed
}

#[test]
fn compressed_layers_read_before_are_read_offline() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let (folder, names) = packed(&registry);
    let reference = registry.reference("packed:all");
    let check = |mounted: &Mounted| {
        for name in &names {
            for file in ["large", "deep/text", "small", "link"] {
                let expected = fs::read(folder.path().join("tree").join(file)).unwrap();
                let found = fs::read(mounted.join(name).join(file));
                let found = found.unwrap_or_else(|error| panic!("{name}/{file}: {error}\n{}", mounted.log()));
                assert!(found == expected, "{name}/{file}");
            }
        }
    };
    let mounted = call(&reference, &home).mount();
    check(&mounted);
    mounted.unmount();
    registry.reset();
    registry.go_down();
    let mut mounted = offline(&reference, &home).mount();
    check(&mounted);
    mounted.kill();
    drop(mounted);
    let mounted = call(&reference, &home).args(["--timeout", "5s"]).mount();
    check(&mounted);
    mounted.unmount();
}

#[test]
fn a_part_of_a_compressed_layer_that_was_read_is_read_offline() {
    let (registry, home) = (ScriptedRegistry::start(), Home::new());
    let (folder, names) = packed(&registry);
    let reference = registry.reference("packed:all");
    let expected = fs::read(folder.path().join("tree/large")).unwrap();
    let at = 6 * MIB + 12_345;
    let read = |mounted: &Mounted, name: &str, at: u64| pread(mounted.join(name).join("large"), at..at + 10_000);
    let check = |mounted: &Mounted| {
        for name in &names {
            let found = read(mounted, name, at);
            let found = found.unwrap_or_else(|error| panic!("{name}: {error}\n{}", mounted.log()));
            assert!(found == expected[at as usize..at as usize + 10_000], "{name}");
        }
    };
    let mounted = call(&reference, &home).mount();
    check(&mounted);
    mounted.unmount();
    registry.reset();
    let mounted = offline(&reference, &home).mount();
    check(&mounted);
    // Of these the first mount fetched only what it read; the others had to be passed over.
    for name in names.iter().filter(|name| ["seek", "plain"].contains(&name.as_str())) {
        is_missing(&mounted, read(&mounted, name, MIB));
    }
    mounted.unmount();
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
}
