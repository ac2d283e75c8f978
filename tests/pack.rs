//! `eo-mount pack`: a folder becomes an artifact that everybody's tools can read, and the same one everywhere.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use eo_mount_testing::as_user::is_root;
use eo_mount_testing::fixtures::noise;
use eo_mount_testing::python::python_says;
use eo_mount_testing::scripted_registry::Kind;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{EoMount, Extracted, Finished, Home, RealRegistry, ScriptedRegistry, Takes, User, run};
use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");
const PATIENCE: Duration = Duration::from_secs(120);
const FORMATS: [&str; 3] = ["tar", "tar+zstd", "tar+gzip"];
const TITLE: &str = "org.opencontainers.image.title";

struct Workshop {
    dir: TempDir,
    home: Home,
}

impl Workshop {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        Self { dir, home: Home::new() }
    }

    /// Three patches in the shape of the published ones, with dates that are none of today's.
    fn patches() -> Self {
        let shop = Self::new();
        for id in [10000_u64, 10001, 10002] {
            shop.file(&format!("{id}/DATA_S2/S2_{id}.npy"), &noise(id, 5_000_000 + id as usize));
            shop.file(&format!("{id}/DATA_S1A/S1A_{id}.npy"), &vec![7; 3_000_000]);
            shop.file(&format!("{id}/ANNOTATIONS/TARGET_{id}.npy"), &noise(id + 1, 49_280));
            shop.file(&format!("{id}/METADATA.json"), b"{}\n");
        }
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        let path = self.path("in").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        let second = name.len() as u64 * 1000;
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000 + second, 123_456_789);
        fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
    }

    /// A call that is not waited for.
    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(PROGRAM);
        command.current_dir(self.dir.path()).arg("pack").args(arguments).stderr(Stdio::piped());
        command.env("HOME", self.home.path()).env("XDG_CACHE_HOME", self.home.cache()).spawn().unwrap()
    }

    fn call(&self, arguments: &[&str]) -> Finished {
        EoMount::bare(PROGRAM).home(&self.home).current_dir(self.dir.path()).arg("pack").args(arguments).output()
    }

    /// The digest that a call prints which says nothing else.
    #[track_caller]
    fn pack(&self, arguments: &[&str]) -> String {
        let said = self.call(&[arguments, &["--json"]].concat()).expect_success("pack");
        assert_eq!(said.stderr, "");
        let summary: Value = serde_json::from_slice(&said.stdout).unwrap();
        summary["digest"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32, causes: &[&str]) {
        let said = self.call(arguments);
        assert_eq!(said.code, code, "{}", said.stderr);
        for cause in causes {
            assert!(said.stderr.contains(cause), "{cause} is not in: {}", said.stderr);
        }
    }

    fn blob(&self, layout: &str, digest: &Value) -> PathBuf {
        self.path(layout).join("blobs/sha256").join(digest.as_str().unwrap().strip_prefix("sha256:").unwrap())
    }

    fn json(&self, layout: &str, digest: &Value) -> Value {
        serde_json::from_slice(&fs::read(self.blob(layout, digest)).unwrap()).unwrap()
    }

    fn manifest(&self, layout: &str, tag: &str) -> Value {
        let index: Value = serde_json::from_slice(&fs::read(self.path(layout).join("index.json")).unwrap()).unwrap();
        let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
        let entry = index["manifests"].as_array().unwrap().iter().find(named).expect("the tag");
        self.json(layout, &entry["digest"])
    }

    fn config(&self, layout: &str, tag: &str) -> Value {
        self.json(layout, &self.manifest(layout, tag)["config"]["digest"])
    }

    /// Paths of layers, by title.
    fn layers(&self, layout: &str, tag: &str) -> BTreeMap<String, PathBuf> {
        let manifest = self.manifest(layout, tag);
        let layers = manifest["layers"].as_array().unwrap().iter();
        let layer = |layer: &Value| {
            (layer["annotations"][TITLE].as_str().unwrap().to_owned(), self.blob(layout, &layer["digest"]))
        };
        layers.map(layer).collect()
    }
}

fn command(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Finished {
    let mut command = Command::new(program);
    command.args(arguments.iter().map(|argument| argument.as_ref())).env("LC_ALL", "C").env("TZ", "UTC");
    run(&mut command, PATIENCE).expect_success(program)
}

/// What `tar -t` lists: the names, in order.
fn names(archive: &Path) -> Vec<String> {
    command("tar", &[&"-tf", &archive]).text().lines().map(str::to_owned).collect()
}

/// The files below a folder, by path; not those that links name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn tar_and_python_read_the_layers_and_a_mount_has_every_byte() {
    let shop = Workshop::patches();
    let expected = files(&shop.path("in"));
    for (number, format) in FORMATS.iter().enumerate() {
        let out = format!("oci:out:v{number}");
        shop.pack(&["in", &out, "--per-dir", "--format", format]);
        let layers = shop.layers("out", &format!("v{number}"));
        assert_eq!(layers.len(), 3);
        for (title, blob) in &layers {
            let id = title.split('.').next().unwrap();
            assert_eq!(*title, format!("{id}{}", [".tar", ".tar.zst", ".tar.gz"][number]));
            let unpacked = shop.path("unpacked.tar");
            match *format {
                "tar" => drop(fs::copy(blob, &unpacked).unwrap()),
                "tar+zstd" => drop(command("zstd", &[&"-dqfo", &unpacked, &blob])),
                _ => fs::write(&unpacked, command("gunzip", &[&"-c", &blob]).stdout).unwrap(),
            }
            let listed = command("tar", &[&"--numeric-owner", &"-tvf", &unpacked]).text();
            assert_eq!(listed.lines().count(), 4, "{listed}");
            assert!(listed.lines().all(|line| line.starts_with("-rw-r--r-- 0/0 ")), "{listed}");
            let script = "import sys, tarfile\n\
                for m in tarfile.open(sys.argv[1]): print(m.name, m.size, m.mtime, m.uid, m.mode, m.uname)";
            let listed = python_says(script, &[&unpacked]);
            let first = listed.lines().next().unwrap();
            let mtime = 1_600_000_000 + "10000/METADATA.json".len() * 1000;
            assert_eq!(first, format!("METADATA.json 3 {mtime} 0 420 "));
            let extracted = Extracted::of(&unpacked).files();
            assert_eq!(extracted, files(&shop.path("in").join(id)));
        }
        let reference = format!("oci:{}:v{number}", shop.path("out").display());
        let mounted = EoMount::new(PROGRAM, reference).home(&shop.home).mount();
        let mut shown = files(mounted.path());
        shown.remove("config.json").expect("the config");
        assert!(shown == expected, "{format}: the mount shows other files");
    }
}

#[test]
fn small_and_descriptive_members_come_first() {
    let shop = Workshop::patches();
    shop.file("10000/README.MD", &[b'a'; 100_000]);
    shop.file("10000/huge.json", &[b' '; 2 << 20]);
    shop.pack(&["in", "oci:out:v", "--per-dir"]);
    let layer = &shop.layers("out", "v")["10000.tar"];
    let order = [
        "METADATA.json",
        "README.MD",
        "ANNOTATIONS/TARGET_10000.npy",
        "huge.json",
        "DATA_S1A/S1A_10000.npy",
        "DATA_S2/S2_10000.npy",
    ];
    assert_eq!(names(layer), order);
}

#[test]
fn the_same_folder_gives_the_same_digests_anywhere() {
    let shop = Workshop::patches();
    symlink("../METADATA.json", shop.path("in/10000/DATA_S2/link")).unwrap();
    // The time of a link cannot be set by the standard library.
    command("touch", &[&"-h", &"-d", &"@1600000000", &shop.path("in/10000/DATA_S2/link")]);
    fs::hard_link(shop.path("in/10001/METADATA.json"), shop.path("in/10001/second.json")).unwrap();
    for format in FORMATS {
        let first = shop.pack(&["in", "oci:out:v1", "--per-dir", "--format", format]);
        // Another order of names in the folders, another umask, owner, number of threads, locale and time zone.
        let copy = shop.path("elsewhere");
        fs::create_dir(&copy).unwrap();
        for id in ["10002", "10000", "10001"] {
            command("cp", &[&"-a", &shop.path("in").join(id), &copy]);
        }
        command("chmod", &[&"-R", &"go=,u-w", &copy]);
        if is_root() {
            command("chown", &[&"-R", &"1234:4321", &copy]);
        }
        let script = format!(
            "umask 077; LC_ALL=C.UTF-8 TZ=Asia/Tokyo exec {PROGRAM} pack elsewhere oci:second:v1 --per-dir \
             --format {format} --jobs 1 --json --cache-dir cache"
        );
        let mut again = Command::new("sh");
        again.args(["-c", &script]).current_dir(shop.dir.path());
        let said = run(&mut again, PATIENCE).expect_success("pack").text();
        assert!(said.contains(&first), "{format}: {first} is not in {said}");
        command("chmod", &[&"-R", &"u+w", &copy]);
        fs::remove_dir_all(&copy).unwrap();
    }
}

#[test]
fn with_source_date_epoch_times_do_not_matter() {
    let shop = Workshop::patches();
    let pack = |out: &str| shop.pack(&["in", out, "--per-dir", "--source-date-epoch", "1500000000"]);
    let first = pack("oci:a:v");
    command("find", &[&shop.path("in"), &"-exec", &"touch", &"{}", &"+"]);
    assert_eq!(pack("oci:b:v"), first);
    assert_ne!(shop.pack(&["in", "oci:b:w", "--per-dir"]), first);
    assert_eq!(
        shop.manifest("a", "v")["annotations"],
        json!({"org.opencontainers.image.created": "2017-07-14T02:40:00Z"})
    );
    let said =
        EoMount::bare(PROGRAM).home(&shop.home).current_dir(shop.dir.path()).env("SOURCE_DATE_EPOCH", "1500000000");
    let said = said.args(["pack", "in", "oci:c:v", "--per-dir"]).output().expect_success("pack");
    assert!(said.text().ends_with(&format!("{first}\n")), "{}", said.text());
}

#[test]
fn links_long_names_holes_and_empty_folders_come_back() {
    let shop = Workshop::new();
    shop.file("a/data.bin", &noise(1, 100_000));
    fs::hard_link(shop.path("in/a/data.bin"), shop.path("in/a/twin.bin")).unwrap();
    symlink("data.bin", shop.path("in/a/link")).unwrap();
    symlink("x".repeat(300), shop.path("in/a/long-link")).unwrap();
    let long = format!("{}/{}/f\u{fc}r.npy", "d".repeat(120), "e".repeat(200));
    shop.file(&format!("a/{long}"), b"deep");
    shop.file("a/empty", b"");
    fs::create_dir_all(shop.path("in/a/nothing/in here")).unwrap();
    shop.file("a/run.sh", b"#!/bin/sh\n");
    fs::set_permissions(shop.path("in/a/run.sh"), fs::Permissions::from_mode(0o6751)).unwrap();
    let sparse = fs::File::create(shop.path("in/a/holes")).unwrap();
    sparse.set_len(3_000_000).unwrap();
    let old = fs::File::create(shop.path("in/a/old")).unwrap();
    old.set_modified(SystemTime::UNIX_EPOCH - Duration::from_secs(5)).unwrap();
    fs::create_dir(shop.path("in/b")).unwrap();
    for format in FORMATS {
        shop.pack(&["in", "oci:out:v", "--per-dir", "--format", format]);
        let layers = shop.layers("out", "v");
        let layer = layers.iter().find(|(title, _)| title.starts_with("a.")).unwrap().1;
        let extracted = Extracted::of(layer);
        let mounted = EoMount::new(PROGRAM, format!("oci:{}:v", shop.path("out").display())).home(&shop.home).mount();
        assert!(extracted.assert_shown_in(&mounted.join("a")) > 10);
        assert_eq!(files(extracted.path()), files(&shop.path("in/a")));
        assert!(extracted.path().join("nothing/in here").is_dir());
        assert_eq!(fs::read_link(extracted.path().join("long-link")).unwrap(), Path::new(&"x".repeat(300)));
        assert_eq!(fs::metadata(extracted.path().join("run.sh")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(
            fs::metadata(extracted.path().join("old")).unwrap().modified().unwrap(),
            old.metadata().unwrap().modified().unwrap()
        );
        assert_eq!(fs::read_dir(mounted.join("b")).unwrap().count(), 0);
    }
}

#[test]
fn a_registry_takes_what_was_packed() {
    let shop = Workshop::patches();
    shop.file("README.md", b"# Patches\n");
    let registry = RealRegistry::start();
    for format in FORMATS {
        let digest = shop.pack(&["in", "oci:out:v1", "--per-dir", "--format", format]);
        let reference = registry.reference("pastis:v1");
        let arguments = ["copy", "--from-oci-layout", "--to-plain-http", "out:v1", &reference];
        registry.oras(shop.dir.path(), &arguments);
        let fetched =
            registry.oras(shop.dir.path(), &["manifest", "fetch", "--plain-http", "--descriptor", &reference]);
        assert!(fetched.text().contains(&digest), "{}", fetched.text());
        let mounted = EoMount::new(PROGRAM, &reference).home(&shop.home).mount();
        let mut shown = files(mounted.path());
        shown.remove("config.json");
        assert!(shown == files(&shop.path("in")), "{format}: the mount shows other files");
    }
}

#[test]
fn what_is_packed_into_a_registry_is_what_pack_and_push_make_and_leaves_nothing_on_disk() {
    let shop = Workshop::patches();
    shop.file("README.md", b"# Patches\n");
    let registry = RealRegistry::start();
    let reference = registry.reference("pastis:v1");
    for format in FORMATS {
        let arguments = ["--per-dir", "--format", format, "--jobs", "2"];
        let digest = shop.pack(&[&["in", "oci:out:v1"], &arguments[..]].concat());
        assert_eq!(shop.pack(&[&["in", &reference], &arguments[..]].concat()), digest, "{format}");
        let fetched =
            registry.oras(shop.dir.path(), &["manifest", "fetch", "--plain-http", "--descriptor", &reference]);
        assert!(fetched.text().contains(&digest), "{}", fetched.text());
        let mounted = EoMount::new(PROGRAM, &reference).home(&Home::new()).mount();
        let mut shown = files(mounted.path());
        shown.remove("config.json");
        assert!(shown == files(&shop.path("in")), "{format}: the mount shows other files");
    }
    let said = shop.call(&["in", &reference, "--per-dir"]).expect_success("pack").text();
    assert!(said.contains("4 layers of ") && said.contains("4 were there"), "{said}");
    let kept = files(&shop.home.cache()).into_values().map(|bytes| bytes.len()).sum::<usize>();
    assert!(kept < 1 << 20, "{kept} bytes in the cache folder");
}

#[test]
fn a_registry_gets_no_tag_of_what_could_not_be_packed_and_layers_in_time() {
    let shop = Workshop::patches();
    let registry = ScriptedRegistry::start();
    registry.take_uploads(Takes::default());
    let reference = registry.reference("pastis:v1");
    let growing = fs::File::create(shop.path("in/10001/growing.bin")).unwrap();
    growing.set_len(8 << 30).unwrap();
    let child = shop.start(&["in", &reference, "--per-dir", "--jobs", "1"]);
    // The first layer is there long before the second is made.
    let sent = || registry.requests().iter().any(|request| request.method == "PUT" || request.method == "PATCH");
    assert!(wait_until(PATIENCE, sent));
    growing.set_len(9 << 30).unwrap();
    let said = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("in/10001/growing.bin: it changed while it was packed"), "{stderr}");
    assert!(registry.requests_of(Kind::Manifest).is_empty());
    fs::remove_file(shop.path("in/10001/growing.bin")).unwrap();
    let said = shop.call(&["in", &reference, "--per-dir"]).expect_success("pack").text();
    assert!(said.contains("1 were there"), "{said}");
}

#[test]
fn a_file_of_a_zstd_layer_is_read_without_the_rest() {
    const MIB: u64 = 1 << 20;
    let shop = Workshop::patches();
    shop.file("10000/DATA_S2/S2_10000.npy", &noise(5, 40 << 20));
    shop.pack(&["in", "oci:out:v1", "--per-dir", "--format", "tar+zstd"]);
    let registry = RealRegistry::start();
    let reference = registry.reference("pastis:v1");
    let arguments = ["copy", "--from-oci-layout", "--to-plain-http", "out:v1", &reference];
    registry.oras(shop.dir.path(), &arguments);
    let mounted = EoMount::new(PROGRAM, &reference).home(&Home::new()).mount();
    assert_eq!(fs::read_dir(mounted.join("10000")).unwrap().count(), 4);
    assert_eq!(fs::read(mounted.join("10000/METADATA.json")).unwrap(), b"{}\n");
    let stats = eo_mount_testing::xattr::get(mounted.path(), "user.eo.stats").unwrap().unwrap();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    let bytes = stats["network"]["bytes"].as_u64().unwrap();
    assert!(bytes < 4 * MIB, "{bytes} bytes of 40 MiB");
}

#[test]
fn a_packed_gzip_layer_is_listed_without_a_pass() {
    let shop = Workshop::patches();
    shop.pack(&["in", "oci:out:v", "--per-dir", "--format", "tar+gzip"]);
    let kept = |folder: &str| fs::read_dir(shop.home.cache().join("eo-mount").join(folder)).unwrap().count();
    assert_eq!((kept("checkpoints"), kept("indexes/sha256")), (3, 3));
    let reference = format!("oci:{}:v", shop.path("out").display());
    let listed = EoMount::bare(PROGRAM).home(&shop.home).args(["ls", "-R", "-vv", &reference]).output();
    let listed = listed.expect_success("ls");
    assert!(listed.text().contains("S2_10001.npy"), "{}", listed.text());
    assert!(!listed.stderr.contains("places to start"), "{}", listed.stderr);
}

#[test]
fn a_second_run_writes_no_blob_again() {
    let shop = Workshop::patches();
    let first = shop.pack(&["in", "oci:out:v1", "--per-dir"]);
    let blobs = || {
        let blobs = fs::read_dir(shop.path("out/blobs/sha256")).unwrap().map(|blob| blob.unwrap());
        let mut blobs: Vec<_> =
            blobs.map(|blob| (blob.file_name(), blob.metadata().unwrap().modified().unwrap())).collect();
        blobs.sort();
        blobs
    };
    let before = blobs();
    let said = shop.call(&["in", "oci:out:v1", "--per-dir"]).expect_success("pack").text();
    assert!(said.contains("3 layers of ") && said.contains("3 were there") && said.contains(&first), "{said}");
    assert_eq!(blobs(), before);
    // One patch changes: two of three are there.
    shop.file("10001/METADATA.json", b"{ }\n");
    let said = shop.call(&["in", "oci:out:v2", "--per-dir"]).expect_success("pack").text();
    assert!(said.contains("2 were there"), "{said}");
    assert_ne!(shop.manifest("out", "v1"), shop.manifest("out", "v2"));
}

#[test]
fn an_interrupted_run_leaves_nothing_half_done() {
    let shop = Workshop::patches();
    let big = fs::File::create(shop.path("in/10001/big.bin")).unwrap();
    big.set_len(64 << 30).unwrap();
    let start = |signal: &str| {
        let child = shop.start(&["in", "oci:out:v", "--per-dir"]);
        let blobs = shop.path("out/blobs/sha256");
        let begun = wait_until(PATIENCE, || fs::read_dir(&blobs).is_ok_and(|blobs| blobs.count() >= 1));
        let _ = run(Command::new("kill").args([signal, &child.id().to_string()]), PATIENCE);
        let ended = child.wait_with_output().unwrap();
        assert!(begun && !ended.status.success());
        ended
    };
    let unfinished = || {
        let names = fs::read_dir(shop.path("out")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.as_encoded_bytes().starts_with(b".eo-mount-")).count()
    };
    let whole = || {
        for blob in fs::read_dir(shop.path("out/blobs/sha256")).unwrap() {
            let blob = blob.unwrap();
            let digest = eo_mount_testing::sha256(&fs::read(blob.path()).unwrap());
            assert_eq!(digest.trim_start_matches("sha256:"), blob.file_name().to_str().unwrap());
        }
        assert!(!shop.path("out/index.json").exists());
    };
    let ended = start("-INT");
    let says = "eo-mount: oci:out:v: stopped by SIGINT; layers that are whole are kept (the same command goes on)\n";
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(130), says));
    assert_eq!(unfinished(), 0);
    whole();
    start("-KILL");
    whole();
    fs::remove_file(shop.path("in/10001/big.bin")).unwrap();
    shop.pack(&["in", "oci:out:v", "--per-dir"]);
    assert_eq!(unfinished(), 0, "what the killed one left is still there");
}

#[test]
fn a_file_that_changes_while_it_is_packed_is_an_error_that_names_it() {
    let shop = Workshop::patches();
    let growing = fs::File::create(shop.path("in/10001/growing.bin")).unwrap();
    growing.set_len(8 << 30).unwrap();
    let child = shop.start(&["in", "oci:out:v", "--per-dir", "--jobs", "1"]);
    assert!(wait_until(PATIENCE, || fs::read_dir(shop.path("out/blobs/sha256")).is_ok_and(|blobs| blobs.count() >= 1)));
    growing.set_len(9 << 30).unwrap();
    let said = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("in/10001/growing.bin: it changed while it was packed"), "{stderr}");
    assert!(!shop.path("out/index.json").exists());
}

#[test]
fn what_cannot_be_packed_is_named() {
    let shop = Workshop::patches();
    let per_dir = ["in", "oci:out:v", "--per-dir"];
    command("mkfifo", &[&shop.path("in/10000/pipe")]);
    shop.refused(&per_dir, 1, &["in/10000/pipe: a device, fifo or socket", "move it away"]);
    fs::remove_file(shop.path("in/10000/pipe")).unwrap();

    symlink("10000", shop.path("in/10003")).unwrap();
    shop.refused(&per_dir, 2, &["in/10003: a symbolic link where a layer is to be made"]);
    fs::remove_file(shop.path("in/10003")).unwrap();

    for (name, cause) in [("bad\nname", "control characters"), (&"x".repeat(250), "too long")] {
        fs::create_dir(shop.path("in").join(name)).unwrap();
        shop.refused(&per_dir, 2, &[cause, "name it otherwise"]);
        fs::remove_dir(shop.path("in").join(name)).unwrap();
    }
    shop.file("10000.tar", b"");
    shop.refused(&per_dir, 2, &["10000.tar: two layers would have this title"]);
    fs::remove_file(shop.path("in/10000.tar")).unwrap();

    shop.refused(&["nowhere", "oci:out:v", "--per-dir"], 1, &["nowhere: it is not there"]);
    shop.refused(&["in", "oci:in/out:v", "--per-dir"], 2, &["into the folder that is packed"]);
    for out in ["out", "data/out:v1", "localhost:5000"] {
        shop.refused(&["in", out, "--per-dir"], 2, &["neither an image layout nor a registry", "oci:DIRECTORY:TAG"]);
    }
    let digest = format!("localhost:1/a@sha256:{:064x}", 1);
    shop.refused(&["in", &digest, "--per-dir"], 2, &["the digest is not known before"]);
    shop.refused(&["in", "localhost:1/a:b", "--per-dir", "--offline"], 2, &["without a network"]);
    shop.refused(&["in", "oci:out:a+b", "--per-dir"], 2, &["a tag that registries do not take"]);
    shop.refused(&["in", "oci:.:v", "--per-dir"], 2, &["not empty, and no image layout"]);
    shop.refused(&["in", "oci:out:v"], 2, &["--per-dir"]);
    shop.refused(&["in", "oci:out:v", "--group", "^([0-9]{4})1"], 2, &["10000: no layer is named for this sub-folder"]);
    shop.refused(&["in", "oci:out:v", "--per-dir", "--field", "tiles=x"], 2, &["tiles: this field"]);
    let empty = shop.path("empty");
    fs::create_dir(&empty).unwrap();
    shop.refused(&["empty", "oci:out:v", "--per-dir"], 2, &["empty: there is nothing in it to pack"]);
    assert!(!shop.path("out").exists(), "something was written");
}

#[test]
fn a_file_that_may_not_be_read_is_named() {
    let shop = Workshop::patches();
    let closed = shop.path("in/10001/METADATA.json");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(shop.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let user = User::nobody();
    let said = EoMount::bare(PROGRAM).as_user(&user).current_dir(shop.dir.path());
    let said = said.args(["pack", "in", "oci:out:v", "--per-dir"]).output();
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("in/10001/METADATA.json: no permission to read it"), "{}", said.stderr);
}

/// Features of the three patches of the sample, in the form in which PASTIS has them.
fn features(config: &Value, dates: bool) -> Value {
    let feature = |patch: &Value| {
        let mut properties = json!({"ID_PATCH": patch["patch_id"], "N_Parcel": patch["parcel_count"]});
        if dates {
            properties["dates-S2"] = json!({"0": 20180924, "1": 20191019});
            properties["dates-S1A"] = json!({"0": 20181004, "1": 20190101, "2": 20191204});
        } else {
            properties["temporal_coverage"] = patch["temporal_coverage"].clone();
        }
        json!({"type": "Feature", "id": "7", "properties": properties, "geometry": patch["geometry"]})
    };
    let features: Vec<_> = config["patches"].as_array().unwrap().iter().map(feature).collect();
    json!({"type": "FeatureCollection", "features": features})
}

fn published(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/metadata").join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_config_is_that_of_the_published_patches_but_for_the_digests() {
    let shop = Workshop::patches();
    let mut expected = published("config-sample.json");
    for dates in [false, true] {
        fs::write(shop.path("m.geojson"), features(&expected, dates).to_string()).unwrap();
        let fields = ["dataset=PASTIS-HD", "created_by=IGN", "license=etalab-2.0", "tile=t30uxv"];
        let fields = fields.iter().flat_map(|field| ["--field", field]);
        let options = ["in", "oci:out:v", "--per-dir", "--metadata", "m.geojson"];
        shop.pack(&options.into_iter().chain(fields).collect::<Vec<_>>());
        let manifest = shop.manifest("out", "v");
        let layers = manifest["layers"].as_array().unwrap();
        for (patch, layer) in expected["patches"].as_array_mut().unwrap().iter_mut().zip(layers) {
            patch["layer_digest"] = layer["digest"].clone();
            assert_eq!(layer["annotations"][TITLE], format!("{}.tar", patch["patch_id"].as_str().unwrap()));
            assert_eq!(layer["mediaType"], patch["layer_mediaType"]);
        }
        assert_eq!(shop.config("out", "v"), expected);
        assert_eq!(manifest["artifactType"], expected["artifactType"]);
        assert_eq!(manifest["config"]["mediaType"], expected["mediaType"]);
        // No coordinate was rounded.
        let text = fs::read_to_string(shop.blob("out", &manifest["config"]["digest"])).unwrap();
        assert!(text.contains("391504.7355450863") && text.contains("6956805.915242429"), "{text}");
    }
}

#[test]
fn groups_have_the_layers_and_the_config_of_the_published_tiles() {
    let shop = Workshop::patches();
    fs::write(shop.path("m.geojson"), features(&published("config-sample.json"), true).to_string()).unwrap();
    fs::write(shop.path("tiles.csv"), "folder,layer\n10000,t30uxv\n10001,t30uxv\n10002,t31tfj\n").unwrap();
    let options =
        ["in", "oci:out:v", "--group", "tiles.csv", "--metadata", "m.geojson", "--field", "dataset=PASTIS-HD"];
    shop.pack(&options);
    let layers = shop.layers("out", "v");
    assert_eq!(layers.keys().collect::<Vec<_>>(), ["t30uxv.tar", "t31tfj.tar"]);
    let listed = names(&layers["t30uxv.tar"]);
    assert_eq!(listed[..2], ["t30uxv/10000/METADATA.json", "t30uxv/10001/METADATA.json"]);
    assert_eq!(listed[2], "t30uxv/10000/ANNOTATIONS/TARGET_10000.npy");
    assert!(listed[2..5].iter().all(|name| name.starts_with("t30uxv/10000/")), "{listed:?}");

    let (config, tiles) = (shop.config("out", "v"), published("config-t4.json"));
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let (ours, theirs) = (&config["tiles"][0], &tiles["tiles"][0]);
    assert_eq!(keys(ours), keys(theirs));
    assert_eq!(keys(&ours["bounding_box"]), keys(&theirs["bounding_box"]));
    assert_eq!(ours["temporal_coverage"]["S1A"], json!({"start": 20181004, "end": 20191204, "count": 3}));
    assert_eq!(keys(&ours["temporal_coverage"]["S2"]), keys(&theirs["temporal_coverage"]["S2"]));
    assert_eq!(ours["bounding_box"]["minx"], json!(367530.4507529661));
    assert_eq!(ours["bounding_box"]["maxy"], json!(6956805.915242429));
    assert_eq!(ours["layer_digest"], shop.manifest("out", "v")["layers"][0]["digest"]);

    shop.pack(&["in", "oci:out:w", "--group", "^(100)0"]);
    assert_eq!(shop.layers("out", "w").keys().collect::<Vec<_>>(), ["100.tar"]);
}

#[test]
fn what_the_metadata_does_not_match_is_warned_of() {
    let shop = Workshop::patches();
    let mut features = features(&published("config-sample.json"), false);
    features["features"][1]["properties"]["ID_PATCH"] = json!("99999");
    fs::write(shop.path("m.geojson"), features.to_string()).unwrap();
    let said = shop.call(&["in", "oci:out:v", "--per-dir", "--metadata", "m.geojson"]).expect_success("pack");
    assert!(said.stderr.contains("1 folders have no feature: 10001"), "{}", said.stderr);
    assert!(said.stderr.contains("1 features have no folder: 99999"), "{}", said.stderr);
    let config = shop.config("out", "v");
    assert!(config["patches"][1].get("geometry").is_none() && config["patches"][0].get("geometry").is_some());
    for text in ["[]", "{", r#"{"features":[{}]}"#, r#"{"features":[{"id":1},{"id":"1"}]}"#] {
        fs::write(shop.path("m.geojson"), text).unwrap();
        shop.refused(
            &["in", "oci:out:v", "--per-dir", "--metadata", "m.geojson"],
            2,
            &["m.geojson: ", "FeatureCollection"],
        );
    }
}
