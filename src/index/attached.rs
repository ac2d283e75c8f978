//! Indexes of many layers as one blob, to be attached to their manifest. `docs/index-format.md` has the format byte by
//! byte.
//!
//! Reading trusts nothing: what a footer says is checked before it is used, and no length makes anything by itself.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;

use super::codec::CodecError;
use super::limits::Limits;
use crate::oci::{Digest, Hasher};

/// Bytes of a layer that one digest is of; the last one of a layer is of what is left.
pub const DIGEST_CHUNK: u64 = 64 << 10;
/// Bytes that the last of a blob must have to tell how long its footer is.
pub const TRAILER: u64 = 56;

/// No text file, and broken by whatever changes line ends.
const MAGIC: [u8; 8] = *b"\x89EOATT\r\n";
const VERSION: u32 = 1;
/// A frame that decoders of zstd pass over (RFC 8878, section 3.1.2).
const SKIPPABLE: [u8; 4] = 0x184D_2A5E_u32.to_le_bytes();
const SKIPPABLE_HEADER: u64 = 8;
/// Bytes of one layer in the footer's table.
const ROW: u64 = 136;
const SHA256: usize = 32;
const LEVEL: i32 = 3;
/// Log2 of the bytes of window that reading may take.
const WINDOW_LOG: u32 = 23;

/// One layer, to be written.
#[derive(Debug, Clone)]
pub struct AttachedPart {
    /// SHA-256; others are left out.
    pub digest: Digest,
    pub size: u64,
    /// As [`super::encode`] writes it.
    pub index: Vec<u8>,
    /// See [`ChunkDigests`].
    pub digests: Option<ChunkDigests>,
}

/// A blob, and what the manifest's annotations say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedBlob {
    pub bytes: Vec<u8>,
    /// Byte at which the frames of indexes begin. The footer follows on them.
    pub indexes: u64,
    /// Of the footer.
    pub footer: Digest,
    pub layers: usize,
}

/// A piece of the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub range: Range<u64>,
    digest: [u8; SHA256],
}

/// What a footer says of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedLayer {
    /// Bytes of the layer.
    pub size: u64,
    pub index: Frame,
    pub digests: Option<Frame>,
}

/// SHA-256 of each [`DIGEST_CHUNK`] of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChunkDigests(Vec<u8>);

impl ChunkDigests {
    /// Of the next chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        self.0.extend_from_slice(&sha256(chunk));
    }

    /// Of so many bytes, if they are as many as that.
    fn of(bytes: Vec<u8>, size: u64) -> Result<Self, CodecError> {
        match bytes.len() as u64 == digest_bytes(size) {
            true => Ok(Self(bytes)),
            false => Err(CodecError::Wrong("the number of chunk digests")),
        }
    }

    /// What the chunk of this number must have.
    pub fn get(&self, chunk: u64) -> Option<Digest> {
        let start = usize::try_from(chunk).ok()?.checked_mul(SHA256)?;
        let found = self.0.get(start..start.checked_add(SHA256)?)?;
        digest(found.try_into().ok()?).ok()
    }

    pub fn memory(&self) -> u64 {
        self.0.capacity() as u64
    }
}

/// Layers with another digest than SHA-256 are left out.
pub fn write_attached(mut parts: Vec<AttachedPart>) -> Result<AttachedBlob, CodecError> {
    parts.retain(|part| part.digest.algorithm() == "sha256");
    parts.sort_by(|a, b| a.digest.cmp(&b.digest));
    parts.dedup_by(|a, b| a.digest == b.digest);
    let mut bytes = Vec::new();
    let mut frame = |content: &[u8]| {
        let start = bytes.len() as u64;
        let packed = zstd::bulk::compress(content, LEVEL).map_err(|error| CodecError::Compress(error.to_string()))?;
        bytes.extend_from_slice(&packed);
        Ok::<_, CodecError>(Frame { range: start..bytes.len() as u64, digest: sha256(&packed) })
    };
    let digests = parts.iter().map(|part| part.digests.as_ref().map(|digests| frame(&digests.0)).transpose());
    let digests = digests.collect::<Result<Vec<_>, _>>()?;
    let indexes = parts.iter().map(|part| frame(&part.index)).collect::<Result<Vec<_>, _>>()?;
    let first = indexes.first().map_or(bytes.len() as u64, |frame| frame.range.start);

    let start = bytes.len();
    let table = (parts.len() as u64).saturating_mul(ROW);
    bytes.extend_from_slice(&SKIPPABLE);
    let length = u32::try_from(table.saturating_add(TRAILER));
    let length = length.map_err(|_| CodecError::Wrong("more layers than a footer takes"))?;
    bytes.extend_from_slice(&length.to_le_bytes());
    let rows = bytes.len();
    for ((part, index), digests) in parts.iter().zip(&indexes).zip(&digests) {
        bytes.extend_from_slice(&sha256_in(&part.digest)?);
        bytes.extend_from_slice(&part.size.to_le_bytes());
        let none = Frame { range: 0..0, digest: [0; SHA256] };
        for Frame { range, digest } in [index, digests.as_ref().unwrap_or(&none)] {
            bytes.extend_from_slice(&range.start.to_le_bytes());
            bytes.extend_from_slice(&range.end.saturating_sub(range.start).to_le_bytes());
            bytes.extend_from_slice(digest);
        }
    }
    let checksum = sha256(bytes.get(rows..).unwrap_or_default());
    bytes.extend_from_slice(&checksum);
    bytes.extend_from_slice(&table.to_le_bytes());
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&MAGIC);
    let footer = Digest::sha256_of(bytes.get(start..).unwrap_or_default());
    Ok(AttachedBlob { bytes, indexes: first, footer, layers: parts.len() })
}

/// How many bytes the footer at the end of a blob takes, by the blob's last [`TRAILER`] bytes or more.
pub fn footer_length(end: &[u8], limits: &Limits) -> Result<u64, CodecError> {
    Ok(Trailer::read(end, limits)?.table.saturating_add(SKIPPABLE_HEADER).saturating_add(TRAILER))
}

/// What a footer says of those layers that are wanted. `blob_size`: bytes of the blob that it is the end of.
pub fn read_footer(
    footer: &[u8],
    blob_size: u64,
    limits: &Limits,
    is_wanted: impl Fn(&Digest) -> bool,
) -> Result<HashMap<Digest, AttachedLayer>, CodecError> {
    let Trailer { table, checksum } = Trailer::read(footer, limits)?;
    let rest = footer.strip_prefix(&SKIPPABLE).ok_or(CodecError::NotAnIndex)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(CodecError::NotAnIndex)?;
    let end = blob_size.checked_sub(footer.len() as u64).ok_or(CodecError::NotAnIndex)?;
    let rows = rest.get(..usize::try_from(table).unwrap_or(usize::MAX)).ok_or(CodecError::NotAnIndex)?;
    if u64::from(u32::from_le_bytes(*length)) != rest.len() as u64 || rest.len() as u64 != table.saturating_add(TRAILER)
    {
        return Err(CodecError::Wrong("the length of its footer"));
    }
    if sha256(rows) != checksum {
        return Err(CodecError::Checksum);
    }
    let (mut layers, mut before) = (HashMap::new(), None);
    let mut left = rows;
    while !left.is_empty() {
        let mut row = Row(left);
        let name = row.bytes::<SHA256>()?;
        if before.is_some_and(|before| before >= name) {
            return Err(CodecError::Wrong("layers out of order"));
        }
        before = Some(name);
        let size = row.number()?;
        let (index, digests) = (row.frame(end)?, row.frame(end)?);
        left = row.0;
        let name = digest(name)?;
        if is_wanted(&name) {
            let digests = Some(digests).filter(|frame| !frame.range.is_empty());
            layers.insert(name, AttachedLayer { size, index, digests });
        }
    }
    Ok(layers)
}

impl AttachedLayer {
    /// The bytes of the stored index, from those of its frame.
    pub fn open_index(&self, frame: &[u8], limits: &Limits) -> Result<Vec<u8>, CodecError> {
        self.index.open(frame, limits.index_bytes)
    }

    pub fn open_digests(&self, frame: &[u8]) -> Result<ChunkDigests, CodecError> {
        let no_digests = || CodecError::Wrong("no chunk digests");
        let bytes = self.digests.as_ref().ok_or_else(no_digests)?.open(frame, digest_bytes(self.size))?;
        ChunkDigests::of(bytes, self.size)
    }
}

impl Frame {
    /// What it holds, at most so many bytes. They are taken as they come: what a frame says of its length makes
    /// nothing.
    fn open(&self, frame: &[u8], longest: u64) -> Result<Vec<u8>, CodecError> {
        const WRONG: CodecError = CodecError::Wrong("a frame that ends early or is none");
        if sha256(frame) != self.digest {
            return Err(CodecError::Checksum);
        }
        let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(|_| WRONG)?.single_frame();
        decoder.window_log_max(WINDOW_LOG).map_err(|_| WRONG)?;
        let mut content = Vec::new();
        (&mut decoder).take(longest.saturating_add(1)).read_to_end(&mut content).map_err(|_| WRONG)?;
        match content.len() as u64 <= longest && decoder.finish().is_empty() {
            true => Ok(content),
            false => Err(CodecError::Wrong("a frame of more than it may hold")),
        }
    }
}

struct Trailer {
    /// Bytes of the table.
    table: u64,
    checksum: [u8; SHA256],
}

impl Trailer {
    fn read(end: &[u8], limits: &Limits) -> Result<Self, CodecError> {
        let (_, trailer) = end.split_last_chunk::<{ TRAILER as usize }>().ok_or(CodecError::NotAnIndex)?;
        let mut row = Row(trailer);
        let (checksum, table, version) = (row.bytes()?, row.number()?, row.bytes::<4>()?);
        let (reserved, magic) = (row.bytes::<4>()?, row.bytes::<8>()?);
        if magic != MAGIC {
            return Err(CodecError::NotAnIndex);
        }
        match u32::from_le_bytes(version) {
            VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        if table > limits.footer_bytes {
            return Err(CodecError::Limit { limit: "footer_bytes", max: limits.footer_bytes });
        }
        match reserved == [0; 4] && table.is_multiple_of(ROW) {
            true => Ok(Self { table, checksum }),
            false => Err(CodecError::Wrong("its trailer")),
        }
    }
}

/// What is left of a row.
struct Row<'a>(&'a [u8]);

impl Row<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(CodecError::NotAnIndex)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn number(&mut self) -> Result<u64, CodecError> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// It lies before the footer, which begins at `end`.
    fn frame(&mut self, end: u64) -> Result<Frame, CodecError> {
        let (start, length, digest) = (self.number()?, self.number()?, self.bytes()?);
        match start.checked_add(length).filter(|behind| *behind <= end) {
            Some(behind) => Ok(Frame { range: start..behind, digest }),
            None => Err(CodecError::Wrong("a frame outside of the blob")),
        }
    }
}

/// Bytes of the digests of a layer of this size.
fn digest_bytes(size: u64) -> u64 {
    size.div_ceil(DIGEST_CHUNK).saturating_mul(SHA256 as u64)
}

fn sha256(bytes: &[u8]) -> [u8; SHA256] {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    sha256_in(&hasher.finish()).unwrap_or_default()
}

fn sha256_in(digest: &Digest) -> Result<[u8; SHA256], CodecError> {
    let mut bytes = [0; SHA256];
    let (digits, _) = digest.hex().as_bytes().as_chunks::<2>();
    for (byte, digits) in bytes.iter_mut().zip(digits) {
        let hex = std::str::from_utf8(digits).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
        *byte = hex.ok_or(CodecError::Wrong("a digest"))?;
    }
    Ok(bytes)
}

fn digest(bytes: [u8; SHA256]) -> Result<Digest, CodecError> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}").parse().map_err(|_| CodecError::Wrong("a digest"))
}
