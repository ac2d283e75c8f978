//! The formats of OCI: references, digests, descriptors, manifests, image layouts.
//! Called by every layer above; bytes in, types out, no IO.

mod descriptor;
mod digest;
mod manifest;
pub mod media_types;
mod platform;
mod reference;
mod referrer;
mod signature;

pub use descriptor::{CREATED, Descriptor, REF_NAME, TITLE, UNPACK};
pub use digest::{Digest, Hasher};
pub use manifest::{Document, Index, LARGEST_MANIFEST, Listed, Manifest, names_by_layer_digest};
pub use platform::Platform;
pub use reference::{LayoutReference, Reference, RegistryReference};
pub use referrer::{Referrer, referrers_tag};
pub use signature::{KeyError, PAYLOAD_TYPE, PublicKey, SIGNATURE_TYPE, signature_tag};
