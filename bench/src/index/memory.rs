//! The scanner alone.

use std::io::Cursor;

use eo_mount::index::{Limits, Scanner, Step};
use eo_mount_testing::fixtures::{PythonTar, RawTar};

use crate::harness::{Bench, Case, Unit};
use crate::report::Figures;
use crate::site::timed;

const MEMBERS: u64 = 200_000;
/// What times are given for.
const MILLION: f64 = 1e6;

pub fn run(bench: &mut Bench) {
    if !bench.wants(&["scanner"]) {
        return;
    }
    let path = |number: u64| format!("t30uxv/{}/S2_{number}.npy", number / 8);
    let plain = (0..MEMBERS).fold(RawTar::new(), |tar, number| tar.file(path(number), "")).finish();
    let python = (0..MEMBERS)
        .fold(PythonTar::new(), |tar, number| tar.file(&path(number), 1.5, Vec::new(), 0, 0))
        .finish()
        .to_bytes();
    let case = Case::new(
        "scanner",
        "Headers from memory",
        "A million members without content, all headers in memory, one core.",
    );
    let case = case
        .contestant_but("scanner, ustar", "one header each", || million(|| scan(&plain)))
        .contestant_but("scanner, PAX", "two headers and a record each", || million(|| scan(&python)))
        .contestant_but("tar 0.4, ustar", "the Rust library", || million(|| read(&plain)))
        .contestant_but("tar 0.4, PAX", "the Rust library", || million(|| read(&python)))
        .at_least(1e6, Unit::Count, "Headers a second", |of| MILLION / of.seconds("scanner, ustar"))
        .at_least(1e6, Unit::Count, "Headers a second, PAX", |of| 2.0 * MILLION / of.seconds("scanner, PAX"));
    bench.run(case);
}

fn million(work: impl FnOnce()) -> Figures {
    Figures { seconds: timed(work) * MILLION / MEMBERS as f64, ..Figures::default() }
}

fn scan(bytes: &[u8]) {
    let mut scanner = Scanner::new(bytes.len() as u64, Limits::default());
    let mut members = 0;
    loop {
        match scanner.step(0, bytes).expect("an archive without faults") {
            Step::Member(member) => members += u64::from(!member.path.is_empty()),
            Step::Need(range) => panic!("{range:?} is there already"),
            Step::End { .. } => break,
        }
    }
    assert_eq!(members, MEMBERS);
}

fn read(bytes: &[u8]) {
    let mut archive = tar::Archive::new(Cursor::new(bytes));
    let entries = archive.entries_with_seek().expect("an archive");
    let named = entries.map(|entry| entry.expect("an entry")).filter(|entry| !entry.path_bytes().is_empty());
    assert_eq!(named.count() as u64, MEMBERS);
}
