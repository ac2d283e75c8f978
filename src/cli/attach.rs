//! `eo-mount attach REFERENCE FILE:TYPE…`: attaches files to an artifact.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::SystemTime;

use clap::Parser;

use super::common::Common;
use super::failure::Failure;
use super::interrupt::until_signal;
use super::push;
use crate::cache::Uploads;
use crate::error::{Error, ErrorKind};
use crate::mount::{Options, Repository};
use crate::oci::{Digest, Referrer, RegistryReference};
use crate::registry::Registry;
use crate::transfer::list_by_tag;
use crate::transfer::push::{Files, Moved, Push};

/// Files sent at once.
const JOBS: usize = 8;

const EXAMPLES: &str = "\
Examples:
  eo-mount attach ghcr.io/org/pastis:v1 signature.txt:text/plain --artifact-type application/vnd.org.signature.v1+text
  eo-mount discover ghcr.io/org/pastis:v1          shows it
  cat /mnt/pastis/.oci/referrers/application_vnd.org.signature.v1+text/*/signature.txt";

/// Attach files to an artifact, such as a signature: a manifest of their own, which names the artifact as its subject
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Command {
    /// What they are attached to
    reference: String,

    /// Files, each with its media type
    #[arg(value_name = "FILE[:TYPE]", required = true)]
    files: Vec<String>,

    /// Of what is attached
    #[arg(long, value_name = "TYPE", value_parser = super::pack::media_type)]
    artifact_type: String,

    /// Of its manifest; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = super::pack::field)]
    annotation: Vec<(String, String)>,

    /// Take titles that lead out of the folder of whoever pulls: absolute paths, and those with ..
    #[arg(long)]
    disable_path_validation: bool,

    #[command(flatten)]
    common: Common,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(async { self.attach().await })
    }

    async fn attach(&self) -> Result<(), Failure> {
        let options = self.common.options()?;
        let failed = |error: Error| Failure::artifact(&error);
        let reference = push::registry_reference(&self.reference).map_err(failed)?;
        let repository = Repository::open(&self.reference, &options).map_err(failed)?;
        let Some(registry) = repository.registry().cloned() else {
            return Err(failed(Error::new(ErrorKind::Usage, "--offline", "nothing can be attached without a network")));
        };
        let (subject, _) = repository.root(&options).await.map_err(failed)?;
        let layers = self.files.iter().map(|file| push::layer(file, self.disable_path_validation));
        let files = Files {
            layers: layers.collect::<Result<_, _>>().map_err(failed)?,
            artifact_type: Some(self.artifact_type.clone()),
            subject: Some(subject.clone()),
            annotations: self.annotation.iter().cloned().collect(),
            ..Files::default()
        };
        let digest = send(&files, &subject.digest, &registry, &reference, &options).await?;
        let RegistryReference { registry, repository, .. } = &reference;
        match writeln!(io::stdout(), "{digest}\nattached to {registry}/{repository}@{}", subject.digest) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::system("standard output", error)),
            _ => Ok(()),
        }
    }
}

/// Sends what has a subject, and sees to it that it is found; the digest of its manifest.
pub async fn send(
    files: &Files,
    subject: &Digest,
    registry: &Arc<Registry>,
    reference: &RegistryReference,
    options: &Options,
) -> Result<Digest, Failure> {
    let failed = |error: Error| Failure::artifact(&error);
    let moved: Moved = Arc::new(|_| {});
    let artifact = files.read(JOBS, SystemTime::now(), &moved).await.map_err(failed)?;
    let root = artifact.root();
    let referrer = Referrer::of_manifest(&root.bytes, &root.digest, subject)
        .ok_or_else(|| failed(Error::new(ErrorKind::Io, &root.digest, "it would not be attached")))?;
    let own = RegistryReference { tag: None, digest: Some(root.digest.clone()), ..reference.clone() };
    let uploads = options.cache_dir.as_deref().map(|path| Arc::new(Uploads::new(path, SystemTime::now())));
    let (jobs, mount_from, stop) = (JOBS, Vec::new(), Arc::default());
    let push = Push { registry: Arc::clone(registry), reference: own, jobs, mount_from, uploads, stop };
    until_signal(&push.stop, push.run(&artifact, &moved)).await?.map_err(failed)?;
    list_by_tag(registry, subject, &referrer, options.timeout).await.map_err(failed)?;
    Ok(root.digest.clone())
}
