//! What all decoders have in common: bytes in, content out, and word of the places where another one could start.

use std::fmt;

use super::blocks::{Bzip2, Xz};
use super::frames::Frames;
use super::gzip::Gunzip;
use super::limits::ContentLimits;

/// The numbers stand in kept tables (`codec.rs`): a change there is another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Gzip = 0,
    /// DEFLATE without a frame around it, as in ZIP archives.
    Deflate = 1,
    Zstd = 2,
    Bzip2 = 3,
    Xz = 4,
}

/// What one step did; the content that came out of it is [`Decode::output`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of input that are not needed again.
    pub consumed: usize,
    /// Another decoder can start here: see [`Decode::resume`].
    pub boundary: bool,
    /// The same step without more input would give more.
    pub more: bool,
}

/// Where another decoder can start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// A gzip member, a zstd frame: as at the blob's start.
    Start,
    /// Between two blocks of DEFLATE: bits of the last byte consumed that belong to the next one, and the content
    /// before it, 32 KiB at most.
    Block { bits: u8, bit_buffer: u8, window: Vec<u8> },
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    Corrupt(&'static str),
    /// One of [`ContentLimits`].
    Limit(&'static str, u64),
}

pub trait Decode: Send {
    /// Takes some of the input. With `stop`, it ends where another decoder could start.
    fn step(&mut self, input: &[u8], stop: bool) -> Result<Progress, Damage>;

    /// The content of the last step.
    fn output(&self) -> &[u8];

    /// After a step that ended at a boundary.
    fn resume(&self) -> Resume {
        Resume::Start
    }

    /// All input was given.
    fn finish(&mut self) -> Result<(), Damage>;

    /// Whether bytes follow that are not the format's; they were passed over.
    fn trailing(&self) -> bool {
        false
    }
}

impl Compression {
    pub(super) const ALL: [Self; 5] = [Self::Gzip, Self::Deflate, Self::Zstd, Self::Bzip2, Self::Xz];

    /// By the magic number (RFC 1952, RFC 8878, bzip2 and xz file formats), which is right more often than media
    /// types are.
    pub fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // A skippable frame may come first: pzstd writes them.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            // The first block, or the end of an empty stream.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            _ => None,
        }
    }

    pub(super) fn decoder(self, limits: &ContentLimits) -> Result<Box<dyn Decode>, Damage> {
        Ok(match self {
            Self::Gzip => Box::new(Gunzip::gzip()),
            Self::Deflate => Box::new(Gunzip::deflate()),
            Self::Zstd => Box::new(Frames::new(limits)?),
            Self::Bzip2 => Box::new(Bzip2::new()),
            Self::Xz => Box::new(Xz::new(limits)?),
        })
    }

    /// A decoder for what follows a boundary.
    pub(super) fn decoder_at(self, resume: &Resume, limits: &ContentLimits) -> Result<Box<dyn Decode>, Damage> {
        match resume {
            Resume::Start => self.decoder(limits),
            Resume::Block { bits, bit_buffer, window } => {
                Ok(Box::new(Gunzip::between_blocks(self == Self::Gzip, *bits, *bit_buffer, window)))
            }
        }
    }

    /// The first bytes of the content, 4096 at most, as far as they can be had from the first bytes of the blob.
    pub fn head(self, start: &[u8]) -> Vec<u8> {
        const LONGEST: usize = 4096;
        let mut head = Vec::new();
        let Ok(mut decoder) = self.decoder(&ContentLimits::default()) else { return head };
        let mut rest = start;
        while head.len() < LONGEST
            && let Ok(progress) = decoder.step(rest, false)
        {
            head.extend_from_slice(decoder.output());
            rest = rest.get(progress.consumed..).unwrap_or_default();
            if rest.is_empty() && !progress.more || progress.consumed == 0 && decoder.output().is_empty() {
                break;
            }
        }
        head.truncate(LONGEST);
        head
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt(what) => f.write_str(what),
            Self::Limit(limit, max) => write!(f, "the layer reaches the limit {limit} of {max}"),
        }
    }
}
