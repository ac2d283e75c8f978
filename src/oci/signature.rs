//! Signatures as cosign makes them with a key: of a text that names the manifest ("simple signing").

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, alg_id};
use serde::Deserialize;

use super::{Descriptor, Digest};

/// Of a layer that holds such a text (cosign, specs/SIGNATURE_SPEC.md).
pub const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Of a signature that is attached as a referrer.
pub const SIGNATURE_TYPE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const KIND: &str = "cosign container image signature";
/// What stands before the point of a P-256 key (RFC 5480, section 2): uncompressed, as every program writes it.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Bytes.
const POINT: usize = 65;

/// The tag that cosign gives to the signatures of a manifest.
pub fn signature_tag(digest: &Digest) -> String {
    format!("{}-{}.sig", digest.algorithm(), digest.hex())
}

/// A public key of ECDSA with P-256, as `cosign generate-key-pair` makes it.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", Digest::sha256_of(&self.0).short())
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("it has no public key in PEM (-----BEGIN PUBLIC KEY-----)")]
    NoKey,
    #[error("the key is none of ECDSA with P-256")]
    Algorithm,
}

impl PublicKey {
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let key = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| KeyError::NoKey)?;
        let point = key.strip_prefix(&P256).filter(|point| point.len() == POINT).ok_or(KeyError::Algorithm)?;
        Ok(Self(point.to_vec()))
    }

    /// Whether `payload`, signed by this key as `layer` says, names `manifest`.
    pub fn has_signed(&self, layer: &Descriptor, payload: &[u8], manifest: &Digest) -> bool {
        let signature = layer.annotations.get(SIGNATURE).and_then(|text| BASE64_STANDARD.decode(text).ok());
        let is_signed = |signature: Vec<u8>| {
            algorithm().is_some_and(|ecdsa| ecdsa.verify_signature(&self.0, payload, &signature).is_ok())
        };
        signature.is_some_and(is_signed) && named(payload).is_some_and(|named| named == *manifest)
    }
}

fn algorithm() -> Option<&'static dyn SignatureVerificationAlgorithm> {
    let all = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let is_it = |algorithm: &&&'static dyn SignatureVerificationAlgorithm| {
        algorithm.public_key_alg_id() == alg_id::ECDSA_P256 && algorithm.signature_alg_id() == alg_id::ECDSA_SHA256
    };
    all.iter().find(is_it).copied()
}

/// The manifest that a text is about.
fn named(payload: &[u8]) -> Option<Digest> {
    #[derive(Deserialize)]
    struct Payload {
        critical: Critical,
    }
    #[derive(Deserialize)]
    struct Critical {
        image: Image,
        #[serde(rename = "type")]
        kind: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Image {
        docker_manifest_digest: Digest,
    }
    let Payload { critical } = serde_json::from_slice(payload).ok()?;
    (critical.kind == KIND).then_some(critical.image.docker_manifest_digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/src/fixtures/cosign/", $name))
        };
    }

    fn layer() -> Descriptor {
        let manifest: serde_json::Value = serde_json::from_slice(fixture!("tag.json")).unwrap();
        serde_json::from_value(manifest["layers"][0].clone()).unwrap()
    }

    #[test]
    fn a_signature_of_cosign_is_one_of_its_key_and_its_manifest_only() {
        let (key, other) =
            (PublicKey::from_pem(fixture!("cosign.pub")).unwrap(), PublicKey::from_pem(fixture!("other.pub")).unwrap());
        let payload = fixture!("payload.json");
        let signed = named(payload).unwrap();
        assert!(key.has_signed(&layer(), payload, &signed));
        assert!(!other.has_signed(&layer(), payload, &signed));
        assert!(!key.has_signed(&layer(), payload, &Digest::sha256_of(b"another")));
        for place in 0..payload.len() {
            let mut changed = payload.to_vec();
            changed[place] ^= 1;
            let names = named(&changed).unwrap_or_else(|| signed.clone());
            assert!(!key.has_signed(&layer(), &changed, &names), "byte {place}");
        }
        let mut unsigned = layer();
        for text in ["", "MEUC", "no base64"] {
            unsigned.annotations.insert(SIGNATURE.to_owned(), text.to_owned());
            assert!(!key.has_signed(&unsigned, payload, &signed));
        }
        unsigned.annotations.clear();
        assert!(!key.has_signed(&unsigned, payload, &signed));
    }

    #[test]
    fn what_is_no_key_of_ecdsa_with_p256_is_told() {
        assert_eq!(PublicKey::from_pem(fixture!("p384.pub")), Err(KeyError::Algorithm));
        for pem in [
            &b""[..],
            b"-----BEGIN PUBLIC KEY-----",
            b"\xff\xfe",
            b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
        ] {
            assert_eq!(PublicKey::from_pem(pem), Err(KeyError::NoKey));
        }
        let short = b"-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n";
        assert_eq!(PublicKey::from_pem(short), Err(KeyError::Algorithm));
    }
}
