//! How a mount begins and ends.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::as_user::{is_root, open_fuse_to_all};
use eo_mount_testing::files::{names_in, strays_in_cache};
use eo_mount_testing::fixtures::{PythonTar, Sample, TarFormat, gnu_tar, noise};
use eo_mount_testing::mount_table::mounts_at;
use eo_mount_testing::processes::{self, Signal};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    ALWAYS, Artifact, EoMount, Extracted, Fault, Finished, Home, Matcher, Mounted, RealRegistry, ScriptedRegistry,
    User, run, tools,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");
const PATIENCE: Duration = Duration::from_secs(60);
/// Five seconds are promised; a busy machine gets more, but less than any timeout of a request.
const TO_END: Duration = Duration::from_secs(25);

fn eo_mount(reference: &str) -> EoMount {
    EoMount::new(PROGRAM, reference)
}

/// One packed layer, which is unpacked into the cache folder, and one that is not packed.
fn registry() -> (ScriptedRegistry, String) {
    let registry = ScriptedRegistry::start();
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("file"), noise(1, 500_000)).expect("written");
    let tar = directory.path().join("layer");
    fs::write(&tar, gnu_tar(directory.path(), TarFormat::Gnu)).expect("written");
    let packed = run(Command::new("gzip").arg("-c").arg(&tar), PATIENCE).expect_success("gzip").stdout;
    let plain = PythonTar::new().file("file", 1.5, Vec::new(), 2, 5_000_000).finish().to_bytes();
    Artifact::new().tar("packed.tar.gz", packed).tar("plain.tar", plain).push(&registry, "data", "v1");
    let reference = registry.reference("data:v1");
    (registry, reference)
}

const NAMES: [&str; 3] = ["config.json", "packed", "plain"];

/// In the foreground, when it has said that it is ready: before, a signal is no orderly end.
#[track_caller]
fn in_the_foreground(call: EoMount) -> Mounted {
    let mounted = call.arg("-v").mount_foreground();
    assert!(wait_until(PATIENCE, || mounted.log().contains(": mounted ")), "{}", mounted.log());
    mounted
}

/// Reads a bit of everything.
#[track_caller]
fn use_it(mounted: &Mounted) {
    assert_eq!(names_in(mounted.path()), NAMES);
    assert!(fs::read(mounted.join("packed/file")).unwrap() == noise(1, 500_000));
    let mut head = [0; 4096];
    File::open(mounted.join("plain/file")).unwrap().read_exact(&mut head).unwrap();
    assert_eq!(head[..], noise(2, 4096));
}

/// No process, no mount, no file but those that are kept for the next mount; the mountpoint is an empty directory
/// again.
#[track_caller]
fn assert_nothing_is_left(mounted: &mut Mounted, how: &str) -> Finished {
    let finished = mounted.wait_ended(TO_END);
    let finished = finished.unwrap_or_else(|| panic!("{how}: it still runs: {:?}", mounted.processes()));
    assert_eq!(mounts_at(mounted.path()), [], "{how}");
    assert_eq!(names_in(mounted.path()), [""; 0], "{how}");
    let home = mounted.home();
    for folder in [home.tmp(), home.runtime()] {
        assert_eq!(names_in(&folder), [""; 0], "{how}");
    }
    assert_eq!(strays_in_cache(&home.cache().join("eo-mount")), [""; 0], "{how}");
    finished
}

// The beginning.

#[test]
fn the_command_returns_when_the_mount_answers_and_the_mount_goes_on_in_the_background() {
    let (_registry, reference) = registry();
    let home = Home::new();
    let mounted = eo_mount(&reference).home(&home).current_dir(home.tmp()).mount();
    // At once, without waiting.
    assert_eq!(names_in(mounted.path()), NAMES);
    use_it(&mounted);

    let pid = mounted.pid();
    assert_eq!(mounted.processes(), [pid]);
    // proc(5): fields of stat behind the name are state, parent, group, session.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    assert_ne!(fields[1], std::process::id().to_string(), "its parent is gone");
    assert_eq!(fields[3], pid.to_string(), "Ctrl-C in the terminal does not reach it");
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(link("cwd"), Path::new("/"), "the folder that it was started in can be removed");
    for stream in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(stream), Path::new("/dev/null"), "{stream}");
    }
    let entry = mounted.mount_entry().unwrap();
    assert_eq!((entry.fs_type.as_str(), entry.source.as_str()), ("fuse.eo-mount", reference.as_str()));
    for option in ["ro", "nosuid", "nodev"] {
        assert!(entry.options.split(',').any(|known| known == option), "{entry:?}");
    }
    mounted.unmount();
}

#[test]
fn in_the_foreground_it_stays_until_ctrl_c() {
    let (_registry, reference) = registry();
    for option in ["-f", "--foreground"] {
        let mut mounted = eo_mount(&reference).arg(option).arg("-v").spawn();
        assert!(wait_until(PATIENCE, || mounted.log().contains(": mounted ")), "{}", mounted.log());
        use_it(&mounted);
        assert!(mounted.wait_ended(Duration::from_millis(200)).is_none(), "it stays");
        mounted.signal(Signal::INT);
        let finished = assert_nothing_is_left(&mut mounted, option);
        assert_eq!((finished.code, finished.text().as_str(), finished.stderr.as_str()), (0, "", ""), "{option}");
    }
}

#[test]
fn the_verb_mount_may_be_said_or_not() {
    let (_registry, reference) = registry();
    let mountpoint = Home::new();
    let at = mountpoint.new_mountpoint();
    let said = EoMount::bare(PROGRAM).arg("mount").arg(&reference).arg(&at).mountpoint(&at).mount();
    use_it(&said);
    said.unmount();
    let unsaid = EoMount::bare(PROGRAM).arg(&reference).arg(&at).mountpoint(&at).mount();
    use_it(&unsaid);
    unsaid.unmount();
}

#[test]
fn output_piped_through_cat_ends_when_the_command_returns() {
    let (_registry, reference) = registry();
    let home = Home::new();
    for script in [
        "\"$0\" \"$1\" \"$2\" | cat",
        "\"$0\" \"$1\" \"$2\" 2>&1 | cat",
        // A lock, or the end of some other pipe, is not the mount's to keep.
        "\"$0\" \"$1\" \"$2\" 7>&1 >/dev/null 2>&1 | cat",
        "said=$(\"$0\" \"$1\" \"$2\"); test -z \"$said\"",
    ] {
        let at = home.new_mountpoint();
        let call = EoMount::bare("sh").args(["-e", "-c", script, PROGRAM, &reference]).arg(&at).mountpoint(&at);
        let mounted = call.limit(PATIENCE).mount();
        assert_eq!(names_in(mounted.path()), NAMES, "{script}");
        mounted.unmount();
    }
}

#[test]
fn a_command_that_is_interrupted_while_it_waits_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let (registry, reference) = registry();
        let stalled = registry.fault(Matcher::manifests(), Fault::Stall, ALWAYS);
        let mut mounted = eo_mount(&reference).spawn();
        assert!(wait_until(PATIENCE, || stalled.met() > 0), "{}", mounted.log());
        // What the user sees, as opposed to the process that it started.
        let command = mounted.processes().into_iter().find(|&pid| !is_in_background(pid)).unwrap();
        processes::signal(command, signal);
        let finished = assert_nothing_is_left(&mut mounted, &format!("{signal:?}"));
        assert_ne!(finished.code, 0);
    }
}

fn is_in_background(pid: u32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|&byte| byte == 0).any(|argument| argument == b"--in-background")
}

// The end.

#[test]
fn every_way_to_end_a_mount_leaves_nothing_behind() {
    let (_registry, reference) = registry();
    let unmount = |program: &'static str, options: &'static [&str]| {
        move |mounted: &Mounted| {
            let mut command = Command::new(program);
            command.args(options).arg(mounted.path());
            run(&mut command, PATIENCE).expect_success(program);
        }
    };
    let signal = |signal| move |mounted: &Mounted| mounted.signal(signal);
    type Way = Box<dyn Fn(&Mounted)>;
    let mut ways: Vec<(&str, Way)> = vec![
        ("fusermount3 -u", Box::new(unmount("fusermount3", &["-u"]))),
        ("fusermount3 -uz", Box::new(unmount("fusermount3", &["-u", "-z"]))),
        ("umount", Box::new(unmount("umount", &[]))),
        ("SIGINT", Box::new(signal(Signal::INT))),
        ("SIGTERM", Box::new(signal(Signal::TERM))),
        ("SIGHUP", Box::new(signal(Signal::HUP))),
    ];
    if is_root() {
        ways.push(("umount -l", Box::new(unmount("umount", &["-l"]))));
        ways.push(("umount -f", Box::new(unmount("umount", &["-f"]))));
    }
    for (how, end) in ways {
        let mut background = eo_mount(&reference).mount();
        use_it(&background);
        end(&background);
        assert_nothing_is_left(&mut background, how);
        assert_eq!(background.log(), "", "{how}");
        // The same place can be used again.
        let mut foreground = in_the_foreground(eo_mount(&reference).mountpoint(background.path()));
        use_it(&foreground);
        end(&foreground);
        let finished = assert_nothing_is_left(&mut foreground, how);
        assert_eq!((finished.code, finished.stderr.as_str()), (0, ""), "{how}");
    }
}

#[test]
fn after_kill_9_the_same_place_is_mounted_again() {
    let (_registry, reference) = registry();
    // Before the living one, so that they are dropped behind it: they would take it for theirs.
    let mut killed = Vec::new();
    let mut mounted = eo_mount(&reference).mount();
    for round in 0..3 {
        use_it(&mounted);
        mounted.kill();
        // The kernel remembers names and attributes; this it asks for.
        rustix::fs::statfs(mounted.path()).map(drop).unwrap_err();
        assert_eq!(mounts_at(mounted.path()).len(), 1, "the dead mount stays");
        let call = eo_mount(&reference).in_place_of(&mounted);
        let again = if round == 1 { call.mount_foreground() } else { call.mount() };
        assert_eq!(mounts_at(again.path()).len(), 1, "the dead mount is gone");
        killed.push(std::mem::replace(&mut mounted, again));
    }
    use_it(&mounted);
    let path = mounted.path().to_owned();
    mounted.unmount();
    assert_eq!((mounts_at(&path), names_in(&path)), (Vec::new(), Vec::new()));
}

#[test]
fn sigterm_ends_a_mount_while_a_file_is_open_and_a_folder_is_in_use() {
    let (_registry, reference) = registry();
    for foreground in [false, true] {
        let call = eo_mount(&reference);
        let mut mounted = if foreground { in_the_foreground(call) } else { call.mount() };
        use_it(&mounted);
        let mut file = File::open(mounted.join("plain/file")).unwrap();
        let folder = File::open(mounted.join("plain")).unwrap();
        mounted.signal(Signal::TERM);
        let finished = assert_nothing_is_left(&mut mounted, "SIGTERM with an open file");
        assert_eq!(finished.code, 0);
        // What nobody has read so far is gone, and says so.
        io::Seek::seek(&mut file, io::SeekFrom::Start(4_000_000)).unwrap();
        file.read(&mut [0; 10]).unwrap_err();
        drop(folder);
    }
}

#[test]
fn sigterm_ends_a_mount_while_a_read_hangs() {
    ends_while_it_hangs("cat", "plain/file", |mounted| assert_eq!(names_in(&mounted.join("plain")), ["file"]));
}

#[test]
fn sigterm_ends_a_mount_while_a_listing_hangs() {
    ends_while_it_hangs("ls", "plain", |_| {});
}

#[test]
fn sigterm_ends_a_mount_while_a_layer_is_unpacked() {
    ends_while_it_hangs("ls", "packed", |_| {});
}

#[track_caller]
fn ends_while_it_hangs(program: &str, path: &str, before: impl Fn(&Mounted)) {
    for (signal, fault) in [(Signal::TERM, Fault::Stall), (Signal::INT, Fault::StallAfter(100))] {
        let (registry, reference) = registry();
        let mut mounted = eo_mount(&reference).mount();
        before(&mounted);
        let stalled = registry.fault(Matcher::blobs(), fault, ALWAYS);
        let reader = std::thread::spawn({
            let (program, path) = (program.to_owned(), mounted.join(path));
            move || run(Command::new(program).arg(path), PATIENCE)
        });
        assert!(wait_until(PATIENCE, || stalled.met() > 0), "{}", mounted.log());
        assert!(!reader.is_finished());
        mounted.signal(signal);
        assert_nothing_is_left(&mut mounted, "while a request hangs");
        let reader = reader.join().unwrap();
        assert!(!reader.success() && !reader.stderr.is_empty(), "{}", reader.stderr);
    }
}

// Other users.

#[test]
fn an_ordinary_user_does_all_this_too() {
    let user = User::nobody();
    let (registry, files) = (RealRegistry::start(), tempfile::tempdir().unwrap());
    let sample = Sample::files_in(files.path());
    let reference = registry.on_localhost("pastis-2433:sample");
    let arguments = sample.push_arguments("");
    let push: Vec<&str> = ["push", &reference].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    registry.oras(files.path(), &push);

    let mut mounted = eo_mount(&reference).as_user(&user).mount();
    let mount = mounted.path().to_str().unwrap().to_owned();
    let said = |script: &str| {
        let mut command = user.command("sh");
        command.args(["-e", "-c", script]).arg(&mount).current_dir("/").env("LC_ALL", "C");
        run(&mut command, PATIENCE).expect_success(script).text()
    };
    assert_eq!(said("ls \"$0\""), "10000\n10001\n10002\nconfig.json\n");
    let (tar, name) = sample.patches().nth(1).unwrap();
    let extracted = Extracted::of(&tar);
    let sums = |directory: &str| format!("cd \"{directory}\"; find . -type f -print0 | sort -z | xargs -0 md5sum");
    let mut expected = Command::new("sh");
    expected.args(["-e", "-c", &sums("$0")]).arg(extracted.path()).env("LC_ALL", "C");
    let expected = run(&mut expected, PATIENCE).expect_success("md5sum").text();
    assert_eq!((expected.lines().count(), said(&sums(&format!("$0/{name}")))), (8, expected));
    assert!(said("gdalinfo \"$0\"/10002/DATA_SPOT/*/*.tif").contains("ID[\"EPSG\",2154]"));
    assert_eq!(said("stat -c %u \"$0\"/10000/DATA_S2"), said("id -u"));
    let refused = {
        let mut command = user.command("sh");
        command.args(["-c", "touch \"$0\"/10000/new"]).arg(&mount).env("LC_ALL", "C").current_dir("/");
        run(&mut command, PATIENCE)
    };
    assert!(refused.stderr.contains("Read-only file system"), "{}", refused.stderr);
    if is_root() {
        let denied = fs::read_dir(&mount).map(drop).unwrap_err();
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied, "nobody else may look, not even root");
    }

    mounted.kill();
    let again = eo_mount(&reference).as_user(&user).in_place_of(&mounted).mount();
    assert_eq!((mounts_at(again.path()).len(), again.path()), (1, mounted.path()));
    assert_eq!(said("ls \"$0\"/10000/ANNOTATIONS"), "ParcelIDs_10000.npy\nTARGET_10000.npy\n");
    let mut again = again;
    said("fusermount3 -u \"$0\"");
    assert_nothing_is_left(&mut again, "fusermount3 -u");

    let mut third = eo_mount(&reference).as_user(&user).in_place_of(&mounted).mount();
    said("cat \"$0\"/config.json");
    said("umount \"$0\"");
    assert_nothing_is_left(&mut third, "umount");

    let mut fourth = eo_mount(&reference).as_user(&user).in_place_of(&mounted).mount();
    said("cat \"$0\"/config.json");
    fourth.signal(Signal::TERM);
    assert_nothing_is_left(&mut fourth, "SIGTERM");
}

#[test]
fn a_login_through_su_mounts_reads_and_unmounts() {
    open_fuse_to_all();
    let (_registry, reference) = registry();
    let user = User::nobody();
    let home = Home::of(&user);
    let mount = home.new_mountpoint();
    // Where the user can reach it.
    let program = home.path().join("eo-mount");
    run(Command::new("cp").arg(PROGRAM).arg(&program), PATIENCE).expect_success("cp");
    let script = format!(
        "set -e; cd /; '{}' --cache-dir '{}' '{reference}' '{mount}'; wc -c < '{mount}/packed/file'; fusermount3 -u '{mount}'",
        program.display(),
        home.cache().display(),
        mount = mount.display(),
    );
    // `su` asks for a password unless root calls it; who runs the tests as an ordinary user is one.
    let mut command = if is_root() {
        let mut command = Command::new("su");
        command.args(["--shell", "/bin/sh", &user.name, "--command"]);
        command
    } else {
        let mut command = Command::new("sh");
        command.arg("-c");
        command
    };
    command.arg(script).env("HOME", home.path());
    assert_eq!(run(&mut command, PATIENCE).expect_success("su").text().trim(), "500000");
    assert!(wait_until(TO_END, || mounts_at(&mount).is_empty()));
}

#[test]
fn with_allow_other_another_user_reads_and_without_not() {
    let (_registry, reference) = registry();
    let user = User::nobody();
    // Reachable for everybody; the mounter is who runs the tests.
    let home = Home::of(&user);
    let read = |mounted: &Mounted| {
        let mut command = user.command("cat");
        command.arg(mounted.join("packed/file")).current_dir("/").env("LC_ALL", "C");
        run(&mut command, PATIENCE)
    };
    if is_root() {
        let alone = eo_mount(&reference).home(&home).mount();
        let denied = read(&alone);
        assert!(!denied.success() && denied.stderr.contains("Permission denied"), "{}", denied.stderr);
        let shared = eo_mount(&reference).home(&home).arg("--allow-other").mount();
        assert!(read(&shared).expect_success("cat").stdout == noise(1, 500_000));
    } else {
        // There is nobody else to ask, and only root can change what /etc/fuse.conf says.
        let allowed = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        if allowed.lines().any(|line| line.trim() == "user_allow_other") {
            let shared = eo_mount(&reference).arg("--allow-other").mount();
            assert!(shared.mount_entry().unwrap().super_options.contains("allow_other"));
        } else {
            let refused = eo_mount(&reference).arg("--allow-other").output();
            assert!(refused.code == 3 && refused.stderr.contains("user_allow_other"), "{}", refused.stderr);
        }
    }
}

// What it says.

#[test]
fn the_log_file_tells_what_failed_and_with_v_also_what_happened() {
    let (registry, reference) = registry();
    let lines = |options: &[&str]| {
        let script = registry.fault(Matcher::blobs(), Fault::status(404), ALWAYS);
        let mut mounted = eo_mount(&reference).args(options).mount();
        let listed = fs::read_dir(mounted.join("plain")).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        assert!(listed.is_err() && script.met() > 0, "{listed:?}");
        registry.clear_faults();
        mounted.signal(Signal::TERM);
        assert_nothing_is_left(&mut mounted, "SIGTERM");
        mounted.log().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let digest = {
        let mounted = eo_mount(&reference).mount();
        let mut value = [0; 200];
        let length = rustix::fs::getxattr(mounted.join("plain"), "user.oci.digest", &mut value[..]).unwrap();
        String::from_utf8(value[..length].to_vec()).unwrap()
    };
    let quiet = lines(&[]);
    assert!(!quiet.is_empty() && quiet.iter().all(|line| line.contains("WARN")), "{quiet:#?}");
    assert!(quiet[0].contains(&digest), "{quiet:#?}");
    let verbose = lines(&["-v"]);
    let says = |lines: &[String], text: &str| lines.iter().any(|line| line.contains("INFO") && line.contains(text));
    assert!(says(&verbose, &format!("mounted {reference}")) && says(&verbose, "unmounted"), "{verbose:#?}");
    let very = lines(&["-v", "--verbose"]);
    assert!(says(&very, "unmounted") && very.len() >= verbose.len(), "{very:#?}");
    let all = lines(&["-vvv"]);
    assert!(all.len() > verbose.len() && all.iter().any(|line| line.contains("DEBUG")), "{all:#?}");
}

#[test]
fn with_v_the_one_who_mounts_is_told_so_on_the_terminal() {
    let (_registry, reference) = registry();
    let home = Home::new();
    let mountpoint = home.new_mountpoint();
    let said = eo_mount(&reference).without_log().home(&home).mountpoint(&mountpoint).arg("-v").output();
    assert_eq!(said.code, 0, "{}", said.stderr);
    let expected = format!("{}: mounted {reference}", mountpoint.display());
    assert!(said.stderr.lines().any(|line| line.contains("INFO") && line.ends_with(&expected)), "{}", said.stderr);
    let quiet = eo_mount(&reference).without_log().home(&home).mountpoint(&mountpoint).output();
    assert_eq!((quiet.code, quiet.text().as_str(), quiet.stderr.as_str()), (0, "", ""));
}

#[test]
fn log_lines_are_appended() {
    let (_registry, reference) = registry();
    let home = Home::new();
    fs::write(home.log_file(), "a line of before\n").unwrap();
    for _ in 0..2 {
        eo_mount(&reference).home(&home).arg("-v").mount().unmount();
    }
    let log = fs::read_to_string(home.log_file()).unwrap();
    assert!(log.starts_with("a line of before\n"), "{log}");
    assert_eq!(log.matches(&format!("mounted {reference}")).count(), 2, "{log}");
}

#[test]
fn version_and_help_are_answered() {
    let version = EoMount::bare(PROGRAM).arg("--version").output();
    assert_eq!((version.code, version.text()), (0, concat!("eo-mount ", env!("CARGO_PKG_VERSION"), "\n").to_owned()));
    for option in ["--help", "-h"] {
        let help = EoMount::bare(PROGRAM).arg(option).output();
        assert_eq!((help.code, help.stderr.as_str()), (0, ""));
        let text = help.text();
        let all = [
            "Examples:\n  eo-mount ",
            "fusermount3 -u ",
            "EO_MOUNT_CACHE_DIR",
            "Exit codes: 1 ",
            "--foreground",
            "--plain-http",
            "--cache-dir",
            "--memory",
            "--timeout",
            "--allow-other",
            "--uid",
            "--gid",
            "--preserve-owner",
            "--verbose",
            "--log",
            "--version",
        ];
        for part in all {
            assert!(text.contains(part), "{option} does not say {part}:\n{text}");
        }
        assert!(!text.contains("in-background"), "that one is not for users");
    }
}

// Variables.

#[test]
fn variables_stand_for_options() {
    let (_registry, reference) = registry();
    let home = Home::new();
    let (cache, log) = (home.path().join("elsewhere"), home.path().join("other-log"));
    let mounted = eo_mount(&reference)
        .without_log()
        .env("EO_MOUNT_UID", "1234")
        .env("EO_MOUNT_GID", "4321")
        .env("EO_MOUNT_CACHE_DIR", &cache)
        .env("EO_MOUNT_LOG", &log)
        .env("EO_MOUNT_VERBOSE", "1")
        .arg("--gid=99")
        .mount();
    use_it(&mounted);
    let stat = fs::metadata(mounted.join("packed/file")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (1234, 99), "what the command line says counts");
    assert!(cache.is_dir() && !mounted.home().cache().join("eo-mount").exists());
    mounted.unmount();
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains(&format!("mounted {reference}")), "{log}");

    let kept = eo_mount(&reference).env("EO_MOUNT_PRESERVE_OWNER", "true").mount();
    assert_eq!(fs::metadata(kept.join("plain/file")).unwrap().uid(), 1000);

    let at = home.new_mountpoint();
    fs::write(at.join("something"), "").unwrap();
    let over = eo_mount(&reference).env("EO_MOUNT_NONEMPTY", "yes").mountpoint(&at).mount();
    assert_eq!(names_in(over.path()), NAMES);
    over.unmount();
    assert_eq!(names_in(&at), ["something"]);

    let refused = eo_mount(&reference).env("EO_MOUNT_MEMORY", "1MiB").output();
    assert!(refused.code == 2 && refused.stderr.contains("16MiB"), "{}", refused.stderr);
    if is_root() {
        let shared = eo_mount(&reference).env("EO_MOUNT_ALLOW_OTHER", "1").mount();
        assert!(shared.mount_entry().unwrap().super_options.contains("allow_other"));
    }
}

#[test]
fn the_variable_for_the_foreground_keeps_it_there() {
    let (_registry, reference) = registry();
    let mut mounted = eo_mount(&reference).env("EO_MOUNT_FOREGROUND", "true").spawn();
    assert!(wait_until(PATIENCE, || mounted.mount_entry().is_some()), "{}", mounted.log());
    use_it(&mounted);
    assert!(mounted.wait_ended(Duration::from_millis(200)).is_none(), "it stays");
    mounted.signal(Signal::TERM);
    assert_nothing_is_left(&mut mounted, "SIGTERM");
    // And the other way round.
    eo_mount(&reference).env("EO_MOUNT_FOREGROUND", "false").mount().unmount();
}

#[test]
fn the_variable_for_the_timeout_ends_a_read_that_hangs() {
    let (registry, reference) = registry();
    let mounted = eo_mount(&reference).env("EO_MOUNT_TIMEOUT", "2s").mount();
    assert_eq!(names_in(&mounted.join("plain")), ["file"]);
    registry.fault(Matcher::blobs(), Fault::Stall, ALWAYS);
    // Shorter than the minute that it has unless told.
    let mut read = Command::new("cat");
    read.arg(mounted.join("plain/file")).env("LC_ALL", "C");
    let failed = run(&mut read, Duration::from_secs(40));
    assert!(failed.stderr.contains("timed out"), "{}", failed.stderr);
    registry.clear_faults();
    use_it(&mounted);
}

#[test]
fn relative_paths_are_about_the_folder_that_the_command_is_started_in() {
    let home = Home::new();
    let at: PathBuf = home.new_mountpoint();
    let here = home.path();
    Command::new("cp").arg("-r").arg(tools::project().join("sample/pastis")).arg(here.join("layout")).status().unwrap();
    let mounted = EoMount::bare(PROGRAM)
        .home(&home)
        .args(["--log", "relative-log", "-v", "--cache-dir", "relative-cache", "oci:layout:sample"])
        .arg(at.file_name().unwrap())
        .current_dir(here)
        .mountpoint(&at)
        .mount();
    assert_eq!(names_in(&mounted.join("10001/ANNOTATIONS")), ["ParcelIDs_10001.npy", "TARGET_10001.npy"]);
    assert!(here.join("relative-log").is_file() && here.join("relative-cache").is_dir());
    mounted.unmount();
}
