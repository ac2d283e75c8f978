//! Digests as the image specification writes them: `algorithm:hex`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use sha2::Digest as _;
use sha2::digest::common::hazmat::SerializableState;

use crate::error::{Error, ErrorKind, Result};

/// Well-formed by construction: `sha256:` and 64, or `sha512:` and 128 lower-case hex digits
/// (OCI image specification, descriptor.md, "Digests").
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

impl Digest {
    pub fn sha256_of(bytes: &[u8]) -> Self {
        Self(written("sha256", &sha2::Sha256::digest(bytes)).into())
    }

    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The first 12 hex digits, as docker and git show them.
    pub fn short(&self) -> &str {
        self.hex().get(..12).unwrap_or_default()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn hasher(&self) -> Hasher {
        match self.algorithm() {
            "sha512" => Hasher::Sha512(sha2::Sha512::new()),
            _ => Hasher::Sha256(sha2::Sha256::new()),
        }
    }

    /// `None`: that is no state of such a hasher.
    pub fn hasher_from(&self, state: &[u8]) -> Option<Hasher> {
        Some(match self.hasher() {
            Hasher::Sha256(_) => Hasher::Sha256(SerializableState::deserialize(state.try_into().ok()?).ok()?),
            Hasher::Sha512(_) => Hasher::Sha512(SerializableState::deserialize(state.try_into().ok()?).ok()?),
        })
    }

    /// Checks that `bytes` are what the digest names.
    pub fn check(&self, bytes: &[u8]) -> Result<()> {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.check(self)
    }
}

fn written(algorithm: &str, sum: &[u8]) -> String {
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{algorithm}:{hex}")
}

/// The digest of a blob whose bytes come one piece after the other.
#[derive(Clone)]
pub enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub fn sha256() -> Self {
        Self::Sha256(sha2::Sha256::new())
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// As bytes, from which another goes on: see [`Digest::hasher_from`].
    pub fn state(&self) -> Vec<u8> {
        match self {
            Self::Sha256(hasher) => hasher.serialize().to_vec(),
            Self::Sha512(hasher) => hasher.serialize().to_vec(),
        }
    }

    pub fn finish(self) -> Digest {
        Digest(match self {
            Self::Sha256(hasher) => written("sha256", &hasher.finalize()).into(),
            Self::Sha512(hasher) => written("sha512", &hasher.finalize()).into(),
        })
    }

    pub fn check(self, wanted: &Digest) -> Result<()> {
        let found = self.finish();
        if found == *wanted {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, wanted, format!("the bytes received have the digest {found}"))
            .hint("the registry or something on the way to it changed them"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    #[error("a digest is written ALGORITHM:HEX")]
    NoColon,
    #[error("the digest algorithm is not sha256 or sha512")]
    Algorithm,
    #[error("a digest has {0} lower-case hex digits")]
    Hex(usize),
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(ParseDigestError::NoColon)?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(ParseDigestError::Algorithm),
        };
        if hex.len() != length || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseDigestError::Hex(length));
        }
        Ok(Self(text.into()))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_registered_algorithms_in_lower_case_hex() {
        let hex = "7cff937ff47cf327ab3fe27310da670719f87e86cd1f72c24459c3b542e505e0";
        let digest: Digest = format!("sha256:{hex}").parse().unwrap();
        assert_eq!((digest.algorithm(), digest.hex(), digest.short()), ("sha256", hex, "7cff937ff47c"));
        assert!(format!("sha512:{hex}{hex}").parse::<Digest>().is_ok());
        assert_eq!("7cff".parse::<Digest>(), Err(ParseDigestError::NoColon));
        assert_eq!(format!("md5:{hex}").parse::<Digest>(), Err(ParseDigestError::Algorithm));
        for wrong in [hex.to_uppercase(), hex[1..].to_owned(), format!("../{}", &hex[3..])] {
            assert_eq!(format!("sha256:{wrong}").parse::<Digest>(), Err(ParseDigestError::Hex(64)));
        }
    }

    #[test]
    fn a_hasher_goes_on_from_the_state_of_another() {
        let bytes: Vec<u8> = (0..1000_u32).map(|n| n as u8).collect();
        let digest = Digest::sha256_of(&bytes);
        for cut in [0, 1, 63, 64, 65, 999] {
            let mut first = digest.hasher();
            first.update(&bytes[..cut]);
            let state = first.state();
            let mut second = digest.hasher_from(&state).unwrap();
            second.update(&bytes[cut..]);
            assert!(second.check(&digest).is_ok(), "{cut}");
            assert!(digest.hasher_from(&state[1..]).is_none());
        }
        let long: Digest = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
        assert!(long.hasher_from(&digest.hasher().state()).is_none());
        assert!(long.hasher_from(&long.hasher().state()).is_some());
    }

    #[test]
    fn a_mismatch_names_both_digests() {
        let digest = Digest::sha256_of(b"abc");
        assert!(digest.check(b"abc").is_ok());
        let line = digest.check(b"abd").unwrap_err().to_string();
        assert!(line.contains(digest.as_str()), "{line}");
        assert!(line.contains(Digest::sha256_of(b"abd").as_str()), "{line}");
    }
}
