//! `eo-mount push`: sends an artifact to a registry.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytesize::ByteSize;
use clap::Parser;
use indicatif::ProgressBar;
use serde::Serialize;

use super::annotations::annotate;
use super::common::Common;
use super::failure::Failure;
use super::interrupt::{SENT, until_signal};
use super::progress;
use crate::cache::Uploads;
use crate::error::{Error, ErrorKind, Result};
use crate::mount::Options;
use crate::oci::{Descriptor, LayoutReference, Reference, RegistryReference};
use crate::registry::Registry;
use crate::transfer::push::{Artifact, FileLayer, Files, Moved, Push, Pushed, State, is_path_outside};

/// What oras takes a layer and a config for.
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const UNKNOWN_CONFIG: &str = "application/vnd.unknown.config.v1+json";
/// Of a folder, whose files are the published datasets'.
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const CONFIG_NAME: &str = "config.json";
/// By the ends of their names.
const LAYERS: [(&str, &str); 5] = [
    (".tar", TAR),
    (".tar.gz", "application/vnd.oci.image.layer.v1.tar+gzip"),
    (".tgz", "application/vnd.oci.image.layer.v1.tar+gzip"),
    (".tar.zst", "application/vnd.oci.image.layer.v1.tar+zstd"),
    (".tzst", "application/vnd.oci.image.layer.v1.tar+zstd"),
];

const EXAMPLES: &str = "\
Examples:
  eo-mount push oci:out:v1 ghcr.io/org/pastis:v1                       what eo-mount pack has made, byte for byte
  eo-mount push tars ghcr.io/org/pastis:v1 --artifact-type application/vnd.org.pastis.v1+tar
  eo-mount push ghcr.io/org/pastis:v1 --config config.json:application/vnd.oci.image.config.v1+json \\
      10000.tar:application/vnd.oci.image.layer.v1.tar                 as oras push, and the same manifest
  eo-mount push oci:out:v2 ghcr.io/org/b:v2 --mount-from org/pastis    layers of another repository are not sent";

/// Send an artifact to a registry: an image layout, a folder of tars, or files. What is there is not sent again; what a
/// broken connection or a killed push has left unfinished goes on where it was.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Command {
    /// oci:DIR[:TAG] REFERENCE, or FOLDER REFERENCE, or REFERENCE FILE[:TYPE]…
    #[arg(value_name = "SOURCE REFERENCE | REFERENCE FILE[:TYPE]…", required = true, num_args = 1.., hide_default_value = true)]
    what: Vec<String>,

    /// Of the manifest that is made of files
    #[arg(long, value_name = "TYPE", value_parser = super::pack::media_type)]
    artifact_type: Option<String>,

    /// The config of that manifest [default: an empty one; in a folder config.json]
    #[arg(long, value_name = "FILE[:TYPE]")]
    config: Option<String>,

    /// Of that manifest; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = super::pack::field, conflicts_with = "annotation_file")]
    annotation: Vec<(String, String)>,

    /// Of manifest, config and layers: JSON such as {"$manifest": {"KEY": "VALUE"}, "$config": {}, "10000.tar": {}}
    #[arg(long, value_name = "FILE")]
    annotation_file: Option<PathBuf>,

    /// Take titles that lead out of the folder of whoever pulls: absolute paths, and those with ..
    #[arg(long)]
    disable_path_validation: bool,

    /// Another repository of the registry that may have layers; may be repeated
    #[arg(long, value_name = "REPOSITORY")]
    mount_from: Vec<String>,

    /// Layers sent at once, 1 to 256
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,

    /// Print the summary as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

/// Where it comes from.
enum Source {
    Layout(LayoutReference),
    Files(Files),
}

/// An index goes with all that it lists.
pub fn all_platforms(options: &Options) -> Result<()> {
    let cause = "an index is sent with the manifests of all platforms";
    let refused = || Error::new(ErrorKind::Usage, "--platform", cause).hint("name one of its manifests by digest");
    options.platform.as_ref().map_or(Ok(()), |_| Err(refused()))
}

#[derive(Serialize)]
pub struct Summary {
    reference: String,
    /// Of the manifest.
    digest: String,
    blobs: Vec<BlobJson>,
    /// Digests of the manifests that went along because they are attached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attached: Vec<String>,
    /// Bytes of the blobs that were sent.
    sent: u64,
}

#[derive(Serialize)]
struct BlobJson {
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    state: State,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.push())
    }

    async fn push(&self) -> Result<(), Failure> {
        let failed = |error: Error| Failure::artifact(&error);
        let (source, reference) = self.source().map_err(failed)?;
        let options = self.common.options()?;
        if options.verify_key.is_some() {
            return Err(failed(Error::new(ErrorKind::Usage, "--verify-key", "what is pushed is not checked")));
        }
        all_platforms(&options).map_err(failed)?;
        if options.offline {
            return Err(failed(Error::new(ErrorKind::Usage, "--offline", "nothing can be pushed without a network")));
        }
        let registry = Arc::new(Registry::new(reference.clone(), &options.registry()).map_err(failed)?);
        let uploads = options.cache_dir.as_deref().map(|path| Arc::new(Uploads::new(path, SystemTime::now())));
        let bar = progress::spinner("reading what is to be pushed");
        let artifact = match source {
            Source::Layout(layout) => Artifact::in_layout(layout, None).await,
            Source::Files(files) => {
                let bar = bar.clone();
                let moved: Moved = Arc::new(move |bytes| bar.inc(bytes.unsigned_abs()));
                files.read(usize::from(self.jobs), SystemTime::now(), &moved).await
            }
        };
        let artifact = artifact.map_err(failed)?;
        progress::show_bytes(&bar, artifact.bytes());
        let moved = moved_in(&bar);
        let push = Push {
            registry,
            reference: reference.clone(),
            jobs: self.jobs.into(),
            mount_from: self.mount_from.clone(),
            uploads,
            stop: Arc::default(),
            timeout: options.timeout,
        };
        let sending = push.run(&artifact, &moved);
        let pushed = until_signal(&reference.to_string(), SENT, Some(&push.stop), sending).await;
        bar.finish_and_clear();
        let pushed = pushed?;
        let summary = Summary::of(&Reference::Registry(reference), pushed.map_err(failed)?);
        Failure::of_output(summary.print(self.json))
    }

    /// The first argument tells: an image layout and a folder are sources, anything else is a reference.
    fn source(&self) -> Result<(Source, RegistryReference)> {
        let (first, rest) = self.what.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
        let is_folder = Path::new(first).is_dir();
        if !first.starts_with("oci:") && !is_folder {
            let files = self.files(rest.iter().map(String::as_str))?;
            if files.layers.is_empty() && files.config.is_none() {
                let error = Error::new(ErrorKind::Usage, first, "no folder, and no files behind it to push there");
                return Err(error.hint("write eo-mount push SOURCE REFERENCE, or REFERENCE FILE:TYPE…"));
            }
            return Ok((Source::Files(files), registry_reference(first)?));
        }
        let [reference] = rest else {
            let error = Error::new(ErrorKind::Usage, first, "one reference belongs behind a layout or folder");
            return Err(error.hint("for a repository of that name write docker.io/library/NAME"));
        };
        let reference = registry_reference(reference)?;
        if is_folder {
            return Ok((Source::Files(self.folder(Path::new(first))?), reference));
        }
        let makes = self.artifact_type.is_some() || self.config.is_some() || self.annotation_file.is_some();
        if makes || !self.annotation.is_empty() {
            let cause = "an image layout has a manifest, which is pushed as it is";
            return Err(Error::new(ErrorKind::Usage, first, cause).hint("leave type, config and annotations away"));
        }
        match first.parse()? {
            Reference::Layout(layout) => Ok((Source::Layout(layout), reference)),
            Reference::Registry(_) => Err(Error::new(ErrorKind::Usage, first, "not an image layout")),
        }
    }

    /// All of a folder, each a layer.
    fn folder(&self, folder: &Path) -> Result<Files> {
        let unreadable = |error: io::Error| Error::new(ErrorKind::Io, folder.display(), error);
        let mut names = Vec::new();
        for entry in folder.read_dir().map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            let name = name.to_str().ok_or_else(|| {
                Error::new(ErrorKind::Usage, name.display(), "a name that is no UTF-8, which a title must be")
            })?;
            names.push(name.to_owned());
        }
        names.sort();
        let mut layers = Vec::new();
        let mut config = None;
        for name in names {
            let path = folder.join(&name);
            if name == CONFIG_NAME {
                config = Some((path, CONFIG.to_owned()));
                continue;
            }
            let Some((_, media_type)) = LAYERS.iter().find(|(end, _)| name.ends_with(end)) else {
                let error = Error::new(ErrorKind::Usage, path.display(), "neither a tar nor config.json");
                return Err(error.hint("name the files that are meant: eo-mount push REFERENCE FILE:TYPE…"));
            };
            layers.push(FileLayer {
                path,
                title: name,
                media_type: (*media_type).to_owned(),
                annotations: BTreeMap::new(),
            });
        }
        if layers.is_empty() {
            return Err(
                Error::new(ErrorKind::Usage, folder.display(), "no tars in it").hint("eo-mount pack makes them")
            );
        }
        self.files_of(layers, config)
    }

    fn files<'a>(&self, files: impl Iterator<Item = &'a str>) -> Result<Files> {
        let layers = files.map(|text| layer(text, self.disable_path_validation));
        self.files_of(layers.collect::<Result<_>>()?, None)
    }

    fn files_of(&self, mut layers: Vec<FileLayer>, config: Option<(PathBuf, String)>) -> Result<Files> {
        let [annotations, config_annotations] =
            annotate(&mut layers, &self.annotation, self.annotation_file.as_deref())?;
        let config = match &self.config {
            Some(text) => {
                file_and_type(text, UNKNOWN_CONFIG).map(|(path, kind)| Some((path.into(), kind.to_owned())))?
            }
            None => config,
        };
        Ok(Files {
            layers,
            config,
            config_annotations,
            artifact_type: self.artifact_type.clone(),
            subject: None,
            annotations,
        })
    }
}

pub fn moved_in(bar: &ProgressBar) -> Moved {
    let bar = bar.clone();
    Arc::new(move |bytes: i64| match u64::try_from(bytes) {
        Ok(more) => bar.inc(more),
        Err(_) => bar.dec(bytes.unsigned_abs()),
    })
}

pub fn registry_reference(text: &str) -> Result<RegistryReference> {
    match text.parse()? {
        Reference::Registry(reference) => Ok(reference),
        Reference::Layout(_) => {
            Err(Error::new(ErrorKind::Usage, text, "not a place in a registry")
                .hint("eo-mount copy fills image layouts"))
        }
    }
}

/// Of `FILE[:TYPE]`.
pub fn layer(text: &str, any_title: bool) -> Result<FileLayer> {
    let (path, media_type) = file_and_type(text, TAR)?;
    let title = clean(path);
    if is_path_outside(&title) && !any_title {
        let cause = "a title that leads out of the folder of whoever pulls";
        let hint = "push from the folder that the files are in, or, if it is meant, use --disable-path-validation";
        return Err(Error::new(ErrorKind::Usage, title, cause).hint(hint));
    }
    let (path, media_type) = (path.into(), media_type.to_owned());
    Ok(FileLayer { path, title, media_type, annotations: BTreeMap::new() })
}

/// `FILE:TYPE`; what stands behind the last colon is a type.
fn file_and_type<'a>(text: &'a str, usual: &'a str) -> Result<(&'a str, &'a str)> {
    let (path, media_type) = text.rsplit_once(':').unwrap_or((text, usual));
    if path.is_empty() {
        return Err(Error::new(ErrorKind::Usage, text, "no file is named").hint("write FILE or FILE:TYPE"));
    }
    Ok((path, if media_type.is_empty() { usual } else { media_type }))
}

/// As Go's path.Clean: without `.`, double slashes, and `..` behind a name.
fn clean(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match (part, parts.last()) {
            ("..", Some(last)) if *last != ".." => drop(parts.pop()),
            ("..", None) if absolute => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (absolute, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        _ => joined,
    }
}

impl Summary {
    pub fn of(reference: &Reference, pushed: Pushed) -> Self {
        let sent = |(blob, state): &(Descriptor, State)| if *state == State::Sent { blob.size } else { 0 };
        Self {
            reference: reference.to_string(),
            digest: pushed.digest.to_string(),
            sent: pushed.blobs.iter().map(sent).sum(),
            attached: pushed.attached.iter().map(ToString::to_string).collect(),
            blobs: pushed
                .blobs
                .into_iter()
                .map(|(blob, state)| BlobJson {
                    title: blob.title().map(str::to_owned),
                    digest: blob.digest.to_string(),
                    size: blob.size,
                    state,
                })
                .collect(),
        }
    }

    pub fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        if json {
            serde_json::to_writer(&mut out, self)?;
            writeln!(out)?;
            return out.flush();
        }
        for BlobJson { digest, title, state, .. } in &self.blobs {
            let name = crate::error::printable(title.as_deref().unwrap_or(digest));
            let state = match state {
                State::Exists => "exists",
                State::Mounted => "mounted",
                State::Sent => "sent",
            };
            writeln!(out, "{state:8}{name}")?;
        }
        let existed = self.blobs.iter().filter(|blob| blob.state != State::Sent).count();
        let size = ByteSize::b(self.sent).display().si();
        writeln!(
            out,
            "{} of {} blobs sent, {size}; {existed} were there",
            self.blobs.len() - existed,
            self.blobs.len()
        )?;
        if !self.attached.is_empty() {
            writeln!(out, "{} attached manifests went along", self.attached.len())?;
        }
        writeln!(out, "{}", self.digest)?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_paths_as_oras_cleans_them() {
        for (path, title) in [
            ("1.tar", "1.tar"),
            ("./1.tar", "1.tar"),
            ("a//b/./c.tar", "a/b/c.tar"),
            ("a/../b.tar", "b.tar"),
            ("../x/1.tar", "../x/1.tar"),
            ("a/../../1.tar", "../1.tar"),
            ("/a/../../b", "/b"),
        ] {
            assert_eq!(clean(path), title);
            assert_eq!(is_path_outside(&clean(path)), title.starts_with(['.', '/']), "{title}");
        }
    }

    #[test]
    fn what_stands_behind_the_last_colon_is_the_type() {
        assert_eq!(file_and_type("a.tar", TAR).unwrap(), ("a.tar", TAR));
        assert_eq!(file_and_type("a:b:x/y", TAR).unwrap(), ("a:b", "x/y"));
        assert_eq!(file_and_type("a:b:", TAR).unwrap(), ("a:b", TAR));
        assert!(file_and_type(":x/y", TAR).is_err());
    }
}
