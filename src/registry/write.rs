//! Writing to the registry itself, never to a mirror: what it has, blobs of its other repositories, manifests.

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::answer::{body_up_to, header, status_failure};
use super::auth::Scope;
use super::client::Registry;
use super::retry::{Failure, Retry};
use super::web::MakeBody;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Digest;

/// Bytes of a refusal that are read.
const LARGEST_REFUSAL: u64 = 1 << 20;
const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";

impl Registry {
    pub async fn blob_exists(&self, blob: &Digest) -> Result<bool> {
        self.exists(&format!("blobs/{blob}"), blob).await
    }

    pub async fn manifest_exists(&self, manifest: &Digest) -> Result<bool> {
        self.exists(&format!("manifests/{manifest}"), manifest).await
    }

    async fn exists(&self, path: &str, digest: &Digest) -> Result<bool> {
        let object = digest.as_str();
        let ask = async |method, headers| self.write(method, path, headers, None, &self.push(), object).await;
        let (mut answer, mut from) = ask(Method::HEAD, HeaderMap::new()).await?;
        if matches!(answer.status(), StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) {
            let first = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=0-0"))]);
            (answer, from) = ask(Method::GET, first).await?;
        }
        match answer.status() {
            // Of nothing there is no first byte.
            status if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            // It has sent us to a storage, whose signature need not be one for HEAD.
            _ if from.origin() != self.origin().base().origin() => Ok(true),
            _ => Err(self.refusal(answer, object).await),
        }
    }

    /// Lets the repository have a blob of another one of the same registry. False: it has to be sent.
    pub async fn mount_blob(&self, blob: &Digest, from_repository: &str) -> Result<bool> {
        let own = &self.origin().place.repository;
        let scope = Scope::of(&[(own, "pull,push"), (from_repository, "pull")]);
        let path = format!("blobs/uploads/?mount={blob}&from={from_repository}");
        let (answer, from) = self.write(Method::POST, &path, HeaderMap::new(), None, &scope, blob.as_str()).await?;
        match answer.status() {
            StatusCode::CREATED => return Ok(true),
            StatusCode::ACCEPTED => {
                // An upload was begun in its place, which nobody wants.
                if let Ok(session) = self.location(&answer, &from, blob.as_str()) {
                    self.cancel(&session, blob.as_str()).await;
                }
            }
            status => tracing::debug!("{blob}: not mounted from {from_repository}: {status}"),
        }
        Ok(false)
    }

    /// `version`: a tag, or the digest of the bytes.
    pub async fn put_manifest(&self, version: &str, media_type: &str, bytes: &Bytes) -> Result<Digest> {
        let digest = match version.parse::<Digest>() {
            Ok(digest) => {
                digest.check(bytes)?;
                digest
            }
            Err(_) => Digest::sha256_of(bytes),
        };
        let origin = self.origin();
        let separator = if version.contains(':') { '@' } else { ':' };
        let object = format!("{}{separator}{version}", origin.place);
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, header(media_type).map_err(Failure::into_error)?)]);
        let body = || bytes.clone().into();
        let path = format!("manifests/{version}");
        let (answer, _) = self.write(Method::PUT, &path, headers, Some(&body), &self.push(), &object).await?;
        if !answer.status().is_success() {
            return Err(self.refusal(answer, &object).await);
        }
        let told = answer.headers().get(DOCKER_CONTENT_DIGEST).and_then(|told| told.to_str().ok()?.parse().ok());
        match told {
            Some(told) if told != digest && digest.algorithm() == Digest::algorithm(&told) => {
                let cause = format!("the registry keeps other bytes than were sent: {told}");
                Err(Error::new(ErrorKind::Corrupt, digest, cause).hint("tell the registry's operator"))
            }
            _ => Ok(digest),
        }
    }

    /// For writing in the repository.
    pub(super) fn push(&self) -> Scope {
        Scope::of(&[(&self.origin().place.repository, "pull,push")])
    }

    /// Asks until there is an answer that waiting does not change.
    pub(super) async fn write(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<MakeBody<'_>>,
        scope: &Scope,
        object: &str,
    ) -> Result<(Response, Url)> {
        // Whoever has just called wants to know soon; what has run for hours outlives an outage.
        let retry = if self.traffic.count().requests == 0 { Retry::a_few_times_within } else { Retry::within };
        let attempt = async || {
            let request = self.origin().request(method.clone(), path, headers.clone(), body, scope, object);
            let (answer, from) = request.await?;
            Ok((self.passing(answer, object).await?, from))
        };
        let done = retry(self.timeout).run(object, &self.back, &self.traffic, attempt).await;
        done.map_err(|error| self.explained(error))
    }

    /// An answer that says nothing but that it may be another one later is a failure.
    pub(super) async fn passing(&self, answer: Response, object: &str) -> Result<Response, Failure> {
        if matches!(answer.status(), StatusCode::NOT_IMPLEMENTED | StatusCode::INSUFFICIENT_STORAGE) {
            return Ok(answer);
        }
        match status_failure(object, &answer) {
            Failure::Passing { error, not_before } => {
                let cause = format!("{}{}", error.cause, self.said(answer).await);
                Err(Failure::Passing { error: Error { cause: crate::error::printable(&cause), ..error }, not_before })
            }
            _ => Ok(answer),
        }
    }

    /// Which right is missing, where that is what is wrong.
    pub(super) fn explained(&self, error: Error) -> Error {
        match error.kind {
            ErrorKind::Denied if !error.cause.contains("the right `push`") => {
                let cause = format!("{}; to push, the right `push` for {} is needed", error.cause, self.origin().place);
                Error { cause: crate::error::printable(&cause), ..error }
            }
            _ => error,
        }
    }

    /// What an answer means that is not the one hoped for, in the registry's own words.
    pub(super) async fn refusal(&self, answer: Response, object: &str) -> Error {
        let place = &self.origin().place;
        let status = answer.status();
        let said = self.said(answer).await;
        let is_full = said.to_ascii_lowercase().contains("quota");
        let error = |kind, cause: &str, hint: &str| Error::new(kind, object, format!("{cause}{said}")).hint(hint);
        match status {
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::INSUFFICIENT_STORAGE => error(
                ErrorKind::NoSpace,
                &format!("too large, or no room left: the registry answers {status}"),
                "remove what is not needed there, ask its operator for a larger quota, or make smaller layers",
            ),
            _ if is_full => error(
                ErrorKind::NoSpace,
                &format!("the registry's quota is used up: it answers {status}"),
                "remove what is not needed there, or ask its operator for a larger quota",
            ),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => error(
                ErrorKind::Denied,
                &format!("the registry answers {status}: the right `push` for {place} is missing"),
                &format!("log in as somebody who has it: eo-mount login {}", place.registry),
            ),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => error(
                ErrorKind::Unsupported,
                &format!("the registry takes nothing: it answers {status}"),
                "it may be read-only, or a mirror: push to the registry itself",
            ),
            StatusCode::NOT_FOUND => error(
                ErrorKind::NotFound,
                &format!("the registry answers {status}"),
                "check the name; some registries want a repository to be made first",
            ),
            _ => error(ErrorKind::Protocol, &format!("the registry answers {status}"), "tell the registry's operator"),
        }
    }

    /// `: CODE: message`, or nothing.
    async fn said(&self, answer: Response) -> String {
        #[derive(Deserialize)]
        struct Said {
            errors: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let reading = body_up_to(answer, LARGEST_REFUSAL, "refusal", &self.traffic);
        let body = tokio::time::timeout(self.timeout, reading).await.ok().and_then(Result::ok).unwrap_or_default();
        match serde_json::from_slice::<Said>(&body) {
            Ok(said) => said.errors.iter().map(|one| format!(": {} {}", one.code, one.message)).collect(),
            // A web page of something on the way says nothing to people.
            Err(_) if body.is_empty() || body.starts_with(b"<") || body.starts_with(b"{") => String::new(),
            Err(_) => format!(": {}", String::from_utf8_lossy(&body).trim()),
        }
    }

    /// Where an upload goes on.
    pub(super) fn location(&self, answer: &Response, from: &Url, object: &str) -> Result<Url> {
        let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let url = location.and_then(|location| from.join(location).ok()).ok_or_else(|| {
            let cause = "the registry does not say where the upload goes on";
            Error::new(ErrorKind::Protocol, object, cause).hint("tell the registry's operator")
        })?;
        self.origin().web.targets.check(&url, from)?;
        Ok(url)
    }

    /// Tells the registry to forget an upload; what comes of it does not matter.
    pub(super) async fn cancel(&self, session: &Url, object: &str) {
        let scope = self.push();
        let request = self.origin().request(Method::DELETE, session.as_str(), HeaderMap::new(), None, &scope, object);
        if let Ok(Err(failure)) = tokio::time::timeout(self.timeout / 3, request).await {
            tracing::debug!("{object}: not cancelled: {}", failure.into_error());
        }
    }
}
