//! The fuzz targets of `fuzz/`, over the checked-in corpus and small changes of it: seconds of what a fuzzer does for
//! hours.

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod targets;

type Target = fn(&[u8]);

/// With how many changed inputs each gets: an archive of the indexer has megabytes.
const TARGETS: [(&str, Target, usize); 8] = [
    ("scanner", targets::scanner, 3000),
    ("indexer", targets::indexer, 40),
    ("pax", targets::pax, 3000),
    ("zip", targets::zip, 3000),
    ("stored_index", targets::stored_index, 3000),
    ("attached_index", targets::attached_index, 3000),
    ("checkpoints", targets::checkpoints, 3000),
    ("seek_table", targets::seek_table, 3000),
];

#[test]
fn every_target_keeps_its_word_over_the_corpus_and_changes_of_it() {
    for (name, target, changes) in TARGETS {
        let corpus = corpus(name);
        corpus.iter().for_each(|input| target(input));
        let mut dice = Dice(name.len() as u64);
        for turn in 0..changes {
            target(&changed(&corpus, &mut dice, turn));
        }
    }
}

#[test]
fn the_corpus_is_small_and_has_inputs_for_each_target() {
    let mut bytes = 0;
    for (name, ..) in TARGETS {
        let corpus = corpus(name);
        assert!(corpus.len() >= 3, "{name} has {} inputs", corpus.len());
        bytes += corpus.iter().map(Vec::len).sum::<usize>();
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz/fuzz_targets/{name}.rs"));
        assert!(target.exists(), "{} is no fuzz target", target.display());
    }
    assert!(bytes < 200_000, "{bytes} bytes");
}

/// In the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// One of the inputs after a few changes: a byte, a bit, a number at its edge, a piece moved, cut out, or of another
/// input.
fn changed(corpus: &[Vec<u8>], dice: &mut Dice, turn: usize) -> Vec<u8> {
    const EDGES: [&[u8]; 8] =
        [&[0; 8], &[0xff; 8], &[0xff, 0xff, 0xff, 0x7f], b"77777777777", b"9", b"\x80\0\0\0\xff", &[0xff; 2], b"/../"];
    let mut input = corpus[turn % corpus.len()].clone();
    for _ in 0..1 + dice.below(4) {
        let at = dice.below(input.len().max(1));
        match dice.below(7) {
            _ if input.is_empty() => input.push(dice.below(256) as u8),
            0 => input[at] = dice.below(256) as u8,
            1 => input[at] ^= 1 << dice.below(8),
            2 => {
                let edge = EDGES[dice.below(EDGES.len())];
                let end = input.len().min(at + edge.len());
                input[at..end].copy_from_slice(&edge[..end - at]);
            }
            3 => drop(input.drain(at..input.len().min(at + 1 + dice.below(600)))),
            4 => {
                let piece = input[at..input.len().min(at + 1 + dice.below(600))].to_vec();
                let to = dice.below(input.len());
                input.splice(to..to, piece);
            }
            5 => input.truncate(at),
            _ => {
                let other = &corpus[dice.below(corpus.len())];
                let from = dice.below(other.len().max(1));
                input.truncate(at);
                input.extend_from_slice(other.get(from..).unwrap_or_default());
            }
        }
    }
    input
}

/// Small numbers from a seed, always the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}
