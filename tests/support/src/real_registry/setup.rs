//! Which registry, and what is told to it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use serde_json::json;
use tempfile::TempDir;

use super::RealRegistry;
use crate::certificates::{Authority, Certificate};
use crate::run::run;
use crate::token_server::TokenServer;
use crate::tools;

/// The registries that there are for tests.
#[derive(Debug, Clone)]
pub enum Program {
    /// Debian's distribution 2.8.
    DockerRegistry,
    Distribution3,
    /// Any distribution.
    DistributionAt(PathBuf),
    /// go-containerregistry's: has the referrers API, and forgets all when it is stopped. Takes no options.
    Referrers,
}

impl Program {
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::DockerRegistry => "docker-registry".into(),
            Self::Distribution3 => tools::built("registry"),
            Self::DistributionAt(program) => program.clone(),
            Self::Referrers => tools::built("referrers-registry"),
        }
    }
}

/// Made by [`RealRegistry::of`].
pub struct Setup {
    pub(super) program: Program,
    pub(super) ca_file: Option<PathBuf>,
    certificate: Option<Certificate>,
    /// Names and passwords.
    users: Vec<(String, String)>,
    token: Option<serde_json::Value>,
    redirect: Option<String>,
    remote: Option<String>,
}

impl Setup {
    pub(super) fn new(program: Program) -> Self {
        Self { program, ca_file: None, certificate: None, users: Vec::new(), token: None, redirect: None, remote: None }
    }

    /// Speaks TLS, with a certificate of this authority.
    pub fn tls(mut self, authority: &Authority) -> Self {
        self.ca_file = Some(authority.ca_file());
        self.certificate = Some(authority.for_localhost());
        self
    }

    /// Asks for a name and a password; more than one may be right. The first is the one that pushes.
    pub fn login(mut self, name: &str, password: &str) -> Self {
        self.users.push((name.to_owned(), password.to_owned()));
        self
    }

    /// Asks for a token of this server; `name` and `password` are those that it wants from who pushes.
    pub fn token(mut self, server: &TokenServer) -> Self {
        self.token = Some(server.for_registry());
        self.users = vec![server.user()];
        self
    }

    /// Sends who wants a blob's bytes to this URL, to which the path below its folder of storage is added.
    pub fn redirect(mut self, url: &str) -> Self {
        self.redirect = Some(url.to_owned());
        self
    }

    /// Is a pull-through cache of another registry: `http://127.0.0.1:port`.
    pub fn proxy_of(mut self, url: &str) -> Self {
        self.remote = Some(url.to_owned());
        self
    }

    pub fn start(self) -> RealRegistry {
        self.start_in(tempfile::tempdir().expect("a temporary directory"))
    }

    pub(super) fn start_in(self, directory: TempDir) -> RealRegistry {
        // Says what to install if it is missing.
        if !matches!(self.program, Program::Referrers) {
            run(Command::new(self.program.path()).arg("--version"), Duration::from_secs(30));
        }
        RealRegistry::start_in(self, directory)
    }

    pub(super) fn arguments(&self, directory: &Path, address: &str) -> Vec<OsString> {
        if matches!(self.program, Program::Referrers) {
            return Vec::new();
        }
        let config = directory.join("config.yml");
        std::fs::write(&config, self.config(directory, address).to_string())
            .expect("a temporary directory can be written");
        vec!["serve".into(), config.into()]
    }

    fn config(&self, directory: &Path, address: &str) -> serde_json::Value {
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": true}},
            "storage": {
                "filesystem": {"rootdirectory": directory.join("storage")},
                "delete": {"enabled": true},
                "maintenance": {"uploadpurging": {"enabled": false}}
            },
            // Port 0: it takes a free one and says which.
            "http": {"addr": address, "secret": "of no importance"}
        });
        if let Some(Certificate { certificate, key }) = &self.certificate {
            config["http"]["tls"] = json!({"certificate": certificate, "key": key});
        }
        if let Some(token) = &self.token {
            config["auth"]["token"] = token.clone();
        } else if !self.users.is_empty() {
            let path = directory.join("htpasswd");
            let lines: String = self.users.iter().map(|(name, password)| htpasswd(name, password)).collect();
            std::fs::write(&path, lines).expect("a temporary directory can be written");
            config["auth"]["htpasswd"] = json!({"realm": "a test", "path": path});
        }
        if let Some(url) = &self.redirect {
            config["middleware"]["storage"] = json!([{"name": "redirect", "options": {"baseurl": url}}]);
        }
        if let Some(url) = &self.remote {
            config["proxy"]["remoteurl"] = json!(url);
        }
        config
    }

    /// As `docker login` writes it.
    pub(super) fn write_login(&self, folder: &Path, address: &str) {
        let mut auths = json!({});
        if let Some((name, password)) = self.users.first() {
            let auth = STANDARD.encode(format!("{name}:{password}"));
            for host in [address.to_owned(), address.replacen("127.0.0.1", "localhost", 1)] {
                auths[host] = json!({"auth": auth});
            }
        }
        std::fs::create_dir_all(folder).expect("a temporary directory can be written");
        std::fs::write(folder.join("config.json"), json!({"auths": auths}).to_string())
            .expect("a temporary directory can be written");
    }
}

/// A line of a file of passwords, in the only form that distribution knows: bcrypt.
fn htpasswd(name: &str, password: &str) -> String {
    let mut command = Command::new("htpasswd");
    // The least work that bcrypt can be told to do.
    command.args(["-nbB", "-C", "4", name, password]);
    run(&mut command, Duration::from_secs(30)).expect_success("htpasswd").text().trim().to_owned() + "\n"
}
