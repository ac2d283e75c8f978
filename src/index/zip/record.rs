//! One record of the central directory.

use super::super::header::c_string;
use super::super::member::{Kind, Mtime};
use super::{ZipError, cp437, field16, field32, field64};

const SIGNATURE: &[u8] = b"PK\x01\x02";
const FIXED: usize = 46;
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
const UTF8: u16 = 1 << 11;
/// Hosts whose external attributes hold a mode: Unix and OS X (APPNOTE, 4.4.2).
const UNIX: [u8; 2] = [3, 19];
const S_IFMT: u32 = 0o170_000;

pub(super) struct Record<'a> {
    host: u8,
    flags: u16,
    pub method: u16,
    dos_time: u16,
    dos_date: u16,
    pub crc: u32,
    pub packed: u64,
    pub size: u64,
    pub header: u64,
    external: u32,
    name: &'a [u8],
    unicode_name: Option<&'a [u8]>,
    unix_time: Option<i32>,
    pub uid: u32,
    pub gid: u32,
}

impl<'a> Record<'a> {
    /// The record at the start, and its length. `None`: it is longer than that.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<(Self, u64)>, ZipError> {
        let Some(fixed) = bytes.get(..FIXED) else { return Ok(None) };
        if !fixed.starts_with(SIGNATURE) {
            return Err(ZipError::Damaged("its directory holds what is no record"));
        }
        let short = |at| field16(fixed, at).unwrap_or_default();
        let long = |at| field32(fixed, at).unwrap_or_default();
        let (name, extra, comment) = (usize::from(short(28)), usize::from(short(30)), usize::from(short(32)));
        let name_end = FIXED.saturating_add(name);
        let extra_end = name_end.saturating_add(extra);
        let length = extra_end.saturating_add(comment);
        let fields = bytes.get(FIXED..name_end).zip(bytes.get(name_end..extra_end));
        let Some((name, extra)) = fields.filter(|_| length <= bytes.len()) else { return Ok(None) };
        let mut record = Self {
            host: fixed.get(5).copied().unwrap_or_default(),
            flags: short(8),
            method: short(10),
            dos_time: short(12),
            dos_date: short(14),
            crc: long(16),
            packed: u64::from(long(20)),
            size: u64::from(long(24)),
            header: u64::from(long(42)),
            external: long(38),
            name,
            unicode_name: None,
            unix_time: None,
            uid: 0,
            gid: 0,
        };
        if short(34) != 0 && short(34) != u16::MAX {
            return Err(ZipError::Parts);
        }
        record.extra(extra)?;
        // Ended by a NUL, as in Info-ZIP's `unzip` and Python's zipfile: no filesystem can hold one.
        record.name = c_string(record.name);
        record.unicode_name = record.unicode_name.map(c_string);
        Ok(Some((record, length as u64)))
    }

    fn extra(&mut self, mut extra: &'a [u8]) -> Result<(), ZipError> {
        while let (Some(id), Some(length)) = (field16(extra, 0), field16(extra, 2)) {
            let end = usize::from(length).saturating_add(4);
            // What is cut off is no field; Info-ZIP passes over it, too.
            let Some(field) = extra.get(4..end) else { return Ok(()) };
            extra = extra.get(end..).unwrap_or_default();
            match id {
                0x0001 => self.zip64(field)?,
                0x5455 if field.first().is_some_and(|flags| flags & 1 != 0) => {
                    self.unix_time = field32(field, 1).map(u32::cast_signed);
                }
                // Info-ZIP Unicode path: version, CRC of the other name, name.
                0x7075 if field.first() == Some(&1) && field32(field, 1) == Some(crc32fast::hash(self.name)) => {
                    self.unicode_name = field.get(5..);
                }
                0x7875 if field.first() == Some(&1) => self.owner(field).unwrap_or_default(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Holds, in this order, those that do not fit into their own fields (APPNOTE, 4.5.3).
    fn zip64(&mut self, field: &[u8]) -> Result<(), ZipError> {
        let mut at = 0_usize;
        for value in [&mut self.size, &mut self.packed, &mut self.header] {
            if *value == u64::from(u32::MAX) {
                *value = field64(field, at).ok_or(ZipError::Damaged("a member's ZIP64 field is cut off"))?;
                at = at.saturating_add(8);
            }
        }
        Ok(())
    }

    fn owner(&mut self, field: &[u8]) -> Option<()> {
        let number = |bytes: &[u8]| {
            let all = bytes
                .iter()
                .rev()
                .try_fold(0_u32, |sum, byte| sum.checked_mul(256).map(|sum| sum.saturating_add(u32::from(*byte))));
            all.unwrap_or_default()
        };
        let uid_end = usize::from(*field.get(1)?).saturating_add(2);
        let gid_at = uid_end.saturating_add(1);
        let gid_end = gid_at.saturating_add(usize::from(*field.get(uid_end)?));
        (self.uid, self.gid) = (number(field.get(2..uid_end)?), number(field.get(gid_at..gid_end)?));
        Some(())
    }

    pub fn unreadable(&self) -> Option<&'static str> {
        match self.method {
            _ if self.flags & ENCRYPTED != 0 => Some("the member is encrypted"),
            0 | 8 => None,
            9 => Some("the member is compressed by a method that is not supported (Deflate64)"),
            12 => Some("the member is compressed by a method that is not supported (bzip2)"),
            14 => Some("the member is compressed by a method that is not supported (LZMA)"),
            93 => Some("the member is compressed by a method that is not supported (zstd)"),
            95 => Some("the member is compressed by a method that is not supported (xz)"),
            _ => Some("the member is compressed by a method that is not known"),
        }
    }

    pub fn path(&self) -> Vec<u8> {
        let mut path = match self.unicode_name {
            _ if self.flags & UTF8 != 0 => self.name.to_vec(),
            Some(name) => name.to_vec(),
            None if UNIX.contains(&self.host) => self.name.to_vec(),
            None => cp437::to_utf8(self.name),
        };
        // Some writers for FAT take the separator of their system (Info-ZIP mends it, too), WinZip only in the name in
        // UTF-8.
        if self.host == 0 && !path.contains(&b'/') {
            path.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
        }
        path
    }

    pub fn kind(&self) -> Kind {
        let kind = if UNIX.contains(&self.host) { self.external >> 16 & S_IFMT } else { 0 };
        match kind {
            _ if self.name.ends_with(b"/") || self.path().ends_with(b"/") => Kind::Directory,
            0o040_000 => Kind::Directory,
            0o120_000 => Kind::Symlink,
            // FAT's bit for directories.
            0 if self.external & 0x10 != 0 && self.size == 0 => Kind::Directory,
            _ => Kind::File,
        }
    }

    pub fn mode(&self) -> u16 {
        let mode = (self.external >> 16 & 0o7777) as u16;
        match self.kind() {
            _ if UNIX.contains(&self.host) && mode != 0 => mode,
            Kind::Directory => 0o755,
            _ => 0o644,
        }
    }

    /// Without a time of Unix: FAT's, which is nobody knows where; taken as UTC.
    pub fn mtime(&self) -> Mtime {
        if let Some(secs) = self.unix_time {
            return Mtime { secs: i64::from(secs), nanos: 0 };
        }
        let (date, time) = (i64::from(self.dos_date), i64::from(self.dos_time));
        let (year, month, day) = ((date >> 9).saturating_add(1980), (date >> 5 & 15).clamp(1, 12), (date & 31).max(1));
        // Days since 1970 of a date in the Gregorian calendar, in years that begin in March.
        let (year, month) =
            if month > 2 { (year, month.saturating_sub(3)) } else { (year.saturating_sub(1), month.saturating_add(9)) };
        let days = year
            .saturating_mul(365)
            .saturating_add(year / 4)
            .saturating_sub(year / 100)
            .saturating_add(year / 400)
            .saturating_add(month.saturating_mul(153).saturating_add(2) / 5)
            .saturating_add(day)
            .saturating_sub(719_469);
        let seconds = (time >> 11)
            .saturating_mul(3600)
            .saturating_add((time >> 5 & 63).saturating_mul(60))
            .saturating_add((time & 31).saturating_mul(2));
        Mtime { secs: days.saturating_mul(86_400).saturating_add(seconds), nanos: 0 }
    }
}
