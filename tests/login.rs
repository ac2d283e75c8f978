//! Logins as docker, podman and oras keep them: found, sent where they belong, renewed, and never shown.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::files::pread;
use eo_mount_testing::fixtures::{RawTar, noise};
use eo_mount_testing::real_registry::{PASSWORD, USERNAME};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    ALWAYS, Artifact, Certificates, CredentialHelper, EoMount, Fault, Finished, Gate, Guard, Home, Kind, Matcher,
    Mounted, Program, RealRegistry, ScriptedRegistry, TokenServer, processes, run, tools,
};
use rustix::process::{Resource, Rlimit};
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
fn a_login_is_checked_and_kept_where_registries_conf_sends_mounts() {
    let registry = basic();
    let home = Home::new();
    let conf = home.path().join("registries.conf");
    let elsewhere = registry.address().replace("127.0.0.1", "0.0.0.0");
    let table = format!(
        "[[registry]]\nprefix = \"data.example\"\nlocation = \"{elsewhere}\"\ninsecure = true\n\
         [[registry]]\nprefix = \"evil.example\"\nblocked = true\n"
    );
    fs::write(&conf, table).unwrap();
    let call = |arguments: &[&str]| verb(&home, arguments).env("CONTAINERS_REGISTRIES_CONF", &conf);
    let list = || call(&["ls", "data.example/org/data:v1", "good"]);
    let login = |registry: &str| call(&["login", registry, "-u", USERNAME, "--password-stdin"]).input(PASSWORD);
    let refused = |call: EoMount, cause: &str| {
        let said = call.output();
        assert!(said.code == 1 && said.stderr.contains(cause), "{}", said.stderr);
    };
    refused(list(), "asks for a login");
    let said = login("data.example").output().expect_success("login");
    assert!(said.text().contains(&format!("for {elsewhere}, as registries.conf says")), "{}", said.text());
    assert!(said.stderr.contains("spoken to without TLS"), "{}", said.stderr);
    lists(list());
    call(&["logout", "data.example"]).output().expect_success("logout");
    refused(list(), "asks for a login");
    refused(login("evil.example"), "registries.conf blocks evil.example");
    refused(call(&["logout", "evil.example"]), "there is no login for it");
}

#[test]
fn a_registry_that_asks_for_another_kind_of_login_is_quoted() {
    let registry = basic();
    for said in ["Digest realm=\"x\", nonce=\"y\"", "Bearer realm=\"http://127.0.0.1/token", "Negotiate"] {
        registry.clear_faults();
        let challenge = vec![("WWW-Authenticate".to_owned(), said.to_owned())];
        registry.fault(Matcher::any(), Fault::Status(401, challenge, String::new()), ALWAYS);
        refused(ls(&registry, &Home::new()), &format!("another way than Basic and Bearer: `{said}`"), "operator");
    }
    registry.clear_faults();
    let challenge = vec![("WWW-Authenticate".to_owned(), format!("Odd\t\u{202e}{}", "x".repeat(5000)))];
    registry.fault(Matcher::any(), Fault::Status(401, challenge, String::new()), ALWAYS);
    let said = format!("Bearer: `Odd????{}…`", "x".repeat(193));
    refused(ls(&registry, &Home::new()), &said, "operator");
}

#[test]
fn a_process_that_holds_a_login_leaves_no_core_dump() {
    // As where a developer has them on: what is started here gets the limits of this process.
    let limit = rustix::process::getrlimit(Resource::Core);
    rustix::process::setrlimit(Resource::Core, Rlimit { current: limit.maximum, ..limit })
        .expect("up to the hard limit");
    let (registry, home) = (basic(), Home::new());
    config(&home, ".docker", "config.json", &json!({"auths": {registry.address(): entry()}}));
    let mounted = eo_mount(registry.reference("org/data:v1"), &home).mount();
    let limits = fs::read_to_string(format!("/proc/{}/limits", mounted.pid())).expect("Linux");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
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

#[test]
fn a_token_server_beside_a_real_registry_is_asked_with_the_login_and_for_what_is_read_only() {
    let server = TokenServer::start();
    let registry = RealRegistry::of(Program::DockerRegistry).token(&server).start();
    let home = Home::new();
    fs::write(home.path().join("good.tar"), RawTar::new().file("file", b"good").finish()).expect("written");
    registry.push_with_oras(home.path(), "data:v1", &["good.tar:application/vnd.oci.image.layer.v1.tar"]);
    let before = server.asked().len();
    config(&home, ".docker", "config.json", &json!({"auths": {registry.address(): entry()}}));
    reads_good(&eo_mount(registry.reference("data:v1"), &home).mount());
    let asked = server.asked().split_off(before);
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        (asked[0].user.as_deref(), asked[0].scopes.as_slice()),
        (Some(USERNAME), &["repository:data:pull".to_owned()][..])
    );
}

/// One that wants these passwords or tokens, with an artifact of one layer of one file.
fn scripted(gate: Gate) -> ScriptedRegistry {
    let registry = ScriptedRegistry::start();
    Artifact::new().tar("good.tar", RawTar::new().file("file", b"good").finish()).push(&registry, "org/data", "v1");
    registry.guard(gate);
    registry
}

fn users(password: &str) -> Vec<(String, String)> {
    vec![(USERNAME.to_owned(), password.to_owned())]
}

fn basic() -> ScriptedRegistry {
    scripted(Gate { basic: true, users: users(PASSWORD), ..Gate::default() })
}

/// `eo-mount ls`: asks for what a mount asks for.
fn ls(registry: &ScriptedRegistry, home: &Home) -> EoMount {
    verb(home, &["ls", &registry.reference("org/data:v1"), "good"])
}

#[track_caller]
fn lists(call: EoMount) {
    assert_eq!(call.output().expect_success("ls").text(), "file\n");
}

/// One plain line with cause and way out, exit code 1, and no password.
#[track_caller]
fn refused(call: EoMount, cause: &str, hint: &str) -> Finished {
    let said = call.output();
    assert_eq!((said.code, said.text().as_str()), (1, ""), "{}", said.stderr);
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    let (before, after) = said.stderr.rsplit_once(" (").unwrap_or_else(|| panic!("no hint: {}", said.stderr));
    assert!(before.contains(cause), "not the cause ({cause}): {}", said.stderr);
    assert!(after.contains(hint), "not the hint ({hint}): {}", said.stderr);
    assert!(!said.stderr.contains(PASSWORD), "{}", said.stderr);
    said
}

fn entry() -> Value {
    // robot$eo:pä:ss$wörd
    json!({"auth": "cm9ib3QkZW86cMOkOnNzJHfDtnJk"})
}

#[test]
fn logins_are_found_where_docker_and_podman_keep_them() {
    let registry = basic();
    let address = registry.address();
    let auths = |key: &str, entry: Value| json!({"auths": {key: entry}});
    for (folder, file, content) in [
        (".docker", "config.json", auths(&address, entry())),
        ("run/containers", "auth.json", auths(&address, entry())),
        (".config/containers", "auth.json", auths(&address, entry())),
        (".docker", "config.json", auths(&format!("https://{address}/v2/"), entry())),
        (".docker", "config.json", auths(&address, json!({"username": USERNAME, "password": PASSWORD}))),
    ] {
        let home = Home::new();
        config(&home, folder, file, &content);
        lists(ls(&registry, &home));
    }
    let home = Home::new();
    config(&home, "elsewhere", "config.json", &auths(&address, entry()));
    refused(ls(&registry, &home), "asks for a login", &format!("eo-mount login {address}"));
    let elsewhere = home.path().join("elsewhere");
    lists(ls(&registry, &home).env("DOCKER_CONFIG", &elsewhere));
    lists(ls(&registry, &home).env("REGISTRY_AUTH_FILE", elsewhere.join("config.json")));
}

#[test]
fn the_login_for_the_repository_goes_before_that_for_the_registry() {
    let registry = basic();
    let address = registry.address();
    let wrong = json!({"username": "me", "password": "no"});
    let home = Home::new();
    let auths = json!({"auths": {
        &address: wrong, format!("{address}/org"): entry(), format!("{address}/org/data2"): wrong,
    }});
    config(&home, "run/containers", "auth.json", &auths);
    lists(ls(&registry, &home));
}

#[test]
fn a_file_of_logins_that_is_none_is_named_and_not_shown_or_overwritten() {
    let registry = basic();
    let home = Home::new();
    config(&home, ".docker", "config.json", &json!(["geheim"]));
    let said = refused(ls(&registry, &home), ".docker/config.json: the file of logins is not", "correct it");
    assert!(!said.stderr.contains("geheim"));
    let login = verb(&home, &["login", &registry.address(), "-u", USERNAME, "--password-stdin"]).input(PASSWORD);
    refused(login, "the file of logins is not", "correct it");
    assert!(fs::read_to_string(home.path().join(".docker/config.json")).expect("there").contains("geheim"));
    config(&home, ".docker", "config.json", &json!({"auths": {registry.address(): {"auth": "geheim!"}}}));
    refused(ls(&registry, &home), "is no base64", "eo-mount login");
}

#[test]
fn credential_helpers_are_asked_and_told() {
    let registry = basic();
    let address = registry.address();
    for content in [json!({"credHelpers": {&address: "test"}}), json!({"credsStore": "test", "auths": {&address: {}}})]
    {
        let home = Home::new();
        let helper = CredentialHelper::new(&home, "test");
        config(&home, ".docker", "config.json", &content);
        refused(ls(&registry, &home).env("PATH", helper.path()), "asks for a login", "eo-mount login");
        let login = verb(&home, &["login", &address, "-u", USERNAME, "--password-stdin"]).input(PASSWORD);
        let said = login.env("PATH", helper.path()).output().expect_success("login");
        assert!(said.text().contains("docker-credential-test"), "{}", said.text());
        assert!(!fs::read_to_string(home.path().join(".docker/config.json")).expect("there").contains("cm9ib3"));
        lists(ls(&registry, &home).env("PATH", helper.path()));
        assert!(helper.calls().contains(&format!("get {address}")), "{:?}", helper.calls());
        verb(&home, &["logout", &address]).env("PATH", helper.path()).output().expect_success("logout");
        assert!(helper.calls().contains(&format!("erase {address}")), "{:?}", helper.calls());
        refused(ls(&registry, &home).env("PATH", helper.path()), "asks for a login", "eo-mount login");
    }
}

#[test]
fn a_credential_helper_that_is_missing_talks_nonsense_or_too_much_is_named() {
    let registry = basic();
    let home = Home::new();
    config(&home, ".docker", "config.json", &json!({"credsStore": "test"}));
    let named = "docker-credential-test: ";
    refused(ls(&registry, &home), &format!("{named}the credential helper program is not installed"), "install it");
    let helper = CredentialHelper::new(&home, "test");
    for (script, cause) in [
        ("echo geheim", "is no login"),
        ("head -c 3000000 /dev/zero", "more than 1048576 bytes"),
        ("echo 'the keychain is locked'; exit 3", "the keychain is locked"),
    ] {
        helper.script(script);
        let said = refused(ls(&registry, &home).env("PATH", helper.path()), named, "");
        assert!(said.stderr.contains(cause) && !said.stderr.contains("geheim"), "{}", said.stderr);
    }
}

#[test]
fn a_credential_helper_that_hangs_is_ended_after_ten_seconds() {
    let registry = basic();
    let home = Home::new();
    config(&home, ".docker", "config.json", &json!({"credsStore": "test"}));
    let helper = CredentialHelper::new(&home, "test");
    let pid = home.path().join("pid");
    helper.script(&format!("sleep 600 & echo $! > '{}'; wait", pid.display()));
    refused(ls(&registry, &home).env("PATH", helper.path()), "no answer within 10s", "call it by hand");
    let pid = fs::read_to_string(pid).expect("it was started").trim().parse().expect("a pid");
    assert!(wait_until(LONG, || !processes::is_alive(pid)), "what it started is left");
}

#[test]
fn an_identity_token_is_exchanged_for_tokens() {
    let gate = Gate { identity_tokens: vec!["identity-1".to_owned()], oauth: true, ..Gate::default() };
    let registry = scripted(Gate { users: users(PASSWORD), ..gate });
    let home = Home::new();
    let helper = CredentialHelper::new(&home, "test");
    config(&home, ".docker", "config.json", &json!({"credsStore": "test"}));
    helper.holds("<token>", "identity-1");
    lists(ls(&registry, &home).env("PATH", helper.path()));
    let asked = &registry.requests_of(Kind::Token)[0];
    assert_eq!(asked.method, "POST");
    for part in ["grant_type=refresh_token", "service=scripted-registry", "scope=repository%3Aorg%2Fdata%3Apull"] {
        assert!(asked.body.contains(part), "{part}: {}", asked.body);
    }
    config(&home, ".docker", "config.json", &json!({"auths": {registry.address(): {"identitytoken": "identity-1"}}}));
    lists(ls(&registry, &home));
    config(
        &home,
        ".docker",
        "config.json",
        &json!({"auths": {registry.address(): {"registrytoken": "scripted-token-2"}}}),
    );
    registry.reset();
    lists(ls(&registry, &home).arg("--no-disk-cache"));
    assert_eq!(registry.requests_of(Kind::Token).len(), 0);
}

#[test]
fn passwords_go_to_the_token_service_and_tokens_to_the_registry() {
    let registry = scripted(Gate { users: users(PASSWORD), untold: true, ..Gate::default() });
    let home = Home::new();
    config(&home, ".docker", "config.json", &json!({"auths": {registry.address(): entry()}}));
    lists(ls(&registry, &home));
    let asked = &registry.requests_of(Kind::Token)[0];
    assert!(asked.header("authorization").is_some_and(|value| value.starts_with("Basic ")));
    for request in registry.requests() {
        assert_eq!(request.header("referer"), None);
        let authorization = request.header("authorization").unwrap_or("");
        assert_eq!(authorization.starts_with("Basic "), request.kind == Kind::Token, "{request:?}");
    }
}

#[test]
fn a_token_service_that_redirects_elsewhere_gets_nobody_a_login() {
    let registry = scripted(Gate { users: users(PASSWORD), ..Gate::default() });
    let other = scripted(Gate::default());
    registry.fault(Matcher::kind(Kind::Token), Fault::Redirect(format!("http://{}/token", other.address())), ALWAYS);
    let home = Home::new();
    config(&home, ".docker", "config.json", &json!({"auths": {registry.address(): entry()}}));
    refused(ls(&registry, &home), "307", "");
    assert_eq!(other.requests().len(), 0);
}

#[test]
fn tokens_are_renewed_before_they_expire_and_once_for_all_readers() {
    let registry = scripted(Gate { users: users(PASSWORD), expires_in: Some(2), ..Gate::default() });
    let megabytes = noise(7, 40 << 20);
    Artifact::new().tar("good.tar", RawTar::new().file("file", &megabytes).finish()).push(&registry, "org/data", "v2");
    let home = Home::new();
    config(&home, ".docker", "config.json", &json!({"auths": {registry.address(): entry()}}));
    let call = eo_mount(registry.reference("org/data:v2"), &home).arg("--no-disk-cache");
    let mounted = call.args(["--memory", "16MiB"]).mount();
    let file = mounted.join("good/file");
    let start = std::time::Instant::now();
    let mut round = 0;
    while start.elapsed() < Duration::from_secs(7) {
        // Another place each time: what was read is in memory.
        round += 1;
        std::thread::scope(|scope| {
            for reader in 0..16 {
                let (file, megabytes) = (&file, &megabytes);
                scope.spawn(move || {
                    let part = megabytes.len() / 16;
                    let at = reader * part + (round * (160 << 10)) % (part - 4096);
                    let range = at as u64..at as u64 + 4096;
                    assert_eq!(pread(file, range).expect("read"), megabytes[at..at + 4096]);
                });
            }
        });
        std::thread::sleep(Duration::from_millis(500));
    }
    let refused = registry.requests().iter().filter(|request| request.status == 401).count();
    assert!(refused <= 2, "{refused} requests were refused: tokens are renewed too late");
    let issued = registry.tokens_issued() as u64;
    assert!((3..=2 + start.elapsed().as_secs()).contains(&issued), "{issued} tokens in {:?}", start.elapsed());
}

#[test]
fn a_new_login_heals_a_running_mount_and_a_refused_one_is_not_sent_again_and_again() {
    let registry = basic();
    let home = Home::new();
    let login = |password: &str| {
        let auths = json!({"auths": {registry.address(): {"username": USERNAME, "password": password}}});
        config(&home, ".docker", "config.json", &auths);
    };
    let bytes = noise(3, 24 << 20);
    Artifact::new().tar("good.tar", RawTar::new().file("file", &bytes).finish()).push(&registry, "org/data", "v2");
    login(PASSWORD);
    let mounted = eo_mount(registry.reference("org/data:v2"), &home).arg("--no-disk-cache").mount();
    let file = mounted.join("good/file");
    let read = |at: usize| pread(&file, at as u64..at as u64 + 4096).is_ok_and(|read| read == bytes[at..at + 4096]);
    assert!(read(0));
    // As when a login runs out.
    registry.guard(Gate { basic: true, users: users("another"), ..Gate::default() });
    registry.reset();
    for place in 1..20 {
        assert!(!read(place << 20));
    }
    let requests = registry.requests().len();
    assert!((1..10).contains(&requests), "{requests} requests with a login that is refused");
    login("another");
    assert!(wait_until(LONG, || read(20 << 20)), "the new login is not used: {}", mounted.log());
    let hint = format!("the registry refuses the login of {USERNAME}");
    assert!(mounted.log().contains(&hint) && !mounted.log().contains(PASSWORD), "{}", mounted.log());
}

/// As ECR answers to a login that has run out.
#[test]
fn a_new_login_is_also_used_where_the_registry_says_forbidden() {
    let both = [users(PASSWORD), users("another")].concat();
    let registry = scripted(Gate { basic: true, users: both, ..Gate::default() });
    let home = Home::new();
    let auths = |entry: Value| config(&home, ".docker", "config.json", &json!({"auths": {registry.address(): entry}}));
    auths(entry());
    let mounted = eo_mount(registry.reference("org/data:v1"), &home).arg("--no-disk-cache").mount();
    let fault = registry.fault(Matcher::blobs(), Fault::status(403), ALWAYS);
    assert!(fs::read(mounted.join("good/file")).is_err());
    assert!((1..3).contains(&fault.met()), "{} requests were forbidden", fault.met());
    auths(json!({"username": USERNAME, "password": "another"}));
    let old = registry.requests().pop().expect("a request");
    let renewed = || {
        let _ = fs::read(mounted.join("good/file"));
        registry.requests().last().and_then(|request| request.header("authorization").map(str::to_owned))
            != old.header("authorization").map(str::to_owned)
    };
    assert!(wait_until(LONG, renewed));
    registry.clear_faults();
    reads_good(&mounted);
}

#[test]
fn tokens_are_in_no_log() {
    let registry = scripted(Gate { users: users(PASSWORD), ..Gate::default() });
    let home = Home::new();
    config(&home, ".docker", "config.json", &json!({"auths": {registry.address(): entry()}}));
    lists(ls(&registry, &home).args(["-vvv", "--log"]).arg(home.log_file()));
    let log = fs::read_to_string(home.log_file()).expect("a log");
    assert!(registry.tokens_issued() > 0 && !log.contains("scripted-token") && !log.contains("cm9ib3"), "{log}");
}

#[test]
fn a_password_among_the_arguments_is_refused_and_not_repeated() {
    for arguments in [&["login", "localhost:1", "--password", "geheim"][..], &["ls", "--password=geheim", "a/b"]] {
        let said = verb(&Home::new(), arguments).output();
        assert_eq!(said.code, 2);
        assert!(said.stderr.contains("--password-stdin") && !said.stderr.contains("geheim"), "{}", said.stderr);
    }
}

#[test]
fn name_and_password_belong_together() {
    let registry = basic();
    for (call, hint) in [
        (ls(&registry, &Home::new()).args(["--username", "me"]), "--password-stdin"),
        (ls(&registry, &Home::new()).env("EO_MOUNT_PASSWORD", PASSWORD), "--username"),
        (verb(&Home::new(), &["login", &registry.address()]), "--password-stdin"),
        (verb(&Home::new(), &["login", "org/data"]), "host"),
    ] {
        let said = call.output();
        assert_eq!(said.code, 2, "{}", said.stderr);
        assert!(said.stderr.contains(hint) && !said.stderr.contains(PASSWORD), "{}", said.stderr);
    }
}

#[test]
fn a_token_that_is_refused_for_one_repository_is_got_for_another() {
    let tokens = TokenServer::start();
    let registry = RealRegistry::of(Program::DockerRegistry).token(&tokens).start();
    let home = Home::new();
    fs::write(home.path().join("a.tar"), [7; 10 << 10]).unwrap();
    let push = |name: &str, more: &[&str]| {
        let call = verb(&home, &["push", &registry.reference(name), "a.tar", "--json", "--jobs", "1"]).args(more);
        call.current_dir(home.path()).env("DOCKER_CONFIG", registry.docker_config()).output().expect_success("push")
    };
    push("open:v1", &[]);
    tokens.refuse("secret");
    let pushed = push("own:v1", &["--mount-from", "secret", "--mount-from", "open"]).text();
    assert!(tokens.asked().iter().any(|asked| asked.status == 403), "{:?}", tokens.asked());
    assert!(pushed.contains("\"sent\":0"), "{pushed}");
}

/// Types name and password at a terminal of its own when it is asked, the password not before it is hidden. Arguments:
/// name, password, program and its arguments.
const TERMINAL: &str = r#"
import os, pty, sys, termios, time
answers = [(b"Username: ", sys.argv[1], True), (b"Password: ", sys.argv[2], False)]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[3], sys.argv[3:])
said, seen = b"", 0
while True:
    try:
        said += os.read(terminal, 1024)
    except OSError:
        break
    if answers and answers[0][0] in said[seen:]:
        _, answer, echo = answers.pop(0)
        while bool(termios.tcgetattr(terminal)[3] & termios.ECHO) != echo:
            time.sleep(0.01)
        seen = len(said)
        os.write(terminal, answer.encode() + b"\n")
sys.stdout.buffer.write(said)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

#[test]
fn a_terminal_is_asked_for_name_and_password_and_does_not_show_the_password() {
    let registry = basic();
    let home = Home::new();
    let login = |password: &str| {
        let mut command = Command::new(tools::python());
        command.args([
            "-c",
            TERMINAL,
            USERNAME,
            password,
            env!("CARGO_BIN_EXE_eo-mount"),
            "login",
            &registry.address(),
        ]);
        command.env_clear().env("HOME", home.path()).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        run(&mut command, LONG)
    };
    let empty = login("");
    assert!(empty.code == 2 && empty.text().contains("nothing was typed"), "{}", empty.text());
    let wrong = login("wrong");
    assert!(wrong.code == 1 && wrong.text().contains("refuses"), "{}", wrong.text());
    let said = login(PASSWORD).expect_success("login").text();
    assert!(said.contains("Login Succeeded") && !said.contains(PASSWORD), "{said}");
    lists(ls(&registry, &home));
}
