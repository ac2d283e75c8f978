//! `config.json` of docker, `auth.json` of podman: one format.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::entry::{Entry, key_of, names, normalized};
use super::helper::Helper;
use super::{Credential, Found};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of such a file.
const LARGEST: u64 = 4 << 20;

#[derive(Debug, Default)]
pub struct Config {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Content {
    auths: Option<BTreeMap<String, Entry>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

impl Config {
    /// A file that is not there is empty.
    pub fn read(path: &Path) -> Result<Self> {
        let content = match text_of(path)? {
            Some(text) => serde_json::from_str(&text).map_err(|error| wrong(path, &error))?,
            None => Content::default(),
        };
        Ok(Self { path: path.to_owned(), content })
    }

    /// A program for this very registry goes before a login in the file, and that before the program for all.
    pub async fn find(&self, registry: &str, repository: &str) -> Result<Option<Found>> {
        for name in names(registry, repository) {
            if let Some(helper) = self.helper_of(&name)
                && let Some(credential) = helper.get(key_of(&name)).await?
            {
                return Ok(Some(Found { credential, source: helper.to_string() }));
            }
            if let Some(credential) = self.entry(&name)? {
                return Ok(Some(Found { credential, source: self.path.display().to_string() }));
            }
        }
        let Some(helper) = self.store_for_all() else { return Ok(None) };
        let credential = helper.get(key_of(registry)).await?;
        Ok(credential.map(|credential| Found { credential, source: helper.to_string() }))
    }

    /// The program that keeps this registry's login, if it is not the file itself.
    pub fn keeper(&self, registry: &str) -> Option<Helper> {
        names(registry, "").iter().find_map(|name| self.helper_of(name)).or_else(|| self.store_for_all())
    }

    fn helper_of(&self, name: &str) -> Option<Helper> {
        let helpers = self.content.cred_helpers.as_ref()?;
        let (_, helper) = helpers.iter().find(|(key, _)| normalized(key) == name)?;
        Some(Helper::new(helper)).filter(|_| !helper.is_empty())
    }

    fn store_for_all(&self) -> Option<Helper> {
        self.content.creds_store.as_deref().filter(|store| !store.is_empty()).map(Helper::new)
    }

    fn entry(&self, name: &str) -> Result<Option<Credential>> {
        for (key, entry) in self.content.auths.iter().flatten().filter(|(key, _)| normalized(key) == name) {
            let credential = entry.credential().map_err(|cause| {
                Error::new(ErrorKind::Denied, self.path.display(), format!("the login for {key} is {cause}"))
                    .hint(format!("log in again: eo-mount login {name}"))
            })?;
            if credential.is_some() {
                return Ok(credential);
            }
        }
        Ok(None)
    }
}

/// `None` if it is not there.
pub fn text_of(path: &Path) -> Result<Option<String>> {
    let denied = |error: io::Error| {
        Error::new(ErrorKind::Denied, path.display(), format!("the file of logins cannot be read: {error}"))
            .hint("it must be readable for you, and be text")
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(denied(error)),
    };
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(denied)?;
    if text.len() as u64 > LARGEST {
        return Err(denied(io::Error::other("it is too large")));
    }
    // A file that was only touched.
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}

/// Names the place only: serde's message would show what stands there.
pub fn wrong(path: &Path, error: &serde_json::Error) -> Error {
    let (line, column) = (error.line(), error.column());
    Error::new(
        ErrorKind::Denied,
        path.display(),
        format!("the file of logins is not as docker and podman write it, at line {line}, column {column}"),
    )
    .hint("correct it, or move it away and log in again")
}
