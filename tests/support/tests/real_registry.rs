//! The real registry and the real `oras`.

use std::collections::BTreeSet;
use std::path::Path;

use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{Artifact, RealRegistry, plain_http, processes, sha256};
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
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_forgotten_registry"));
    let said = eo_mount_testing::run(&mut command, std::time::Duration::from_secs(60)).expect_success("it").text();
    let address = said.split("forgotten: ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
    let gone = || plain_http::get(address, "/v2/", &[]).is_err();
    assert!(wait_until(std::time::Duration::from_secs(20), gone), "{address} still answers");
}
