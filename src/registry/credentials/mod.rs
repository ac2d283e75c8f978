//! Logins where docker, podman and oras keep them: files and credential helper programs. Read anew each time, because
//! another program may have logged in meanwhile.

mod config;
mod entry;
mod helper;
mod store;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

pub use store::{Stored, Where};

use crate::error::{Error, ErrorKind, Result};
use config::Config;

/// Text that no log and no error may show.
#[derive(Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    Password {
        username: String,
        password: Secret,
    },
    /// Is exchanged for tokens (OAuth2 refresh token).
    IdentityToken(Secret),
    /// Is sent to the registry as it stands.
    RegistryToken(Secret),
}

/// A credential and where it comes from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub credential: Credential,
    pub source: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.credential {
            Credential::Password { username, .. } => write!(f, "the login of {username} ({})", self.source),
            Credential::IdentityToken(_) => write!(f, "the identity token ({})", self.source),
            Credential::RegistryToken(_) => write!(f, "the registry token ({})", self.source),
        }
    }
}

/// Where to look, in this order.
#[derive(Debug, Clone)]
pub struct Credentials {
    given: Option<Credential>,
    files: Vec<PathBuf>,
}

impl Credentials {
    /// `given` by the user goes before everything that is kept.
    pub fn new(given: Option<Credential>) -> Self {
        let files = files_of(|name| std::env::var_os(name));
        // A background process leaves the folder that relative paths are about.
        let files = files.into_iter().map(|file| std::path::absolute(&file).unwrap_or(file)).collect();
        Self { given, files }
    }

    /// What there is for this repository: the longest name that fits counts, of the first file that has one.
    pub async fn find(&self, registry: &str, repository: &str) -> Result<Option<Found>> {
        if let Some(credential) = self.given.clone() {
            return Ok(Some(Found { credential, source: "given by the user".to_owned() }));
        }
        for file in &self.files {
            let file = file.clone();
            // A home folder may lie on a network.
            let reading = tokio::task::spawn_blocking(move || Config::read(&file));
            let config = reading.await.map_err(|panic| Error::new(ErrorKind::Io, "credentials", panic))??;
            if let Some(found) = config.find(registry, repository).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// `REGISTRY_AUTH_FILE` stands alone, as for podman; then docker's file, then podman's.
fn files_of(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(only) = path("REGISTRY_AUTH_FILE") {
        return vec![only];
    }
    let home = path("HOME");
    let below = |folder: Option<PathBuf>, file: &str| folder.map(|folder| folder.join(file));
    let podman = "containers/auth.json";
    [
        below(path("DOCKER_CONFIG").or_else(|| below(home.clone(), ".docker")), "config.json"),
        below(path("XDG_RUNTIME_DIR"), podman),
        below(path("XDG_CONFIG_HOME").or_else(|| below(home, ".config")), podman),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_looked_for_where_docker_and_podman_keep_them() {
        let files = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
            files_of(|name| find(name).map(|(_, value)| value.into()))
                .into_iter()
                .map(|file| file.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(files(&[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/f")]), ["/f"]);
        assert_eq!(
            files(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run")]),
            ["/h/.docker/config.json", "/run/containers/auth.json", "/h/.config/containers/auth.json"]
        );
        assert_eq!(
            files(&[("DOCKER_CONFIG", "/d"), ("XDG_CONFIG_HOME", "/c")]),
            ["/d/config.json", "/c/containers/auth.json"]
        );
        assert!(files(&[("HOME", "")]).is_empty());
    }

    #[test]
    fn secrets_are_not_shown() {
        let password = Secret::new("geheim");
        let found = Found {
            credential: Credential::Password { username: "me".to_owned(), password },
            source: "file".to_owned(),
        };
        assert!(!format!("{found} {found:?}").contains("geheim"));
    }
}
