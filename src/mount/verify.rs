//! Whether an artifact is signed by the key that the user trusts, before anything of it is given out.

use super::Options;
use super::repository::Repository;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Document, PAYLOAD_TYPE, PublicKey, SIGNATURE_TYPE};

/// Manifests with signatures that are looked into, and signatures in all of them.
const MOST_MANIFESTS: usize = 100;
const MOST_SIGNATURES: usize = 1000;
/// Bytes of what is signed: some 250.
const LARGEST_PAYLOAD: u64 = 64 << 10;

/// # Errors
/// Where the user trusts a key, and no signature of this manifest is one of it.
pub async fn check_signed(repository: &Repository, manifest: &Digest, options: &Options) -> Result<()> {
    let Some(key) = &options.verify_key else { return Ok(()) };
    let mut seen = 0;
    if let Some(tagged) = repository.signatures_by_tag(manifest).await?
        && is_signed(repository, manifest, key, &tagged, &mut seen).await?
    {
        return Ok(());
    }
    let attached = repository.referrers(manifest, Some(SIGNATURE_TYPE)).await?;
    for referrer in attached.into_iter().take(MOST_MANIFESTS) {
        let bytes = match repository.manifest(&referrer.descriptor).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_of_the_network() => return Err(error),
            Err(error) => {
                tracing::warn!("{}: {error}; it is passed over", referrer.descriptor.digest);
                continue;
            }
        };
        if is_signed(repository, manifest, key, &bytes, &mut seen).await? {
            return Ok(());
        }
    }
    let cause = match seen {
        0 => "it has no signature that could be checked with a key".to_owned(),
        _ => format!("none of its {seen} signatures is by the key of --verify-key"),
    };
    let hint = "ask its publisher for the right key, and mount nothing before";
    Err(Error::new(ErrorKind::Denied, manifest, cause).hint(hint))
}

async fn is_signed(
    repository: &Repository,
    manifest: &Digest,
    key: &PublicKey,
    signatures: &[u8],
    seen: &mut usize,
) -> Result<bool> {
    let Ok(Document::Manifest(signatures)) = Document::parse(signatures, "signatures") else { return Ok(false) };
    let is_payload = |layer: &&Descriptor| layer.media_type == PAYLOAD_TYPE && layer.size <= LARGEST_PAYLOAD;
    for layer in signatures.layers.iter().filter(is_payload) {
        if *seen >= MOST_SIGNATURES {
            break;
        }
        *seen += 1;
        match repository.small_blob(layer).await {
            Ok(payload) if key.has_signed(layer, &payload, manifest) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.is_of_the_network() => return Err(error),
            Err(error) => tracing::warn!("{}: {error}; this signature is passed over", layer.digest),
        }
    }
    Ok(false)
}
