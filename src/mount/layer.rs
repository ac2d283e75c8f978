//! One tar layer: its index is built when somebody first looks into it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;

use super::compressed::{Unfinished, Unpacked, unpack};
use super::indexing::{index_blob, read_head};
use super::zip;
use crate::blob::content::ContentLimits;
use crate::blob::{BlobSource, Compression};
use crate::cache::{CacheFolder, ChunkCache};
use crate::error::{Error, ErrorKind, Result, printable};
use crate::index::{LayerIndex, Limits};
use crate::oci::Descriptor;

/// Where the layers of a mount are read from.
pub struct Sources {
    /// For headers: small reads, each only what it asks for.
    pub headers: Arc<dyn BlobSource>,
    /// For data: through the chunk cache and read-ahead.
    pub data: Arc<dyn BlobSource>,
    /// What `data` keeps its chunks in; content of compressed layers is kept there, too.
    pub chunks: Arc<ChunkCache>,
    pub folder: Option<Arc<CacheFolder>>,
    pub limits: Limits,
    pub content_limits: ContentLimits,
    /// Passes over compressed layers at one time.
    pub passes: Semaphore,
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
    /// Of a compressed layer: what the next look goes on with.
    unfinished: Option<Unfinished>,
}

/// An indexed layer and the blob that its extents point into.
pub struct Contents {
    pub index: LayerIndex,
    pub blob: Descriptor,
    pub source: Arc<dyn BlobSource>,
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

    fn start(self: &Arc<Self>, sources: &Arc<Sources>) -> Shared<BoxFuture<'static, Result<Arc<Contents>>>> {
        let (layer, sources) = (Arc::clone(self), Arc::clone(sources));
        let task = tokio::spawn(async move {
            let mut unfinished = layer.state().unfinished.take();
            let opened = open(&layer.descriptor, &sources, &mut unfinished).await;
            layer.state().unfinished = unfinished;
            opened
        });
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

async fn open(layer: &Descriptor, sources: &Arc<Sources>, unfinished: &mut Option<Unfinished>) -> Result<Contents> {
    let head = read_head(sources.headers.as_ref(), layer).await?;
    let is_zip = zip::is_zip(&head) || zip::is_called_zip(layer) && Compression::of(&head).is_none();
    let (index, blob, source) = match Compression::of(&head) {
        None if is_zip => {
            let Unpacked { index, blob, source } = zip::open(layer, sources).await?;
            (index, blob, source)
        }
        None => {
            let index = index_blob(sources.headers.as_ref(), layer, head, sources.limits).await?;
            (index, layer.clone(), Arc::clone(&sources.data))
        }
        Some(compression) => {
            let Unpacked { index, blob, source } = unpack(layer, compression, sources, unfinished).await?;
            (index, blob, source)
        }
    };
    for warning in index.warnings() {
        tracing::warn!("layer {}: {}", layer.digest, printable(warning));
    }
    Ok(Contents { index, blob, source })
}
