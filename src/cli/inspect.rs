//! `eo-mount inspect REFERENCE`: what a manifest says, and what of it is on this machine.

use std::collections::BTreeMap;
use std::io::{self, Write};

use bytesize::ByteSize;
use clap::Parser;
use serde::Serialize;

use super::common::Common;
use super::failure::Failure;
use super::show;
use crate::error::{Error, ErrorKind};
use crate::mount::{Mount, Resolved};
use crate::oci::{Descriptor, Referrer};

/// Show the manifest, config and layers of an artifact, how much of them is in the cache folder, and what is attached
#[derive(Debug, Parser)]
pub struct Command {
    /// As for a mount
    reference: String,

    /// Print the manifest's exact bytes
    #[arg(long)]
    raw: bool,

    /// Print the config's exact bytes
    #[arg(long)]
    config: bool,

    /// Print one JSON object
    #[arg(long, conflicts_with_all = ["raw", "config"])]
    json: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Inspected<'a> {
    reference: &'a str,
    #[serde(flatten)]
    root: Part<'a>,
    /// Of an index: what it lists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    manifests: Vec<Part<'a>>,
    /// Attached to the first of them; not there if that cannot be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    referrers: Option<Vec<Attached<'a>>>,
}

#[derive(Serialize)]
struct Attached<'a> {
    #[serde(flatten)]
    manifest: Blob<'a>,
    artifact_type: &'a str,
}

#[derive(Serialize)]
struct Part<'a> {
    #[serde(flatten)]
    manifest: Blob<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<Blob<'a>>,
    layers: Vec<Layer<'a>>,
}

#[derive(Serialize)]
struct Blob<'a> {
    digest: &'a str,
    media_type: &'a str,
    /// Bytes.
    size: u64,
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Layer<'a> {
    #[serde(flatten)]
    blob: Blob<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    /// In a mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// Bytes of it in the cache folder.
    cached: u64,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.inspect())
    }

    async fn inspect(&self) -> Result<(), Failure> {
        let mount = Mount::open(&self.reference, self.common.options()?).await;
        let mount = mount.map_err(|error| Failure::artifact(&error))?;
        let [root, others @ ..] = mount.manifests() else { return Ok(()) };
        let referrers = if self.raw || self.config { None } else { referrers(&mount, root).await };
        let mut out = io::stdout().lock();
        let printed = if self.config {
            if root.manifest.config.is_none() {
                let error = Error::new(ErrorKind::NotFound, &self.reference, "it has no config");
                return Err(Failure::artifact(&error.hint("name one of the manifests of the index by digest")));
            }
            out.write_all(&root.config)
        } else if self.raw {
            out.write_all(&root.bytes)
        } else {
            let manifests = others.iter().map(|part| part_of(&mount, part)).collect();
            let referrers = referrers.as_ref().map(|all| all.iter().map(attached).collect());
            let inspected = Inspected { reference: &self.reference, root: part_of(&mount, root), manifests, referrers };
            match self.json {
                true => {
                    serde_json::to_writer(&mut out, &inspected).map_err(io::Error::from).and_then(|()| writeln!(out))
                }
                false => table(&mut out, &inspected),
            }
        };
        Failure::of_output(printed.and_then(|()| out.flush()))
    }
}

/// What is attached is no reason to show nothing.
async fn referrers(mount: &Mount, root: &Resolved) -> Option<Vec<Referrer>> {
    match mount.repository().referrers(&root.descriptor.digest, None).await {
        Ok(referrers) => Some(referrers),
        Err(error) if error.is_of_the_network() => {
            tracing::info!("{error}");
            None
        }
        Err(error) => {
            tracing::warn!("{error}");
            None
        }
    }
}

fn attached(referrer: &Referrer) -> Attached<'_> {
    Attached { manifest: blob(&referrer.descriptor), artifact_type: &referrer.artifact_type }
}

fn blob(blob: &Descriptor) -> Blob<'_> {
    let Descriptor { digest, size, media_type, annotations } = blob;
    Blob { digest: digest.as_str(), media_type, size: *size, annotations }
}

fn part_of<'a>(mount: &'a Mount, part: &'a Resolved) -> Part<'a> {
    let layers = part.layers.clone().filter_map(|number| {
        let layer = mount.blob_of_layer(number).ok()?;
        let cached = mount.cached_bytes(layer, &(0..layer.size));
        Some(Layer { blob: blob(layer), title: layer.title(), path: mount.path_of_layer(number), cached })
    });
    Part {
        manifest: blob(&part.descriptor),
        artifact_type: part.artifact_type.as_deref(),
        platform: part.platform.as_ref().map(ToString::to_string),
        error: part.error.as_ref().map(ToString::to_string),
        config: part.manifest.config.as_ref().map(blob),
        layers: layers.collect(),
    }
}

/// What others wrote is shown without control characters.
fn table(out: &mut impl Write, inspected: &Inspected<'_>) -> io::Result<()> {
    for part in std::iter::once(&inspected.root).chain(&inspected.manifests) {
        let mut line = |name: &str, value: &str| writeln!(out, "{name:<14} {}", show::escaped(value.as_bytes()));
        line("Digest", part.manifest.digest)?;
        line("Media type", part.manifest.media_type)?;
        part.artifact_type.map_or(Ok(()), |kind| line("Artifact type", kind))?;
        part.platform.as_deref().map_or(Ok(()), |platform| line("Platform", platform))?;
        part.error.as_deref().map_or(Ok(()), |error| line("Error", error))?;
        for (key, value) in part.manifest.annotations {
            line("Annotation", &format!("{key}={value}"))?;
        }
        if let Some(config) = &part.config {
            line("Config", &format!("{} {} {}", config.digest, size(config.size), config.media_type))?;
        }
        let bytes = part.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.blob.size));
        let cached = part.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.cached));
        line("Layers", &format!("{}, {}, {} in the cache", part.layers.len(), size(bytes), size(cached)))?;
        writeln!(out)?;
        if !part.layers.is_empty() {
            let widths = [12, 10, 10];
            let [digest, bytes, cached] = widths;
            writeln!(
                out,
                "{:digest$}  {:>bytes$}  {:>cached$}  {:40}  TITLE",
                "DIGEST", "SIZE", "CACHED", "MEDIA TYPE"
            )?;
            for layer in &part.layers {
                let short = short(layer.blob.digest);
                let (all, here) = (size(layer.blob.size), size(layer.cached));
                let kind = show::escaped(layer.blob.media_type.as_bytes());
                let title = layer.title.or(layer.path.as_deref()).unwrap_or("-");
                let title = show::escaped(title.as_bytes());
                writeln!(out, "{short:digest$}  {all:>bytes$}  {here:>cached$}  {kind:40}  {title}")?;
                annotations(out, &layer.blob)?;
            }
            writeln!(out)?;
        }
    }
    let Some(referrers) = &inspected.referrers else { return Ok(()) };
    writeln!(out, "{:<14} {}", "Attached", referrers.len())?;
    if !referrers.is_empty() {
        writeln!(out, "\n{:12}  {:>10}  TYPE", "DIGEST", "SIZE")?;
    }
    for Attached { manifest, artifact_type } in referrers {
        let (size, kind) = (size(manifest.size), show::escaped(artifact_type.as_bytes()));
        writeln!(out, "{:12}  {size:>10}  {kind}", short(manifest.digest))?;
        annotations(out, manifest)?;
    }
    Ok(())
}

/// Under a digest, but for the title.
fn annotations(out: &mut impl Write, blob: &Blob<'_>) -> io::Result<()> {
    for (key, value) in blob.annotations.iter().filter(|(key, _)| *key != crate::oci::TITLE) {
        let annotation = format!("{key}={value}");
        writeln!(out, "{:12}  {}", "", show::escaped(annotation.as_bytes()))?;
    }
    Ok(())
}

fn short(digest: &str) -> String {
    digest.chars().skip_while(|c| *c != ':').skip(1).take(12).collect()
}

fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().si().to_string()
}
