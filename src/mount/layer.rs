//! One tar layer: its index is loaded or built when somebody first looks into it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::indexing::{index_blob, read_head};
use super::stored::{self, Kept};
use crate::blob::{BlobSource, Compression, unpack};
use crate::cache::{CacheFolder, Indexes};
use crate::error::{Error, ErrorKind, Result, printable};
use crate::index::{Content, LayerIndex, Limits};
use crate::oci::Descriptor;

/// Where the layers of a mount are read from.
pub struct Sources {
    /// For headers: small reads, each only what it asks for.
    pub headers: Arc<dyn BlobSource>,
    /// For data: through the chunk cache and read-ahead.
    pub data: Arc<dyn BlobSource>,
    pub folder: Option<Arc<CacheFolder>>,
    pub indexes: Option<Arc<Indexes>>,
    pub limits: Limits,
}

pub struct Layer {
    pub descriptor: Descriptor,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    contents: Option<Arc<Contents>>,
    coming: Option<Shared<BoxFuture<'static, Result<Arc<Contents>>>>>,
    /// Why the last attempt failed; the next look tries again.
    error: Option<Error>,
}

/// An indexed layer and the blob that its extents point into.
pub struct Contents {
    pub index: Arc<LayerIndex>,
    pub blob: Descriptor,
    pub source: Arc<dyn BlobSource>,
    /// Ends when the index is kept for later mounts, or cannot be.
    pub kept: Kept,
}

impl Layer {
    pub fn new(descriptor: Descriptor) -> Self {
        Self { descriptor, state: Mutex::default() }
    }

    /// The contents if they are known; asks nobody.
    pub fn known(&self) -> Option<Arc<Contents>> {
        self.state().contents.clone()
    }

    pub fn error(&self) -> Option<Error> {
        self.state().error.clone()
    }

    /// The contents; all who ask meanwhile wait for one indexing, which goes on if they give up.
    pub async fn contents(self: &Arc<Self>, sources: &Arc<Sources>) -> Result<Arc<Contents>> {
        let coming = {
            let mut state = self.state();
            if let Some(contents) = &state.contents {
                return Ok(Arc::clone(contents));
            }
            state.coming.get_or_insert_with(|| self.start(sources)).clone()
        };
        coming.await
    }

    /// See [`super::Mount::index_ahead`].
    pub async fn index_ahead(&self, sources: &Arc<Sources>) -> Result<u64> {
        let Contents { index, kept, .. } = open(&self.descriptor, sources).await?;
        kept.await?;
        Ok(index.len() as u64)
    }

    fn start(self: &Arc<Self>, sources: &Arc<Sources>) -> Shared<BoxFuture<'static, Result<Arc<Contents>>>> {
        let (layer, sources) = (Arc::clone(self), Arc::clone(sources));
        let task = tokio::spawn(async move { open(&layer.descriptor, &sources).await });
        let layer = Arc::clone(self);
        let finished = tokio::spawn(async move {
            let result = match task.await {
                Ok(result) => result.map(Arc::new),
                Err(panic) => Err(Error::new(ErrorKind::Io, &layer.descriptor.digest, panic)),
            };
            let mut state = layer.state();
            state.coming = None;
            match &result {
                Ok(contents) => (state.contents, state.error) = (Some(Arc::clone(contents)), None),
                Err(error) => state.error = Some(error.clone()),
            }
            result
        });
        finished
            .map(|result| result.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, "layer", panic))))
            .boxed()
            .shared()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open(layer: &Descriptor, sources: &Arc<Sources>) -> Result<Contents> {
    let contents = match stored::contents(layer, sources).await {
        Some(contents) => contents,
        None => {
            let Opened { content, blob, headers, source, head } = open_blob(layer, sources).await?;
            let index = Arc::new(index_blob(headers.as_ref(), &blob, head, sources.limits).await?);
            let kept = stored::keep(layer, &index, content, sources);
            Contents { index, blob, source, kept }
        }
    };
    for warning in contents.index.warnings() {
        tracing::warn!("layer {}: {}", layer.digest, printable(warning));
    }
    if contents.index.trailing() {
        tracing::warn!("layer {}: bytes follow the end of the archive; they are not shown", layer.digest);
    }
    Ok(contents)
}

/// A blob, or what it holds in compressed form.
pub struct Opened {
    pub content: Content,
    pub blob: Descriptor,
    pub headers: Arc<dyn BlobSource>,
    pub source: Arc<dyn BlobSource>,
    /// What is known of its start.
    pub head: Bytes,
}

pub async fn open_blob(layer: &Descriptor, sources: &Arc<Sources>) -> Result<Opened> {
    let head = read_head(sources.headers.as_ref(), layer).await?;
    let Some(compression) = Compression::of(&head) else {
        let (headers, source) = (Arc::clone(&sources.headers), Arc::clone(&sources.data));
        return Ok(Opened { content: Content::Blob, blob: layer.clone(), headers, source, head });
    };
    let folder = sources.folder.clone().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, &layer.digest, "a compressed layer is unpacked in a cache folder")
            .hint("give a writable one with --cache-dir")
    })?;
    let unpacked = Arc::new(unpack(Arc::clone(&sources.headers), layer.clone(), compression, folder).await?);
    Ok(Opened {
        content: Content::Unpacked { size: unpacked.size },
        blob: Descriptor { size: unpacked.size, ..layer.clone() },
        headers: unpacked.clone(),
        source: unpacked,
        head: Bytes::new(),
    })
}
