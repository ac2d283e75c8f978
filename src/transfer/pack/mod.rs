//! From a folder to an artifact in an image layout or a registry: layers, config, manifest.
//! But for sending, nothing here is async: layers are read, packed and hashed by threads of their own.

mod archive;
mod config;
mod encode;
mod group;
mod metadata;
mod out;
mod scan;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

pub use group::Grouping;
pub use out::{Out, Sender};

use super::Blob;
use super::push::{Artifact, Stored};
use crate::blob::{Described, Offline};
use crate::error::{Error, ErrorKind, Result, printable};
use crate::oci::media_types;
use crate::oci::{Descriptor, Digest};
use archive::Failed;
use encode::Encoder;
use metadata::Metadata;
use scan::{Content, Layer};

/// Names that a warning lists.
const NAMED: usize = 5;
/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can write.
const LAST_SECOND: u64 = 253_402_300_799;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Tar,
    TarZstd,
    TarGzip,
}

impl Format {
    fn media_type(self) -> &'static str {
        match self {
            Self::Tar => "application/vnd.oci.image.layer.v1.tar",
            Self::TarZstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::TarGzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Self::Tar => ".tar",
            Self::TarZstd => ".tar.zst",
            Self::TarGzip => ".tar.gz",
        }
    }
}

#[derive(Debug)]
pub struct Options {
    pub folder: PathBuf,
    /// An image layout, which must not lie in the folder.
    pub out: Option<PathBuf>,
    pub grouping: Grouping,
    pub format: Format,
    /// A GeoJSON file.
    pub metadata: Option<PathBuf>,
    /// What `config.json` says of the dataset.
    pub fields: Map<String, Value>,
    pub artifact_type: String,
    /// Seconds since 1970: the time of everything (https://reproducible-builds.org/specs/source-date-epoch/).
    pub source_date_epoch: Option<u64>,
    /// Layers made at once.
    pub jobs: usize,
}

/// What is going to be packed.
pub struct Plan {
    options: Options,
    layers: Vec<Layer>,
    metadata: Metadata,
}

pub struct Packed {
    /// To be given a tag where the layers are.
    pub artifact: Artifact,
    /// One a layer, in the order of the manifest.
    pub layers: Vec<Blob>,
}

/// How it is going, and whether it is to go on.
pub struct Work<'a> {
    pub stop: &'a AtomicBool,
    /// So many bytes more were read.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

fn go_on(stop: &AtomicBool) -> Result<()> {
    match stop.load(Ordering::Relaxed) {
        true => Err(Error::new(ErrorKind::Io, "pack", "interrupted")),
        false => Ok(()),
    }
}

impl Plan {
    /// Looks through the folder, until `stop` is set. Nothing is written yet.
    pub fn new(options: Options, stop: &AtomicBool) -> Result<Self> {
        config::check_fields(&options.fields)?;
        let metadata = options.metadata.as_deref().map(Metadata::read).transpose()?.unwrap_or_default();
        let out = options.out.as_deref().map(absolute).transpose()?;
        let layers = scan::scan(&options.folder, &options.grouping, out.as_deref(), stop)?;
        let plan = Self { options, layers, metadata };
        let mut titles = HashSet::new();
        if let Some(layer) = plan.layers.iter().find(|layer| !titles.insert(config::title(layer, &plan.options))) {
            let title = config::title(layer, &plan.options);
            return Err(Error::new(ErrorKind::Usage, title, "two layers would have this title").hint("rename one"));
        }
        // The longest that it can be: what cannot be pushed is refused before hours are spent.
        let longest = Blob { digest: Digest::sha256_of(b""), size: u64::MAX, existed: false };
        plan.manifest(&longest, &vec![longest.clone(); plan.layers.len()])?;
        plan.warn_of_unmatched();
        Ok(plan)
    }

    /// Of files that are going to be read.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(Layer::bytes).sum()
    }

    /// Makes the layers, several at once.
    pub fn write(&self, out: &Out, work: &Work<'_>) -> Result<Packed> {
        let layers = self.write_layers(out, work)?;
        let bytes = self.config(&layers)?;
        let config = Blob { digest: Digest::sha256_of(&bytes), size: bytes.len() as u64, existed: false };
        let manifest = self.manifest(&config, &layers)?;
        let root = Stored {
            digest: Digest::sha256_of(&manifest),
            media_type: media_types::IMAGE_MANIFEST.to_owned(),
            bytes: manifest.into(),
        };
        let inline = HashMap::from([(config.digest.clone(), bytes.into())]);
        let config = Descriptor {
            digest: config.digest,
            size: config.size,
            media_type: config::CONFIG_TYPE.to_owned(),
            annotations: Default::default(),
        };
        let source = Described { source: Arc::new(Offline), inline, elsewhere: HashMap::new() };
        Ok(Packed { artifact: Artifact::of(root, [config], Arc::new(source)), layers })
    }

    fn write_layers(&self, out: &Out, work: &Work<'_>) -> Result<Vec<Blob>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new((vec![None; self.layers.len()], None));
        std::thread::scope(|scope| {
            for _ in 0..self.options.jobs.min(self.layers.len()) {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(layer) = self.layers.get(number) else { return };
                        let result = go_on(work.stop).and_then(|()| self.write_layer(layer, out, work));
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        match result {
                            Ok(blob) => {
                                if let Some(place) = done.0.get_mut(number) {
                                    *place = Some(blob);
                                }
                            }
                            Err(error) => {
                                done.1.get_or_insert(error);
                                work.stop.store(true, Ordering::Relaxed);
                                return;
                            }
                        }
                    }
                });
            }
        });
        let (blobs, error) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) => Err(error),
            None => Ok(blobs.into_iter().flatten().collect()),
        }
    }

    fn write_layer(&self, layer: &Layer, out: &Out, work: &Work<'_>) -> Result<Blob> {
        let mut blob = out.new_blob()?;
        let written = match &layer.content {
            Content::File(member) => {
                let mut buffer = vec![0; 1 << 20];
                archive::copy(member, &mut buffer, work, |bytes| io::Write::write_all(&mut blob, bytes)).map(|()| blob)
            }
            Content::Archive { members, .. } => (|| {
                let mut encoder = Encoder::new(self.options.format, blob)?;
                archive::write(members, self.options.source_date_epoch, &mut encoder, work)?;
                Ok(encoder.finish()?)
            })(),
        };
        match written {
            Ok(blob) => blob.finish(config::media_type(layer, &self.options)),
            Err(Failed::Reading(error)) => Err(error),
            Err(Failed::Writing(error)) => Err(out.failed(&error)),
        }
    }

    /// The time that was given, else that of the youngest file: the same folder gives the same manifest.
    fn created(&self) -> String {
        let members = self.layers.iter().flat_map(|layer| match &layer.content {
            Content::Archive { members, .. } => members.as_slice(),
            Content::File(member) => std::slice::from_ref(member),
        });
        let youngest = members.map(|member| u64::try_from(member.stat.mtime.0).unwrap_or(0)).max();
        let seconds = self.options.source_date_epoch.or(youngest).unwrap_or(0).min(LAST_SECOND);
        humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
    }

    fn warn_of_unmatched(&self) {
        let Some(file) = &self.options.metadata else { return };
        let mut names: HashSet<&str> = HashSet::new();
        let mut without = Vec::new();
        for layer in &self.layers {
            let Content::Archive { folders, .. } = &layer.content else { continue };
            names.insert(&layer.name);
            names.extend(folders.iter().map(String::as_str));
            if self.metadata.of(&layer.name).is_none() {
                without.extend(folders.iter().filter(|folder| self.metadata.of(folder).is_none()).map(String::as_str));
            }
        }
        let mut unused: Vec<_> = self.metadata.names().filter(|name| !names.contains(name)).collect();
        unused.sort_unstable();
        for (what, found) in [("folders have no feature", without), ("features have no folder", unused)] {
            if !found.is_empty() {
                let named = found.get(..NAMED.min(found.len())).unwrap_or_default().join(", ");
                let more = if found.len() > NAMED { ", …" } else { "" };
                tracing::warn!("{}: {} {what}: {}{more}", file.display(), found.len(), printable(&named));
            }
        }
    }
}

/// Without links, also if it is not there yet.
fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).map_err(|error| failed(path, &error))?;
    let there = path.ancestors().find_map(|above| Some((above.canonicalize().ok()?, above)));
    Ok(match there {
        Some((real, above)) => real.join(path.strip_prefix(above).unwrap_or(Path::new(""))),
        None => path,
    })
}

fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|error| failed(path, &error))?;
    if bytes.len() as u64 > limit {
        let cause = format!("larger than the {limit} bytes that are read of it");
        return Err(Error::new(ErrorKind::Limit, path.display(), cause));
    }
    Ok(bytes)
}

/// Of what is read.
fn failed(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorKind::NotFound, path.display(), "it is not there, or not any more")
            .hint("check the path, or call it again when nobody removes files there"),
        io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::Denied, path.display(), "no permission to read it").hint("chmod -R u+rX the folder")
        }
        // open(2) with O_NOFOLLOW: a link is where a file was.
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => changed(path),
        _ => Error::new(ErrorKind::Io, path.display(), error).hint("check the disk"),
    }
}

fn changed(path: &Path) -> Error {
    Error::new(ErrorKind::Io, path.display(), "it changed while it was packed")
        .hint("call it again when nobody writes there")
}
