//! Mounts are started, found, and ended whatever happens, with a stand-in for the program.

use std::fs::File;
use std::io::Read as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use eo_mount_testing::mount_table::mounts_at;
use eo_mount_testing::processes::{self, Signal};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{EoMount, Home, Mounted, User, run};

fn hello(reference: &str) -> EoMount {
    EoMount::new(env!("CARGO_BIN_EXE_hello_mount"), reference)
}

fn said_by_panic(test: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(test)).expect_err("it must panic");
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast_ref::<&str>().unwrap_or(&"").to_string(),
    }
}

fn is_clean(mountpoint: &std::path::Path, pid: u32) -> bool {
    mounts_at(mountpoint).is_empty() && !processes::is_alive(pid) && !mountpoint.exists()
}

#[test]
fn a_mount_in_the_background_is_found_and_ended() {
    let mounted = hello("well").mount();
    assert_eq!(std::fs::read_to_string(mounted.join("hello.txt")).unwrap(), "hello\n");
    assert_eq!(mounted.log(), "hello_mount: serving\n");
    let entry = mounted.mount_entry().unwrap();
    assert_eq!((entry.fs_type.as_str(), entry.source.as_str()), ("fuse", "hello"));
    assert!(entry.options.starts_with("ro"), "{entry:?}");
    let (pid, mountpoint) = (mounted.pid(), mounted.path().to_owned());
    assert!(processes::is_alive(pid));
    assert!(mounted.resident_bytes() > 0 && mounted.peak_resident_bytes() > 0);
    mounted.unmount();
    assert!(is_clean(&mountpoint, pid));
}

#[test]
fn a_mount_in_the_foreground_ends_with_its_mount() {
    let mut mounted = hello("well").mount_foreground();
    assert_eq!(std::fs::read_dir(mounted.path()).unwrap().count(), 1);
    assert_eq!(mounted.stderr(), "");
    let pid = mounted.pid();
    run(std::process::Command::new("fusermount3").arg("-u").arg(mounted.path()), Duration::from_secs(20))
        .expect_success("fusermount3 (apt-get install fuse3)");
    assert_eq!(mounted.wait_ended(Duration::from_secs(20)).unwrap().code, 0);
    assert!(!processes::is_alive(pid) && mounted.mount_entry().is_none());
}

#[test]
fn everything_is_cleaned_up_while_a_test_panics() {
    let mut seen = None;
    let said = said_by_panic(|| {
        let mounted = hello("well").mount();
        seen = Some((mounted.path().to_owned(), mounted.pid()));
        panic!("the test's own words");
    });
    assert_eq!(said, "the test's own words");
    let (mountpoint, pid) = seen.unwrap();
    assert!(is_clean(&mountpoint, pid));
}

#[test]
fn a_busy_mount_is_detached() {
    let (mountpoint, pid);
    {
        let mounted = hello("well").mount();
        (mountpoint, pid) = (mounted.path().to_owned(), mounted.pid());
        let mut file = File::open(mounted.join("hello.txt")).unwrap();
        let detached = said_by_panic(|| mounted.unmount());
        assert!(detached.contains("still there and were killed"), "an open file keeps the process: {detached}");
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap_err();
    }
    assert!(is_clean(&mountpoint, pid));
}

#[test]
fn a_process_that_stays_is_killed_and_told_of() {
    let mounted = hello("stay").mount();
    let (mountpoint, pid) = (mounted.path().to_owned(), mounted.pid());
    let said = said_by_panic(|| drop(mounted));
    assert!(said.contains(&format!("the processes [{pid}] were still there and were killed")), "{said}");
    assert!(is_clean(&mountpoint, pid));
}

#[test]
fn a_killed_process_leaves_a_dead_mount_which_is_removed() {
    let mut mounted = hello("well").mount();
    let (mountpoint, pid) = (mounted.path().to_owned(), mounted.pid());
    mounted.kill();
    assert_eq!((processes::is_alive(pid), mounted.mount_entry().is_some()), (false, true));
    let dead = std::fs::read_dir(&mountpoint).unwrap_err();
    assert_eq!(dead.kind(), std::io::ErrorKind::NotConnected);
    drop(mounted);
    assert!(is_clean(&mountpoint, pid));
}

#[test]
fn a_signal_reaches_the_process() {
    let mut mounted = hello("well").mount_foreground();
    mounted.signal(Signal::TERM);
    assert_eq!(mounted.wait_ended(Duration::from_secs(20)).unwrap().code, 128 + 15);
}

#[test]
fn failures_tell_what_the_command_said() {
    let refused = hello("refuse").output();
    assert_eq!((refused.code, refused.stderr.as_str()), (1, "hello_mount: refuse: refused\n"));
    let said = said_by_panic(|| drop(hello("refuse").mount()));
    assert!(said.contains("exit code 1") && said.contains("refuse: refused"), "{said}");
    let said = said_by_panic(|| drop(hello("refuse").mount_foreground()));
    assert!(said.contains("exit code 1") && said.contains("refuse: refused"), "{said}");
    let said = said_by_panic(|| drop(hello("lie").mount()));
    assert!(said.contains("returned without a mount"), "{said}");
    let said = said_by_panic(|| drop(hello("hang").limit(Duration::from_millis(200)).mount()));
    assert!(said.contains("did not return within 200ms"), "{said}");
    let said = said_by_panic(|| drop(hello("hang").limit(Duration::from_millis(200)).mount_foreground()));
    assert!(said.contains("no mount within 200ms"), "{said}");
}

#[test]
fn output_cleans_up_what_was_mounted_and_leaves_the_mounts_of_others() {
    let home = Home::new();
    let mountpoint = home.new_mountpoint();
    assert_eq!(hello("well").home(&home).mountpoint(&mountpoint).output().code, 0);
    assert_eq!(mounts_at(&mountpoint), []);
    let other = hello("well").home(&home).mountpoint(&mountpoint).mount();
    let pid = other.pid();
    assert_eq!(hello("refuse").home(&home).mountpoint(&mountpoint).output().code, 1);
    assert!(other.mount_entry().is_some() && other.pid() == pid);
    assert_eq!(std::fs::read_to_string(other.join("hello.txt")).unwrap(), "hello\n");
    other.unmount();
    assert!(mountpoint.exists());
}

#[test]
fn the_environment_is_the_homes_own() {
    let mounted = hello("well").env("EXTRA", "1").mount();
    let environ = std::fs::read(format!("/proc/{}/environ", mounted.pid())).unwrap();
    let items = environ.split(|&byte| byte == 0).filter(|item| !item.is_empty());
    let mut names: Vec<&str> =
        items.map(|item| std::str::from_utf8(item).unwrap().split('=').next().unwrap()).collect();
    names.retain(|name| *name != "LLVM_PROFILE_FILE");
    names.sort();
    let known = [
        "EXTRA",
        "HOME",
        "LANG",
        "PATH",
        "RUST_BACKTRACE",
        "TEST_RUN_ID",
        "TMPDIR",
        "XDG_CACHE_HOME",
        "XDG_RUNTIME_DIR",
    ];
    assert_eq!(names, known);
}

#[test]
fn an_ordinary_user_mounts() {
    let user = User::nobody();
    let mounted = hello("well").as_user(&user).mount();
    let mut cat = user.command("cat");
    cat.arg(mounted.join("hello.txt")).current_dir("/");
    assert_eq!(run(&mut cat, Duration::from_secs(20)).expect_success("cat").text(), "hello\n");
    let entry = mounted.mount_entry().unwrap();
    assert!(entry.super_options.contains("user_id="), "{entry:?}");
    if eo_mount_testing::as_user::is_root() {
        assert!(entry.super_options.contains(&format!("user_id={}", user.uid)), "{entry:?}");
    }
    let (mountpoint, pid) = (mounted.path().to_owned(), mounted.pid());
    mounted.unmount();
    assert!(is_clean(&mountpoint, pid));
}

#[test]
fn many_mounts_at_once() {
    let all: Vec<Mounted> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| hello("well").mount())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut pids: Vec<u32> = all.iter().map(Mounted::pid).collect();
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), 8);
    drop(all);
    assert!(wait_until(Duration::from_secs(5), || pids.iter().all(|&pid| !processes::is_alive(pid))));
}
