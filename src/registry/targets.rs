//! Where a registry may send us: redirects and token services lead to addresses that somebody else chose.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::transport::proxy_hosts;
use crate::error::{Error, ErrorKind, Result};

/// Names of the metadata services of clouds, which hand out credentials to whoever asks from inside.
const METADATA_NAMES: [&str; 2] = ["metadata.google.internal", "metadata"];

/// Checks addresses by what they say, and names by what they resolve to when a connection is made.
#[derive(Clone)]
pub(super) struct Targets(Arc<Rules>);

/// A name that leads where we must not go.
#[derive(Debug)]
pub(super) struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

struct Rules {
    /// What the user named: allowed, whatever it resolves to.
    own: HashSet<String>,
    /// The registry is on this machine, and so may be its storage.
    loopback: bool,
    all: bool,
}

impl Targets {
    /// `own`: host of the registry. `all`: no address is refused.
    pub fn new(own: &str, loopback: bool, all: bool) -> Self {
        let mut own = HashSet::from([own.to_ascii_lowercase(), "localhost".to_owned()]);
        own.extend(proxy_hosts());
        Self(Arc::new(Rules { own, loopback, all }))
    }

    /// What a redirect or a challenge names. `from`: who named it.
    pub fn check(&self, url: &Url, from: &Url) -> Result<()> {
        let refused = |cause: String| {
            Err(Error::new(ErrorKind::Protocol, shown(url), cause).hint("tell the registry's operator"))
        };
        if !matches!(url.scheme(), "http" | "https") {
            return refused(format!("the registry sends us to a {} address: refused", url.scheme()));
        }
        if from.scheme() == "https" && url.scheme() == "http" {
            return refused("redirect from https to http refused".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refused("the registry sends us to an address with a login in it: refused".to_owned());
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        if url.origin() == from.origin() || self.0.all {
            return Ok(());
        }
        let bare = host.trim_end_matches('.');
        let wrong = match bare.parse() {
            Ok(ip) => self.0.refusal(ip),
            Err(_) if METADATA_NAMES.contains(&bare) => Some("a cloud's metadata service"),
            Err(_) if bare == "localhost" || bare.ends_with(".localhost") => self.0.refusal(Ipv4Addr::LOCALHOST.into()),
            Err(_) => None,
        };
        match wrong {
            Some(what) => {
                Err(Error::new(ErrorKind::Protocol, shown(url), format!("the registry sends us to {what}: refused"))
                    .hint("if that is meant, use --allow-local-redirects"))
            }
            None => Ok(()),
        }
    }
}

impl Rules {
    fn refusal(&self, ip: IpAddr) -> Option<&'static str> {
        let inside = match ip {
            IpAddr::V6(ip) => ipv4s_in(ip),
            IpAddr::V4(_) => Vec::new(),
        };
        let mut all = inside.into_iter().map(IpAddr::V4).chain([ip]);
        all.find_map(|ip| self.refusal_as_written(ip))
    }

    fn refusal_as_written(&self, ip: IpAddr) -> Option<&'static str> {
        const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
        const AWS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
        match ip {
            IpAddr::V4(ip) if ip.is_link_local() => Some("a link-local address"),
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("a link-local address"),
            IpAddr::V4(ALIBABA) | IpAddr::V6(AWS) => Some("a cloud's metadata service"),
            ip if (ip.is_loopback() || ip.is_unspecified()) && !self.loopback => Some("this machine"),
            _ => None,
        }
    }
}

/// The addresses of IPv4 that one of IPv6 may stand for: mapped and compatible ones (RFC 4291, section 2.5.5),
/// translated ones (RFC 2765, section 2.1), NAT64 (RFC 6052, section 2.1), 6to4 (RFC 3056, section 2). In the prefix for
/// NAT64 of a site's own (RFC 8215) they stand at one of four places (RFC 6052, section 2.2), which only the site knows.
fn ipv4s_in(ip: Ipv6Addr) -> Vec<Ipv4Addr> {
    let [.., x, y, _, a, b, c, d, e, f, g] = ip.octets();
    match ip.segments() {
        // Both are of IPv6 alone.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(),
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            vec![Ipv4Addr::new(d, e, f, g)]
        }
        [0x2002, high, low, ..] => vec![Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))],
        [0x64, 0xff9b, 1, ..] => {
            let found = [[x, y, a, b], [y, a, b, c], [a, b, c, d], [d, e, f, g]].map(Ipv4Addr::from);
            // Zeros are where none of it stands.
            found.into_iter().filter(|ip| !ip.is_unspecified()).collect()
        }
        _ => Vec::new(),
    }
}

/// Names are checked here as well, so that one which resolves to such an address leads nowhere.
impl Resolve for Targets {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = Arc::clone(&self.0);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let trusted = rules.all || rules.own.contains(&name.as_str().to_ascii_lowercase());
            let good: Vec<_> = found.iter().copied().filter(|at| trusted || rules.refusal(at.ip()).is_none()).collect();
            if good.is_empty() {
                let what = found.first().and_then(|at| rules.refusal(at.ip())).unwrap_or("no address");
                return Err(Refused(format!("{} resolves to {what}: refused", name.as_str())).into());
            }
            Ok(Box::new(good.into_iter()) as Addrs)
        })
    }
}

/// Without what may be secret in it: signatures stand in the query, or in the path.
pub(super) fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, to: &str, loopback: bool, all: bool) -> Result<()> {
        let from: Url = from.parse().unwrap();
        Targets::new(from.host_str().unwrap(), loopback, all).check(&to.parse().unwrap(), &from)
    }

    #[test]
    fn metadata_services_and_link_local_addresses_are_refused_however_they_are_written() {
        for to in [
            "http://169.254.169.254/latest/meta-data/",
            "http://169.254.1.1/",
            "http://2852039166/",
            "http://0xa9fea9fe/",
            "http://[::ffff:169.254.169.254]/",
            "http://[::169.254.169.254]/",
            "http://[64:ff9b::169.254.169.254]/",
            "http://[2002:a9fe:a9fe::1]/",
            "http://[::ffff:0:169.254.169.254]/",
            "http://[64:ff9b:1::169.254.169.254]/",
            "http://[64:ff9b:1:a9fe:a9:fe00::]/",
            "http://[64:ff9b:1:2a9:fe:a9fe::]/",
            "http://[64:ff9b:1:2:a9:fea9:fe00::]/",
            "http://0251.0376.0251.0376/",
            "http://169.254.43518/",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://100.100.100.200/",
            "http://metadata.google.internal/computeMetadata/v1/",
            "http://METADATA.google.internal./",
        ] {
            let error = check("http://registry.example/v2/", to, true, false).expect_err(to);
            assert!(error.to_string().contains("--allow-local-redirects"), "{to}: {error}");
            check("http://registry.example/v2/", to, false, true).expect(to);
        }
    }

    #[test]
    fn this_machine_is_refused_unless_the_registry_is_on_it() {
        for to in [
            "http://127.0.0.1:8080/",
            "http://localhost/",
            "http://a.localhost/",
            "http://[::1]/",
            "http://0.0.0.0/",
            "http://[::]/",
        ] {
            check("http://registry.example/v2/", to, false, false).expect_err(to);
            check("http://127.0.0.1:5000/v2/", to, true, false).expect(to);
        }
        for to in ["http://10.0.0.1/", "http://[64:ff9b:1::8.8.8.8]/", "http://[64:ff9b:1:808:8:800::]/"] {
            check("http://registry.example/v2/", to, false, false)
                .expect("a private network, or NAT64 to the public one");
        }
        check("http://169.254.1.1:5000/v2/", "http://169.254.1.1:5000/x", false, false).expect("the registry itself");
    }

    #[test]
    fn other_schemes_logins_and_the_way_from_https_to_http_are_refused_also_with_the_option() {
        let login = "https://me:secret@registry.example/";
        for to in ["file:///etc/passwd", "ftp://h/", "data:text/plain,x", "http://cdn.example/", login] {
            check("https://registry.example/v2/", to, true, true).expect_err(to);
        }
        check("https://registry.example/v2/", "https://cdn.example/", false, false).expect("a CDN");
        check("http://registry.example/v2/", "https://cdn.example/", false, false).expect("a CDN");
    }

    #[tokio::test]
    async fn names_are_checked_by_what_they_resolve_to() {
        let resolve =
            async |targets: Targets, name: &str| targets.resolve(name.parse().unwrap()).await.map(Iterator::count);
        // The resolver takes addresses for names, too.
        let refused = resolve(Targets::new("registry.example", true, false), "169.254.169.254").await;
        assert!(refused.is_err_and(|error| error.to_string().contains("refused")));
        assert!(resolve(Targets::new("registry.example", false, false), "127.0.0.1").await.is_err());
        assert!(resolve(Targets::new("127.0.0.1", false, false), "127.0.0.1").await.is_ok());
        assert!(resolve(Targets::new("registry.example", false, true), "169.254.169.254").await.is_ok());
    }

    #[test]
    fn what_is_shown_of_an_address_holds_no_secret() {
        let url = "https://me:secret@cdn.example:8443/blob?X-Amz-Signature=secret#secret".parse().unwrap();
        assert_eq!(shown(&url), "https://cdn.example:8443");
    }
}
