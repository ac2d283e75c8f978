//! Bytes of a blob: held, or made when asked for.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// Fills the buffer with the bytes of a blob from the offset on.
pub type Fill = dyn Fn(u64, &mut [u8]) + Send + Sync;

#[derive(Clone)]
pub(crate) enum Content {
    Held(Bytes),
    Made { size: u64, fill: Arc<Fill> },
}

impl Content {
    pub fn size(&self) -> u64 {
        match self {
            Self::Held(bytes) => bytes.len() as u64,
            Self::Made { size, .. } => *size,
        }
    }

    /// The range must lie inside the content.
    pub fn read(&self, range: Range<u64>) -> Bytes {
        match self {
            Self::Held(bytes) => bytes.slice(range.start as usize..range.end as usize),
            Self::Made { fill, .. } => {
                let mut buffer = vec![0; (range.end - range.start) as usize];
                fill(range.start, &mut buffer);
                buffer.into()
            }
        }
    }
}
