//! A compressed layer: one pass over it gives its index and a table of where to start; from then on it is read anywhere.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::layer::Sources;
use crate::blob::content::{Compression, Content, ContentLimits, FOOTER, Pass, Side, Sink, parse_table, table_length};
use crate::blob::{BlobSource, ReadAhead};
use crate::error::{Error, ErrorKind, Result};
use crate::index::{LayerIndex, StreamIndexer, Streamed};
use crate::oci::Descriptor;

/// Bytes of compressed blob fetched at once, two of them ahead of the decoder.
const PIECE: u64 = 4 << 20;

/// Bytes of a compressed layer from which on it is said what listing it costs.
const LARGE: u64 = 64 << 20;

/// A pass that goes on where the source failed.
pub struct Unfinished(Box<Work>);

struct Work {
    pass: Pass,
    indexer: Indexing,
    compression: Compression,
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
        None => Box::new(Work::new(layer, compression, sources)?),
    };
    let pieces = (work.pass.position()..layer.size).step_by(PIECE as usize);
    // What has come once for the pass is on disk for the reads after it.
    let raw = match sources.chunks.disk() {
        Some(_) => sources.chunks.as_ref(),
        None => sources.headers.as_ref(),
    };
    let mut pieces = stream::iter(pieces.map(|start| start..start.saturating_add(PIECE).min(layer.size)))
        .map(|range| raw.read(layer, range))
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
            work.pass.feed(&bytes, &mut work.indexer)?;
            Ok(work)
        })
        .await?;
    }
    let Work { pass, indexer, compression } = *work;
    let made = blocking(layer, move || pass.finish()).await?;
    let size = made.0.content;
    if let Some(folder) = sources.folder.clone() {
        let (blob, (table, side)) = (layer.clone(), made.clone());
        let storing = move || {
            folder.store_checkpoints(&blob, compression, &table, &side);
            Ok(())
        };
        blocking(layer, storing).await?;
    }
    let Streamed { index, trailing } = indexer.indexer.finish(size).map_err(|error| error.on(&layer.digest))?;
    let index = index.with_trailing(trailing);
    tracing::debug!("layer {}: {} places to start in {size} bytes of content", layer.digest, made.0.points.len());
    let content = Content::new(sources.chunks.clone(), layer.clone(), compression, sources.content_limits, made);
    Ok(Unpacked { index, blob: Descriptor { size, ..layer.clone() }, source: sources.of_content(content) })
}

/// What can be read without a pass: a zstd blob with a seek table, or one that an earlier mount has passed over.
async fn known(layer: &Descriptor, compression: Compression, sources: &Arc<Sources>) -> Result<Option<Content>> {
    let limits = sources.content_limits;
    if let Some(folder) = sources.folder.clone() {
        let blob = layer.clone();
        if let Some(made) = blocking(layer, move || Ok(folder.load_checkpoints(&blob, compression))).await? {
            return Ok(Some(Content::new(sources.chunks.clone(), layer.clone(), compression, limits, made)));
        }
    }
    if compression != Compression::Zstd || layer.size < FOOTER {
        return Ok(None);
    }
    let footer = sources.headers.read(layer, layer.size - FOOTER..layer.size).await?;
    let longest = limits.points.saturating_mul(12).saturating_add(FOOTER + 8).min(layer.size);
    let Some(length) = table_length(&footer).filter(|length| *length <= longest) else { return Ok(None) };
    let table = sources.headers.read(layer, layer.size - length..layer.size).await?;
    let frames = parse_table(&table, layer.size);
    let content = frames.and_then(|frames| Content::of_frames(sources.chunks.clone(), layer.clone(), limits, &frames));
    if content.is_none() {
        tracing::info!("layer {}: its seek table is of no use", layer.digest);
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
    fn new(layer: &Descriptor, compression: Compression, sources: &Sources) -> Result<Self> {
        if layer.size > LARGE {
            let bytes = layer.size;
            tracing::warn!(
                "layer {}: compressed; all its {bytes} bytes are downloaded before it is listed",
                layer.digest
            );
        }
        let side = match &sources.folder {
            Some(folder) => folder.unnamed_file().map(|(file, space)| Side::file(file, space))?,
            None => Side::memory(sources.chunks.reserve(sources.chunks.memory() / 16)),
        };
        let limits: ContentLimits = sources.content_limits;
        Ok(Self {
            pass: Pass::new(layer.clone(), compression, limits, side)?,
            indexer: Indexing { blob: layer.clone(), indexer: StreamIndexer::new(sources.indexing.limits) },
            compression,
        })
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
