//! The directory of a ZIP archive (APPNOTE.TXT 6.3.10): bytes in, members out. Local headers are not read here.

use std::ops::Range;

use self::end::{END64, End};
use self::record::Record;
use super::build::LayerIndexBuilder;
use super::error::ScanError;
use super::header::c_string;
use super::layer::LayerIndex;
use super::limits::Limits;
use super::member::{Kind, Member, MemberKind};
use crate::error::{Error, ErrorKind};

mod cp437;
mod end;
mod record;

/// End record and the longest comment.
const TAIL: u64 = 22 + 65_535;
/// More than the longest record: 46 bytes and three fields of 65,535.
const WINDOW: u64 = 256 << 10;
/// Contents start at multiples of it, so that no two share a chunk.
const ALIGN: u64 = 64 << 10;
/// DEFLATE makes at most 1032 bytes of one.
const EXPANSION: u64 = 1032;

/// What is known of a member's bytes. Its content has a place in a space of its own: see [`ZipIndex`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZipMember {
    /// Where its content starts in the index's extents.
    pub place: u64,
    /// Bytes of content, and of the blob.
    pub size: u64,
    pub packed: u64,
    /// Byte of the blob where its local header starts.
    pub header: u64,
    pub crc: u32,
    pub method: Method,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Stored,
    Deflated,
    /// It can be listed only, for this reason.
    Unreadable(&'static str),
}

/// The tree, and what its extents point at: files have places behind the blob's end, one behind the other.
#[derive(Debug)]
pub struct ZipIndex {
    pub index: LayerIndex,
    /// In the order of their places.
    pub members: Vec<ZipMember>,
    /// End of the last place.
    pub end: u64,
}

#[derive(Debug)]
pub enum ZipStep {
    /// Call again with these bytes of the blob, all of them.
    Need(Range<u64>),
    /// A symbolic link: its target is the content of this member. Answer with [`ZipScanner::link`].
    Link(ZipMember),
    End(Box<ZipIndex>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZipError {
    #[error("not a ZIP archive, or a truncated one: there is no end record")]
    NoEnd,
    #[error("a part of a ZIP archive in several parts")]
    Parts,
    #[error("damaged ZIP archive: {0}")]
    Damaged(&'static str),
    #[error("the ZIP archive reaches the limit {limit} of {max}")]
    Limit { limit: &'static str, max: u64 },
    #[error(transparent)]
    Tree(#[from] ScanError),
}

impl ZipError {
    pub fn on(self, object: impl std::fmt::Display) -> Error {
        let kind = match self {
            Self::Tree(error) => return error.on(object),
            Self::Limit { .. } => ErrorKind::Limit,
            Self::Parts => ErrorKind::Unsupported,
            Self::NoEnd | Self::Damaged(_) => ErrorKind::Corrupt,
        };
        Error::new(kind, object, self)
    }
}

/// Reads the central directory. An error is final.
pub struct ZipScanner {
    blob_size: u64,
    limits: Limits,
    state: State,
    builder: LayerIndexBuilder,
    members: Vec<ZipMember>,
    end: u64,
    /// A link that waits for its target.
    pending: Option<Box<(Member, ZipMember)>>,
}

#[derive(Debug, Clone)]
enum State {
    Tail,
    /// The ZIP64 end record at this byte, or else at that one; or else there is none but this.
    End64(u64, u64, End),
    /// What is left of the directory, and how far offsets are off: bytes stand before the archive.
    Directory {
        left: Range<u64>,
        before: u64,
        start: u64,
    },
}

impl ZipScanner {
    pub fn new(blob_size: u64, limits: Limits) -> Self {
        let end = blob_size.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX);
        let builder = LayerIndexBuilder::new(limits);
        Self { blob_size, limits, state: State::Tail, builder, members: Vec::new(), end, pending: None }
    }

    /// `at`: the blob's byte that `bytes` starts with.
    pub fn step(&mut self, at: u64, bytes: &[u8]) -> Result<ZipStep, ZipError> {
        loop {
            let needed = match &self.state {
                State::Tail => self.blob_size.saturating_sub(TAIL)..self.blob_size,
                State::End64(at, ..) => *at..at.saturating_add(56).min(self.blob_size),
                State::Directory { left, .. } if left.is_empty() => {
                    return Ok(ZipStep::End(Box::new(self.finish())));
                }
                State::Directory { left, .. } => left.start..left.end.min(left.start.saturating_add(WINDOW)),
            };
            let window = needed.start.checked_sub(at).and_then(|skip| bytes.get(usize::try_from(skip).ok()?..));
            let length = usize::try_from(needed.end.saturating_sub(needed.start)).unwrap_or(usize::MAX);
            let whole = window.and_then(|window| window.get(..length));
            match (&self.state, whole, window) {
                (State::Tail, Some(tail), _) => self.tail(needed.start, tail)?,
                (&State::End64(at, other, end), Some(record), _) => match record.starts_with(END64) {
                    true => self.directory(&End::of_zip64(at, record)?)?,
                    false if at != other => self.state = State::End64(other, other, end),
                    // What looks like its locator is a part of the last member's record.
                    false => self.directory(&end)?,
                },
                (State::Directory { .. }, whole, window) => {
                    // Anything that holds a whole record will do, for one window serves many of them.
                    let read = match whole.or(window) {
                        Some(window) => self.record(window, whole.is_some())?,
                        None => Read::Nothing,
                    };
                    match read {
                        Read::Member => {}
                        Read::Link(member) => return Ok(ZipStep::Link(member)),
                        Read::Nothing => return Ok(ZipStep::Need(needed)),
                    }
                }
                (_, None, _) => return Ok(ZipStep::Need(needed)),
            }
        }
    }

    /// The target of the link that [`ZipStep::Link`] asked for. `None`: it is damaged, and shown as a file that cannot
    /// be read.
    pub fn link(&mut self, target: Option<&[u8]>) -> Result<(), ZipError> {
        let Some((made, member)) = self.pending.take().map(|pending| *pending) else { return Ok(()) };
        let made = match target {
            Some(target) => Member { link: c_string(target).to_vec(), ..made },
            None => {
                let method = Method::Unreadable("the symbolic link is damaged");
                let (kind, size) = (MemberKind::Entry(Kind::File), member.size);
                Member { kind, size, data: self.put(ZipMember { method, ..member })?, ..made }
            }
        };
        Ok(self.builder.push(made)?)
    }

    /// Gives a file the next place.
    fn put(&mut self, member: ZipMember) -> Result<Range<u64>, ZipError> {
        let place = member.place..member.place.saturating_add(member.size);
        // Also an empty one has a place of its own: nobody else is found there.
        let past = place.start.checked_add(member.size.max(1)).and_then(|end| end.checked_next_multiple_of(ALIGN));
        self.end = past
            .filter(|end| i64::try_from(*end).is_ok())
            .ok_or(ZipError::Damaged("its members are longer than any file"))?;
        self.members.push(member);
        self.within_memory()?;
        Ok(place)
    }

    fn tail(&mut self, start: u64, tail: &[u8]) -> Result<(), ZipError> {
        let (end, located) = End::find(start, tail)?;
        let Some(located) = located else { return self.directory(&end) };
        // Right before its locator, unless it is a longer one: what the locator says is wrong where an archive got
        // something in front.
        let before = end.at.saturating_sub(20 + 56);
        self.state = State::End64(before, located.min(before), end);
        Ok(())
    }

    fn directory(&mut self, end: &End) -> Result<(), ZipError> {
        if end.is_part {
            return Err(ZipError::Parts);
        }
        let start =
            end.at.checked_sub(end.size).ok_or(ZipError::Damaged("its directory is longer than the archive"))?;
        let before = start.checked_sub(end.offset).ok_or(ZipError::Damaged("its directory lies outside"))?;
        self.state = State::Directory { left: start..end.at, before, start };
        Ok(())
    }

    fn record(&mut self, window: &[u8], is_all: bool) -> Result<Read, ZipError> {
        let State::Directory { left, before, start } = &mut self.state else { return Ok(Read::Nothing) };
        let (record, length) = match Record::parse(window)? {
            Some(found) => found,
            None if is_all => return Err(ZipError::Damaged("its directory is cut off")),
            None => return Ok(Read::Nothing),
        };
        left.start = left.start.saturating_add(length);
        if left.start > left.end {
            return Err(ZipError::Damaged("its directory is cut off"));
        }
        let header = record.header.saturating_add(*before);
        let room = start.checked_sub(header).and_then(|room| room.checked_sub(30));
        let method = match record.unreadable() {
            Some(reason) => Method::Unreadable(reason),
            None if room.is_none_or(|room| room < record.packed) => {
                Method::Unreadable("the member lies outside of the archive")
            }
            None if record.method == 8 && record.size / EXPANSION > record.packed => {
                Method::Unreadable("the member cannot be as long as the directory says")
            }
            None if record.method == 8 && record.packed > record.size.saturating_mul(2).saturating_add(ALIGN) => {
                Method::Unreadable("the member takes more bytes than DEFLATE makes of that many")
            }
            None if record.method == 0 && record.size != record.packed => {
                Method::Unreadable("the directory gives the stored member two lengths")
            }
            None if record.method == 0 => Method::Stored,
            None => Method::Deflated,
        };
        let readable = !matches!(method, Method::Unreadable(_)) && record.size <= self.limits.name_bytes;
        let kind = match record.kind() {
            // What nobody can follow is shown as what it is in the archive.
            Kind::Symlink if !readable => Kind::File,
            kind => kind,
        };
        let place = self.end;
        let member = ZipMember { place, size: record.size, packed: record.packed, header, crc: record.crc, method };
        let data = if kind == Kind::File { self.put(member.clone())? } else { place..place };
        let made = Member {
            header,
            next: 0,
            path: record.path(),
            kind: MemberKind::Entry(kind),
            mode: record.mode(),
            uid: record.uid,
            gid: record.gid,
            mtime: record.mtime(),
            size: data.end.saturating_sub(data.start),
            data,
            sparse: None,
            link: Vec::new(),
            rdev: 0,
            xattrs: Vec::new(),
        };
        if kind == Kind::Symlink {
            self.pending = Some(Box::new((made, member.clone())));
            return Ok(Read::Link(member));
        }
        self.builder.push(made)?;
        Ok(Read::Member)
    }

    fn within_memory(&self) -> Result<(), ZipError> {
        let own = (self.members.capacity() as u64).saturating_mul(size_of::<ZipMember>() as u64);
        if own.saturating_add(self.builder.memory()) > self.limits.index_bytes {
            return Err(ZipError::Limit { limit: "index_bytes", max: self.limits.index_bytes });
        }
        Ok(())
    }

    fn finish(&mut self) -> ZipIndex {
        let mut members = std::mem::take(&mut self.members);
        // Members that share bytes are how a small archive becomes a huge one.
        members.sort_by_key(|member| member.header);
        let mut end = 0;
        let mut overlapping = None;
        for at in 0..members.len() {
            let Some(member) = members.get_mut(at) else { break };
            let own_end = member.header.saturating_add(30).saturating_add(member.packed);
            if member.header < end {
                member.method = Method::Unreadable("the member shares bytes with another one");
                overlapping = overlapping.or(Some(at));
            }
            end = end.max(own_end);
        }
        if overlapping.is_some() {
            mark_those_before(&mut members);
        }
        members.sort_by_key(|member| member.place);
        let builder = std::mem::replace(&mut self.builder, LayerIndexBuilder::new(self.limits));
        ZipIndex { index: builder.finish(), members, end: self.end }
    }
}

enum Read {
    Member,
    Link(ZipMember),
    /// The window holds no whole record.
    Nothing,
}

/// The first of two that overlap is as suspicious as the second. By header, from the last one on.
fn mark_those_before(members: &mut [ZipMember]) {
    let mut next_start = u64::MAX;
    for member in members.iter_mut().rev() {
        if member.header.saturating_add(30).saturating_add(member.packed) > next_start {
            member.method = Method::Unreadable("the member shares bytes with another one");
        }
        next_start = next_start.min(member.header);
    }
}

fn field16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

fn field32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn field64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

/// Where a member's bytes start, from the 30 bytes of its local header.
pub fn data_start(header: u64, local: &[u8]) -> Result<u64, ZipError> {
    let lengths = field16(local, 26).zip(field16(local, 28)).filter(|_| local.starts_with(b"PK\x03\x04"));
    let (name, extra) = lengths.ok_or(ZipError::Damaged("a member has no local header where it should be"))?;
    let fields = u64::from(name).saturating_add(u64::from(extra));
    Ok(header.saturating_add(30).saturating_add(fields))
}

#[cfg(test)]
mod tests;
