//! The one table from error kinds to errnos, and the one log line of a failed operation.

use fuser::Errno;

use crate::error::{Error, ErrorKind};

/// The errno of a failed operation, after saying in the log what failed and why.
pub fn errno(operation: &str, error: &Error) -> Errno {
    tracing::warn!("{operation}: {error}");
    of(error.kind)
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
