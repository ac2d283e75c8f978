//! Where log lines go, and how many.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use syslog_tracing::{Facility, Syslog, SyslogWriter};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{MakeWriter, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub enum Destination<'a> {
    Stderr,
    /// Appended.
    File(&'a Path),
    /// Stderr until [`detach`], then syslog.
    Background,
}

/// To be called once. `verbosity` counts `-v`: warnings, then what happens to the mount, then each step, then
/// everything, dependencies included.
///
/// # Errors
/// The file cannot be opened.
pub fn init(verbosity: u8, destination: Destination<'_>) -> io::Result<()> {
    let (sink, colours, times) = match destination {
        Destination::Stderr => {
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            (Sink::Stderr, colours, false)
        }
        Destination::File(path) => (Sink::File(File::options().append(true).create(true).open(path)?), false, true),
        Destination::Background => {
            let syslog = Syslog::new(c"eo-mount", syslog_tracing::Options::LOG_PID, Facility::Daemon);
            (Sink::Background(syslog), false, false)
        }
    };
    let lines = layer().with_writer(sink).with_target(verbosity > 1).with_ansi(colours);
    let subscriber = tracing_subscriber::registry().with(filter(verbosity));
    if times {
        subscriber.with(lines).init();
    } else {
        // Syslog has times of its own.
        subscriber.with(lines.without_time()).init();
    }
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("a bug in eo-mount: {}", crate::error::printable(&panic.to_string()));
    }));
    Ok(())
}

/// From now on stderr is not for us.
pub fn detach() {
    DETACHED.store(true, Ordering::Relaxed);
}

static DETACHED: AtomicBool = AtomicBool::new(false);

fn filter(verbosity: u8) -> Targets {
    let (ours, theirs) = match verbosity {
        0 => (Level::WARN, Level::WARN),
        1 => (Level::INFO, Level::WARN),
        2 => (Level::DEBUG, Level::WARN),
        _ => (Level::TRACE, Level::DEBUG),
    };
    Targets::new().with_default(LevelFilter::from_level(theirs)).with_target(env!("CARGO_CRATE_NAME"), ours)
}

enum Sink {
    Stderr,
    File(File),
    /// Nothing where syslog is in use already, which does not happen.
    Background(Option<Syslog>),
}

enum Line<'a> {
    Stderr(io::Stderr),
    File(&'a File),
    Syslog(SyslogWriter),
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        match self {
            Self::File(file) => Line::File(file),
            Self::Background(Some(syslog)) if DETACHED.load(Ordering::Relaxed) => Line::Syslog(syslog.make_writer()),
            Self::Stderr | Self::Background(_) => Line::Stderr(io::stderr()),
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        match self {
            Self::Background(Some(syslog)) if DETACHED.load(Ordering::Relaxed) => {
                Line::Syslog(syslog.make_writer_for(metadata))
            }
            _ => self.make_writer(),
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr(stderr) => stderr.write(bytes),
            Self::File(file) => file.write(bytes),
            Self::Syslog(syslog) => syslog.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stderr(stderr) => stderr.flush(),
            Self::File(file) => file.flush(),
            Self::Syslog(syslog) => syslog.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_is_about_this_program_first() {
        let shows = |verbosity, target, level| filter(verbosity).would_enable(target, &level);
        assert!(shows(0, "eo_mount::mount", Level::WARN));
        assert!(!shows(0, "eo_mount::mount", Level::INFO));
        assert!(shows(1, "eo_mount::mount", Level::INFO));
        assert!(shows(2, "eo_mount::mount", Level::DEBUG));
        assert!(!shows(2, "hyper", Level::INFO));
        assert!(shows(3, "hyper", Level::DEBUG));
        assert!(shows(9, "eo_mount::mount", Level::TRACE));
    }
}
