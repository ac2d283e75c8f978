//! Writes archives, as wrong as a test wants them, and reads them in the smallest steps.

use super::*;

#[derive(Clone)]
pub struct Block(pub [u8; 512]);

impl Block {
    pub fn new(name: impl AsRef<[u8]>, flag: u8, size: usize) -> Self {
        let block = Self([0; 512]).put(0, name.as_ref()).put(100, b"0000644\0").put(108, b"0001750\0");
        let block = block.put(116, b"0000144\0").put(124, format!("{size:011o}\0").as_bytes());
        block.put(136, b"00000001750\0").put(156, &[flag]).put(257, b"ustar\x0000")
    }

    pub fn gnu(self) -> Self {
        self.put(257, b"ustar  \0")
    }

    pub fn v7(self) -> Self {
        self.put(257, &[0; 8])
    }

    pub fn link(self, target: &str) -> Self {
        self.put(157, target.as_bytes())
    }

    pub fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn sealed(self) -> Vec<u8> {
        let summed = self.put(148, b"        ");
        let sum: u32 = summed.0.iter().map(|&byte| u32::from(byte)).sum();
        summed.put(148, format!("{sum:06o}\0 ").as_bytes()).0.to_vec()
    }

    pub fn with(self, data: &[u8]) -> Vec<u8> {
        [self.sealed(), filled(data)].concat()
    }
}

pub fn filled(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    data
}

pub fn file(name: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    Block::new(name, b'0', data.len()).with(data)
}

pub fn directory(name: &str) -> Vec<u8> {
    Block::new(name, b'5', 0).put(100, b"0000755\0").sealed()
}

pub fn symlink(name: &str, target: &str) -> Vec<u8> {
    Block::new(name, b'2', 0).link(target).sealed()
}

pub fn hard_link(name: &str, target: &str) -> Vec<u8> {
    Block::new(name, b'1', 0).link(target).sealed()
}

pub fn record(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let (key, value) = (key.as_ref(), value.as_ref());
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

pub fn pax(flag: u8, records: &[(&str, &str)]) -> Vec<u8> {
    extension(flag, &records.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<_>>())
}

pub fn extension(flag: u8, content: &[u8]) -> Vec<u8> {
    Block::new("././@Extension", flag, content.len()).with(content)
}

pub fn end() -> Vec<u8> {
    vec![0; 1024]
}

/// Gives the scanner exactly what it asks for.
pub fn members_of(blob: &[u8], limits: Limits) -> Result<(Vec<Member>, bool), ScanError> {
    let mut scanner = Scanner::new(blob.len() as u64, limits);
    let mut members = Vec::new();
    let mut window = 0..0;
    loop {
        let step = scanner.step(window.start as u64, &blob[window.clone()])?;
        match step {
            Step::Need(range) => {
                assert!(range.start < range.end && range.end <= blob.len() as u64, "{range:?}");
                let range = range.start as usize..range.end as usize;
                assert_ne!(window, range, "asked twice");
                window = range;
            }
            Step::Member(member) => members.push(member),
            Step::End { trailing } => return Ok((members, trailing)),
        }
    }
}

pub fn members(blocks: &[Vec<u8>]) -> Vec<Member> {
    members_of(&blocks.concat(), Limits::default()).expect("an archive").0
}

pub fn only(blocks: &[Vec<u8>]) -> Member {
    let mut members = members(blocks);
    assert_eq!(members.len(), 1);
    members.remove(0)
}

pub fn error(blocks: &[Vec<u8>]) -> ScanError {
    members_of(&blocks.concat(), Limits::default()).expect_err("a damaged archive")
}

pub fn index_of(blob: &[u8]) -> Result<LayerIndex, ScanError> {
    let mut builder = LayerIndexBuilder::new(Limits::default());
    for member in members_of(blob, Limits::default())?.0 {
        builder.push(member)?;
    }
    Ok(builder.finish())
}

pub fn content(index: &LayerIndex, id: EntryId, blob: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    for segment in index.segments(id, 0..u64::MAX) {
        match segment {
            Segment::Data(range) => content.extend_from_slice(&blob[range.start as usize..range.end as usize]),
            Segment::Hole(length) => content.resize(content.len() + length as usize, 0),
        }
    }
    content
}

/// One line a name, in the order of readdir: `d755 a/`, `f644 a/b=content`, `l a/c->target`.
pub fn listing(blob: &[u8]) -> String {
    let index = index_of(blob).expect("an archive");
    let mut lines = Vec::new();
    list(&index, LayerIndex::ROOT, "", blob, &mut lines);
    lines.join("\n")
}

fn list(index: &LayerIndex, directory: EntryId, above: &str, blob: &[u8], lines: &mut Vec<String>) {
    for child in index.children(directory) {
        let id = child.entry();
        let name = format!("{above}{}", String::from_utf8_lossy(index.name_of(child)));
        let entry = index.entry(id).expect("an entry");
        assert_eq!(index.lookup(directory, index.name_of(child)), Some(id));
        match entry.kind {
            Kind::Directory => {
                assert_eq!(index.parent(id), directory);
                lines.push(format!("d{:o} {name}/", entry.mode));
                list(index, id, &format!("{name}/"), blob, lines);
            }
            Kind::File => {
                let content = content(index, id, blob);
                assert_eq!(content.len() as u64, entry.size);
                lines.push(format!("f{} {name}={}", entry.nlink, String::from_utf8_lossy(&content)));
            }
            Kind::Symlink => {
                lines.push(format!("l{} {name}->{}", entry.nlink, String::from_utf8_lossy(index.link_target(id))));
            }
            kind => lines.push(format!("{kind:?} {name} {:x}", entry.rdev)),
        }
    }
}

/// Small numbers from a seed, always the same.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }
}
