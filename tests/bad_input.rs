//! What cannot be mounted or read says so: the exit code tells whose fault it is, and one plain line on stderr names
//! the object, the cause, and what to do. One bad layer leaves the others alone.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::files::{bytes_of_files, errno, strays_in_cache};
use eo_mount_testing::fixtures::{RawTar, noise};
use eo_mount_testing::mount_table::mounts_at;
use eo_mount_testing::namespace::{in_own_namespace, mount};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Fault, Finished, Home, Matcher, Mounted, ScriptedRegistry, User, processes, run, sha256,
    xattr,
};

const ARTIFACT: i32 = 1;
const USAGE: i32 = 2;
const MOUNT: i32 = 3;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn eo_mount(reference: impl Into<String>) -> EoMount {
    EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference).without_log()
}

/// Checks that the command ends with this code and says nothing but `eo-mount: OBJECT: CAUSE (HINT)`, with these
/// texts in the cause and in the hint.
#[track_caller]
fn refused(call: EoMount, code: i32, object: &str, cause: &str, hint: &str) {
    let said = call.output();
    assert_eq!((said.code, said.text().as_str()), (code, ""), "{}", said.stderr);
    let line = said.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("no line: {:?}", said.stderr));
    assert!(!line.contains(char::is_control), "more than one plain line: {line:?}");
    let rest = line.strip_prefix("eo-mount: ").and_then(|line| line.strip_prefix(object)?.strip_prefix(": "));
    let rest = rest.unwrap_or_else(|| panic!("it is not about {object}: {line}"));
    let (said_cause, said_hint) = rest
        .strip_suffix(')')
        .and_then(|rest| rest.split_once(" ("))
        .unwrap_or_else(|| panic!("it does not say what to do: {line}"));
    assert!(said_cause.contains(cause), "not the cause ({cause}): {line}");
    assert!(said_hint.contains(hint), "not the hint ({hint}): {line}");
}

/// An archive of one file.
fn tar(content: &[u8]) -> Vec<u8> {
    RawTar::new().file("file", content).finish()
}

fn pushed(registry: &ScriptedRegistry) -> String {
    Artifact::new().tar("good.tar", tar(b"good")).push(registry, "data", "v1");
    registry.reference("data:v1")
}

#[track_caller]
fn reads_good(mounted: &Mounted) {
    assert_eq!(fs::read(mounted.join("good/file")).unwrap(), b"good");
    assert!(!mounted.log().contains("a bug in eo-mount"), "{}", mounted.log());
}

fn list(path: impl AsRef<Path>) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

// The reference.

#[test]
fn what_is_no_reference_is_refused_with_how_one_is_written() {
    for text in [
        "a b",
        "UPPER/case",
        "x:",
        "../x",
        "https://host/x",
        "localhost:5000/x@sha256:12",
        "oci:",
        "oci::tag",
        "x@md5:0",
    ] {
        refused(eo_mount(text), USAGE, text, "not a reference", "REGISTRY/REPOSITORY:TAG");
    }
    refused(eo_mount(""), USAGE, "''", "not a reference", "REGISTRY/REPOSITORY:TAG");
    refused(eo_mount("a\nb\x1b[31m"), USAGE, "a b [31m", "not a reference", "REGISTRY/REPOSITORY:TAG");
}

#[test]
fn a_host_that_does_not_exist_is_named() {
    let reference = "registry.invalid/data:v1";
    refused(eo_mount(reference), ARTIFACT, reference, "cannot connect", "check the address and the network");
}

#[test]
fn a_closed_port_is_named() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    registry.go_down();
    refused(eo_mount(&reference), ARTIFACT, &reference, "Connection refused", "check the address and the network");
}

#[test]
fn a_server_that_speaks_no_tls_is_told_from_a_broken_one() {
    let registry = ScriptedRegistry::start();
    pushed(&registry);
    // The same server under an address that is not known to be this machine's own.
    let reference = registry.reference("data:v1").replace("127.0.0.1", "0.0.0.0");
    refused(eo_mount(&reference), ARTIFACT, &reference, "cannot connect", "--plain-http");
    let mounted = eo_mount(&reference).arg("--plain-http").mount();
    assert_eq!(list(mounted.path()).unwrap(), ["config.json", "good"]);
}

#[test]
fn a_repository_or_tag_that_is_not_there_is_named() {
    let registry = ScriptedRegistry::start();
    pushed(&registry);
    let reference = registry.reference("other:v1");
    refused(eo_mount(&reference), ARTIFACT, &reference, "no such repository", "check the name");
    let reference = registry.reference("data:v2");
    refused(eo_mount(&reference), ARTIFACT, &reference, "no such tag", "oras repo tags");
    let reference = registry.reference(&format!("data@{}", sha256(b"nothing")));
    refused(eo_mount(&reference), ARTIFACT, &reference, "no such tag or digest", "check it");
}

#[test]
fn a_registry_that_fails_or_refuses_is_quoted() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    for (status, hint) in [(500, "later"), (503, "later"), (429, "later"), (403, "login"), (418, "operator")] {
        registry.clear_faults();
        let script = registry.fault(Matcher::manifests(), Fault::status(status), ALWAYS);
        refused(eo_mount(&reference), ARTIFACT, &reference, &format!("the registry answers {status}"), hint);
        assert!(script.met() > 0);
    }
    registry.clear_faults();
    registry.fault(Matcher::manifests(), Fault::HangUp, ALWAYS);
    refused(eo_mount(&reference), ARTIFACT, &reference, "the connection broke", "check the network");
    registry.clear_faults();
    registry.fault(Matcher::manifests(), Fault::Stall, ALWAYS);
    let call = eo_mount(&reference).args(["--timeout", "3s"]);
    refused(call, ARTIFACT, &reference, "", "check the network");
}

#[test]
fn a_manifest_that_is_not_the_one_of_the_digest_is_refused() {
    let registry = ScriptedRegistry::start();
    let digest = Artifact::new().tar("good.tar", tar(b"good")).push(&registry, "data", "v1").digest;
    for reference in [format!("data@{digest}"), format!("data:v1@{digest}")] {
        let reference = registry.reference(&reference);
        eo_mount(&reference).mount().unmount();
        let script = registry.fault(Matcher::manifests(), Fault::WrongBytes, 1);
        refused(
            eo_mount(&reference),
            ARTIFACT,
            &reference,
            "the bytes received have the digest sha256:",
            "changed them",
        );
        assert_eq!(script.met(), 1);
    }
}

#[test]
fn a_config_that_is_missing_or_changed_is_named_by_its_digest() {
    let registry = ScriptedRegistry::start();
    let config = br#"{"dataset":"x"}"#;
    Artifact::new().config(&config[..], "application/json").tar("a.tar", tar(b"a")).push(&registry, "data", "v1");
    let reference = registry.reference("data:v1");
    let digest = sha256(config);
    registry.fault(Matcher::blob(&digest), Fault::WrongBytes, 1);
    refused(eo_mount(&reference), ARTIFACT, &digest, "the bytes received have the digest", "changed them");
    registry.remove_blob(&digest);
    refused(eo_mount(&reference), ARTIFACT, &digest, "the registry does not have it", "push");
}

#[test]
fn an_answer_that_is_no_manifest_is_told_so() {
    let registry = ScriptedRegistry::start();
    let digest = sha256(b"x");
    let layer = |size: &str| format!(r#"{{"layers":[{{"digest":"{digest}","size":{size}}}]}}"#);
    let texts = [
        "<html><body>Please log in</body></html>".to_owned(),
        r#"{"token":"of something else"}"#.to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        String::new(),
        r#"{"layers":[{"digest":"sha256:../../etc/passwd","size":1}]}"#.to_owned(),
        layer("-1"),
        layer("1.5"),
        // The specification has sizes of 63 bits (descriptor.md).
        layer("9223372036854775808"),
        layer("18446744073709551615"),
        "[".repeat(100_000),
    ];
    for (number, text) in texts.into_iter().enumerate() {
        registry.put_manifest("data", &number.to_string(), text);
        let reference = registry.reference(&format!("data:{number}"));
        refused(eo_mount(&reference), ARTIFACT, &reference, "the answer is no OCI manifest", "check the reference");
    }
    registry.put_manifest("data", "large", vec![b' '; (4 << 20) + 1]);
    let reference = registry.reference("data:large");
    refused(eo_mount(&reference), ARTIFACT, &reference, "larger than the 4 MiB", "several artifacts");
    registry.fault(Matcher::manifests(), Fault::GarbageBody, ALWAYS);
    refused(eo_mount(&reference), ARTIFACT, &reference, "the answer is no OCI manifest", "check the reference");
}

#[test]
fn an_artifact_without_layers_is_a_folder_with_its_config() {
    let registry = ScriptedRegistry::start();
    Artifact::new().push(&registry, "data", "empty");
    let mounted = eo_mount(registry.reference("data:empty")).mount();
    assert_eq!(list(mounted.path()).unwrap(), ["config.json"]);
    assert_eq!(fs::read(mounted.join("config.json")).unwrap(), b"{}");
}

// An image layout.

#[test]
fn a_layout_that_is_none_is_told_so() {
    let home = Home::new();
    let missing = home.path().join("missing");
    let call = eo_mount(format!("oci:{}:v1", missing.display()));
    refused(call, ARTIFACT, &missing.display().to_string(), "no image layout", "oci:DIRECTORY:TAG");
    let call = eo_mount(format!("oci:{}", home.path().display()));
    refused(call, ARTIFACT, &home.path().display().to_string(), "no image layout", "oci:DIRECTORY:TAG");
    fs::write(home.path().join("index.json"), "not JSON").unwrap();
    let call = eo_mount(format!("oci:{}", home.path().display()));
    let index = home.path().join("index.json").display().to_string();
    refused(call, ARTIFACT, &index, "no OCI manifest", "check the reference");
    // A relative one is named by its whole path.
    let call = eo_mount("oci:missing:v1").current_dir(home.path());
    refused(call, ARTIFACT, &missing.display().to_string(), "no image layout", "oci:");
}

#[test]
fn a_layout_without_the_tag_lists_those_it_has() {
    let layout = tempfile::tempdir().unwrap();
    let path = layout.path().display();
    Artifact::new().tar("good.tar", tar(b"1")).write_layout(layout.path(), "one");
    Artifact::new().tar("good.tar", tar(b"2")).write_layout(layout.path(), "two");
    let reference = format!("oci:{path}:three");
    refused(eo_mount(&reference), ARTIFACT, &reference, "no such tag", "its tags are: one, two");
    let reference = format!("oci:{path}");
    refused(eo_mount(&reference), ARTIFACT, &reference, "more than one manifest", "its tags are: one, two");
    let reference = format!("oci:{path}@{}", sha256(b"nothing"));
    let blob = format!("{path}/blobs/sha256/{}", &sha256(b"nothing")["sha256:".len()..]);
    refused(eo_mount(&reference), ARTIFACT, &blob, "no such file in the image layout", "copy");
}

#[test]
fn a_layout_with_a_missing_or_short_blob_loses_that_layer_only() {
    let layout = tempfile::tempdir().unwrap();
    let archives = [tar(b"gone"), tar(&noise(1, 5000)), tar(b"longer")];
    let artifact = Artifact::new()
        .tar("good.tar", tar(b"good"))
        .tar("gone.tar", archives[0].clone())
        .tar("short.tar", archives[1].clone())
        .tar("long.tar", archives[2].clone());
    artifact.write_layout(layout.path(), "v1");
    let blob = |bytes: &[u8]| layout.path().join("blobs/sha256").join(&sha256(bytes)["sha256:".len()..]);
    fs::remove_file(blob(&archives[0])).unwrap();
    fs::write(blob(&archives[1]), &archives[1][..3000]).unwrap();
    fs::write(blob(&archives[2]), [&archives[2][..], b"more"].concat()).unwrap();
    let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), format!("oci:{}:v1", layout.path().display())).mount();
    for (layer, reason) in [("gone", "no such file"), ("short", "it has 3000 bytes"), ("long", "bytes, 2048 in the")] {
        assert_eq!(errno(list(mounted.join(layer))), Some(EIO), "{layer}");
        let said = xattr::get(mounted.join(layer), "user.eo.error").unwrap().unwrap();
        assert!(said.contains(reason), "{said}");
        assert!(mounted.log().contains(&said), "{}", mounted.log());
    }
    reads_good(&mounted);
    // What is put right is right, without mounting again.
    fs::write(blob(&archives[0]), &archives[0]).unwrap();
    assert_eq!(fs::read(mounted.join("gone/file")).unwrap(), b"gone");
    assert_eq!(xattr::get(mounted.join("gone"), "user.eo.error").unwrap(), None);
}

#[test]
fn a_layout_without_its_manifest_is_not_complete() {
    let layout = tempfile::tempdir().unwrap();
    let digest = Artifact::new().tar("good.tar", tar(b"good")).write_layout(layout.path(), "v1").digest;
    let blob = layout.path().join("blobs/sha256").join(&digest["sha256:".len()..]);
    let reference = format!("oci:{}:v1", layout.path().display());
    let text = fs::read_to_string(&blob).unwrap();
    fs::write(&blob, text.replace("whatever", "changed!")).unwrap();
    refused(eo_mount(&reference), ARTIFACT, &digest, "the bytes received have the digest", "changed them");
    fs::remove_file(&blob).unwrap();
    let object = blob.display().to_string();
    refused(eo_mount(&reference), ARTIFACT, &object, "no such file in the image layout", "copy");
}

#[test]
fn a_layout_that_hangs_is_given_up_in_time() {
    let layout = tempfile::tempdir().unwrap();
    Artifact::new().tar("good.tar", tar(b"good")).write_layout(layout.path(), "v1");
    let index = layout.path().join("index.json");
    fs::remove_file(&index).unwrap();
    // Opening it waits for a writer, as a file on a server that is gone waits for the server.
    run(Command::new("mkfifo").arg(&index), Duration::from_secs(30)).expect_success("mkfifo");
    let reference = format!("oci:{}:v1", layout.path().display());
    let call = eo_mount(&reference).args(["--timeout", "1s"]);
    refused(call, ARTIFACT, &reference, "not done within 1s", "--timeout");
}

// The mount point.

#[test]
fn a_mount_point_that_cannot_be_one_is_refused() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    let home = Home::new();
    let at = |path: &Path| eo_mount(&reference).home(&home).mountpoint(path);
    let object = |path: &Path| path.display().to_string();

    let missing = home.path().join("a/b");
    let hint = format!("mkdir -p {}", missing.display());
    refused(at(&missing), MOUNT, &object(&missing), "does not exist", &hint);
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    refused(at(&file), MOUNT, &object(&file), "not a directory", "empty directory");
    refused(at(&file.join("below")), MOUNT, &object(&file.join("below")), "not a directory", "empty directory");
    let dangling = home.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    refused(at(&dangling), MOUNT, &object(&dangling), "does not exist", "mkdir");
    assert_eq!(registry.requests().len(), 0, "nothing is asked of the registry before the mount point is known to do");
}

#[test]
fn a_hint_with_a_strange_name_in_it_stays_one_line_and_can_be_pasted() {
    let home = Home::new();
    for name in ["two\nlines", "it's", "blue\x1b[34m"] {
        let missing = home.path().join(name);
        let call = eo_mount("oci:nowhere").mountpoint(&missing);
        let shown = missing.display().to_string().replace(char::is_control, " ");
        refused(call.clone(), MOUNT, &shown, "does not exist", "mkdir -p ");
        let line = call.output().stderr;
        let command = line.trim_end().strip_suffix(')').unwrap().split_once(" (").unwrap().1;
        run(Command::new("bash").args(["-c", command]), Duration::from_secs(30)).expect_success(command);
        assert!(missing.is_dir(), "{command}");
    }
}

#[test]
fn a_directory_that_is_not_empty_is_mounted_over_only_when_told_to() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    let home = Home::new();
    let full = home.new_mountpoint();
    fs::write(full.join("mine"), "").unwrap();
    let at = || eo_mount(&reference).home(&home).mountpoint(&full);
    refused(at(), MOUNT, &full.display().to_string(), "not empty", "--nonempty");
    let mounted = at().arg("--nonempty").mount();
    assert_eq!(list(&full).unwrap(), ["config.json", "good"]);
    mounted.unmount();
    at().env("EO_MOUNT_NONEMPTY", "yes").mount().unmount();
    assert_eq!(list(&full).unwrap(), ["mine"]);
}

#[test]
fn a_place_that_is_mounted_already_is_refused_with_the_command_that_frees_it() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    let mounted = eo_mount(&reference).mount();
    let path = mounted.path().display().to_string();
    let again = || eo_mount(&reference).mountpoint(mounted.path());
    let cause = format!("already mounted: {reference}");
    refused(again(), MOUNT, &path, &cause, &format!("fusermount3 -u {path}"));
    refused(again().arg("--nonempty"), MOUNT, &path, &cause, &format!("fusermount3 -u {path}"));
    assert_eq!(fs::read(mounted.join("good/file")).unwrap(), b"good");
    mounted.unmount();
}

#[test]
fn several_mounts_of_one_place_at_once_become_one() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    // All have looked at the place before the first mounts there.
    registry.fault(Matcher::manifests(), Fault::Delay(Duration::from_millis(500)), ALWAYS);
    let home = Home::new();
    let mountpoint = home.new_mountpoint();
    let said: Vec<Finished> = std::thread::scope(|scope| {
        let mount = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_eo-mount"));
            command.env("XDG_CACHE_HOME", home.cache()).arg(&reference).arg(&mountpoint);
            run(&mut command, Duration::from_secs(90))
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(mount)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mounts = mounts_at(&mountpoint).len();
    let read = fs::read(mountpoint.join("good/file"));
    for _ in 0..mounts {
        run(Command::new("fusermount3").arg("-u").arg(&mountpoint), Duration::from_secs(30));
    }
    let ended = wait_until(Duration::from_secs(20), || processes::with_argument(&mountpoint).is_empty());
    assert!(ended && mounts_at(&mountpoint).is_empty(), "nothing is left behind");
    assert_eq!((mounts, read.unwrap().as_slice()), (1, &b"good"[..]), "{said:?}");
    assert_eq!(said.iter().filter(|said| said.success()).count(), 1, "{said:?}");
    for refused in said.iter().filter(|said| !said.success()) {
        assert_eq!((refused.code, refused.stderr.lines().count()), (MOUNT, 1), "{refused:?}");
        assert!(refused.stderr.contains(&mountpoint.display().to_string()), "{refused:?}");
        assert!(refused.stderr.contains("already mounted") || refused.stderr.contains("being mounted"), "{refused:?}");
    }
}

#[test]
fn an_ordinary_user_is_told_where_mounting_is_not_allowed() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    let user = User::nobody();
    let home = Home::of(&user);
    // An ordinary user who runs this test owns the directories, but they are not writable either.
    for (name, mode) in [("closed", 0o000), ("not-writable", 0o555)] {
        let directory = home.path().join(name);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
        let call = eo_mount(&reference).home(&home).as_user(&user).mountpoint(&directory);
        let object = directory.display().to_string();
        refused(call, MOUNT, &object, "no permission to mount there", "a directory that you may read and write");
    }
    let below = home.path().join("closed/below");
    let call = eo_mount(&reference).home(&home).as_user(&user).mountpoint(&below);
    refused(call, MOUNT, &below.display().to_string(), "no permission to mount there", "you may read and write");
    fs::remove_dir(home.path().join("closed")).unwrap();
}

#[test]
fn an_ordinary_user_may_let_others_in_only_where_fuse_conf_says_so() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    let user = User::nobody();
    let home = Home::of(&user);
    let mountpoint = home.new_mountpoint();
    let call = eo_mount(&reference).home(&home).as_user(&user).mountpoint(&mountpoint).arg("--allow-other");
    let allowed = fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"));
    if allowed {
        assert!(call.mount().mount_entry().unwrap().super_options.contains("allow_other"));
    } else {
        let object = mountpoint.display().to_string();
        refused(call, MOUNT, &object, "--allow-other is not allowed on this system", "/etc/fuse.conf");
    }
}

#[test]
fn without_the_fuse_device_nothing_is_asked_of_the_registry() {
    in_own_namespace("without_the_fuse_device_nothing_is_asked_of_the_registry", || {
        let registry = ScriptedRegistry::start();
        let reference = pushed(&registry);
        let device = Path::new("/dev/fuse");
        mount(&["--bind", "/dev/fuse"], device);
        mount(&["-o", "remount,bind,nodev"], device);
        refused(eo_mount(&reference), MOUNT, "/dev/fuse", "no permission to use it", "chmod 666 /dev/fuse");
        hide_device();
        refused(eo_mount(&reference), MOUNT, "/dev/fuse", "this system has no FUSE", "modprobe fuse");
        assert_eq!(registry.requests().len(), 0);
    });
}

/// Puts a `/dev` without fuse in the place of the real one; for this namespace only.
fn hide_device() {
    let folder = tempfile::tempdir().unwrap();
    mount(&["-t", "tmpfs", "none"], folder.path());
    for name in ["null", "urandom"] {
        let file = folder.path().join(name);
        fs::write(&file, "").unwrap();
        mount(&["--bind", &format!("/dev/{name}")], &file);
    }
    mount(&["--rbind", folder.path().to_str().unwrap()], Path::new("/dev"));
}

#[test]
fn without_fusermount3_an_ordinary_user_is_told_to_install_it() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    let user = User::nobody();
    let home = Home::of(&user);
    let path = home.path().join("bin");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let setpriv = ["/usr/bin/setpriv", "/bin/setpriv"].into_iter().find(|file| Path::new(file).exists());
    symlink(setpriv.expect("setpriv: apt-get install util-linux"), path.join("setpriv")).unwrap();
    let call = eo_mount(&reference).home(&home).as_user(&user).env("PATH", &path);
    refused(call, MOUNT, "fusermount3", "not found", "apt-get install fuse3");
}

// Layers.

#[test]
fn a_damaged_layer_gives_an_error_with_its_reason_and_the_others_work() {
    let whole = tar(&noise(1, 5000));
    let damaged: Vec<(&str, Vec<u8>, &str)> = vec![
        ("truncated", whole[..3000].to_vec(), "truncated archive"),
        ("headless", whole[..300].to_vec(), "not a tar archive"),
        ("empty", Vec::new(), "not a tar archive"),
        ("garbage", noise(2, 100_000), "not a tar archive"),
        ("damaged", RawTar::new().file("a", b"a").raw(noise(3, 512)).finish(), "wrong checksum"),
        ("huge", RawTar::new().claim("a", (1 << 33) - 1).finish(), "truncated archive"),
        ("pax-size", RawTar::new().pax(&[("size", b"18446744073709551615")]).claim("a", 0).finish(), "no usable size"),
        ("pax", RawTar::new().pax(&[("size", b"many")]).claim("a", 0).finish(), "PAX header"),
    ];
    let registry = ScriptedRegistry::start();
    let mut artifact = Artifact::new().tar("good.tar", tar(b"good"));
    for (name, bytes, _) in &damaged {
        artifact = artifact.tar(&format!("{name}.tar"), bytes.clone());
    }
    artifact.push(&registry, "data", "v1");
    let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("data:v1")).mount();
    assert_eq!(list(mounted.path()).unwrap().len(), damaged.len() + 2);
    for (name, bytes, reason) in &damaged {
        let directory = mounted.join(name);
        assert!(fs::metadata(&directory).unwrap().is_dir());
        assert_eq!(xattr::get(&directory, "user.eo.error").unwrap(), None, "nobody has looked into {name} yet");
        assert_eq!(errno(list(&directory)), Some(EIO), "{name}");
        let said = xattr::get(&directory, "user.eo.error").unwrap().unwrap();
        assert!(said.starts_with(&sha256(bytes)) && said.contains(reason), "{name}: {said}");
        let log = mounted.log();
        assert!(log.lines().any(|line| line.contains(&said)), "{name}: {log}");
        assert_eq!(errno(fs::metadata(directory.join("a"))), Some(EIO), "{name}: a name in it is not missing");
    }
    reads_good(&mounted);
    assert_eq!(xattr::get(mounted.join("good"), "user.eo.error").unwrap(), None);
    mounted.unmount();
}

#[test]
fn another_look_at_a_layer_that_failed_tries_again() {
    let registry = ScriptedRegistry::start();
    let reference = pushed(&registry);
    let layer = sha256(&tar(b"good"));
    let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), &reference).mount();
    // An odd answer is asked for once more.
    let script = registry.fault(Matcher::blobs(), Fault::WrongTotal, 4);
    for look in 1..=2 {
        assert_eq!(errno(list(mounted.join("good"))), Some(EIO));
        assert_eq!(script.met(), 2 * look);
        let said = xattr::get(mounted.join("good"), "user.eo.error").unwrap().unwrap();
        assert!(said.starts_with(&layer), "{said}");
    }
    reads_good(&mounted);
    assert_eq!(xattr::get(mounted.join("good"), "user.eo.error").unwrap(), None);
}

// The cache folder.

#[test]
fn a_cache_folder_that_cannot_be_written_is_done_without() {
    let registry = ScriptedRegistry::start();
    let large = noise(1, 6 << 20);
    Artifact::new()
        .tar("good.tar", tar(b"good"))
        .tar("packed.tar.gz", gzip(&tar(&large)))
        .tar("frame.tar.zst", zstd(&tar(&large)))
        .push(&registry, "data", "v1");
    let home = Home::new();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let folder = file.join("cache").display().to_string();
    let call = || EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("data:v1")).home(&home);
    let mounted = call().args(["--cache-dir", &folder]).mount();
    reads_good(&mounted);
    assert!(fs::read(mounted.join("packed/file")).unwrap() == large);
    // One long frame can be read anywhere only where its content is kept.
    for _ in 0..2 {
        assert_eq!(errno(list(mounted.join("frame"))), Some(EIO));
    }
    let said = xattr::get(mounted.join("frame"), "user.eo.error").unwrap().unwrap();
    assert!(said.contains("compressed layer") && said.contains("--cache-dir"), "{said}");
    let log = mounted.log();
    let complaints: Vec<_> = log.lines().filter(|line| line.contains("going on without")).collect();
    assert!(complaints.len() == 1 && complaints[0].contains(&folder), "{log}");
    mounted.unmount();

    let mounted = call().args(["--cache-dir", home.cache().to_str().unwrap()]).mount();
    assert!(fs::read(mounted.join("frame/file")).unwrap() == large);
}

#[test]
fn a_cache_folder_that_goes_away_comes_back() {
    let registry = ScriptedRegistry::start();
    Artifact::new().tar("packed.tar.gz", gzip(&tar(b"good"))).push(&registry, "data", "v1");
    let home = Home::new();
    let folder = home.path().join("own");
    let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("data:v1"))
        .home(&home)
        .args(["--cache-dir", folder.to_str().unwrap()])
        .mount();
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(fs::read(mounted.join("packed/file")).unwrap(), b"good");
}

#[test]
fn a_cache_folder_that_is_too_small_refuses_a_compressed_layer_and_gives_the_space_back() {
    in_own_namespace("a_cache_folder_that_is_too_small_refuses_a_compressed_layer_and_gives_the_space_back", || {
        let small = tempfile::tempdir().unwrap();
        mount(&["-t", "tmpfs", "-o", "size=16m,mode=700", "none"], small.path());
        let registry = ScriptedRegistry::start();
        // Of a zstd frame what follows the first 4 MiB is kept.
        const KEPT_FROM: usize = 4 << 20;
        let large = noise(1, 8 << 20);
        let (small_part, medium) = (&large[..KEPT_FROM + 500_000], &large[..KEPT_FROM + 900_000]);
        Artifact::new()
            .tar("good.tar", tar(b"good"))
            .tar("large.tar.zst", zstd(&tar(&large)))
            .tar("small.tar.zst", zstd(&tar(small_part)))
            .tar("medium.tar.zst", zstd(&tar(medium)))
            .push(&registry, "data", "v1");
        let mounted = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("data:v1"))
            .args(["--cache-dir", small.path().to_str().unwrap()])
            .mount();
        let fails = |layer: &str, reason: &str| {
            assert_eq!(errno(list(mounted.join(layer))), Some(ENOSPC), "{}", mounted.log());
            let said = xattr::get(mounted.join(layer), "user.eo.error").unwrap().unwrap();
            assert!(said.contains(reason) && said.contains("--cache-dir"), "{said}");
        };
        let is_free = || wait_until(Duration::from_secs(20), || used(small.path()) < 64 << 10);
        // A tenth of the file system is 1.6 MiB.
        fails("large", "more than the 1677721 bytes allowed");
        assert!(is_free());
        // Somebody else fills it.
        let other = small.path().join("other");
        fs::write(&other, vec![1; (16 << 20) - (256 << 10)]).unwrap();
        fails("small", "its file system is full");
        fs::remove_file(&other).unwrap();
        assert!(is_free());
        reads_good(&mounted);
        assert!(fs::read(mounted.join("small/file")).unwrap() == small_part);
        assert!(fs::read(mounted.join("medium/file")).unwrap() == medium);
        fails("large", "bytes allowed");
        mounted.unmount();
        // What stays has a name, and is meant to.
        assert!(wait_until(Duration::from_secs(20), || used(small.path()) <= bytes_of_files(small.path())));
        assert_eq!(strays_in_cache(small.path()), [""; 0]);
    });
}

/// Bytes of a file system.
fn used(path: &Path) -> u64 {
    let is = rustix::fs::statvfs(path).unwrap();
    (is.f_blocks - is.f_bfree) * is.f_frsize
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut packed, bytes).unwrap();
    packed.finish().unwrap()
}

/// One frame.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

// Options.

#[test]
fn options_and_variables_with_bad_values_are_usage_errors() {
    let call = || eo_mount("oci:nowhere");
    let bare = || EoMount::bare(env!("CARGO_BIN_EXE_eo-mount"));
    for (call, part) in [
        (call().args(["--memory", "1"]), "at least 16MiB"),
        (call().args(["--memory", "much"]), "256MiB"),
        (call().args(["--timeout", "0"]), "between 1s and 1day"),
        (call().args(["--timeout", "0s"]), "between 1s and 1day"),
        (call().args(["--timeout", "2days"]), "between 1s and 1day"),
        (call().args(["--uid", "root"]), "--uid"),
        (call().args(["--uid=-1"]), "--uid"),
        (call().arg("--no-such-option"), "--no-such-option"),
        (call().arg("one-too-many"), "unexpected argument"),
        (call().env("EO_MOUNT_MEMORY", "much"), "--memory"),
        (call().env("EO_MOUNT_TIMEOUT", "60"), "--timeout"),
        (call().env("EO_MOUNT_FOREGROUND", "perhaps"), "--foreground"),
        (call().env("EO_MOUNT_PLAIN_HTTP", "2"), "--plain-http"),
        (call().env("EO_MOUNT_GID", "staff"), "--gid"),
        (call().env("EO_MOUNT_VERBOSE", "very"), "--verbose"),
        (bare(), "<REFERENCE>"),
        (bare().arg("localhost:5000/x:y"), "<MOUNTPOINT>"),
    ] {
        let said = call.output();
        assert_eq!((said.code, said.text().as_str()), (USAGE, ""), "{}", said.stderr);
        assert!(said.stderr.starts_with("error: ") && said.stderr.contains(part), "{part}: {}", said.stderr);
        assert!(said.stderr.contains("--help"), "{}", said.stderr);
    }
}

#[test]
fn a_log_file_that_cannot_be_written_is_named() {
    let home = Home::new();
    let log = home.path().join("missing/log");
    let object = log.display().to_string();
    let call = eo_mount("oci:nowhere").arg("--log").arg(&log);
    refused(call, USAGE, &object, "cannot write the log: No such file", "--log");
    let call = eo_mount("oci:nowhere").arg("-f").arg("--log").arg(&log);
    refused(call, USAGE, &object, "cannot write the log: No such file", "--log");
}
