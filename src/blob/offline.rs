//! The source of a mount that asks no registry.

use std::ops::Range;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;

/// Has nothing: what is not in the caches before it is missing.
pub struct Offline;

impl BlobSource for Offline {
    fn read<'a>(&'a self, blob: &'a Descriptor, _range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        let missing = Error::new(ErrorKind::Unreachable, &blob.digest, "offline: not in the cache");
        std::future::ready(Err(missing.hint("mount without --offline to fetch it"))).boxed()
    }
}
