//! From bytes to members, one header after the other.

use std::ops::Range;

use tar_core::Header;

use self::maps::Draft;
use super::error::ScanError;
use super::header;
use super::limits::Limits;
use super::member::Member;
use super::pax::{RecordError, Records};
use super::sparse::{Map, TextMap};

mod maps;
mod member;

/// Bytes of a header; data is filled up to a multiple of it.
pub const BLOCK: u64 = 512;

/// Bytes looked at from the end-of-archive block on to see whether another archive follows: one record of GNU tar's
/// default blocking, which fills an archive up, and the header behind it.
pub const TAIL: u64 = 21 * BLOCK;

/// Zeros up to here behind the end are no other archive: the largest usual record (`tar -b 2048`).
const LARGEST_RECORD: u64 = 2048 * BLOCK;

/// Longer than any archive.
const UNKNOWN: u64 = u64::MAX >> 1;

/// What the scanner wants or found. Ranges are bytes of the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Call again with a window that covers this range: the least that helps, never past the blob's end.
    Need(Range<u64>),
    Member(Member),
    /// `trailing`: more than padding follows the end-of-archive block, and is not indexed: GNU tar without
    /// `--ignore-zeros` does not read it either (manual, "Blocking Factor").
    End {
        trailing: bool,
    },
}

/// Reads the headers of a blob in their order: v7, ustar, GNU, PAX and star (GNU tar manual, "Basic Tar Format").
/// An error is final: later steps give it again.
#[derive(Debug, Clone)]
pub struct Scanner {
    blob_size: u64,
    limits: Limits,
    /// Byte of the blob that the state is about.
    pos: u64,
    state: State,
    /// Extension headers of the next member.
    pending: Pending,
    /// Records of the last global header. GNU tar forgets those of an earlier one, and so do we.
    global: Records,
    members: u64,
    /// Where the headers of the last member start.
    last: u64,
    /// Where its content ends as its header has it, though none is expected of its kind.
    claimed_end: u64,
}

#[derive(Debug, Clone)]
enum State {
    Header,
    /// The content of an extension header.
    Content {
        extension: Extension,
        size: u64,
    },
    /// Another block of a GNU or star sparse map.
    Descriptors(Box<(Draft, Map)>),
    /// Another block of a sparse map of format 1.0.
    TextMap(Box<(Draft, TextMap)>),
    /// The blocks from the first zero block on.
    Tail,
    End {
        trailing: bool,
    },
    Failed(ScanError),
}

#[derive(Debug, Clone, Copy)]
enum Extension {
    LongName,
    LongLink,
    Local,
    Global,
}

#[derive(Debug, Clone, Default)]
struct Pending {
    /// Where the first of them starts.
    header: Option<u64>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Records,
}

impl Scanner {
    pub fn new(blob_size: u64, limits: Limits) -> Self {
        Self {
            blob_size,
            limits,
            pos: 0,
            state: State::Header,
            pending: Pending::default(),
            global: Records::default(),
            members: 0,
            last: 0,
            claimed_end: 0,
        }
    }

    /// For an archive that passes by: its size turns out at its end; see [`Self::ends_at`].
    pub fn open_ended(limits: Limits) -> Self {
        Self::new(UNKNOWN, limits)
    }

    /// Starts in the middle, at a byte where a member's first header is thought to be. What it finds is the archive's
    /// only if a scanner from the start comes to that very byte (see [`Self::position`]) and has no
    /// [`Self::has_global_records`].
    pub fn starting_at(offset: u64, blob_size: u64, limits: Limits) -> Self {
        Self { pos: offset.min(blob_size), ..Self::new(blob_size, limits) }
    }

    /// For an archive whose size was not known, and is now. What was found before must end by then, and so must what is
    /// in the middle of its headers.
    pub fn ends_at(&mut self, size: u64) {
        self.blob_size = size;
        let extension = &b"an extension header"[..];
        let own = self.pos.saturating_sub(BLOCK);
        if let State::End { trailing } = &mut self.state {
            *trailing |= size.saturating_sub(self.pos) > LARGEST_RECORD;
        }
        let (offset, what, end) = match &self.state {
            State::Failed(_) | State::End { .. } => return,
            State::Content { size, .. } => {
                (self.pending.header.unwrap_or(own), extension, self.pos.saturating_add(padded(*size)))
            }
            State::Descriptors(draft) => draft.0.place(),
            State::TextMap(draft) => draft.0.place(),
            State::Header | State::Tail => match self.pending.header {
                Some(header) => (header, extension, self.pos),
                None => (self.last, &b"a member"[..], self.pos),
            },
        };
        if end > size {
            self.state = State::Failed(self.truncated(offset, what, end));
        }
    }

    /// Where the next member's first header is due; `None` in the middle of its headers, at the end, and after an
    /// error.
    pub fn position(&self) -> Option<u64> {
        let between = matches!(self.state, State::Header) && self.pending.header.is_none();
        between.then_some(self.pos)
    }

    /// Whether records of a global header change what the next members' headers say.
    pub fn has_global_records(&self) -> bool {
        self.global != Records::default()
    }

    /// `at` is the blob's byte that `bytes` starts with. Any window will do, the same bytes may come again: what does
    /// not help is answered by [`Step::Need`]. Only headers are needed, never the members' data.
    pub fn step(&mut self, at: u64, bytes: &[u8]) -> Result<Step, ScanError> {
        self.step_seen(at, bytes, |_, _| {})
    }

    /// The same. `seen` is told what was of use, and where it starts: another scanner that gets that alone is as far.
    pub(super) fn step_seen(
        &mut self,
        at: u64,
        bytes: &[u8],
        mut seen: impl FnMut(u64, &[u8]),
    ) -> Result<Step, ScanError> {
        loop {
            let needed = match &self.state {
                State::Failed(error) => return Err(error.clone()),
                State::End { trailing } => {
                    return Ok(Step::End { trailing: *trailing });
                }
                State::Content { size, .. } => self.pos..self.pos.saturating_add(*size),
                State::Tail => self.pos..self.pos.saturating_add(TAIL),
                State::Header | State::Descriptors(_) | State::TextMap(_) => self.pos..self.pos.saturating_add(BLOCK),
            };
            let needed = needed.start..needed.end.min(self.blob_size);
            let Some(window) = window(at, bytes, &needed) else {
                return Ok(Step::Need(needed));
            };
            seen(needed.start, window);
            match self.advance(window) {
                Ok(None) => {}
                Ok(Some(member)) => return Ok(Step::Member(member)),
                Err(error) => {
                    self.state = State::Failed(error.clone());
                    return Err(error);
                }
            }
        }
    }

    fn advance(&mut self, window: &[u8]) -> Result<Option<Member>, ScanError> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Header => match <&[u8; BLOCK as usize]>::try_from(window) {
                Ok(block) => self.header(block),
                Err(_) => self.end_of_blob(window).map(|()| None),
            },
            State::Content { extension, size } => {
                self.content(extension, window)?;
                self.pos = self.pos.saturating_add(padded(size));
                Ok(None)
            }
            State::Descriptors(draft) => self.descriptors(*draft, window),
            State::TextMap(draft) => self.text_map(*draft, window),
            State::Tail => {
                let more = self.blob_size != UNKNOWN && self.blob_size.saturating_sub(self.pos) > LARGEST_RECORD;
                let trailing = more || window.iter().any(|&byte| byte != 0);
                self.state = State::End { trailing };
                Ok(None)
            }
            state @ (State::End { .. } | State::Failed(_)) => {
                self.state = state;
                Ok(None)
            }
        }
    }

    /// Less than a block is left. GNU tar passes over half a header; here it is an error, because it says that bytes
    /// are missing. An archive without end-of-archive blocks is whole if it ends with a member.
    fn end_of_blob(&mut self, rest: &[u8]) -> Result<(), ScanError> {
        if self.pos == 0 {
            return Err(ScanError::NotTar { offset: 0 });
        }
        if let Some(header) = self.pending.header {
            return Err(self.truncated(header, b"an extension header", self.pos.saturating_add(BLOCK)));
        }
        if rest.iter().any(|&byte| byte != 0) {
            return Err(self.truncated(self.pos, b"a header", self.pos.saturating_add(BLOCK)));
        }
        self.state = State::End { trailing: false };
        Ok(())
    }

    fn header(&mut self, block: &[u8; BLOCK as usize]) -> Result<Option<Member>, ScanError> {
        let (offset, claimed_end) = (self.pos, std::mem::take(&mut self.claimed_end));
        if block.iter().all(|&byte| byte == 0) {
            // One is enough for GNU tar ("A lone zero block"), whatever follows. tar-core goes on behind a single one.
            self.state = State::Tail;
            return Ok(None);
        }
        if !header::checksum_holds(block) {
            if (offset..=self.blob_size).contains(&claimed_end) && claimed_end > offset {
                self.pos = claimed_end;
                return Ok(None);
            }
            return Err(match offset {
                0 => ScanError::NotTar { offset },
                _ => ScanError::Checksum { offset },
            });
        }
        let header = Header::from_bytes(block);
        let [flag] = header.as_ustar().typeflag;
        let extension = match flag {
            b'L' => Extension::LongName,
            b'K' => Extension::LongLink,
            // Solaris' X is a local header, too.
            b'x' | b'X' => Extension::Local,
            b'g' => Extension::Global,
            _ => return self.member(header, flag),
        };
        let size = self.size(header)?;
        self.limit(offset, "pax_bytes", size, self.limits.pax_bytes)?;
        let content = offset.saturating_add(BLOCK);
        self.must_hold(offset, b"an extension header", content.saturating_add(padded(size)))?;
        if !matches!(extension, Extension::Global) {
            self.pending.header.get_or_insert(offset);
        }
        self.pos = content;
        self.state = State::Content { extension, size };
        Ok(None)
    }

    /// A second header of a kind replaces the first, as in GNU tar; tar-core refuses it.
    fn content(&mut self, extension: Extension, content: &[u8]) -> Result<(), ScanError> {
        let offset = self.pos.saturating_sub(BLOCK);
        match extension {
            Extension::LongName => self.pending.name = Some(header::c_string(content).to_vec()),
            Extension::LongLink => self.pending.link = Some(header::c_string(content).to_vec()),
            Extension::Local | Extension::Global => {
                let records = Records::parse(content, &self.limits).map_err(|error| match error {
                    RecordError::Bad(what) => ScanError::Pax { offset, what },
                    RecordError::Sparse(what) => ScanError::Sparse { offset, what },
                    RecordError::Limit(limit, max) => ScanError::Limit { offset, limit, max },
                })?;
                if records.volume_piece {
                    return Err(ScanError::MultiVolume { offset, member: "a member".to_owned() });
                }
                match extension {
                    Extension::Global => {
                        // Each member gets a copy.
                        for name in [&records.path, &records.linkpath].into_iter().flatten().flatten() {
                            self.limit(offset, "name_bytes", name.len() as u64, self.limits.name_bytes)?;
                        }
                        self.global = records;
                    }
                    _ => self.pending.records = records,
                }
            }
        }
        Ok(())
    }
}

/// Whether a block is a header: its checksum holds. A search for members starts with it; data may look like one by
/// intent.
pub fn is_header(block: &[u8]) -> bool {
    <&[u8; BLOCK as usize]>::try_from(block)
        .is_ok_and(|block| block.iter().any(|&byte| byte != 0) && header::checksum_holds(block))
}

/// The bytes of `range`, if the window covers it. An empty range, at the blob's end, is covered by anything.
fn window<'a>(at: u64, bytes: &'a [u8], range: &Range<u64>) -> Option<&'a [u8]> {
    if range.is_empty() {
        return Some(&[]);
    }
    let start = usize::try_from(range.start.checked_sub(at)?).ok()?;
    let end = usize::try_from(range.end.checked_sub(at)?).ok()?;
    bytes.get(start..end)
}

fn padded(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

fn shown(name: &[u8]) -> String {
    crate::error::printable(&String::from_utf8_lossy(name))
}
