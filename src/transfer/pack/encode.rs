//! An archive as it is stored: plain, zstd frames with a seek table, or gzip.
//!
//! The same content gives the same bytes on any machine: one thread, levels fixed, no time and no name in the headers.

use std::io::{self, Write};

use flate2::{Compression, GzBuilder, write::GzEncoder};
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::Format;

/// What `zstd` uses unless told otherwise.
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: u32 = 6;
/// RFC 1952, section 2.3.1: an operating system that is not known.
const NO_SYSTEM: u8 = 255;
/// Bytes of content that a frame has at least (but for the last), as many as it should have, and at most: a random read
/// decodes one. That with the header of a long member has the least, because a listing decodes it.
const LEAST: u64 = 1 << 20;
const USUAL: u64 = 2 << 20;
const MOST: u64 = 3 << 20;

pub enum Encoder<W: Write> {
    Plain(W),
    Zstd(Box<Frames<W>>),
    Gzip(Box<GzEncoder<W>>),
}

impl<W: Write> Encoder<W> {
    pub fn new(format: Format, out: W) -> io::Result<Self> {
        Ok(match format {
            Format::Tar => Self::Plain(out),
            Format::TarZstd => Self::Zstd(Box::new(Frames::new(out)?)),
            Format::TarGzip => {
                let header = GzBuilder::new().mtime(0).operating_system(NO_SYSTEM);
                Self::Gzip(Box::new(header.write(out, Compression::new(GZIP_LEVEL))))
            }
        })
    }

    /// A member of so many bytes, header and padding included, comes next: frames begin with members where they can.
    pub fn begin(&mut self, length: u64) -> io::Result<()> {
        match self {
            Self::Zstd(frames) => frames.begin(length),
            Self::Plain(_) | Self::Gzip(_) => Ok(()),
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Zstd(frames) => frames.write(bytes),
            Self::Gzip(out) => out.write_all(bytes),
        }
    }

    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(out) => Ok(out),
            Self::Zstd(frames) => frames.finish(),
            Self::Gzip(out) => out.finish(),
        }
    }
}

/// zstd's seekable format, version 0.1.0 (zstd, contrib/seekable_format/zstd_seekable_compression_format.md).
pub struct Frames<W> {
    out: W,
    compressor: Compressor<'static>,
    content: Vec<u8>,
    /// Bytes of the member that are still to come.
    left: u64,
    /// The frame began within this member.
    continued: bool,
    /// Bytes in the blob and of content, of each frame.
    table: Vec<[u32; 2]>,
}

impl<W: Write> Frames<W> {
    fn new(out: W) -> io::Result<Self> {
        let mut compressor = Compressor::new(ZSTD_LEVEL)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(Self { out, compressor, content: Vec::new(), left: 0, continued: false, table: Vec::new() })
    }

    fn begin(&mut self, length: u64) -> io::Result<()> {
        self.left = length;
        let content = self.content.len() as u64;
        if content >= LEAST && content.saturating_add(length) > USUAL {
            self.end_frame()?;
        }
        self.continued = false;
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let content = self.content.len() as u64;
            // What is left of a member does not get a frame of its own that would be too short.
            let (whole, cut) = if self.continued { (MOST, USUAL) } else { (USUAL, LEAST) };
            let room = if content.saturating_add(self.left) <= whole { whole } else { cut }.saturating_sub(content);
            let (head, rest) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.content.extend_from_slice(head);
            self.left = self.left.saturating_sub(head.len() as u64);
            bytes = rest;
            if head.len() as u64 == room {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    fn end_frame(&mut self) -> io::Result<()> {
        let frame = self.compressor.compress(&self.content)?;
        self.out.write_all(&frame)?;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
        self.table.push([length(&frame)?, length(&self.content)?]);
        self.content.clear();
        self.continued = true;
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        const SKIPPABLE: u32 = 0x184D_2A5E;
        const FOOTER: u32 = 0x8F92_EAB1;
        if !self.content.is_empty() {
            self.end_frame()?;
        }
        let frames = u32::try_from(self.table.len()).map_err(io::Error::other)?;
        let length = frames.checked_mul(8).and_then(|entries| entries.checked_add(9));
        let length = length.ok_or_else(|| io::Error::other("too many frames for a seek table"))?;
        let mut table = [SKIPPABLE, length].map(u32::to_le_bytes).concat();
        table.extend(self.table.iter().flatten().flat_map(|number| number.to_le_bytes()));
        table.extend_from_slice(&frames.to_le_bytes());
        // No checksums in the table: each frame has its own.
        table.push(0);
        table.extend_from_slice(&FOOTER.to_le_bytes());
        self.out.write_all(&table)?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::content::parse_table;

    /// Content of members with these lengths, and the lengths of the frames.
    fn frames(members: &[u64]) -> Vec<u64> {
        let mut encoder = Encoder::new(Format::TarZstd, Vec::new()).unwrap();
        let mut content = Vec::new();
        for (number, length) in members.iter().enumerate() {
            let bytes = vec![number as u8; *length as usize];
            encoder.begin(*length).unwrap();
            bytes.chunks(300_001).for_each(|piece| encoder.write(piece).unwrap());
            content.extend(bytes);
        }
        let blob = encoder.finish().unwrap();
        assert_eq!(zstd::decode_all(blob.as_slice()).unwrap(), content);
        let table =
            8 + 9 + 8 * usize::try_from(u32::from_le_bytes(blob[blob.len() - 9..][..4].try_into().unwrap())).unwrap();
        let frames = parse_table(&blob[blob.len() - table..], blob.len() as u64).unwrap();
        frames.iter().map(|frame| u64::from(frame.content)).collect()
    }

    #[test]
    fn frames_begin_with_members_and_are_neither_short_nor_long() {
        const MIB: u64 = 1 << 20;
        assert_eq!(frames(&[]), [0; 0]);
        assert_eq!(frames(&[512]), [512]);
        assert_eq!(frames(&[MIB, MIB, MIB]), [2 * MIB, MIB]);
        assert_eq!(frames(&[3 * MIB, 3 * MIB]), [MIB, 2 * MIB, MIB, 2 * MIB]);
        assert_eq!(frames(&[MIB / 2, 9 * MIB, 512]), [MIB, 2 * MIB, 2 * MIB, 2 * MIB, 5 * MIB / 2, 512]);
        for frames in [frames(&[700_000; 20]), frames(&[5 * MIB + 7; 5]), frames(&[1536; 4000])] {
            let (_, but_last) = frames.split_last().unwrap();
            assert!(but_last.iter().all(|length| (LEAST..=MOST).contains(length)), "{frames:?}");
        }
    }
}
