//! The blob as it is read for sending: its digest, and how far it is.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt, stream};
use reqwest::Body;

use super::Progress;
use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Hasher};

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;
/// So many of them: a registry as the source has a round trip for each.
const AT_ONCE: usize = 4;

pub(super) struct Bytes {
    blob: Descriptor,
    source: Arc<dyn BlobSource>,
    progress: Progress,
    hashed: Mutex<Hashed>,
    /// Pieces handed to the connection.
    pieces: AtomicU64,
}

struct Hashed {
    /// None: the digest is known to be that of the source.
    hasher: Option<Hasher>,
    /// So many bytes from the start.
    length: u64,
    /// Why the source could not be read.
    failed: Option<Error>,
}

impl Bytes {
    pub fn new(blob: &Descriptor, source: &Arc<dyn BlobSource>, is_checked: bool, progress: &Progress) -> Self {
        let hasher = (!is_checked).then(|| blob.digest.hasher());
        Self {
            blob: blob.clone(),
            source: Arc::clone(source),
            progress: Arc::clone(progress),
            hashed: Mutex::new(Hashed { hasher, length: 0, failed: None }),
            pieces: AtomicU64::new(0),
        }
    }

    pub fn moved_to(&self, offset: u64) {
        (self.progress)(offset);
    }

    /// Pieces handed to the connection so far.
    pub fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    /// Whether all of it has been read.
    pub fn is_read(&self) -> bool {
        self.hashed().length == self.blob.size
    }

    /// Why it could not be read for the last request.
    pub fn failure(&self) -> Option<Error> {
        self.hashed().failed.take()
    }

    fn hashed(&self) -> MutexGuard<'_, Hashed> {
        self.hashed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range for sending.
    pub fn body(self: &Arc<Self>, range: Range<u64>) -> Body {
        let starts = (range.start..range.end).step_by(PIECE as usize);
        let (reading, sending) = (Arc::clone(self), Arc::clone(self));
        let pieces = stream::iter(starts).map(move |start| {
            let (bytes, piece) = (Arc::clone(&reading), start..start.saturating_add(PIECE).min(range.end));
            async move { (piece.clone(), bytes.source.read(&bytes.blob, piece).await) }
        });
        // Read at once, but sent and hashed one after the other.
        Body::wrap_stream(pieces.buffered(AT_ONCE).map(move |(piece, read)| sending.pass(piece, read)))
    }

    fn pass(&self, piece: Range<u64>, read: Result<bytes::Bytes>) -> Result<bytes::Bytes> {
        let mut hashed = self.hashed();
        match &read {
            Ok(bytes) => hashed.take(piece.start, bytes),
            Err(error) => hashed.failed = Some(error.clone()),
        }
        drop(hashed);
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.moved_to(piece.end);
        read
    }

    /// What another process has sent is read, so that the digest is that of all.
    pub async fn hash_up_to(&self, end: u64) -> Result<()> {
        loop {
            let start = {
                let hashed = self.hashed();
                if hashed.length >= end || hashed.hasher.is_none() {
                    return Ok(());
                }
                hashed.length
            };
            let range = start..start.saturating_add(PIECE).min(end);
            let piece = self.source.read(&self.blob, range).await?;
            self.hashed().take(start, &piece);
        }
    }

    /// Whether what was read of the source is what the digest names.
    pub async fn check(&self, end: u64) -> Result<()> {
        self.hash_up_to(end).await?;
        let Some(hasher) = self.hashed().hasher.clone() else { return Ok(()) };
        hasher.check(&self.blob.digest).map_err(|error| {
            let cause = error.cause.replace("the bytes received have", "what was read of it has");
            Error::new(ErrorKind::Corrupt, error.object, cause).hint("it is damaged, or changed while it was pushed")
        })
    }
}

impl Hashed {
    /// Bytes that were hashed already are sent a second time, others follow them.
    fn take(&mut self, start: u64, piece: &[u8]) {
        let known = self.length.saturating_sub(start);
        if let Some(new) = usize::try_from(known).ok().and_then(|known| piece.get(known..))
            && start <= self.length
        {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(new);
            }
            self.length = self.length.saturating_add(new.len() as u64);
        }
    }
}
