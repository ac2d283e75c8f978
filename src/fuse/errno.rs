//! The one table from error kinds to errnos, and the one log line of a failed operation.

use fuser::Errno;

use crate::error::{Error, ErrorKind};

/// The errno of a failed operation, after saying in the log what failed and why.
///
/// A missing name is an answer, not a failure: it is not logged.
pub fn errno(operation: &str, error: &Error) -> Errno {
    if error.kind != ErrorKind::NotFound {
        tracing::warn!("{operation}: {error}");
    }
    of(error.kind)
}

fn of(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::Usage => Errno::EINVAL,
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::Denied => Errno::EACCES,
        ErrorKind::TimedOut => Errno::ETIMEDOUT,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        // Programs know EIO as "the data cannot be had"; anything finer they would take for a fault of their own.
        ErrorKind::Unreachable | ErrorKind::Protocol | ErrorKind::Corrupt | ErrorKind::Limit | ErrorKind::Io => {
            Errno::EIO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_names_are_enoent() {
        let kinds = [
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
        assert_eq!(of(ErrorKind::NotFound).code(), Errno::ENOENT.code());
        for kind in kinds {
            assert_ne!(of(kind).code(), Errno::ENOENT.code(), "{kind:?}");
        }
        assert_eq!(of(ErrorKind::Corrupt).code(), Errno::EIO.code());
        assert_eq!(of(ErrorKind::TimedOut).code(), Errno::ETIMEDOUT.code());
    }
}
