//! Logins as docker, podman and oras keep them: found, sent where they belong, renewed, and never shown.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::fixtures::RawTar;
use eo_mount_testing::real_registry::{PASSWORD, USERNAME};
use eo_mount_testing::{Certificates, EoMount, Guard, Home, Mounted, RealRegistry, run, tools};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

fn eo_mount(reference: impl Into<String>, home: &Home) -> EoMount {
    EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference).home(home)
}

fn verb(home: &Home, arguments: &[&str]) -> EoMount {
    EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).home(home).args(arguments)
}

/// docker-registry behind TLS and a login, with an artifact of one layer of one file.
struct Guarded {
    certificates: Certificates,
    registry: RealRegistry,
}

impl Guarded {
    fn start() -> Self {
        let certificates = Certificates::new();
        let tls = Some(certificates.issue("server", "IP:127.0.0.1,DNS:localhost", None));
        let registry = RealRegistry::guarded(&Guard { login: true, tls, clients_of: None });
        let guarded = Self { certificates, registry };
        let home = Home::new();
        guarded.oras_login(&home);
        let archive = RawTar::new().file("file", b"good").finish();
        fs::write(home.path().join("good.tar"), archive).expect("written");
        let reference = guarded.reference();
        guarded.oras(&home, &["push", &reference, "good.tar:application/vnd.oci.image.layer.v1.tar"]);
        guarded
    }

    fn reference(&self) -> String {
        self.registry.reference("data:v1")
    }

    fn ca(&self) -> String {
        self.certificates.authority().display().to_string()
    }

    /// The real program, with the logins of this home.
    #[track_caller]
    fn oras(&self, home: &Home, arguments: &[&str]) -> String {
        let (verb, rest) = arguments.split_first().expect("a verb");
        let mut command = Command::new(tools::oras());
        command.arg(verb).args(["--ca-file", &self.ca()]).args(rest).current_dir(home.path());
        command.env_clear().env("HOME", home.path()).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        run(&mut command, LONG).expect_success("oras").text()
    }

    fn oras_login(&self, home: &Home) {
        self.oras(home, &["login", self.registry.address(), "-u", USERNAME, "-p", PASSWORD]);
    }

    fn mount(&self, home: &Home) -> EoMount {
        eo_mount(self.reference(), home).args(["--ca-file", &self.ca()])
    }
}

#[track_caller]
fn reads_good(mounted: &Mounted) {
    assert_eq!(fs::read(mounted.join("good/file")).expect("read"), b"good");
}

fn config(home: &Home, folder: &str, file: &str, content: &Value) {
    let folder = home.path().join(folder);
    fs::create_dir_all(&folder).expect("made");
    fs::write(folder.join(file), content.to_string()).expect("written");
}

#[test]
fn what_oras_logged_in_to_is_mounted() {
    let guarded = Guarded::start();
    let home = Home::new();
    guarded.oras_login(&home);
    reads_good(&guarded.mount(&home).mount());
}

#[test]
fn what_we_logged_in_to_oras_and_skopeo_read_and_logout_ends_it() {
    let guarded = Guarded::start();
    let home = Home::new();
    let address = guarded.registry.address().to_owned();
    config(
        &home,
        ".docker",
        "config.json",
        &json!({"psFormat": "x", "big": 12345678901234567890u64, "auths": {"other": {"auth": "YTpi", "x": 1}}}),
    );
    let login = verb(&home, &["login", &address, "--ca-file", &guarded.ca(), "--username", USERNAME]);
    let said = login.env("EO_MOUNT_PASSWORD", PASSWORD).output().expect_success("login");
    assert!(said.text().contains("Login Succeeded"), "{}", said.text());
    let file = home.path().join(".docker/config.json");
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let kept: Value = serde_json::from_str(&fs::read_to_string(&file).expect("read")).expect("JSON");
    assert_eq!((&kept["psFormat"], &kept["auths"]["other"]), (&json!("x"), &json!({"auth": "YTpi", "x": 1})));
    assert_eq!(kept["big"], json!(12345678901234567890u64));

    reads_good(&guarded.mount(&home).mount());
    assert!(guarded.oras(&home, &["repo", "ls", &address]).contains("data"));
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--raw", "--authfile"]).arg(&file).args(["--cert-dir"]);
    let certs = home.path().join("certs");
    fs::create_dir(&certs).expect("made");
    fs::copy(guarded.certificates.authority(), certs.join("ca.crt")).expect("copied");
    skopeo.arg(&certs).arg(format!("docker://{}", guarded.reference()));
    run(&mut skopeo, LONG).expect_success("skopeo");

    verb(&home, &["logout", &address]).output().expect_success("logout");
    let kept = fs::read_to_string(&file).expect("read");
    assert!(!kept.contains(&address) && kept.contains("other"), "{kept}");
    let said = guarded.mount(&Home::new()).without_log().output();
    let hint = format!("eo-mount: {address}: the registry asks for a login (log in: eo-mount login {address})\n");
    assert_eq!((said.code, said.stderr), (1, hint));
}

#[test]
fn a_wrong_password_is_named_and_kept_nowhere() {
    let guarded = Guarded::start();
    let home = Home::new();
    let address = guarded.registry.address();
    let login = verb(&home, &["login", address, "--ca-file", &guarded.ca(), "-u", USERNAME]);
    let said = login.env("EO_MOUNT_PASSWORD", "geheim1").output();
    assert_eq!((said.code, said.text().as_str()), (1, ""));
    assert!(said.stderr.contains(&format!("the registry refuses the login of {USERNAME}")), "{}", said.stderr);
    assert!(!said.stderr.contains("geheim1") && said.stderr.lines().count() == 1, "{}", said.stderr);
    assert!(!home.path().join(".docker").exists());
}

#[test]
fn a_password_from_standard_input_or_the_environment_is_shown_nowhere() {
    let guarded = Guarded::start();
    let home = Home::new();
    let call = guarded.mount(&home).args(["-vvv", "--username", USERNAME]);
    let by_input = call.clone().arg("--password-stdin").input(format!("{PASSWORD}\n"));
    for mounted in [by_input.mount(), call.env("EO_MOUNT_PASSWORD", PASSWORD).mount()] {
        shown_nowhere(&mounted);
    }
}

/// The password is in no argument, variable, log or file of this mount.
#[track_caller]
fn shown_nowhere(mounted: &Mounted) {
    let encoded = "cm9ib3QkZW86";
    reads_good(mounted);
    for pid in mounted.processes() {
        for file in ["cmdline", "environ"] {
            let text = fs::read(Path::new("/proc").join(pid.to_string()).join(file)).expect("readable");
            assert!(!String::from_utf8_lossy(&text).contains(PASSWORD), "{file} of {pid}");
        }
    }
    let log = mounted.log();
    assert!(!log.is_empty() && !log.contains(PASSWORD) && !log.contains(encoded), "{log}");
    // The log and the cache folder are there.
    assert_found_nowhere(&mounted.home().cache(), &[PASSWORD, encoded]);
}

/// None of these texts is in a file below the folder.
fn assert_found_nowhere(folder: &Path, texts: &[&str]) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                let text = String::from_utf8_lossy(&bytes);
                assert!(!texts.iter().any(|secret| text.contains(secret)), "in {}", path.display());
            }
        }
    }
}
