//! Numbers of any length, and bytes, in and out of a zstd frame.

use std::io::{Read, Write};

use super::CodecError;

/// Of `zstd`: fast, and half the size of plain bytes already.
const LEVEL: i32 = 3;
/// Bytes handed to zstd at once, and taken from it.
const PIECE: usize = 64 << 10;
/// Log2 of the bytes of window that reading may take; writing takes 2 MiB.
const WINDOW_LOG: u32 = 23;

pub struct Packer {
    frame: zstd::stream::write::Encoder<'static, Vec<u8>>,
    piece: Vec<u8>,
}

impl Packer {
    /// The frame follows on `bytes`.
    pub fn new(bytes: Vec<u8>) -> Result<Self, CodecError> {
        let frame = zstd::stream::write::Encoder::new(bytes, LEVEL).map_err(failed)?;
        Ok(Self { frame, piece: Vec::with_capacity(PIECE) })
    }

    /// LEB128: seven bits a byte, the lowest first, the eighth bit says that more follow.
    pub fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.piece.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.piece.push(number as u8);
    }

    /// The difference of two numbers, small where they are near each other: 0, -1, 1, -2, … are 0, 1, 2, 3, …
    pub fn difference(&mut self, number: u64, expected: u64) {
        let signed = number.wrapping_sub(expected) as i64;
        self.number(((signed << 1) ^ (signed >> 63)) as u64);
    }

    pub fn byte(&mut self, byte: u8) {
        self.piece.push(byte);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.piece.extend_from_slice(bytes);
    }

    /// To be called now and then.
    pub fn flush(&mut self) -> Result<(), CodecError> {
        if self.piece.len() >= PIECE {
            self.frame.write_all(&self.piece).map_err(failed)?;
            self.piece.clear();
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<Vec<u8>, CodecError> {
        self.frame.write_all(&self.piece).map_err(failed)?;
        self.frame.finish().map_err(failed)
    }
}

fn failed(error: std::io::Error) -> CodecError {
    CodecError::Compress(error.to_string())
}

pub struct Unpacker<'a> {
    frame: zstd::stream::read::Decoder<'static, &'a [u8]>,
    piece: Vec<u8>,
    at: usize,
    end: usize,
}

const SHORT: CodecError = CodecError::Wrong("a frame that ends early or is none");

impl<'a> Unpacker<'a> {
    pub fn new(frame: &'a [u8]) -> Result<Self, CodecError> {
        let mut frame = zstd::stream::read::Decoder::with_buffer(frame).map_err(|_| SHORT)?.single_frame();
        frame.window_log_max(WINDOW_LOG).map_err(|_| SHORT)?;
        Ok(Self { frame, piece: vec![0; PIECE], at: 0, end: 0 })
    }

    pub fn byte(&mut self) -> Result<u8, CodecError> {
        if self.at == self.end {
            self.refill()?;
        }
        let byte = self.piece.get(self.at).copied().ok_or(SHORT)?;
        self.at = self.at.saturating_add(1);
        Ok(byte)
    }

    pub fn number(&mut self) -> Result<u64, CodecError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(CodecError::Wrong("a number past 2^64"))
    }

    pub fn number32(&mut self) -> Result<u32, CodecError> {
        u32::try_from(self.number()?).map_err(|_| CodecError::Wrong("a number past 2^32"))
    }

    pub fn difference(&mut self, expected: u64) -> Result<u64, CodecError> {
        let number = self.number()?;
        Ok(expected.wrapping_add((number >> 1) ^ (number & 1).wrapping_neg()))
    }

    /// Appends `length` bytes. They grow as they come: a length alone makes nothing.
    pub fn bytes(&mut self, length: usize, to: &mut Vec<u8>) -> Result<(), CodecError> {
        let mut left = length;
        while left > 0 {
            if self.at == self.end {
                self.refill()?;
            }
            let stop = self.end.min(self.at.saturating_add(left));
            let piece = self.piece.get(self.at..stop).ok_or(SHORT)?;
            to.extend_from_slice(piece);
            left = left.saturating_sub(piece.len());
            self.at = stop;
        }
        Ok(())
    }

    /// Nothing follows, neither in the frame nor behind it.
    pub fn finish(mut self) -> Result<(), CodecError> {
        let over = self.at == self.end && self.frame.read(&mut [0]).is_ok_and(|read| read == 0);
        match over && self.frame.finish().is_empty() {
            true => Ok(()),
            false => Err(CodecError::Wrong("more than its counts tell")),
        }
    }

    fn refill(&mut self) -> Result<(), CodecError> {
        (self.at, self.end) = (0, self.frame.read(&mut self.piece).map_err(|_| SHORT)?);
        match self.end {
            0 => Err(SHORT),
            _ => Ok(()),
        }
    }
}
