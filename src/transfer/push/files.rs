//! Files become an artifact as `oras push` makes it: the same manifest but for the date.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::{Artifact, Moved, Stored};
use crate::blob::{BlobSource, Described};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::CREATED;
use crate::oci::media_types;
use crate::oci::{Descriptor, Digest, Hasher, LARGEST_MANIFEST, TITLE};

/// What a manifest has in place of a config (image specification, "Guidance for an Empty Descriptor").
const EMPTY: &[u8] = b"{}";
const UNKNOWN_ARTIFACT: &str = "application/vnd.unknown.artifact.v1";
/// Bytes read at once to be hashed.
const PIECE: usize = 1 << 20;
/// Bytes of a config that is looked into.
const LARGEST_CONFIG: u64 = 64 << 20;

/// A file that becomes a layer.
#[derive(Debug, Clone)]
pub struct FileLayer {
    pub path: PathBuf,
    /// What a client calls it that pulls.
    pub title: String,
    pub media_type: String,
    /// They come before the title's.
    pub annotations: BTreeMap<String, String>,
}

/// What becomes an artifact.
#[derive(Debug, Clone, Default)]
pub struct Files {
    pub layers: Vec<FileLayer>,
    /// Path and media type; else the empty one.
    pub config: Option<(PathBuf, String)>,
    pub config_annotations: BTreeMap<String, String>,
    pub artifact_type: Option<String>,
    /// What it is attached to.
    pub subject: Option<Descriptor>,
    /// Of the manifest; the date is added if it is not there.
    pub annotations: BTreeMap<String, String>,
}

/// The fields as they come in oras, and Go.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u8,
    media_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    config: Blob<'a>,
    layers: Vec<Blob<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Blob<'a>>,
    annotations: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Blob<'a> {
    media_type: &'a str,
    digest: &'a str,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

impl Files {
    /// Reads all files, `jobs` at once, for their digests. `now`: the date of the manifest.
    pub async fn read(&self, jobs: usize, now: SystemTime, moved: &Moved) -> Result<Artifact> {
        self.check_titles()?;
        let paths = self.layers.iter().map(|layer| &layer.path);
        let paths: Vec<&PathBuf> = self.config.iter().map(|(path, _)| path).chain(paths).collect();
        let mut read: Vec<(Digest, Known)> = stream::iter(paths)
            .map(async |path| {
                let (path, moved) = (path.clone(), Arc::clone(moved));
                let object = path.display().to_string();
                tokio::task::spawn_blocking(move || digest(path, &moved))
                    .await
                    .unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, object, panic)))
            })
            .buffered(jobs)
            .try_collect()
            .await?;
        let empty = Descriptor {
            digest: Digest::sha256_of(EMPTY),
            size: EMPTY.len() as u64,
            media_type: media_types::EMPTY.to_owned(),
            annotations: BTreeMap::new(),
        };
        let mut known = HashMap::new();
        let mut descriptor = |(digest, file): (Digest, Known), media_type: &str, annotations| {
            let size = file.size;
            known.entry(digest.clone()).or_insert(file);
            Descriptor { digest, size, media_type: media_type.to_owned(), annotations }
        };
        let mut config = match &self.config {
            Some((path, media_type)) => {
                let file = read.remove(0);
                warn_of_no_json(path, file.1.size);
                descriptor(file, media_type, BTreeMap::new())
            }
            None => empty,
        };
        config.annotations.clone_from(&self.config_annotations);
        let mut layers: Vec<Descriptor> = Vec::new();
        for (layer, file) in self.layers.iter().zip(read) {
            let mut annotations = BTreeMap::from([(TITLE.to_owned(), layer.title.clone())]);
            annotations.extend(layer.annotations.clone());
            layers.push(descriptor(file, &layer.media_type, annotations));
        }
        let bytes = self.manifest(&config, &layers, now)?;
        let root =
            Stored { digest: Digest::sha256_of(&bytes), media_type: media_types::IMAGE_MANIFEST.to_owned(), bytes };
        let inline = HashMap::from([(Digest::sha256_of(EMPTY), Bytes::from_static(EMPTY))]);
        let source = Described { source: Arc::new(FileSource { known }), inline, elsewhere: HashMap::new() };
        Ok(Artifact::of(root, std::iter::once(config).chain(layers), Arc::new(source)))
    }

    fn check_titles(&self) -> Result<()> {
        let mut titles = HashSet::new();
        match self.layers.iter().find(|layer| !titles.insert(&layer.title)) {
            Some(twice) => Err(Error::new(ErrorKind::Usage, &twice.title, "two files of this title")
                .hint("whoever pulls would lose one of them: name it once, or call one by another path")),
            None => Ok(()),
        }
    }

    fn manifest(&self, config: &Descriptor, layers: &[Descriptor], now: SystemTime) -> Result<Bytes> {
        let now = humantime::format_rfc3339_seconds(now).to_string();
        let mut annotations = BTreeMap::from([(CREATED, now.as_str())]);
        annotations.extend(self.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        if annotations.get(CREATED).is_some_and(|date| humantime::parse_rfc3339(date).is_err()) {
            let date = annotations.get(CREATED).copied().unwrap_or_default();
            return Err(Error::new(ErrorKind::Usage, date, format!("no date for {CREATED}"))
                .hint("write it as 2026-01-31T12:00:00Z"));
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_types::IMAGE_MANIFEST,
            // A config's type can stand for that of the artifact.
            artifact_type: self.artifact_type.as_deref().or(self.config.is_none().then_some(UNKNOWN_ARTIFACT)),
            config: blob(config),
            layers: layers.iter().map(blob).collect(),
            subject: self.subject.as_ref().map(blob),
            annotations,
        };
        let text = serde_json::to_string(&manifest).map_err(|error| Error::new(ErrorKind::Io, "manifest", error))?;
        let bytes = as_go_writes(&text).into_bytes();
        if bytes.len() as u64 > LARGEST_MANIFEST {
            let cause = format!("{} layers make a manifest of more than the 4 MiB that registries take", layers.len());
            return Err(Error::new(ErrorKind::Limit, "manifest", cause).hint("make fewer, larger layers"));
        }
        Ok(bytes.into())
    }
}

fn blob(descriptor: &Descriptor) -> Blob<'_> {
    let is_empty = descriptor.media_type == media_types::EMPTY && descriptor.digest == Digest::sha256_of(EMPTY);
    Blob {
        media_type: &descriptor.media_type,
        digest: descriptor.digest.as_str(),
        size: descriptor.size,
        annotations: &descriptor.annotations,
        data: is_empty.then(|| BASE64_STANDARD.encode(EMPTY)),
    }
}

/// Go's encoding/json escapes what HTML and JavaScript could mistake. In JSON it can only stand in strings.
fn as_go_writes(json: &str) -> String {
    let escapes =
        [("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u{2028}", "\\u2028"), ("\u{2029}", "\\u2029")];
    escapes.iter().fold(json.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Whether a client that pulls would write it outside of its folder, or refuse to.
pub fn is_path_outside(title: &str) -> bool {
    !Path::new(title).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// What a file was when its digest was made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    path: PathBuf,
    size: u64,
    inode: u64,
    /// Seconds and nanoseconds: of content and of the inode.
    times: [(i64, i64); 2],
}

impl Known {
    fn of(path: PathBuf, metadata: &Metadata) -> Self {
        let times = [(metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec())];
        Self { path, size: metadata.len(), inode: metadata.ino(), times }
    }

    fn changed(&self) -> Error {
        Error::new(ErrorKind::Corrupt, self.path.display(), "it changed while it was pushed")
            .hint("push again when nobody writes to it")
    }
}

/// Blobs that are files.
struct FileSource {
    known: HashMap<Digest, Known>,
}

impl BlobSource for FileSource {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        let known = self.known.get(&blob.digest).cloned();
        async move {
            let known = known.ok_or_else(|| Error::new(ErrorKind::NotFound, &blob.digest, "no such file"))?;
            tokio::task::spawn_blocking(move || {
                let file = open(&known.path)?;
                let mut bytes = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)];
                let read = file.read_exact_at(&mut bytes, range.start);
                let now = file.metadata().map_err(|error| failed(&known.path, &error))?;
                if Known::of(known.path.clone(), &now) != known {
                    return Err(known.changed());
                }
                read.map_err(|error| failed(&known.path, &error))?;
                Ok(bytes.into())
            })
            .await
            .unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, &blob.digest, panic)))
        }
        .boxed()
    }
}

fn digest(path: PathBuf, moved: &Moved) -> Result<(Digest, Known)> {
    let mut file = open(&path)?;
    let fail = |error: &io::Error| failed(&path, error);
    let known = Known::of(path.clone(), &file.metadata().map_err(|error| fail(&error))?);
    let (mut hasher, mut buffer) = (Hasher::sha256(), vec![0; PIECE]);
    loop {
        let read = file.read(&mut buffer).map_err(|error| fail(&error))?;
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else { break };
        hasher.update(piece);
        moved(read as i64);
    }
    match file.metadata() {
        Ok(now) if Known::of(path.clone(), &now) == known => Ok((hasher.finish(), known)),
        Ok(_) => Err(known.changed()),
        Err(error) => Err(fail(&error)),
    }
}

fn open(path: &Path) -> Result<File> {
    let fail = |error: io::Error| failed(path, &error);
    // A fifo would be waited for.
    let metadata = path.metadata().map_err(fail)?;
    if metadata.is_dir() {
        let error = Error::new(ErrorKind::Usage, path.display(), "a folder, which is no layer");
        return Err(error.hint("eo-mount pack makes layers of folders"));
    }
    if !metadata.is_file() {
        let error = Error::new(ErrorKind::Usage, path.display(), "neither a file nor a folder");
        return Err(error.hint("write what it gives into a file, and push that"));
    }
    File::open(path).map_err(fail)
}

fn failed(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => {
            Error::new(ErrorKind::NotFound, path.display(), "no such file").hint("check the path: FILE or FILE:TYPE")
        }
        io::ErrorKind::PermissionDenied => Error::new(ErrorKind::Denied, path.display(), "no permission to read it"),
        _ => Error::new(ErrorKind::Io, path.display(), error).hint("check the disk"),
    }
}

/// Clients and mounts go on without the names that stand in a config.
fn warn_of_no_json(path: &Path, size: u64) {
    let is_json = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(LARGEST_CONFIG).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok())
    };
    if size <= LARGEST_CONFIG && !is_json().unwrap_or(true) {
        tracing::warn!("{}: the config is no JSON; it is pushed as it is", path.display());
    }
}
