//! What manifests are called (OCI image specification, media-types.md, and what was there before it).

pub const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Of a config that says nothing.
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Manifests as an index lists them, some without a type; anything else in it is a blob.
pub const MANIFESTS: [&str; 6] = [
    "",
    IMAGE_MANIFEST,
    IMAGE_INDEX,
    "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
