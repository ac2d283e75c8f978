//! The link delays, throttles and cuts as its shape says. Times are only bounded from below, or compared.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use eo_mount_testing::fixtures::fill_noise;
use eo_mount_testing::wait::wait_until;
use eo_mount_testing::{Cuts, Fault, Link, Matcher, ScriptedRegistry, Shape, plain_http, sha256};

const SIZE: u64 = 2 << 20;

fn registry() -> (ScriptedRegistry, String) {
    let registry = ScriptedRegistry::start();
    let digest = sha256(b"noise");
    registry.put_sparse_blob(SIZE, &digest, |at, buffer| fill_noise(1, at, buffer));
    (registry, format!("/v2/r/blobs/{digest}"))
}

/// How long it takes until all of these downloads, run at once, are done.
fn download(link: &Link, path: &str, at_once: usize) -> Duration {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                let answer = plain_http::get(&link.address(), path, &[]).unwrap();
                let mut expected = vec![0; SIZE as usize];
                fill_noise(1, 0, &mut expected);
                assert!(answer.status == 200 && answer.body == expected);
            });
        }
    });
    start.elapsed()
}

/// Sends back what it gets, until the peer is done.
fn echo() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = peer.read(&mut buffer) {
            peer.write_all(&buffer[..count]).unwrap();
        }
    });
    (address, thread)
}

#[test]
fn every_exchange_takes_a_round_trip_and_a_connection_one_more() {
    let (address, server) = echo();
    let round_trip = Duration::from_millis(30);
    let link = Link::new(address, Shape { round_trip, ..Shape::default() });
    let mut peer = TcpStream::connect(link.address()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    peer.set_nodelay(true).unwrap();
    for exchange in 0..5_u8 {
        let start = Instant::now();
        peer.write_all(&[exchange; 3]).unwrap();
        let mut back = [0; 3];
        peer.read_exact(&mut back).unwrap();
        assert_eq!(back, [exchange; 3]);
        let least = if exchange == 0 { 2 * round_trip } else { round_trip };
        // The handshake began before the first exchange did.
        assert!(start.elapsed() >= least - Duration::from_millis(2), "{exchange}: {:?}", start.elapsed());
    }
    drop(peer);
    server.join().unwrap();
    assert_eq!((link.connections(), link.bytes_up(), link.bytes_down()), (1, 15, 15));
}

#[test]
fn the_line_is_shared_by_all_connections() {
    let (registry, path) = registry();
    let shape = Shape { bits_per_second: Some(160_000_000), ..Shape::default() };
    let link = Link::new(registry.address(), shape);
    // 2 MiB at 20 MB/s.
    let one = download(&link, &path, 1);
    assert!(one >= Duration::from_millis(100), "{one:?}");
    let four = download(&link, &path, 4);
    assert!(four >= Duration::from_millis(400), "{four:?}");
    assert_eq!(link.connections(), 5);
    assert!(link.bytes_down() > 5 * SIZE);
}

#[test]
fn a_limit_for_each_connection_lets_several_go_faster_than_one() {
    let (registry, path) = registry();
    let shape = Shape { per_connection: Some(80_000_000), ..Shape::default() };
    let link = Link::new(registry.address(), shape);
    let one = download(&link, &path, 1);
    let four = download(&link, &path, 4);
    assert!(one >= Duration::from_millis(200), "{one:?}");
    assert!(four < one * 3, "four at once took {four:?}, one {one:?}");
    let open = Link::new(registry.address(), Shape::default());
    assert!(download(&open, &path, 1) < one);
}

#[test]
fn a_long_round_trip_does_not_slow_a_stream_below_its_line() {
    let (registry, path) = registry();
    let shape = |milliseconds| Shape {
        round_trip: Duration::from_millis(milliseconds),
        bits_per_second: Some(80_000_000),
        ..Shape::default()
    };
    let near = download(&Link::new(registry.address(), shape(0)), &path, 1);
    let far = download(&Link::new(registry.address(), shape(100)), &path, 1);
    assert!(far >= Duration::from_millis(200) && far < near * 4 + Duration::from_millis(200), "{near:?}, {far:?}");
}

#[test]
fn cuts_come_at_the_same_bytes_every_time() {
    let (registry, path) = registry();
    let cuts = |seed| {
        let shape = Shape { cuts: Some(Cuts { seed, per_mebibyte: 1.0 }), ..Shape::default() };
        let link = Link::new(registry.address(), shape);
        let got = || plain_http::get(&link.address(), &path, &[]).map_or(0, |answer| answer.body.len());
        let lengths: Vec<usize> = (0..12).map(|_| got()).collect();
        let short = lengths.iter().filter(|&&length| length < SIZE as usize).count() as u64;
        // Counted a moment after the client sees it.
        assert!(wait_until(Duration::from_secs(10), || link.cut() == short));
        lengths
    };
    let first = cuts(7);
    assert_eq!(first, cuts(7));
    assert_ne!(first, cuts(8));
    assert!(first.iter().any(|&length| length < SIZE as usize), "{first:?}");
}

#[test]
fn an_end_on_one_side_is_an_end_on_the_other() {
    let (registry, path) = registry();
    let link = Link::new(registry.address(), Shape { round_trip: Duration::from_millis(4), ..Shape::default() });
    registry.fault(Matcher::blobs(), Fault::CutAfter(1000), 1);
    assert_eq!(plain_http::get(&link.address(), &path, &[]).unwrap().body.len(), 1000);
    registry.go_down();
    plain_http::get(&link.address(), &path, &[]).unwrap_err();
    registry.come_up();
    assert_eq!(plain_http::get(&link.address(), &path, &[]).unwrap().status, 200);
}

#[test]
fn a_receiver_that_does_not_read_stops_its_sender() {
    let (registry, _) = registry();
    let digest = sha256(b"endless");
    registry.put_sparse_blob(1 << 40, &digest, |_, buffer| buffer.fill(0));
    let link = Link::new(registry.address(), Shape { bits_per_second: Some(8_000_000_000), ..Shape::default() });
    let mut peer = TcpStream::connect(link.address()).unwrap();
    write!(peer, "GET /v2/r/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut last = 0;
    let quiet = wait_until(Duration::from_secs(30), || {
        std::thread::sleep(Duration::from_millis(100));
        let now = registry.blob_bytes();
        now > 0 && now == std::mem::replace(&mut last, now)
    });
    assert!(quiet && last < 64 << 20, "{last}");
}

#[test]
fn a_dropped_link_is_gone() {
    let (registry, path) = registry();
    let link = Link::new(registry.address(), Shape::default());
    let address = link.address();
    let held = TcpStream::connect(&address).unwrap();
    held.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    drop(link);
    assert!(matches!((&held).read(&mut [0]), Ok(0) | Err(_)));
    let refused = plain_http::get(&address, &path, &[]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}
