//! A compressed layer: one pass over it gives its index and a table of where to start; from then on it is read anywhere.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::indexing::read_head;
use super::layer::Sources;
use crate::blob::content::{Compression, Content, ContentLimits, FOOTER, Pass, Side, Sink, parse_table, table_length};
use crate::blob::{BlobSource, ReadAhead};
use crate::cache::CacheFolder;
use crate::error::{Error, ErrorKind, Result};
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
        None => {
            // Where its disk hangs, as without one.
            let folder = match sources.folder.clone() {
                Some(folder) => folder.answers().await.then_some(folder),
                None => None,
            };
            let (blob, sources) = (layer.clone(), Arc::clone(sources));
            let begin = move || {
                let left =
                    folder.as_ref().and_then(|folder| Work::left_by_another(&blob, compression, &sources, folder));
                left.map_or_else(|| Work::new(&blob, compression, &sources, folder), Ok)
            };
            Box::new(blocking(layer, begin).await?)
        }
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
        work = blocking(layer, move || {
            work.feed(&bytes)?;
            Ok(work)
        })
        .await?;
    }
    let blob = layer.clone();
    let finish = move || {
        let Work { pass, indexer, folder, .. } = *work;
        let made = pass.finish();
        if let Some(folder) = folder {
            if let Ok((table, side)) = &made {
                folder.store_checkpoints(&blob, compression, table, side);
            }
            folder.drop_progress(&blob);
        }
        Ok((made?, indexer))
    };
    let (made, indexer) = blocking(layer, finish).await?;
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
    let Some(folder) = sources.folder.clone() else { return Ok(None) };
    let (blob, turns) = (layer.clone(), folder.turns().clone());
    let made = turns.reads.run(move || folder.load_checkpoints(&blob)).await.flatten();
    Ok(made.map(|(compression, made)| {
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
        Some(_) => sources.chunks.prefetch(layer, 0..1),
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
    fn new(
        layer: &Descriptor,
        compression: Compression,
        sources: &Sources,
        folder: Option<Arc<CacheFolder>>,
    ) -> Result<Self> {
        if layer.size > LARGE {
            let bytes = layer.size;
            tracing::warn!(
                "layer {}: compressed; all its {bytes} bytes are downloaded before it is listed",
                layer.digest
            );
        }
        let side = match &folder {
            Some(folder) => folder.unnamed_file().map(|(file, space)| Side::file(file, space))?,
            None => Side::memory(sources.chunks.reserve(sources.chunks.memory() / 16)),
        };
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
    fn left_by_another(
        layer: &Descriptor,
        compression: Compression,
        sources: &Sources,
        folder: &Arc<CacheFolder>,
    ) -> Option<Self> {
        let (found, progress, side) = folder.load_progress(layer)?;
        let mut indexer = Indexing::new(layer, sources, true);
        let replayed = Pass::read_notes(&side, &progress.notes)
            .try_for_each(|notes| notes.ok().and_then(|notes| indexer.indexer.replay(&notes)));
        let pass = Pass::resume(layer.clone(), found, sources.content_limits, side, progress);
        match (replayed, pass) {
            (Some(()), Ok(pass)) if found == compression => {
                let kept = pass.position();
                tracing::info!("layer {}: reading it goes on at byte {kept} of {}", layer.digest, layer.size);
                Some(Self { pass, indexer, compression, folder: Some(Arc::clone(folder)), kept })
            }
            _ => {
                folder.drop_progress(layer);
                None
            }
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let fed = self.pass.feed(bytes, &mut self.indexer);
        let Some(folder) = &self.folder else { return fed };
        match &fed {
            // Another time it would fail there again, whatever was wrong.
            Err(_) => folder.drop_progress(self.pass.blob()),
            Ok(()) if self.pass.position() >= self.kept.saturating_add(KEEP) => {
                if let Some(progress) = self.pass.progress() {
                    folder.store_progress(self.pass.blob(), self.compression, &progress, self.pass.side());
                }
                self.kept = self.pass.position();
            }
            Ok(()) => {}
        }
        fed
    }
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

async fn blocking<T: Send + 'static>(
    layer: &Descriptor,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, &layer.digest, panic)))
}
