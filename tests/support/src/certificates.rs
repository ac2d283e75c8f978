//! A private certificate authority and what it signs, by the real `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::run::run;

/// Gone when dropped.
pub struct Certificates {
    directory: TempDir,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// A fresh authority.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let certificates = Self { directory };
        let name = ["-subj", "/CN=A private authority"];
        certificates.openssl(
            &["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"],
            &[&name[..], &["-days", "30", "-keyout", "ca.key", "-out", "ca.pem"]],
        );
        certificates
    }

    /// The authority's own certificate.
    pub fn authority(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// For these names, as `openssl` writes them: `DNS:localhost,IP:127.0.0.1`. Dates are `YYYYMMDDHHMMSSZ`; without
    /// them it is valid now.
    pub fn issue(&self, file: &str, names: &str, dates: Option<(&str, &str)>) -> Pair {
        let pair = Pair { certificate: self.path(&format!("{file}.pem")), key: self.path(&format!("{file}.key")) };
        let (request, key) = (format!("{file}.csr"), format!("{file}.key"));
        self.openssl(
            &["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"],
            &[&["-keyout", &key, "-out", &request]],
        );
        // `x509` takes no dates, `ca` does.
        let folder = format!("{file}.d");
        std::fs::create_dir(self.path(&folder)).expect("a temporary directory can be written");
        for (name, text) in [
            ("index.txt", String::new()),
            ("serial", "01\n".to_owned()),
            (
                "ca.cnf",
                format!(
                    "[ca]\ndefault_ca=x\n[x]\ndatabase={folder}/index.txt\nserial={folder}/serial\nnew_certs_dir={folder}\n\
                     default_md=sha256\npolicy=p\nx509_extensions=e\ndefault_days=30\n[p]\ncommonName=supplied\n\
                     [e]\nsubjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n"
                ),
            ),
        ] {
            std::fs::write(self.path(&folder).join(name), text).expect("a temporary directory can be written");
        }
        let (config, out) = (format!("{folder}/ca.cnf"), format!("{file}.pem"));
        let mut rest = vec!["-batch", "-notext", "-config", &config, "-in", &request, "-out", &out];
        rest.extend(["-cert", "ca.pem", "-keyfile", "ca.key"]);
        if let Some((from, to)) = dates {
            rest.extend(["-startdate", from, "-enddate", to]);
        }
        self.openssl(&["ca"], &[&rest]);
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn openssl(&self, first: &[&str], rest: &[&[&str]]) {
        let mut command = Command::new("openssl");
        command.args(first).args(rest.iter().copied().flatten()).current_dir(self.directory.path() as &Path);
        run(&mut command, Duration::from_secs(60)).expect_success("openssl");
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}
