//! The index of an archive whose bytes pass by once, in order.

use super::build::LayerIndexBuilder;
use super::error::ScanError;
use super::layer::LayerIndex;
use super::limits::Limits;
use super::scan::{Scanner, Step};

/// Given all bytes of an archive; keeps those of headers only.
#[derive(Debug)]
pub struct StreamIndexer {
    scanner: Scanner,
    builder: LayerIndexBuilder,
    /// Bytes that were not enough for the scanner, and where they start.
    kept: Vec<u8>,
    at: u64,
    /// Nothing before this byte is of interest.
    needed: u64,
    done: Option<bool>,
}

/// An index, and whether more than padding follows the archive.
#[derive(Debug)]
pub struct Streamed {
    pub index: LayerIndex,
    pub trailing: bool,
}

impl StreamIndexer {
    pub fn new(limits: Limits) -> Self {
        Self {
            scanner: Scanner::open_ended(limits),
            builder: LayerIndexBuilder::new(limits),
            kept: Vec::new(),
            at: 0,
            needed: 0,
            done: None,
        }
    }

    /// The next bytes; `at` is where they start.
    pub fn push(&mut self, at: u64, bytes: &[u8]) -> Result<(), ScanError> {
        let end = at.saturating_add(bytes.len() as u64);
        if self.done.is_some() || end <= self.needed {
            return Ok(());
        }
        if self.kept.is_empty() {
            return self.advance(at, bytes);
        }
        let mut kept = std::mem::take(&mut self.kept);
        kept.extend_from_slice(bytes);
        self.advance(self.at, &kept)
    }

    /// The archive ended at this byte.
    pub fn finish(mut self, size: u64) -> Result<Streamed, ScanError> {
        self.scanner.ends_at(size);
        let kept = std::mem::take(&mut self.kept);
        self.advance(self.at, &kept)?;
        // Whatever the scanner still needs, it now knows that there is no more.
        let trailing = self.done.unwrap_or(false);
        Ok(Streamed { index: self.builder.finish(), trailing })
    }

    fn advance(&mut self, at: u64, bytes: &[u8]) -> Result<(), ScanError> {
        loop {
            match self.scanner.step(at, bytes)? {
                Step::Member(member) => self.builder.push(member)?,
                Step::End { trailing } => {
                    self.done = Some(trailing);
                    return Ok(());
                }
                Step::Need(range) => {
                    self.needed = range.start;
                    self.at = range.start.max(at);
                    let skip = usize::try_from(self.at.saturating_sub(at)).unwrap_or(usize::MAX);
                    self.kept = bytes.get(skip..).unwrap_or_default().to_vec();
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member with this name and so many bytes.
    fn member(name: &str, size: usize) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(size as u64);
        header.set_mode(0o644);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(512 + size.next_multiple_of(512), 7);
        bytes
    }

    fn streamed(archive: &[u8], piece: usize) -> Result<Streamed, ScanError> {
        let mut indexer = StreamIndexer::new(Limits::default());
        for (n, bytes) in archive.chunks(piece).enumerate() {
            indexer.push((n * piece) as u64, bytes)?;
        }
        indexer.finish(archive.len() as u64)
    }

    #[test]
    fn pieces_of_any_size_give_the_same_index() {
        let mut archive = [member("a", 0), member("b", 5000), member("d/c", 513)].concat();
        archive.resize(archive.len() + 1024, 0);
        for piece in [1, 100, 511, 512, 513, 4096, 100_000] {
            let Streamed { index, trailing } = streamed(&archive, piece).unwrap();
            let b = index.lookup(LayerIndex::ROOT, b"b").unwrap();
            assert_eq!((index.len(), index.entry(b).unwrap().size, trailing), (5, 5000, false), "{piece}");
        }
    }

    #[test]
    fn the_end_is_where_the_stream_ends() {
        let whole = [member("a", 100), member("b", 5000)].concat();
        assert!(!streamed(&whole, 1000).unwrap().trailing, "end-of-archive blocks are missing; that is allowed");
        for cut in [whole.len() - 1, whole.len() - 5000, 1024 + 100, 700] {
            let error = streamed(&whole[..cut], 1000).unwrap_err();
            assert!(matches!(error, ScanError::Truncated { .. }), "{cut}: {error}");
        }
        assert_eq!(streamed(b"", 1).unwrap_err(), ScanError::NotTar { offset: 0 });
        let mut padded = whole.clone();
        padded.resize(whole.len() + 10_240, 0);
        assert!(!streamed(&padded, 1000).unwrap().trailing);
        padded.push(1);
        assert!(streamed(&padded, 1000).unwrap().trailing);
        padded.resize(whole.len() + (2 << 20), 0);
        assert!(streamed(&padded, 1000).unwrap().trailing);
    }

    /// The end came within a block, whose start held all that was looked for, and nobody noticed.
    #[test]
    fn a_stream_that_ends_in_a_global_header_or_in_a_sparse_map_is_truncated() {
        let mut global = tar::Header::new_ustar();
        global.set_entry_type(tar::EntryType::XGlobalHeader);
        global.set_size(13);
        global.set_cksum();
        let mut global = [&global.as_bytes()[..], b"13 mtime=2.5\n"].concat();
        global.resize(1024, 0);
        let records = b"22 GNU.sparse.major=1\n26 GNU.sparse.realsize=60\n";
        let mut local = tar::Header::new_ustar();
        local.set_entry_type(tar::EntryType::XHeader);
        local.set_size(records.len() as u64);
        local.set_cksum();
        let mut sparse = [&local.as_bytes()[..], records].concat();
        sparse.resize(1024, 0);
        sparse.extend(member("s", 600));
        sparse[1536..2048].fill(0);
        sparse[1536..1543].copy_from_slice(b"1\n10\n3\n");
        for (archive, cuts) in [(global, 513..1024), (sparse, 513..2560)] {
            assert!(streamed(&archive, 1000).is_ok());
            for cut in cuts.filter(|cut| cut % 512 != 0 || *cut > 1024).step_by(7) {
                let error = streamed(&archive[..cut], 1000).expect_err("a truncated archive");
                assert!(matches!(error, ScanError::Truncated { .. }), "{cut}: {error}");
            }
        }
    }
}
