//! Blobs that lie on this machine as files, checked: they stand in for whoever else has them.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::{BlobSource, in_pieces};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest};

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct LocalFiles(Arc<Mutex<HashMap<Digest, Arc<File>>>>);

impl LocalFiles {
    /// The file is all of the blob, and has its digest.
    pub fn add(&self, digest: &Digest, file: File) {
        self.files().insert(digest.clone(), Arc::new(file));
    }

    pub fn remove(&self, digest: &Digest) {
        self.files().remove(digest);
    }

    fn files(&self) -> MutexGuard<'_, HashMap<Digest, Arc<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the source for what has no file.
pub struct Local {
    pub source: Arc<dyn BlobSource>,
    pub files: LocalFiles,
}

impl BlobSource for Local {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        let Some(file) = self.files.files().get(&blob.digest).cloned() else { return self.source.read(blob, range) };
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let failed = |cause: &dyn std::fmt::Display| Error::new(ErrorKind::Io, &blob.digest, cause);
        async move {
            let read = move || {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, range.start).map(|()| Bytes::from(bytes))
            };
            let read = tokio::task::spawn_blocking(read).await.map_err(|panic| failed(&panic))?;
            read.map_err(|error| failed(&error))
        }
        .boxed()
    }

    fn stream<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxStream<'a, Result<Bytes>> {
        let is_here = self.files.files().contains_key(&blob.digest);
        if is_here { in_pieces(self, blob, range) } else { self.source.stream(blob, range) }
    }

    fn long_answers(&self) -> usize {
        self.source.long_answers()
    }

    fn soon(&self) -> u64 {
        self.source.soon()
    }
}
