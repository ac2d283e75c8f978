//! Records of PAX extension headers (POSIX.1-2017, pax, "pax Extended Header"). tar-core's iterator ends silently at a
//! record whose length is damaged, so that names would be lost; here it is an error.

use super::limits::Limits;
use super::member::Mtime;
use super::number;
use super::sparse::{Map, MapError};

/// `None`: no such record. `Some(None)`: a record without a value, which takes back a global one.
type Field<T> = Option<Option<T>>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    pub path: Field<Vec<u8>>,
    pub linkpath: Field<Vec<u8>>,
    pub size: Field<u64>,
    pub uid: Field<u32>,
    pub gid: Field<u32>,
    pub mtime: Field<Mtime>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Option<Box<SparseRecords>>,
    pub volume_piece: bool,
}

/// `GNU.sparse.*` of the formats 0.0, 0.1 and 1.0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SparseRecords {
    pub major: u64,
    pub minor: u64,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub map: Map,
    offset: Option<u64>,
}

pub enum RecordError {
    Bad(&'static str),
    Sparse(&'static str),
    Limit(&'static str, u64),
}

impl Records {
    pub fn parse(mut data: &[u8], limits: &Limits) -> Result<Self, RecordError> {
        let mut records = Self::default();
        while let Some((key, value, rest)) = record(data)? {
            records.take(key, value, limits)?;
            data = rest;
        }
        let xattr_bytes: usize = records
            .xattrs
            .iter()
            .fold(0, |sum, (name, value)| sum.saturating_add(name.len()).saturating_add(value.len()));
        if xattr_bytes as u64 > limits.xattr_bytes {
            return Err(RecordError::Limit("xattr_bytes", limits.xattr_bytes));
        }
        Ok(records)
    }

    /// An owner or time that is none leaves what the header says, as GNU tar does: Python's tarfile writes
    /// `mtime=1e-05`.
    fn take(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), RecordError> {
        match key {
            b"path" => self.path = Some(text(value)),
            b"linkpath" => self.linkpath = Some(text(value)),
            b"size" if value.is_empty() => self.size = Some(None),
            b"size" => self.size = Some(Some(decimal(value).ok_or(RecordError::Bad("a size that is no number"))?)),
            b"uid" => replace(&mut self.uid, value, id),
            b"gid" => replace(&mut self.gid, value, id),
            b"mtime" => replace(&mut self.mtime, value, time),
            b"GNU.volume.offset" => self.volume_piece = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name, value);
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().take(name, value, limits)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) {
        let name = unescaped(name);
        match self.xattrs.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value.to_vec(),
            None => self.xattrs.push((name, value.to_vec())),
        }
    }
}

impl SparseRecords {
    fn take(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> Result<(), RecordError> {
        let number = |value| decimal(value).ok_or(RecordError::Sparse("a map with a damaged number"));
        let max = limits.sparse_extents;
        match name {
            b"major" => self.major = number(value)?,
            b"minor" => self.minor = number(value)?,
            b"name" => self.name = text(value),
            b"size" | b"realsize" => self.real_size = Some(number(value)?),
            b"offset" => self.offset = Some(number(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or(RecordError::Sparse("a length without an offset in its map"))?;
                self.map.push(offset, number(value)?, max).map_err(|error| error.of(max))?;
            }
            b"map" => {
                self.map = Map::default();
                let mut numbers = value.split(|&byte| byte == b',');
                while let Some(offset) = numbers.next().filter(|offset| !offset.is_empty()) {
                    let length = numbers.next().ok_or(RecordError::Sparse("an offset without a length in its map"))?;
                    self.map.push(number(offset)?, number(length)?, max).map_err(|error| error.of(max))?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl MapError {
    fn of(self, max: u64) -> RecordError {
        match self {
            Self::Bad(what) => RecordError::Sparse(what),
            Self::TooLong => RecordError::Limit("sparse_extents", max),
        }
    }
}

/// Key, value, and the bytes behind the record.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The first record `length key=value\n`, blanks allowed before and behind the length, and what follows it.
/// The end or a NUL ends the records, as in GNU tar (src/xheader.c, `decode_record`).
fn record(data: &[u8]) -> Result<Option<Record<'_>>, RecordError> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let digits_at = data.iter().take_while(|byte| is_blank(byte)).count();
    let start = data.get(digits_at..).unwrap_or_default();
    match start.first() {
        None | Some(0) => return Ok(None),
        Some(b'0'..=b'9') => {}
        Some(_) => return Err(RecordError::Bad("a record without a length")),
    }
    let digits = start.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let length = start.get(..digits).and_then(decimal).and_then(|length| usize::try_from(length).ok());
    let (whole, rest) = length
        .and_then(|length| data.split_at_checked(length))
        .ok_or(RecordError::Bad("a record longer than the header"))?;
    let body = digits_at
        .checked_add(digits)
        .and_then(|at| whole.get(at..))
        .and_then(|body| body.strip_suffix(b"\n"))
        .ok_or(RecordError::Bad("a record without its newline"))?;
    let key_at = body.iter().take_while(|byte| is_blank(byte)).count();
    let body = body.get(key_at..).filter(|_| key_at > 0).ok_or(RecordError::Bad("a record without a blank"))?;
    let equals = body.iter().position(|&byte| byte == b'=').ok_or(RecordError::Bad("a record without '='"))?;
    let (key, value) = body.split_at(equals);
    Ok(Some((key, value.get(1..).unwrap_or_default(), rest)))
}

fn replace<T>(field: &mut Field<T>, value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) {
    if value.is_empty() {
        *field = Some(None);
    } else if let Some(value) = parse(value) {
        *field = Some(Some(value));
    }
}

/// Ended by a NUL, as C reads it; nothing left is no value.
fn text(value: &[u8]) -> Option<Vec<u8>> {
    let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
    (!text.is_empty()).then(|| text.to_vec())
}

/// `%3D` is `=` and `%25` is `%` in a name (GNU tar, src/xheader.c, `xattr_decode_keyword`).
fn unescaped(mut name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    loop {
        (name, plain) = match name {
            [b'%', b'3', b'D', rest @ ..] => (rest, push(plain, b'=')),
            [b'%', b'2', b'5', rest @ ..] => (rest, push(plain, b'%')),
            [byte, rest @ ..] => (rest, push(plain, *byte)),
            [] => return plain,
        }
    }
}

fn push(mut bytes: Vec<u8>, byte: u8) -> Vec<u8> {
    bytes.push(byte);
    bytes
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| all_digits)?.parse().ok()
}

fn id(value: &[u8]) -> Option<u32> {
    let value: i128 = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some(number::id(Some(value)))
}

/// `[-]seconds[.fraction]`, rounded down to nanoseconds.
fn time(value: &[u8]) -> Option<Mtime> {
    let text = std::str::from_utf8(value).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = nanos.fold(0u32, |nanos, digit| nanos.saturating_mul(10).saturating_add(u32::from(digit & 15)));
    if !negative {
        return Some(Mtime { secs, nanos });
    }
    let cut_off = fraction.bytes().skip(9).any(|digit| digit != b'0');
    let below = nanos.saturating_add(u32::from(cut_off));
    let secs = secs.checked_neg()?;
    Some(match below {
        0 => Mtime { secs, nanos: 0 },
        _ => Mtime { secs: secs.checked_sub(1)?, nanos: 1_000_000_000u32.checked_sub(below)? },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[u8]) -> Result<Records, &'static str> {
        Records::parse(data, &Limits::default()).map_err(|error| match error {
            RecordError::Bad(what) | RecordError::Sparse(what) | RecordError::Limit(what, _) => what,
        })
    }

    #[test]
    fn times_are_rounded_down() {
        let at = |text: &str| time(text.as_bytes()).map(|time| (time.secs, time.nanos));
        assert_eq!(at("1350244992.023960108"), Some((1350244992, 23960108)));
        assert_eq!(at("5"), Some((5, 0)));
        assert_eq!(at("5."), Some((5, 0)));
        assert_eq!(at("0.5"), Some((0, 500_000_000)));
        assert_eq!(at("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(at("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(at("-1.0000000001"), Some((-2, 999_999_999)));
        assert_eq!(at("1.9999999999"), Some((1, 999_999_999)));
        for bad in ["", "-", ".5", "1e-05", "nan", "99999999999999999999", "1.x"] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn values_hold_any_byte_and_a_damaged_record_is_an_error() {
        let records = parse(b"13 path=a=\xff\n\n22 SCHILY.xattr.u=\0\n\n\n28 SCHILY.xattr.a%3D%25%b=1\n").unwrap();
        assert_eq!(records.path, Some(Some(b"a=\xff\n".to_vec())));
        assert_eq!(records.xattrs[0], (b"u".to_vec(), b"\0\n\n".to_vec()));
        assert_eq!(records.xattrs[1], (b"a=%%b".to_vec(), b"1".to_vec()));
        assert_eq!(parse(b"\0\0\0").unwrap(), Records::default());
        assert_eq!(parse(b"8 path=\n").unwrap().path, Some(None));
        for (data, what) in [
            (&b"hello\n"[..], "a record without a length"),
            (b"99 path=a\n", "a record longer than the header"),
            (b"99999999999999999999999 path=a\n", "a record longer than the header"),
            (b"10 path=abc\n", "a record without its newline"),
            (b"1 path=a\n", "a record without its newline"),
            (b"7path=a\n", "a record without its newline"),
            (b"8path=a\n", "a record without a blank"),
            (b"7 path\n", "a record without '='"),
            (b"8 pathh\n", "a record without '='"),
            (b"9 size=x\n", "a size that is no number"),
            (b"11 size=-1\n", "a size that is no number"),
        ] {
            assert_eq!(parse(data), Err(what), "{}", String::from_utf8_lossy(data));
        }
    }
}
