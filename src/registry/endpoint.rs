//! One place where a repository is to be had: the registry itself, or a mirror of it.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use reqwest::header::HeaderMap;
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::{Notify, OnceCell};
use tokio::time::Instant;

use super::auth::{Auth, Scope};
use super::breaker::Hosts;
use super::client::RegistryOptions;
use super::credentials::Credentials;
use super::mirrors::Place;
use super::retry::Failure;
use super::targets::{Targets, shown};
use super::traffic::Traffic;
use super::transport::{Transport, warn_of_insecure};
use super::web::{MakeBody, Request, Web};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Digest;

/// What was learnt of so many blobs is remembered.
const BLOBS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// A mirror that failed is left alone for so long.
const SULK: Duration = Duration::from_secs(30);
/// Of the life of a signed address so much is used, in percent.
const SAFE_LIFE: u32 = 90;

pub(super) struct Endpoint {
    pub place: Place,
    pub web: Arc<Web>,
    base: Arc<Base>,
    auth: Auth,
    known: Mutex<Known>,
}

struct Known {
    /// Blobs are redirected here.
    redirects: bool,
    blobs: LruCache<Digest, Arc<Slot>>,
    /// A mirror does not have them, or has other bytes.
    missing: LruCache<Digest, ()>,
    /// Not to be asked before.
    failed_until: Option<Instant>,
}

type Slot = tokio::sync::Mutex<Option<Resolved>>;

/// Where a blob's redirect led; nowhere: it has none.
struct Resolved {
    url: Option<Url>,
    until: Option<Instant>,
}

/// Of requests for a repository.
pub(super) struct Base {
    configured: Url,
    found: OnceCell<Url>,
}

impl Base {
    /// `insecure`: plain HTTP will do where there is no TLS.
    fn new(configured: Url, insecure: bool) -> Self {
        let unsure = insecure && configured.scheme() == "https";
        let found = OnceCell::new_with((!unsure).then(|| configured.clone()));
        Self { configured, found }
    }

    /// As far as it is known.
    pub fn url(&self) -> &Url {
        self.found.get().unwrap_or(&self.configured)
    }

    /// As containers/image finds it out (`detectProperties` in its `docker_client.go`): the first that answers.
    async fn found(&self, web: &Web, object: &str) -> Result<&Url, Failure> {
        let ping = async |base: &Url| {
            let mut url = base.clone();
            url.set_path("/v2/");
            web.send(&Request { stays: true, ..Request::get(url, HeaderMap::new(), object) }, None).await
        };
        let find = async || {
            let mut url = self.configured.clone();
            let mut how = "its certificate is not checked";
            if let Err(failure) = ping(&url).await {
                how = "it is spoken to without TLS";
                if url.set_scheme("http").is_err() || ping(&url).await.is_err() {
                    return Err(failure);
                }
            }
            warn_of_insecure(shown(&url), how);
            Ok(url)
        };
        self.found.get_or_try_init(find).await
    }
}

impl Endpoint {
    /// `back` is told when its host was silent and answers again.
    pub fn new(place: Place, options: &RegistryOptions, traffic: &Arc<Traffic>, back: &Arc<Notify>) -> Result<Self> {
        let transport = Transport::new(&place, options)?;
        let base = Arc::new(Base::new(place.base(transport.plain_http())?, place.insecure));
        let targets = Targets::new(&place.host(), place.is_loopback(), options.allow_local_redirects);
        let http = transport.clients(&targets, false)?;
        let sending = transport.clients(&targets, true)?;
        let hosts = Hosts::new(http.clone(), Arc::clone(traffic), Arc::clone(back));
        let web = Arc::new(Web {
            http,
            sending,
            targets,
            hosts,
            traffic: Arc::clone(traffic),
            most_patience: options.timeout,
        });
        let credentials = Credentials::new(options.access.login.clone());
        let auth = Auth::new(&place.registry, &place.repository, Arc::clone(&base), credentials, Arc::clone(&web));
        let known =
            Known { redirects: false, blobs: LruCache::new(BLOBS), missing: LruCache::new(BLOBS), failed_until: None };
        Ok(Self { place, web, base, auth, known: Mutex::new(known) })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request below the repository, or to where an earlier answer's `Location` led. A refusal is answered with
    /// another authorization once, if there is one; every other answer is returned, with the address that it came from.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<MakeBody<'_>>,
        scope: &Scope,
        object: &str,
    ) -> Result<(Response, Url), Failure> {
        let url = self.address(path, object).await?;
        self.send(&Request { method, url, headers, body, stays: false, object }, scope).await
    }

    async fn address(&self, path: &str, object: &str) -> Result<Url, Failure> {
        let url = self.base.found(&self.web, object).await?.join(path);
        Ok(url.map_err(|error| Error::new(ErrorKind::Usage, object, format!("not an address: {error}")))?)
    }

    async fn send(&self, request: &Request<'_>, scope: &Scope) -> Result<(Response, Url), Failure> {
        let is_home = |url: &Url| url.origin() == self.base().origin();
        let sends_login = is_home(&request.url);
        let mut authorization = self.auth.authorization(scope).await?;
        loop {
            let header = authorization.header.as_ref().filter(|_| sends_login);
            let (answer, from) = self.web.send(request, header).await?;
            let refused = matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            if !refused || !is_home(&from) {
                return Ok((answer, from));
            }
            match self.auth.after_refusal(scope, &authorization, answer.status(), answer.headers()).await? {
                Some(other) => authorization = other,
                None => return Ok((answer, from)),
            }
        }
    }

    /// Of requests for the repository.
    pub fn base(&self) -> &Url {
        self.base.url()
    }

    /// Whether the registry has asked for a login or a token for this.
    pub async fn is_authorized(&self, scope: &Scope) -> bool {
        self.auth.authorization(scope).await.is_ok_and(|authorization| authorization.header.is_some())
    }

    /// To read from the repository.
    pub fn pull(&self) -> Scope {
        Scope::of(&[(&self.place.repository, "pull")])
    }

    /// A GET of a blob. Where it is redirected, later ones go there at once, until that address expires or fails.
    pub async fn blob(&self, blob: &Digest, headers: HeaderMap) -> Result<Response, Failure> {
        let slot = Arc::clone(self.known().blobs.get_or_insert(blob.clone(), Arc::default));
        let object = blob.as_str();
        let known = slot.lock().await.as_ref().and_then(Resolved::url);
        if let Some(url) = known {
            match self.resolved(&url, headers.clone(), object).await {
                Ok(answer) if !is_expired(answer.status()) => return Ok(answer),
                Err(failure) => {
                    if self.web.hosts.of(&url).is_silent() {
                        expire(&slot, &url).await;
                    }
                    return Err(failure);
                }
                Ok(_) => expire(&slot, &url).await,
            }
        }
        let resolved = slot.lock().await;
        // Another reader may have been faster.
        if let Some(url) = resolved.as_ref().and_then(Resolved::url) {
            drop(resolved);
            return self.resolved(&url, headers, object).await;
        }
        // Whoever wants the same blob waits for the redirect, but only where there are any, and not of a blob that has
        // none.
        let has_none = resolved.as_ref().is_some_and(|resolved| resolved.url.is_none());
        let held = if self.known().redirects && !has_none {
            Some(resolved)
        } else {
            drop(resolved);
            None
        };
        let path = format!("blobs/{object}");
        let asked = self.address(&path, object).await?;
        let request = Request { stays: true, ..Request::get(asked.clone(), headers.clone(), object) };
        let (answer, from) = self.send(&request, &self.pull()).await?;
        let leads_away = answer.status().is_redirection();
        let url = if leads_away { self.web.redirected(&answer, &from, object)? } else { from };
        // Also to another path of the same host, as Google's registries do.
        if leads_away || asked != url && answer.status().is_success() {
            self.known().redirects = true;
            let until = expiry(&url).map(|life| Instant::now() + life);
            let new = Some(Resolved { url: Some(url.clone()), until });
            match held {
                Some(mut held) => *held = new,
                None => *slot.lock().await = new,
            }
        } else if let Some(mut held) = held.filter(|_| answer.status().is_success()) {
            *held = Some(Resolved { url: None, until: None });
        }
        if !leads_away {
            return Ok(answer);
        }
        self.web.drain(answer, object).await;
        self.resolved(&url, headers, object).await
    }

    async fn resolved(&self, url: &Url, headers: HeaderMap, object: &str) -> Result<Response, Failure> {
        let authorization = match url.origin() == self.base().origin() {
            true => self.auth.authorization(&self.pull()).await?.header,
            false => None,
        };
        Ok(self.web.send(&Request::get(url.clone(), headers, object), authorization.as_ref()).await?.0)
    }

    /// Why it is of no use to wait for this blob: the registry is dead, or the host that had the blob last.
    pub fn dead(&self, blob: &Digest) -> Option<Error> {
        let slot = self.known().blobs.peek(blob).cloned();
        let led = || slot?.try_lock().ok()?.as_ref()?.url.clone();
        let dead = |url: &Url| self.web.hosts.of(url).dead(blob.as_str());
        dead(self.base()).or_else(|| dead(&led()?))
    }

    /// Whether a mirror is worth asking.
    pub fn is_worth_asking(&self, digest: Option<&Digest>) -> bool {
        let allowed = if digest.is_some() { self.place.by_digest } else { self.place.by_tag };
        let mut known = self.known();
        let missing = digest.is_some_and(|digest| known.missing.get(digest).is_some());
        allowed && !missing && known.failed_until.is_none_or(|until| until <= Instant::now())
    }

    /// A mirror is not asked for this blob.
    pub fn leave_out(&self, digest: &Digest) {
        self.known().missing.put(digest.clone(), ());
    }

    /// Takes note of a mirror's failure.
    pub fn failed(&self, digest: Option<&Digest>, error: &Error) {
        tracing::debug!("mirror {}: {error}", self.place);
        let mut known = self.known();
        match digest {
            Some(digest) if error.kind == ErrorKind::NotFound => drop(known.missing.put(digest.clone(), ())),
            _ if error.kind == ErrorKind::NotFound => {}
            _ => {
                if known.failed_until.replace(Instant::now() + SULK).is_none() {
                    tracing::warn!("mirror {}: {error}; going on without it", self.place);
                }
            }
        }
    }
}

impl Resolved {
    fn url(&self) -> Option<Url> {
        self.url.clone().filter(|_| self.until.is_none_or(|until| Instant::now() < until))
    }
}

/// The registry is asked anew where a blob is; what host had it is still known.
async fn expire(slot: &Slot, url: &Url) {
    if let Some(resolved) = slot.lock().await.as_mut().filter(|resolved| resolved.url.as_ref() == Some(url)) {
        resolved.until = Some(Instant::now());
    }
}

/// What storages answer where a signature has expired: S3 403, or 400 when the credentials behind it have; others 401,
/// 404, 410.
fn is_expired(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 403 | 404 | 410)
}

/// How long a signed address works, where its query says so: `X-Amz-Expires`, `X-Goog-Expires`.
fn expiry(url: &Url) -> Option<Duration> {
    let is_expires = |name: &str| ["x-amz-expires", "x-goog-expires"].contains(&name.to_ascii_lowercase().as_str());
    let (_, seconds) = url.query_pairs().find(|(name, _)| is_expires(name))?;
    Some(Duration::from_secs(u64::from(seconds.parse::<u32>().ok()?)) * SAFE_LIFE / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_addresses_tell_how_long_they_live() {
        let life = |query: &str| expiry(&format!("https://s3.example/b?a=1&{query}").parse().unwrap());
        assert_eq!(life("X-Amz-Expires=600"), Some(Duration::from_secs(540)));
        assert_eq!(life("X-Goog-Expires=10"), Some(Duration::from_secs(9)));
        for query in ["Expires=1700000000", "X-Amz-Expires=-1", "X-Amz-Expires=99999999999999", ""] {
            assert_eq!(life(query), None, "{query}");
        }
    }
}
