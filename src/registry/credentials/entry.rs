//! One login in a file of docker or podman, and which names of the file it is under.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::{Credential, Secret};

/// Docker Hub under the name that docker keeps it.
pub const DOCKER_HUB: &str = "https://index.docker.io/v1/";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

impl Entry {
    /// `None` for an empty entry, such as docker leaves beside a helper.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn credential(&self) -> Result<Option<Credential>, &'static str> {
        let given = |secret: &Option<Secret>| secret.clone().filter(|secret| !secret.reveal().is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Credential::RegistryToken(token)));
        }
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if let Some(auth) = given(&self.auth) {
            // Podman and docker pad; hands do not always.
            let auth = auth.reveal().trim();
            let text = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).map_err(|_| "no base64")?;
            let text = String::from_utf8(text).map_err(|_| "no UTF-8")?;
            let (username, password) = text.split_once(':').ok_or("no USER:PASSWORD")?;
            return Ok(Some(of_user(username, password.trim_matches('\0'))));
        }
        match (self.username.as_deref(), given(&self.password)) {
            (Some(username), Some(password)) if !username.is_empty() => Ok(Some(of_user(username, password.reveal()))),
            _ => Ok(None),
        }
    }
}

fn of_user(username: &str, password: &str) -> Credential {
    Credential::Password { username: username.to_owned(), password: Secret::new(password) }
}

/// What docker and podman write for a login.
pub fn encoded(username: &str, password: &Secret) -> String {
    STANDARD.encode(format!("{username}:{}", password.reveal()))
}

/// The name under which docker, podman and oras keep a registry's login.
pub fn key_of(registry: &str) -> &str {
    if hosts(registry).len() > 1 { DOCKER_HUB } else { registry }
}

/// The names that a login for this repository may have once [`normalized`], the most fitting first.
pub fn names(registry: &str, repository: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut path = Some(repository).filter(|path| !path.is_empty());
    while let Some(part) = path {
        names.extend(hosts(registry).iter().map(|host| format!("{host}/{part}")));
        path = part.rsplit_once('/').map(|(above, _)| above);
    }
    names.extend(hosts(registry).iter().map(|&host| host.to_owned()));
    names
}

fn hosts(registry: &str) -> Vec<&str> {
    const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    if HUB.contains(&registry) { HUB.to_vec() } else { vec![registry] }
}

/// Docker wrote addresses once, with a scheme and the version of the API; podman writes paths of repositories.
pub fn normalized(key: &str) -> &str {
    let Some(address) = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) else {
        let key = key.trim_end_matches('/');
        return key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    };
    address.split_once('/').map_or(address, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(json: &str) -> Result<Option<Credential>, &'static str> {
        serde_json::from_str::<Entry>(json).unwrap().credential()
    }

    #[test]
    fn every_kind_of_entry_is_read() {
        assert_eq!(credential(r#"{"auth": "bWU6YTpi"}"#), Ok(Some(of_user("me", "a:b"))));
        assert_eq!(credential(r#"{"auth": "bWU6w7w"}"#), Ok(Some(of_user("me", "ü"))));
        assert_eq!(credential(r#"{"username": "robot$x", "password": "p"}"#), Ok(Some(of_user("robot$x", "p"))));
        let token = Secret::new("t");
        assert_eq!(
            credential(r#"{"auth": "bWU6YTpi", "identitytoken": "t"}"#),
            Ok(Some(Credential::IdentityToken(token.clone())))
        );
        assert_eq!(credential(r#"{"registrytoken": "t"}"#), Ok(Some(Credential::RegistryToken(token))));
        for empty in ["{}", r#"{"auth": "", "email": "a@b"}"#, r#"{"username": "me", "auth": null}"#] {
            assert_eq!(credential(empty), Ok(None), "{empty}");
        }
        for wrong in [r#"{"auth": "%"}"#, r#"{"auth": "bWU="}"#, r#"{"auth": "/zo="}"#] {
            assert!(credential(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_compared_as_docker_and_podman_write_them() {
        for key in ["r:5000", "https://r:5000", "http://r:5000/v1/", "https://r:5000/v2/", "r:5000/", "r:5000/v2/"] {
            assert_eq!(normalized(key), "r:5000", "{key}");
        }
        assert_eq!(normalized(DOCKER_HUB), "index.docker.io");
        assert_eq!(names("r:5000", "a/b"), ["r:5000/a/b", "r:5000/a", "r:5000"]);
        assert!(names("docker.io", "library/x").contains(&"index.docker.io".to_owned()));
        assert_eq!((key_of("docker.io"), key_of("ghcr.io")), (DOCKER_HUB, "ghcr.io"));
    }
}
