//! The one seam: whoever can give bytes of a blob is a [`BlobSource`] or a decorator of one.
//! Called by `mount`; implementations here and in `registry` and `cache`.

mod background;
pub mod content;
mod described;
mod digested;
mod headers;
mod layout;
mod local;
mod offline;
mod readahead;
mod zip;

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};

pub use background::Background;
pub use content::Compression;
pub use described::Described;
pub use digested::Digested;
pub use headers::Headers;
pub use layout::Layout;
pub use local::{Local, LocalFiles};
pub use offline::Offline;
pub use readahead::{Laps, ReadAhead};
pub use zip::{Zip, read_small_member};

use crate::error::Result;
use crate::oci::Descriptor;

/// Bytes that one read of a stream asks for, in sources that only read.
const PIECE: u64 = 2 << 20;

/// Who keeps what passes by without having been asked for.
pub trait Passing: Send + Sync {
    /// A range that is kept.
    fn kept<'a>(&'a self, blob: &'a Descriptor, range: &'a Range<u64>) -> BoxFuture<'a, Option<Bytes>>;

    /// Keeps bytes of the blob from the start of a chunk on, and gives back the last of them that do not fill one.
    fn pass<'a>(&'a self, blob: &'a Descriptor, at: u64, bytes: Bytes) -> BoxFuture<'a, BytesMut>;
}

pub trait BlobSource: Send + Sync {
    /// The bytes of `range` (half-open, in bytes from the blob's start): exactly that many, or an error.
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>>;

    /// The same for the reader of a file that lies in `file` of the blob: who fetches ahead wants to know.
    fn read_file<'a>(
        &'a self,
        blob: &'a Descriptor,
        file: Range<u64>,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes>> {
        let _ = file;
        self.read(blob, range)
    }

    /// The bytes of `range` in order, as they come, for those who want all of them: however long it is, it is asked for
    /// as a whole where that can be. Ends with the first error.
    fn stream<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxStream<'a, Result<Bytes>> {
        in_pieces(self, blob, range)
    }

    /// How many long answers there may be at once, beside reads. None, where they bring nothing.
    fn long_answers(&self) -> usize {
        0
    }

    /// Bytes that come well within the time of a read, as it went lately: who asks for more at once may get none of it
    /// in time.
    fn soon(&self) -> u64 {
        u64::MAX
    }

    /// Whoever has read one of these to its end goes on with the next: who fetches ahead wants to know.
    fn in_order(&self, blobs: Vec<Descriptor>) {
        let _ = blobs;
    }
}

/// A range by one read after the other.
fn in_pieces<'a>(
    source: &'a (impl BlobSource + ?Sized),
    blob: &'a Descriptor,
    range: Range<u64>,
) -> BoxStream<'a, Result<Bytes>> {
    let next = move |at: u64| async move {
        let end = at.saturating_add(PIECE).min(range.end);
        (at < end).then_some(())?;
        match source.read(blob, at..end).await {
            Ok(bytes) => Some((Ok(bytes), end)),
            Err(error) => Some((Err(error), u64::MAX)),
        }
    };
    stream::unfold(range.start, next).boxed()
}
