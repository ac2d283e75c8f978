//! What a registry does for us, found out by asking it once: for those whose mount does not work.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use reqwest::header::{HeaderMap, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::time::{Instant, timeout_at};

use super::answer::{body_up_to, header, status_failure};
use super::client::Registry;
use super::endpoint::Endpoint;
use super::range::check_answer;
use super::retry::Failure;
use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Document};

/// Bytes of a layer that the rate is measured with, at most.
const SAMPLE: u64 = 4 << 20;
/// Round trips, of which the shortest counts.
const ROUND_TRIPS: usize = 3;
/// Bytes of an answer that is not looked at.
const IGNORED: u64 = 64 << 10;

/// What was looked at, and what was found, in words.
pub type Finding = (&'static str, Result<String>);

struct Survey<'a> {
    registry: &'a Registry,
    deadline: Instant,
    findings: Vec<Finding>,
}

impl Registry {
    /// One look at each thing, without retries, within the timeout altogether. What makes no sense after a failure is
    /// left out.
    pub async fn survey(&self) -> Vec<Finding> {
        let mut survey = Survey { registry: self, deadline: Instant::now() + self.timeout, findings: Vec::new() };
        survey.run().await;
        survey.findings
    }
}

impl Survey<'_> {
    async fn run(&mut self) {
        let addresses = self.within(self.addresses()).await;
        self.note("name", addresses);
        for mirror in self.registry.mirrors() {
            let found = self.within(self.connect(mirror)).await;
            self.note("mirror", found.map(|found| format!("{}: {found}", mirror.place.registry)));
        }
        let connected = self.within(self.connect(self.registry.origin())).await;
        let is_connected = connected.is_ok();
        self.note("connection", connected);
        if !is_connected {
            return;
        }
        let manifest = self.within(self.manifest()).await;
        match &manifest {
            Err(error) if error.kind == ErrorKind::Denied => return self.note("login", Err(error.clone())),
            _ => self.note("login", Ok("reading is allowed".to_owned())),
        }
        let (digest, bytes) = match manifest {
            Ok((digest, bytes, headers)) => {
                self.note("manifest", Ok(format!("{digest}, {}", ByteSize::b(bytes.len() as u64).display().si())));
                self.findings.extend(rate_limit(&headers).map(|found| ("limits", found)));
                (digest, bytes)
            }
            Err(error) => return self.note("manifest", Err(error)),
        };
        let referrers = self.within(self.referrers(&digest)).await;
        self.note("referrers", referrers);
        match self.within(self.largest_layer(&bytes)).await {
            Ok(Some(layer)) => self.layer(&layer).await,
            Ok(None) => {}
            Err(error) => self.note("layers", Err(error)),
        }
    }

    async fn layer(&mut self, layer: &Descriptor) {
        let range = self.within(self.range(layer)).await;
        let works = range.is_ok();
        match range {
            Ok((found, from)) => {
                self.note("range", Ok(found));
                self.note("redirect", Ok(from));
            }
            Err(error) => self.note("range", Err(error)),
        }
        if works {
            let rate = self.within(self.rate(layer)).await;
            self.note("rate", rate);
        }
    }

    fn note(&mut self, what: &'static str, found: Result<String>) {
        self.findings.push((what, found));
    }

    async fn within<T>(&self, look: impl Future<Output = Result<T, Failure>>) -> Result<T> {
        match timeout_at(self.deadline, look).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(failure)) => Err(failure.into_error()),
            Err(_) => {
                let timeout = humantime::format_duration(self.registry.timeout);
                let cause = format!("no answer within the {timeout} for all that was asked");
                Err(Error::new(ErrorKind::TimedOut, &self.registry.reference, cause)
                    .hint("check the network, or give more time with --timeout"))
            }
        }
    }

    async fn addresses(&self) -> Result<String, Failure> {
        let place = self.registry.origin().place.address();
        let host = place.as_str();
        let unknown = |cause: &dyn std::fmt::Display| {
            Error::new(ErrorKind::NotFound, host, format!("the name has no address: {cause}"))
                .hint("check its spelling, and DNS in /etc/resolv.conf; with a proxy this does not matter")
        };
        let with_port = match host.rsplit_once(':') {
            Some((_, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => host.to_owned(),
            _ => format!("{host}:443"),
        };
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host(with_port).await.map_err(|error| unknown(&error))?.take(4).collect();
        let mut addresses: Vec<String> = found.iter().map(|address| address.ip().to_string()).collect();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(unknown(&"none is known").into());
        }
        Ok(format!("{host} is {}", addresses.join(", ")))
    }

    /// Any answer will do; whether it lets us in is seen later.
    async fn connect(&self, endpoint: &Endpoint) -> Result<String, Failure> {
        let started = Instant::now();
        let object = endpoint.place.registry.as_str();
        let asked = endpoint.request(Method::GET, "/v2/", HeaderMap::new(), None, &endpoint.pull(), object).await;
        let from = match asked {
            Err(Failure::Final(error)) if error.kind == ErrorKind::Denied => None,
            answer => Some(answer?.1),
        };
        let scheme = from.map_or_else(String::new, |from| format!("{}, ", from.scheme()));
        Ok(format!("{scheme}it answers after {}", in_ms(started.elapsed())))
    }

    /// Of the registry itself.
    async fn get(&self, path: &str, headers: HeaderMap, object: &str) -> Result<(Response, Url), Failure> {
        let origin = self.registry.origin();
        origin.request(Method::GET, path, headers, None, &origin.pull(), object).await
    }

    async fn manifest(&self) -> Result<(Digest, bytes::Bytes, HeaderMap), Failure> {
        let reference = &self.registry.reference;
        let object = reference.to_string();
        let answer = self.registry.get_manifest(self.registry.origin(), reference.version(), &object).await?;
        let headers = answer.headers().clone();
        let (digest, bytes) = self.registry.checked_manifest(answer, reference.digest.as_ref(), &object).await?;
        Ok((digest, bytes, headers))
    }

    /// Distribution specification, "Listing Referrers".
    async fn referrers(&self, digest: &Digest) -> Result<String, Failure> {
        let object = self.registry.reference.to_string();
        let (answer, _) = self.get(&format!("referrers/{digest}"), HeaderMap::new(), &object).await?;
        match answer.status() {
            StatusCode::OK => Ok("what is attached can be listed".to_owned()),
            StatusCode::NOT_FOUND => {
                Err(Error::new(ErrorKind::Unsupported, object, "the registry cannot list what is attached")
                    .hint("nothing to be done; what is attached is found by its tag, sha256-…")
                    .into())
            }
            _ => Err(status_failure(&object, &answer)),
        }
    }

    /// Of an index, that of its first manifest.
    async fn largest_layer(&self, bytes: &[u8]) -> Result<Option<Descriptor>, Failure> {
        let object = self.registry.reference.to_string();
        let mut document = Document::parse(bytes, &object)?;
        if let Document::Index(index) = &document {
            let Some(first) = index.manifests.first() else { return Ok(None) };
            let object = first.descriptor.digest.as_str();
            let answer = self.registry.get_manifest(self.registry.origin(), object, object).await?;
            let (_, bytes) = self.registry.checked_manifest(answer, Some(&first.descriptor.digest), object).await?;
            document = Document::parse(&bytes, object)?;
        }
        match document {
            Document::Manifest(manifest) => Ok(manifest.layers.into_iter().max_by_key(|layer| layer.size)),
            Document::Index(_) => Ok(None),
        }
    }

    /// Whether ranges work and how long a short one takes; and where blobs come from.
    async fn range(&self, layer: &Descriptor) -> Result<(String, String), Failure> {
        let object = layer.digest.as_str();
        let middle = layer.size / 2;
        let mut shortest = Duration::MAX;
        let mut from = String::new();
        for _ in 0..ROUND_TRIPS {
            let started = Instant::now();
            let headers = HeaderMap::from_iter([(RANGE, header(&format!("bytes={middle}-{middle}"))?)]);
            let (answer, url) = self.get(&format!("blobs/{object}"), headers, object).await?;
            from = self.origin(&url);
            match answer.status() {
                StatusCode::PARTIAL_CONTENT => check_answer(&answer, layer, &(middle..middle.saturating_add(1)))?,
                StatusCode::OK => {
                    let cause = "the registry, or a proxy before it, answers a range with the whole blob";
                    return Err(Error::new(ErrorKind::Unsupported, object, cause)
                        .hint("ask for ranges at its operator, or mount a copy: oras copy --to-oci-layout, and oci:DIR")
                        .into());
                }
                _ => return Err(status_failure(object, &answer)),
            }
            body_up_to(answer, IGNORED, object, &self.registry.traffic).await?;
            shortest = shortest.min(started.elapsed());
        }
        Ok((format!("a byte in the middle of a layer takes {}", in_ms(shortest)), from))
    }

    fn origin(&self, from: &Url) -> String {
        let host = from.authority();
        let host = host.rsplit('@').next().unwrap_or_default();
        match host == self.registry.origin().place.address() {
            true => "none: blobs come from the registry itself".to_owned(),
            false => format!("blobs come from {host}"),
        }
    }

    async fn rate(&self, layer: &Descriptor) -> Result<String, Failure> {
        let started = Instant::now();
        let bytes = self.registry.read(layer, 0..layer.size.min(SAMPLE)).await?.len() as u64;
        let a_second = bytes as f64 / started.elapsed().as_secs_f64().max(1e-6);
        let si = |bytes: u64| ByteSize::b(bytes).display().si();
        Ok(format!("{}/s over one connection ({} in {})", si(a_second as u64), si(bytes), in_ms(started.elapsed())))
    }
}

/// As Docker Hub tells it, with `;w=SECONDS` behind the number (docs.docker.com, "Docker Hub pull usage and limits");
/// nothing where a registry does not tell.
fn rate_limit(headers: &HeaderMap) -> Option<Result<String>> {
    let read = |name: &str| {
        let value = headers.get(name).or_else(|| headers.get(format!("x-{name}")))?.to_str().ok()?;
        let (number, window) = value.split_once(";w=").unwrap_or((value, ""));
        Some((number.trim().parse::<u64>().ok()?, window.trim().parse::<u64>().ok().map(Duration::from_secs)))
    };
    let (left, window) = read("ratelimit-remaining")?;
    let of = read("ratelimit-limit").map_or_else(String::new, |(limit, _)| format!(" of {limit}"));
    let window = window.map_or_else(String::new, |window| format!(" in {}", humantime::format_duration(window)));
    Some(match left {
        0 => Err(Error::new(ErrorKind::Denied, "rate limit", format!("no requests left{of}{window}"))
            .hint("log in, or wait; with the cache folder a mount of a digest asks for no manifest again")),
        left => Ok(format!("{left}{of} requests left{window}")),
    })
}

fn in_ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn limits_are_read_as_docker_hub_writes_them() {
        let limit = |pairs: &[(&'static str, &'static str)]| {
            rate_limit(
                &pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect(),
            )
        };
        let hub = limit(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "76;w=21600")]);
        assert_eq!(hub, Some(Ok("76 of 100 requests left in 6h".to_owned())));
        assert_eq!(limit(&[("x-ratelimit-remaining", "5")]), Some(Ok("5 requests left".to_owned())));
        assert!(limit(&[("ratelimit-remaining", "0;w=x")]).unwrap().is_err());
        assert_eq!(limit(&[("ratelimit-remaining", "many")]), None);
        assert_eq!(limit(&[]), None);
    }
}
