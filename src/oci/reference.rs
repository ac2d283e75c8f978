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
            "docker.io" => "registry-1.docker.io",
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

const IN_PLACE_OF_IPV6: &str = "ipv6.invalid";

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
        // The grammar of oci-spec lacks addresses in brackets, which docker's has ("Reference", `IPv6address`).
        let ipv6 = split_ipv6(text).filter(|(_, rest)| rest.contains('/'));
        let with_name = ipv6.map(|(_, rest)| format!("{IN_PLACE_OF_IPV6}{rest}"));
        let parsed: oci_spec::distribution::Reference =
            with_name.as_deref().unwrap_or(text).parse().map_err(|error| wrong(format!("not a reference: {error}")))?;
        let registry = match ipv6 {
            Some((address, _)) => parsed.registry().replacen(IN_PLACE_OF_IPV6, &format!("[{address}]"), 1),
            None => parsed.registry().to_owned(),
        };
        // oci-spec takes the first part of `Upper/case` for a host and does not look at it again.
        if parsed.repository().contains(char::is_uppercase) {
            return Err(wrong("not a reference: repository name must be lowercase".to_owned()));
        }
        let digest = match parsed.digest() {
            Some(digest) => Some(digest.parse().map_err(|error| wrong(format!("not a reference: {error}")))?),
            None => None,
        };
        Ok(Self::Registry(RegistryReference {
            registry,
            repository: parsed.repository().to_owned(),
            tag: parsed.tag().map(str::to_owned),
            digest,
        }))
    }
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
