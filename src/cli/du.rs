//! `eo-mount du REFERENCE [PATH|GLOB]…`: how large things are, without a mount.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use bytesize::ByteSize;
use clap::Parser;
use serde::Serialize;

use super::common::Common;
use super::failure::{ARTIFACT, Failure};
use super::show;
use crate::error::Error;
use crate::mount::{Found, Ino, Kind, Mount};
use crate::transfer::{Size, size_of};

/// Show how many bytes files and folders have, and how many of them are in the cache folder
#[derive(Debug, Parser)]
pub struct Command {
    /// As for a mount
    reference: String,

    /// Paths as a mount shows them, or globs over paths [default: the root]
    #[arg(value_name = "PATH|GLOB")]
    paths: Vec<OsString>,

    /// Folders down to this depth get a line of their own
    #[arg(short = 'd', long, value_name = "NUMBER", default_value_t = 0)]
    max_depth: usize,

    /// Units of 1000 in place of bytes
    #[arg(short = 'H', long)]
    si: bool,

    /// One JSON object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Json<'a> {
    path: &'a str,
    bytes: u64,
    cached: u64,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.measure())
    }

    async fn measure(&self) -> Result<(), Failure> {
        let failed = |error: Error| Failure::artifact(&error);
        let mount = Mount::open(&self.reference, self.common.options()?).await.map_err(failed)?;
        let mut failures = Vec::new();
        let mut tops = Vec::new();
        if self.paths.is_empty() {
            tops.push(Found { path: Vec::new(), ino: Ino::ROOT, kind: Kind::Directory });
        }
        for path in &self.paths {
            tops.extend(mount.find(path.as_bytes(), &mut failures).await.map_err(failed)?);
        }
        let mut out = io::stdout();
        for top in tops {
            for found in self.folders(&mount, top).await.map_err(failed)? {
                let size = size_of(&mount, &found).await.map_err(failed)?;
                if let Err(error) = self.line(&mut out, &found, size) {
                    return Failure::of_output(Err(error));
                }
            }
        }
        for failure in &failures {
            let _ = writeln!(io::stderr(), "eo-mount: {}: {}", failure.path, failure.error);
        }
        if failures.is_empty() { Ok(()) } else { Err(Failure::silent(ARTIFACT)) }
    }

    /// `top` after the folders in it, as du has them.
    async fn folders(&self, mount: &Mount, top: Found) -> Result<Vec<Found>, Error> {
        let mut folders = Vec::new();
        let mut waiting = vec![(top, 0)];
        while let Some((found, depth)) = waiting.pop() {
            if found.kind == Kind::Directory && depth < self.max_depth {
                for (name, ino, kind) in mount.children(found.ino).await? {
                    if kind == Kind::Directory {
                        let path = if found.path.is_empty() { name } else { [&found.path, &b"/"[..], &name].concat() };
                        waiting.push((Found { path, ino, kind }, depth.saturating_add(1)));
                    }
                }
            }
            folders.push(found);
        }
        folders.reverse();
        Ok(folders)
    }

    fn line(&self, out: &mut impl Write, found: &Found, size: Size) -> io::Result<()> {
        let Size { bytes, in_cache } = size;
        let path = if found.path.is_empty() { &b"."[..] } else { &found.path };
        if self.json {
            let json = Json { path: &String::from_utf8_lossy(path), bytes, cached: in_cache };
            serde_json::to_writer(&mut *out, &json)?;
            return writeln!(out);
        }
        let shown = |bytes: u64| match self.si {
            true => ByteSize::b(bytes).display().si().to_string(),
            false => bytes.to_string(),
        };
        writeln!(out, "{}\t{}\t{}", shown(bytes), shown(in_cache), show::escaped(path))
    }
}
