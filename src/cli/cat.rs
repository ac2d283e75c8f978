//! `eo-mount cat REFERENCE PATH`: the bytes of a file or a layer, without a mount.

use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use clap::Parser;
use futures_util::{StreamExt, stream};

use super::common::Common;
use super::failure::Failure;
use crate::error::{Error, ErrorKind};
use crate::mount::{Ino, Kind, Mount};
use crate::oci::Descriptor;

/// Bytes read at once, and how many such reads are under way.
const PIECE: u64 = 1 << 20;
const PIECES: usize = 8;

/// Print a file of a dataset, or a layer as it is, without mounting it
#[derive(Debug, Parser)]
pub struct Command {
    /// As for a mount
    reference: String,

    /// As a mount shows it; or the digest of a layer
    path: OsString,

    /// Some of the bytes, from 0 and both included, as HTTP and curl count them: 0-499, 500-, or -500 for the last
    #[arg(short, long, value_name = "FIRST-LAST", allow_hyphen_values = true, value_parser = range)]
    range: Option<Bounds>,

    #[command(flatten)]
    common: Common,
}

/// RFC 9110, section 14.1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bounds {
    From(u64, Option<u64>),
    Last(u64),
}

enum What {
    File(Ino),
    Layer(Descriptor),
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.cat())
    }

    async fn cat(&self) -> Result<(), Failure> {
        let failed = |error: Error| Failure::artifact(&error);
        let mount = Mount::open(&self.reference, self.common.options()?).await.map_err(failed)?;
        let (what, size) = self.what(&mount).await.map_err(failed)?;
        let range = self.range.map_or(Ok(0..size), |range| range.of(size));
        let range =
            range.map_err(|cause| Failure::artifact(&Error::new(ErrorKind::Usage, self.path.display(), cause)))?;
        let whole = range == (0..size);
        let starts = range.clone().step_by(PIECE as usize);
        let pieces = starts.map(|start| start..start.saturating_add(PIECE).min(range.end));
        let reads = stream::iter(pieces).map(async |piece| what.read(&mount, piece).await);
        let mut reads = std::pin::pin!(reads.buffered(PIECES));
        let mut hasher = match &what {
            What::Layer(blob) if whole => Some(blob.digest.hasher()),
            _ => None,
        };
        let mut out = io::stdout();
        while let Some(bytes) = reads.next().await {
            let bytes = bytes.map_err(failed)?;
            if let Some(hasher) = &mut hasher {
                hasher.update(&bytes);
            }
            if let Err(error) = tokio::task::block_in_place(|| out.write_all(&bytes)) {
                return Failure::of_output(Err(error));
            }
        }
        Failure::of_output(out.flush())?;
        // What was fetched stays in the cache folder.
        mount.settle().await;
        match (&what, hasher) {
            (What::Layer(blob), Some(hasher)) => hasher.check(&blob.digest).map_err(failed),
            _ => Ok(()),
        }
    }

    async fn what(&self, mount: &Mount) -> Result<(What, u64), Error> {
        let text = self.path.to_str().unwrap_or_default();
        for number in 0..mount.layer_count() {
            let blob = mount.blob_of_layer(number)?;
            if [blob.digest.as_str(), blob.digest.short()].contains(&text) {
                return Ok((What::Layer(blob.clone()), blob.size));
            }
        }
        // Links are followed, the last one, too.
        let path = self.path.as_bytes();
        let found = match mount.resolve(&[path, &b"/."[..]].concat()).await {
            Ok(found) => found,
            Err(_) => mount.resolve(path).await?,
        };
        match found.kind {
            Kind::File => Ok((What::File(found.ino), found.size)),
            Kind::Directory => {
                let error = Error::new(ErrorKind::Unsupported, self.path.display(), "a directory has no bytes");
                Err(error.hint("eo-mount ls lists it; the digest of a layer gives its archive"))
            }
            _ => Err(Error::new(ErrorKind::Unsupported, self.path.display(), "not a file")),
        }
    }
}

impl What {
    async fn read(&self, mount: &Mount, range: Range<u64>) -> Result<Bytes, Error> {
        match self {
            Self::Layer(blob) => mount.read_blob(blob, range).await,
            Self::File(ino) => {
                let size = u32::try_from(range.end.saturating_sub(range.start)).unwrap_or(u32::MAX);
                mount.read(*ino, range.start, size).await
            }
        }
    }
}

impl Bounds {
    fn of(self, size: u64) -> Result<Range<u64>, String> {
        match self {
            Self::From(first, last) if first < size => {
                Ok(first..last.map_or(size, |last| last.saturating_add(1).min(size)))
            }
            Self::Last(count) if count > 0 => Ok(size.saturating_sub(count)..size),
            _ => Err(format!("the range begins behind its end: it has {size} bytes")),
        }
    }
}

fn range(text: &str) -> Result<Bounds, String> {
    let wrong = || "it takes FIRST-LAST, FIRST- or -COUNT, such as 0-499".to_owned();
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u64>().map_err(|_| wrong()),
        false => Err(wrong()),
    };
    match text.split_once('-') {
        Some(("", count)) => number(count).map(Bounds::Last),
        Some((first, "")) => number(first).map(|first| Bounds::From(first, None)),
        Some((first, last)) => match (number(first)?, number(last)?) {
            (first, last) if first <= last => Ok(Bounds::From(first, Some(last))),
            _ => Err(wrong()),
        },
        None => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        let of = |text: &str, size| range(text).unwrap().of(size);
        assert_eq!(of("0-499", 1000), Ok(0..500));
        assert_eq!(of("500-", 1000), Ok(500..1000));
        assert_eq!(of("-100", 1000), Ok(900..1000));
        assert_eq!(of("-2000", 1000), Ok(0..1000));
        assert_eq!(of("990-2000", 1000), Ok(990..1000));
        assert!(of("1000-", 1000).is_err() && of("-0", 1000).is_err());
        for wrong in ["", "-", "5", "5-4", "a-b", "1-2,4-5", "+1-2", "--1"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }
}
