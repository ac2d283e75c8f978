//! How the program fails: an exit code and one line on stderr.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::error::{Error, ErrorKind};

pub const ARTIFACT: u8 = 1;
pub const USAGE: u8 = 2;
pub const MOUNT: u8 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    /// `OBJECT: CAUSE (HINT)`; nothing where somebody else has spoken already.
    pub line: Option<String>,
}

impl Failure {
    /// Of the artifact or its registry, or of the reference that names it.
    pub fn artifact(error: &Error) -> Self {
        match error.kind {
            ErrorKind::Usage => Self::usage(error),
            _ => Self::new(ARTIFACT, error),
        }
    }

    /// Of what the user typed.
    pub fn usage(error: &Error) -> Self {
        Self::new(USAGE, error)
    }

    /// Of the mount itself: the mount point, FUSE, this system.
    pub fn mount(error: &Error) -> Self {
        Self::new(MOUNT, error)
    }

    /// Something that this system does not do for us.
    pub fn system(what: &str, error: impl std::fmt::Display) -> Self {
        Self::mount(&Error::new(ErrorKind::Io, what, error))
    }

    /// Whoever reads may stop: has seen enough.
    pub fn of_output(written: io::Result<()>) -> Result<(), Self> {
        match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Self::system("standard output", error)),
            _ => Ok(()),
        }
    }

    /// Ended by a signal, as shells number it.
    pub fn signal(number: i32) -> Self {
        Self { code: u8::try_from(number).map_or(MOUNT, |number| number.saturating_add(128)), line: None }
    }

    /// The code of a process that has said itself what went wrong.
    pub fn silent(code: u8) -> Self {
        Self { code, line: None }
    }

    pub fn report(self) -> ExitCode {
        if let Some(line) = &self.line {
            // Not `eprintln`, which panics when nobody reads.
            let _ = writeln!(io::stderr(), "eo-mount: {line}");
        }
        ExitCode::from(self.code)
    }

    fn new(code: u8, error: &Error) -> Self {
        Self { code, line: Some(error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_says_whose_fault_it_is() {
        let error =
            |kind| Error::new(kind, "localhost:5000/a:b", "no such tag").hint("oras repo tags localhost:5000/a");
        let failure = Failure::artifact(&error(ErrorKind::NotFound));
        assert_eq!(failure.code, 1);
        assert_eq!(failure.line.as_deref(), Some("localhost:5000/a:b: no such tag (oras repo tags localhost:5000/a)"));
        assert_eq!(Failure::artifact(&error(ErrorKind::Usage)).code, 2);
        assert_eq!(Failure::mount(&error(ErrorKind::NotFound)).code, 3);
        assert_eq!(Failure::signal(15).code, 143);
    }
}
