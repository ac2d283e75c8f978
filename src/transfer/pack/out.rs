//! Where layers go when they are made: into an image layout, or to a registry.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::blob::{BlobSource, Local, LocalFiles, Offline};
use crate::cache::CacheFolder;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Hasher};
use crate::transfer::push::{Moved, Push, State};
use crate::transfer::{Blob, BlobWriter, LayoutWriter};

pub enum Out {
    Layout(LayoutWriter),
    Registry(Box<Sender>),
}

/// Sends a layer when it is made. Until then it lies in a file without a name, of which nothing is left whatever ends
/// the process: there are as many as layers are made at once.
pub struct Sender {
    pub push: Push,
    /// Where these files are; `None`: where temporary files are.
    pub folder: Option<CacheFolder>,
    pub runtime: Handle,
    pub moved: Moved,
}

/// A layer in the making.
pub enum Writer<'a> {
    Layout(BlobWriter),
    Unnamed { sender: &'a Sender, file: File, hasher: Hasher, size: u64 },
}

impl Out {
    pub fn new_blob(&self) -> Result<Writer<'_>> {
        match self {
            Self::Layout(layout) => Ok(Writer::Layout(layout.new_blob()?)),
            Self::Registry(sender) => {
                let file = match &sender.folder {
                    Some(folder) => folder.unnamed_file()?.0,
                    None => tempfile::tempfile().map_err(|error| self.failed(&error))?,
                };
                Ok(Writer::Unnamed { sender, file, hasher: Hasher::sha256(), size: 0 })
            }
        }
    }

    pub fn failed(&self, error: &io::Error) -> Error {
        match self {
            Self::Layout(layout) => layout.failed(error),
            Self::Registry(sender) => {
                let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                let kind = if full { ErrorKind::NoSpace } else { ErrorKind::Io };
                let cause = format!("cannot write the layer that is to be sent: {error}");
                let (object, other) = match &sender.folder {
                    Some(folder) => (folder.path().to_owned(), "--cache-dir"),
                    None => (std::env::temp_dir(), "folder with the variable TMPDIR"),
                };
                Error::new(kind, object.display(), cause).hint(format!(
                    "make room for as many layers as --jobs, make fewer at once, or choose another {other}"
                ))
            }
        }
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Layout(blob) => blob.write(bytes),
            Self::Unnamed { file, hasher, size, .. } => {
                let written = file.write(bytes)?;
                hasher.update(bytes.get(..written).unwrap_or_default());
                *size = size.saturating_add(written as u64);
                Ok(written)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer<'_> {
    /// Under its digest, where it is to go. Blocks until it is there.
    pub fn finish(self, media_type: &str) -> Result<Blob> {
        let (sender, file, hasher, size) = match self {
            Self::Layout(blob) => return blob.finish(),
            Self::Unnamed { sender, file, hasher, size } => (sender, file, hasher, size),
        };
        let digest = hasher.finish();
        let files = LocalFiles::default();
        files.add(&digest, file);
        let source: Arc<dyn BlobSource> = Arc::new(Local { source: Arc::new(Offline), files });
        let blob = Descriptor { digest, size, media_type: media_type.to_owned(), annotations: Default::default() };
        let state = sender.runtime.block_on(sender.push.blob(&blob, &source, true, &sender.moved))?;
        Ok(Blob { digest: blob.digest, size, existed: state != State::Sent })
    }
}
