//! Digests as registries write them.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// `sha256:` and 64 lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    text(Sha256::digest(bytes).as_slice())
}

pub(crate) fn text(hash: &[u8]) -> String {
    let mut digest = String::from("sha256:");
    for byte in hash {
        write!(digest, "{byte:02x}").expect("a String takes everything");
    }
    digest
}
