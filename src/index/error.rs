use thiserror::Error;

use crate::error::{Error, ErrorKind};

/// Why an archive cannot be indexed. GNU tar skips to the next header it finds and exits with 2; here the layer has no
/// index, for nobody could tell what is missing. `offset` is the byte of the blob where the header in question starts.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScanError {
    /// Not even the first header is one. An empty blob is no archive either, as GNU tar and Python's tarfile see it.
    #[error("not a tar archive (no valid header at byte {offset})")]
    NotTar { offset: u64 },
    #[error("damaged archive: the header at byte {offset} has a wrong checksum")]
    Checksum { offset: u64 },
    /// The field is neither octal nor base-256, negative, or past 2^63 - 1.
    #[error("damaged archive: the header at byte {offset} has no usable {field}")]
    Number { offset: u64, field: &'static str },
    #[error("damaged archive: the PAX header at byte {offset} has {what}")]
    Pax { offset: u64, what: &'static str },
    #[error("damaged archive: the sparse member at byte {offset} has {what}")]
    Sparse { offset: u64, what: &'static str },
    #[error("truncated archive: {member} at byte {offset} ends at byte {end} of {blob_size}")]
    Truncated {
        offset: u64,
        /// The member's name, or what kind of header it is.
        member: String,
        end: u64,
        blob_size: u64,
    },
    #[error("{member} at byte {offset} is a piece of a multi-volume archive")]
    MultiVolume { offset: u64, member: String },
    #[error("the member at byte {offset} reaches the limit {limit} of {max}")]
    Limit {
        offset: u64,
        /// A field of [`super::Limits`].
        limit: &'static str,
        max: u64,
    },
}

impl ScanError {
    pub fn offset(&self) -> u64 {
        match self {
            Self::NotTar { offset }
            | Self::Checksum { offset }
            | Self::Number { offset, .. }
            | Self::Pax { offset, .. }
            | Self::Sparse { offset, .. }
            | Self::Truncated { offset, .. }
            | Self::MultiVolume { offset, .. }
            | Self::Limit { offset, .. } => *offset,
        }
    }

    /// `object` is the layer's digest or title.
    pub fn on(self, object: impl std::fmt::Display) -> Error {
        let kind = match self {
            Self::Limit { .. } => ErrorKind::Limit,
            Self::MultiVolume { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Corrupt,
        };
        let error = Error::new(kind, object, &self);
        match self {
            Self::MultiVolume { .. } => error.hint("join the volumes into one archive before pushing"),
            _ => error,
        }
    }
}
