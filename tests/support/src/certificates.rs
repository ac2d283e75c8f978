//! A certificate authority that nobody knows but its test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::run::run;

/// Made by `openssl`, in a temporary directory.
pub struct Authority {
    directory: TempDir,
}

/// Both as PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // skopeo wants a folder with nothing else.
        std::fs::create_dir(directory.path().join("ca")).expect("a temporary directory can be written");
        let authority = Self { directory };
        authority.make("ca/ca.crt", "ca.key", &["-subj", "/CN=Authority of a test"]);
        authority
    }

    /// Its own certificate: what `--ca-file` is given.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca/ca.crt")
    }

    /// For a server at `localhost` and the loopback addresses.
    pub fn for_localhost(&self) -> Certificate {
        self.issue("localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1")
    }

    /// `extension` as openssl's `-addext` takes it: `subjectAltName=DNS:example.org`, `extendedKeyUsage=clientAuth`.
    pub fn issue(&self, name: &str, extension: &str) -> Certificate {
        let (certificate, key) = (format!("{name}.crt"), format!("{name}.key"));
        let subject = format!("/CN={name}");
        let signed = ["-CA", "ca/ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"];
        self.make(&certificate, &key, &[&signed[..], &["-subj", &subject, "-addext", extension]].concat());
        let at = |name| self.directory.path().join(name);
        Certificate { certificate: at(certificate), key: at(key) }
    }

    fn make(&self, certificate: &str, key: &str, arguments: &[&str]) {
        // RSA, because the tokens that are signed with such a key need no other form of signature than openssl's.
        let first = ["req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2"];
        openssl(self.directory.path(), &[&first[..], &["-out", certificate, "-keyout", key], arguments].concat());
    }
}

pub(crate) fn openssl(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(arguments).current_dir(directory);
    run(&mut command, Duration::from_secs(60)).expect_success(&format!("openssl {}", arguments.join(" "))).stdout
}
