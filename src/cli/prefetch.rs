//! `eo-mount prefetch REFERENCE|MOUNTPOINT [PATH|GLOB]…`: fetches into the cache folder ahead of use.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytesize::ByteSize;
use clap::Parser;
use serde::Serialize;

use super::common::Common;
use super::failure::Failure;
use super::interrupt::until_signal;
use super::progress;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse;
use crate::mount::Mount;
use crate::oci::Reference;

const EXAMPLES: &str = "\
Examples:
  eo-mount prefetch ghcr.io/org/pastis:v1 10000 10001/METADATA.json    two things
  eo-mount prefetch ghcr.io/org/pastis:v1 '*/DATA_S2/**'               quoted, so that the shell leaves it alone
  eo-mount prefetch /mnt/pastis --all                                  what is mounted there, all of it";

/// Fetch files, folders, layers or globs into the cache folder: mounts then read them from disk.
/// What is there already is not fetched again.
#[derive(Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Command {
    /// As for a mount; or where one is mounted
    #[arg(value_name = "REFERENCE|MOUNTPOINT")]
    reference: String,

    /// Paths as a mount shows them, digests of layers, or globs over paths (** for any number of folders)
    #[arg(value_name = "PATH|GLOB", required_unless_present = "all", conflicts_with = "all")]
    paths: Vec<OsString>,

    /// Everything
    #[arg(long)]
    all: bool,

    /// Pieces of 1 MiB fetched at once, 1 to 256 [default: --connections]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,

    /// Print the summary as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

/// All in bytes of blobs, in chunks of 64 KiB.
#[derive(Serialize)]
struct Summary {
    /// That hold what was wanted.
    layers: usize,
    /// Wanted one by one or by folder, not as a part of a whole layer.
    files: u64,
    wanted: u64,
    /// Of them, in the cache before.
    cached: u64,
    fetched: u64,
    requests: u64,
    failed: Vec<FailedJson>,
}

#[derive(Serialize)]
struct FailedJson {
    path: String,
    error: String,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.prefetch())
    }

    async fn prefetch(&self) -> Result<(), Failure> {
        let reference = self.reference().map_err(|error| Failure::usage(&error))?;
        if let Reference::Layout(_) = reference.parse().map_err(|error| Failure::usage(&error))? {
            let error = Error::new(ErrorKind::Usage, &reference, "an image layout is on this machine already");
            return Err(Failure::usage(&error.hint("mount it")));
        }
        let failed = |error: Error| Failure::artifact(&error);
        let mount = Mount::open(&reference, self.common.options()?).await.map_err(failed)?;
        let bar = progress::spinner("looking for what is wanted");
        let selection = match self.all {
            true => mount.select_all(),
            false => {
                let paths: Vec<Vec<u8>> = self.paths.iter().map(|path| path.as_bytes().to_vec()).collect();
                mount.select(&paths).await.map_err(failed)?
            }
        };
        let plan = mount.plan(selection).await.map_err(failed)?;
        let mut summary = Summary {
            layers: plan.layers(),
            files: plan.files,
            wanted: plan.wanted,
            cached: plan.cached,
            fetched: 0,
            requests: 0,
            failed: Vec::new(),
        };
        let jobs = self.jobs.unwrap_or(self.common.connections);
        progress::show_bytes(&bar, plan.wanted.saturating_sub(plan.cached));
        let fetching = mount.fetch(plan, jobs.into(), |bytes| bar.inc(bytes));
        let fetched = until_signal(&self.reference, "what has come is kept in the cache folder", None, fetching).await;
        bar.finish_and_clear();
        let fetched = fetched?;
        for failed in fetched.failed {
            let line = Error::new(failed.error.kind, &failed.path, &failed.error);
            // Not `eprintln`, which panics when nobody reads.
            let _ = writeln!(io::stderr(), "eo-mount: {line}");
            summary.failed.push(FailedJson { path: failed.path, error: failed.error.to_string() });
        }
        (summary.fetched, summary.requests) = (fetched.bytes, mount.traffic().requests);
        Failure::of_output(self.print(&summary))?;
        if summary.failed.is_empty() {
            return Ok(());
        }
        let cause = format!("{} files or layers could not be fetched", summary.failed.len());
        let hint = "call it again: what was fetched is kept";
        Err(Failure::artifact(&Error::new(ErrorKind::Io, &self.reference, cause).hint(hint)))
    }

    /// That of the mount, with the digest that it was resolved to, if one is there.
    fn reference(&self) -> Result<String> {
        let Some(reference) = fuse::mounted_at(Path::new(&self.reference)) else { return Ok(self.reference.clone()) };
        let unknown = |cause: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Io, &self.reference, format!("the mount does not say what it is of: {cause}"))
                .hint("name the reference instead")
        };
        let mut digest = Vec::with_capacity(256);
        rustix::fs::getxattr(&self.reference, "user.oci.digest", rustix::buffer::spare_capacity(&mut digest))
            .map_err(|error| unknown(&error))?;
        let digest = String::from_utf8(digest).map_err(|error| unknown(&error))?;
        let named = reference.rsplit_once('@').map_or(reference.as_str(), |(name, _)| name);
        Ok(format!("{named}@{digest}"))
    }

    fn print(&self, summary: &Summary) -> io::Result<()> {
        let mut out = io::stdout();
        if self.json {
            serde_json::to_writer(&mut out, summary)?;
            return writeln!(out);
        }
        let Summary { layers, files, cached, fetched, requests, .. } = summary;
        let bytes = |bytes: u64| ByteSize::b(bytes).display().si();
        let files = if *files > 0 { format!(", {files} files") } else { String::new() };
        writeln!(
            out,
            "{layers} layers{files}: {} fetched, {} were here; {requests} requests",
            bytes(*fetched),
            bytes(*cached)
        )
    }
}
