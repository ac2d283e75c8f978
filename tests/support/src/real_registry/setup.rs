//! Which registry, and what is told to it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::RealRegistry;
use crate::certificates::Pair;
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
    /// go-containerregistry's: has the referrers API, and forgets all when it is stopped. Behind TLS it speaks HTTP/2
    /// alone; takes no other options.
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

/// Who may talk to a registry.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Only [`USERNAME`] with [`PASSWORD`].
    pub login: bool,
    pub tls: Option<Pair>,
    /// Only those with a certificate of this authority.
    pub clients_of: Option<PathBuf>,
}

/// As Harbor names its robots.
pub const USERNAME: &str = "robot$eo";
/// With everything that passwords are broken by.
pub const PASSWORD: &str = "pä:ss$wörd";
/// `htpasswd -nbB`.
const HTPASSWD: &str = "robot$eo:$2b$05$abcdefghijklmnopqrstuuixBY9oIFS65Cv1OnRSmjySnaYXbNgxS\n";

/// Made by [`RealRegistry::of`].
pub struct Setup {
    pub(super) program: Program,
    pub(super) guard: Guard,
    /// What stands below `auth: token:`.
    token: Option<Value>,
    remote: Option<String>,
}

impl Setup {
    pub(super) fn new(program: Program) -> Self {
        Self { program, guard: Guard::default(), token: None, remote: None }
    }

    /// Wants a login, or TLS, or both.
    pub fn guard(mut self, guard: &Guard) -> Self {
        self.guard = guard.clone();
        self
    }

    /// Wants a token of this server, which gives those for pushing to [`USERNAME`] with [`PASSWORD`] only.
    pub fn token(mut self, server: &TokenServer) -> Self {
        self.token = Some(server.for_registry());
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
            let pair = self.guard.tls.iter();
            return pair.flat_map(|pair| [pair.certificate.clone().into(), pair.key.clone().into()]).collect();
        }
        let config = directory.join("config.yml");
        std::fs::write(&config, self.config(directory, address).to_string())
            .expect("a temporary directory can be written");
        vec!["serve".into(), config.into()]
    }

    fn config(&self, directory: &Path, address: &str) -> Value {
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
        if let Some(Pair { certificate, key }) = &self.guard.tls {
            config["http"]["tls"] = json!({"certificate": certificate, "key": key});
            if let Some(authority) = &self.guard.clients_of {
                config["http"]["tls"]["clientcas"] = json!([authority]);
            }
        }
        if let Some(token) = &self.token {
            config["auth"]["token"] = token.clone();
        } else if self.guard.login {
            let path = directory.join("htpasswd");
            std::fs::write(&path, HTPASSWD).expect("a temporary directory can be written");
            config["auth"]["htpasswd"] = json!({"realm": "eo-mount tests", "path": path});
        }
        if let Some(url) = &self.remote {
            config["proxy"]["remoteurl"] = json!(url);
        }
        config
    }

    /// As `docker login` writes it.
    pub(super) fn write_login(&self, folder: &Path, address: &str) {
        let mut auths = json!({});
        if self.token.is_some() || self.guard.login {
            auths[address] = json!({"auth": BASE64_STANDARD.encode(format!("{USERNAME}:{PASSWORD}"))});
        }
        std::fs::create_dir_all(folder).expect("a temporary directory can be written");
        std::fs::write(folder.join("config.json"), json!({"auths": auths}).to_string())
            .expect("a temporary directory can be written");
    }
}
