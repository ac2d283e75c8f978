//! The one table from error kinds to errnos, and the one log line of a failed operation.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fuser::Errno;

use crate::error::{Error, ErrorKind};

/// Lines that are written in this time, each once: a program that tries again and again must not fill the log.
const TIME: Duration = Duration::from_secs(1);
const LINES: usize = 100;

static SAID: LazyLock<Mutex<Said>> = LazyLock::new(|| Mutex::new(Said::new(Instant::now())));

/// The errno of a failed operation, after saying in the log what failed and why.
pub fn errno(operation: &str, error: &Error) -> Errno {
    let line = format!("{operation}: {error}");
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).is_new(&line, Instant::now()) {
        tracing::warn!("{line}");
    }
    of(error.kind)
}

struct Said {
    since: Instant,
    lines: HashSet<String>,
}

impl Said {
    fn new(since: Instant) -> Self {
        Self { since, lines: HashSet::new() }
    }

    fn is_new(&mut self, line: &str, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= TIME {
            *self = Self::new(now);
        }
        self.lines.len() < LINES && self.lines.insert(line.to_owned())
    }
}

fn of(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::Usage => Errno::EINVAL,
        ErrorKind::TimedOut => Errno::ETIMEDOUT,
        ErrorKind::NoSpace => Errno::ENOSPC,
        // Never ENOENT: a blob that the registry lacks is no missing name, and the kernel would remember it as one.
        // Programs know EIO as "the data cannot be had"; anything finer they would take for a fault of their own.
        // EACCES would be about modes that are plain to see; EOPNOTSUPP makes `cp` and others try another call.
        ErrorKind::NotFound
        | ErrorKind::Denied
        | ErrorKind::Unreachable
        | ErrorKind::Protocol
        | ErrorKind::Corrupt
        | ErrorKind::Limit
        | ErrorKind::Unsupported
        | ErrorKind::Io => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_refuses_is_data_that_cannot_be_had() {
        for kind in [ErrorKind::Denied, ErrorKind::Unsupported] {
            assert_eq!(of(kind).code(), Errno::EIO.code(), "{kind:?}");
        }
    }

    #[test]
    fn a_line_is_written_once_a_second_and_so_many_at_most() {
        let start = Instant::now();
        let mut said = Said::new(start);
        assert!(said.is_new("read: a", start) && said.is_new("read: b", start));
        assert!(!said.is_new("read: a", start + TIME / 2));
        assert!(said.is_new("read: a", start + TIME));
        let more = (0..2 * LINES).filter(|line| said.is_new(&line.to_string(), start + TIME)).count();
        assert_eq!(more, LINES - 1);
    }

    #[test]
    fn no_failure_is_a_missing_name() {
        let kinds = [
            ErrorKind::NotFound,
            ErrorKind::Usage,
            ErrorKind::Denied,
            ErrorKind::Unreachable,
            ErrorKind::TimedOut,
            ErrorKind::Protocol,
            ErrorKind::Corrupt,
            ErrorKind::Limit,
            ErrorKind::NoSpace,
            ErrorKind::Unsupported,
            ErrorKind::Io,
        ];
        for kind in kinds {
            assert_ne!(of(kind).code(), Errno::ENOENT.code(), "{kind:?}");
        }
        assert_eq!(of(ErrorKind::Corrupt).code(), Errno::EIO.code());
        assert_eq!(of(ErrorKind::TimedOut).code(), Errno::ETIMEDOUT.code());
    }
}
