//! `eo-mount pull REFERENCE [PATH|LAYER|GLOB]… -o DIR`: layers and files of a dataset as files of this machine.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Parser;
use serde::Serialize;

use super::common::Common;
use super::failure::Failure;
use super::interrupt::until_signal;
use super::progress;
use crate::error::{Error, ErrorKind};
use crate::mount::{Failed, Mount};
use crate::oci::{Descriptor, Reference};
use crate::transfer::pull::{self, Item, There};
use crate::transfer::{Size, size_of};

const EXAMPLES: &str = "\
Examples:
  eo-mount pull ghcr.io/org/pastis:v1 -o pastis                   all layers, under their titles
  eo-mount pull ghcr.io/org/pastis:v1 10000.tar '1001?' -o pastis    some of them
  eo-mount pull ghcr.io/org/pastis:v1 --extract -o pastis           what is in them
  eo-mount pull ghcr.io/org/pastis:v1 '*/METADATA.json' -o pastis   some files
  eo-mount pull ghcr.io/org/pastis:v1 --dry-run                   how much would have to be fetched";

/// Fetch a dataset, or a part of it, into a folder. Each layer is checked against its digest before it gets its name.
/// Called again after an interruption, it goes on where it was.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Command {
    /// As for a mount
    reference: String,

    /// Titles or digests of layers, paths as a mount shows them, or globs over paths [default: all]
    #[arg(value_name = "PATH|LAYER|GLOB")]
    paths: Vec<OsString>,

    /// Where to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,

    /// Do not replace files that are there: treat those that differ as errors
    #[arg(short, long)]
    keep_old_files: bool,

    /// Let titles lead out of the output folder
    #[arg(short = 'T', long)]
    allow_path_traversal: bool,

    /// Make what is in the layers, as a mount shows it, with the archive's permissions and times
    #[arg(short = 'x', long)]
    extract: bool,

    /// Make device nodes, too
    #[arg(long, requires = "extract")]
    devices: bool,

    /// Make the output folder an OCI image layout that has all of the artifact
    #[arg(long, conflicts_with_all = ["paths", "extract", "allow_path_traversal", "keep_old_files"])]
    to_oci_layout: bool,

    /// Fetch manifests and no layers, and tell what would be fetched
    #[arg(long)]
    dry_run: bool,

    /// Print the summary as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Summary {
    reference: String,
    /// Of the manifest.
    digest: String,
    /// Bytes of all manifests, which a dry run fetches, too.
    manifests: u64,
    /// For an image layout, all blobs.
    layers: Vec<LayerJson>,
    /// Paths of what is wanted of layers; folders with all that is below.
    files: Vec<String>,
    /// Bytes of all these layers and files.
    bytes: u64,
    /// Of them, in the output folder before.
    in_folder: u64,
    /// Of the others, in the cache folder before.
    in_cache: u64,
    /// What is left: to be fetched.
    missing: u64,
    dry_run: bool,
    failed: Vec<FailedJson>,
}

#[derive(Serialize)]
struct LayerJson {
    path: String,
    digest: String,
    size: u64,
    in_folder: u64,
    in_cache: u64,
}

#[derive(Serialize)]
struct FailedJson {
    path: String,
    error: String,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.pull())
    }

    async fn pull(&self) -> Result<(), Failure> {
        let failed = |error: Error| Failure::artifact(&error);
        let mut options = self.common.options()?;
        // Each layer is checked where it is written, however little the cache folder holds.
        options.verify_blobs = false;
        let mount = Mount::open(&self.reference, options).await.map_err(failed)?;
        let bar = progress::spinner("looking what is there");
        let wanted: Vec<Vec<u8>> = self.paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        let chosen = pull::choose(&mount, &wanted, self.extract).await.map_err(failed)?;
        let pulling = pull::Options {
            output: self.output.clone(),
            allow_path_traversal: self.allow_path_traversal,
            keep_old_files: self.keep_old_files,
            extract: self.extract,
            devices: self.devices,
        };
        let layers: Vec<usize> = chosen.layers.iter().copied().collect();
        let artifact = match self.to_oci_layout {
            true => Some(pull::artifact(&mount).await.map_err(failed)?),
            false => None,
        };
        let items = match &artifact {
            Some(artifact) => artifact.blobs.iter().map(blob_item).collect(),
            None => pull::items(&mount, &layers, &pulling).await.map_err(failed)?,
        };
        let look = |item: &Item| match self.to_oci_layout {
            true => pull::look_in_layout(&mount, &self.output, &item.blob),
            false => item.look(&mount, &pulling),
        };
        let there: Vec<There> = tokio::task::block_in_place(|| items.iter().map(look).collect());
        let mut summary = self.summary(&mount, &items, &there);
        summary.manifests = match &artifact {
            Some(artifact) => artifact.levels.iter().flatten().map(|manifest| manifest.bytes.len() as u64).sum(),
            None => mount.manifests().iter().map(|part| part.bytes.len() as u64).sum(),
        };
        for member in &chosen.members {
            let Size { bytes, in_cache } = size_of(&mount, member).await.map_err(failed)?;
            summary.files.push(String::from_utf8_lossy(&member.path).into_owned());
            summary.bytes = summary.bytes.saturating_add(bytes);
            summary.in_cache = summary.in_cache.saturating_add(in_cache);
        }
        summary.missing = summary.bytes.saturating_sub(summary.in_folder).saturating_sub(summary.in_cache);
        let mut failures = chosen.failed;
        if !self.dry_run {
            progress::show_bytes(&bar, summary.bytes);
            let progress = |bytes| bar.inc(bytes);
            // An archive that is there is not yet its tree.
            let is_finished = |(item, there): &(&Item, &There)| there.finished && item.tree.is_none();
            let (finished, missing): (Vec<_>, Vec<_>) = items.iter().zip(&there).partition(is_finished);
            finished.iter().for_each(|(item, _)| progress(item.blob.size));
            let pulling = async {
                match &artifact {
                    Some(artifact) => {
                        let there = finished.iter().map(|(item, _)| item.blob.digest.clone()).collect();
                        let tag = self.tag();
                        pull::to_layout(&mount, artifact, &there, &self.output, tag.as_deref(), &progress).await
                    }
                    None => {
                        let missing: Vec<&Item> = missing.into_iter().map(|(item, _)| item).collect();
                        pull::pull(&mount, &missing, &chosen.members, &pulling, &progress).await
                    }
                }
            };
            let kept = format!("what has come is kept in {}", self.output.display());
            let pulled = until_signal(&self.reference, &kept, None, pulling).await;
            bar.finish_and_clear();
            failures.extend(pulled?.map_err(failed)?);
        }
        bar.finish_and_clear();
        self.report(summary_with(&mut summary, failures))
    }

    /// What the layout's manifest is called: as in the registry.
    fn tag(&self) -> Option<String> {
        match self.reference.parse().ok()? {
            Reference::Registry(reference) => reference.tag,
            Reference::Layout(reference) => reference.tag,
        }
    }

    fn summary(&self, mount: &Mount, items: &[Item], there: &[There]) -> Summary {
        let layer = |(item, there): (&Item, &There)| LayerJson {
            path: item.path.display().to_string(),
            digest: item.blob.digest.to_string(),
            size: item.blob.size,
            in_folder: there.in_folder,
            in_cache: there.in_cache,
        };
        let layers: Vec<LayerJson> = items.iter().zip(there).map(layer).collect();
        let sum = |of: fn(&LayerJson) -> u64| layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(of(layer)));
        let (bytes, in_folder, in_cache) =
            (sum(|layer| layer.size), sum(|layer| layer.in_folder), sum(|layer| layer.in_cache));
        Summary {
            reference: self.reference.clone(),
            digest: mount.manifests().first().map(|part| part.descriptor.digest.to_string()).unwrap_or_default(),
            manifests: 0,
            layers,
            bytes,
            in_folder,
            in_cache,
            missing: 0,
            files: Vec::new(),
            dry_run: self.dry_run,
            failed: Vec::new(),
        }
    }

    fn report(&self, summary: &Summary) -> Result<(), Failure> {
        Failure::of_output(self.print(summary))?;
        if summary.failed.is_empty() {
            return Ok(());
        }
        let cause = format!("{} files or layers could not be pulled", summary.failed.len());
        let error = Error::new(ErrorKind::Io, &self.reference, cause);
        Err(Failure::artifact(&error.hint("call it again: it goes on with what is there")))
    }

    fn print(&self, summary: &Summary) -> io::Result<()> {
        let mut out = io::stdout();
        if self.json {
            serde_json::to_writer(&mut out, summary)?;
            return writeln!(out);
        }
        let Summary { layers, bytes, in_folder, in_cache, missing, .. } = summary;
        let shown = |bytes: u64| ByteSize::b(bytes).display().si();
        let what = if self.to_oci_layout { "blobs" } else { "layers" };
        let verb = if self.dry_run || !summary.failed.is_empty() { "to fetch" } else { "fetched" };
        writeln!(
            out,
            "{} {what}, {}: {} in {} before, {} in the cache, {} {verb}",
            layers.len(),
            shown(*bytes),
            shown(*in_folder),
            self.output.display(),
            shown(*in_cache),
            shown(*missing)
        )
    }
}

fn blob_item(blob: &Descriptor) -> Item {
    Item { path: blob.digest.to_string().into(), blob: blob.clone(), tree: None }
}

/// Tells of each failure, and keeps it for programs.
fn summary_with(summary: &mut Summary, failures: Vec<Failed>) -> &Summary {
    for Failed { path, error } in failures {
        let line = Error::new(error.kind, &path, &error);
        // Not `eprintln`, which panics when nobody reads.
        let _ = writeln!(io::stderr(), "eo-mount: {line}");
        summary.failed.push(FailedJson { path, error: error.to_string() });
    }
    summary
}
