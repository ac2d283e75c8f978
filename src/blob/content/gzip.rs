//! gzip (RFC 1952) and DEFLATE (RFC 1951), any number of members one behind the other.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress, inflate_flags};

use super::decode::{Damage, Decode, Progress, Resume};

/// Bytes that a block may refer back to.
pub const WINDOW: usize = 32 << 10;
/// Bytes that come out of a step: a buffer of 256 KiB and the window before it stay in the second-level cache.
const OUTPUT: usize = 256 << 10;
/// Less room than this is not worth a step.
const LEAST_ROOM: usize = 64 << 10;

pub struct Gunzip {
    stage: Stage,
    framed: bool,
    inflate: Inflate,
    /// Bytes of the last step in the inflater's buffer.
    fresh: std::ops::Range<usize>,
    /// None behind a boundary inside a member, where what came before is not known.
    check: Option<Check>,
    trailing: bool,
}

#[derive(Default)]
struct Check {
    crc: crc32fast::Hasher,
    /// Modulo 2^32.
    length: u32,
}

enum Stage {
    Header(Header),
    Body,
    /// CRC32 and ISIZE, as far as they are there.
    Trailer(Vec<u8>),
    /// A member is whole. The first byte of what may be the next one, if there is one.
    Between(Option<u8>),
    /// What no member follows: padding, or garbage.
    Padding,
}

impl Gunzip {
    pub fn gzip() -> Self {
        Self::new(Stage::Header(Header::default()), true)
    }

    pub fn deflate() -> Self {
        Self::new(Stage::Body, false)
    }

    pub fn between_blocks(framed: bool, bits: u8, bit_buffer: u8, window: &[u8]) -> Self {
        let inflate = Inflate::between_blocks(bits, bit_buffer, window);
        Self { inflate, check: None, ..Self::new(Stage::Body, framed) }
    }

    fn new(stage: Stage, framed: bool) -> Self {
        let check = Some(Check::default());
        Self { stage, framed, inflate: Inflate::new(), fresh: 0..0, check, trailing: false }
    }

    fn body(&mut self, input: &[u8], stop: bool) -> Result<Progress, Damage> {
        let (status, consumed) = self.inflate.step(input, stop);
        self.fresh = self.inflate.fresh.clone();
        if let Some(check) = self.check.as_mut().filter(|_| self.framed) {
            let fresh = self.inflate.buffer.get(self.fresh.clone()).unwrap_or_default();
            check.crc.update(fresh);
            check.length = check.length.wrapping_add(fresh.len() as u32);
        }
        let (boundary, more) = match status {
            TINFLStatus::NeedsMoreInput => (false, false),
            TINFLStatus::HasMoreOutput => (false, true),
            TINFLStatus::BlockBoundary => (true, true),
            TINFLStatus::Done => {
                self.stage = if self.framed { Stage::Trailer(Vec::new()) } else { Stage::Padding };
                (false, true)
            }
            _ => return Err(Damage::Corrupt("damaged compressed data")),
        };
        Ok(Progress { consumed, boundary, more })
    }

    fn trailer(&mut self, trailer: &[u8]) -> Result<(), Damage> {
        let number = |bytes: Option<&[u8]>| bytes.and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        let Some(check) = self.check.take() else { return Ok(()) };
        if number(trailer.get(..4)) != Some(check.crc.finalize()) {
            return Err(Damage::Corrupt("the checksum (CRC32) of a gzip member is wrong"));
        }
        if number(trailer.get(4..8)) != Some(check.length) {
            return Err(Damage::Corrupt("the length of a gzip member is not what its end says"));
        }
        Ok(())
    }
}

impl Decode for Gunzip {
    fn step(&mut self, input: &[u8], stop: bool) -> Result<Progress, Damage> {
        self.fresh = 0..0;
        let all = Progress { consumed: input.len(), boundary: false, more: false };
        match &mut self.stage {
            Stage::Body => self.body(input, stop),
            Stage::Header(header) => {
                let Some(consumed) = header.take(input)? else { return Ok(all) };
                self.stage = Stage::Body;
                self.inflate.restart();
                self.check = Some(Check::default());
                Ok(Progress { consumed, boundary: false, more: true })
            }
            Stage::Trailer(trailer) => {
                let (head, rest) = input.split_at(input.len().min(8_usize.saturating_sub(trailer.len())));
                trailer.extend_from_slice(head);
                if trailer.len() < 8 {
                    return Ok(all);
                }
                let trailer = std::mem::take(trailer);
                self.trailer(&trailer)?;
                self.stage = Stage::Between(None);
                Ok(Progress { consumed: input.len().saturating_sub(rest.len()), boundary: true, more: false })
            }
            Stage::Between(first) => match (*first, input) {
                (_, []) => Ok(all),
                (None, [first, ..]) => {
                    self.stage = Stage::Between(Some(*first));
                    Ok(Progress { consumed: 1, boundary: false, more: false })
                }
                (Some(0x1f), [0x8b, ..]) => {
                    self.stage = Stage::Header(Header { field: Field::Fixed(1), ..Header::default() });
                    Ok(Progress { consumed: 0, boundary: false, more: false })
                }
                (Some(first), _) => {
                    self.trailing = first != 0;
                    self.stage = Stage::Padding;
                    Ok(Progress { consumed: 0, boundary: false, more: false })
                }
            },
            Stage::Padding => {
                self.trailing |= input.iter().any(|&byte| byte != 0);
                Ok(all)
            }
        }
    }

    fn output(&self) -> &[u8] {
        self.inflate.buffer.get(self.fresh.clone()).unwrap_or_default()
    }

    fn resume(&self) -> Resume {
        // Its state has a meaning between blocks only.
        let in_body = matches!(self.stage, Stage::Body);
        match in_body.then(|| self.inflate.state.block_boundary_state()).flatten() {
            Some(state) => Resume::Block {
                bits: state.num_bits,
                bit_buffer: state.bit_buf,
                window: self.inflate.window().to_vec(),
            },
            None => Resume::Start,
        }
    }

    fn finish(&mut self) -> Result<(), Damage> {
        match &self.stage {
            Stage::Between(first) => {
                self.trailing |= first.is_some_and(|first| first != 0);
                Ok(())
            }
            Stage::Padding => Ok(()),
            _ => Err(Damage::Corrupt("the compressed data ends too early")),
        }
    }

    fn trailing(&self) -> bool {
        self.trailing
    }
}

/// Blocks of DEFLATE. The buffer holds the window and, behind it, what comes out.
struct Inflate {
    state: Box<DecompressorOxide>,
    buffer: Vec<u8>,
    /// What the last step gave; its end is where the next goes on.
    fresh: std::ops::Range<usize>,
}

impl Inflate {
    fn new() -> Self {
        Self { state: Box::default(), buffer: vec![0; WINDOW + OUTPUT], fresh: 0..0 }
    }

    fn between_blocks(bits: u8, bit_buffer: u8, window: &[u8]) -> Self {
        let mut inflate = Self::new();
        let state = BlockBoundaryState { num_bits: bits & 7, bit_buf: bit_buffer, ..Default::default() };
        *inflate.state = DecompressorOxide::from_block_boundary_state(&state);
        let window = window.get(window.len().saturating_sub(WINDOW)..).unwrap_or_default();
        if let Some(start) = inflate.buffer.get_mut(..window.len()) {
            start.copy_from_slice(window);
        }
        inflate.fresh = window.len()..window.len();
        inflate
    }

    /// The next member refers to nothing before it.
    fn restart(&mut self) {
        *self.state = DecompressorOxide::new();
        self.fresh = 0..0;
    }

    fn step(&mut self, input: &[u8], stop: bool) -> (TINFLStatus, usize) {
        let mut end = self.fresh.end;
        if self.buffer.len().saturating_sub(end) < LEAST_ROOM {
            self.buffer.copy_within(end.saturating_sub(WINDOW)..end, 0);
            end = WINDOW;
        }
        let mut flags =
            inflate_flags::TINFL_FLAG_HAS_MORE_INPUT | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        if stop {
            flags |= inflate_flags::TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
        }
        let (status, consumed, produced) = decompress(&mut self.state, input, &mut self.buffer, end, flags);
        self.fresh = end..end.saturating_add(produced);
        (status, consumed)
    }

    fn window(&self) -> &[u8] {
        let end = self.fresh.end;
        self.buffer.get(end.saturating_sub(WINDOW)..end).unwrap_or_default()
    }
}

/// The header of a member, byte by byte (RFC 1952, section 2.3). Its own checksum is not looked at.
#[derive(Default)]
struct Header {
    field: Field,
    flags: u8,
    /// Of the extra field.
    length: u16,
}

#[derive(Clone, Copy)]
enum Field {
    /// Bytes seen of the ten that every header has.
    Fixed(u8),
    ExtraLength(u8),
    Extra(u16),
    Name,
    Comment,
    Checksum(u8),
    Done,
}

impl Default for Field {
    fn default() -> Self {
        Self::Fixed(0)
    }
}

const FHCRC: u8 = 2;
const FEXTRA: u8 = 4;
const FNAME: u8 = 8;
const FCOMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

impl Header {
    /// Bytes of `input` up to the end of the header, if that is in there.
    fn take(&mut self, input: &[u8]) -> Result<Option<usize>, Damage> {
        for (at, &byte) in input.iter().enumerate() {
            self.field = match self.field {
                Field::Fixed(seen) => {
                    let right = match seen {
                        0 => byte == 0x1f,
                        1 => byte == 0x8b,
                        2 => byte == 8,
                        3 => {
                            self.flags = byte;
                            byte & RESERVED == 0
                        }
                        _ => true,
                    };
                    if !right {
                        return Err(Damage::Corrupt("a gzip member with a damaged or unknown header"));
                    }
                    if seen < 9 { Field::Fixed(seen + 1) } else { self.optional(FEXTRA) }
                }
                Field::ExtraLength(0) => {
                    self.length = u16::from(byte);
                    Field::ExtraLength(1)
                }
                Field::ExtraLength(_) => match self.length | u16::from(byte) << 8 {
                    0 => self.optional(FNAME),
                    length => Field::Extra(length),
                },
                Field::Extra(1) => self.optional(FNAME),
                Field::Extra(left) => Field::Extra(left.saturating_sub(1)),
                Field::Name if byte == 0 => self.optional(FCOMMENT),
                Field::Comment if byte == 0 => self.optional(FHCRC),
                Field::Checksum(0) => Field::Checksum(1),
                Field::Checksum(_) => Field::Done,
                field => field,
            };
            if matches!(self.field, Field::Done) {
                return Ok(Some(at + 1));
            }
        }
        Ok(None)
    }

    /// The first field that is there, from the one with this flag on.
    fn optional(&self, from: u8) -> Field {
        let order = [
            (FEXTRA, Field::ExtraLength(0)),
            (FNAME, Field::Name),
            (FCOMMENT, Field::Comment),
            (FHCRC, Field::Checksum(0)),
        ];
        let next = order.into_iter().skip_while(|(flag, _)| *flag != from).find(|(flag, _)| self.flags & flag != 0);
        next.map_or(Field::Done, |(_, field)| field)
    }
}

#[cfg(test)]
mod tests;
