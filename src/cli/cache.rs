//! `eo-mount cache ls|size|prune|verify|clear`: looks after the cache folder.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use clap::{ArgAction, Parser, ValueEnum};
use serde_json::{Value, json};

use super::common::{cache_size, default_cache_dir};
use super::failure::Failure;
use super::logging::{self, Destination};
use super::show;
use crate::cache::{Cleared, KeptBlob, Sizes, Upkeep};
use crate::error::{Error, ErrorKind};

/// Look after the cache folder; safe while mounts use it
#[derive(Debug, Parser)]
pub struct Command {
    what: What,

    /// The cache folder [default: $XDG_CACHE_HOME/eo-mount or ~/.cache/eo-mount]
    #[arg(long, value_name = "DIR", env = "EO_MOUNT_CACHE_DIR", hide_env = true)]
    cache_dir: Option<PathBuf>,

    /// For prune: how much the folder may hold [default: 10GiB or a tenth of its file system]
    #[arg(long, value_name = "SIZE", value_parser = cache_size, env = "EO_MOUNT_CACHE_SIZE", hide_env = true)]
    cache_size: Option<ByteSize>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Say more
    #[arg(short, long, action = ArgAction::Count, env = "EO_MOUNT_VERBOSE", hide_env = true)]
    verbose: u8,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// Blobs: size, cached bytes, their share, last use (UTC), `verified` if the whole blob was seen to have its digest
    Ls,
    /// How much is there
    Size,
    /// Remove what was not used for longest, down to --cache-size
    Prune,
    /// Check everything that is there, and drop what is wrong
    Verify,
    /// Remove everything that eo-mount keeps there
    Clear,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        logging::init(self.verbose, Destination::Stderr).map_err(|error| Failure::system("log", error))?;
        let folder = self.cache_dir.clone().or_else(default_cache_dir).ok_or_else(|| {
            let error = Error::new(ErrorKind::Usage, "cache", "there is no cache folder");
            Failure::usage(&error.hint("give one with --cache-dir, or set HOME"))
        })?;
        let upkeep = Upkeep::of(&folder).map_err(|error| Failure::usage(&error))?;
        let done = match self.what {
            What::Ls => self.list(&upkeep),
            What::Size => self.size(&upkeep),
            What::Prune => self.prune(&upkeep),
            What::Verify => self.verify(&upkeep),
            What::Clear => self.clear(&upkeep),
        };
        match done {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::silent(1)),
            Err(Stop::Failed(error)) => Err(Failure::system(&error.object, &error.cause)),
            Err(Stop::Output(error)) => Failure::of_output(Err(error)),
        }
    }

    /// The last line, or the only one.
    fn say(&self, text: &str, json: &Value) -> Result<(), Stop> {
        let mut out = io::stdout().lock();
        match self.json {
            true => writeln!(out, "{json}")?,
            false => writeln!(out, "{text}")?,
        }
        Ok(())
    }

    fn list(&self, upkeep: &Upkeep) -> Result<bool, Stop> {
        for blob in upkeep.blobs()? {
            let KeptBlob { digest, size, cached, last_use, verified, .. } = &blob;
            let share = *cached as f64 / (*size).max(1) as f64;
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs((*last_use).into());
            let time = (*last_use > 0).then(|| show::rfc3339(time, false));
            let shown = time.as_deref().unwrap_or("-");
            let word = if *verified { "verified" } else { "-" };
            let text = format!("{digest} {size:>13} {cached:>13} {:>4.0}% {shown} {word}", share * 100.0);
            let json = json!({ "digest": digest.as_str(), "size": size, "cached_bytes": cached, "share": share,
                "last_use": time, "verified": verified });
            self.say(&text, &json)?;
        }
        Ok(true)
    }

    fn size(&self, upkeep: &Upkeep) -> Result<bool, Stop> {
        let Sizes { blobs, others } = upkeep.sizes()?;
        let text = format!("{}: blobs {}, indexes and the like {}", bytes(blobs + others), bytes(blobs), bytes(others));
        self.say(&text, &json!({ "bytes": blobs + others, "blobs": blobs, "others": others }))?;
        Ok(true)
    }

    fn prune(&self, upkeep: &Upkeep) -> Result<bool, Stop> {
        let before = upkeep.sizes()?;
        let (limit, used) = upkeep.prune(self.cache_size.map(|size| size.as_u64()))?;
        let freed = (before.blobs + before.others).saturating_sub(used);
        let text = format!("{} removed; {} of {} used", bytes(freed), bytes(used), bytes(limit));
        self.say(&text, &json!({ "freed": freed, "bytes": used, "limit": limit }))?;
        Ok(used <= limit)
    }

    /// False if something was wrong.
    fn verify(&self, upkeep: &Upkeep) -> Result<bool, Stop> {
        let (mut blobs, mut chunks, mut damaged, mut whole) = (0_u64, 0, 0, 0_u64);
        let mut wrong = Vec::new();
        for blob in upkeep.blobs()? {
            let checked = upkeep.verify(&blob)?;
            blobs += 1;
            chunks += checked.chunks;
            damaged += checked.damaged;
            whole += u64::from(checked.digest_holds == Some(true));
            let cause = match checked.digest_holds {
                Some(false) => "the whole blob has another digest; all of it was dropped".to_owned(),
                _ if checked.damaged > 0 => format!("{} damaged chunks were dropped", checked.damaged),
                _ => continue,
            };
            writeln!(io::stderr(), "eo-mount: {}", Error::new(ErrorKind::Corrupt, &blob.digest, cause))?;
            wrong.push(blob.digest.to_string());
        }
        let text = format!(
            "{blobs} blobs, {chunks} chunks: {damaged} damaged; {whole} whole blobs have their digest; {} blobs were wrong",
            wrong.len()
        );
        let json = json!({ "blobs": blobs, "chunks": chunks, "damaged_chunks": damaged, "whole_blobs": whole,
            "wrong": wrong });
        self.say(&text, &json)?;
        Ok(wrong.is_empty())
    }

    fn clear(&self, upkeep: &Upkeep) -> Result<bool, Stop> {
        let cleared = upkeep.clear()?;
        let Cleared { freed, in_use } = cleared;
        let mut text = format!("{} removed", bytes(freed));
        if in_use > 0 {
            text += &format!("; {in_use} blobs that mounts have open were emptied");
        }
        self.say(&text, &json!(cleared))?;
        Ok(true)
    }
}

enum Stop {
    Failed(Error),
    Output(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

fn bytes(bytes: u64) -> impl std::fmt::Display {
    ByteSize::b(bytes).display().si()
}
