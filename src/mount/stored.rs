//! Indexes that are kept from one mount to the next.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::compressed::{Unfinished, reopen};
use super::layer::{Contents, Opened, Sources, open_blob};
use super::proof::Claim;
use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{Content, LayerIndex};
use crate::oci::Descriptor;

/// Whether an index is kept for later mounts; known when it is.
pub type Kept = Shared<BoxFuture<'static, Result<()>>>;

/// The contents of a layer whose index somebody has attached.
pub async fn claimed(layer: &Descriptor, sources: &Arc<Sources>) -> Option<Contents> {
    let (index, content) = sources.attached.as_ref()?.index(layer, &sources.indexing.limits).await?;
    let claim = Some(Claim::of(&index));
    Some(Contents { claim, ..of_index(index, content, layer, sources)? })
}

/// The contents of a layer whose index is kept, without a request.
pub async fn contents(layer: &Descriptor, sources: &Arc<Sources>) -> Option<Contents> {
    let (index, content) = sources.indexes.as_ref()?.load(layer, &sources.indexing.limits).await?;
    of_index(index, content, layer, sources)
}

fn of_index(index: LayerIndex, content: Content, layer: &Descriptor, sources: &Arc<Sources>) -> Option<Contents> {
    let (blob, source): (_, Arc<dyn BlobSource>) = match content {
        Content::Blob => (layer.clone(), Arc::clone(&sources.data)),
        // Who looks ahead does not unpack, and must not do so later.
        Content::Unpacked { .. } if !sources.unpacks => return None,
        Content::Unpacked { size } => {
            let later = Later {
                layer: layer.clone(),
                content,
                sources: Arc::clone(sources),
                opened: Mutex::default(),
                unfinished: Arc::default(),
            };
            (Descriptor { size, ..layer.clone() }, Arc::new(later))
        }
    };
    let kept = std::future::ready(Ok(())).boxed().shared();
    let held = sources.index_memory.hold(index.memory());
    let index = Arc::new(index);
    Some(Contents { index, blob, source, kept, claim: None, changed: Mutex::default(), _held: held })
}

/// Keeps an index, in the background: who looks into the layer does not wait for it.
pub fn keep(layer: &Descriptor, index: &Arc<LayerIndex>, content: Content, sources: &Sources) -> Kept {
    let Some(indexes) = sources.indexes.clone() else {
        let cause = "its index is not kept: there is no cache folder";
        return std::future::ready(Err(Error::new(ErrorKind::Unsupported, &layer.digest, cause))).boxed().shared();
    };
    let (blob, index, object) = (layer.clone(), Arc::clone(index), layer.digest.clone());
    let storing = tokio::spawn(async move {
        indexes.store(&blob, &index, content).await.inspect_err(|error| tracing::debug!("{error}"))
    });
    async move { storing.await.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, object, panic))) }.boxed().shared()
}

/// The content of a compressed layer whose index is known: unpacked when it is first read.
struct Later {
    layer: Descriptor,
    /// What the index is of.
    content: Content,
    sources: Arc<Sources>,
    opened: Mutex<Option<Opening>>,
    /// A pass that the registry broke off.
    unfinished: Arc<tokio::sync::Mutex<Option<Unfinished>>>,
}

type Opening = Shared<BoxFuture<'static, Result<Arc<dyn BlobSource>>>>;

impl Later {
    /// All who read meanwhile wait for one unpacking, which goes on if they give up. One that failed is tried again.
    fn opening(&self) -> Opening {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opening) = opened.as_ref().filter(|opening| !matches!(opening.peek(), Some(Err(_)))) {
            return opening.clone();
        }
        let (layer, content, sources) = (self.layer.clone(), self.content, Arc::clone(&self.sources));
        let unfinished = Arc::clone(&self.unfinished);
        let opening = async move {
            let (found, source) = match reopen(&layer, &sources).await? {
                Some((size, source)) => (Content::Unpacked { size }, source),
                None => {
                    let Opened { content, source, .. } =
                        open_blob(&layer, &sources, &mut *unfinished.lock().await).await?;
                    (content, source)
                }
            };
            if found == content {
                return Ok(source);
            }
            let wrong = "it is of other content than the layer holds";
            if let Some(indexes) = &sources.indexes {
                indexes.drop_wrong(&layer.digest, wrong).await;
            }
            Err(Error::new(ErrorKind::Corrupt, &layer.digest, format!("its stored index is wrong: {wrong}"))
                .hint("mount again"))
        };
        let opening = opening.boxed().shared();
        tokio::spawn(opening.clone());
        opened.insert(opening).clone()
    }
}

impl BlobSource for Later {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            let source = self.opening().await?;
            source.read(blob, range).await
        }
        .boxed()
    }
    fn read_file<'a>(
        &'a self,
        blob: &'a Descriptor,
        file: Range<u64>,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            let source = self.opening().await?;
            source.read_file(blob, file, range).await
        }
        .boxed()
    }
}
