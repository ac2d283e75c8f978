//! Requests of any method, and the redirects that they meet, which are followed here: each is checked, and takes no
//! credentials along.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};

use super::answer::{body_up_to, retry_after, transport_failure};
use super::breaker::Hosts;
use super::retry::Failure;
use super::targets::{Targets, shown};
use super::tls;
use super::traffic::Traffic;
use super::transport::{Clients, causes, words};
use crate::error::{Error, ErrorKind, Result};

const MOST_REDIRECTS: u32 = 10;
/// A redirect's body is read up to here.
const REDIRECT_BODY: u64 = 16 << 10;

/// Made anew for each attempt.
pub(super) type MakeBody<'a> = &'a (dyn Fn() -> reqwest::Body + Send + Sync);

pub(super) struct Request<'a> {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<MakeBody<'a>>,
    /// A redirect to another scheme, host or port is not followed, because it carries a login or is to be remembered.
    pub stays: bool,
    /// What an error is about.
    pub object: &'a str,
}

impl<'a> Request<'a> {
    pub fn get(url: Url, headers: HeaderMap, object: &'a str) -> Self {
        Self { method: Method::GET, url, headers, body: None, stays: false, object }
    }
}

pub(super) struct Web {
    pub http: Clients,
    /// For long bodies, whose requests say how long they are.
    pub sending: Clients,
    pub targets: Targets,
    pub hosts: Hosts,
    pub traffic: Arc<Traffic>,
    /// Longest time that all leave a host alone because it asks for that.
    pub most_patience: Duration,
}

impl Web {
    /// The answer that is no redirect, and where it came from. `authorization` goes along as long as scheme, host and
    /// port stay the same.
    pub async fn send(
        &self,
        request: &Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response, Url), Failure> {
        let mut url = request.url.clone();
        let mut authorization = authorization;
        for _ in 0..=MOST_REDIRECTS {
            let answer = self.send_to(url.clone(), request, authorization).await?;
            let status = answer.status();
            let followed = match status {
                StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => {
                    matches!(request.method, Method::GET | Method::HEAD)
                }
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
                _ => false,
            };
            if !followed {
                return Ok((answer, url));
            }
            let next = self.redirected(&answer, &url, request.object)?;
            if request.stays && next.origin() != url.origin() {
                return Ok((answer, url));
            }
            self.drain(answer, request.object).await;
            if next.origin() != url.origin() {
                authorization = None;
            }
            url = next;
        }
        let error = Error::new(ErrorKind::Protocol, request.object, "more than ten redirects");
        Err(error.hint("tell the registry's operator").into())
    }

    /// Reads what a redirect says to people, so that its connection can be used again.
    pub async fn drain(&self, answer: Response, object: &str) {
        if answer.content_length().is_some_and(|length| length <= REDIRECT_BODY) {
            // What comes of it does not matter.
            let _ = body_up_to(answer, REDIRECT_BODY, object, &self.traffic).await;
        }
    }

    /// Where a redirect leads.
    pub fn redirected(&self, answer: &Response, from: &Url, object: &str) -> Result<Url> {
        let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let next = location.and_then(|location| from.join(location).ok()).ok_or_else(|| {
            let cause = format!("{} redirects to no address", shown(from));
            Error::new(ErrorKind::Protocol, object, cause).hint("tell the registry's operator")
        })?;
        self.targets.check(&next, from).map_err(|error| Error {
            object: object.to_owned(),
            cause: format!("{} ({})", error.cause, error.object),
            ..error
        })?;
        tracing::debug!("{object}: redirected to {}", shown(&next));
        Ok(next)
    }

    async fn send_to(
        &self,
        url: Url,
        request: &Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let host = self.hosts.of(&url);
        if let Some(error) = host.dead(request.object) {
            return Err(Failure::Dead(error));
        }
        host.admit(request.object)?;
        let clients = if request.headers.contains_key(CONTENT_LENGTH) { &self.sending } else { &self.http };
        let secure = url.scheme() == "https";
        let send = async |http2| {
            let mut http = clients.speaking(http2).request(request.method.clone(), url.clone());
            http = http.headers(request.headers.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(body) = request.body {
                http = http.body(body());
            }
            if let Some(authorization) = authorization {
                http = http.header(AUTHORIZATION, authorization);
            }
            self.traffic.request();
            http.send().await
        };
        let known = host.speaks_http2();
        let mut http2 = known.unwrap_or(false);
        let mut sent = send(http2).await;
        if let Err(error) = &sent {
            // Told in the handshake; or not at all: Go's servers take the connection, and close it.
            let closed = known.is_none() && secure && !error.is_connect() && !error.is_timeout();
            if closed || causes(error).any(tls::is_other_version) {
                let other = send(!http2).await;
                if other.is_ok() {
                    (sent, http2) = (other, !http2);
                }
            }
        }
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => {
                let failure = transport_failure(request.object, &error);
                if matches!(failure, Failure::Passing { .. }) {
                    host.silent(&words(&error));
                }
                return Err(failure.at(&url));
            }
        };
        host.answered(http2);
        let status = answer.status();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            && let Some(wait) = retry_after(answer.headers(), SystemTime::now())
        {
            host.be_patient(wait.min(self.most_patience), format!("it answers {status}"));
        }
        Ok(answer)
    }
}
