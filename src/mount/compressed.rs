//! A compressed layer: one pass over it gives its index and a table of where to start; from then on it is read anywhere.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::indexing::read_head;
use super::layer::Sources;
use crate::blob::content::{
    Compression, Content, ContentLimits, FOOTER, Pass, Side, Sink, blocking, parse_table, table_length,
};
use crate::blob::{BlobSource, ReadAhead};
use crate::cache::CacheFolder;
use crate::error::{ErrorKind, Result};
use crate::index::{LayerIndex, StreamIndexer, Streamed};
use crate::oci::Descriptor;

/// Bytes of compressed blob fetched at once, two of them ahead of the decoder.
const PIECE: u64 = 4 << 20;

/// Bytes of a compressed layer from which on it is said what listing it costs.
const LARGE: u64 = 64 << 20;

/// Bytes of blob between two times that the progress of a pass is kept for other processes.
const KEEP: u64 = 16 << 20;

/// A pass that goes on where the source failed.
pub struct Unfinished(Box<Work>);

struct Work {
    pass: Pass,
    indexer: Indexing,
    compression: Compression,
    /// Where it is kept how far it is.
    folder: Option<Arc<CacheFolder>>,
    /// Byte of the blob up to which the progress is kept.
    kept: u64,
}

/// Reads the headers as they come by.
struct Indexing {
    blob: Descriptor,
    indexer: StreamIndexer,
}

impl Sink for Indexing {
    fn content(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.indexer.push(at, bytes).map_err(|error| error.on(&self.blob.digest))
    }

    fn notes(&mut self) -> Option<Vec<u8>> {
        self.indexer.notes()
    }
}

/// What is left when a pass is through.
pub struct Unpacked {
    pub index: LayerIndex,
    /// The blob with the content's size.
    pub blob: Descriptor,
    pub source: Arc<dyn BlobSource>,
}

/// Begins a pass, or goes on with one. `unfinished` holds it when the source fails.
pub async fn unpack(
    layer: &Descriptor,
    compression: Compression,
    sources: &Arc<Sources>,
    unfinished: &mut Option<Unfinished>,
) -> Result<Unpacked> {
    if unfinished.is_none()
        && let Some(content) = known(layer, compression, sources).await?
    {
        return index_known(layer, content, sources).await;
    }
    let _turn = sources.passes.acquire().await;
    let mut work = match unfinished.take() {
        Some(Unfinished(work)) => work,
        None => match Work::left_by_another(layer, compression, sources).await {
            Some(work) => Box::new(work),
            None => Box::new(Work::new(layer, compression, sources).await?),
        },
    };
    let pieces = (work.pass.position()..layer.size).step_by(PIECE as usize);
    let mut pieces = stream::iter(pieces.map(|start| start..start.saturating_add(PIECE).min(layer.size)))
        // Through the chunk cache: reads afterwards, and a pass that was killed, find on disk what this one has fetched.
        .map(|range| sources.chunks.read(layer, range))
        .buffered(2);
    while let Some(piece) = pieces.next().await {
        let bytes = match piece {
            Ok(bytes) => bytes,
            Err(error) => {
                *unfinished = Some(Unfinished(work));
                return Err(error);
            }
        };
        let folder = work.folder.clone();
        let feed = move || work.pass.feed(&bytes, &mut work.indexer).map(|()| work);
        work = or_drop_progress(layer, folder, blocking(layer, feed).await).await?;
        work.keep_progress(layer).await;
    }
    let Work { pass, indexer, folder, .. } = *work;
    let made = or_drop_progress(layer, folder.clone(), blocking(layer, move || pass.finish()).await).await?;
    if let Some(folder) = folder {
        folder.store_checkpoints(layer, compression, made.clone()).await;
    }
    let size = made.0.content;
    let Streamed { index, trailing } = indexer.indexer.finish(size).map_err(|error| error.on(&layer.digest))?;
    let index = index.with_trailing(trailing);
    tracing::debug!("layer {}: {} places to start in {size} bytes of content", layer.digest, made.0.points.len());
    let content = Content::new(sources.chunks.clone(), layer.clone(), compression, sources.content_limits, made);
    Ok(Unpacked { index, blob: Descriptor { size, ..layer.clone() }, source: sources.of_content(content) })
}

/// The content's size, and the content, of a blob that can be read without a pass.
pub async fn reopen(layer: &Descriptor, sources: &Sources) -> Result<Option<(u64, Arc<dyn BlobSource>)>> {
    let content = match kept(layer, sources).await? {
        None => {
            // A chunk, which is kept: nobody is asked again.
            let head = read_head(sources.chunks.as_ref(), layer).await?;
            match Compression::of(&head) {
                Some(Compression::Zstd) => by_seek_table(layer, sources).await?,
                _ => None,
            }
        }
        content => content,
    };
    Ok(content.map(|content| (content.size(), sources.of_content(content))))
}

/// Whether it is read anywhere without a pass, by whoever opens it first.
pub async fn has_seek_table(layer: &Descriptor, sources: &Sources) -> Result<bool> {
    let head = read_head(sources.headers.as_ref(), layer).await?;
    Ok(Compression::of(&head) == Some(Compression::Zstd) && by_seek_table(layer, sources).await?.is_some())
}

async fn known(layer: &Descriptor, compression: Compression, sources: &Sources) -> Result<Option<Content>> {
    match kept(layer, sources).await? {
        None if compression == Compression::Zstd => by_seek_table(layer, sources).await,
        content => Ok(content),
    }
}

/// A blob that an earlier mount has passed over.
async fn kept(layer: &Descriptor, sources: &Sources) -> Result<Option<Content>> {
    let Some(folder) = &sources.folder else { return Ok(None) };
    Ok(folder.load_checkpoints(layer).await.map(|(compression, made)| {
        Content::new(sources.chunks.clone(), layer.clone(), compression, sources.content_limits, made)
    }))
}

/// A zstd blob with a seek table. What is read of it is kept, for the next mount needs it again.
async fn by_seek_table(layer: &Descriptor, sources: &Sources) -> Result<Option<Content>> {
    let limits = sources.content_limits;
    if layer.size < FOOTER {
        return Ok(None);
    }
    let footer = sources.chunks.read(layer, layer.size - FOOTER..layer.size).await?;
    let longest = limits.points.saturating_mul(12).saturating_add(FOOTER + 8).min(layer.size);
    let Some(length) = table_length(&footer).filter(|length| *length <= longest) else { return Ok(None) };
    let table = sources.chunks.read(layer, layer.size - length..layer.size).await?;
    let frames = parse_table(&table, layer.size);
    let content = frames.and_then(|frames| Content::of_frames(sources.chunks.clone(), layer.clone(), limits, &frames));
    match content {
        Some(_) => sources.chunks.prefetch(layer, 0..1, None),
        None => tracing::info!("layer {}: its seek table is of no use", layer.digest),
    }
    Ok(content)
}

async fn index_known(layer: &Descriptor, content: Content, sources: &Arc<Sources>) -> Result<Unpacked> {
    let blob = Descriptor { size: content.size(), ..layer.clone() };
    let source = sources.of_content(content);
    let index = sources.indexing.index(source.as_ref(), &blob, Bytes::new()).await?;
    Ok(Unpacked { index, blob, source })
}

impl Work {
    async fn new(layer: &Descriptor, compression: Compression, sources: &Sources) -> Result<Self> {
        if layer.size > LARGE {
            let bytes = layer.size;
            tracing::warn!(
                "layer {}: compressed; all its {bytes} bytes are downloaded before it is listed",
                layer.digest
            );
        }
        let mut folder = sources.folder.clone();
        let side = match &folder {
            Some(folder) => folder.new_side().await.transpose()?,
            None => None,
        };
        let side = side.unwrap_or_else(|| {
            // Where its disk hangs, as without one.
            folder = None;
            Side::memory(sources.chunks.reserve(sources.chunks.memory() / 16))
        });
        let limits: ContentLimits = sources.content_limits;
        Ok(Self {
            pass: Pass::new(layer.clone(), compression, limits, side)?,
            indexer: Indexing::new(layer, sources, folder.is_some()),
            compression,
            folder,
            kept: 0,
        })
    }

    /// What a process that was killed has left.
    async fn left_by_another(layer: &Descriptor, compression: Compression, sources: &Arc<Sources>) -> Option<Self> {
        let folder = sources.folder.clone()?;
        let (found, progress, side) = folder.load_progress(layer).await?;
        let (blob, of, own) = (layer.clone(), Arc::clone(sources), Arc::clone(&folder));
        let go_on = move || {
            let mut indexer = Indexing::new(&blob, &of, true);
            let mut is_left = found == compression;
            for notes in Pass::read_notes(&side, &progress.notes) {
                is_left = is_left && indexer.indexer.replay(&notes?).is_some();
            }
            let pass = Pass::resume(blob, found, of.content_limits, side, progress)?;
            let kept = pass.position();
            Ok(is_left.then_some(Self { pass, indexer, compression, folder: Some(own), kept }))
        };
        match blocking(layer, go_on).await {
            Ok(Some(work)) => {
                tracing::info!("layer {}: reading it goes on at byte {} of {}", layer.digest, work.kept, layer.size);
                Some(work)
            }
            Err(error) if error.kind == ErrorKind::TimedOut => None,
            _ => {
                folder.drop_progress(layer).await;
                None
            }
        }
    }

    async fn keep_progress(&mut self, layer: &Descriptor) {
        let Some(folder) = self.folder.clone() else { return };
        if self.pass.position() < self.kept.saturating_add(KEEP) {
            return;
        }
        self.kept = self.pass.position();
        if let Some(progress) = self.pass.progress() {
            let side = Arc::clone(self.pass.side());
            folder.store_progress(layer, self.compression, progress, side).await;
        }
    }
}

/// Another time a pass would fail there again, whatever was wrong, but for a disk that does not answer.
async fn or_drop_progress<T>(layer: &Descriptor, folder: Option<Arc<CacheFolder>>, done: Result<T>) -> Result<T> {
    if done.as_ref().is_err_and(|error| error.kind != ErrorKind::TimedOut)
        && let Some(folder) = folder
    {
        folder.drop_progress(layer).await;
    }
    done
}

impl Indexing {
    fn new(layer: &Descriptor, sources: &Sources, is_kept: bool) -> Self {
        let limits = sources.indexing.limits;
        let indexer = if is_kept { StreamIndexer::with_notes(limits) } else { StreamIndexer::new(limits) };
        Self { blob: layer.clone(), indexer }
    }
}

impl Sources {
    /// Content through the chunk cache and read-ahead.
    pub fn of_content(&self, content: Content) -> Arc<dyn BlobSource> {
        let content = Arc::new(content.kept_in(Arc::clone(&self.chunks), 0));
        Arc::new(ReadAhead::new(Arc::new(self.chunks.of_content(content))))
    }
}
