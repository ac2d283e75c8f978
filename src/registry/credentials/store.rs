//! Writing and removing logins, where docker and oras read them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::value::{RawValue, to_raw_value};

use super::config::{Config, text_of, wrong};
use super::entry::{encoded, key_of, names, normalized};
use super::{Secret, files_of};
use crate::error::{Error, ErrorKind, Result};

/// Values as they stand in the file: what is not ours is written back as it was.
type Object = BTreeMap<String, Box<RawValue>>;

/// The file to write: `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
pub struct Stored {
    path: PathBuf,
}

/// For the user: where a login went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    File(PathBuf),
    Helper(String),
}

impl Stored {
    pub fn new() -> Result<Self> {
        let path = files_of(|name| std::env::var_os(name)).into_iter().next().ok_or_else(|| {
            Error::new(ErrorKind::Usage, "login", "there is no place for logins")
                .hint("set HOME, DOCKER_CONFIG or REGISTRY_AUTH_FILE")
        })?;
        Ok(Self { path })
    }

    pub async fn save(&self, registry: &str, username: &str, password: &Secret) -> Result<Where> {
        let key = key_of(registry);
        if let Some(helper) = Config::read(&self.path)?.keeper(registry) {
            helper.store(key, username, password).await?;
            return Ok(Where::Helper(helper.to_string()));
        }
        let entry = serde_json::json!({ "auth": encoded(username, password) });
        self.change(|auths| {
            remove(auths, registry);
            auths.insert(key.to_owned(), to_raw_value(&entry)?);
            Ok(true)
        })?;
        Ok(Where::File(self.path.clone()))
    }

    /// False if there was no login.
    pub async fn erase(&self, registry: &str) -> Result<bool> {
        let mut erased = false;
        if let Some(helper) = Config::read(&self.path)?.keeper(registry) {
            let known = helper.get(key_of(registry)).await?.is_some();
            erased = known && helper.erase(key_of(registry)).await?;
        }
        let from_file = self.change(|auths| Ok(remove(auths, registry)))?;
        Ok(erased || from_file)
    }

    /// Changes `auths` and writes the file if `change` says so.
    fn change(&self, change: impl FnOnce(&mut Object) -> serde_json::Result<bool>) -> Result<bool> {
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Denied, self.path.display(), format!("the login cannot be written: {error}"))
                .hint("it must be a place that you can write to")
        };
        let parse = |text: &str| serde_json::from_str::<Object>(text).map_err(|error| wrong(&self.path, &error));
        let text = text_of(&self.path)?;
        let mut whole = text.as_deref().map(parse).transpose()?.unwrap_or_default();
        let auths = whole.get("auths").map(|auths| auths.get()).filter(|auths| *auths != "null");
        let mut auths = auths.map(parse).transpose()?.unwrap_or_default();
        let done = change(&mut auths).and_then(|changed| {
            whole.insert("auths".to_owned(), to_raw_value(&auths)?);
            Ok((changed, serde_json::to_vec_pretty(&whole)?))
        });
        let (changed, text) = done.map_err(|error| wrong(&self.path, &error))?;
        if changed {
            write(&self.path, &text).map_err(failed)?;
        }
        Ok(changed)
    }
}

fn remove(auths: &mut Object, registry: &str) -> bool {
    let before = auths.len();
    let names = names(registry, "");
    auths.retain(|key, _| !names.iter().any(|name| name == normalized(key)));
    auths.len() < before
}

/// For its owner alone, whole or not at all; a link stays one.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let path = fs::canonicalize(path).or_else(|_| std::path::absolute(path))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // Mode 0600, as tempfile makes them.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}
