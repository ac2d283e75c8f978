//! Numbers of a header block. tar-core's `parse_numeric` drops what is above 64 bits and knows no negative numbers.

/// Octal digits behind blanks, ended by a blank, NUL or the field's end; or GNU base-256 (first byte 0x80, or 0xff for
/// a negative number). As GNU tar (src/list.c, `from_header`) one leading NUL is passed over and NULs alone are 0.
/// `None`: blanks only, or something else.
pub fn parse(field: &[u8]) -> Option<i128> {
    match field {
        [0x80, rest @ ..] => Some(big_endian(rest)),
        [0xff, rest @ ..] => {
            let bits = u32::try_from(rest.len()).ok()?.checked_mul(8)?;
            big_endian(rest).checked_sub(1i128.checked_shl(bits)?)
        }
        _ => octal(field),
    }
}

/// Fields are at most 12 bytes.
fn big_endian(bytes: &[u8]) -> i128 {
    bytes.iter().fold(0i128, |value, &byte| (value << 8) | i128::from(byte))
}

pub fn octal(field: &[u8]) -> Option<i128> {
    let field = match field {
        [0, rest @ ..] => rest,
        _ => field,
    };
    let start = field.iter().position(|&byte| !blank(byte))?;
    let mut value = 0i128;
    for &byte in field.get(start..)? {
        match byte {
            b'0'..=b'7' => value = (value << 3) | i128::from(byte & 7),
            0 => break,
            _ if blank(byte) => break,
            _ => return None,
        }
    }
    Some(value)
}

fn blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// A user or group: one that does not fit is the kernel's overflow id, nobody.
pub fn id(value: Option<i128>) -> u32 {
    const NOBODY: u32 = 65534;
    value.map_or(0, |value| u32::try_from(value).unwrap_or(NOBODY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_as_old_and_new_writers_spell_it() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\x00000644\0", Some(0o644)),
            (b"77777777", Some(0o77777777)),
            (b"12 34567", Some(0o12)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", None),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"", None),
        ] {
            assert_eq!(parse(field), value, "{field:?}");
        }
    }

    #[test]
    fn base_256_both_ways_and_past_64_bits() {
        assert_eq!(parse(&[0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]), Some(1 << 40));
        assert_eq!(parse(&[0xff; 12]), Some(-1));
        assert_eq!(parse(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]), Some(-256));
        assert_eq!(parse(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Some(1 << 64));
        assert_eq!(id(parse(&[0x80, 0, 0, 1, 0, 0, 0, 0])), 65534);
        assert_eq!(id(None), 0);
    }
}
