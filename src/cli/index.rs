//! `eo-mount index REFERENCE [LAYER]…`: indexes layers ahead of use.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;
use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tempfile::NamedTempFile;

use super::attach;
use super::common::Common;
use super::failure::Failure;
use crate::cache::{CacheFolder, FolderTurns};
use crate::error::{Error, ErrorKind};
use crate::mount::{Archive, Attachment, INDEX_TYPE, Mount, Options};
use crate::transfer::push::{FileLayer, Files};

/// Layers indexed at once.
const AT_ONCE: usize = 8;
const TICK: Duration = Duration::from_millis(200);

/// Index layers ahead of use, into the cache folder: a mount then lists them without a request.
/// With --attach, also for others: as an artifact that refers to this one
#[derive(Debug, Parser)]
pub struct Command {
    /// As for a mount
    reference: String,

    /// Names of layers as a mount shows them, or digests [default: all]
    #[arg(value_name = "LAYER")]
    layers: Vec<String>,

    /// Attach what was found to the artifact: mounts of others then list it with one request
    #[arg(long, conflicts_with = "layers")]
    attach: bool,

    /// Read all bytes of the layers, and attach the digests of their chunks, too
    #[arg(long, requires = "attach")]
    digests: bool,

    /// Print the summary as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Summary {
    /// Indexed now or before.
    layers: usize,
    entries: u64,
    requests: u64,
    /// Downloaded.
    bytes: u64,
    failed: Vec<Failed>,
    /// Digests of the manifests of what was attached.
    attached: Vec<String>,
}

#[derive(Serialize)]
struct Failed {
    path: String,
    layer: String,
    error: String,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.index())
    }

    async fn index(&self) -> Result<(), Failure> {
        let options = self.common.options()?;
        // Before anything is indexed in vain.
        let Some(folder) = &options.cache_dir else {
            let error = Error::new(ErrorKind::Usage, "index", "there is no cache folder to keep an index in");
            return Err(Failure::usage(&error.hint("give one with --cache-dir, or set HOME")));
        };
        let usable = CacheFolder::open_within(folder, None, &FolderTurns::new(folder), options.timeout).await;
        usable.map_err(|error| Failure::usage(&error))?;
        let mount = Mount::open(&self.reference, options.clone()).await.map_err(|error| Failure::artifact(&error))?;
        let layers = self.chosen(&mount).map_err(|error| Failure::artifact(&error))?;
        let count = layers.len();
        let bar = bar(count);
        let mut summary =
            Summary { layers: 0, entries: 0, requests: 0, bytes: 0, failed: Vec::new(), attached: Vec::new() };
        let indexing = |layer: Archive| async { (mount.index_ahead(layer.number).await, layer) };
        let mut results = stream::iter(layers).map(indexing).buffer_unordered(AT_ONCE);
        let mut tick = tokio::time::interval(TICK);
        loop {
            let next = tokio::select! {
                next = results.next() => next,
                _ = tick.tick() => {
                    // One large layer is many requests.
                    bar.set_message(format!("{} requests", mount.traffic().requests));
                    continue;
                }
            };
            let Some((result, layer)) = next else { break };
            match result {
                Ok(entries) => {
                    summary.layers += 1;
                    summary.entries += entries;
                }
                Err(error) => {
                    let line = Error::new(error.kind, &layer.path, &error);
                    // Not `eprintln`, which panics when nobody reads.
                    bar.suspend(|| {
                        let _ = writeln!(io::stderr(), "eo-mount: {line}");
                    });
                    let layer_digest = layer.digest.to_string();
                    summary.failed.push(Failed { path: layer.path, layer: layer_digest, error: error.to_string() });
                }
            }
            bar.inc(1);
        }
        if self.attach {
            summary.attached = self.attach(&mount, &options, |text| bar.set_message(text)).await?;
        }
        bar.finish_and_clear();
        (summary.requests, summary.bytes) = (mount.traffic().requests, mount.traffic().bytes);
        Failure::of_output(self.print(&summary))?;
        if summary.failed.is_empty() {
            return Ok(());
        }
        let cause = format!("{} of {count} layers could not be indexed", summary.failed.len());
        Err(Failure::artifact(&Error::new(ErrorKind::Io, &self.reference, cause)))
    }

    /// The digests of what was attached.
    async fn attach(&self, mount: &Mount, options: &Options, tell: impl Fn(String)) -> Result<Vec<String>, Failure> {
        let failed = |error: Error| Failure::artifact(&error);
        let reference = self.reference.parse().map_err(failed)?;
        let attachments = mount.attachments(self.digests, tell).await.map_err(failed)?;
        if attachments.is_empty() {
            let error =
                Error::new(ErrorKind::Unsupported, &self.reference, "no layer has an index that can be attached");
            return Err(failed(error.hint("tar layers have, and zstd layers with a seek table")));
        }
        let mut attached = Vec::new();
        for Attachment { subject, blob, annotations } in attachments {
            let mut file = NamedTempFile::new().map_err(|error| Failure::system("a temporary file", error))?;
            file.write_all(&blob.bytes).map_err(|error| Failure::system("a temporary file", error))?;
            let (path, title) = (file.path().to_owned(), "eo-mount.index".to_owned());
            let files = Files {
                layers: vec![FileLayer { path, title, media_type: INDEX_TYPE.to_owned(), annotations }],
                artifact_type: Some(INDEX_TYPE.to_owned()),
                subject: Some(subject.clone()),
                ..Files::default()
            };
            let (digest, _) = attach::send(&files, &subject.digest, mount.repository(), &reference, options).await?;
            attached.push(digest.to_string());
        }
        Ok(attached)
    }

    /// A layer that stands twice in the manifest counts once.
    fn chosen(&self, mount: &Mount) -> Result<Vec<Archive>, Error> {
        let archives = mount.archives();
        let mut chosen = Vec::new();
        for wanted in &self.layers {
            let name = wanted.trim_matches('/');
            let fits = |archive: &&Archive| {
                archive.path == name || [archive.digest.as_str(), archive.digest.short()].contains(&name)
            };
            chosen.push(archives.iter().find(fits).cloned().ok_or_else(|| {
                Error::new(ErrorKind::NotFound, wanted, "no layer of that name or digest is an archive")
                    .hint(format!("eo-mount ls {} lists them", self.reference))
            })?);
        }
        let mut chosen = if self.layers.is_empty() { archives } else { chosen };
        let mut seen = HashSet::new();
        chosen.retain(|archive| seen.insert(archive.digest.clone()));
        Ok(chosen)
    }

    fn print(&self, summary: &Summary) -> io::Result<()> {
        let mut out = io::stdout();
        if self.json {
            serde_json::to_writer(&mut out, summary)?;
            return writeln!(out);
        }
        let Summary { layers, entries, requests, bytes, attached, .. } = summary;
        let bytes = ByteSize::b(*bytes).display().si();
        writeln!(out, "{layers} layers, {entries} entries; {requests} requests, {bytes}")?;
        attached.iter().try_for_each(|digest| writeln!(out, "attached {digest}"))
    }
}

/// Nothing where nobody looks.
fn bar(layers: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {bar:40} {pos} of {len} layers, {elapsed}, {msg}");
    let bar = ProgressBar::new(layers as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(TICK);
    bar
}
