//! The one error that crosses the layers: what happened, to which object, and what to do about it.
//!
//! Every layer may make one. Parsers of the core have precise enums of their own and convert them here.
//! The errno is chosen in `fuse/errno.rs`, the exit code in `cli/failure.rs`.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Cheap to clone, because one failed fetch answers every reader that waited for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: ErrorKind,
    /// A reference, digest, path or address, as the user would write it.
    pub object: String,
    pub cause: String,
    /// What the user can do, if anything.
    pub hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The user's input is not what it should be.
    Usage,
    NotFound,
    /// The registry or the file system does not allow it.
    Denied,
    /// No connection, or the server is broken.
    Unreachable,
    TimedOut,
    /// The server answered, but not as the specification says.
    Protocol,
    /// Bytes that do not match their digest, or an archive that is none.
    Corrupt,
    /// One of the named limits was reached.
    Limit,
    NoSpace,
    Unsupported,
    Io,
}

impl Error {
    pub fn new(kind: ErrorKind, object: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self { kind, object: printable(&object.to_string()), cause: printable(&cause.to_string()), hint: None }
    }

    /// Whether it may pass without anybody doing anything about the artifact.
    pub fn is_of_the_network(&self) -> bool {
        matches!(self.kind, ErrorKind::Unreachable | ErrorKind::TimedOut)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(one_line(&hint.into()).collect());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.cause)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

fn one_line(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|c| if c.is_control() { ' ' } else { c })
}

/// One line without control characters, and short: causes and objects may hold text that a server or an archive wrote.
pub fn printable(text: &str) -> String {
    const LONGEST: usize = 400;
    let mut line: String = one_line(text).take(LONGEST).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_stays_on_one_line_and_short() {
        let error = Error::new(ErrorKind::Protocol, "a\nb", format!("\x1b[31m{}", "x".repeat(1000))).hint("try again");
        let line = error.to_string();
        assert!(line.starts_with("a b:  [31mxxx"), "{line}");
        assert!(line.ends_with("x… (try again)"), "{line}");
        assert!(line.chars().count() < 450);
    }
}
