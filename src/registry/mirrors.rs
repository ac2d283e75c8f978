//! Where a repository is to be had: `--mirror`, and `/etc/containers/registries.conf` with what belongs to it
//! (containers-registries.conf(5), version 2): mirrors, rewritten locations, registries that are blocked or insecure.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

use super::client::RegistryOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::RegistryReference;

/// Bytes of a configuration file.
const LARGEST_FILE: u64 = 1 << 20;

/// One of the places that have a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Host and port, as configured.
    pub registry: String,
    pub repository: String,
    /// `None`: plain HTTP for loopback addresses alone.
    pub plain_http: Option<bool>,
    /// Its certificate is not checked, and plain HTTP will do where it speaks no TLS.
    pub insecure: bool,
    /// What it may be asked for.
    pub by_tag: bool,
    pub by_digest: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

impl Place {
    /// As a reference would name it.
    fn named(&self) -> RegistryReference {
        let (registry, repository) = (self.registry.clone(), self.repository.clone());
        RegistryReference { registry, repository, tag: None, digest: None }
    }

    pub fn is_loopback(&self) -> bool {
        self.named().is_loopback()
    }

    /// Host and port, as it is asked there.
    pub fn address(&self) -> String {
        self.named().host().to_owned()
    }

    pub fn host(&self) -> String {
        let address = self.address();
        address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).to_owned()
    }

    /// Of requests for the repository; for the registry itself without one.
    pub fn base(&self, plain_http: bool) -> Result<Url> {
        let scheme = if plain_http { "http" } else { "https" };
        let path = if self.repository.is_empty() { String::new() } else { format!("{}/", self.repository) };
        format!("{scheme}://{}/v2/{path}", self.named().host())
            .parse()
            .map_err(|error| Error::new(ErrorKind::Usage, self, format!("not an address: {error}")))
    }

    /// What registries.conf calls insecure: any certificate will do, and plain HTTP where there is no TLS.
    fn or_insecure(self, insecure: bool) -> Self {
        Self { insecure: insecure && self.plain_http.is_none(), ..self }
    }

    /// `host[:port][/namespace…]` with the rest of the repository's name behind it.
    fn at(location: &str, rest: &str, plain_http: Option<bool>) -> Result<Self> {
        let whole = format!("{location}{rest}");
        let (registry, repository) = Some(whole.split_once('/').unwrap_or((&whole, "")))
            .filter(|(host, _)| !host.is_empty())
            .ok_or_else(|| {
                Error::new(ErrorKind::Usage, location, "not a location of a registry").hint("write HOST[:PORT][/PATH]")
            })?;
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        Ok(Self { registry, repository, plain_http, insecure: false, by_tag: true, by_digest: true })
    }
}

/// The registry itself, without a repository: where logins are checked, and by what name they are kept.
pub(super) fn place_of_registry(name: &str, options: &RegistryOptions) -> Result<Place> {
    let (registry, repository) = (name.to_owned(), String::new());
    let places = places(&RegistryReference { registry, repository, tag: None, digest: None }, options)?;
    let place = places.into_iter().next_back().map_or_else(|| Place::at(name, "", None), Ok)?;
    Ok(Place { repository: String::new(), ..place })
}

/// In the order in which they are asked; the last is the registry itself.
pub(super) fn places(reference: &RegistryReference, options: &RegistryOptions) -> Result<Vec<Place>> {
    let files = Files::of(|name| std::env::var_os(name), Path::new("/etc/containers"));
    let registries = read_all(&files.existing())?;
    resolve(reference, options, &registries)
}

fn resolve(
    reference: &RegistryReference,
    options: &RegistryOptions,
    registries: &[RegistryTable],
) -> Result<Vec<Place>> {
    let name = match reference.repository.as_str() {
        "" => reference.registry.clone(),
        repository => format!("{}/{repository}", reference.registry),
    };
    let mut places = Vec::new();
    for mirror in &options.mirrors {
        let (plain_http, location) = match mirror.split_once("://") {
            Some(("http", location)) => (Some(true), location),
            Some(("https", location)) => (Some(false), location),
            Some(_) => {
                let error = Error::new(ErrorKind::Usage, mirror, "not an address of a mirror");
                return Err(error.hint("write https://HOST[:PORT][/PATH]"));
            }
            None => (None, mirror.as_str()),
        };
        let rest = format!("/{}", reference.repository);
        // What a tag names is for the registry to say.
        places.push(Place { by_tag: false, ..Place::at(location.trim_end_matches('/'), &rest, plain_http)? });
    }
    let plain = options.plain_http.then_some(true);
    let chosen = registries
        .iter()
        .filter_map(|table| Some((table, table.matches(&name)?)))
        .max_by_key(|(table, _)| table.prefix().len());
    let Some((table, matched)) = chosen else {
        places.push(Place::at(&name, "", plain)?);
        return Ok(places);
    };
    if table.blocked {
        let cause = format!("registries.conf blocks {}", table.prefix());
        return Err(Error::new(ErrorKind::Denied, name, cause).hint("remove `blocked` there if it is wrong"));
    }
    let rest = name.get(matched..).unwrap_or_default();
    for mirror in &table.mirror {
        let pull = match mirror.pull_from_mirror.as_deref() {
            _ if table.mirror_by_digest_only => "digest-only",
            None => "all",
            Some(pull) => pull,
        };
        let place = Place::at(&mirror.location, rest, None)?;
        let place = Place { by_tag: pull != "digest-only", by_digest: pull != "tag-only", ..place };
        places.push(place.or_insecure(mirror.insecure));
    }
    let place = match table.location.as_deref().filter(|location| !location.is_empty()) {
        Some(location) => Place::at(location, rest, plain)?,
        None => Place::at(&name, "", plain)?,
    };
    places.push(place.or_insecure(table.insecure));
    // A login alone is for none.
    match places.iter().find(|place| place.repository.is_empty() && !reference.repository.is_empty()) {
        Some(place) => {
            let cause = format!("registries.conf sends it to {}, which names no repository", place.registry);
            Err(Error::new(ErrorKind::Usage, name, cause).hint("write HOST[:PORT]/PATH there"))
        }
        None => Ok(places),
    }
}

#[derive(Debug, Default, Deserialize)]
struct Configuration {
    #[serde(default)]
    registry: Vec<RegistryTable>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct RegistryTable {
    prefix: Option<String>,
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<MirrorTable>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct MirrorTable {
    location: String,
    insecure: bool,
    pull_from_mirror: Option<String>,
}

impl RegistryTable {
    fn prefix(&self) -> &str {
        self.prefix.as_deref().or(self.location.as_deref()).unwrap_or_default()
    }

    /// How much of the name the prefix is, if it is one.
    fn matches(&self, name: &str) -> Option<usize> {
        let prefix = self.prefix();
        if let Some(domain) = prefix.strip_prefix('*') {
            let host = name.split_once('/').map_or(name, |(host, _)| host);
            let end = host.rfind(domain).filter(|at| *at > 0 && domain.starts_with('.'))?.checked_add(domain.len())?;
            return (end == host.len()).then_some(end);
        }
        let rest = name.strip_prefix(prefix).filter(|_| !prefix.is_empty())?;
        (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
    }
}

/// Which files count, as containers/image reads them: the user's file takes the place of the system's and of its
/// folder; folders add to it, the user's last.
struct Files {
    file: PathBuf,
    folders: Vec<PathBuf>,
}

impl Files {
    fn of(variable: impl Fn(&str) -> Option<OsString>, system: &Path) -> Self {
        let user =
            variable("HOME").filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(".config/containers"));
        let folders = |folder: &PathBuf| folder.join("registries.conf.d");
        let all: Vec<_> = [system.to_owned()].iter().chain(&user).map(folders).collect();
        if let Some(file) = variable("CONTAINERS_REGISTRIES_CONF").filter(|file| !file.is_empty()) {
            return Self { file: file.into(), folders: all };
        }
        match user.filter(|user| user.join("registries.conf").exists()) {
            Some(user) => Self { file: user.join("registries.conf"), folders: vec![folders(&user)] },
            None => Self { file: system.join("registries.conf"), folders: all },
        }
    }

    fn existing(&self) -> Vec<PathBuf> {
        let mut files = vec![self.file.clone()];
        for folder in &self.folders {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "conf")).collect();
            found.sort();
            files.append(&mut found);
        }
        files
    }
}

/// Of two tables with one prefix the later counts.
fn read_all(files: &[PathBuf]) -> Result<Vec<RegistryTable>> {
    let mut tables: Vec<RegistryTable> = Vec::new();
    for file in files {
        let failed = |cause: String| {
            Error::new(ErrorKind::Usage, file.display(), cause).hint("see containers-registries.conf(5)")
        };
        let text = match read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(format!("cannot read it: {error}"))),
        };
        let new: Configuration = toml::from_str(&text)
            .map_err(|error| failed(format!("not a valid registries.conf: {}", error.message())))?;
        for table in new.registry {
            if table.prefix().is_empty() {
                return Err(failed("a [[registry]] has neither prefix nor location".to_owned()));
            }
            tables.retain(|known| known.prefix() != table.prefix());
            tables.push(table);
        }
    }
    Ok(tables)
}

fn read(file: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)?.take(LARGEST_FILE).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"
        unqualified-search-registries = ["docker.io"]
        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror.example/hub"
        [[registry.mirror]]
        location = "localhost:5001"
        insecure = true
        pull-from-mirror = "digest-only"
        [[registry]]
        prefix = "registry.example/ign"
        location = "internal.example:5000/data/ign"
        [[registry]]
        prefix = "*.blocked.example"
        blocked = true
        [[registry]]
        location = "plain.example:5000"
        insecure = true
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "m.example"
    "#;

    fn tables(text: &str) -> Vec<RegistryTable> {
        toml::from_str::<Configuration>(text).unwrap().registry
    }

    fn urls(reference: &str, options: &RegistryOptions) -> Result<Vec<(String, bool, bool)>> {
        let crate::oci::Reference::Registry(reference) = reference.parse()? else { panic!() };
        let places = resolve(&reference, options, &tables(CONF))?;
        places
            .iter()
            .map(|place| {
                Ok((
                    place.base(place.plain_http.unwrap_or(place.is_loopback() && !place.insecure))?.to_string(),
                    place.by_tag,
                    place.by_digest,
                ))
            })
            .collect()
    }

    #[test]
    fn mirrors_come_first_and_locations_are_rewritten() {
        let of = |reference| urls(reference, &RegistryOptions::default()).unwrap();
        assert_eq!(
            of("ign/pastis:1"),
            [
                ("https://mirror.example/v2/hub/ign/pastis/".into(), true, true),
                ("https://localhost:5001/v2/ign/pastis/".into(), false, true),
                ("https://registry-1.docker.io/v2/ign/pastis/".into(), true, true),
            ]
        );
        assert_eq!(
            of("registry.example/ign/pastis"),
            [("https://internal.example:5000/v2/data/ign/pastis/".into(), true, true)]
        );
        for other in ["registry.example/ignore/pastis", "registry.example/x", "registry.example:5000/ign/pastis"] {
            let (host, path) = other.split_once('/').unwrap();
            assert_eq!(of(other), [(format!("https://{host}/v2/{path}/"), true, true)]);
        }
        assert_eq!(
            of("plain.example:5000/a/b"),
            [
                ("https://m.example/v2/a/b/".into(), false, true),
                ("https://plain.example:5000/v2/a/b/".into(), true, true)
            ]
        );
    }

    #[test]
    fn what_is_blocked_is_refused() {
        for reference in ["a.blocked.example/x/y", "a.b.blocked.example/x/y"] {
            let error = urls(reference, &RegistryOptions::default()).unwrap_err();
            assert!(error.to_string().contains("registries.conf blocks *.blocked.example"), "{error}");
        }
        for reference in ["blocked.example/x/y", "a.blocked.example.org/x/y", "notblocked.example/x"] {
            urls(reference, &RegistryOptions::default()).unwrap();
        }
    }

    #[test]
    fn a_location_without_a_repository_is_for_logins_alone() {
        let table = "[[registry]]\nprefix = \"r.example/a\"\nlocation = \"other.example\"\n";
        let resolved = |registry: &str, repository: &str| {
            let (registry, repository) = (registry.to_owned(), repository.to_owned());
            let reference = RegistryReference { registry, repository, tag: None, digest: None };
            resolve(&reference, &RegistryOptions::default(), &tables(table)).map(|mut places| places.remove(0))
        };
        assert_eq!(resolved("r.example", "a/b").unwrap().to_string(), "other.example/b");
        assert_eq!(resolved("r.example", "").unwrap().to_string(), "r.example/");
        let error = resolved("r.example", "a").unwrap_err().to_string();
        assert!(error.contains("sends it to other.example, which names no repository"), "{error}");
    }

    #[test]
    fn mirrors_of_the_command_line_are_asked_before_all_others_but_not_for_tags() {
        let with = |mirror: &str| {
            let options = RegistryOptions { mirrors: vec![mirror.to_owned()], ..RegistryOptions::default() };
            Ok::<_, Error>(urls("ghcr.io/ign/pastis", &options)?.swap_remove(0))
        };
        for (mirror, base) in [
            ("https://m.example", "https://m.example/v2/ign/pastis/"),
            ("http://m.example:5000/proxy/", "http://m.example:5000/v2/proxy/ign/pastis/"),
            ("m.example", "https://m.example/v2/ign/pastis/"),
            ("localhost:5000", "http://localhost:5000/v2/ign/pastis/"),
        ] {
            assert_eq!(with(mirror).unwrap(), (base.to_owned(), false, true));
        }
        for mirror in ["ftp://m.example", "file:///etc", "", "/x"] {
            with(mirror).expect_err(mirror);
        }
    }

    #[test]
    fn files_are_found_and_merged_as_containers_image_does() {
        let dir = tempfile::tempdir().unwrap();
        let (system, home) = (dir.path().join("etc"), dir.path().join("home"));
        let user = home.join(".config/containers");
        for folder in [&system, &user] {
            std::fs::create_dir_all(folder.join("registries.conf.d")).unwrap();
        }
        let table = |location: &str| format!("[[registry]]\nprefix = \"r.example\"\nlocation = \"{location}\"\n");
        std::fs::write(system.join("registries.conf"), table("system")).unwrap();
        let location = |extra: Option<&Path>| {
            let variable = |name: &str| match name {
                "HOME" => Some(home.clone().into_os_string()),
                _ => extra.map(|file| file.as_os_str().to_owned()),
            };
            let tables = read_all(&Files::of(variable, &system).existing())?;
            Ok::<_, Error>(tables.last().and_then(|table| table.location.clone()).unwrap_or_default())
        };
        assert_eq!(location(None).unwrap(), "system");
        std::fs::write(system.join("registries.conf.d/10.conf"), table("system folder")).unwrap();
        std::fs::write(system.join("registries.conf.d/20.txt"), "=").unwrap();
        assert_eq!(location(None).unwrap(), "system folder");
        std::fs::write(user.join("registries.conf"), table("user")).unwrap();
        assert_eq!(location(None).unwrap(), "user");
        std::fs::write(user.join("registries.conf.d/10.conf"), table("user folder")).unwrap();
        assert_eq!(location(None).unwrap(), "user folder");
        let own = dir.path().join("own.conf");
        std::fs::write(&own, "[[registry]]\n").unwrap();
        assert!(location(Some(&own)).unwrap_err().to_string().contains("own.conf: a [[registry]] has neither"));
        std::fs::write(&own, "[[registry]\n").unwrap();
        assert!(location(Some(&own)).unwrap_err().to_string().contains("own.conf: not a valid registries.conf"));
    }
}
