//! The records at the end of an archive, which say where its directory is.

use super::{ZipError, field16, field32, field64};

const END: &[u8] = b"PK\x05\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";
pub(super) const END64: &[u8] = b"PK\x06\x06";

/// What an end record says.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// Where the end record starts: the directory lies before it.
    pub at: u64,
    pub size: u64,
    pub offset: u64,
    /// Others come before.
    pub is_part: bool,
}

impl End {
    /// In the last bytes of the blob, from `start` on; and where a ZIP64 end record is by its locator, if there is one.
    pub fn find(start: u64, tail: &[u8]) -> Result<(Self, Option<u64>), ZipError> {
        // A comment may hold what looks like an end record: the one whose comment ends with the blob is it.
        // Else it is the last, also where its comment is cut off.
        let comment_end = |at: &usize| {
            let comment = field16(tail, at.saturating_add(20)).map(usize::from)?;
            Some(at.saturating_add(22).saturating_add(comment))
        };
        let records = || (0..tail.len()).rev().filter(|&at| tail.get(at..).is_some_and(|rest| rest.starts_with(END)));
        let exact = records().find(|at| comment_end(at) == Some(tail.len()));
        let found = exact.or_else(|| records().find(|at| comment_end(at).is_some()));
        let at = found.ok_or(ZipError::NoEnd)?;
        let record = tail.get(at..).unwrap_or_default();
        let (size, offset) = (field32(record, 12), field32(record, 16));
        let (Some(size), Some(offset)) = (size, offset) else { return Err(ZipError::NoEnd) };
        let end = Self {
            at: start.saturating_add(at as u64),
            size: u64::from(size),
            offset: u64::from(offset),
            is_part: field16(record, 4) != Some(0) || field16(record, 6) != Some(0),
        };
        let locator = at.checked_sub(20).and_then(|at| tail.get(at..)).filter(|rest| rest.starts_with(LOCATOR64));
        Ok((end, locator.and_then(|locator| field64(locator, 8))))
    }

    pub fn of_zip64(at: u64, record: &[u8]) -> Result<Self, ZipError> {
        const CUT: ZipError = ZipError::Damaged("its ZIP64 end record is cut off");
        let (size, offset) = (field64(record, 40).ok_or(CUT)?, field64(record, 48).ok_or(CUT)?);
        let is_part = field32(record, 16) != Some(0) || field32(record, 20) != Some(0);
        Ok(Self { at, size, offset, is_part })
    }
}
