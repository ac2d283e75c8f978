//! From bytes to members, one header after the other.

use std::ops::Range;

use tar_core::{GNU_MAGIC, GNU_VERSION, Header, USTAR_MAGIC};

use super::error::ScanError;
use super::limits::Limits;
use super::member::{Kind, Member, MemberKind, Mtime};
use super::number;
use super::pax::{RecordError, Records};
use super::sparse::{self, Map, MapError, TextMap};

/// Bytes of a header; data is filled up to a multiple of it.
pub const BLOCK: u64 = 512;

/// Bytes looked at from the end-of-archive block on to see whether another archive follows: one record of GNU tar's
/// default blocking, which fills an archive up, and the header behind it.
pub const TAIL: u64 = 21 * BLOCK;

/// Zeros up to here behind the end are no other archive: the largest usual record (`tar -b 2048`).
const LARGEST_RECORD: u64 = 2048 * BLOCK;

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

/// A sparse member whose map is not read to its end.
#[derive(Debug, Clone)]
struct Draft {
    member: Member,
    /// Bytes that `member.data` will have, once the map is read.
    stored: u64,
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
        }
    }

    /// `at` is the blob's byte that `bytes` starts with. Any window will do, the same bytes may come again: what does not
    /// help is answered by [`Step::Need`]. Only headers are needed, never the members' data.
    pub fn step(&mut self, at: u64, bytes: &[u8]) -> Result<Step, ScanError> {
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
                let more = self.blob_size.saturating_sub(self.pos) > LARGEST_RECORD;
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

    /// Less than a block is left. GNU tar passes over half a header; here it is an error, because it says that bytes are
    /// missing. An archive without end-of-archive blocks is whole if it ends with a member.
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
        let offset = self.pos;
        if block.iter().all(|&byte| byte == 0) {
            // One is enough for GNU tar ("A lone zero block"), whatever follows. tar-core goes on behind a single one.
            self.state = State::Tail;
            return Ok(None);
        }
        if !checksum_holds(block) {
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
            Extension::LongName => self.pending.name = Some(c_string(content).to_vec()),
            Extension::LongLink => self.pending.link = Some(c_string(content).to_vec()),
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
                    Extension::Global => self.global = records,
                    _ => self.pending.records = records,
                }
            }
        }
        Ok(())
    }

    /// The header of a member itself. `None`: it makes nothing, or its map comes first.
    fn member(&mut self, header: &Header, flag: u8) -> Result<Option<Member>, ScanError> {
        let Pending { header: first, name, link, records } = std::mem::take(&mut self.pending);
        let offset = first.unwrap_or(self.pos);
        self.members = self.members.saturating_add(1);
        self.limit(offset, "entries", self.members, self.limits.entries)?;

        let sparse = records.sparse;
        let sparse_name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let path = sparse_name
            .or_else(|| records.path.or_else(|| self.global.path.clone()).flatten())
            .or(name)
            .unwrap_or_else(|| header_name(header));
        self.check_name(offset, &path)?;
        let link = (records.linkpath.or_else(|| self.global.linkpath.clone()).flatten())
            .or(link)
            .unwrap_or_else(|| c_string(&header.as_ustar().linkname).to_vec());
        self.limit(offset, "name_bytes", link.len() as u64, self.limits.name_bytes)?;

        // GNU tar takes no data behind these, whatever their size says (tried with 1.34); a directory's is a quota.
        let has_data = !matches!(flag, b'1'..=b'6');
        let size = match records.size.or(self.global.size).flatten() {
            _ if !has_data => 0,
            Some(size) if size > i64::MAX as u64 => {
                return Err(ScanError::Number { offset, field: "size" });
            }
            Some(size) => size,
            None => self.size(header)?,
        };
        let start = self.pos.saturating_add(BLOCK);
        let next = start.saturating_add(padded(size));
        self.must_hold(offset, &path, next)?;

        let kind = match flag {
            b'1' => MemberKind::HardLink,
            b'2' => MemberKind::Entry(Kind::Symlink),
            b'3' => MemberKind::Entry(Kind::CharDevice),
            b'4' => MemberKind::Entry(Kind::BlockDevice),
            b'5' | b'D' => MemberKind::Entry(Kind::Directory),
            b'6' => MemberKind::Entry(Kind::Fifo),
            b'M' => {
                return Err(ScanError::MultiVolume { offset, member: shown(&path) });
            }
            b'V' => {
                self.pos = next;
                return Ok(None);
            }
            // As BSD's tar wrote directories before there was a flag for them.
            _ if path.ends_with(b"/") => MemberKind::Entry(Kind::Directory),
            _ => MemberKind::Entry(Kind::File),
        };
        let is_file = kind == MemberKind::Entry(Kind::File);
        let ustar = header.as_ustar();
        let mtime = records.mtime.or(self.global.mtime).flatten();
        let mut xattrs = self.global.xattrs.clone();
        xattrs.retain(|(name, _)| !records.xattrs.iter().any(|(local, _)| local == name));
        xattrs.extend(records.xattrs);
        let member = Member {
            header: offset,
            next,
            path,
            kind,
            mode: number::parse(&ustar.mode).map_or(0o7777, |mode| (mode & 0o7777) as u16),
            uid: records.uid.or(self.global.uid).flatten().unwrap_or_else(|| number::id(number::parse(&ustar.uid))),
            gid: records.gid.or(self.global.gid).flatten().unwrap_or_else(|| number::id(number::parse(&ustar.gid))),
            mtime: mtime.unwrap_or_else(|| header_mtime(header)),
            size: if is_file { size } else { 0 },
            data: if is_file { start..start.saturating_add(size) } else { start..start },
            sparse: None,
            link: if matches!(flag, b'1' | b'2') { link } else { Vec::new() },
            rdev: if matches!(flag, b'3' | b'4') { rdev(header) } else { 0 },
            xattrs,
        };
        self.pos = start;
        if !is_file {
            self.pos = next;
            return Ok(Some(member));
        }
        if let Some(sparse) = sparse {
            let real_size = sparse.real_size;
            return match (sparse.major, sparse.minor) {
                (0, _) => self.pax_sparse(member, sparse.map, real_size).map(Some),
                (1, 0) => {
                    let size = real_size.unwrap_or(member.size);
                    self.sparse_draft(member, size).map(|draft| {
                        self.state = State::TextMap(Box::new((draft, TextMap::default())));
                        None
                    })
                }
                _ => Err(ScanError::Sparse { offset, what: "a map of an unknown version" }),
            };
        }
        if flag == b'S'
            && let Some((descriptors, more, real_size)) = header_map(header)
        {
            return self.header_sparse(member, descriptors, more, real_size);
        }
        self.pos = next;
        Ok(Some(member))
    }
}

/// Sparse members: from their header to the end of their map.
impl Scanner {
    /// Formats 0.0 and 0.1. Without any piece the data is the file's start.
    fn pax_sparse(&mut self, mut member: Member, mut map: Map, real_size: Option<u64>) -> Result<Member, ScanError> {
        let stored = member.size;
        let size = real_size.unwrap_or(stored);
        if map.is_empty() {
            let _ = map.push(0, stored.min(size), u64::MAX);
        }
        member.size = size;
        self.placed(Draft { member, stored }, &map)
    }

    fn header_sparse(
        &mut self,
        member: Member,
        descriptors: &[u8],
        more: bool,
        real_size: &[u8],
    ) -> Result<Option<Member>, ScanError> {
        let offset = member.header;
        let size = number::parse(real_size).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or(ScanError::Number { offset, field: "real size" })?;
        let draft = self.sparse_draft(member, size)?;
        let mut map = Map::default();
        let ended = sparse::descriptors(&mut map, descriptors, self.limits.sparse_extents);
        if self.map_ok(offset, ended)? || !more {
            return self.placed(draft, &map).map(Some);
        }
        self.state = State::Descriptors(Box::new((draft, map)));
        Ok(None)
    }

    fn sparse_draft(&self, mut member: Member, size: u64) -> Result<Draft, ScanError> {
        if size > i64::MAX as u64 {
            return Err(ScanError::Number { offset: member.header, field: "real size" });
        }
        let stored = member.size;
        member.size = size;
        Ok(Draft { member, stored })
    }

    /// The extension blocks lie between header and data, and the header's size does not count them.
    fn descriptors(&mut self, draft: (Draft, Map), window: &[u8]) -> Result<Option<Member>, ScanError> {
        let (mut draft, mut map) = draft;
        let offset = draft.member.header;
        let end = self.pos.saturating_add(BLOCK);
        let Ok(block) = window.try_into() else {
            return Err(self.truncated(offset, &draft.member.path, end));
        };
        let ended = sparse::extension(&mut map, block, self.limits.sparse_extents);
        let ended = self.map_ok(offset, ended)?;
        self.pos = end;
        draft.member.data = end..end.saturating_add(draft.stored);
        draft.member.next = end.saturating_add(padded(draft.stored));
        self.must_hold(offset, &draft.member.path, draft.member.next)?;
        if ended {
            return self.placed(draft, &map).map(Some);
        }
        self.state = State::Descriptors(Box::new((draft, map)));
        Ok(None)
    }

    /// The blocks of the map are the first of the data, and the size counts them.
    fn text_map(&mut self, draft: (Draft, TextMap), window: &[u8]) -> Result<Option<Member>, ScanError> {
        let (mut draft, mut text) = draft;
        let offset = draft.member.header;
        let Some(stored) = draft.stored.checked_sub(BLOCK) else {
            return Err(ScanError::Sparse { offset, what: "a map that does not end" });
        };
        let ended = text.block(window, self.limits.sparse_extents);
        let ended = self.map_ok(offset, ended)?;
        self.pos = self.pos.saturating_add(BLOCK);
        draft.stored = stored;
        draft.member.data.start = self.pos;
        if ended {
            return self.placed(draft, &text.map).map(Some);
        }
        self.state = State::TextMap(Box::new((draft, text)));
        Ok(None)
    }

    fn placed(&mut self, draft: Draft, map: &Map) -> Result<Member, ScanError> {
        let Draft { mut member, stored } = draft;
        let extents = map.place(member.size, member.data.start, stored);
        member.sparse = Some(extents.map_err(|what| ScanError::Sparse { offset: member.header, what })?);
        self.pos = member.next;
        Ok(member)
    }

    fn map_ok(&self, offset: u64, ended: Result<bool, MapError>) -> Result<bool, ScanError> {
        ended.map_err(|error| match error {
            MapError::Bad(what) => ScanError::Sparse { offset, what },
            MapError::TooLong => ScanError::Limit { offset, limit: "sparse_extents", max: self.limits.sparse_extents },
        })
    }
}

/// What a header may claim.
impl Scanner {
    fn size(&self, header: &Header) -> Result<u64, ScanError> {
        let size = number::parse(&header.as_ustar().size);
        let size = size.and_then(|size| i64::try_from(size).ok()).and_then(|size| u64::try_from(size).ok());
        size.ok_or(ScanError::Number { offset: self.pos, field: "size" })
    }

    fn check_name(&self, offset: u64, path: &[u8]) -> Result<(), ScanError> {
        self.limit(offset, "name_bytes", path.len() as u64, self.limits.name_bytes)?;
        let (mut depth, mut longest) = (0u64, 0);
        for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            depth = depth.saturating_add(1);
            longest = part.len().max(longest);
        }
        self.limit(offset, "part_bytes", longest as u64, self.limits.part_bytes)?;
        self.limit(offset, "depth", depth, self.limits.depth)
    }

    fn limit(&self, offset: u64, limit: &'static str, value: u64, max: u64) -> Result<(), ScanError> {
        if value > max {
            return Err(ScanError::Limit { offset, limit, max });
        }
        Ok(())
    }

    fn must_hold(&self, offset: u64, member: &[u8], end: u64) -> Result<(), ScanError> {
        if end > self.blob_size {
            return Err(self.truncated(offset, member, end));
        }
        Ok(())
    }

    fn truncated(&self, offset: u64, member: &[u8], end: u64) -> ScanError {
        ScanError::Truncated { offset, member: shown(member), end, blob_size: self.blob_size }
    }
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

fn c_string(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn shown(name: &[u8]) -> String {
    crate::error::printable(&String::from_utf8_lossy(name))
}

/// The sum of all bytes with the checksum's own as blanks; old writers summed signed bytes. tar-core knows unsigned ones only.
fn checksum_holds(block: &[u8; BLOCK as usize]) -> bool {
    let field = &Header::from_bytes(block).as_ustar().cksum;
    let Some(expected) = number::octal(field) else {
        return false;
    };
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
    let high = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte >> 7)));
    let blanks = 8u32.wrapping_mul(u32::from(b' '));
    let unsigned = sum(block).wrapping_sub(sum(field)).wrapping_add(blanks);
    if i128::from(unsigned) == expected {
        return true;
    }
    let negative = high(block).wrapping_sub(high(field)).wrapping_mul(256);
    i128::from(unsigned.wrapping_sub(negative).cast_signed()) == expected
}

/// GNU tar looks for `ustar\0` alone (src/list.c, `read_header`), tar-core for the version `00`, too.
fn has_prefix(header: &Header) -> bool {
    header.as_ustar().magic == *USTAR_MAGIC
}

fn header_name(header: &Header) -> Vec<u8> {
    let ustar = header.as_ustar();
    let (name, prefix) = (c_string(&ustar.name), c_string(&ustar.prefix));
    match has_prefix(header) && !prefix.is_empty() {
        true => [prefix, b"/", name].concat(),
        false => name.to_vec(),
    }
}

fn header_mtime(header: &Header) -> Mtime {
    let secs = number::parse(&header.as_ustar().mtime).and_then(|secs| i64::try_from(secs).ok());
    Mtime { secs: secs.unwrap_or(0), nanos: 0 }
}

/// Major and minor number as one; a v7 header has none.
fn rdev(header: &Header) -> u32 {
    let ustar = header.as_ustar();
    if ustar.magic != *USTAR_MAGIC && ustar.magic != *GNU_MAGIC {
        return 0;
    }
    let number = |field| number::parse(field).and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
    let (major, minor) = (number(&ustar.dev_major), number(&ustar.dev_minor));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)
}

/// Descriptors, whether blocks with more follow, and the file's size: of a GNU header, or of a star header
/// (GNU tar, src/tar.h, `struct oldgnu_header` and `struct star_in_header`). A flag `S` in any other is a plain file.
fn header_map(header: &Header) -> Option<(&[u8], bool, &[u8])> {
    let block = header.as_bytes();
    let gnu = header.as_gnu();
    if gnu.magic == *GNU_MAGIC && gnu.version == *GNU_VERSION {
        return Some((block.get(386..482)?, gnu.isextended != [0], &gnu.realsize));
    }
    if !has_prefix(header) {
        return None;
    }
    let time =
        |field: &[u8]| field.first().is_some_and(|byte| (b'0'..=b'7').contains(byte)) && field.last() == Some(&b' ');
    let is_star = block.get(475) == Some(&0) && time(block.get(476..488)?) && time(block.get(488..500)?);
    is_star.then_some((block.get(356..452)?, block.get(355) != Some(&0), block.get(452..464)?))
}
