//! Reads: what a file's bytes are, wherever they come from.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::{Bytes, BytesMut};

use super::layer::Contents;
use super::oci_view::{self, Content};
use super::tree::Node;
use super::{Ino, Mount, Place, in_time};
use crate::error::{Error, ErrorKind, Result};
use crate::index::{EntryId, Segment};
use crate::oci::{Descriptor, Digest};

impl Mount {
    /// Exactly `size` bytes, fewer only at the end of the file.
    pub async fn read(&self, file: Ino, offset: u64, size: u32) -> Result<Bytes> {
        let bytes = self.read_file(file, offset, size).await?;
        self.given.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes)
    }

    async fn read_file(&self, file: Ino, offset: u64, size: u32) -> Result<Bytes> {
        let range = offset..offset.saturating_add(u64::from(size));
        match self.place(file)? {
            Place::Node(id) => match self.tree.node(id) {
                Some(Node::Config(number)) => Ok(cut(&self.manifest(number)?.config, range)),
                Some(Node::LayerFile(number)) => self.read_blob_file(&self.layer(number)?.descriptor, range).await,
                _ => Err(Error::new(ErrorKind::Unsupported, "read", "a directory has no bytes")),
            },
            Place::Oci(number) => {
                match in_time(self.options.timeout, oci_view::NAME, self.oci_view()?.content(number)).await? {
                    Content::Bytes(bytes) => Ok(cut(&bytes, range)),
                    Content::Blob(blob) => self.read_blob_file(&blob, range).await,
                    Content::Broken(error) => Err(error),
                    Content::Later => Err(Error::new(ErrorKind::NotFound, oci_view::NAME, "no such manifest")),
                }
            }
            Place::Entry { layer, entry } => {
                let contents = self.contents(layer).await?;
                let read = async {
                    if contents.is_proven(entry) {
                        return contents.read(entry, range).await;
                    }
                    // The header lies in the chunk before the data, if not in the same one: no round trip more.
                    let (proven, bytes) = tokio::join!(self.proven(layer, entry), contents.read(entry, range.clone()));
                    let proven = proven?;
                    match Arc::ptr_eq(&proven, &contents) {
                        true => bytes,
                        false => proven.read(entry, range).await,
                    }
                };
                let read = self.read_in_time(&contents.blob.digest, read).await;
                match &read {
                    Ok(_) => self.layer(layer)?.note_read(None),
                    Err(error) if error.kind == ErrorKind::Corrupt => self.layer(layer)?.note_read(Some(error)),
                    Err(_) => {}
                }
                read
            }
        }
    }

    /// A blob as a file.
    async fn read_blob_file(&self, blob: &Descriptor, range: Range<u64>) -> Result<Bytes> {
        let range = range.start.min(blob.size)..range.end.min(blob.size);
        self.read_in_time(&blob.digest, self.sources.data.read_file(blob, 0..blob.size, range)).await
    }

    /// When a read fails, the kernel asks once more for the page that the program waits for: half the time for each.
    /// The second waits for the same request to the registry, if that is still under way.
    async fn read_in_time(&self, object: &Digest, read: impl Future<Output = Result<Bytes>>) -> Result<Bytes> {
        in_time(self.options.timeout / 2, object, read).await
    }
}

/// `range`, cut at the end.
fn cut(bytes: &Bytes, range: Range<u64>) -> Bytes {
    let length = bytes.len() as u64;
    bytes.slice(range.start.min(length) as usize..range.end.min(length) as usize)
}

impl Contents {
    /// `range` of a file, cut at its end; holes are zeros.
    async fn read(&self, file: EntryId, range: Range<u64>) -> Result<Bytes> {
        self.is_there(file)?;
        let segments: Vec<Segment> = self.index.segments(file, range).collect();
        // Nearly always: one piece, given out without a copy.
        if let [Segment::Data(range)] = segments.as_slice() {
            return match self.index.segments(file, 0..u64::MAX).next() {
                Some(Segment::Data(file)) => self.source.read_file(&self.blob, file, range.clone()).await,
                _ => self.source.read(&self.blob, range.clone()).await,
            };
        }
        let mut bytes = BytesMut::new();
        for segment in segments {
            match segment {
                Segment::Data(range) => bytes.extend_from_slice(&self.source.read(&self.blob, range).await?),
                Segment::Hole(length) => bytes.resize(bytes.len().saturating_add(length as usize), 0),
            }
        }
        Ok(bytes.freeze())
    }
}
