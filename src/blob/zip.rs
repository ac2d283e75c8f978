//! The members of a ZIP archive: stored ones are ranges of the blob, deflated ones are inflated when they are read.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;

use super::content::{Compression, Content, ContentLimits, Pass, Side, Sink, blocking};
use super::{BlobSource, ReadAhead};
use crate::cache::{CacheFolder, ChunkCache};
use crate::error::{Error, ErrorKind, Result};
use crate::index::{Method, ZipMember, data_start};
use crate::oci::Descriptor;

/// Bytes of content of a member that is inflated whole whenever a part of it is missing.
const SMALL: u64 = 1 << 20;
/// Bytes of blob read at once by the pass over a larger one.
const PIECE: u64 = 4 << 20;
/// Larger members whose checkpoints are kept.
const KEPT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63);

/// Reads places of a [`crate::index::ZipIndex`].
pub struct Zip {
    /// Bytes of the blob, for stored members.
    data: Arc<dyn BlobSource>,
    inflated: ReadAhead,
    members: Arc<Members>,
}

/// What is needed to inflate.
struct Members {
    blob: Descriptor,
    /// In the order of their places.
    members: Vec<ZipMember>,
    chunks: Arc<ChunkCache>,
    folder: Option<Arc<CacheFolder>>,
    limits: ContentLimits,
    passes: Mutex<Passes>,
}

type Coming = Shared<BoxFuture<'static, Result<Arc<Content>>>>;

struct Passes {
    done: LruCache<u64, Arc<Content>>,
    coming: HashMap<u64, Coming>,
}

impl Zip {
    pub fn new(
        blob: Descriptor,
        members: Vec<ZipMember>,
        data: Arc<dyn BlobSource>,
        chunks: Arc<ChunkCache>,
        folder: Option<Arc<CacheFolder>>,
        limits: ContentLimits,
    ) -> Self {
        let passes = Mutex::new(Passes { done: LruCache::new(KEPT), coming: HashMap::new() });
        let members = Arc::new(Members { blob, members, chunks: chunks.clone(), folder, limits, passes });
        let inflated = ReadAhead::new(Arc::new(chunks.of_content(Arc::new(Inflated(members.clone())))));
        Self { data, inflated, members }
    }

    async fn read_member(&self, member: &ZipMember, range: Range<u64>) -> Result<Bytes> {
        let (start, end) = (member.place, member.place.saturating_add(member.size));
        let blob = &self.members.blob;
        match member.method {
            Method::Unreadable(reason) => Err(Error::new(ErrorKind::Unsupported, &blob.digest, reason)),
            Method::Stored => {
                let data = self.members.data_start(member).await?;
                let wanted = data.saturating_add(range.start - start)..data.saturating_add(range.end - start);
                let file = data..data.saturating_add(member.size);
                let bytes = self.data.read_file(blob, file, wanted).await?;
                if range == (start..end) && crc32fast::hash(&bytes) != member.crc {
                    return Err(damaged(blob));
                }
                Ok(bytes)
            }
            Method::Deflated => {
                // Nothing is fetched beyond this member: the next one may be damaged.
                let view = Descriptor { size: end, ..blob.clone() };
                if member.size > SMALL {
                    return self.inflated.read_file(&view, start..end, range).await;
                }
                let whole = self.inflated.read(&view, start..end).await?;
                let cut = (range.start - start) as usize..(range.end - start) as usize;
                Ok(whole.slice(cut.start.min(whole.len())..cut.end.min(whole.len())))
            }
        }
    }
}

impl BlobSource for Zip {
    fn read<'a>(&'a self, _blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            if range.is_empty() {
                return Ok(Bytes::new());
            }
            let member = self.members.at(&range).ok_or_else(|| damaged(&self.members.blob))?;
            self.read_member(member, range).await
        }
        .boxed()
    }
}

/// Content of deflated members. A read never spans two of them.
struct Inflated(Arc<Members>);

impl BlobSource for Inflated {
    fn read<'a>(&'a self, _blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            let members = &self.0;
            let member = members.at(&range).ok_or_else(|| damaged(&members.blob))?;
            let inside = range.start - member.place..range.end - member.place;
            if member.size > SMALL {
                let content = members.large(member).await?;
                return content.read(&members.blob, inside).await;
            }
            let whole = members.small(member).await?;
            Ok(whole.slice(inside.start as usize..inside.end as usize))
        }
        .boxed()
    }
}

/// The whole content of a member whose length the caller has bounded; for targets of symbolic links, which are
/// `Limits::name_bytes` at most. `None`: it is damaged.
pub async fn read_small_member(
    headers: &dyn BlobSource,
    blob: &Descriptor,
    member: &ZipMember,
) -> Result<Option<Bytes>> {
    let local = headers.read(blob, member.header..member.header.saturating_add(30).min(blob.size)).await?;
    let Ok(start) = data_start(member.header, &local) else { return Ok(None) };
    let end = start.saturating_add(member.packed);
    if end > blob.size {
        return Ok(None);
    }
    let packed = headers.read(blob, start..end).await?;
    let (member, blob) = (member.clone(), blob.clone());
    blocking(&blob.clone(), move || Ok(content_of(&blob, &member, packed).ok())).await
}

fn content_of(blob: &Descriptor, member: &ZipMember, packed: Bytes) -> Result<Bytes> {
    let content = match member.method {
        Method::Deflated => {
            let mut content = Whole(BytesMut::with_capacity(member.size as usize));
            let descriptor = Descriptor { size: packed.len() as u64, ..blob.clone() };
            let mut pass =
                Pass::of_member(descriptor, ContentLimits::default(), Side::memory(None), (member.crc, member.size))?;
            pass.feed(&packed, &mut content)?;
            pass.finish()?;
            content.0.freeze()
        }
        _ => packed,
    };
    if content.len() as u64 != member.size || crc32fast::hash(&content) != member.crc {
        return Err(damaged(blob));
    }
    Ok(content)
}

struct Whole(BytesMut);

impl Sink for Whole {
    fn content(&mut self, _at: u64, bytes: &[u8]) -> Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// For a pass of which only the checkpoints are wanted.
struct Nowhere;

impl Sink for Nowhere {
    fn content(&mut self, _at: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
}

impl Members {
    fn at(&self, range: &Range<u64>) -> Option<&ZipMember> {
        let number = self.members.partition_point(|member| member.place <= range.start).checked_sub(1)?;
        self.members.get(number).filter(|member| range.end <= member.place.saturating_add(member.size))
    }

    async fn data_start(&self, member: &ZipMember) -> Result<u64> {
        let local = member.header..member.header.saturating_add(30).min(self.blob.size);
        let local = self.chunks.read(&self.blob, local).await?;
        let start = data_start(member.header, &local).map_err(|error| error.on(&self.blob.digest))?;
        match start.checked_add(member.packed) {
            Some(end) if end <= self.blob.size => Ok(start),
            _ => Err(damaged(&self.blob)),
        }
    }

    async fn small(&self, member: &ZipMember) -> Result<Bytes> {
        let start = self.data_start(member).await?;
        let packed = self.chunks.read(&self.blob, start..start.saturating_add(member.packed)).await?;
        let (blob, member) = (self.blob.clone(), member.clone());
        blocking(&self.blob, move || content_of(&blob, &member, packed)).await
    }

    /// With checkpoints, after one pass over the member, which goes on when nobody waits for it any more.
    async fn large(self: &Arc<Self>, member: &ZipMember) -> Result<Arc<Content>> {
        let coming = {
            let mut passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(content) = passes.done.get(&member.place) {
                return Ok(Arc::clone(content));
            }
            passes.coming.entry(member.place).or_insert_with(|| self.start(member.clone())).clone()
        };
        coming.await
    }

    fn start(self: &Arc<Self>, member: ZipMember) -> Coming {
        let (members, object) = (Arc::clone(self), self.blob.digest.clone());
        let task = tokio::spawn(async move {
            let content = members.pass(&member).await.map(Arc::new);
            let mut passes = members.passes.lock().unwrap_or_else(PoisonError::into_inner);
            passes.coming.remove(&member.place);
            if let Ok(content) = &content {
                passes.done.put(member.place, Arc::clone(content));
            }
            content
        });
        async move { task.await.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, object, panic))) }.boxed().shared()
    }

    async fn pass(&self, member: &ZipMember) -> Result<Content> {
        let start = self.data_start(member).await?;
        tracing::debug!("layer {}: reading a member of {} bytes once", self.blob.digest, member.packed);
        let packed = Descriptor { size: member.packed, ..self.blob.clone() };
        let side = match &self.folder {
            Some(folder) => folder.new_side().await.transpose()?,
            None => None,
        };
        let side = side.unwrap_or_else(|| Side::memory(self.chunks.reserve(self.chunks.memory() / 64)));
        let mut pass = Pass::of_member(packed.clone(), self.limits, side, (member.crc, member.size))?;
        let mut at = 0;
        while at < member.packed {
            let end = at.saturating_add(PIECE).min(member.packed);
            let bytes = self.chunks.read(&self.blob, start.saturating_add(at)..start.saturating_add(end)).await?;
            pass = blocking(&self.blob, move || {
                pass.feed(&bytes, &mut Nowhere)?;
                Ok(pass)
            })
            .await?;
            at = end;
        }
        let made = blocking(&self.blob, move || pass.finish()).await?;
        let member_only = Arc::new(Behind { source: self.chunks.clone(), blob: self.blob.clone(), start });
        let content = Content::new(member_only, packed, Compression::Deflate, self.limits, made);
        Ok(content.kept_in(self.chunks.clone(), member.place))
    }
}

/// A blob from some byte on.
struct Behind {
    source: Arc<ChunkCache>,
    blob: Descriptor,
    start: u64,
}

impl BlobSource for Behind {
    fn read<'a>(&'a self, _blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        let shifted = self.start.saturating_add(range.start)..self.start.saturating_add(range.end);
        self.source.read(&self.blob, shifted)
    }
}

fn damaged(blob: &Descriptor) -> Error {
    Error::new(ErrorKind::Corrupt, &blob.digest, "a member of the ZIP archive is damaged")
}
