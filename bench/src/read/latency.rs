//! How long a small cold read takes.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use eo_mount_testing::fixtures::noise;
use rustix::fs::Advice;

use super::big::Big;
use crate::harness::{Bench, Case, Unit};
use crate::site::{LINK, counted, link, timed};

const MEMBER: u64 = 1 << 30;
const READS: usize = 100;
const READ: usize = 4 << 10;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["latency"]) {
        return;
    }
    let big = Big::place(MEMBER);
    let link = link(big.registry.address());
    let path = format!("/v2/big/blobs/{}", big.digest);
    let case = Case::new(
        "latency",
        "4 KiB that nobody has read",
        format!(
            "100 reads one after the other, anywhere in a member of 1 GiB; the time is the median's. {LINK}, docker-registry."
        ),
    );
    let case = case
        .contestant("eo-mount", || {
            let mounted = big.call(&link.address()).mount();
            let file = File::open(Big::member(&mounted)).expect("the member");
            rustix::fs::fadvise(&file, 0, None, Advice::Random).expect("a file can be read in any order");
            let read = |at, buffer: &mut [u8]| file.read_exact_at(buffer, at).expect("the mount answers");
            counted(&link, || median(read))
        })
        .contestant_but("a kept connection", "the same ranges over HTTP", || {
            let mut connection = Connection::new(&link.address());
            counted(&link, || median(|at, buffer: &mut [u8]| connection.range(&path, at, buffer)))
        })
        .at_most(2.0, Unit::Milliseconds, "Longer than over a kept connection", |of| {
            1e3 * (of.seconds("eo-mount") - of.seconds("a kept connection"))
        });
    bench.run(case);
}

/// Of the time that a read takes, in seconds. The first one, which opens the connection, does not count.
fn median(mut read: impl FnMut(u64, &mut [u8])) -> f64 {
    let mut buffer = [0; READ];
    read(0, &mut buffer);
    let words = noise(7, READS * 8);
    let places = words.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word) % (MEMBER / READ as u64));
    let mut seconds: Vec<f64> = places.map(|place| timed(|| read(place * READ as u64, &mut buffer))).collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// The least HTTP client that keeps its connection.
struct Connection(BufReader<TcpStream>, String);

impl Connection {
    fn new(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the link is up");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a TCP socket");
        Self(BufReader::new(stream), address.to_owned())
    }

    fn range(&mut self, path: &str, at: u64, buffer: &mut [u8]) {
        let (address, last) = (&self.1, at + buffer.len() as u64 - 1);
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nRange: bytes={at}-{last}\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes()).expect("the link is up");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("the registry answers");
        assert!(line.contains(" 206 "), "no range: {line}");
        while line != "\r\n" {
            line.clear();
            self.0.read_line(&mut line).expect("the registry answers");
        }
        self.0.read_exact(buffer).expect("the registry answers");
    }
}
