//! Fields of a header block, read as GNU tar reads them. The layout is tar-core's.

use tar_core::{GNU_MAGIC, GNU_VERSION, Header, USTAR_MAGIC};

use super::member::Mtime;
use super::number;
use super::scan::BLOCK;

pub fn c_string(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The sum of all bytes with the checksum's own as blanks; old writers summed signed bytes. tar-core knows unsigned
/// ones only.
pub fn checksum_holds(block: &[u8; BLOCK as usize]) -> bool {
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

pub fn name(header: &Header) -> Vec<u8> {
    let ustar = header.as_ustar();
    let (name, prefix) = (c_string(&ustar.name), c_string(&ustar.prefix));
    match has_prefix(header) && !prefix.is_empty() {
        true => [prefix, b"/", name].concat(),
        false => name.to_vec(),
    }
}

pub fn mtime(header: &Header) -> Mtime {
    let secs = number::parse(&header.as_ustar().mtime).and_then(|secs| i64::try_from(secs).ok());
    Mtime { secs: secs.unwrap_or(0), nanos: 0 }
}

/// Major and minor number as one; a v7 header has none.
pub fn rdev(header: &Header) -> u32 {
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
pub fn sparse_map(header: &Header) -> Option<(&[u8], bool, &[u8])> {
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
