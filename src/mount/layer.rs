//! One tar layer: its index is loaded or built when somebody first looks into it.

use std::mem::take;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;

use super::attached::{self, Attached};
use super::compressed::{self, Unfinished, Unpacked, unpack};
use super::indexing::{Indexing, read_head};
use super::proof::Claim;
use super::stored::{self, Kept};
use super::zip;
use crate::blob::content::ContentLimits;
use crate::blob::{BlobSource, Compression, LocalFiles};
use crate::cache::{CacheFolder, ChunkCache, Indexes};
use crate::error::{Error, ErrorKind, Result, printable};
use crate::index::{AttachedPart, Content, EntryId, LayerIndex, Renumbered};
use crate::oci::Descriptor;

/// Where the layers of a mount are read from.
pub struct Sources {
    /// For headers: small reads, each only what it asks for.
    pub headers: Arc<dyn BlobSource>,
    /// For data: through the chunk cache and read-ahead.
    pub data: Arc<dyn BlobSource>,
    /// What `data` keeps its chunks in; content of compressed layers is kept there, too.
    pub chunks: Arc<ChunkCache>,
    /// Blobs that need not be asked for.
    pub local: LocalFiles,
    pub folder: Option<Arc<CacheFolder>>,
    pub indexes: Option<Arc<Indexes>>,
    /// What others have attached.
    pub attached: Option<Arc<Attached>>,
    pub indexing: Indexing,
    pub index_memory: Arc<IndexMemory>,
    pub content_limits: ContentLimits,
    /// Whether compressed layers are unpacked, which is to download them.
    pub unpacks: bool,
    /// Passes over compressed layers at one time.
    pub passes: Semaphore,
}

pub struct Layer {
    pub descriptor: Descriptor,
    looked_into: AtomicBool,
    /// By the clock of the mount that counts looks.
    last_look: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    contents: Option<Arc<Contents>>,
    coming: Option<Coming>,
    /// Why the last attempt failed; the next look tries again.
    error: Option<Error>,
    /// Of a compressed layer: what the next look goes on with.
    unfinished: Option<Unfinished>,
    shown: Shown,
}

/// What the numbers that were given out come from.
#[derive(Clone, Default)]
enum Shown {
    #[default]
    Nothing,
    /// The layer itself.
    Truth,
    /// An index that is attached.
    Claim,
    /// One that was wrong, or could not be proven.
    Distrusted(Arc<LayerIndex>),
}

/// An indexing under way.
#[derive(Clone)]
struct Coming {
    result: Shared<BoxFuture<'static, Result<Arc<Contents>>>>,
    /// Nobody had asked for it.
    ahead: bool,
}

/// Bytes that the indexes of all layers take.
#[derive(Debug, Default)]
pub struct IndexMemory(AtomicU64);

impl IndexMemory {
    pub fn bytes(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub fn hold(self: &Arc<Self>, bytes: u64) -> Held {
        self.0.fetch_add(bytes, Relaxed);
        Held { memory: Arc::clone(self), bytes }
    }
}

/// The share of one index, given back on drop.
pub struct Held {
    memory: Arc<IndexMemory>,
    bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.0.fetch_sub(self.bytes, Relaxed);
    }
}

/// An indexed layer and the blob that its extents point into.
pub struct Contents {
    pub index: Arc<LayerIndex>,
    pub blob: Descriptor,
    pub source: Arc<dyn BlobSource>,
    /// Ends when the index is kept for later mounts, or cannot be.
    pub kept: Kept,
    /// The index is attached: what is proven of it.
    pub claim: Option<Claim>,
    /// What was shown otherwise before: see [`Renumbered`].
    pub changed: Mutex<Vec<(EntryId, Vec<u8>)>>,
    pub _held: Held,
}

impl Contents {
    /// What was shown otherwise before; told once.
    pub fn take_changed(&self) -> Vec<(EntryId, Vec<u8>)> {
        take(&mut self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the members lie in the layer's blob as they are.
    pub fn is_plain(&self, sources: &Sources) -> bool {
        Arc::ptr_eq(&self.source, &sources.data)
    }
}

impl Layer {
    pub fn new(descriptor: Descriptor) -> Self {
        Self { descriptor, looked_into: AtomicBool::new(false), last_look: AtomicU64::new(0), state: Mutex::default() }
    }

    /// The contents if they are known; asks nobody.
    pub fn known(&self) -> Option<Arc<Contents>> {
        self.state().contents.clone()
    }

    /// Takes note of a look.
    pub fn look(&self, now: u64) {
        self.last_look.store(now, Relaxed);
    }

    pub fn last_look(&self) -> u64 {
        self.last_look.load(Relaxed)
    }

    /// Forgets the contents: the next look loads or makes them again, with the same numbers.
    pub fn forget(&self) {
        self.state().contents = None;
    }

    /// Whether this is the first look into it.
    pub fn is_first_look(&self) -> bool {
        !self.looked_into.load(Relaxed) && !self.looked_into.swap(true, Relaxed)
    }

    /// Bytes of its content were wrong, or no more.
    pub fn note_read(&self, error: Option<&Error>) {
        self.state().error = error.cloned();
    }

    pub fn error(&self) -> Option<Error> {
        self.state().error.clone()
    }

    /// The contents; all who ask meanwhile wait for one indexing, which goes on if they give up.
    pub async fn contents(self: &Arc<Self>, sources: &Arc<Sources>) -> Result<Arc<Contents>> {
        loop {
            let coming = self.coming(sources, false);
            match coming.result.await {
                // Who asks gets an attempt of its own.
                Err(_) if coming.ahead => {}
                result => return result,
            }
        }
    }

    /// See [`super::Mount::index_ahead`].
    pub async fn index_ahead(&self, sources: &Arc<Sources>) -> Result<u64> {
        let Contents { index, kept, .. } = truth(&self.descriptor, sources, &mut None).await?;
        kept.await?;
        Ok(index.len() as u64)
    }

    /// See [`super::Mount::attachments`].
    pub async fn attachable(&self, sources: &Arc<Sources>) -> Option<AttachedPart> {
        let layer = &self.descriptor;
        let contents = truth(layer, sources, &mut None).await.ok()?;
        let is_read_anywhere =
            contents.is_plain(sources) || compressed::has_seek_table(layer, sources).await.unwrap_or(false);
        is_read_anywhere.then(|| attached::part(layer, &contents, sources)).flatten()
    }

    /// From now on the layer itself is asked, and no index that is attached; whether it was so before.
    pub fn distrust(&self, claimed: &Contents) -> bool {
        let mut state = self.state();
        if claimed.claim.is_none() || matches!(state.shown, Shown::Distrusted(_)) {
            return true;
        }
        (state.shown, state.contents) = (Shown::Distrusted(Arc::clone(&claimed.index)), None);
        false
    }

    /// Indexes the layer before anybody asks; a failure is forgotten.
    pub async fn look_ahead(self: &Arc<Self>, sources: &Arc<Sources>) {
        let _ = self.coming(sources, true).result.await;
    }

    fn coming(self: &Arc<Self>, sources: &Arc<Sources>, ahead: bool) -> Coming {
        let mut state = self.state();
        if let Some(contents) = &state.contents {
            let result = std::future::ready(Ok(Arc::clone(contents))).boxed().shared();
            return Coming { result, ahead: false };
        }
        state.coming.get_or_insert_with(|| Coming { result: self.start(sources, ahead), ahead }).clone()
    }

    fn start(
        self: &Arc<Self>,
        sources: &Arc<Sources>,
        ahead: bool,
    ) -> Shared<BoxFuture<'static, Result<Arc<Contents>>>> {
        let (layer, sources) = (Arc::clone(self), Arc::clone(sources));
        let task = tokio::spawn(async move {
            let mut unfinished = layer.state().unfinished.take();
            let shown = layer.state().shown.clone();
            let opened = open(&layer.descriptor, &sources, &mut unfinished, shown).await;
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
                // It was distrusted meanwhile.
                Ok(contents) if contents.claim.is_some() && matches!(state.shown, Shown::Distrusted(_)) => {}
                Ok(contents) => {
                    if contents.claim.is_some() {
                        state.shown = Shown::Claim;
                    } else if matches!(state.shown, Shown::Nothing) {
                        state.shown = Shown::Truth;
                    }
                    (state.contents, state.error) = (Some(Arc::clone(contents)), None);
                }
                Err(error) if !ahead => state.error = Some(error.clone()),
                Err(_) => {}
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

/// With the numbers that were shown before.
async fn open(
    layer: &Descriptor,
    sources: &Arc<Sources>,
    unfinished: &mut Option<Unfinished>,
    shown: Shown,
) -> Result<Contents> {
    let contents = match shown {
        Shown::Distrusted(claimed) => {
            let mut contents = truth(layer, sources, unfinished).await?;
            let Renumbered { index, changed } = (*contents.index).clone().renumbered(&claimed);
            (contents.index, contents.changed) = (Arc::new(index), Mutex::new(changed));
            contents
        }
        Shown::Claim => stored::claimed(layer, sources).await.ok_or_else(|| {
            Error::new(ErrorKind::Unreachable, &layer.digest, "its attached index cannot be had a second time")
                .hint("try again, or mount with --no-index")
        })?,
        Shown::Truth => truth(layer, sources, unfinished).await?,
        Shown::Nothing => match stored::contents(layer, sources).await {
            Some(contents) => contents,
            None => match stored::claimed(layer, sources).await {
                Some(contents) => contents,
                None => truth(layer, sources, unfinished).await?,
            },
        },
    };
    for warning in contents.index.warnings() {
        tracing::warn!("layer {}: {}", layer.digest, printable(warning));
    }
    if contents.index.trailing() {
        tracing::warn!(
            "layer {}: bytes follow the end of the archive; only tar -i would read them: not shown",
            layer.digest
        );
    }
    Ok(contents)
}

/// What the layer itself says, now or when its index was kept.
async fn truth(layer: &Descriptor, sources: &Arc<Sources>, unfinished: &mut Option<Unfinished>) -> Result<Contents> {
    match stored::contents(layer, sources).await {
        Some(contents) => Ok(contents),
        None => {
            let Opened { index, content, blob, source } = open_blob(layer, sources, unfinished).await?;
            let index = Arc::new(index);
            let kept = stored::keep(layer, &index, content, sources);
            let held = sources.index_memory.hold(index.memory());
            Ok(Contents { index, blob, source, kept, claim: None, changed: Mutex::default(), _held: held })
        }
    }
}

/// What a blob holds, looked into.
pub struct Opened {
    pub index: LayerIndex,
    pub content: Content,
    /// The blob with the size of its content.
    pub blob: Descriptor,
    pub source: Arc<dyn BlobSource>,
}

pub async fn open_blob(
    layer: &Descriptor,
    sources: &Arc<Sources>,
    unfinished: &mut Option<Unfinished>,
) -> Result<Opened> {
    let head = read_head(sources.headers.as_ref(), layer).await?;
    match Compression::of(&head) {
        None if zip::is_zip(&head) || zip::is_called_zip(layer) => {
            let Unpacked { index, blob, source } = zip::open(layer, sources).await?;
            Ok(Opened { index, content: Content::Unpacked { size: blob.size }, blob, source })
        }
        None => {
            let index = sources.indexing.index(sources.headers.as_ref(), layer, head).await?;
            Ok(Opened { index, content: Content::Blob, blob: layer.clone(), source: Arc::clone(&sources.data) })
        }
        Some(_) if !sources.unpacks => {
            Err(Error::new(ErrorKind::Unsupported, &layer.digest, "not unpacked before somebody asks"))
        }
        Some(compression) => {
            let Unpacked { index, blob, source } = unpack(layer, compression, sources, unfinished).await?;
            Ok(Opened { index, content: Content::Unpacked { size: blob.size }, blob, source })
        }
    }
}
