//! Indexes that are attached to a manifest: written for others, found where others have attached one, and believed no further
//! than the layer's own headers bear them out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::Mount;
use super::layer::{Contents, Sources};
use super::manifests::Resolved;
use super::repository::{Repository, typed};
use crate::blob::{BlobSource, Digested};
use crate::cache::ChunkCache;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{
    AttachedBlob, AttachedLayer, AttachedPart, ChunkDigests, Content, DIGEST_CHUNK, LayerIndex, Limits, TRAILER,
    decode, encode, footer_length, read_footer, write_attached,
};
use crate::oci::{CREATED, Descriptor, Digest, Document, Referrer};

/// Of the artifact and of its only layer.
pub const INDEX_TYPE: &str = "application/vnd.eo-mount.index.v1";
/// Of that layer: the byte from which on there is all that a listing needs.
const TAIL: &str = "vnd.eo-mount.index.tail";
/// Of that layer: the digest of its footer, which the digest of the manifest so stands for.
const FOOTER: &str = "vnd.eo-mount.index.footer";

/// Bytes of the end of an index that are fetched at once and stay in memory. What is longer is read frame by frame.
const LONGEST_TAIL: u64 = 4 << 20;
/// Bytes of the end where nothing tells how many are of use.
const USUAL_TAIL: u64 = 64 << 10;
/// Layers for which no tag is asked when the API has just turned out to be missing: they take few requests themselves.
const EARLY: usize = 2;
/// Layers of a manifest beside which another request is nothing.
const MANY: usize = 100;
/// Attached indexes that are tried, the newest first.
const CANDIDATES: usize = 4;
/// Bytes of a layer, beyond which another request is little beside those for its headers.
const LARGE: u64 = 1 << 30;
/// Bytes read at once for digests.
const PIECE: u64 = 1 << 20;

/// Which indexes that others have attached a mount lists from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AttachedIndex {
    /// The newest, if there is one.
    #[default]
    Found,
    Ignored,
    /// The one whose manifest has this digest: what its digests say of chunks counts.
    Pinned(Digest),
}

/// An index to be attached.
pub struct Attachment {
    pub subject: Descriptor,
    pub blob: AttachedBlob,
    /// Of the blob in its manifest.
    pub annotations: BTreeMap<String, String>,
}

impl Mount {
    /// One for each manifest that has layers which can be in it. `digests`: all bytes of these layers are read, and checked.
    ///
    /// # Errors
    /// Layers that cannot be indexed are left out; bytes that cannot be read are an error.
    pub async fn attachments(&self, digests: bool, tell: impl Fn(String)) -> Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        for manifest in self.manifests().iter().filter(|part| !part.layers.is_empty()) {
            let (mut parts, mut seen) = (Vec::new(), HashSet::new());
            for number in manifest.layers.clone() {
                let layer = self.layer(number)?;
                let is_archive = self.layer_nodes.get(number).is_some_and(Option::is_some);
                if !is_archive || !seen.insert(&layer.descriptor.digest) {
                    continue;
                }
                let Some(mut part) = layer.attachable(&self.sources).await else { continue };
                if digests {
                    tell(format!("reading {}", layer.descriptor.digest.short()));
                    part.digests = Some(chunk_digests(&layer.descriptor, &self.sources.chunks).await?);
                }
                parts.push(part);
            }
            if parts.is_empty() {
                continue;
            }
            let subject = typed(manifest.descriptor.digest.clone(), &manifest.bytes)?;
            let blob = write_attached(parts).map_err(|error| Error::new(ErrorKind::Io, &subject.digest, error))?;
            let annotations = [(TAIL, blob.indexes.to_string()), (FOOTER, blob.footer.to_string())];
            let annotations = annotations.map(|(key, value)| (key.to_owned(), value)).into();
            attachments.push(Attachment { subject, blob, annotations });
        }
        Ok(attachments)
    }
}

/// # Errors
/// Also if all bytes together are not what the layer's digest says.
async fn chunk_digests(layer: &Descriptor, chunks: &ChunkCache) -> Result<ChunkDigests> {
    let (mut digests, mut whole) = (ChunkDigests::default(), layer.digest.hasher());
    for start in (0..layer.size).step_by(PIECE as usize) {
        let piece = chunks.read(layer, start..start.saturating_add(PIECE).min(layer.size)).await?;
        whole.update(&piece);
        piece.chunks(DIGEST_CHUNK as usize).for_each(|chunk| digests.push(chunk));
    }
    whole.check(&layer.digest)?;
    Ok(digests)
}

/// What a layer's index becomes in an attached one. `None`: it must be unpacked to be read, which gives its index as well.
pub fn part(layer: &Descriptor, contents: &Contents, sources: &Sources) -> Option<AttachedPart> {
    let content = match contents.is_plain(sources) {
        true => Content::Blob,
        false => Content::Unpacked { size: contents.blob.size },
    };
    let index = encode(&contents.index, &layer.digest, layer.size, content);
    let index = index.inspect_err(|error| tracing::warn!("layer {}: its index: {error}", layer.digest)).ok()?;
    Some(AttachedPart { digest: layer.digest.clone(), size: layer.size, index, digests: None })
}

/// What is attached to the manifests of a mount; looked up once, when an index is first missing. That is one request for a look
/// into two small layers of a few: where there turns out to be no referrers API, the tag in its place is asked when a third index
/// is missing. Where that was known, the tag is asked at once.
pub struct Attached {
    repository: Repository,
    chunks: Arc<ChunkCache>,
    limits: Limits,
    /// Neither way of looking it up takes longer.
    patience: Duration,
    parts: Vec<Part>,
    /// The part that a layer is of.
    layers: HashMap<Digest, usize>,
    /// The layers whose indexes were missing first: [`EARLY`] at most.
    early: Mutex<Vec<Digest>>,
}

struct Part {
    subject: Digest,
    has_many: bool,
    at_once: OnceCell<Answer>,
    by_tag: OnceCell<Answer>,
}

enum Answer {
    NoApi,
    Nothing,
    Found(Found),
}

/// An attached index that holds.
struct Found {
    manifest: Digest,
    blob: Descriptor,
    layers: HashMap<Digest, AttachedLayer>,
    /// Where the bytes begin that are there already, and they.
    tail: (u64, Bytes),
}

impl Attached {
    pub fn new(
        repository: Repository,
        chunks: Arc<ChunkCache>,
        limits: Limits,
        patience: Duration,
        manifests: &[Resolved],
    ) -> Self {
        let (mut parts, mut layers) = (Vec::new(), HashMap::new());
        for (number, manifest) in manifests.iter().enumerate() {
            let subject = manifest.descriptor.digest.clone();
            let has_many = manifest.manifest.layers.len() > MANY;
            parts.push(Part { subject, has_many, at_once: OnceCell::new(), by_tag: OnceCell::new() });
            for layer in &manifest.manifest.layers {
                layers.entry(layer.digest.clone()).or_insert(number);
            }
        }
        Self { repository, chunks, limits, patience, parts, layers, early: Mutex::default() }
    }

    /// Uses this one and no other, and has its digests checked from now on.
    ///
    /// # Errors
    /// If it cannot be had, or does not hold, or is attached to something else.
    pub async fn pin(&self, manifest: &Digest, digested: Option<&Digested>) -> Result<()> {
        let wrong = |error: Error| {
            Error { object: format!("index {manifest}"), ..error }.hint("eo-mount discover lists what is attached")
        };
        let (number, found) = self.pinned(manifest).await.map_err(wrong)?;
        if let Some(digested) = digested {
            digested.pin(found.blob.clone(), found.layers.clone());
        }
        let mut found = Some(found);
        for (at, part) in self.parts.iter().enumerate() {
            let _ = part.at_once.set(found.take_if(|_| at == number).map_or(Answer::Nothing, Answer::Found));
        }
        Ok(())
    }

    async fn pinned(&self, manifest: &Digest) -> Result<(usize, Found)> {
        let unknown = Descriptor {
            digest: manifest.clone(),
            // Nobody has said it; the limit for manifests holds.
            size: crate::oci::LARGEST_MANIFEST,
            media_type: String::new(),
            annotations: BTreeMap::new(),
        };
        let bytes = self.repository.manifest(&unknown).await?;
        let of = self.parts.iter().position(|part| Referrer::of_manifest(&bytes, manifest, &part.subject).is_some());
        let attached_elsewhere =
            || Error::new(ErrorKind::NotFound, manifest, "it is not attached to what is mounted, or is no index");
        let number = of.ok_or_else(attached_elsewhere)?;
        Ok((number, self.read(manifest, &bytes, number, true).await?))
    }

    /// The index of a layer, as somebody has attached it. `None` costs nothing more once it is known what is attached.
    pub async fn index(&self, layer: &Descriptor, limits: &Limits) -> Option<(LayerIndex, Content)> {
        let number = *self.layers.get(&layer.digest)?;
        let part = self.parts.get(number)?;
        let subject = &part.subject;
        let mut answer = part.at_once.get_or_init(|| self.in_time(subject, self.at_once(number, subject))).await;
        if matches!(answer, Answer::NoApi) && (part.has_many || layer.size > LARGE || !self.is_early(&layer.digest)) {
            answer = part.by_tag.get_or_init(|| self.in_time(subject, self.by_tag(number, subject))).await;
        }
        let Answer::Found(found) = answer else { return None };
        let attached = found.layers.get(&layer.digest).filter(|attached| attached.size == layer.size)?;
        let index = self.open(found, attached, layer, limits).await;
        let warn = |error: &Error| tracing::warn!("layer {}: {error}; it is indexed anew", layer.digest);
        index.inspect_err(warn).ok()
    }

    fn is_early(&self, layer: &Digest) -> bool {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        if early.len() < EARLY && !early.contains(layer) {
            early.push(layer.clone());
        }
        early.contains(layer)
    }

    async fn open(
        &self,
        found: &Found,
        attached: &AttachedLayer,
        layer: &Descriptor,
        limits: &Limits,
    ) -> Result<(LayerIndex, Content)> {
        let frame = found.bytes(&attached.index.range, &self.chunks).await?;
        let index = attached.open_index(&frame, limits);
        let opened = index.and_then(|index| decode(&index, &layer.digest, layer.size, limits));
        opened.map_err(|error| wrong(&found.manifest, error))
    }

    async fn in_time(&self, subject: &Digest, answer: impl Future<Output = Result<Answer>>) -> Answer {
        let without = |cause: &dyn std::fmt::Display| {
            tracing::debug!("{subject}: {cause}; going on without an attached index");
            Answer::Nothing
        };
        match tokio::time::timeout(self.patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => without(&error),
            Err(_) => without(&"looking for what is attached took too long"),
        }
    }

    async fn at_once(&self, number: usize, subject: &Digest) -> Result<Answer> {
        Ok(match self.repository.referrers_at_once(subject, INDEX_TYPE).await? {
            Some(referrers) => self.newest(number, referrers).await,
            None => Answer::NoApi,
        })
    }

    async fn by_tag(&self, number: usize, subject: &Digest) -> Result<Answer> {
        let referrers = self.repository.referrers_of_tag(subject, INDEX_TYPE).await?;
        Ok(self.newest(number, referrers).await)
    }

    async fn newest(&self, number: usize, mut referrers: Vec<Referrer>) -> Answer {
        let created = |referrer: &Referrer| -> Option<SystemTime> {
            humantime::parse_rfc3339(referrer.descriptor.annotations.get(CREATED)?).ok()
        };
        // Of the same second the one that is listed last.
        referrers.reverse();
        referrers.sort_by_key(|referrer| std::cmp::Reverse(created(referrer)));
        for Referrer { descriptor, .. } in referrers.into_iter().take(CANDIDATES) {
            let found = match self.repository.manifest(&descriptor).await {
                Ok(bytes) => self.read(&descriptor.digest, &bytes, number, false).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(found) => return Answer::Found(found),
                Err(error) => tracing::warn!("{error}; it is passed over"),
            }
        }
        Answer::Nothing
    }

    /// An attached index, as far as a listing needs it. `trusted`: its manifest must stand for its footer.
    async fn read(&self, manifest: &Digest, bytes: &[u8], number: usize, trusted: bool) -> Result<Found> {
        let no_index = |cause: &str| wrong(manifest, cause);
        let subject = self.parts.get(number).map(|part| &part.subject);
        let referrer = subject.and_then(|subject| Referrer::of_manifest(bytes, manifest, subject));
        if referrer.is_none_or(|referrer| referrer.artifact_type != INDEX_TYPE) {
            return Err(no_index("it is attached to something else, or is something else"));
        }
        let Document::Manifest(document) = Document::parse(bytes, manifest.as_str())? else {
            return Err(no_index("it is no manifest"));
        };
        let [blob] = <[Descriptor; 1]>::try_from(document.layers).map_err(|_| no_index("it has not one blob"))?;
        let begins = blob.annotations.get(TAIL).and_then(|begin| begin.parse::<u64>().ok());
        let longest = LONGEST_TAIL.min(self.chunks.memory() / 16);
        let begins = begins.filter(|begin| blob.size.checked_sub(*begin).is_some_and(|tail| tail <= longest));
        let usual = blob.size.saturating_sub(USUAL_TAIL);
        let mut start = begins.unwrap_or(usual).min(blob.size.saturating_sub(TRAILER));
        let mut tail = self.chunks.read(&blob, start..blob.size).await?;
        let length = footer_length(&tail, &self.limits).map_err(|error| wrong(manifest, error))?;
        let footer_at = blob.size.checked_sub(length).ok_or_else(|| no_index("its footer is longer than all of it"))?;
        if footer_at < start {
            (start, tail) = (footer_at, self.chunks.read(&blob, footer_at..blob.size).await?);
        }
        let footer = part_of(&(start, tail.clone()), &(footer_at..blob.size)).unwrap_or_default();
        match blob.annotations.get(FOOTER).and_then(|digest| digest.parse::<Digest>().ok()) {
            Some(digest) => digest.check(&footer).map_err(|_| no_index("its footer is not the one that it names"))?,
            None if trusted => return Err(no_index("it does not name its footer, so that its digest says nothing")),
            None => {}
        }
        let is_wanted = |digest: &Digest| self.layers.get(digest) == Some(&number);
        let layers =
            read_footer(&footer, blob.size, &self.limits, is_wanted).map_err(|error| wrong(manifest, error))?;
        tracing::debug!("attached index {manifest}: it has {} layers", layers.len());
        Ok(Found { manifest: manifest.clone(), blob, layers, tail: (start, tail) })
    }
}

impl Found {
    async fn bytes(&self, range: &Range<u64>, chunks: &ChunkCache) -> Result<Bytes> {
        match part_of(&self.tail, range) {
            Some(bytes) => Ok(bytes),
            // What a footer announces is not fetched in one piece to be refused then.
            None if range.end.saturating_sub(range.start) > chunks.memory() / 16 => {
                Err(wrong(&self.manifest, "a frame that is larger than a sixteenth of --memory"))
            }
            None => chunks.read(&self.blob, range.clone()).await,
        }
    }
}

fn part_of((start, bytes): &(u64, Bytes), range: &Range<u64>) -> Option<Bytes> {
    let from = usize::try_from(range.start.checked_sub(*start)?).ok()?;
    let to = usize::try_from(range.end.checked_sub(*start)?).ok()?;
    (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
}

fn wrong(manifest: &Digest, cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("attached index {manifest}"), cause)
}
