//! A compressed blob, unpacked by one pass into a file without a name: when the process ends, however, it is gone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::BlobSource;
use super::layout::read_exactly;
use crate::cache::{CacheFolder, Reservation};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Hasher};

/// Bytes of compressed blob fetched at once, two of them ahead of the decoder.
const PIECE: u64 = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    /// By the magic number (RFC 1952, RFC 8878), which is right more often than media types are.
    pub fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // A skippable frame may come first: pzstd and seekable zstd write them.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The first bytes of the content, as far as they can be had from the first bytes of the blob.
    pub fn head(self, start: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 4096];
        let length = self.decoder(start).map_or(0, |mut content| {
            let mut length = 0;
            while let Some(Ok(more @ 1..)) = head.get_mut(length..).map(|rest| content.read(rest)) {
                length += more;
            }
            length
        });
        head.truncate(length);
        head
    }

    fn decoder<'a>(self, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            // Windows over 128 MiB are refused by zstd itself.
            Self::Zstd => Box::new(zstd::Decoder::new(packed)?),
        })
    }
}

/// The content of one compressed blob. It is the only blob that it gives, whatever descriptor it is asked for.
pub struct Unpacked {
    file: Arc<File>,
    pub size: u64,
    /// Gives the space back when the content is dropped.
    _space: Reservation,
}

/// Reads the whole blob, checks its digest, and keeps its content in the cache folder.
pub async fn unpack(
    source: Arc<dyn BlobSource>,
    blob: Descriptor,
    compression: Compression,
    folder: Arc<CacheFolder>,
) -> Result<Unpacked> {
    let runtime = tokio::runtime::Handle::current();
    let object = blob.digest.clone();
    let ranges = (0..blob.size.div_ceil(PIECE)).map(move |n| n * PIECE..((n + 1) * PIECE).min(blob.size));
    let pieces = stream::iter(ranges)
        .map(move |range| {
            let (source, blob) = (Arc::clone(&source), blob.clone());
            async move { source.read(&blob, range).await.map_err(io::Error::other) }
        })
        .buffered(2);
    let digest = object.clone();
    let turns = Arc::clone(&folder);
    let _turn = turns.turn_to_unpack().await;
    tokio::task::spawn_blocking(move || {
        let packed = SyncIoBridge::new_with_handle(StreamReader::new(Box::pin(pieces)), runtime);
        let mut packed = Checked { packed, hasher: digest.hasher() };
        let (mut file, mut space) = folder.unnamed_file()?;
        let size = copy(compression, &mut packed, &mut file, &mut space)
            .and_then(|size| io::copy(&mut packed, &mut io::sink()).map(|_| size))
            .map_err(|error| unpack_error(&digest, error))?;
        packed.hasher.check(&digest)?;
        Ok(Unpacked { file: Arc::new(file), size, _space: space })
    })
    .await
    .unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, object, panic)))
}

/// Hashes what passes.
struct Checked<R> {
    packed: R,
    hasher: Hasher,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.packed.read(buffer)?;
        self.hasher.update(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

fn copy(compression: Compression, packed: impl Read, file: &mut File, space: &mut Reservation) -> io::Result<u64> {
    let mut content = compression.decoder(packed)?;
    let mut buffer = vec![0; 256 << 10];
    let mut size: u64 = 0;
    loop {
        let length = content.read(&mut buffer)?;
        let Some(piece) = buffer.get(..length).filter(|piece| !piece.is_empty()) else { return Ok(size) };
        space.grow(length as u64).map_err(io::Error::other)?;
        file.write_all(piece)?;
        size = size.saturating_add(length as u64);
    }
}

fn unpack_error(object: &crate::oci::Digest, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::StorageFull {
        return Error::new(ErrorKind::NoSpace, object, "the file system of the cache folder is full")
            .hint("free space there, or choose another with --cache-dir");
    }
    // Errors of the source and of the space come through io::Error unharmed.
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::new(ErrorKind::Corrupt, object, format!("cannot unpack the layer: {error}")),
    }
}

impl BlobSource for Unpacked {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        let file = Arc::clone(&self.file);
        async move {
            tokio::task::spawn_blocking(move || read_exactly(&file, range))
                .await
                .map_err(io::Error::other)
                .flatten()
                .map_err(|error| Error::new(ErrorKind::Io, &blob.digest, format!("the unpacked layer: {error}")))
        }
        .boxed()
    }
}
