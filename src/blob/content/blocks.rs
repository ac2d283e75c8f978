//! bzip2 and xz. Both are slow to decode, so that no place in them is taken as a start: their content is kept in
//! pieces.

use bzip2::{Decompress, Status};
use liblzma::stream::{Action, CONCATENATED, Error, Stream};

use super::decode::{Damage, Decode, Progress};
use super::limits::ContentLimits;

const OUTPUT: usize = 256 << 10;
const DAMAGED: Damage = Damage::Corrupt("damaged compressed data");
const TOO_SHORT: Damage = Damage::Corrupt("the compressed data ends too early");

pub struct Bzip2 {
    decoder: Decompress,
    stage: Bzip2Stage,
    buffer: Vec<u8>,
    length: usize,
    trailing: bool,
}

enum Bzip2Stage {
    Stream,
    /// A stream is whole; `bzip2` reads another one behind it, and passes over anything else.
    Between(Vec<u8>),
    Padding,
}

impl Bzip2 {
    pub fn new() -> Self {
        let stage = Bzip2Stage::Stream;
        Self { decoder: Decompress::new(false), stage, buffer: vec![0; OUTPUT], length: 0, trailing: false }
    }

    fn stream(&mut self, input: &[u8]) -> Result<(Status, usize), Damage> {
        let (before_in, before_out) = (self.decoder.total_in(), self.decoder.total_out());
        let status = self.decoder.decompress(input, &mut self.buffer).map_err(|_| DAMAGED)?;
        self.length = (self.decoder.total_out() - before_out) as usize;
        Ok((status, (self.decoder.total_in() - before_in) as usize))
    }
}

impl Decode for Bzip2 {
    fn step(&mut self, input: &[u8], _stop: bool) -> Result<Progress, Damage> {
        self.length = 0;
        let consumed = match &mut self.stage {
            Bzip2Stage::Stream => {
                let (status, consumed) = self.stream(input)?;
                if status == Status::StreamEnd {
                    self.stage = Bzip2Stage::Between(Vec::new());
                }
                consumed
            }
            Bzip2Stage::Between(start) => {
                let taken = input.get(..input.len().min(3 - start.len().min(3))).unwrap_or_default();
                start.extend_from_slice(taken);
                let consumed = taken.len();
                if start.len() == 3 {
                    if start == b"BZh" {
                        self.decoder = Decompress::new(false);
                        self.stream(b"BZh")?;
                        self.stage = Bzip2Stage::Stream;
                    } else {
                        (self.stage, self.trailing) = (Bzip2Stage::Padding, true);
                    }
                }
                consumed
            }
            Bzip2Stage::Padding => input.len(),
        };
        Ok(Progress { consumed, boundary: false, more: self.length == self.buffer.len() })
    }

    fn output(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or_default()
    }

    fn finish(&mut self) -> Result<(), Damage> {
        match &self.stage {
            Bzip2Stage::Stream => Err(TOO_SHORT),
            Bzip2Stage::Between(start) => {
                self.trailing = !start.is_empty();
                Ok(())
            }
            Bzip2Stage::Padding => Ok(()),
        }
    }

    fn trailing(&self) -> bool {
        self.trailing
    }
}

pub struct Xz {
    decoder: Stream,
    buffer: Vec<u8>,
    length: usize,
    memory: u64,
}

impl Xz {
    pub fn new(limits: &ContentLimits) -> Result<Self, Damage> {
        let memory = limits.window_bytes;
        let decoder =
            Stream::new_stream_decoder(memory, CONCATENATED).map_err(|_| Damage::Corrupt("xz cannot start"))?;
        Ok(Self { decoder, buffer: vec![0; OUTPUT], length: 0, memory })
    }

    fn run(&mut self, input: &[u8], action: Action) -> Result<(liblzma::stream::Status, usize), Damage> {
        let (before_in, before_out) = (self.decoder.total_in(), self.decoder.total_out());
        let status = self.decoder.process(input, &mut self.buffer, action).map_err(|error| match error {
            Error::MemLimit => Damage::Limit("window_bytes", self.memory),
            _ => DAMAGED,
        })?;
        self.length = (self.decoder.total_out() - before_out) as usize;
        Ok((status, (self.decoder.total_in() - before_in) as usize))
    }
}

impl Decode for Xz {
    fn step(&mut self, input: &[u8], _stop: bool) -> Result<Progress, Damage> {
        self.length = 0;
        if input.is_empty() && self.decoder.total_in() == 0 {
            return Ok(Progress { consumed: 0, boundary: false, more: false });
        }
        let (_, consumed) = self.run(input, Action::Run)?;
        Ok(Progress { consumed, boundary: false, more: self.length == self.buffer.len() })
    }

    fn output(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or_default()
    }

    fn finish(&mut self) -> Result<(), Damage> {
        match self.run(&[], Action::Finish) {
            Ok((liblzma::stream::Status::StreamEnd, _)) => Ok(()),
            Ok(_) => Err(TOO_SHORT),
            Err(DAMAGED) => Err(TOO_SHORT),
            Err(error) => Err(error),
        }
    }
}
