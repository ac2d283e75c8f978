//! `eo-mount attach REFERENCE FILE:TYPE…`: attaches files to an artifact.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use clap::Parser;

use super::annotations::annotate;
use super::common::Common;
use super::failure::Failure;
use super::interrupt::{SENT, until_signal};
use super::push;
use crate::cache::Uploads;
use crate::error::{Error, ErrorKind};
use crate::mount::{Options, Repository};
use crate::oci::{Digest, LayoutReference, Reference, Referrer, RegistryReference};
use crate::transfer::copy::to_layout;
use crate::transfer::push::{Artifact, Files, Moved, Push};
use crate::transfer::{LayoutWriter, list_by_tag};

/// Files sent at once.
const JOBS: usize = 8;

const EXAMPLES: &str = "\
Examples:
  eo-mount attach ghcr.io/org/pastis:v1 signature.txt:text/plain --artifact-type application/vnd.org.signature.v1+text
  eo-mount attach oci:pastis:v1 provenance.json:application/json --artifact-type application/vnd.in-toto+json
  eo-mount discover ghcr.io/org/pastis:v1          shows it
  cat /mnt/pastis/.oci/referrers/application_vnd.org.signature.v1+text/*/signature.txt";

/// Attach files to an artifact, such as a signature: a manifest of their own, which names the artifact as its subject
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Command {
    /// What they are attached to: a reference, or oci:DIR:TAG
    reference: String,

    /// Files, each with its media type
    #[arg(value_name = "FILE[:TYPE]", required = true)]
    files: Vec<String>,

    /// Of what is attached
    #[arg(long, value_name = "TYPE", value_parser = super::pack::media_type)]
    artifact_type: String,

    /// Of its manifest; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = super::pack::field, conflicts_with = "annotation_file")]
    annotation: Vec<(String, String)>,

    /// Of its manifest, config and files: JSON such as {"$manifest": {"KEY": "VALUE"}, "signature.txt": {}}
    #[arg(long, value_name = "FILE")]
    annotation_file: Option<PathBuf>,

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
        let repository = Repository::open(&self.reference, &options).map_err(failed)?;
        let (subject, _) = repository.root(&options).await.map_err(failed)?;
        let layers = self.files.iter().map(|file| push::layer(file, self.disable_path_validation));
        let mut layers: Vec<_> = layers.collect::<Result<_, _>>().map_err(failed)?;
        let annotated = annotate(&mut layers, &self.annotation, self.annotation_file.as_deref());
        let [annotations, config_annotations] = annotated.map_err(failed)?;
        let files = Files {
            layers,
            artifact_type: Some(self.artifact_type.clone()),
            subject: Some(subject.clone()),
            annotations,
            config_annotations,
            ..Files::default()
        };
        let reference = self.reference.parse().map_err(failed)?;
        let (digest, place) = send(&files, &subject.digest, &repository, &reference, &options).await?;
        Failure::of_output(writeln!(io::stdout(), "{digest}\nattached to {place}@{}", subject.digest))
    }
}

/// Sends what has a subject, and sees to it that it is found; the digest of its manifest, and where it is.
pub async fn send(
    files: &Files,
    subject: &Digest,
    repository: &Repository,
    reference: &Reference,
    options: &Options,
) -> Result<(Digest, String), Failure> {
    let failed = |error: Error| Failure::artifact(&error);
    let moved: Moved = Arc::new(|_| {});
    let artifact = files.read(JOBS, SystemTime::now(), &moved).await.map_err(failed)?;
    let digest = artifact.root().digest.clone();
    let stop = Arc::default();
    let place = match reference {
        Reference::Registry(reference) => {
            let sending = to_registry(&artifact, subject, repository, reference, options, &stop, &moved);
            until_signal(&reference.to_string(), SENT, Some(&stop), sending).await?.map_err(failed)?;
            format!("{}/{}", reference.registry, reference.repository)
        }
        Reference::Layout(LayoutReference { directory, .. }) => {
            let layout = LayoutWriter::open(directory).map_err(failed)?;
            let place = format!("oci:{}", directory.display());
            let sending = to_layout(&artifact, &layout, None, JOBS, &stop, &moved);
            until_signal(&place, "what is whole is kept", Some(&stop), sending).await?.map_err(failed)?;
            place
        }
    };
    Ok((digest, place))
}

async fn to_registry(
    artifact: &Artifact,
    subject: &Digest,
    repository: &Repository,
    reference: &RegistryReference,
    options: &Options,
    stop: &Arc<AtomicBool>,
    moved: &Moved,
) -> Result<(), Error> {
    let Some(registry) = repository.registry().cloned() else {
        return Err(Error::new(ErrorKind::Usage, "--offline", "nothing can be attached without a network"));
    };
    let root = artifact.root();
    let referrer = Referrer::of_manifest(&root.bytes, &root.digest, subject)
        .ok_or_else(|| Error::new(ErrorKind::Io, &root.digest, "it would not be attached"))?;
    let push = Push {
        registry: Arc::clone(&registry),
        reference: RegistryReference { tag: None, digest: Some(root.digest.clone()), ..reference.clone() },
        jobs: JOBS,
        mount_from: Vec::new(),
        uploads: options.cache_dir.as_deref().map(|path| Arc::new(Uploads::new(path, SystemTime::now()))),
        stop: Arc::clone(stop),
        timeout: options.timeout,
    };
    push.run(artifact, moved).await?;
    list_by_tag(&registry, subject, &referrer, options.timeout).await
}
