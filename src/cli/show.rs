//! How entries are shown: on a terminal, and to programs.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use crate::mount::Kind;

/// `drwxr-xr-x`, as `ls -l` writes it.
pub fn mode(kind: Kind, mode: u16) -> String {
    let mut text = String::from(match kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Fifo => 'p',
    });
    for (bit, letter) in (0..9).rev().zip("rwxrwxrwx".chars()) {
        text.push(if mode >> bit & 1 == 1 { letter } else { '-' });
    }
    if mode & 0o1000 != 0 {
        let others_enter = text.pop() == Some('x');
        text.push(if others_enter { 't' } else { 'T' });
    }
    text
}

pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::CharDevice => "character-device",
        Kind::BlockDevice => "block-device",
        Kind::Fifo => "fifo",
    }
}

/// A name that does nothing to a terminal: control characters, and bytes that are no UTF-8, are written `\n` or `\x1b`.
pub fn escaped(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for piece in name.utf8_chunks() {
        for letter in piece.valid().chars() {
            match letter {
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                // Those that turn the direction of writing round hide what a name is.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => text.extend(letter.escape_unicode()),
                _ if letter.is_control() => {
                    let _ = write!(text, "\\x{:02x}", u32::from(letter));
                }
                _ => text.push(letter),
            }
        }
        for byte in piece.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// RFC 3339 in UTC, with nine digits of fraction or none. Years that it does not have are written as ISO 8601 does:
/// with a sign.
pub fn rfc3339(time: SystemTime, fraction: bool) -> String {
    let (seconds, nanos) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => (i128::from(after.as_secs()), after.subsec_nanos()),
        Err(error) => before(error.duration()),
    };
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let mut text = if (0..10_000).contains(&year) { format!("{year:04}") } else { format!("{year:+05}") };
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let _ = write!(text, "-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}", second % 60);
    if fraction {
        let _ = write!(text, ".{nanos:09}");
    }
    text + "Z"
}

/// So long before 1970, rounded down.
fn before(gap: Duration) -> (i128, u32) {
    let seconds = -i128::from(gap.as_secs());
    match gap.subsec_nanos() {
        0 => (seconds, 0),
        nanos => (seconds - 1, 1_000_000_000 - nanos),
    }
}

/// Year, month and day of a day since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms",
/// `civil_from_days`).
fn date(days: i128) -> (i128, i128, i128) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i128::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_ls() {
        assert_eq!(mode(Kind::Directory, 0o1555), "dr-xr-xr-t");
        assert_eq!(mode(Kind::File, 0o444), "-r--r--r--");
        assert_eq!(mode(Kind::Symlink, 0o1550), "lr-xr-x--T");
    }

    #[test]
    fn names_do_nothing_to_a_terminal() {
        assert_eq!(escaped("n\u{e4}me".as_bytes()), "n\u{e4}me");
        assert_eq!(escaped(b"a\nb\tc\x1b[2J\x7fd\xe4"), "a\\nb\\tc\\x1b[2J\\x7fd\\xe4");
        assert_eq!(escaped("\u{202e}\u{9b}".as_bytes()), "\\u{202e}\\x9b");
    }

    #[test]
    fn times_of_all_ages() {
        let at = |secs: i64, nanos| {
            let gap = Duration::from_secs(secs.unsigned_abs());
            let whole = if secs < 0 { SystemTime::UNIX_EPOCH - gap } else { SystemTime::UNIX_EPOCH + gap };
            rfc3339(whole + Duration::from_nanos(nanos), true)
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(1_638_979_200, 123_450_000), "2021-12-08T16:00:00.123450000Z");
        assert_eq!(at(951_782_399, 0), "2000-02-28T23:59:59.000000000Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(at(-2, 500_000_000), "1969-12-31T23:59:58.500000000Z");
        assert_eq!(at(253_402_300_800, 0), "+10000-01-01T00:00:00.000000000Z");
        assert_eq!(at(-62_167_219_201, 0), "-0001-12-31T23:59:59.000000000Z");
        assert!(at(i64::MAX, 0).starts_with("+292277026596-12-04T"));
        assert!(at(i64::MIN + 1, 0).starts_with("-292277022657-01-27T"));
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH, false), "1970-01-01T00:00:00Z");
    }
}
