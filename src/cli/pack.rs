//! `eo-mount pack DIR OUT`: makes an artifact from a folder, in an image layout or a registry.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::available_parallelism;
use std::time::SystemTime;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::runtime::Handle;

use super::common::Common;
use super::failure::Failure;
use super::interrupt::until_signal;
use super::progress;
use super::push::moved_in;
use crate::cache::{CacheFolder, FolderTurns, Uploads};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::{self, Mount};
use crate::oci::{LayoutReference, Reference, RegistryReference};
use crate::registry::Registry;
use crate::transfer::LayoutWriter;
use crate::transfer::copy::to_layout;
use crate::transfer::pack::{Format, Grouping, Options, Out, Packed, Plan, Sender, Work};
use crate::transfer::push::{Moved, Push};

/// What the published datasets are, and what the tag is when none is named.
const ARTIFACT_TYPE: &str = "application/vnd.whatever.v1+tar";
const LATEST: &str = "latest";

const EXAMPLES: &str = "\
Examples:
  eo-mount pack patches oci:out:v1 --per-dir                       patches/10000 becomes the layer 10000.tar, and so on
  eo-mount pack patches ghcr.io/org/pastis:v1 --per-dir            into a registry, each layer when it is made
  eo-mount pack patches oci:out:v1 --group tiles.csv               lines such as 10000,t30uxv: a layer t30uxv.tar
  eo-mount pack patches oci:out:v1 --group '^(t[0-9]+[a-z]+)_'     the layer's name is in those of the folders
  eo-mount pack patches oci:out:v1 --per-dir --format tar+zstd --metadata patches.geojson --field dataset=PASTIS-HD";

/// Make an artifact from a folder: a tar layer for each sub-folder or group of them, config.json and manifest, in an
/// OCI image layout or a registry. The same folder gives the same digests on any machine.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Command {
    /// Its sub-folders become layers; a file in it becomes a layer as it is
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// The image layout, made if it is not there; or where in a registry: then no more is written to disk than the
    /// layers that are made at once
    #[arg(value_name = "oci:DIR[:TAG]|REGISTRY/REPOSITORY[:TAG]")]
    out: String,

    /// A layer for each sub-folder
    #[arg(long, required_unless_present = "group", conflicts_with = "group")]
    per_dir: bool,

    /// Sub-folders of one name share a layer: a CSV or JSON file that maps sub-folders to names, or a regular
    /// expression whose first group is the name
    #[arg(long, value_name = "FILE|REGEX")]
    group: Option<String>,

    /// How layers are stored; tar+zstd in frames that can be read one by one
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Stored::Tar)]
    format: Stored,

    /// GeoJSON whose features have geometry and dates of the sub-folders, or of the groups
    #[arg(long, value_name = "FILE.geojson")]
    metadata: Option<PathBuf>,

    /// What config.json says of the dataset; may be repeated
    #[arg(long = "field", value_name = "KEY=VALUE", value_parser = field)]
    fields: Vec<(String, String)>,

    /// Of manifest and config
    #[arg(long, value_name = "TYPE", default_value = ARTIFACT_TYPE, value_parser = media_type)]
    artifact_type: String,

    /// Seconds since 1970 that stand in place of all file times
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH", hide_env = true)]
    source_date_epoch: Option<u64>,

    /// Layers made at once, 1 to 256 [default: as many as there are cores]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,

    /// Print the summary as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stored {
    Tar,
    #[value(name = "tar+zstd")]
    TarZstd,
    #[value(name = "tar+gzip")]
    TarGzip,
}

#[derive(Serialize)]
struct Summary {
    /// Of the manifest.
    digest: String,
    layers: usize,
    /// Of them, there before.
    existed: usize,
    /// Of files that were read, and of layers.
    read: u64,
    bytes: u64,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.pack())
    }

    async fn pack(&self) -> Result<(), Failure> {
        let failed = |error: Error| Failure::artifact(&error);
        let mut out = self.out().map_err(failed)?;
        let options = self.options(&out).map_err(failed)?;
        let mounting = self.common.options()?;
        let bar = progress::spinner("looking through the folder");
        let stop = Arc::default();
        let packing = packed(options, &out, &mounting, &bar, &stop);
        let packed = until_signal(&out.to_string(), "layers that are whole are kept", Some(&stop), packing).await;
        bar.finish_and_clear();
        let (read, Packed { artifact, layers }) = packed?.map_err(failed)?;
        let digest = &artifact.root().digest;
        if let Reference::Layout(layout) = &mut out
            && self.format == Stored::TarGzip
        {
            layout.digest = Some(digest.clone());
            index(&out.to_string(), mounting).await;
        }
        let summary = Summary {
            digest: digest.to_string(),
            layers: layers.len(),
            existed: layers.iter().filter(|layer| layer.existed).count(),
            read,
            bytes: layers.iter().map(|layer| layer.size).sum(),
        };
        Failure::of_output(self.print(&summary))
    }

    fn out(&self) -> Result<Reference> {
        let wrong = |cause: &str| {
            let hint = "write oci:DIRECTORY:TAG for an image layout, REGISTRY/REPOSITORY:TAG for a registry";
            Error::new(ErrorKind::Usage, &self.out, cause).hint(hint)
        };
        let out = match self.out.parse()? {
            Reference::Registry(RegistryReference { digest: Some(_), .. })
            | Reference::Layout(LayoutReference { digest: Some(_), .. }) => {
                return Err(wrong("the digest is not known before"));
            }
            // A folder's name without `oci:` would be sent to Docker Hub.
            Reference::Registry(reference) if !self.out.starts_with(&format!("{}/", reference.registry)) => {
                return Err(wrong("neither an image layout nor a registry"));
            }
            Reference::Layout(layout) => {
                Reference::Layout(LayoutReference { tag: layout.tag.or_else(|| Some(LATEST.to_owned())), ..layout })
            }
            registry @ Reference::Registry(_) => registry,
        };
        match &out {
            Reference::Layout(LayoutReference { tag: Some(tag), .. }) if !is_tag(tag) => {
                Err(wrong("a tag that registries do not take"))
            }
            _ => Ok(out),
        }
    }

    fn options(&self, out: &Reference) -> Result<Options> {
        let mut fields = Map::new();
        for (key, value) in &self.fields {
            if fields.insert(key.clone(), Value::String(value.clone())).is_some() {
                return Err(Error::new(ErrorKind::Usage, key, "this field is given twice"));
            }
        }
        Ok(Options {
            folder: self.folder.clone(),
            out: match out {
                Reference::Layout(layout) => Some(layout.directory.clone()),
                Reference::Registry(_) => None,
            },
            grouping: self.group.as_deref().map_or(Ok(Grouping::PerFolder), Grouping::parse)?,
            format: match self.format {
                Stored::Tar => Format::Tar,
                Stored::TarZstd => Format::TarZstd,
                Stored::TarGzip => Format::TarGzip,
            },
            metadata: self.metadata.clone(),
            fields,
            artifact_type: self.artifact_type.clone(),
            source_date_epoch: self.source_date_epoch,
            jobs: self.jobs.map_or_else(|| available_parallelism().map_or(1, usize::from), usize::from),
        })
    }

    fn print(&self, summary: &Summary) -> io::Result<()> {
        let mut out = io::stdout();
        if self.json {
            serde_json::to_writer(&mut out, summary)?;
            return writeln!(out);
        }
        let Summary { digest, layers, existed, read, bytes } = summary;
        let size = |bytes: u64| ByteSize::b(bytes).display().si();
        writeln!(out, "{layers} layers of {}, from {} of files; {existed} were there", size(*bytes), size(*read))?;
        writeln!(out, "{digest}")
    }
}

/// With the bytes of all files.
async fn packed(
    options: Options,
    out: &Reference,
    mounting: &mount::Options,
    bar: &ProgressBar,
    stop: &Arc<AtomicBool>,
) -> Result<(u64, Packed)> {
    let jobs = options.jobs;
    let looking = Arc::clone(stop);
    let plan = blocking(move || Plan::new(options, &looking)).await?;
    let (read, moved) = (plan.bytes(), moved_in(bar));
    let out = Arc::new((place(out, mounting, jobs, stop, &moved).await?, out.clone()));
    // Each byte is read, and sent.
    progress::show_bytes(bar, if matches!(out.0, Out::Registry(_)) { read.saturating_mul(2) } else { read });
    let packed = blocking({
        let (out, bar, stop) = (Arc::clone(&out), bar.clone(), Arc::clone(stop));
        move || plan.write(&out.0, &Work { stop: &stop, progress: &|bytes| bar.inc(bytes) })
    })
    .await?;
    match &*out {
        (Out::Layout(layout), Reference::Layout(LayoutReference { tag, .. })) => {
            to_layout(&packed.artifact, layout, tag.as_deref(), jobs, stop, &moved).await?;
        }
        (Out::Registry(sender), _) => drop(sender.push.run(&packed.artifact, &moved).await?),
        _ => {}
    }
    Ok((read, packed))
}

async fn place(
    out: &Reference,
    options: &mount::Options,
    jobs: usize,
    stop: &Arc<AtomicBool>,
    moved: &Moved,
) -> Result<Out> {
    let reference = match out {
        Reference::Registry(reference) => reference.clone(),
        Reference::Layout(LayoutReference { directory, .. }) => {
            let directory = directory.clone();
            return blocking(move || Ok(Out::Layout(LayoutWriter::open(&directory)?))).await;
        }
    };
    if options.offline {
        return Err(Error::new(ErrorKind::Usage, "--offline", "nothing can be pushed without a network"));
    }
    let cache_dir = options.cache_dir.as_deref();
    let push = Push {
        registry: Arc::new(Registry::new(reference.clone(), &options.registry())?),
        reference,
        jobs,
        mount_from: Vec::new(),
        uploads: cache_dir.map(|path| Arc::new(Uploads::new(path, SystemTime::now()))),
        stop: Arc::clone(stop),
        timeout: options.timeout,
    };
    let folder = match cache_dir {
        Some(path) => {
            Some(CacheFolder::open_within(path, options.cache_size, &FolderTurns::new(path), options.timeout).await?)
        }
        None => None,
    };
    let sender = Sender { push, folder, runtime: Handle::current(), moved: Arc::clone(moved) };
    Ok(Out::Registry(Box::new(sender)))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, "pack", panic)))
}

/// gzip says nothing of what is where: the pass that a mount would make is made now, and kept by digest.
async fn index(reference: &str, options: mount::Options) {
    let bar = progress::spinner("indexing");
    let index = async {
        let mount = Mount::open(reference, options).await?;
        for layer in mount.archives() {
            mount.index_ahead(layer.number).await?;
        }
        Ok::<_, Error>(())
    };
    if let Err(error) = index.await {
        tracing::warn!("packed, but not indexed for mounts of this machine: {error}");
    }
    bar.finish_and_clear();
}

/// OCI distribution specification, "Pulling manifests".
fn is_tag(tag: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(first)
        && tag.bytes().all(|byte| first(byte) || matches!(byte, b'.' | b'-'))
}

pub fn field(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it takes a name and a value, such as dataset=PASTIS-HD".to_owned()),
    }
}

/// RFC 6838, section 4.2.
pub fn media_type(text: &str) -> Result<String, String> {
    let name = |part: &str| {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
        part.len() <= 127 && part.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) && part.bytes().all(letter)
    };
    match text.split_once('/') {
        Some((kind, subtype)) if name(kind) && name(subtype) => Ok(text.to_owned()),
        _ => Err("it takes a media type, such as application/vnd.org.dataset.v1+tar".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_types_are_those_of_registries() {
        assert!(is_tag("v1.0-beta_2") && is_tag("_") && is_tag(&"a".repeat(128)));
        assert!(!is_tag("") && !is_tag(".a") && !is_tag("a b") && !is_tag("\u{e4}") && !is_tag(&"a".repeat(129)));
        assert!(media_type(ARTIFACT_TYPE).is_ok());
        assert!(media_type("tar").is_err() && media_type("a/b c").is_err() && media_type("/b").is_err());
    }
}
