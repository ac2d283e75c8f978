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
    /// What was of use since [`Self::notes`] were last taken; `None`: nobody wants it, or it is too much.
    notes: Option<Vec<u8>>,
}

/// Bytes of notes that wait to be taken. Where an archive has nothing but headers, that is 8 MiB of it.
const NOTES: usize = 8 << 20;

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
            notes: None,
        }
    }

    /// One that another can follow: see [`Self::notes`].
    pub fn with_notes(limits: Limits) -> Self {
        Self { notes: Some(Vec::new()), ..Self::new(limits) }
    }

    /// What was of use since the last call, and what may be of use with the next bytes: number of the first byte (8
    /// bytes, little-endian), length (4), bytes; and again. One that replays all notes is as far as this one. `None`:
    /// there are too many of them, or they were not wanted.
    pub fn notes(&mut self) -> Option<Vec<u8>> {
        let mut notes = self.notes.replace(Vec::new())?;
        note(&mut notes, self.at, &self.kept);
        Some(notes)
    }

    /// `None`: these are no notes.
    pub fn replay(&mut self, mut notes: &[u8]) -> Option<()> {
        while let Some((at, rest)) = notes.split_first_chunk::<8>() {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            self.advance(u64::from_le_bytes(*at), bytes).ok()?;
            notes = rest;
        }
        if let Some(replayed) = &mut self.notes {
            replayed.clear();
        }
        notes.is_empty().then_some(())
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
            let notes = &mut self.notes;
            let seen = |at, bytes: &[u8]| {
                if let Some(noted) = notes {
                    note(noted, at, bytes);
                    if noted.len() > NOTES {
                        *notes = None;
                    }
                }
            };
            match self.scanner.step_seen(at, bytes, seen)? {
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

fn note(notes: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let Ok(length) = u32::try_from(bytes.len()) else { return };
    notes.extend_from_slice(&at.to_le_bytes());
    notes.extend_from_slice(&length.to_le_bytes());
    notes.extend_from_slice(bytes);
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

    /// Broken off behind each piece: another indexer takes over with the notes.
    #[test]
    fn an_indexer_goes_on_from_the_notes_of_another() {
        let archive = [member("a", 0), member("b", 5000), member("d/c", 513), vec![0; 1024]].concat();
        let whole = streamed(&archive, 1000).unwrap();
        for piece in [100, 511, 512, 700, 4096] {
            let mut notes = Vec::new();
            for (n, bytes) in archive.chunks(piece).enumerate() {
                let mut indexer = StreamIndexer::with_notes(Limits::default());
                indexer.replay(&notes).unwrap();
                indexer.push((n * piece) as u64, bytes).unwrap();
                notes.extend(indexer.notes().unwrap());
            }
            assert!(notes.len() < 5000 + 12 * 40 + archive.len() / piece * 520, "{} bytes of notes", notes.len());
            let mut last = StreamIndexer::with_notes(Limits::default());
            last.replay(&notes).unwrap();
            let last = last.finish(archive.len() as u64).unwrap();
            assert_eq!(format!("{:?}", last.index), format!("{:?}", whole.index), "{piece}");
            for cut in (1..notes.len()).step_by(37) {
                StreamIndexer::new(Limits::default()).replay(&notes[..cut]);
            }
        }
        let mut indexer = StreamIndexer::with_notes(Limits::default());
        let many: Vec<u8> = (0..NOTES / 512 + 1).flat_map(|_| member("a", 0)).collect();
        indexer.push(0, &many).unwrap();
        assert_eq!(indexer.notes(), None, "notes are bounded");
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
