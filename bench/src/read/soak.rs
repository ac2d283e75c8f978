//! A day in small: many readers of all kinds on a cache that is too small.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eo_mount_testing::fixtures::{PythonTar, VirtualTar, noise};
use eo_mount_testing::{Artifact, EoMount, Mounted, ScriptedRegistry};
use rustix::fs::Advice;

use crate::harness::{Bench, Case, Unit};
use crate::report::Figures;
use crate::site::{Line, counted, eo_mount};

/// 8 layers of 16 members of 62.5 MB: 8 GB.
const LAYERS: u64 = 8;
const MEMBERS: u64 = 16;
const MEMBER: u64 = 62_500_000;
const READERS: u64 = 16;
const CACHE: f64 = (1_u64 << 30) as f64;
/// `--memory`, as it is unless set, and 64 MiB.
const MEMORY: f64 = (320_u64 << 20) as f64;
const LARGEST: usize = 1 << 20;

pub fn run(bench: &mut Bench, seconds: u64) {
    soak(bench, "soak", Line::Loopback, seconds);
    soak(bench, "soak-breaking", Line::Breaking, seconds);
}

fn soak(bench: &mut Bench, key: &'static str, line: Line, seconds: u64) {
    if !bench.wants(&[key]) {
        return;
    }
    let registry = ScriptedRegistry::start();
    let tars: Vec<Arc<VirtualTar>> = (0..LAYERS).map(|layer| Arc::new(tar(layer))).collect();
    let mut artifact = Artifact::new();
    for (number, tar) in tars.iter().enumerate() {
        let fill = Arc::clone(tar);
        // The true digest: a layer that comes to be there whole is checked against it.
        let descriptor = registry.put_sparse_blob(tar.size(), &tar.digest(), move |at, buffer| fill.fill(at, buffer));
        artifact = artifact.layer_of(Some(&format!("{number}.tar")), descriptor);
    }
    artifact.push(&registry, "soak", "full");
    let link = line.to(registry.address());
    let case = Case::new(
        key,
        "Sixteen readers for a while",
        format!(
            "{seconds} s of readers in order, backward, of every eighth piece and anywhere, half of them with `O_DIRECT`, on a cache \
             of 1 GiB, of 8 layers of 1 GB; every byte compared. {}, scripted registry, which makes the bytes when they are \
             asked for. Memory and cache folder are looked at each half second; the first fifth of the time does not count.",
            line.says()
        ),
    );
    let samples = std::cell::RefCell::new(Vec::new());
    let least = || samples.borrow().iter().copied().reduce(|a: Sample, b| a.with(b, u64::min)).map(Figures::from);
    let mean = |fifth: usize| {
        let samples = samples.borrow();
        let part = samples.len() / 4;
        let memory = samples[fifth * part..(fifth + 1) * part].iter().map(|sample| sample.memory).sum::<u64>();
        Figures { memory: Some(memory / part as u64), ..Figures::default() }
    };
    let case = case
        .contestant_but("eo-mount", "the most memory, and the most in the cache folder", || {
            let mounted = EoMount::new(eo_mount(), link.reference("soak:full")).args(["--cache-size", "1GiB"]).mount();
            let figures = counted(&link, || {
                *samples.borrow_mut() = read_all(&mounted, &tars, seconds);
                seconds as f64
            });
            assert_eq!(mounted.log(), "", "the log of a mount without faults");
            let most = samples.borrow().iter().copied().reduce(|a, b| a.with(b, u64::max)).unwrap_or_default();
            Figures { memory: Some(most.memory), disk: Some(most.disk), ..figures }
        })
        .contestant_but("least", "of all that was seen", || least().unwrap_or_default())
        .contestant_but("second fifth", "mean", || mean(0))
        .contestant_but("last fifth", "mean", || mean(3))
        .at_most(1.1, Unit::Times, "Memory in the last fifth of the time in that in the second", |of| {
            of.memory("last fifth") / of.memory("second fifth")
        })
        .at_most(MEMORY, Unit::Bytes, "Memory, of `--memory` 256 MiB and 64 MiB more", |of| of.memory("eo-mount"))
        .at_most(CACHE, Unit::Bytes, "Cache folder, of 1 GiB", |of| of.disk("eo-mount"));
    bench.run(case);
}

#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    memory: u64,
    disk: u64,
}

impl Sample {
    fn with(self, other: Self, choose: impl Fn(u64, u64) -> u64) -> Self {
        Self { memory: choose(self.memory, other.memory), disk: choose(self.disk, other.disk) }
    }
}

impl From<Sample> for Figures {
    fn from(sample: Sample) -> Self {
        Self { memory: Some(sample.memory), disk: Some(sample.disk), ..Self::default() }
    }
}

fn tar(layer: u64) -> VirtualTar {
    let add = |tar: PythonTar, member: u64| {
        tar.file(&format!("{member:02}.bin"), 1.5, Vec::new(), layer * MEMBERS + member, MEMBER)
    };
    (0..MEMBERS).fold(PythonTar::new(), add).finish()
}

/// Starts the readers, and looks at memory and cache folder until they are done.
fn read_all(mounted: &Mounted, tars: &[Arc<VirtualTar>], seconds: u64) -> Vec<Sample> {
    let (start, all) = (Instant::now(), Duration::from_secs(seconds));
    let (pid, cache) = (mounted.pid(), mounted.home().cache());
    let bytes = AtomicU64::new(0);
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        let bytes = &bytes;
        let readers: Vec<_> = (0..READERS)
            .map(|number| scope.spawn(move || Reader::new(number).read_until(mounted, tars, start + all, bytes)))
            .collect();
        while !readers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(500));
            let memory = eo_mount_testing::processes::resident_bytes(pid).expect("the mount is served");
            let disk = eo_mount_testing::files::bytes_of_files(&cache);
            if start.elapsed() > all / 5 {
                samples.push(Sample { memory, disk });
            }
        }
    });
    eprintln!("    read and compared: {}", crate::report::bytes(bytes.load(Ordering::Relaxed) as f64));
    assert!(samples.len() >= 8, "SECONDS={seconds} is too short");
    samples
}

struct Reader {
    number: u64,
    /// Of random numbers drawn.
    drawn: u64,
}

impl Reader {
    fn new(number: u64) -> Self {
        Self { number, drawn: 0 }
    }

    fn read_until(mut self, mounted: &Mounted, tars: &[Arc<VirtualTar>], end: Instant, bytes: &AtomicU64) {
        let (mut buffer, mut expected) = (Aligned::new(), vec![0; LARGEST]);
        while Instant::now() < end {
            let (layer, member) = (self.draw(LAYERS), self.draw(MEMBERS));
            let path = mounted.join(format!("{layer}/{member:02}.bin"));
            let mut options = File::options();
            let direct = self.number % 2 == 1;
            if direct {
                options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
            }
            let file = options.read(true).open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            for (at, length) in self.places() {
                if Instant::now() >= end {
                    break;
                }
                let length = length.min((MEMBER - at) as usize);
                let found = &mut buffer.bytes()[..LARGEST.min(length.next_multiple_of(4096))];
                let count = read_fully(&file, found, at);
                assert!(count >= length, "{}: {count} bytes of {length} at {at}", path.display());
                noise_at(&tars[layer as usize], member, at, &mut expected[..length]);
                assert!(found[..length] == expected[..length], "{}: wrong bytes at {at}", path.display());
                bytes.fetch_add(length as u64, Ordering::Relaxed);
            }
            // Else all would be in the kernel's pages soon.
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("a file of a mount");
        }
    }

    /// Offsets and lengths of one file's reads.
    fn places(&mut self) -> Vec<(u64, usize)> {
        let step = LARGEST as u64;
        let pieces = MEMBER.div_ceil(step);
        match self.number / 2 % 4 {
            0 => (0..pieces).map(|piece| (piece * step, LARGEST)).collect(),
            1 => (0..pieces).rev().map(|piece| (piece * step, LARGEST)).collect(),
            2 => (0..pieces).step_by(8).map(|piece| (piece * step, LARGEST / 3 / 4096 * 4096)).collect(),
            _ => (0..64).map(|_| (self.draw(MEMBER / 4096) * 4096, 4096)).collect(),
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.drawn += 1;
        let word = noise(self.number << 32 | self.drawn, 8);
        u64::from_le_bytes(word.try_into().expect("eight bytes")) % below
    }
}

fn noise_at(tar: &VirtualTar, member: u64, at: u64, expected: &mut [u8]) {
    tar.fill(tar.members()[member as usize].data.start + at, expected);
}

/// Until the buffer is full or the file ends.
fn read_fully(file: &File, buffer: &mut [u8], at: u64) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64).expect("the mount answers") {
            0 => break,
            count => done += count,
        }
    }
    done
}

/// As `O_DIRECT` wants it.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new() -> Self {
        Self(vec![0; LARGEST + 4096])
    }

    fn bytes(&mut self) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(4096);
        &mut self.0[skip..skip + LARGEST]
    }
}
