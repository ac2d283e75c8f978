//! Manifests by tag or digest, always checked against their digest.

use bytes::Bytes;
use reqwest::header::{ACCEPT, HeaderMap};
use reqwest::{Method, Response, StatusCode};
use tokio::time::timeout_at;

use super::answer::{body_up_to, header, status_failure};
use super::client::Registry;
use super::endpoint::Endpoint;
use super::retry::{Failure, Retry};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Digest, LARGEST_MANIFEST};

const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.artifact.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// Distribution specification, "Pulling manifests".
const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";

impl Registry {
    /// The manifest that the reference names, with its digest.
    pub async fn manifest(&self) -> Result<(Digest, Bytes)> {
        let reference = &self.reference;
        self.manifest_of(reference.version(), reference.digest.as_ref(), &reference.to_string()).await
    }

    /// Another manifest of the repository.
    pub async fn manifest_by_digest(&self, digest: &Digest) -> Result<Bytes> {
        let (_, bytes) = self.manifest_of(digest.as_str(), Some(digest), digest.as_str()).await?;
        Ok(bytes)
    }

    /// `version`: a tag, or the digest.
    async fn manifest_of(&self, version: &str, digest: Option<&Digest>, object: &str) -> Result<(Digest, Bytes)> {
        let mut retry = Retry::a_few_times_within(self.timeout);
        loop {
            let mut failed = None;
            for endpoint in self.endpoints(digest) {
                let limit = self.limit(endpoint, retry.deadline());
                let failure = match timeout_at(limit, self.try_manifest(endpoint, version, digest, object)).await {
                    Ok(Ok(manifest)) => return Ok(manifest),
                    Ok(Err(failure)) => failure,
                    Err(_) if limit >= retry.deadline() => return Err(retry.timed_out(object)),
                    Err(_) => retry.timed_out(object).into(),
                };
                failed = Some(self.failed(endpoint, digest, failure));
            }
            let Some(failure) = failed else { return Err(retry.timed_out(object)) };
            retry.pause(failure, &self.back).await?;
            self.traffic.retry();
        }
    }

    async fn try_manifest(
        &self,
        endpoint: &Endpoint,
        version: &str,
        digest: Option<&Digest>,
        object: &str,
    ) -> Result<(Digest, Bytes), Failure> {
        let _leave = self.room(self.connections.acquire_one()).await;
        let answer = self.get_manifest(endpoint, version, object).await?;
        self.checked_manifest(answer, digest, object).await
    }

    /// `version`: a tag, or the digest.
    pub(super) async fn get_manifest(
        &self,
        endpoint: &Endpoint,
        version: &str,
        object: &str,
    ) -> Result<Response, Failure> {
        let headers = HeaderMap::from_iter([(ACCEPT, header(MANIFEST_TYPES)?)]);
        let path = format!("manifests/{version}");
        let (answer, _) = endpoint.request(Method::GET, &path, headers, None, &endpoint.pull(), object).await?;
        Ok(answer)
    }

    pub(super) async fn checked_manifest(
        &self,
        answer: Response,
        digest: Option<&Digest>,
        object: &str,
    ) -> Result<(Digest, Bytes), Failure> {
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let body = body_up_to(answer, LARGEST_MANIFEST, object, &self.traffic).await.unwrap_or_default();
                // Error codes of the distribution specification.
                let (cause, hint) = if String::from_utf8_lossy(&body).contains("NAME_UNKNOWN") {
                    ("no such repository", "check the name")
                } else {
                    ("no such tag or digest", "check it, for instance with `oras repo tags`")
                };
                return Err(Error::new(ErrorKind::NotFound, object, cause).hint(hint).into());
            }
            _ => return Err(status_failure(object, &answer)),
        }
        // Of a tag nothing else tells whether the bytes are right.
        let told = answer.headers().get(DOCKER_CONTENT_DIGEST).and_then(|told| told.to_str().ok()?.parse().ok());
        let bytes = body_up_to(answer, LARGEST_MANIFEST, object, &self.traffic).await.map_err(too_large)?;
        let digest = digest.cloned().or(told).unwrap_or_else(|| Digest::sha256_of(&bytes));
        digest.check(&bytes).map_err(|error| Error { object: object.to_owned(), ..error })?;
        Ok((digest, bytes))
    }
}

fn too_large(failure: Failure) -> Failure {
    match failure {
        Failure::Final(error) if error.kind == ErrorKind::Limit => {
            let cause = "the manifest is larger than the 4 MiB that a registry must take at least, and that are read";
            let hint = "the publisher can make several artifacts of it, or larger layers";
            Failure::Final(Error::new(ErrorKind::Limit, error.object, cause).hint(hint))
        }
        other => other,
    }
}
