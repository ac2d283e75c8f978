//! Descriptors: what a manifest says of a blob.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::Digest;

/// File name of a blob (OCI image specification, annotations.md).
pub const TITLE: &str = "org.opencontainers.image.title";
/// Tag of a manifest in an image layout (annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// RFC 3339 (annotations.md).
pub const CREATED: &str = "org.opencontainers.image.created";
/// `true` on a tar+gzip layer that oras made from a directory.
pub const UNPACK: &str = "io.deis.oras.content.unpack";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub digest: Digest,
    /// Bytes, at most 2^63 - 1 (OCI image specification, descriptor.md, "Properties").
    #[serde(deserialize_with = "size")]
    pub size: u64,
    #[serde(default)]
    pub media_type: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = u64::deserialize(deserializer)?;
    i64::try_from(size).map(|_| size).map_err(|_| D::Error::custom(format!("{size} is no size of a blob")))
}

impl Descriptor {
    pub fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }
}
