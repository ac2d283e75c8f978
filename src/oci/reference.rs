//! References: where an artifact is, as docker, oras and skopeo users write it.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use super::Digest;
use crate::error::{Error, ErrorKind, Result};

/// `[registry/]repository[:tag][@digest]` or `oci:DIR[:tag][@digest]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    Registry(RegistryReference),
    Layout(LayoutReference),
}

/// With a digest the tag is only a remark, as for docker and oras.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryReference {
    /// Host and port, as the user wrote them; `docker.io` if there was none.
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

/// An image layout on disk (OCI image specification, image-layout.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutReference {
    pub directory: PathBuf,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl RegistryReference {
    /// Docker Hub's registry is not at the address that its references name.
    pub fn host(&self) -> &str {
        match self.registry.as_str() {
            DOCKER_HUB => "registry-1.docker.io",
            registry => registry,
        }
    }

    /// As the registry is asked for it: the digest, else the tag.
    pub fn version(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, tag) => tag.as_deref().unwrap_or("latest"),
        }
    }

    /// Whether the registry is on this machine: docker and oras speak plain HTTP to it then.
    pub fn is_loopback(&self) -> bool {
        let host = match split_ipv6(&self.registry) {
            Some((address, _)) => return address.is_loopback(),
            None => self.registry.rsplit_once(':').map_or(&*self.registry, |(host, _)| host),
        };
        host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }
}

const DOCKER_HUB: &str = "docker.io";
/// Characters (`NameTotalLengthMax` of distribution/reference).
const LONGEST_REPOSITORY: usize = 255;

/// `[ADDRESS]` and what comes behind it: a port and a path, or a path.
fn split_ipv6(text: &str) -> Option<(Ipv6Addr, &str)> {
    let (address, rest) = text.strip_prefix('[')?.split_once(']')?;
    Some((address.parse().ok()?, rest)).filter(|(_, rest)| rest.is_empty() || rest.starts_with([':', '/']))
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |cause: String| {
            Error::new(ErrorKind::Usage, if text.is_empty() { "''" } else { text }, cause)
                .hint("write REGISTRY/REPOSITORY:TAG, REGISTRY/REPOSITORY@sha256:HEX or oci:DIRECTORY:TAG")
        };
        if let Some(rest) = text.strip_prefix("oci:") {
            let (rest, digest) = match rest.rsplit_once('@').map(|(rest, digest)| (rest, digest.parse())) {
                Some((rest, Ok(digest))) => (rest, Some(digest)),
                _ => (rest, None),
            };
            let (directory, tag) = match rest.rsplit_once(':') {
                Some((directory, tag)) if !tag.contains('/') => (directory, Some(tag.to_owned())),
                _ => (rest, None),
            };
            if directory.is_empty() || tag.as_deref() == Some("") {
                return Err(wrong("not a reference to an image layout".to_owned()));
            }
            return Ok(Self::Layout(LayoutReference { directory: directory.into(), tag, digest }));
        }
        let parsed = RegistryReference::parse(text);
        parsed.map(Self::Registry).map_err(|cause| wrong(format!("not a reference: {cause}")))
    }
}

impl RegistryReference {
    /// Docker's grammar (distribution/reference, `regexp.go` and `normalize.go`), by hand: its expression takes 30 ms
    /// to compile.
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if !tag.is_none_or(is_tag) {
            return Err("a tag is up to 128 of A-Z a-z 0-9 _ . -, and begins with neither . nor -".into());
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
                (host(first).ok_or_else(|| format!("`{first}` is no host"))?, path)
            }
            _ => (DOCKER_HUB.to_owned(), name),
        };
        if !path.split('/').all(is_component) {
            return Err("a repository is lower case: a-z 0-9, with . _ __ - between, in parts separated by /".into());
        }
        let registry = if registry == "index.docker.io" { DOCKER_HUB.to_owned() } else { registry };
        let official = registry == DOCKER_HUB && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        if repository.len() > LONGEST_REPOSITORY {
            return Err(format!("a repository has at most {LONGEST_REPOSITORY} characters"));
        }
        let tag = tag.or(digest.is_none().then_some("latest")).map(str::to_owned);
        Ok(Self { registry, repository, tag, digest })
    }
}

/// As it is to be written, if it is a host and perhaps a port.
fn host(text: &str) -> Option<String> {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((address, rest)) = split_ipv6(text) {
        let ends_well = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        return ends_well.then(|| format!("[{address}]{rest}"));
    }
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let is_label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_name = name.split('.').all(is_label) && port.is_none_or(is_port);
    (is_name || is_component(text)).then(|| text.to_owned())
}

fn is_component(part: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    part.starts_with(is_letter) && part.ends_with(is_letter) && part.split(is_letter).all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let inner = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    inner && (1..=128).contains(&tag.len()) && !tag.starts_with(['.', '-'])
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout(reference) => reference.fmt(f),
        }
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        write_version(f, self.tag.as_deref(), self.digest.as_ref())
    }
}

impl fmt::Display for LayoutReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci:{}", self.directory.display())?;
        write_version(f, self.tag.as_deref(), self.digest.as_ref())
    }
}

fn write_version(f: &mut fmt::Formatter<'_>, tag: Option<&str>, digest: Option<&Digest>) -> fmt::Result {
    if let Some(tag) = tag {
        write!(f, ":{tag}")?;
    }
    if let Some(digest) = digest {
        write!(f, "@{digest}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn references_read_as_docker_and_oras_read_them() {
        let digest = Digest::sha256_of(b"");
        for (text, whole) in [
            ("localhost:5000/pastis-2433:sample".into(), "localhost:5000/pastis-2433:sample".into()),
            ("ghcr.io/ign/pastis".into(), "ghcr.io/ign/pastis:latest".into()),
            ("pastis".into(), "docker.io/library/pastis:latest".into()),
            ("ign/pastis:1".into(), "docker.io/ign/pastis:1".into()),
            (format!("localhost/x@{digest}"), format!("localhost/x@{digest}")),
            (format!("localhost/x:t@{digest}"), format!("localhost/x:t@{digest}")),
            ("oci:sample/pastis:sample".into(), "oci:sample/pastis:sample".into()),
            ("oci:/a:b/c".into(), "oci:/a:b/c".into()),
            (format!("oci:dir@{digest}"), format!("oci:dir@{digest}")),
            ("[::1]:5000/x/y:z".into(), "[::1]:5000/x/y:z".into()),
            ("[2001:DB8::1]/x".into(), "[2001:db8::1]/x:latest".into()),
        ] as [(String, String); 11]
        {
            assert_eq!(parse(&text).to_string(), whole);
        }
    }

    #[test]
    fn what_is_no_reference_says_how_one_is_written() {
        for text in
            ["", "UPPER/case", "a b", "x:", "localhost:5000/x@sha256:12", "oci:", "oci::tag", "https://x/y", "../x"]
                .into_iter()
                .chain(["[::1]", "[::1]x/y", "[::g]/x", "[fe80::1%eth0]/x", "[127.0.0.1]/x", "[::1]:port/x"])
        {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage, "{text}");
            assert!(error.to_string().contains("oci:DIRECTORY:TAG"), "{error}");
        }
    }

    proptest! {
        /// Of which docker's own expression is an oracle.
        #[test]
        fn references_are_those_of_the_grammar(
            text in "([a-zB-D0-9._-]{0,4}[.:]?(localhost)?(index.docker.io)?/)?[a-cX0-9._/-]{0,9}\
                (:[a-cX0-9._/-]{0,4})?(@sha256:[0-9a-f]{64})?"
        ) {
            let expected = text.parse::<oci_spec::distribution::Reference>();
            // It takes the first part of `Upper/case` for a host and does not look at it again.
            let expected = expected.ok().filter(|reference| !reference.repository().contains(char::is_uppercase));
            prop_assert_eq!(RegistryReference::parse(&text).ok().map(|r| r.to_string()), expected.map(|r| r.whole()));
        }
    }

    #[test]
    fn the_longest_tags_and_repositories_are_taken_and_no_longer_ones() {
        let with = |repository: usize, tag: usize| format!("h.example/{}:{}", "r".repeat(repository), "t".repeat(tag));
        parse(&with(255, 128));
        assert!(with(256, 128).parse::<Reference>().is_err() && with(255, 129).parse::<Reference>().is_err());
    }

    #[test]
    fn loopback_registries_are_known_by_name_and_address() {
        let loopback = |text: &str| match parse(text) {
            Reference::Registry(reference) => reference.is_loopback(),
            Reference::Layout(_) => panic!(),
        };
        assert!(loopback("localhost/x") && loopback("localhost:5000/x") && loopback("127.0.0.9:5000/x"));
        assert!(loopback("[::1]/x") && loopback("[::1]:5000/x") && !loopback("[2001:db8::1]:5000/x"));
        assert!(!loopback("ghcr.io/x") && !loopback("localhost.example.org/x") && !loopback("10.0.0.1:5000/x"));
    }
}
