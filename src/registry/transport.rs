//! The HTTP client: TLS roots and certificates, proxies, and what a failure below HTTP means to the user.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;

use super::client::RegistryOptions;
use super::credentials::Credential;
use super::mirrors::Place;
use super::retry::Failure;
use super::targets::Targets;
use super::tls;
use crate::error::{Error, ErrorKind, Result};

/// How a registry is reached and who asks. Without anything: by the system's certificates, with the logins that are
/// kept.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Instead of the logins that are kept.
    pub login: Option<Credential>,
    /// PEM: certificates that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM: a client certificate and its key.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Whoever answers is believed to be the registry.
    pub insecure: bool,
}

/// Bytes of a stream of HTTP/2 that may come while nobody reads it.
const STREAM_WINDOW: u32 = 1 << 20;
/// RFC 9113, section 6.9.1.
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// For one registry.
pub struct Transport {
    tls: rustls::ClientConfig,
    plain_http: bool,
    loopback: bool,
    timeout: Duration,
    connections: usize,
}

/// HTTP/1.1 first: all streams of HTTP/2 share one TCP connection and its window. HTTP/2 for those who speak that
/// alone.
#[derive(Clone)]
pub struct Clients {
    http1: reqwest::Client,
    http2: reqwest::Client,
}

impl Clients {
    pub fn speaking(&self, http2: bool) -> &reqwest::Client {
        if http2 { &self.http2 } else { &self.http1 }
    }
}

impl Transport {
    /// # Errors
    /// A certificate or key file that is none.
    pub fn new(place: &Place, options: &RegistryOptions) -> Result<Self> {
        let files = tls::Files::of(&place.registry, &options.access)?;
        let loopback = place.is_loopback();
        let insecure = options.access.insecure || place.insecure;
        if options.access.insecure && !place.insecure {
            warn_of_insecure(&place.registry, "its certificate is not checked");
        }
        Ok(Self {
            // Docker and oras speak plain HTTP to their own machine. A certificate for it tells that TLS is meant.
            plain_http: place.plain_http.unwrap_or(loopback && !files.is_any() && !insecure),
            tls: tls::config(files, insecure)?,
            loopback,
            timeout: options.timeout,
            connections: options.connections,
        })
    }

    pub fn plain_http(&self) -> bool {
        self.plain_http
    }

    /// They follow no redirect: `Web` does. `sending`: for requests with long bodies, whose sender watches over them.
    pub fn clients(&self, targets: &Targets, sending: bool) -> Result<Clients> {
        let client = |http2| self.client(targets.clone(), sending, http2);
        Ok(Clients { http1: client(false)?, http2: client(true)? })
    }

    fn client(&self, targets: Targets, sending: bool, http2: bool) -> Result<reqwest::Client> {
        let idle = (self.timeout / 3).min(Duration::from_secs(20));
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        // One more than there are requests: those whose answers nobody reads now do not stop the others.
        let streams = u32::try_from(self.connections).unwrap_or(u32::MAX).saturating_add(1);
        let window = STREAM_WINDOW.saturating_mul(streams).min(LARGEST_WINDOW);
        let mut http = reqwest::Client::builder()
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(window);
        http = match http2 {
            false => http.http1_only(),
            // One connection has all requests: who gives one up does not notice that it is dead.
            true => http.http2_prior_knowledge().http2_keep_alive_interval(idle / 2).http2_keep_alive_timeout(idle / 2),
        };
        http = http
            .user_agent(concat!("eo-mount/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            .referer(false)
            .pool_max_idle_per_host(self.connections)
            .connect_timeout(self.timeout.min(Duration::from_secs(10)))
            .redirect(Policy::none())
            .dns_resolver(targets);
        if self.loopback {
            http = http.no_proxy();
        }
        if !sending {
            // A connection that says nothing is given up in time for another attempt. It counts while a body is sent,
            // too.
            http = http.read_timeout(idle);
        }
        http.build().map_err(|error| {
            Error::new(ErrorKind::Usage, "HTTP", format!("cannot be set up: {}", innermost(&error)))
                .hint("check --ca-file, --cert-file and the variables of proxies")
        })
    }
}

pub(super) fn warn_of_insecure(registry: impl std::fmt::Display, how: &str) {
    tracing::warn!("{registry}: {how} (insecure): anybody may answer in its place");
}

/// What went wrong below HTTP, in one plain line.
pub fn failure(object: &str, error: &reqwest::Error) -> Failure {
    if let Some((cause, hint)) = causes(error).find_map(tls::explained) {
        // It does not pass by waiting.
        return Failure::Final(Error::new(ErrorKind::Unreachable, object, cause).hint(hint));
    }
    let cause = words(error);
    let all: String = causes(error).map(|cause| format!("{cause} ")).collect();
    let (kind, text, hint) = if error.is_timeout() {
        (ErrorKind::TimedOut, "the server does not answer".to_owned(), check_hint("check the network"))
    } else if all.contains("tunnel") || all.contains("proxy auth") {
        (ErrorKind::Unreachable, format!("the proxy refuses: {cause}"), proxy_hint())
    } else if all.contains("dns error") {
        (
            ErrorKind::Unreachable,
            format!("cannot connect: the name cannot be looked up: {cause}"),
            check_hint("check the address and the network"),
        )
    } else if error.is_connect() {
        (ErrorKind::Unreachable, format!("cannot connect: {cause}"), check_hint("check the address and the network"))
    } else {
        (ErrorKind::Unreachable, format!("the connection broke: {cause}"), check_hint("check the network"))
    };
    Failure::Passing { error: Error::new(kind, object, text).hint(hint), not_before: None }
}

/// With a proxy in between, its address is one more to check.
fn check_hint(check: &str) -> String {
    if proxy_variables().next().is_some() { format!("{check}; {}", proxy_hint()) } else { check.to_owned() }
}

/// Names the variables, never what they hold: there may be a password in it.
pub(super) fn proxy_hint() -> String {
    let set: Vec<_> = proxy_variables().collect();
    format!("check the proxy that is set in {}", set.join(", "))
}

/// What the user named; they may be on this machine.
pub(super) fn proxy_hosts() -> impl Iterator<Item = String> {
    let values = proxy_variables().filter_map(|name| std::env::var(name).ok());
    let url = |value: String| {
        let url = if value.contains("://") { value } else { format!("http://{value}") };
        Some(reqwest::Url::parse(&url).ok()?.host_str()?.to_ascii_lowercase())
    };
    values.filter_map(url)
}

fn proxy_variables() -> impl Iterator<Item = &'static str> {
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
        .into_iter()
        .filter(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    causes(error).last().unwrap_or(error)
}

pub(super) fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The deepest cause. Not the error itself, which names the address with its query.
pub(super) fn words(error: &reqwest::Error) -> String {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(source) = cause.and_then(std::error::Error::source) {
        cause = Some(source);
    }
    match cause {
        _ if error.is_timeout() => "no answer in time".to_owned(),
        // Of rustls it is an essay.
        Some(cause) if is_end(cause) => "the server closed it".to_owned(),
        Some(cause) => cause.to_string(),
        None => "the request failed".to_owned(),
    }
}

fn is_end(cause: &(dyn std::error::Error + 'static)) -> bool {
    let cause = cause.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::UnexpectedEof)
}

/// For messages about files.
pub fn unusable(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Denied, path.display(), cause)
}
