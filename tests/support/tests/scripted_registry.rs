//! The scripted registry answers as the distribution specification says, and wrongly exactly as told.

use std::io;
use std::time::{Duration, Instant};

use eo_mount_testing::plain_http::{self, Answer};
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{ALWAYS, Artifact, Fault, Kind, Matcher, ScriptedRegistry, sha256};

const BODY: &[u8] = b"0123456789abcdef";

fn with_blob() -> (ScriptedRegistry, String) {
    let registry = ScriptedRegistry::start();
    let path = format!("/v2/r/blobs/{}", registry.put_blob(BODY).digest);
    (registry, path)
}

fn get(registry: &ScriptedRegistry, path: &str, range: Option<&str>) -> io::Result<Answer> {
    let headers: Vec<(&str, &str)> = range.map(|range| ("Range", range)).into_iter().collect();
    plain_http::get(&registry.address(), path, &headers)
}

/// The answer to `bytes=4-11` under one fault.
fn faulty(fault: Fault) -> io::Result<Answer> {
    let (registry, path) = with_blob();
    let script = registry.fault(Matcher::blobs(), fault, 1);
    let answer = get(&registry, &path, Some("bytes=4-11"));
    assert_eq!(script.met(), 1);
    let after = get(&registry, &path, Some("bytes=4-11")).expect("the fault is over");
    assert_eq!((after.status, after.body.as_slice()), (206, &BODY[4..12]));
    answer
}

#[test]
fn blobs_come_whole_in_ranges_and_not_at_all() {
    let (registry, path) = with_blob();
    let whole = get(&registry, &path, None).unwrap();
    assert_eq!((whole.status, whole.body.as_slice()), (200, BODY));
    assert_eq!(whole.header("docker-content-digest"), Some(sha256(BODY).as_str()));
    let part = get(&registry, &path, Some("bytes=4-7")).unwrap();
    assert_eq!((part.status, part.body.as_slice()), (206, &b"4567"[..]));
    assert_eq!(part.header("content-range"), Some("bytes 4-7/16"));
    let beyond = get(&registry, &path, Some("bytes=16-20")).unwrap();
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */16")));
    let missing = get(&registry, &format!("/v2/r/blobs/{}", sha256(b"?")), None).unwrap();
    assert_eq!(missing.status, 404);
    assert!(String::from_utf8_lossy(&missing.body).contains("BLOB_UNKNOWN"));
}

#[test]
fn manifests_come_by_tag_and_by_digest() {
    let registry = ScriptedRegistry::start();
    let artifact = Artifact::new().tar("a.tar", &b"a"[..]);
    let digest = artifact.push(&registry, "some/repo", "tag").digest;
    for reference in ["tag", &digest] {
        let answer = get(&registry, &format!("/v2/some/repo/manifests/{reference}"), None).unwrap();
        assert_eq!((answer.status, &answer.body), (200, &artifact.manifest()));
        assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
        assert_eq!(answer.header("content-type"), Some("application/vnd.oci.image.manifest.v1+json"));
    }
    let unknown = get(&registry, "/v2/some/repo/manifests/other", None).unwrap();
    assert!(unknown.status == 404 && String::from_utf8_lossy(&unknown.body).contains("MANIFEST_UNKNOWN"));
    let unknown = get(&registry, "/v2/other/manifests/tag", None).unwrap();
    assert!(unknown.status == 404 && String::from_utf8_lossy(&unknown.body).contains("NAME_UNKNOWN"));
    let head =
        plain_http::request("HEAD", &registry.address(), "/v2/some/repo/manifests/tag", &[], Duration::from_secs(9));
    let head = head.unwrap();
    assert_eq!((head.status, head.body.len(), head.header("docker-content-digest")), (200, 0, Some(digest.as_str())));
    assert_eq!(head.header("content-length"), Some(artifact.manifest().len().to_string().as_str()));
}

#[test]
fn requests_are_counted_by_kind_and_by_what_was_sent() {
    let registry = ScriptedRegistry::start();
    let artifact = Artifact::new().config("{\"a\":1}", "application/json").tar("a.tar", BODY);
    artifact.push(&registry, "r", "t");
    get(&registry, "/v2/", None).unwrap();
    get(&registry, "/v2/r/manifests/t", None).unwrap();
    get(&registry, &format!("/v2/r/blobs/{}", sha256(b"{\"a\":1}")), None).unwrap();
    get(&registry, &format!("/v2/r/blobs/{}", sha256(BODY)), Some("bytes=1-3")).unwrap();
    let requests = registry.requests();
    let kinds: Vec<Kind> = requests.iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Ping, Kind::Manifest, Kind::Config, Kind::Blob]);
    assert_eq!((registry.blob_requests(), registry.blob_bytes()), (1, 3));
    assert_eq!((requests[3].byte_range(), requests[3].status), (Some(1..4), 206));
    assert_eq!(requests[3].digest(), Some(sha256(BODY).as_str()));
    registry.reset();
    assert!(registry.requests().is_empty());
    assert_eq!(get(&registry, "/v2/", None).unwrap().status, 200);
}

#[test]
fn huge_blobs_are_made_as_they_are_read() {
    let registry = ScriptedRegistry::start();
    let digest = sha256(b"huge");
    registry.put_sparse_blob(1 << 44, &digest, |at, buffer| {
        buffer.iter_mut().zip(at..).for_each(|(byte, at)| *byte = (at >> 40) as u8);
    });
    let path = format!("/v2/r/blobs/{digest}");
    let range = format!("bytes={}-{}", (1_u64 << 42) - 1, 1_u64 << 42);
    assert_eq!(get(&registry, &path, Some(&range)).unwrap().body, [3, 4]);
}

#[test]
fn wrong_ranges() {
    let answer = faulty(Fault::IgnoreRange).unwrap();
    assert_eq!((answer.status, answer.body.as_slice(), answer.header("content-range")), (200, BODY, None));
    let answer = faulty(Fault::WrongContentRange).unwrap();
    assert_eq!((answer.status, answer.header("content-range")), (206, Some("bytes 5-12/16")));
    assert_eq!(answer.body, &BODY[4..12]);
    let answer = faulty(Fault::ContentRangeMissing).unwrap();
    assert_eq!((answer.status, answer.header("content-range")), (206, None));
    let answer = faulty(Fault::WrongTotal).unwrap();
    assert_eq!(answer.header("content-range"), Some("bytes 4-11/17"));
    let answer = faulty(Fault::ShorterRange).unwrap();
    assert_eq!((answer.header("content-range"), answer.body.as_slice()), (Some("bytes 4-7/16"), &BODY[4..8]));
}

#[test]
fn wrong_bodies() {
    let answer = faulty(Fault::ShortBody).unwrap();
    assert_eq!((answer.header("content-length"), answer.body.as_slice()), (Some("8"), &BODY[4..8]));
    let answer = faulty(Fault::CutAfter(3)).unwrap();
    assert_eq!((answer.header("content-length"), answer.body.as_slice()), (Some("8"), &BODY[4..7]));
    let answer = faulty(Fault::ExtraBody).unwrap();
    assert_eq!((answer.header("content-length"), answer.body.len()), (Some("520"), 520));
    assert_eq!((answer.header("content-range"), &answer.body[..8]), (Some("bytes 4-11/16"), &BODY[4..12]));
    let answer = faulty(Fault::WrongBytes).unwrap();
    let differ: Vec<usize> = (0..8).filter(|&i| answer.body[i] != BODY[4 + i]).collect();
    assert_eq!((answer.body.len(), differ), (8, vec![4]));
    let answer = faulty(Fault::NoLength).unwrap();
    assert_eq!((answer.header("content-length"), answer.header("transfer-encoding")), (None, Some("chunked")));
    let answer = faulty(Fault::GarbageBody).unwrap();
    assert!(answer.status == 200 && answer.body.starts_with(b"<html>"));
}

#[test]
fn other_answers_and_none() {
    let headers = vec![("Retry-After".to_owned(), "2".to_owned())];
    let answer = faulty(Fault::Status(503, headers, "busy".to_owned())).unwrap();
    assert_eq!((answer.status, answer.header("retry-after"), answer.body.as_slice()), (503, Some("2"), &b"busy"[..]));
    let answer = faulty(Fault::Redirect("http://elsewhere/x".to_owned())).unwrap();
    assert_eq!((answer.status, answer.header("location")), (307, Some("http://elsewhere/x")));
    assert_eq!(faulty(Fault::ContentType("a/b".to_owned())).unwrap().header("content-type"), Some("a/b"));
    let wrong = faulty(Fault::WrongDigestHeader).unwrap();
    assert_eq!(wrong.header("docker-content-digest"), Some(sha256(b"something else").as_str()));
    assert_eq!(faulty(Fault::HangUp).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let before = Instant::now();
    assert_eq!(faulty(Fault::Delay(Duration::from_millis(60))).unwrap().status, 206);
    assert!(before.elapsed() >= Duration::from_millis(60));
}

#[test]
fn stalls_end_with_the_registry() {
    for fault in [Fault::Stall, Fault::StallAfter(3)] {
        let (registry, path) = with_blob();
        let script = registry.fault(Matcher::blobs(), fault, ALWAYS);
        let address = registry.address();
        let client =
            std::thread::spawn(move || plain_http::request("GET", &address, &path, &[], Duration::from_secs(60)));
        assert!(wait_until(Duration::from_secs(30), || script.met() == 1));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!client.is_finished());
        drop(registry);
        let got = client.join().unwrap();
        assert!(got.map_or(0, |answer| answer.body.len()) <= 3);
    }
}

#[test]
fn faults_choose_their_requests() {
    let (registry, path) = with_blob();
    registry.fault(Matcher::path("/nothing"), Fault::status(500), ALWAYS);
    registry.fault(Matcher::blob(&sha256(BODY)).nth(2), Fault::status(502), ALWAYS);
    registry.fault(Matcher::blobs().range(0..4), Fault::status(503), ALWAYS);
    registry.fault(Matcher::blobs().touching(12..16), Fault::status(504), ALWAYS);
    let status = |range| get(&registry, &path, Some(range)).unwrap().status;
    assert_eq!(status("bytes=4-5"), 206);
    assert_eq!(status("bytes=4-5"), 502);
    assert_eq!(status("bytes=4-5"), 206);
    assert_eq!(status("bytes=0-3"), 503);
    assert_eq!(status("bytes=0-4"), 206);
    assert_eq!(status("bytes=11-12"), 504);
    assert_eq!(status("bytes=4-11"), 206);
    registry.clear_faults();
    assert_eq!(status("bytes=0-3"), 206);
}

#[test]
fn tokens_are_wanted_handed_out_and_expire() {
    let (registry, path) = with_blob();
    registry.require_token();
    let refused = get(&registry, &path, None).unwrap();
    assert_eq!(refused.status, 401);
    let challenge = refused.header("www-authenticate").unwrap();
    assert_eq!(
        challenge,
        format!(
            "Bearer realm=\"http://{}/token\",service=\"scripted-registry\",scope=\"repository:r:pull\"",
            registry.address()
        )
    );
    let token = || -> String {
        let answer = get(&registry, "/token?scope=repository:r:pull", None).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        format!("Bearer {}", json["token"].as_str().unwrap())
    };
    let status = |token: &str| plain_http::get(&registry.address(), &path, &[("Authorization", token)]).unwrap().status;
    let first = token();
    assert_eq!((status(&first), status("Bearer guess")), (200, 401));
    registry.expire_tokens();
    assert_eq!(status(&first), 401);
    assert_eq!((status(&token()), registry.tokens_issued()), (200, 2));
    assert_eq!(registry.requests_of(Kind::Token).len(), 2);
}

#[test]
fn a_registry_goes_down_and_comes_up_on_its_port() {
    let (registry, path) = with_blob();
    let (address, stalled) = (registry.address(), format!("{path}?stalled"));
    let script = registry.fault(Matcher::any(), Fault::Stall, 1);
    let held = std::thread::spawn(move || plain_http::get(&address, &stalled, &[]));
    assert!(wait_until(Duration::from_secs(30), || script.met() == 1));
    for _ in 0..3 {
        registry.go_down();
        registry.go_down();
        let refused = get(&registry, &path, None).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        registry.come_up();
        registry.come_up();
        assert_eq!(get(&registry, &path, None).unwrap().body, BODY);
    }
    held.join().unwrap().unwrap_err();
}

#[test]
fn a_dropped_registry_leaves_no_thread_and_no_port() {
    let (registry, path) = with_blob();
    let address = registry.address();
    let name = format!("registry-{}", address.rsplit(':').next().unwrap());
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|known| known.trim() == name).count()
    };
    get(&registry, &path, None).unwrap();
    assert_eq!(threads(), 1);
    drop(registry);
    // The kernel shows a joined thread for a moment longer.
    assert!(wait_until(Duration::from_secs(10), || threads() == 0));
    assert_eq!(plain_http::get(&address, &path, &[]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_layout_on_disk_holds_the_same_artifact() {
    let directory = tempfile::tempdir().unwrap();
    let artifact = Artifact::new().tar("a.tar", BODY);
    let digest = artifact.write_layout(directory.path(), "one").digest;
    Artifact::new().tar("b.tar", &b"b"[..]).write_layout(directory.path(), "two");
    let blob = directory.path().join("blobs/sha256").join(&digest["sha256:".len()..]);
    assert_eq!(std::fs::read(blob).unwrap(), artifact.manifest());
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(directory.path().join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(index["manifests"][1]["annotations"]["org.opencontainers.image.ref.name"], "two");
}
