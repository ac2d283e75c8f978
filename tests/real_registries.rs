//! Registries as they are, filled by the clients that people use: every byte of a mount is compared.

use std::fs;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::files::pread;
use eo_mount_testing::fixtures::{Sample, noise};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{
    Artifact, Certificates, EoMount, Extracted, Guard, Mounted, Nginx, Program, RealRegistry, TokenServer, run, tools,
};
use tempfile::TempDir;

const NAME: &str = "pastis-2433:sample";

fn eo_mount(reference: &str) -> EoMount {
    EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), reference)
}

/// The dataset as its publisher has it.
struct Dataset {
    files: TempDir,
    sample: Sample,
}

impl Dataset {
    fn new() -> Self {
        let files = tempfile::tempdir().expect("a temporary directory");
        let sample = Sample::files_in(files.path());
        Self { files, sample }
    }

    #[track_caller]
    fn pushed_to(registry: &RealRegistry) -> Self {
        let dataset = Self::new();
        let arguments = dataset.sample.push_arguments("");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        registry.push_with_oras(dataset.files.path(), NAME, &arguments);
        dataset
    }

    #[track_caller]
    fn assert_read_whole(&self, mounted: Mounted) {
        let mut ls = Command::new("ls");
        ls.arg("-lR").arg(mounted.path());
        let listed = run(&mut ls, Duration::from_secs(60));
        assert!(listed.success(), "ls -lR: {}\nlog: {}", listed.stderr, mounted.log());
        for number in 0..3 {
            self.assert_patch(&mounted, number);
        }
        let config = fs::read(mounted.join("config.json")).unwrap();
        assert!(config == fs::read(self.files.path().join("config.json")).unwrap());
        mounted.unmount();
    }

    #[track_caller]
    fn assert_patch(&self, mounted: &Mounted, number: usize) {
        let (tar, name) = self.sample.patches().nth(number).expect("a patch");
        assert_eq!(Extracted::of(&tar).assert_shown_in(&mounted.join(name)), 15);
    }
}

#[track_caller]
fn filled_by_oras_and_skopeo_it_is_read_whole(program: Program) {
    let registry = RealRegistry::of(program).start();
    let dataset = Dataset::pushed_to(&registry);
    let layout = tools::project().join("sample");
    registry.push_with_skopeo(&layout, "oci:pastis:sample", "by-skopeo/pastis:sample");
    for name in [NAME, "by-skopeo/pastis:sample"] {
        dataset.assert_read_whole(eo_mount(&registry.reference(name)).mount());
    }
}

#[test]
fn what_oras_and_skopeo_push_to_docker_registry_is_read_whole() {
    filled_by_oras_and_skopeo_it_is_read_whole(Program::DockerRegistry);
}

#[test]
fn what_oras_and_skopeo_push_to_distribution_3_is_read_whole() {
    filled_by_oras_and_skopeo_it_is_read_whole(Program::Distribution3);
}

#[test]
fn what_oras_and_skopeo_push_to_a_registry_with_referrers_is_read_whole() {
    filled_by_oras_and_skopeo_it_is_read_whole(Program::Referrers);
}

#[test]
fn docker_registry_with_tls_and_a_login_is_read_whole() {
    let certificates = Certificates::new();
    let tls = Some(certificates.issue("registry", "IP:127.0.0.1,DNS:localhost", None));
    let registry = RealRegistry::guarded(&Guard { login: true, tls, clients_of: None });
    let dataset = Dataset::pushed_to(&registry);
    let layout = tools::project().join("sample");
    registry.push_with_skopeo(&layout, "oci:pastis:sample", "by-skopeo/pastis:sample");
    for name in [NAME, "by-skopeo/pastis:sample"] {
        let call = eo_mount(&registry.reference(name)).env("DOCKER_CONFIG", registry.docker_config());
        dataset.assert_read_whole(call.arg("--ca-file").arg(certificates.authority()).mount());
    }
}

#[test]
fn a_registry_that_speaks_http_2_alone_is_written_and_read_whole() {
    let certificates = Certificates::new();
    let tls = Some(certificates.issue("registry", "IP:127.0.0.1,DNS:localhost", None));
    let registry = RealRegistry::of(Program::Referrers).guard(&Guard { tls, ..Guard::default() }).start();
    let (dataset, authority) = (Dataset::new(), certificates.authority().display().to_string());
    let from = format!("oci:{}/sample/pastis:sample", tools::project().display());
    let to = registry.reference(NAME);
    // Two bodies over one connection wait for each other in this registry, which reads them under a lock.
    let copy = ["copy", &from, &to, "--ca-file", &authority, "--jobs", "1"];
    EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).args(copy).output().expect_success("copy");
    assert!(registry.log().contains("PUT /v2/pastis-2433/manifests/sample"), "{}", registry.log());
    for _ in 0..2 {
        dataset.assert_read_whole(eo_mount(&to).args(["--ca-file", &authority]).mount());
    }
}

#[test]
fn over_http_2_downloads_that_nobody_reads_do_not_hold_up_others() {
    let certificates = Certificates::new();
    let tls = Some(certificates.issue("registry", "IP:127.0.0.1,DNS:localhost", None));
    let registry = RealRegistry::of(Program::Referrers).guard(&Guard { tls, ..Guard::default() }).start();
    let (folder, authority) = (tempfile::tempdir().unwrap(), certificates.authority().display().to_string());
    let contents: Vec<_> = (0..8).map(|seed| noise(seed, 4 << 20)).collect();
    let mut artifact = Artifact::new();
    for (number, content) in contents.iter().enumerate() {
        artifact = artifact.layer(Some(&format!("{number}.bin")), "application/octet-stream", content.clone());
    }
    artifact.write_layout(folder.path(), "v1");
    let reference = registry.reference("whole:v1");
    let from = format!("oci:{}:v1", folder.path().display());
    let copy = ["copy", &from, &reference, "--ca-file", &authority, "--jobs", "1"];
    EoMount::bare(env!("CARGO_BIN_EXE_eo-mount")).args(copy).output().expect_success("copy");
    let call = eo_mount(&reference).args(["--ca-file", &authority, "--no-disk-cache", "--timeout", "10s"]);
    let mounted = call.mount();
    for at in [1, 1 << 20] {
        for (number, content) in contents.iter().enumerate() {
            let read = pread(mounted.join(format!("{number}.bin")), at..at + 4096);
            let read = read.unwrap_or_else(|error| panic!("{number} at {at}: {error}\n{}", mounted.log()));
            assert!(read == content[at as usize..][..4096]);
        }
    }
    assert!(mounted.log().contains("does not support range requests"), "{}", mounted.log());
}

#[test]
fn nginx_as_the_end_of_tls_is_read_whole() {
    let (registry, certificates) = (RealRegistry::start(), Certificates::new());
    let dataset = Dataset::pushed_to(&registry);
    let nginx = Nginx::tls(&registry, &certificates);
    let call = eo_mount(&nginx.reference(NAME)).arg("--ca-file").arg(certificates.authority());
    dataset.assert_read_whole(call.mount());
}

#[track_caller]
fn through_a_token_server_it_is_read_whole(program: Program) {
    let tokens = TokenServer::start();
    let registry = RealRegistry::of(program).token(&tokens).start();
    let dataset = Dataset::pushed_to(&registry);
    let before = tokens.asked().len();
    dataset.assert_read_whole(eo_mount(&registry.reference(NAME)).mount());
    let asked = tokens.asked().split_off(before);
    assert!(!asked.is_empty() && asked.iter().all(|asked| asked.user.is_none() && asked.status == 200), "{asked:?}");
}

#[test]
fn docker_registry_behind_a_token_server_is_read_by_anybody() {
    through_a_token_server_it_is_read_whole(Program::DockerRegistry);
}

#[test]
fn distribution_3_behind_a_token_server_is_read_by_anybody() {
    through_a_token_server_it_is_read_whole(Program::Distribution3);
}

#[test]
fn reads_go_on_after_a_token_expired_that_did_not_say_when() {
    let tokens = TokenServer::start();
    let registry = RealRegistry::of(Program::DockerRegistry).token(&tokens).start();
    let dataset = Dataset::pushed_to(&registry);
    tokens.set_lifetime(Duration::from_secs(2), false);
    let mounted = eo_mount(&registry.reference(NAME)).arg("--no-disk-cache").mount();
    dataset.assert_patch(&mounted, 0);
    let before = tokens.asked().len();
    std::thread::sleep(Duration::from_secs(3));
    dataset.assert_patch(&mounted, 1);
    assert!(tokens.asked().len() > before);
    mounted.unmount();
}

#[test]
fn a_redirecting_registry_is_read_whole_and_its_token_stays_at_home() {
    let tokens = TokenServer::start();
    let registry = RealRegistry::of(Program::DockerRegistry).token(&tokens).start();
    let dataset = Dataset::pushed_to(&registry);
    let nginx = Nginx::redirecting(&registry, Duration::from_secs(600));
    dataset.assert_read_whole(eo_mount(&nginx.reference(NAME)).mount());
    let (of_blobs, of_registry): (Vec<_>, Vec<_>) = nginx.asked().into_iter().partition(|asked| asked.of_blob_host);
    assert!(of_registry.iter().any(|asked| asked.authorization && asked.status == 307));
    assert!(!of_blobs.is_empty() && of_blobs.iter().all(|asked| !asked.authorization && asked.status < 300));
}

#[test]
fn reads_go_on_after_a_redirected_url_expired() {
    let registry = RealRegistry::start();
    let dataset = Dataset::pushed_to(&registry);
    let nginx = Nginx::redirecting(&registry, Duration::from_secs(1));
    let mounted = eo_mount(&nginx.reference(NAME)).arg("--no-disk-cache").mount();
    dataset.assert_patch(&mounted, 0);
    std::thread::sleep(Duration::from_millis(2500));
    for number in 0..3 {
        dataset.assert_patch(&mounted, number);
    }
    mounted.unmount();
}

#[test]
fn a_registry_that_limits_requests_is_read_all_the_same() {
    let registry = RealRegistry::start();
    let dataset = Dataset::pushed_to(&registry);
    let nginx = Nginx::limiting(&registry);
    let mounted = eo_mount(&nginx.reference(NAME)).mount();
    for number in 0..2 {
        dataset.assert_patch(&mounted, number);
    }
    assert!(nginx.asked().iter().any(|asked| asked.status == 429));
    mounted.unmount();
}

#[test]
fn reads_outlast_a_restart_of_docker_registry() {
    let mut registry = RealRegistry::start();
    let dataset = Dataset::pushed_to(&registry);
    let mounted = eo_mount(&registry.reference(NAME)).arg("--no-disk-cache").mount();
    dataset.assert_patch(&mounted, 0);
    registry.stop();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| dataset.assert_patch(&mounted, 1));
        std::thread::sleep(Duration::from_secs(1));
        registry.start_again();
        assert!(wait_until(Duration::from_secs(60), || reader.is_finished()));
    });
    mounted.unmount();
}

#[track_caller]
fn a_pull_through_cache_is_read_whole(program: Program) {
    let origin = RealRegistry::start();
    let dataset = Dataset::pushed_to(&origin);
    let registry = RealRegistry::of(program).proxy_of(&format!("http://{}", origin.address())).start();
    dataset.assert_read_whole(eo_mount(&registry.reference(NAME)).mount());
}

#[test]
fn a_pull_through_cache_of_docker_registry_is_read_whole() {
    a_pull_through_cache_is_read_whole(Program::DockerRegistry);
}

#[test]
fn a_pull_through_cache_of_distribution_3_is_read_whole() {
    a_pull_through_cache_is_read_whole(Program::Distribution3);
}

#[test]
fn a_proxy_that_drops_ranges_of_what_it_has_not_yet_is_read_whole() {
    let registry = RealRegistry::start();
    let dataset = Dataset::pushed_to(&registry);
    let nginx = Nginx::caching(&registry);
    dataset.assert_read_whole(eo_mount(&nginx.reference(NAME)).mount());
    assert!(nginx.asked().iter().any(|asked| asked.path.contains("/blobs/") && asked.range && asked.status == 200));
}

#[test]
fn a_redirected_url_is_used_as_long_as_it_is_good() {
    let registry = RealRegistry::start();
    let dataset = Dataset::pushed_to(&registry);
    let nginx = Nginx::redirecting(&registry, Duration::from_secs(600));
    let mounted = eo_mount(&nginx.reference(NAME)).arg("--no-disk-cache").mount();
    dataset.assert_patch(&mounted, 0);
    mounted.unmount();
    let (of_blobs, redirects): (Vec<_>, Vec<_>) = nginx.asked().into_iter().partition(|asked| asked.of_blob_host);
    let redirects = redirects.iter().filter(|asked| asked.status == 307).count();
    // The config, the layer, and readers that came before it was known that this registry redirects.
    assert!(redirects <= 4 && of_blobs.len() > redirects, "{redirects} redirects for {} requests", of_blobs.len());
}
