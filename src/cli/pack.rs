//! `eo-mount pack DIR OUT`: makes an artifact from a folder.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};

use super::common::Common;
use super::failure::Failure;
use super::progress;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::{self, Mount};
use crate::oci::{LayoutReference, Reference};
use crate::transfer::pack::{Format, Grouping, Options, Packed, Plan, Work};

/// What the published datasets are, and what the tag is when none is named.
const ARTIFACT_TYPE: &str = "application/vnd.whatever.v1+tar";
const LATEST: &str = "latest";

const EXAMPLES: &str = "\
Examples:
  eo-mount pack patches oci:out:v1 --per-dir                       patches/10000 becomes the layer 10000.tar, and so on
  eo-mount pack patches oci:out:v1 --group tiles.csv               lines such as 10000,t30uxv: a layer t30uxv.tar
  eo-mount pack patches oci:out:v1 --group '^(t[0-9]+[a-z]+)_'     the layer's name is in those of the folders
  eo-mount pack patches oci:out:v1 --per-dir --format tar+zstd --metadata patches.geojson --field dataset=PASTIS-HD";

/// Make an artifact from a folder: a tar layer for each sub-folder or group of them, config.json and manifest, in an
/// OCI image layout. The same folder gives the same digests on any machine.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Command {
    /// Its sub-folders become layers; a file in it becomes a layer as it is
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// The image layout, made if it is not there
    #[arg(value_name = "oci:DIR[:TAG]")]
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
    /// Of them, in the layout before.
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
        let options = self.options(out.clone()).map_err(failed)?;
        let mounting = self.common.options()?;
        let bar = progress::spinner("looking through the folder");
        let stop = Arc::new(AtomicBool::new(false));
        let mut working = tokio::task::spawn_blocking({
            let (bar, stop) = (bar.clone(), Arc::clone(&stop));
            move || work(options, &bar, &stop)
        });
        let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        let [mut interrupt, mut terminate] = match signals {
            [Ok(interrupt), Ok(terminate)] => [interrupt, terminate],
            [Err(error), _] | [_, Err(error)] => return Err(Failure::system("signals", error)),
        };
        let mut ended_by = None;
        // Whoever writes removes what is unfinished.
        let done = loop {
            tokio::select! {
                done = &mut working => break done,
                _ = interrupt.recv() => ended_by = Some(SignalKind::interrupt()),
                _ = terminate.recv() => ended_by = Some(SignalKind::terminate()),
            }
            stop.store(true, Ordering::Relaxed);
        };
        bar.finish_and_clear();
        let (read, packed) = match (done, ended_by) {
            (Ok(Ok(done)), _) => done,
            (_, Some(signal)) => return Err(Failure::signal(signal.as_raw_value())),
            (Ok(Err(error)), None) => return Err(failed(error)),
            (Err(panic), None) => return Err(Failure::system("pack", panic)),
        };
        if self.format == Stored::TarGzip {
            out.digest = Some(packed.manifest.clone());
            index(&Reference::Layout(out).to_string(), mounting).await;
        }
        let summary = Summary {
            digest: packed.manifest.to_string(),
            layers: packed.layers.len(),
            existed: packed.layers.iter().filter(|layer| layer.existed).count(),
            read,
            bytes: packed.layers.iter().map(|layer| layer.size).sum(),
        };
        match self.print(&summary) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::system("standard output", error)),
            _ => Ok(()),
        }
    }

    fn out(&self) -> Result<LayoutReference> {
        let wrong = |cause: &str| {
            Error::new(ErrorKind::Usage, &self.out, cause).hint("write oci:DIRECTORY:TAG; eo-mount push sends it on")
        };
        match self.out.parse()? {
            Reference::Registry(_) => Err(wrong("not a place in an image layout")),
            Reference::Layout(LayoutReference { digest: Some(_), .. }) => Err(wrong("the digest is not known before")),
            Reference::Layout(mut layout) => {
                let tag = layout.tag.get_or_insert_with(|| LATEST.to_owned());
                if is_tag(tag) { Ok(layout) } else { Err(wrong("a tag that registries do not take")) }
            }
        }
    }

    fn options(&self, out: LayoutReference) -> Result<Options> {
        let mut fields = Map::new();
        for (key, value) in &self.fields {
            if fields.insert(key.clone(), Value::String(value.clone())).is_some() {
                return Err(Error::new(ErrorKind::Usage, key, "this field is given twice"));
            }
        }
        Ok(Options {
            folder: self.folder.clone(),
            out,
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
        writeln!(out, "{layers} layers of {}, from {} of files; {existed} were here", size(*bytes), size(*read))?;
        writeln!(out, "{digest}")
    }
}

fn work(options: Options, bar: &ProgressBar, stop: &AtomicBool) -> Result<(u64, Packed)> {
    let plan = Plan::new(options, stop)?;
    progress::show_bytes(bar, plan.bytes());
    let packed = plan.write(&Work { stop, progress: &|bytes| bar.inc(bytes) })?;
    Ok((plan.bytes(), packed))
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
