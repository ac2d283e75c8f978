//! Options that all verbs share, and how a verb without a mount runs.

use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, ValueEnum};
use tokio::runtime::Runtime;

use super::access::AccessArguments;
use super::failure::Failure;
use super::logging::{self, Destination};
use crate::error::{Error, ErrorKind};
use crate::mount::{AttachedIndex, Options};
use crate::oci::{Digest, Platform, PublicKey};

#[derive(Debug, Args)]
pub struct Common {
    /// Use plain HTTP (always so for localhost and loopback addresses)
    #[arg(long, env = "EO_MOUNT_PLAIN_HTTP", hide_env = true, value_parser = BoolishValueParser::new())]
    pub plain_http: bool,

    #[command(flatten)]
    pub access: AccessArguments,

    /// Use what is in the cache folder alone, and no network
    #[arg(long, env = "EO_MOUNT_OFFLINE", hide_env = true, value_parser = BoolishValueParser::new())]
    pub offline: bool,

    /// Which manifest of an image index, such as linux/arm64/v8 [default: all, each in a folder]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", env = "EO_MOUNT_PLATFORM", hide_env = true)]
    pub platform: Option<Platform>,

    /// Where to keep downloaded data [default: $XDG_CACHE_HOME/eo-mount or ~/.cache/eo-mount]
    #[arg(long, value_name = "DIR", env = "EO_MOUNT_CACHE_DIR", hide_env = true)]
    pub cache_dir: Option<PathBuf>,

    /// How much the cache folder may hold, at least 64MiB [default: 10GiB or a tenth of its file system]
    #[arg(long, value_name = "SIZE", value_parser = cache_size, env = "EO_MOUNT_CACHE_SIZE", hide_env = true)]
    pub cache_size: Option<ByteSize>,

    /// How much of the cache folder's file system is left free
    #[arg(long, value_name = "SIZE", default_value = "1GiB", env = "EO_MOUNT_CACHE_MIN_FREE", hide_env = true)]
    pub cache_min_free: ByteSize,

    /// Do not keep what was read on disk; indexes and manifests are kept
    #[arg(long, env = "EO_MOUNT_NO_DISK_CACHE", hide_env = true, value_parser = BoolishValueParser::new())]
    pub no_disk_cache: bool,

    /// Fetch and check a layer whole before any of it is given out
    #[arg(long, value_name = "WHAT", env = "EO_MOUNT_VERIFY", hide_env = true)]
    pub verify: Option<Verify>,

    /// Refuse what is not signed by this key: a public key of cosign (PEM, ECDSA P-256)
    #[arg(long, value_name = "FILE", env = "EO_MOUNT_VERIFY_KEY", hide_env = true)]
    pub verify_key: Option<PathBuf>,

    /// List from this attached index, by the digest of its manifest, and check chunks against its digests
    #[arg(long, value_name = "DIGEST", env = "EO_MOUNT_INDEX", hide_env = true, conflicts_with_all = ["no_index", "verify"])]
    pub index: Option<Digest>,

    /// List from no attached index [default: from the newest, until the layers prove it wrong]
    #[arg(long, env = "EO_MOUNT_NO_INDEX", hide_env = true, value_parser = BoolishValueParser::new())]
    pub no_index: bool,

    /// Most memory for data, at least 16MiB
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = memory,
          env = "EO_MOUNT_MEMORY", hide_env = true)]
    pub memory: ByteSize,

    /// Longest time that one operation takes before it fails
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = timeout,
          env = "EO_MOUNT_TIMEOUT", hide_env = true)]
    pub timeout: Duration,

    /// Most requests to the registry at once, 1 to 256
    #[arg(long, value_name = "NUMBER", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256),
          env = "EO_MOUNT_CONNECTIONS", hide_env = true)]
    pub connections: u16,

    /// Most bytes a second from the registry, such as 10MiB
    #[arg(long, value_name = "RATE", value_parser = bandwidth, env = "EO_MOUNT_BANDWIDTH", hide_env = true)]
    pub bandwidth: Option<ByteSize>,

    /// Ask this mirror for what has a digest before the registry; may be repeated
    #[arg(long, value_name = "URL", env = "EO_MOUNT_MIRROR", hide_env = true, value_delimiter = ',')]
    pub mirror: Vec<String>,

    /// Refuse a registry that gives only whole layers
    #[arg(long, env = "EO_MOUNT_REQUIRE_RANGES", hide_env = true, value_parser = BoolishValueParser::new())]
    pub require_ranges: bool,

    /// Let the registry send requests to loopback, link-local and metadata addresses
    #[arg(long, env = "EO_MOUNT_ALLOW_LOCAL_REDIRECTS", hide_env = true, value_parser = BoolishValueParser::new())]
    pub allow_local_redirects: bool,

    /// Say more: -v what happens, -vv each step, -vvv everything
    #[arg(short, long, action = ArgAction::Count, env = "EO_MOUNT_VERBOSE", hide_env = true)]
    pub verbose: u8,

    /// Append log lines to this file [default: stderr, in the background syslog]
    #[arg(long, value_name = "FILE", env = "EO_MOUNT_LOG", hide_env = true)]
    pub log: Option<PathBuf>,
}

/// What is checked before it is given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    /// The digest of the whole blob
    Blob,
}

impl Common {
    /// Everything belongs to whoever runs this, until told otherwise.
    pub fn options(&self) -> Result<Options, Failure> {
        Ok(Options {
            plain_http: self.plain_http,
            access: self.access.access()?,
            offline: self.offline,
            platform: self.platform.clone(),
            cache_dir: self.cache_dir.clone().or_else(default_cache_dir),
            cache_size: self.cache_size.map(|size| size.as_u64()),
            cache_min_free: self.cache_min_free.as_u64(),
            disk_cache: !self.no_disk_cache,
            verify_blobs: self.verify == Some(Verify::Blob),
            memory: self.memory.as_u64(),
            timeout: self.timeout,
            connections: self.connections.into(),
            bandwidth: self.bandwidth.map(|rate| rate.as_u64()),
            mirrors: self.mirror.clone(),
            require_ranges: self.require_ranges,
            allow_local_redirects: self.allow_local_redirects,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            preserve_owner: false,
            oci: true,
            verify_key: self.verify_key.as_deref().map(public_key).transpose()?,
            attached: match &self.index {
                _ if self.no_index => AttachedIndex::Ignored,
                Some(digest) => AttachedIndex::Pinned(digest.clone()),
                None => AttachedIndex::Found,
            },
        })
    }

    /// To be called once.
    pub fn start_logging(&self, in_background: bool) -> Result<(), Failure> {
        let destination = match &self.log {
            Some(file) => Destination::File(file),
            None if in_background => Destination::Background,
            None => Destination::Stderr,
        };
        logging::init(self.verbose, destination).map_err(|error| {
            let file = self.log.as_deref().unwrap_or(Path::new("log"));
            let error = Error::new(ErrorKind::Usage, file.display(), format!("cannot write the log: {error}"));
            Failure::usage(&error.hint("choose another file with --log"))
        })
    }

    /// Runs a verb that ends by itself. A signal ends it as it ends any program, but for what `until_signal` says.
    pub fn run(&self, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
        self.start_logging(false)?;
        let runtime = runtime()?;
        let done = runtime.block_on(work);
        runtime.shutdown_background();
        done
    }
}

fn public_key(path: &Path) -> Result<PublicKey, Failure> {
    /// Bytes.
    const LONGEST: u64 = 64 << 10;
    let mut pem = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut pem));
    let wrong = |cause: &dyn std::fmt::Display| {
        let error = Error::new(ErrorKind::Usage, path.display(), cause);
        Failure::usage(&error.hint("--verify-key takes a file as cosign generate-key-pair writes it: cosign.pub"))
    };
    read.map_err(|error| wrong(&error))?;
    PublicKey::from_pem(&pem).map_err(|error| wrong(&error))
}

pub fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::system("starting threads", error))
}

pub fn default_cache_dir() -> Option<PathBuf> {
    cache_dir_of(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
}

/// XDG Base Directory Specification: a relative or empty `XDG_CACHE_HOME` counts as unset.
fn cache_dir_of(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    xdg.and_then(absolute)
        .or_else(|| Some(home.and_then(absolute)?.join(".cache")))
        .map(|caches| caches.join("eo-mount"))
}

fn memory(text: &str) -> Result<ByteSize, String> {
    const LEAST: ByteSize = ByteSize::mib(16);
    let size: ByteSize = text.parse().map_err(|_| "it takes a number and a unit, such as 256MiB".to_owned())?;
    if size < LEAST {
        return Err("at least 16MiB are needed".to_owned());
    }
    Ok(size)
}

/// Bytes a second; `/s` behind it is allowed.
fn bandwidth(text: &str) -> Result<ByteSize, String> {
    let rate: ByteSize =
        text.trim_end_matches("/s").parse().map_err(|_| "it takes a number and a unit, such as 10MiB".to_owned())?;
    if rate < ByteSize::kib(16) {
        return Err("at least 16KiB are needed".to_owned());
    }
    Ok(rate)
}

pub fn cache_size(text: &str) -> Result<ByteSize, String> {
    const LEAST: ByteSize = ByteSize::mib(64);
    let size: ByteSize = text.parse().map_err(|_| "it takes a number and a unit, such as 20GiB".to_owned())?;
    if size < LEAST {
        return Err("at least 64MiB are needed".to_owned());
    }
    Ok(size)
}

pub fn timeout(text: &str) -> Result<Duration, String> {
    let time =
        humantime::parse_duration(text).map_err(|_| "it takes a number and a unit, such as 60s or 2m".to_owned())?;
    if time < Duration::from_secs(1) || time > Duration::from_secs(24 * 3600) {
        return Err("it takes between 1s and 1day".to_owned());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_xdg_specification_says() {
        let folder =
            |xdg: Option<&str>, home: Option<&str>| cache_dir_of(xdg.map(OsString::from), home.map(OsString::from));
        assert_eq!(folder(Some("/c"), Some("/home/me")), Some("/c/eo-mount".into()));
        assert_eq!(folder(Some("c"), Some("/home/me")), Some("/home/me/.cache/eo-mount".into()));
        assert_eq!(folder(Some(""), None), None);
        assert_eq!(folder(None, None), None);
    }
}
