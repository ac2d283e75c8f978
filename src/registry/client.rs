//! The HTTP client of one repository: addresses, tokens, counting, and what a transport error means to the user.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use super::auth::{Auth, Scope};
use super::connections::Connections;
use super::credentials::Credentials;
use super::retry::Failure;
use super::traffic::Traffic;
use super::transport::{self, Access, Transport};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::RegistryReference;

#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Plain HTTP even for a registry that is not on this machine.
    pub plain_http: bool,
    pub access: Access,
    /// Longest time for one read, retries included.
    pub timeout: Duration,
    /// Most requests under way at once.
    pub connections: usize,
}

/// One repository of one registry.
pub struct Registry {
    pub(super) reference: RegistryReference,
    pub(super) timeout: Duration,
    pub(super) traffic: Arc<Traffic>,
    pub(super) connections: Connections,
    base: Url,
    http: reqwest::Client,
    auth: Auth,
}

impl Registry {
    pub fn new(reference: RegistryReference, options: &RegistryOptions) -> Result<Self> {
        let transport = Transport::new(&reference, options)?;
        let scheme = if transport.plain_http() { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}/", reference.host(), reference.repository)
            .parse()
            .map_err(|error| Error::new(ErrorKind::Usage, &reference, format!("not an address: {error}")))?;
        let traffic = Arc::<Traffic>::default();
        let auth = Auth::new(
            &reference.registry,
            &reference.repository,
            transport.plain_http(),
            Credentials::new(options.access.login.clone()),
            transport.client(transport::at_home())?,
            Arc::clone(&traffic),
        );
        let http = transport.client(redirects())?;
        Ok(Self {
            reference,
            timeout: options.timeout,
            traffic,
            connections: Connections::new(options.connections),
            base,
            http,
            auth,
        })
    }

    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    /// One GET below the repository. A refusal is answered with another authorization once, if there is one; every other
    /// answer is returned.
    pub(super) async fn get(&self, path: &str, headers: HeaderMap, object: &str) -> Result<Response, Failure> {
        let url = self
            .base
            .join(path)
            .map_err(|error| Error::new(ErrorKind::Usage, object, format!("not an address: {error}")))?;
        let scope = Scope::of(&[(&self.reference.repository, "pull")]);
        let mut authorization = self.auth.authorization(&scope).await?;
        loop {
            let mut request = self.http.get(url.clone()).headers(headers.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(header) = &authorization.header {
                request = request.header(AUTHORIZATION, header);
            }
            self.traffic.request();
            let answer = request.send().await.map_err(|error| transport_failure(object, &error))?;
            let refused = matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            if !refused || answer.url().origin() != self.base.origin() {
                return Ok(answer);
            }
            match self.auth.after_refusal(&scope, &authorization, answer.status(), answer.headers()).await? {
                Some(other) => authorization = other,
                None => return Ok(answer),
            }
        }
    }
}

/// At most ten, never from https to http. reqwest drops `Authorization` when host or port change.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let downgrade =
            attempt.url().scheme() == "http" && attempt.previous().last().is_some_and(|from| from.scheme() == "https");
        if downgrade {
            attempt.error("redirect from https to http refused")
        } else if attempt.previous().len() > 10 {
            attempt.error("more than ten redirects")
        } else {
            attempt.follow()
        }
    })
}

/// What to make of an answer that is not the one hoped for.
pub(super) fn status_failure(object: &str, answer: &Response) -> Failure {
    let status = answer.status();
    let error = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Error::new(ErrorKind::Denied, object, format!("the registry answers {status}"))
                .hint("the repository may need a login (eo-mount login), or not exist")
        }
        StatusCode::NOT_FOUND => Error::new(ErrorKind::NotFound, object, "the registry does not have it")
            .hint("push the artifact again, or tell the registry's operator"),
        _ => Error::new(ErrorKind::Protocol, object, format!("the registry answers {status}"))
            .hint("tell the registry's operator"),
    };
    if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
        let error = Error { kind: ErrorKind::Unreachable, ..error }.hint("try again later");
        Failure::Passing { error, not_before: retry_after(answer.headers()) }
    } else {
        Failure::Final(error)
    }
}

/// In seconds only; a date is taken for "no wish".
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Errors below HTTP may pass, but for a redirect that was refused, and what the transport knows better.
pub(super) fn transport_failure(object: &str, error: &reqwest::Error) -> Failure {
    if error.is_redirect() {
        return Failure::Final(Error::new(ErrorKind::Protocol, object, transport::innermost(error)));
    }
    transport::failure(object, error)
}

/// A whole body that must not be larger than `limit` bytes.
pub(super) async fn body_up_to(
    answer: Response,
    limit: u64,
    object: &str,
    traffic: &Traffic,
) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    let mut stream = answer.bytes_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| transport_failure(object, &error))?;
        traffic.received(piece.len());
        if body.len() as u64 + piece.len() as u64 > limit {
            let error = Error::new(ErrorKind::Limit, object, format!("the answer is larger than {limit} bytes"));
            return Err(error.hint("check the address").into());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

pub(super) fn header(value: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(value).map_err(|_| Error::new(ErrorKind::Usage, value, "no header text").into())
}
