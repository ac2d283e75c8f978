//! One repository, wherever it is to be had: the registry that the reference names, and its mirrors.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout};

use super::bandwidth::Pace;
use super::connections::Connections;
use super::download::Downloads;
use super::endpoint::Endpoint;
use super::mirrors::places;
use super::retry::Failure;
use super::traffic::Traffic;
use super::transport::Access;
use crate::blob::Passing;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Digest, RegistryReference};

/// A bandwidth must not make reads wait for longer than this part of the timeout because too many share it.
const SHARE_OF_TIMEOUT: u64 = 4;
/// Bytes of the longest requests.
const LONGEST_REQUEST: u64 = 2 << 20;
/// How often a request that waits for others looks for a download that nobody wants more of.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Plain HTTP even for a registry that is not on this machine.
    pub plain_http: bool,
    /// Certificates, and who asks.
    pub access: Access,
    /// Longest time for one read, retries included.
    pub timeout: Duration,
    /// Most requests under way at once.
    pub connections: usize,
    /// Bytes of memory that the process may hold.
    pub memory: u64,
    /// Bytes a second, over all connections.
    pub bandwidth: Option<u64>,
    /// Addresses that are asked before the registry.
    pub mirrors: Vec<String>,
    /// Refuse a registry that gives only whole blobs.
    pub require_ranges: bool,
    /// Let registries send us to loopback, link-local and metadata addresses.
    pub allow_local_redirects: bool,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            access: Access::default(),
            timeout: Duration::from_secs(60),
            connections: 16,
            memory: 256 << 20,
            bandwidth: None,
            mirrors: Vec::new(),
            require_ranges: false,
            allow_local_redirects: false,
        }
    }
}

/// One repository of one registry.
pub struct Registry {
    pub(super) reference: RegistryReference,
    pub(super) timeout: Duration,
    pub(super) traffic: Arc<Traffic>,
    pub(super) pace: Pace,
    pub(super) connections: Connections,
    /// Half of them: for ranges that are taken bit by bit, each of which has one for as long as that takes.
    pub(super) bit_by_bit: Semaphore,
    /// Ranges that may be under way for long beside reads: so few that these are not in the way of each other.
    pub(super) most_long_answers: usize,
    pub(super) require_ranges: bool,
    /// Told when a host that was silent answers again.
    pub(super) back: Arc<Notify>,
    pub(super) downloads: Arc<Downloads>,
    mirrors: Vec<Endpoint>,
    origin: Endpoint,
}

impl Registry {
    pub fn new(reference: RegistryReference, options: &RegistryOptions) -> Result<Self> {
        let traffic = Arc::new(Traffic::limited(options.bandwidth));
        let back = Arc::new(Notify::new());
        let mut places = places(&reference, options)?;
        let Some(origin) = places.pop() else {
            return Err(Error::new(ErrorKind::Usage, &reference, "there is no place where it is to be had"));
        };
        let endpoint = |place, options: &_| Endpoint::new(place, options, &traffic, &back);
        // A login that was given is the registry's.
        let mut of_mirrors = options.clone();
        of_mirrors.access.login = None;
        let mirrors = places.into_iter().map(|place| endpoint(place, &of_mirrors)).collect::<Result<_>>()?;
        let origin = endpoint(origin, options)?;
        let shared = options
            .bandwidth
            .map(|rate| rate.saturating_mul(options.timeout.as_secs()) / (SHARE_OF_TIMEOUT * LONGEST_REQUEST));
        let connections = shared.map_or(options.connections, |most| {
            usize::try_from(most).unwrap_or(usize::MAX).clamp(1, options.connections)
        });
        Ok(Self {
            timeout: options.timeout,
            traffic,
            pace: Pace::default(),
            connections: Connections::new(connections),
            bit_by_bit: Semaphore::new(connections.div_ceil(2)),
            most_long_answers: connections / 4,
            require_ranges: options.require_ranges,
            back,
            downloads: Arc::new(Downloads::new(connections, options.memory)),
            mirrors,
            origin,
            reference,
        })
    }

    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    /// Who keeps what has to be downloaded though nobody asked for it.
    pub fn keep_passing_in(&self, cache: &Arc<impl Passing + 'static>) {
        let cache: Arc<dyn Passing> = cache.clone();
        self.downloads.keep_in(Arc::downgrade(&cache));
    }

    /// Whom to ask, in this order; `digest`: `None` for a tag. The last is the registry itself, all others are mirrors.
    pub(super) fn endpoints(&self, digest: Option<&Digest>) -> Vec<&Endpoint> {
        let mirrors = self.mirrors.iter().filter(|mirror| mirror.is_worth_asking(digest));
        mirrors.chain([&self.origin]).collect()
    }

    pub(super) fn mirrors(&self) -> &[Endpoint] {
        &self.mirrors
    }

    pub(super) fn origin(&self) -> &Endpoint {
        &self.origin
    }

    pub(super) fn is_origin(&self, endpoint: &Endpoint) -> bool {
        std::ptr::eq(endpoint, &self.origin)
    }

    /// Waits for leave; where downloads of whole blobs have all connections, one that nobody wants more of ends.
    pub(super) async fn room<T>(&self, leave: impl Future<Output = T>) -> T {
        let mut leave = pin!(leave);
        loop {
            match timeout(LOOK, &mut leave).await {
                Ok(leave) => return leave,
                Err(_) if self.connections.are_all_used() => self.downloads.make_room(),
                Err(_) => {}
            }
        }
    }

    /// What one attempt at an endpoint may take: a mirror leaves time for the registry.
    pub(super) fn limit(&self, endpoint: &Endpoint, deadline: Instant) -> Instant {
        let mirrors = u32::try_from(self.mirrors.len()).unwrap_or(u32::MAX);
        let share = self.timeout / mirrors.saturating_add(2);
        if self.is_origin(endpoint) { deadline } else { deadline.min(Instant::now() + share) }
    }

    /// An attempt failed: of a mirror it is only remembered.
    pub(super) fn failed(&self, endpoint: &Endpoint, digest: Option<&Digest>, failure: Failure) -> Failure {
        if self.is_origin(endpoint) {
            return failure;
        }
        let error = failure.into_error();
        endpoint.failed(digest, &error);
        Failure::Passing { error, not_before: None }
    }

    /// They are not asked for this blob any more: what they or the registry gave of it was wrong. False: there are
    /// none.
    pub fn distrust_mirrors(&self, digest: &Digest) -> bool {
        for mirror in &self.mirrors {
            mirror.leave_out(digest);
        }
        !self.mirrors.is_empty()
    }

    /// Why something was not done in time, where it is known.
    pub fn explain_delay(&self, error: Error) -> Error {
        let mut endpoints = [&self.origin].into_iter().chain(&self.mirrors);
        match endpoints.find_map(|endpoint| endpoint.web.hosts.silent()) {
            Some(silent) if error.kind == ErrorKind::TimedOut => {
                Error { cause: format!("{}; {silent}", error.cause), ..error }
            }
            _ => error,
        }
    }

    /// A read has waited for all of its time.
    pub(super) fn exhausted(&self) {
        self.mirrors.iter().chain([&self.origin]).for_each(|endpoint| endpoint.web.hosts.exhausted());
    }
}
