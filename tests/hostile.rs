//! Artifacts made to hurt: whatever titles, sizes and archives say, the mount stays up, stays small, and serves the
//! other layers.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::files::{bytes_of_files, errno, strays_in_cache};
use eo_mount_testing::fixtures::{RawTar, noise};
use eo_mount_testing::namespace::{in_own_namespace, mount};
use eo_mount_testing::processes::is_alive;
use eo_mount_testing::scripted_registry::TAR_TYPE;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    ALWAYS, Artifact, Descriptor, EoMount, Fault, Matcher, Mounted, ScriptedRegistry, run, sha256, xattr,
};
use serde_json::{Value, json};

const EIO: i32 = 5;
const MIB: u64 = 1 << 20;
/// More than a mount needs with everything in these artifacts looked at, the debug build's own size included.
const SMALL: u64 = 192 * MIB;

fn eo_mount(reference: impl Into<String>) -> EoMount {
    EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference)
}

/// Pushed with one harmless layer more, and mounted.
fn mounted(artifact: Artifact) -> (ScriptedRegistry, Mounted) {
    let registry = ScriptedRegistry::start();
    let mounted = mounted_from(&registry, artifact);
    (registry, mounted)
}

fn mounted_from(registry: &ScriptedRegistry, artifact: Artifact) -> Mounted {
    artifact.tar("harmless.tar", RawTar::new().file("file", b"good").finish()).push(registry, "data", "v1");
    eo_mount(registry.reference("data:v1")).mount()
}

/// To be called after the attack.
#[track_caller]
fn is_unharmed(mounted: &Mounted) {
    assert!(is_alive(mounted.pid()), "{}", mounted.log());
    assert_eq!(fs::read(mounted.join("harmless/file")).expect("the other layer"), b"good");
    let log = mounted.log();
    assert!(!log.contains("a bug in eo-mount") && !log.contains("panicked"), "{log}");
    assert!(!log.contains(|c: char| c.is_control() && c != '\n'), "control characters in the log: {log:?}");
}

fn names(path: impl AsRef<Path>) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Paths below a directory, as find(1) sees them: it walks where no path is long enough.
#[track_caller]
fn find(directory: &Path, arguments: &[&str]) -> Vec<PathBuf> {
    let mut command = Command::new("find");
    command.arg(".").args(arguments).arg("-print0").current_dir(directory);
    let found = run(&mut command, Duration::from_secs(120)).expect_success("find").stdout;
    let paths = found.split(|&byte| byte == 0).filter(|path| !path.is_empty() && *path != b".");
    paths.map(|path| PathBuf::from(OsStr::from_bytes(path.strip_prefix(b"./").unwrap_or(path)))).collect()
}

#[track_caller]
fn layer_error(mounted: &Mounted, layer: &str) -> String {
    let said = xattr::get(mounted.join(layer), "user.eo.error").unwrap();
    said.unwrap_or_else(|| panic!("{layer} has no error; log: {}", mounted.log()))
}

// Titles.

#[test]
fn titles_made_to_hurt_become_names_that_do_not() {
    let long = [
        "p".repeat(255),
        "q".repeat(256),
        "d/".repeat(1999) + "x",
        "é".repeat(200),
        format!("{}.tar", "r".repeat(255)),
    ];
    let mut titles: Vec<&str> = vec![
        "../../../etc/passwd",
        "/etc/shadow",
        "..",
        ".",
        "/",
        "",
        "a\0b",
        "\x1b[31mred\x1b]0;title\x07",
        "tab\tand\nnewline",
        "\u{85}next line",
        "config.json",
        "harmless",
        "harmless.tar.gz",
        "needed",
        "needed/inner.tar",
        "-rf",
        "$(reboot)",
        "back\\slash",
        "\u{202e}gpj.exe",
        ".tar",
        "...tar",
        "layer-0000-000000000000",
    ];
    titles.extend(long.iter().map(String::as_str));
    let mut artifact = Artifact::new().config(&b"{}"[..], "application/json");
    for (number, title) in titles.iter().enumerate() {
        let archive = RawTar::new().file("number", number.to_string()).finish();
        artifact = artifact.layer(Some(title), TAR_TYPE, archive);
    }
    let layers = artifact.layers();
    let (_registry, mounted) = mounted(artifact);
    let paths = find(mounted.path(), &["-name", "number"]);
    assert_eq!(paths.len(), titles.len(), "{paths:?}");
    for path in find(mounted.path(), &[]) {
        for part in path.components() {
            let part = part.as_os_str().to_str().expect("a title is text");
            assert!(part.len() <= 255 && !part.contains(char::is_control) && part != "..", "{path:?}");
        }
    }
    let reachable: Vec<_> = paths.iter().filter(|path| path.as_os_str().len() < 2000).collect();
    let digests: BTreeSet<_> = reachable
        .iter()
        .map(|path| xattr::get(mounted.join(path.parent().unwrap()), "user.oci.digest").unwrap().unwrap())
        .collect();
    assert_eq!(digests.len(), titles.len() - 1, "all but the one that is too deep for a path");
    assert!(layers.iter().filter(|layer| digests.contains(&layer.digest)).count() == digests.len());
    let root = names(mounted.path()).unwrap();
    for expected in ["etc", "d", "-rf", "$(reboot)", "back\\slash", ".tar", "...tar"] {
        assert!(root.contains(OsStr::new(expected)), "{expected}: {root:?}");
    }
    assert!(mounted.join("etc/passwd/number").exists() && mounted.join("etc/shadow/number").exists());
    assert!(mounted.join("config.json/number").exists(), "a layer's name goes before the config's");
    for plain in ["needed", "harmless"] {
        assert!(root.iter().any(|name| name.to_string_lossy().starts_with(&format!("{plain}-"))), "{root:?}");
    }
    assert!(mounted.log().contains("cannot be a file name"));
    let harmless = root.iter().filter(|name| name.to_string_lossy().starts_with("harmless-"));
    assert!(harmless.map(|name| fs::read(mounted.join(name).join("file"))).any(|read| read.is_ok()));
    assert!(!mounted.log().contains(|c: char| c.is_control() && c != '\n'), "{:?}", mounted.log());
    assert!(mounted.resident_bytes() < SMALL);
}

#[test]
fn ten_thousand_layers_are_listed_and_found() {
    let mut artifact = Artifact::new();
    for number in 0..10_000 {
        let digest = sha256(format!("layer {number}").as_bytes());
        let media_type = TAR_TYPE.to_owned();
        let descriptor = Descriptor { digest, size: 10_240, media_type, annotations: Default::default() };
        artifact = artifact.layer_of(Some(&format!("{number}.tar")), descriptor);
    }
    assert!(artifact.manifest().len() < 4 << 20);
    let (registry, mounted) = mounted(artifact);
    registry.reset();
    for _ in 0..2 {
        assert_eq!(find(mounted.path(), &["-maxdepth", "1"]).len(), 10_002);
    }
    for number in (0..10_000).step_by(97) {
        assert!(fs::metadata(mounted.join(number.to_string())).unwrap().is_dir());
        assert_eq!(errno(fs::metadata(mounted.join(format!("{number}.aux.xml")))), Some(2));
    }
    assert_eq!(registry.requests().len(), 0);
    assert_eq!(errno(names(mounted.join("77"))), Some(EIO), "this blob is missing");
    assert!(mounted.peak_resident_bytes() < SMALL, "{}", mounted.peak_resident_bytes());
    is_unharmed(&mounted);
}

#[test]
fn the_same_layer_many_times_is_shown_once_a_name() {
    let archive = RawTar::new().file("file", b"same").finish();
    let mut artifact = Artifact::new();
    for _ in 0..300 {
        artifact = artifact.tar("same.tar", archive.clone());
    }
    for number in 0..5 {
        artifact = artifact.tar(&format!("alias-{number}.tar"), archive.clone()).layer(None, TAR_TYPE, archive.clone());
    }
    let (_registry, mounted) = mounted(artifact);
    let root = names(mounted.path()).unwrap();
    let count = |start: &str| root.iter().filter(|name| name.to_string_lossy().starts_with(start)).count();
    assert_eq!((count("same"), count("alias-"), count("layer-"), root.len()), (1, 5, 5, 13), "{root:?}");
    for name in root.iter().filter(|name| !["config.json", "harmless"].contains(&name.to_str().unwrap())) {
        assert_eq!(fs::read(mounted.join(name).join("file")).unwrap(), b"same");
    }
    is_unharmed(&mounted);
}

// The manifest.

#[test]
fn layers_that_stall_hold_the_mount_up_once_and_not_each() {
    let mut artifact = Artifact::new();
    for number in 0..2000 {
        let digest = sha256(format!("layer {number}").as_bytes());
        let media_type = TAR_TYPE.to_owned();
        let descriptor = Descriptor { digest, size: 10_240, media_type, annotations: Default::default() };
        // As oras writes a file that it was not told the type of.
        artifact = artifact.layer_of(Some(&format!("{number}.md")), descriptor);
    }
    let registry = ScriptedRegistry::start();
    artifact.tar("harmless.tar", RawTar::new().file("file", b"good").finish()).push(&registry, "data", "v1");
    registry.fault(Matcher::blobs(), Fault::Stall, ALWAYS);
    // One after the other, sixteen at a time, would take four minutes.
    let mounted = eo_mount(registry.reference("data:v1")).args(["--timeout", "2s"]).mount();
    registry.clear_faults();
    assert_eq!(names(mounted.path()).unwrap().len(), 2002);
    assert!(mounted.log().contains("2000 layers could not be looked into"), "{}", mounted.log());
    is_unharmed(&mounted);
}

#[test]
fn annotations_that_the_kernel_cannot_take_are_left_out() {
    let mut artifact = Artifact::new()
        .tar("odd.tar", RawTar::new().file("file", b"odd").finish())
        .annotation("huge", &"v".repeat(1 << 20))
        .annotation("fits", &"v".repeat(64 << 10))
        .annotation(&"k".repeat(300), "long key")
        .annotation("nul\0key", "x")
        .annotation("", "empty key")
        .annotation("line\nkey", "a\nb")
        .tar("many.tar", RawTar::new().file("file", b"many").finish());
    for number in 0..1000 {
        artifact = artifact.annotation(&format!("{number:04}.{}", "n".repeat(200)), "x");
    }
    let (_registry, mounted) = mounted(artifact);
    for layer in ["odd", "many"] {
        let path = mounted.join(layer);
        let listed = xattr::names(&path).unwrap();
        assert!(listed.iter().all(|name| name.len() <= 255 && name.starts_with("user.")), "{listed:?}");
        assert!(listed.iter().map(|name| name.len() + 1).sum::<usize>() <= 64 << 10);
        for name in &listed {
            assert!(xattr::get(&path, name).unwrap().is_some(), "{name}");
        }
        assert_eq!(fs::read(path.join("file")).unwrap(), layer.as_bytes());
    }
    let get = |name: &str| xattr::get(mounted.join("odd"), &format!("user.oci.annotation.{name}")).unwrap();
    assert_eq!(get("fits").map(|value| value.len()), Some(64 << 10));
    assert_eq!(get("line\nkey").as_deref(), Some("a\nb"));
    assert_eq!((get("huge"), get("nothing")), (None, None));
    assert_eq!(xattr::names(mounted.join("odd")).unwrap().len(), 9);
    assert!(xattr::names(mounted.join("many")).unwrap().len() > 200);
    is_unharmed(&mounted);
}

/// A layout whose manifest tells these sizes of its layers, instead of the true ones.
fn layout_with_sizes(layers: &[(&str, &str, Vec<u8>, u64)]) -> tempfile::TempDir {
    let layout = tempfile::tempdir().unwrap();
    let harmless = RawTar::new().file("file", b"good").finish();
    let mut artifact = Artifact::new().tar("harmless.tar", harmless);
    for (title, media_type, bytes, _) in layers {
        artifact = artifact.layer(Some(title), media_type, bytes.clone());
    }
    artifact.write_layout(layout.path(), "true");
    let mut manifest: Value = serde_json::from_slice(&artifact.manifest()).unwrap();
    for (number, (_, _, _, size)) in layers.iter().enumerate() {
        manifest["layers"][number + 1]["size"] = json!(size);
    }
    let manifest = manifest.to_string();
    let digest = sha256(manifest.as_bytes());
    fs::write(layout.path().join("blobs/sha256").join(&digest["sha256:".len()..]), &manifest).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": [{"digest": digest, "size": manifest.len(),
        "mediaType": "application/vnd.oci.image.manifest.v1+json"}]});
    fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
    layout
}

#[test]
fn sizes_that_lie_give_errors_and_cost_no_memory() {
    let archive = RawTar::new().file("file", noise(1, 5000)).finish();
    let text = noise(2, 5000);
    let largest = i64::MAX as u64;
    let mut layers = Vec::new();
    for (name, size) in [("less", 3000), ("more", 50_000), ("huge", 1 << 50), ("largest", largest), ("also", largest)] {
        layers.push((format!("{name}.tar"), TAR_TYPE, [&archive[..], name.as_bytes()].concat(), size));
        layers.push((format!("{name}.bin"), "application/x-binary", [&text[..], name.as_bytes()].concat(), size));
    }
    let layers: Vec<(&str, &str, Vec<u8>, u64)> =
        layers.iter().map(|(title, kind, bytes, size)| (title.as_str(), *kind, bytes.clone(), *size)).collect();
    let layout = layout_with_sizes(&layers);

    // The same through a registry.
    let registry = ScriptedRegistry::start();
    let manifest = layout.path().join("blobs/sha256");
    for entry in fs::read_dir(&manifest).unwrap() {
        registry.put_blob(fs::read(entry.unwrap().path()).unwrap());
    }
    let index: Value = serde_json::from_slice(&fs::read(layout.path().join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    registry.put_manifest("data", "v1", fs::read(manifest.join(&digest["sha256:".len()..])).unwrap());

    for reference in [format!("oci:{}", layout.path().display()), registry.reference("data:v1")] {
        let mounted = eo_mount(&reference).args(["--timeout", "10s"]).mount();
        for (title, _, _, size) in &layers {
            let path = mounted.join(title.strip_suffix(".tar").unwrap_or(title));
            if title.ends_with(".bin") {
                assert_eq!(fs::metadata(&path).unwrap().size(), *size, "{reference} {title}");
                let file = File::open(&path).unwrap();
                let mut byte = [0];
                for offset in [0, size / 2, size - 1] {
                    let read = file.read_at(&mut byte, offset);
                    assert!(read.is_err(), "{reference} {title} at {offset}: {read:?} {byte:?}");
                }
            } else {
                let read = fs::read(path.join("file"));
                assert!(read.is_err(), "{reference} {title}");
            }
        }
        let statfs = rustix::fs::statvfs(mounted.path()).unwrap();
        assert!(statfs.f_blocks > 0);
        assert!(mounted.peak_resident_bytes() < SMALL, "{reference}: {}", mounted.peak_resident_bytes());
        is_unharmed(&mounted);
    }
}

#[test]
fn a_large_config_of_small_values_costs_little_memory() {
    let digest = sha256(&RawTar::new().file("file", b"named").finish());
    let mut config = String::from(r#"{"padding":[0"#);
    config.push_str(&",0".repeat(16 << 20));
    config.push_str(&format!(r#"],"patches":[{{"patch_id":"by-config","layer_digest":"{digest}"}}]}}"#));
    let artifact = Artifact::new().config(config, "application/json").layer(
        None,
        TAR_TYPE,
        RawTar::new().file("file", b"named").finish(),
    );
    let (_registry, mounted) = mounted(artifact);
    assert_eq!(fs::read(mounted.join("by-config/file")).unwrap(), b"named");
    let peak = mounted.peak_resident_bytes();
    assert!(peak < 5 * 33 * MIB, "{} MiB for a config of 33", peak / MIB);
    is_unharmed(&mounted);
}

// Members.

#[test]
fn members_cannot_leave_their_layer() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let secret = outside.path().join("secret").display().to_string();
    let archive = RawTar::new()
        .file("plain", b"plain")
        .file("../../climbing", b"1")
        .file("/absolute", b"2")
        .file("a/../../b/dotted", b"3")
        .file("..", b"4")
        // With a slash at its end it is a directory, as for GNU tar, and has no data.
        .file("./", b"")
        .symlink("to-absolute", &secret)
        .symlink("to-parent", "../../../../../../../../etc/passwd")
        .symlink("to-root", "/")
        .file("to-root/through-root", b"6")
        .symlink("to-outside", outside.path().as_os_str().as_bytes())
        .file("to-outside/through-outside", b"7")
        .hard_link("hard-outside", &secret)
        .hard_link("hard-climbing", "../../../../../../../../etc/passwd")
        .hard_link("hard-plain", "plain")
        .finish();
    let (_registry, mounted) = mounted(Artifact::new().tar("evil.tar", archive));
    let evil = mounted.join("evil");
    let read =
        |path: &str| fs::read(evil.join(path)).unwrap_or_else(|error| panic!("{path}: {error}: {}", mounted.log()));
    assert_eq!((read("climbing"), read("absolute"), read("b/dotted")), (b"1".to_vec(), b"2".to_vec(), b"3".to_vec()));
    assert_eq!(read("to-root/through-root"), b"6", "the link gave way to a directory of the layer");
    assert_eq!(read("to-outside/through-outside"), b"7");
    assert_eq!(read("hard-plain"), b"plain");
    assert_eq!(names(outside.path()).unwrap().len(), 1);
    assert_eq!(fs::read_link(evil.join("to-absolute")).unwrap(), Path::new(&secret), "given back as it stands");
    assert_eq!(fs::read_link(evil.join("to-parent")).unwrap(), Path::new("../../../../../../../../etc/passwd"));
    for missing in ["hard-outside", "hard-climbing"] {
        assert_eq!(errno(fs::symlink_metadata(evil.join(missing))), Some(2), "{missing}");
    }
    let log = mounted.log();
    assert!(log.contains("hard link to a name that is not there"), "{log}");
    is_unharmed(&mounted);
}

#[test]
fn devices_cannot_be_opened_and_setuid_is_not_shown() {
    let archive = RawTar::new()
        .mode(0o7777)
        .file("setuid", "#!/bin/sh\nid -u\n")
        .directory("directory")
        .character_device("null", 1, 3)
        .character_device("memory", 1, 1)
        .block_device("disk", 254, 0)
        .fifo("fifo")
        .finish();
    let (_registry, mounted) = mounted(Artifact::new().tar("evil.tar", archive));
    let evil = mounted.join("evil");
    for name in ["setuid", "directory", "null", "memory", "disk", "fifo"] {
        let metadata = fs::symlink_metadata(evil.join(name)).unwrap();
        assert_eq!(metadata.mode() & 0o6222, 0, "{name}: {:o}", metadata.mode());
        assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw(), "{name}");
    }
    assert!(fs::symlink_metadata(evil.join("null")).unwrap().file_type().is_char_device());
    assert!(fs::symlink_metadata(evil.join("disk")).unwrap().file_type().is_block_device());
    assert!(fs::symlink_metadata(evil.join("fifo")).unwrap().file_type().is_fifo());
    for device in ["null", "memory", "disk"] {
        assert_eq!(errno(File::open(evil.join(device))), Some(13), "{device}");
    }
    let nonblocking = OpenOptions::new().read(true).custom_flags(0o4000).open(evil.join("fifo"));
    assert!(nonblocking.unwrap().metadata().unwrap().file_type().is_fifo(), "a pipe is the kernel's, not ours");
    assert!(mounted.mount_entry().unwrap().options.contains("nosuid,nodev"));
    is_unharmed(&mounted);
}

#[test]
fn names_with_any_byte_are_given_back_as_they_are() {
    let mut all: Vec<Vec<u8>> = [&b"new\nline"[..], b"\x1b[31mred", b"\xff\xfe", b" ", b"\"'`$", b"-rf", b"\\", b"*"]
        .iter()
        .map(|name| name.to_vec())
        .collect();
    all.push(vec![b'x'; 255]);
    all.push((1..=255).filter(|byte| *byte != b'/').collect());
    let mut archive = RawTar::new();
    for name in &all {
        archive = archive.file(name, name);
    }
    // Warned of, so that they come into the log.
    archive = archive.file("../\x1b[31mred\nline", b"x").hard_link("\x1b[32mgreen", "\x07nowhere");
    let (_registry, mounted) = mounted(Artifact::new().tar("evil.tar", archive.finish()));
    let listed = names(mounted.join("evil")).unwrap();
    for name in all {
        assert!(listed.contains(OsStr::from_bytes(&name)), "{name:?}");
        assert_eq!(fs::read(mounted.join("evil").join(OsStr::from_bytes(&name))).unwrap(), name);
    }
    is_unharmed(&mounted);
}

#[test]
fn deep_and_clashing_members_are_placed() {
    let deep = "d/".repeat(100) + "file";
    let archive = RawTar::new()
        .file(&deep, b"deep")
        .file("clash", b"a file")
        .file("clash/below", b"needs a directory")
        .file("clash/below/again", b"and another")
        .directory("full")
        .file("full/file", b"kept")
        .file("full", b"a file where a directory is")
        .finish();
    let (_registry, mounted) = mounted(Artifact::new().tar("evil.tar", archive));
    assert_eq!(fs::read(mounted.join("evil").join(&deep)).unwrap(), b"deep");
    assert_eq!(fs::read(mounted.join("evil/clash/below/again")).unwrap(), b"and another");
    assert_eq!(fs::read(mounted.join("evil/full/file")).unwrap(), b"kept");
    assert!(mounted.log().contains("replaces what stood where it needs a directory"), "{}", mounted.log());
    is_unharmed(&mounted);
}

#[test]
fn members_past_a_limit_fail_their_layer_with_its_name() {
    let deep = "d/".repeat(1025) + "x";
    let records = noise(1, 1 << 20).iter().map(|byte| b'a' + byte % 26).collect::<Vec<u8>>();
    let layers = [
        ("depth", RawTar::new().file(&deep, b"").finish(), "depth"),
        ("pax", RawTar::new().pax(&[("comment", &records)]).file("x", b"").finish(), "pax_bytes"),
    ];
    let mut artifact = Artifact::new();
    for (name, archive, _) in &layers {
        artifact = artifact.tar(&format!("{name}.tar"), archive.clone());
    }
    let (_registry, mounted) = mounted(artifact);
    for (name, _, limit) in &layers {
        assert_eq!(errno(names(mounted.join(name))), Some(EIO), "{name}");
        assert!(layer_error(&mounted, name).contains(limit), "{}", layer_error(&mounted, name));
    }
    is_unharmed(&mounted);
}

#[test]
fn members_that_no_file_system_can_hold_are_left_out_and_the_rest_is_there() {
    let mut archive = RawTar::new().file("before", b"1").file("n".repeat(256), b"no name").file("n".repeat(255), b"2");
    archive = archive.file(("l".repeat(200) + "/").repeat(30) + "x", b"no path").symlink("far", "t/".repeat(3000));
    for number in 0..500 {
        archive = archive.file(format!("many/{number:0300}"), b"");
    }
    let archive = archive.file("behind", b"3").finish();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("evil.tar"), &archive).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-xf", "evil.tar"]).current_dir(folder.path());
    assert_eq!(run(&mut tar, Duration::from_secs(60)).code, 2, "tar fails at members and goes on");

    let (_registry, mounted) = mounted(Artifact::new().tar("evil.tar", archive));
    let shown = names(mounted.join("evil")).unwrap();
    assert_eq!(shown.len(), 3);
    for name in shown {
        let extracted = fs::read(folder.path().join(&name)).expect("a member that tar extracts");
        assert_eq!(fs::read(mounted.join("evil").join(&name)).unwrap(), extracted);
    }
    let log = mounted.log();
    for told in ["nnn: left out: a part", "…: left out: its path", "far: left out: its target", "403 more warnings"] {
        assert!(log.contains(told), "{told}: {log}");
    }
    assert!(log.matches("left out").count() == 100, "{log}");
    is_unharmed(&mounted);
}

#[test]
fn loops_of_links_end() {
    let mut archive = RawTar::new().symlink("self", "self").symlink("a", "b").symlink("b", "a");
    for number in 0..100 {
        archive = archive.symlink(format!("l{number}"), format!("l{}", number + 1));
    }
    // Each is twice as long a way as the one before it.
    archive = archive.directory("w0");
    for number in 1..40 {
        archive = archive.symlink(format!("w{number}"), format!("w{0}/../w{0}", number - 1));
    }
    let archive = archive
        .file("self/file", b"1")
        .file("a/file", b"2")
        .file("l0/file", b"3")
        .file("w39/file", b"4")
        .hard_link("hard", "b/file")
        .finish();
    let (_registry, mounted) = mounted(Artifact::new().tar("evil.tar", archive));
    assert!(names(mounted.join("evil")).is_ok(), "{}", mounted.log());
    assert_eq!(fs::read(mounted.join("evil/self/file")).unwrap(), b"1");
    assert_eq!(fs::read(mounted.join("evil/a/file")).unwrap(), b"2");
    assert_eq!(errno(fs::metadata(mounted.join("evil/l50"))), Some(40), "the kernel follows 40 links");
    is_unharmed(&mounted);
}

#[test]
fn two_hundred_thousand_entries_in_one_directory_are_listed() {
    const ENTRIES: usize = 200_000;
    let mut archive = RawTar::new();
    for number in 0..ENTRIES {
        archive = archive.file(format!("directory/{number:06}"), b"");
    }
    let registry = ScriptedRegistry::start();
    // Hashing it would take longer than all the rest.
    let layer = registry.put_blob_as(&sha256(b"two hundred thousand"), archive.finish());
    let mounted = mounted_from(&registry, Artifact::new().layer_of(Some("evil.tar"), layer));
    let directory = mounted.join("evil/directory");
    assert_eq!(names(mounted.join("evil")).unwrap().len(), 1);
    registry.reset();
    let listed = find(&directory, &[]);
    assert_eq!(listed.len(), ENTRIES);
    assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), ENTRIES, "each once");
    for number in (0..ENTRIES).step_by(199) {
        assert!(fs::metadata(directory.join(format!("{number:06}"))).unwrap().is_file());
        assert_eq!(errno(fs::metadata(directory.join(format!("{number:06}.aux.xml")))), Some(2));
    }
    assert_eq!(registry.requests().len(), 0);
    assert!(mounted.peak_resident_bytes() < SMALL + 200 * ENTRIES as u64, "{}", mounted.peak_resident_bytes());
    is_unharmed(&mounted);
}

#[test]
fn indexes_of_many_layers_stay_within_memory_together_and_are_made_again() {
    const ENTRIES: usize = 50_000;
    const LAYERS: usize = 8;
    let mut archive = RawTar::new();
    for number in 0..ENTRIES {
        archive = archive.file(format!("{number:06}"), b"");
    }
    let archive: std::sync::Arc<[u8]> = archive.finish().into();
    let registry = ScriptedRegistry::start();
    let mut artifact = Artifact::new();
    for number in 0..LAYERS {
        let archive = archive.clone();
        let layer = registry.put_sparse_blob(archive.len() as u64, &sha256(&[number as u8]), move |at, buffer| {
            buffer.copy_from_slice(&archive[at as usize..at as usize + buffer.len()]);
        });
        artifact = artifact.layer_of(Some(&format!("{number}.tar")), layer);
    }
    artifact.tar("harmless.tar", RawTar::new().file("file", b"good").finish()).push(&registry, "data", "v1");
    // Each index takes some 4 MiB.
    let mounted = eo_mount(registry.reference("data:v1")).args(["--memory", "16MiB", "--no-disk-cache"]).mount();
    for _ in 0..2 {
        for number in 0..LAYERS {
            assert_eq!(names(mounted.join(number.to_string())).unwrap().len(), ENTRIES);
        }
    }
    // `statfs` counts the entries of the indexes that are held.
    let held = rustix::fs::statvfs(mounted.path()).unwrap().f_files;
    assert!(held < (LAYERS * ENTRIES) as u64, "{held}: none was forgotten");
    // A name of a layer whose index was forgotten has the same inode as before.
    let inode = |number: usize| fs::symlink_metadata(mounted.join(format!("{number}/031415"))).unwrap().ino();
    let before: Vec<u64> = (0..LAYERS).map(inode).collect();
    assert_eq!((0..LAYERS).map(inode).collect::<Vec<_>>(), before);
    assert!(mounted.peak_resident_bytes() < SMALL, "{}", mounted.peak_resident_bytes());
    is_unharmed(&mounted);
}

#[test]
fn times_owners_and_devices_out_of_range_are_shown_as_something() {
    let archive = RawTar::new()
        .pax(&[("mtime", b"9223372036854775807.999999999")])
        .file("far", b"x")
        .pax(&[("mtime", b"-9223372036854775808")])
        .file("before", b"x")
        .pax(&[("mtime", b"99999999999999999999999"), ("uid", b"99999999999"), ("gid", b"-5")])
        .file("nonsense", b"x")
        .pax(&[
            ("SCHILY.xattr.user.a", b"1"),
            ("SCHILY.xattr.security.capability", b"\x01"),
            ("SCHILY.xattr.user.", b"x"),
        ])
        .file("xattrs", b"x")
        .finish();
    let (_registry, mounted) = mounted(Artifact::new().tar("evil.tar", archive));
    assert_eq!(names(mounted.join("evil")).unwrap().len(), 4);
    let list = run(Command::new("ls").arg("-ln").arg(mounted.join("evil")), Duration::from_secs(30));
    assert_eq!(list.expect_success("ls").text().lines().count(), 5);
    for name in ["far", "before", "nonsense", "xattrs"] {
        assert_eq!(fs::read(mounted.join("evil").join(name)).unwrap(), b"x");
    }
    let xattrs = xattr::names(mounted.join("evil/xattrs")).unwrap();
    assert!(xattrs.contains(&"user.a".to_owned()), "{xattrs:?}");
    assert!(!xattrs.iter().any(|name| name.starts_with("security.")), "{xattrs:?}");
    is_unharmed(&mounted);
}

// Compressed layers.

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// A frame with a window of 2^log bytes: one byte many times, in blocks of 128 KiB.
fn zstd_frame(log: u8, byte: u8, blocks: u32) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
    for number in (0..blocks).rev() {
        // RFC 8878, "Blocks": last block, type RLE, size.
        let header: u32 = u32::from(number == 0) | 1 << 1 | (128 << 10) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(byte);
    }
    frame
}

#[test]
fn bombs_are_bounded_and_leave_nothing() {
    in_own_namespace("bombs_are_bounded_and_leave_nothing", || {
        let small = tempfile::tempdir().unwrap();
        mount(&["-t", "tmpfs", "-o", "size=128m,mode=700", "none"], small.path());
        let best = |bytes: &[u8]| {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            packed.write_all(bytes).unwrap();
            packed.finish().unwrap()
        };
        // 9.4 GiB and 125 GiB out of 10 and 4 MB, and a file of 20 MiB that is what it says.
        let layers = [
            ("gzip", best(&vec![0; 16 << 20]).repeat(600)),
            ("zstd", zstd_frame(23, 0, 1_000_000)),
            ("honest", best(&RawTar::new().file("zeros", vec![0; 20 << 20]).finish())),
        ];
        let mut artifact = Artifact::new();
        for (name, bytes) in &layers {
            assert!(bytes.len() < 12 << 20);
            artifact = artifact.tar(&format!("{name}.tar.gz"), bytes.clone());
        }
        let registry = ScriptedRegistry::start();
        artifact.tar("harmless.tar", RawTar::new().file("file", b"good").finish()).push(&registry, "data", "v1");
        let call = eo_mount(registry.reference("data:v1")).args(["--cache-dir", small.path().to_str().unwrap()]);
        let mounted = call.mount();
        // All at once.
        let listed: Vec<_> = std::thread::scope(|scope| {
            let mounted = &mounted;
            let list = |name: &'static str| scope.spawn(move || names(mounted.join(name)));
            let threads: Vec<_> = layers.iter().map(|(name, _)| list(name)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // Zeros are an archive's end, whatever follows it. No archive of data is as small as the zstd frame.
        assert!(listed[0].as_ref().is_ok_and(BTreeSet::is_empty), "{:?}", listed[0]);
        assert_eq!(listed[1].as_ref().err().and_then(io::Error::raw_os_error), Some(EIO));
        assert!(layer_error(&mounted, "zstd").contains("limit expansion"), "{}", layer_error(&mounted, "zstd"));
        assert!(fs::read(mounted.join("honest/zeros")).unwrap() == vec![0; 20 << 20]);
        let used = || {
            let is = rustix::fs::statvfs(small.path()).unwrap();
            (is.f_blocks - is.f_bfree) * is.f_frsize
        };
        assert!(used() < 2 * MIB, "{}", used());
        assert!(mounted.peak_resident_bytes() < SMALL, "{}", mounted.peak_resident_bytes());
        is_unharmed(&mounted);
        mounted.unmount();
        // What stays has a name, and is meant to.
        assert!(wait_until(Duration::from_secs(20), || used() <= bytes_of_files(small.path())), "{}", used());
        assert_eq!(strays_in_cache(small.path()), [""; 0]);
    });
}

#[test]
fn compressed_layers_that_are_damaged_are_refused() {
    let archive = RawTar::new().file("file", noise(1, 300_000)).finish();
    let whole = gzip(&archive);
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let zstd = zstd::encode_all(&archive[..], 1).unwrap();
    let layers = [
        ("truncated", whole[..whole.len() / 2].to_vec(), "ends too early"),
        ("no-trailer", whole[..whole.len() - 8].to_vec(), "ends too early"),
        ("flipped", flipped(whole.len() / 2), "gzip member is wrong"),
        ("checksum", flipped(whole.len() - 6), "gzip member is wrong"),
        ("length", flipped(whole.len() - 2), "what its end says"),
        ("header-only", whole[..10].to_vec(), "ends too early"),
        ("two-bytes", whole[..2].to_vec(), "ends too early"),
        ("zstd-truncated", zstd[..zstd.len() / 2].to_vec(), "ends too early"),
        ("zstd-magic", zstd[..4].to_vec(), "ends too early"),
        ("zstd-window", zstd_frame(31, 0, 1), "window_bytes"),
        ("gzip-in-gzip", gzip(&gzip(&archive)), "not a tar archive"),
        ("no-archive", gzip(&noise(2, 5000)), "not a tar archive"),
        ("nothing", gzip(b""), "not a tar archive"),
    ];
    let mut artifact = Artifact::new();
    for (name, bytes, _) in &layers {
        artifact = artifact.tar(&format!("{name}.tar.gz"), bytes.clone());
    }
    let (_registry, mounted) = mounted(artifact);
    for (name, bytes, reason) in &layers {
        assert_eq!(errno(names(mounted.join(name))), Some(EIO), "{name}");
        let said = layer_error(&mounted, name);
        assert!(said.starts_with(&sha256(bytes)), "{name}: {said}");
        assert!(said.contains(reason), "{name}: {said}");
    }
    assert!(mounted.peak_resident_bytes() < SMALL, "{}", mounted.peak_resident_bytes());
    is_unharmed(&mounted);
}

#[test]
fn compressed_layers_of_many_parts_are_read_to_their_end() {
    let archive = RawTar::new().file("file", noise(1, 300_000)).finish();
    let parts = |pack: &dyn Fn(&[u8]) -> Vec<u8>| archive.chunks(100).flat_map(pack).collect::<Vec<u8>>();
    let layers = [
        ("parts", parts(&gzip)),
        ("zstd-parts", parts(&|part| zstd::encode_all(part, 1).unwrap())),
        ("empty-parts", [gzip(b"").repeat(100_000), gzip(&archive)].concat()),
        ("padded", [&gzip(&archive)[..], &[0; 10_000]].concat()),
        ("garbage-behind", [gzip(&archive), noise(5, 10_000)].concat()),
        // A skippable frame first, as pzstd writes one.
        ("skipped", [&b"\x50\x2a\x4d\x18\x04\0\0\0skip"[..], &zstd::encode_all(&archive[..], 1).unwrap()].concat()),
    ];
    let mut artifact = Artifact::new();
    for (name, bytes) in &layers {
        artifact = artifact.tar(&format!("{name}.tar.gz"), bytes.clone());
    }
    let (_registry, mounted) = mounted(artifact);
    for (name, _) in &layers {
        let mut file = File::open(mounted.join(name).join("file")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert!(read == noise(1, 300_000), "{name}");
    }
    is_unharmed(&mounted);
}

#[test]
fn a_compressed_layer_that_is_not_the_one_of_its_digest_is_refused() {
    let registry = ScriptedRegistry::start();
    let right = gzip(&RawTar::new().file("file", b"right").finish());
    let wrong = gzip(&RawTar::new().file("file", b"wrong").finish());
    // Both archives are whole: only the digest tells them apart.
    let layer = registry.put_blob_as(&sha256(&right), wrong);
    let mounted = mounted_from(&registry, Artifact::new().layer_of(Some("packed.tar.gz"), layer));
    assert_eq!(errno(names(mounted.join("packed"))), Some(EIO));
    let said = layer_error(&mounted, "packed");
    assert!(said.starts_with(&sha256(&right)) && said.contains("the bytes received have the digest"), "{said}");
    is_unharmed(&mounted);
}

#[test]
fn several_large_windows_at_once_stay_bounded() {
    let mut artifact = Artifact::new();
    for number in 0..8 {
        // 127 MiB each, in a window of 128 MiB.
        artifact = artifact.tar(&format!("{number}.tar.zst"), zstd_frame(27, number + 1, 1016));
    }
    let (_registry, mounted) = mounted(artifact);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let directory = mounted.join(number.to_string());
            scope.spawn(move || assert_eq!(errno(names(directory)), Some(EIO)));
        }
    });
    let peak = mounted.peak_resident_bytes();
    assert!(peak < 512 * MIB, "{} MiB", peak / MIB);
    is_unharmed(&mounted);
}
