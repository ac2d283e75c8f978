//! The real registry and the real `oras`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::real_registry::USERNAME;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{Artifact, Nginx, Program, RealRegistry, TokenServer, plain_http, processes, sha256, tools};
use serde_json::Value;

fn manifest(registry: &RealRegistry, name: &str) -> Value {
    let path = format!("/v2/{name}/manifests/sample");
    let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
    let answer = plain_http::get(registry.address(), &path, &accept).unwrap();
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    serde_json::from_slice(&answer.body).unwrap()
}

#[test]
fn what_oras_pushed_is_served_and_is_what_artifact_makes() {
    let registry = RealRegistry::start();
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in [("config.json", "{\"a\":1}"), ("10000.tar", "one"), ("10001.tar", "two")] {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    let (config, tar) = ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar");
    let layers = [format!("10000.tar:{tar}"), format!("10001.tar:{tar}")];
    let config_argument = format!("config.json:{config}");
    let kind = ["--artifact-type", "application/vnd.whatever.v1+tar"];
    let arguments = [&kind[..], &["--config", &config_argument, &layers[0], &layers[1]]].concat();
    registry.push_with_oras(directory.path(), "pastis:sample", &arguments);

    let blob = format!("/v2/pastis/blobs/{}", sha256(b"two"));
    let answer = plain_http::get(registry.address(), &blob, &[("Range", "bytes=1-1")]).unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (206, &b"w"[..]));

    let made = |artifact: Artifact| -> Value { serde_json::from_slice(&artifact.manifest()).unwrap() };
    let without_time = |mut manifest: Value| {
        let annotations = manifest.as_object_mut().unwrap().remove("annotations");
        assert!(annotations.unwrap()["org.opencontainers.image.created"].is_string());
        manifest
    };
    let artifact = Artifact::new().tar("10000.tar", "one").tar("10001.tar", "two");
    let expected = made(artifact.clone().config("{\"a\":1}", config));
    assert_eq!(without_time(manifest(&registry, "pastis")), expected);

    registry.push_with_oras(directory.path(), "bare:sample", &[&kind[..], &[&layers[0], &layers[1]]].concat());
    assert_eq!(without_time(manifest(&registry, "bare")), made(artifact));
}

#[test]
fn registries_stand_side_by_side_and_end_with_their_owner() {
    let both = [RealRegistry::start(), RealRegistry::start()];
    let addresses: BTreeSet<String> = both.iter().map(|registry| registry.address().to_owned()).collect();
    assert_eq!(addresses.len(), 2);
    let storages = both.each_ref().map(RealRegistry::storage);
    let served = |storage: &Path| {
        let config = storage.parent().unwrap().join("config.yml");
        processes::with_argument(&config).len()
    };
    assert_eq!(storages.each_ref().map(|storage| served(storage)), [1, 1]);
    let panicked = std::thread::spawn(move || {
        let _moved = both;
        panic!("as a failing test does");
    });
    panicked.join().unwrap_err();
    for storage in &storages {
        assert_eq!(served(storage), 0);
        assert!(!storage.parent().unwrap().exists());
    }
    for address in addresses {
        plain_http::get(&address, "/v2/", &[]).unwrap_err();
    }
}

/// A registry in a static is never dropped: it must end with the thread that holds it all the same.
#[test]
fn a_forgotten_registry_ends_with_the_program() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forgotten_registry"));
    let said = eo_mount_testing::run(&mut command, Duration::from_secs(60)).expect_success("it").text();
    let address = said.split("forgotten: ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
    let gone = || plain_http::get(address, "/v2/", &[]).is_err();
    assert!(wait_until(Duration::from_secs(20), gone), "{address} still answers");
}

/// `nginx` passes on what it is asked, and is gone with its owner.
#[test]
fn nginx_redirects_with_urls_that_expire_limits_and_keeps() {
    let registry = RealRegistry::start();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.tar"), "content").unwrap();
    registry.push_with_oras(directory.path(), "a:b", &["a.tar"]);
    let blob = format!("/v2/a/blobs/{}", sha256(b"content"));
    let range = [("Range", "bytes=1-2")];

    let nginx = Nginx::redirecting(&registry, Duration::from_secs(2));
    let answer = plain_http::get(&nginx.address(), &blob, &range).unwrap();
    let url = answer.header("Location").unwrap().strip_prefix("http://").unwrap();
    let (host, path) = url.split_at(url.find('/').unwrap());
    let fetch = |path: &str| plain_http::get(host, path, &range).unwrap();
    assert_eq!((answer.status, fetch(path).status, fetch(path).body.as_slice()), (307, 206, &b"on"[..]));
    assert_eq!(fetch(&path.replace("expires=1", "expires=2")).status, 403);
    assert!(wait_until(Duration::from_secs(20), || fetch(path).status == 403));
    let asked = nginx.asked();
    assert_eq!(asked.iter().filter(|asked| !asked.of_blob_host).map(|asked| asked.status).collect::<Vec<_>>(), [307]);
    let address = nginx.address();
    drop(nginx);
    plain_http::get(&address, "/v2/", &[]).unwrap_err();

    let nginx = Nginx::limiting(&registry);
    let answers = [(); 20].map(|()| plain_http::get(&nginx.address(), "/v2/", &[]).unwrap());
    assert_eq!(answers[0].status, 200);
    assert!(answers.iter().any(|answer| answer.status == 429 && answer.header("Retry-After") == Some("1")));

    let nginx = Nginx::caching(&registry);
    let answers = [(); 2].map(|()| plain_http::get(&nginx.address(), &blob, &range).unwrap());
    assert_eq!(answers.each_ref().map(|answer| answer.status), [200, 206]);
    assert_eq!(answers.map(|answer| answer.body), [b"content".to_vec(), b"on".to_vec()]);
}

#[test]
fn only_who_has_a_login_gets_a_token_for_pushing() {
    let tokens = TokenServer::start();
    for program in [Program::DockerRegistry, Program::Distribution3] {
        let registry = RealRegistry::of(program).token(&tokens).start();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.tar"), "content").unwrap();
        registry.push_with_oras(directory.path(), "a:b", &["a.tar"]);
        assert_eq!(plain_http::get(registry.address(), "/v2/a/manifests/b", &[]).unwrap().status, 401);
        let mut anonymous = Command::new(tools::oras());
        anonymous.args(["push", "--plain-http", &registry.reference("a:b"), "a.tar"]);
        anonymous.current_dir(directory.path()).env("DOCKER_CONFIG", directory.path());
        assert!(!eo_mount_testing::run(&mut anonymous, Duration::from_secs(60)).success());
        anonymous = Command::new(tools::oras());
        anonymous.args(["pull", "--plain-http", &registry.reference("a:b")]);
        anonymous.current_dir(directory.path()).env("DOCKER_CONFIG", directory.path());
        eo_mount_testing::run(&mut anonymous, Duration::from_secs(60)).expect_success("oras pull");
    }
    let users: BTreeSet<Option<String>> = tokens.asked().into_iter().map(|asked| asked.user).collect();
    assert_eq!(users, BTreeSet::from([None, Some(USERNAME.to_owned())]));
}

#[test]
fn a_registry_starts_again_where_it_was() {
    let mut registry = RealRegistry::start();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a.tar"), "content").unwrap();
    registry.push_with_oras(directory.path(), "a:b", &["a.tar"]);
    let address = registry.address().to_owned();
    registry.stop();
    plain_http::get(&address, "/v2/", &[]).unwrap_err();
    registry.start_again();
    let blob = format!("/v2/a/blobs/{}", sha256(b"content"));
    assert_eq!(plain_http::get(&address, &blob, &[]).unwrap().body, b"content");
}
