//! Manifests by tag or digest, always checked against their digest.

use bytes::Bytes;
use reqwest::header::{ACCEPT, HeaderMap};
use reqwest::{Response, StatusCode};
use tokio::time::timeout_at;

use super::client::{Registry, body_up_to, header, status_failure};
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
            let attempt = self.try_manifest(version, digest, object);
            let failure = match timeout_at(retry.deadline(), attempt).await {
                Ok(Ok(manifest)) => return Ok(manifest),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(retry.timed_out(object)),
            };
            retry.pause(failure).await?;
            self.traffic.retry();
        }
    }

    async fn try_manifest(
        &self,
        version: &str,
        digest: Option<&Digest>,
        object: &str,
    ) -> Result<(Digest, Bytes), Failure> {
        let answer = self.get_manifest(version, object).await?;
        self.checked_manifest(answer, digest, object).await
    }

    /// `version`: a tag, or the digest.
    pub(super) async fn get_manifest(&self, version: &str, object: &str) -> Result<Response, Failure> {
        let headers = HeaderMap::from_iter([(ACCEPT, header(MANIFEST_TYPES)?)]);
        self.get(&format!("manifests/{version}"), headers, object).await
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
