//! `eo-mount copy FROM TO`: between registries and image layouts.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use clap::Parser;

use super::common::Common;
use super::failure::Failure;
use super::interrupt::{SENT, until_signal};
use super::progress;
use super::push::{Summary, all_platforms, moved_in};
use crate::cache::{CacheFolder, FolderTurns, Uploads};
use crate::error::{Error, ErrorKind, Result};
use crate::mount::{Options, Repository};
use crate::oci::{LayoutReference, Reference};
use crate::registry::Registry;
use crate::transfer::LayoutWriter;
use crate::transfer::copy::to_layout;
use crate::transfer::push::{Artifact, Push, Pushed};

const EXAMPLES: &str = "\
Examples:
  eo-mount copy ghcr.io/org/pastis:v1 oci:pastis:v1                    onto this machine, with all manifests of an index
  eo-mount copy ghcr.io/org/pastis:v1 localhost:5000/pastis:v1         from registry to registry
  eo-mount copy oci:pastis:v1 localhost:5000/pastis:v1                 as eo-mount push
  eo-mount copy -r ghcr.io/org/pastis:v1 oci:pastis:v1                 with signatures and whatever else is attached";

/// Copy an artifact between registries and image layouts, byte for byte. Blobs that are there are not copied again;
/// those in the cache folder are not fetched.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Command {
    /// A reference, or oci:DIR[:TAG]
    #[arg(value_name = "FROM")]
    from: String,

    /// A reference, or oci:DIR[:TAG]: a layout that is there, or a new one
    #[arg(value_name = "TO")]
    to: String,

    /// Also what is attached to its manifests, such as signatures, and what is attached to that, and so on
    #[arg(short, long)]
    recursive: bool,

    /// Another repository of the registry that may have layers; may be repeated
    #[arg(long, value_name = "REPOSITORY")]
    mount_from: Vec<String>,

    /// Layers copied at once, 1 to 256
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,

    /// Print the summary as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.copy())
    }

    async fn copy(&self) -> Result<(), Failure> {
        let failed = |error: Error| Failure::artifact(&error);
        let options = self.common.options()?;
        all_platforms(&options).map_err(failed)?;
        let to: Reference = self.to.parse().map_err(failed)?;
        let stop = Arc::default();
        let kept = match &to {
            Reference::Registry(_) => SENT.to_owned(),
            Reference::Layout(layout) => format!("what has come is kept in {}", layout.directory.display()),
        };
        let copied = until_signal(&self.to, &kept, Some(&stop), self.copied(&to, &options, &stop)).await?;
        let summary = Summary::of(&to, copied.map_err(failed)?);
        Failure::of_output(summary.print(self.json))
    }

    async fn copied(&self, to: &Reference, options: &Options, stop: &Arc<AtomicBool>) -> Result<Pushed> {
        if options.offline {
            return Err(Error::new(ErrorKind::Usage, "--offline", "nothing can be copied without a network"));
        }
        let bar = progress::spinner("reading manifests");
        let moved = moved_in(&bar);
        let from: Reference = self.from.parse()?;
        let mut reading = options.clone();
        // A login that was given is that of the registry that is written to, unless nothing is.
        if let (Reference::Registry(from), Reference::Registry(to)) = (&from, to)
            && from.registry != to.registry
        {
            reading.access.login = None;
        }
        // Without the cache folder: what was attached once is not taken for what is.
        let repository = Repository::open(&self.from, &Options { cache_dir: None, ..reading.clone() })?;
        let artifact = source(&from, &reading, self.recursive.then_some(&repository)).await?;
        // No blob is read before.
        repository.check_signed(&artifact.root().digest, &reading).await?;
        progress::show_bytes(&bar, artifact.bytes());
        let jobs = self.jobs.into();
        let done = match to {
            Reference::Registry(reference) => {
                let registry = Arc::new(Registry::new(reference.clone(), &options.registry())?);
                let uploads = options.cache_dir.as_deref().map(|path| Arc::new(Uploads::new(path, SystemTime::now())));
                let (reference, mount_from) = (reference.clone(), self.mount_from.clone());
                let stop = Arc::clone(stop);
                Push { registry, reference, jobs, mount_from, uploads, stop, timeout: options.timeout }
                    .run(&artifact, &moved)
                    .await
            }
            Reference::Layout(LayoutReference { directory, tag, digest }) => {
                if digest.as_ref().is_some_and(|digest| *digest != artifact.root().digest) {
                    let cause = format!("what is copied has another digest: {}", artifact.root().digest);
                    return Err(Error::new(ErrorKind::Usage, &self.to, cause).hint("name a tag"));
                }
                let layout = LayoutWriter::open(directory)?;
                to_layout(&artifact, &layout, tag.as_deref(), jobs, stop, &moved).await
            }
        };
        bar.finish_and_clear();
        done
    }
}

async fn source(from: &Reference, options: &Options, attached_in: Option<&Repository>) -> Result<Artifact> {
    match from {
        Reference::Layout(layout) => Artifact::in_layout(layout.clone(), attached_in).await,
        Reference::Registry(reference) => {
            let folder = match options.cache_dir.as_deref().filter(|_| options.disk_cache) {
                Some(path) => {
                    CacheFolder::open_if_usable(path, options.cache_size, &FolderTurns::new(path), options.timeout)
                        .await
                }
                None => None,
            };
            let disk = match folder {
                Some(folder) => folder.disk_cache(options.cache_min_free).await,
                None => None,
            };
            let registry = Arc::new(Registry::new(reference.clone(), &options.registry())?);
            Artifact::in_registry(registry, &reference.to_string(), disk, attached_in).await
        }
    }
}
