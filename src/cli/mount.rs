//! `eo-mount REFERENCE MOUNTPOINT`, also `eo-mount mount …`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use clap::builder::BoolishValueParser;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::background::{self, Parent};
use super::common::{Common, runtime};
use super::failure::Failure;
use crate::error::{Error, ErrorKind};
use crate::fuse::{self, Mountpoint, Session, Settings};
use crate::mount::{Mount, Options};
use crate::oci::Reference;

const EXAMPLES: &str = "\
Examples:
  eo-mount ghcr.io/org/pastis:v1 /mnt/pastis        a dataset in a registry
  eo-mount localhost:5000/pastis@sha256:… ./data    exactly that artifact
  eo-mount oci:./pastis:sample ./data               an OCI image layout on disk
  fusermount3 -u /mnt/pastis                        unmount
  eo-mount ls -l ghcr.io/org/pastis:v1 10001        look into it without a mount
  eo-mount mount ls ./data                          the repository that is called as a verb is

Each option can be set by a variable too: --cache-dir is EO_MOUNT_CACHE_DIR.
Exit codes: 1 the artifact or its registry, 2 usage, 3 the mount itself.";

/// Longest time that a slow disk keeps the process when its mount is gone.
const SETTLE: Duration = Duration::from_secs(2);

/// Mount an Earth-observation dataset from an OCI registry as a local folder.
/// Returns when the mount answers and goes on in the background; only the bytes that are read are downloaded.
#[derive(Debug, Parser)]
#[command(name = "eo-mount", version, after_help = EXAMPLES)]
pub struct Command {
    /// [registry/]repository[:tag][@digest], or oci:DIR[:tag] for an image layout on disk
    pub reference: String,

    /// An empty directory
    mountpoint: PathBuf,

    /// Stay in the foreground; Ctrl-C unmounts
    #[arg(short, long, env = "EO_MOUNT_FOREGROUND", hide_env = true, value_parser = BoolishValueParser::new())]
    foreground: bool,

    /// Let other users read the mount
    #[arg(long, env = "EO_MOUNT_ALLOW_OTHER", hide_env = true, value_parser = BoolishValueParser::new())]
    allow_other: bool,

    /// Show this owner for all files [default: yours]
    #[arg(long, value_name = "NUMBER", env = "EO_MOUNT_UID", hide_env = true)]
    uid: Option<u32>,

    /// Show this group for all files [default: yours]
    #[arg(long, value_name = "NUMBER", env = "EO_MOUNT_GID", hide_env = true)]
    gid: Option<u32>,

    /// Show owners and groups as the archives have them
    #[arg(long, env = "EO_MOUNT_PRESERVE_OWNER", hide_env = true, value_parser = BoolishValueParser::new())]
    preserve_owner: bool,

    /// Mount over a directory that is not empty, hiding what is in it
    #[arg(long, env = "EO_MOUNT_NONEMPTY", hide_env = true, value_parser = BoolishValueParser::new())]
    nonempty: bool,

    /// Leave out .oci, the artifact as an image layout with what is attached to it
    #[arg(long, env = "EO_MOUNT_NO_OCI", hide_env = true, value_parser = BoolishValueParser::new())]
    no_oci: bool,

    #[command(flatten)]
    common: Common,

    #[arg(long = background::FLAG, hide = true)]
    in_background: bool,
}

impl Command {
    pub fn run(mut self) -> Result<(), Failure> {
        if !self.foreground && !self.in_background {
            return background::run_again(self.common.access.password()?.as_ref());
        }
        let parent = if self.in_background {
            let (parent, password) = Parent::take()?;
            self.common.access.password = password;
            self.common.access.password_stdin = false;
            Some(parent)
        } else {
            None
        };
        self.make_absolute()?;
        self.common.start_logging(parent.is_some())?;
        let runtime = runtime()?;
        let done = runtime.block_on(self.serve(parent, &runtime));
        // What still hangs ends with the process.
        runtime.shutdown_background();
        done
    }

    /// The background process leaves the folder that relative paths are about.
    fn make_absolute(&mut self) -> Result<(), Failure> {
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map_err(|error| Failure::usage(&Error::new(ErrorKind::Usage, path.display(), error)))
        };
        let Common { cache_dir, log, verify_key, access, .. } = &mut self.common;
        let files = [cache_dir, log, verify_key, &mut access.ca_file, &mut access.cert_file, &mut access.key_file];
        for path in files.into_iter().flatten() {
            *path = absolute(path)?;
        }
        if let Reference::Layout(mut layout) = self.reference.parse().map_err(|error| Failure::usage(&error))? {
            layout.directory = absolute(&layout.directory)?;
            self.reference = layout.to_string();
        }
        Ok(())
    }

    async fn serve(self, parent: Option<Parent>, runtime: &Runtime) -> Result<(), Failure> {
        // From here on a signal is an orderly end.
        let mut signals = Signals::new().map_err(|error| Failure::system("signals", error))?;

        let (mountpoint, mount) = tokio::select! {
            prepared = self.prepare() => prepared?,
            end = wanted_end(&mut signals, parent.as_ref()) => return Err(end),
        };

        let settings = Settings { source: self.reference.clone(), allow_other: self.allow_other };
        // Not to be cancelled half way. This thread has nothing else to do meanwhile.
        let mount = Arc::new(mount);
        let mut session = Session::start(Arc::clone(&mount), &mountpoint, &settings, runtime.handle().clone())
            .map_err(|error| Failure::mount(&error))?;
        drop(mountpoint);

        let early = tokio::select! {
            answer = self.answers(session.path()) => answer.err(),
            end = wanted_end(&mut signals, parent.as_ref()) => Some(end),
        };
        let in_background = parent.is_some();
        let early = early.or_else(|| {
            // Before stderr is let go, so that whoever typed the command sees it.
            tracing::info!("{}: mounted {}", session.path().display(), self.reference);
            let left = parent.map(Parent::ready)?.err()?;
            Some(Failure::system("going to the background", left))
        });
        if let Some(failure) = early {
            if let Err(error) = session.stop().await {
                tracing::warn!("{error}");
            }
            return Err(failure);
        }

        let path = session.path().to_path_buf();
        let end = tokio::select! {
            end = session.ended() => end,
            signal = signals.next() => {
                tracing::info!("{}: signal {signal}", path.display());
                session.stop().await
            }
        };
        // What was fetched last is still being written.
        let _ = tokio::time::timeout(SETTLE, mount.settle()).await;
        match end {
            Ok(()) => {
                tracing::info!("{}: unmounted", path.display());
                Ok(())
            }
            Err(error) => {
                if in_background {
                    tracing::error!("{error}");
                }
                Err(Failure::mount(&error))
            }
        }
    }

    /// Everything that can fail before there is a mount.
    async fn prepare(&self) -> Result<(Mountpoint, Mount), Failure> {
        let (path, nonempty) = (self.mountpoint.clone(), self.nonempty);
        let checking = move || {
            fuse::available()?;
            Mountpoint::check(&path, nonempty)
        };
        let mountpoint = tokio::task::spawn_blocking(checking)
            .await
            .map_err(|error| Failure::system("checking the mount point", error))?
            .map_err(|error| Failure::mount(&error))?;
        let mount = Mount::open(&self.reference, self.options()?).await.map_err(|error| Failure::artifact(&error))?;
        Ok((mountpoint, mount))
    }

    fn options(&self) -> Result<Options, Failure> {
        let options = self.common.options()?;
        Ok(Options {
            uid: self.uid.unwrap_or(options.uid),
            gid: self.gid.unwrap_or(options.gid),
            preserve_owner: self.preserve_owner,
            oci: !self.no_oci,
            ..options
        })
    }

    /// Lists the root the way that every program will: through the kernel.
    async fn answers(&self, path: &Path) -> Result<(), Failure> {
        let failed = |cause: String| {
            Failure::mount(&Error::new(
                ErrorKind::Io,
                path.display(),
                format!("mounted, but it does not answer: {cause}"),
            ))
        };
        let root = path.to_path_buf();
        let listing = tokio::task::spawn_blocking(move || std::fs::read_dir(root)?.next().transpose().map(|_| ()));
        match tokio::time::timeout(self.common.timeout, listing).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(failed(error.to_string())),
            Ok(Err(panic)) => Err(failed(panic.to_string())),
            Err(_) => Err(failed("no listing in time".to_owned())),
        }
    }
}

/// Why to give up before the mount is ready: a signal, or the parent that waits for it is gone.
async fn wanted_end(signals: &mut Signals, parent: Option<&Parent>) -> Failure {
    let gone = async {
        match parent {
            Some(parent) => parent.gone().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        number = signals.next() => Failure::signal(number),
        () = gone => Failure::signal(SignalKind::hangup().as_raw_value()),
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The number of the next signal that asks for the end.
    async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        };
        kind.as_raw_value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Command, String> {
        let all = ["eo-mount", "localhost:5000/a:b", "/mnt"].iter().chain(arguments);
        Command::try_parse_from(all).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_and_times_are_written_with_units() {
        let command = parse(&["--memory", "64MiB", "--timeout", "2m"]).expect("parsed");
        assert_eq!(command.options().expect("options").memory, 64 << 20);
        assert_eq!(command.options().expect("options").timeout, Duration::from_secs(120));
        assert_eq!(parse(&[]).expect("parsed").options().expect("options").memory, 256 << 20);
        assert!(parse(&["--memory", "15MiB"]).expect_err("refused").contains("16MiB"));
        assert!(parse(&["--memory", "much"]).expect_err("refused").contains("256MiB"));
        assert!(parse(&["--timeout", "60"]).expect_err("refused").contains("60s"));
        assert!(parse(&["--timeout", "0s"]).expect_err("refused").contains("1s"));
    }

    #[test]
    fn the_owner_shown_is_the_mounter_unless_said_otherwise() {
        let options = parse(&[]).expect("parsed").options().expect("options");
        assert_eq!(options.uid, rustix::process::geteuid().as_raw());
        let options = parse(&["--uid", "1000", "--gid", "100"]).expect("parsed").options().expect("options");
        assert_eq!((options.uid, options.gid), (1000, 100));
    }

    #[test]
    fn relative_paths_survive_the_change_of_folder() {
        let mut command = parse(&["--log", "l", "--cache-dir", "/c"]).expect("parsed");
        command.reference = "oci:./sample/pastis:sample".to_owned();
        command.make_absolute().expect("absolute");
        let here = std::env::current_dir().expect("a folder");
        assert_eq!(command.common.log, Some(here.join("l")));
        assert_eq!(command.common.cache_dir, Some("/c".into()));
        assert_eq!(command.reference, format!("oci:{}/sample/pastis:sample", here.display()));
        command.reference = "localhost:5000/a:b".to_owned();
        command.make_absolute().expect("absolute");
        assert_eq!(command.reference, "localhost:5000/a:b");
    }
}
