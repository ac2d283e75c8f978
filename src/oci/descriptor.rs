//! Descriptors: what a manifest says of a blob.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Digest;

/// File name of a blob (OCI image specification, annotations.md).
pub const TITLE: &str = "org.opencontainers.image.title";
/// Tag of a manifest in an image layout (annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// `true` on a tar+gzip layer that oras made from a directory.
pub const UNPACK: &str = "io.deis.oras.content.unpack";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    #[serde(default)]
    pub media_type: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }
}
