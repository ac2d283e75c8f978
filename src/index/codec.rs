//! An index as bytes, to be kept. `docs/index-format.md` has the format byte by byte.
//!
//! Reading trusts nothing: the checksum tells damage, and all else is checked as if an attacker had set it right. What
//! [`decode`] returns is a tree that [`super::LayerIndexBuilder`] could have made of a blob of that size.

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use self::read::Reader;
use self::write::Writer;
use super::layer::{LayerIndex, Span, Xattr};
use super::limits::Limits;
use super::member::{Kind, SparseExtent};
use crate::oci::Digest;

mod read;
#[cfg(test)]
mod tests;
mod wire;
mod write;

/// No text file, and broken by whatever changes line ends.
const MAGIC: [u8; 8] = *b"\x89EOIDX\r\n";
const VERSION: u32 = 1;
/// Bytes before the digest, and behind the frame.
const FIXED: usize = 64;
const CHECKSUM: usize = 8;

const KINDS: [Kind; 6] = [Kind::File, Kind::Directory, Kind::Symlink, Kind::CharDevice, Kind::BlockDevice, Kind::Fifo];
/// What an entry's first byte tells besides its kind, which is in the low three bits.
const HAS_EXTENTS: u8 = 8;
const HAS_XATTRS: u8 = 16;
const NEW_OWNER: u8 = 32;
const NEW_MODE: u8 = 64;
const HAS_NANOS: u8 = 128;

/// What the offsets of an index point into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The blob's own bytes.
    Blob,
    /// So many bytes of what the blob holds in compressed form, or of the places of a [`super::ZipIndex`].
    Unpacked { size: u64 },
}

/// Why bytes are not the index that was asked for. They are worth nothing then.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    #[error("no index")]
    NotAnIndex,
    #[error("an index of version {0}; this program knows {VERSION}")]
    Version(u32),
    #[error("damaged: its checksum is wrong")]
    Checksum,
    #[error("the index of another blob")]
    OtherBlob,
    #[error("it reaches the limit {limit} of {max}")]
    Limit {
        /// A field of [`Limits`].
        limit: &'static str,
        max: u64,
    },
    /// With a right checksum: not written by this program.
    #[error("wrong in itself: {0}")]
    Wrong(&'static str),
    #[error("cannot be compressed: {0}")]
    Compress(String),
}

/// The bytes of an index of the blob with this digest and size.
pub fn encode(index: &LayerIndex, digest: &Digest, size: u64, content: Content) -> Result<Vec<u8>, CodecError> {
    let (packed, content_size) = match content {
        Content::Blob => (0, size),
        Content::Unpacked { size } => (1, size),
    };
    let name = digest.as_str().as_bytes();
    let name_len = u8::try_from(name.len()).map_err(|_| CodecError::Wrong("a long digest"))?;
    let mut bytes = Vec::with_capacity(FIXED.saturating_add(name.len()));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[packed, u8::from(index.trailing), name_len, 0]);
    bytes.extend_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(&content_size.to_le_bytes());
    Counts::of(index).write(&mut bytes);
    bytes.extend_from_slice(name);
    let mut bytes = Writer::new(bytes)?.write(index)?;
    bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
    Ok(bytes)
}

/// The index of the blob with this digest and size, if the bytes are one; and what its offsets point into.
pub fn decode(bytes: &[u8], digest: &Digest, size: u64, limits: &Limits) -> Result<(LayerIndex, Content), CodecError> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(CodecError::NotAnIndex)?;
    let (version, _) = number::<4>(rest)?;
    // Before the checksum: another version may have another one.
    match u32::from_le_bytes(version) {
        VERSION => {}
        other => return Err(CodecError::Version(other)),
    }
    let end = bytes.len().checked_sub(CHECKSUM).ok_or(CodecError::NotAnIndex)?;
    let (bytes, checksum) = bytes.split_at_checked(end).ok_or(CodecError::NotAnIndex)?;
    if checksum != xxh3_64(bytes).to_le_bytes() {
        return Err(CodecError::Checksum);
    }
    let header = bytes.get(MAGIC.len().saturating_add(4)..).ok_or(CodecError::NotAnIndex)?;
    let ([packed, trailing, name_len, 0], header) = number::<4>(header)? else {
        return Err(CodecError::Wrong("a reserved byte"));
    };
    let (blob_size, header) = number::<8>(header)?;
    let (content_size, header) = number::<8>(header)?;
    let (counts, header) = Counts::read(header)?;
    let (name, frame) = header.split_at_checked(usize::from(name_len)).ok_or(CodecError::Wrong("no digest"))?;
    if name != digest.as_str().as_bytes() || u64::from_le_bytes(blob_size) != size {
        return Err(CodecError::OtherBlob);
    }
    let content_size = u64::from_le_bytes(content_size);
    let content = match packed {
        0 if content_size == size => Content::Blob,
        1 => Content::Unpacked { size: content_size },
        _ => return Err(CodecError::Wrong("what its offsets point into")),
    };
    let trailing = match trailing {
        0 => false,
        1 => true,
        _ => return Err(CodecError::Wrong("its flags")),
    };
    counts.within(limits)?;
    let index = Reader::new(frame, counts, content_size, limits)?.read()?;
    Ok((LayerIndex { trailing, ..index }, content))
}

/// How many there are of everything. All are told before the frame, so that nothing is made that a limit forbids.
#[derive(Debug, Clone, Copy)]
struct Counts {
    entries: u32,
    names: u32,
    /// Bytes of names, link targets and extended attributes.
    text: u32,
    sparse_files: u32,
    extents: u32,
    with_xattrs: u32,
    xattrs: u32,
    warnings: u32,
}

impl Counts {
    fn of(index: &LayerIndex) -> Self {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let names = index.dirents.iter().map(|dirent| u64::from(dirent.name_len));
        let links = index.nodes.iter().filter(|node| node.kind == Kind::Symlink).map(|node| node.extent);
        let xattrs = || index.xattr_spans.iter().flat_map(|span| index.xattrs_in(span));
        let xattr_text = xattrs().map(|xattr| u64::from(xattr.name_len).saturating_add(u64::from(xattr.value_len)));
        let text = names.chain(links).chain(xattr_text).fold(0u64, u64::saturating_add);
        let extents = index.extent_spans.iter().fold(0u32, |sum, span| sum.saturating_add(span.count));
        Self {
            entries: count(index.nodes.len()),
            names: count(index.dirents.len()),
            text: u32::try_from(text).unwrap_or(u32::MAX),
            sparse_files: count(index.extent_spans.len()),
            extents,
            with_xattrs: count(index.xattr_spans.len()),
            xattrs: count(xattrs().count()),
            warnings: count(index.warnings.len()),
        }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let Self { entries, names, text, sparse_files, extents, with_xattrs, xattrs, warnings } = *self;
        for count in [entries, names, text, sparse_files, extents, with_xattrs, xattrs, warnings] {
            bytes.extend_from_slice(&count.to_le_bytes());
        }
    }

    fn read(bytes: &[u8]) -> Result<(Self, &[u8]), CodecError> {
        let mut rest = bytes;
        let mut next = || {
            let (count, behind) = number::<4>(rest)?;
            rest = behind;
            Ok(u32::from_le_bytes(count))
        };
        let counts = Self {
            entries: next()?,
            names: next()?,
            text: next()?,
            sparse_files: next()?,
            extents: next()?,
            with_xattrs: next()?,
            xattrs: next()?,
            warnings: next()?,
        };
        Ok((counts, rest))
    }

    fn within(&self, limits: &Limits) -> Result<(), CodecError> {
        let limit = |limit, max| Err(CodecError::Limit { limit, max });
        // The layer's own directory does not count, and neither does the line that tells how many more there are.
        if u64::from(self.entries) > limits.entries.saturating_add(1) {
            return limit("entries", limits.entries);
        }
        if u64::from(self.warnings) > limits.warnings.saturating_add(1) {
            return limit("warnings", limits.warnings);
        }
        let bytes = [
            (self.entries, size_of::<super::layer::Node>()),
            (self.names, size_of::<super::layer::Dirent>()),
            (self.text, 1),
            (self.sparse_files, size_of::<Span>()),
            (self.extents, size_of::<SparseExtent>()),
            (self.with_xattrs, size_of::<Span>()),
            (self.xattrs, size_of::<Xattr>()),
        ];
        let bytes = bytes
            .iter()
            .fold(0u64, |sum, (count, each)| sum.saturating_add(u64::from(*count).saturating_mul(*each as u64)));
        match bytes > limits.index_bytes {
            true => limit("index_bytes", limits.index_bytes),
            false => Ok(()),
        }
    }
}

fn number<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), CodecError> {
    bytes.split_first_chunk().map(|(number, rest)| (*number, rest)).ok_or(CodecError::NotAnIndex)
}

/// Where the next file's data is thought to begin: behind the last one, at a full block. Only the difference is kept.
fn behind(end: u64) -> u64 {
    end.checked_next_multiple_of(super::scan::BLOCK).unwrap_or(end)
}
