//! What a registry holds, and the right answer to each request.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;

use super::answer::Answer;
use super::artifact::MANIFEST_TYPE;
use super::content::Content;
use super::fault::Planned;
use super::gate::Guarded;
use super::request::{Kind, Record, Request};
use super::uploads::Uploads;
use crate::sha256;

pub(super) struct Manifest {
    pub media_type: String,
    pub bytes: Bytes,
}

#[derive(Default)]
pub(super) struct State {
    pub blobs: HashMap<String, Content>,
    /// Digests of blobs that manifests name as their config.
    pub configs: HashSet<String>,
    /// By repository, then digest.
    pub manifests: HashMap<String, HashMap<String, Manifest>>,
    /// By repository and tag.
    pub tags: HashMap<(String, String), String>,
    pub requests: Vec<Arc<Record>>,
    pub faults: Vec<Planned>,
    /// None: everybody may read.
    pub tokens: Option<HashSet<String>>,
    pub tokens_issued: u32,
    pub guarded: Guarded,
    pub connections: u64,
    pub open: usize,
    /// The token service is on another host.
    pub token_origin: Option<String>,
    /// This is the token service of another registry.
    pub tokens_for: Option<Shared>,
    /// Blobs are on another host: its origin, and what it holds.
    pub storage: Option<(String, Shared)>,
    /// This is such a host: only these signatures give anything.
    pub signatures: Option<HashSet<String>>,
    pub signatures_given: u32,
    /// Tags that name another manifest each time, by repository and tag.
    pub moving: HashMap<(String, String), Vec<String>>,
    /// None: it is read-only.
    pub uploads: Option<Uploads>,
    /// Of blobs, before each 64 KiB.
    pub pace: Option<Duration>,
}

/// Shared between the test and the server's thread.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<State>>);

impl Shared {
    /// A panic of the other side leaves nothing half-done here.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What a path of the distribution API names.
pub(super) enum Target<'a> {
    Ping,
    Manifest { repository: &'a str, reference: &'a str },
    Blob { digest: &'a str },
    Token,
    Other,
}

impl<'a> Target<'a> {
    pub fn of(path: &'a str) -> Self {
        if path == "/token" {
            return Self::Token;
        }
        let Some(rest) = path.strip_prefix("/v2/") else {
            return if path == "/v2" { Self::Ping } else { Self::Other };
        };
        if rest.is_empty() {
            Self::Ping
        } else if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
            Self::Manifest { repository, reference }
        } else if let Some((_, digest)) = rest.rsplit_once("/blobs/") {
            Self::Blob { digest }
        } else {
            Self::Other
        }
    }
}

impl State {
    pub fn kind(&self, path: &str) -> Kind {
        match Target::of(path) {
            Target::Blob { digest } if digest.starts_with("uploads/") => Kind::Upload,
            Target::Ping => Kind::Ping,
            Target::Manifest { .. } => Kind::Manifest,
            Target::Blob { digest } if self.configs.contains(digest) => Kind::Config,
            Target::Blob { .. } => Kind::Blob,
            Target::Token => Kind::Token,
            Target::Other => Kind::Other,
        }
    }

    /// Keeps it under its digest, and the tag. `media_type`: else as the bytes say, or an image manifest.
    pub fn take_manifest(
        &mut self,
        repository: &str,
        reference: &str,
        bytes: Bytes,
        media_type: Option<&str>,
    ) -> String {
        let digest = sha256(&bytes);
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let media_type = media_type.or(json["mediaType"].as_str()).unwrap_or(MANIFEST_TYPE).to_owned();
        self.configs.extend(json["config"]["digest"].as_str().map(str::to_owned));
        let manifests = self.manifests.entry(repository.to_owned()).or_default();
        manifests.insert(digest.clone(), Manifest { media_type, bytes });
        if reference != digest {
            self.tags.insert((repository.to_owned(), reference.to_owned()), digest.clone());
        }
        digest
    }

    /// What is said to those who may not come in.
    pub fn refusal(&self, request: &Request, origin: &str) -> Option<Answer> {
        if let Some(signatures) = &self.signatures {
            // As object stores do: a second way to authenticate is an error.
            if request.header("authorization").is_some() {
                return Some(Answer::text(400, "application/xml", "<Error><Code>InvalidArgument</Code></Error>"));
            }
            let signed = request.query.as_deref().and_then(|query| query.rsplit_once("X-Amz-Signature="));
            if request.method != "GET" || signed.is_none_or(|(_, signature)| !signatures.contains(signature)) {
                return Some(Answer::text(403, "application/xml", "<Error><Code>AccessDenied</Code></Error>"));
            }
        }
        if self.guarded.gate.basic && !self.guarded.knows(request) {
            let refusal = Answer::error(401, "UNAUTHORIZED", "authentication required");
            return Some(refusal.with("WWW-Authenticate", "Basic realm=\"scripted-registry\""));
        }
        if let Some(tokens) = self.tokens.as_ref().filter(|_| !self.guarded.gate.basic) {
            let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
            if token.is_none_or(|token| !tokens.contains(token) || self.guarded.is_over(token)) {
                let here = format!("{}/token", self.token_origin.as_deref().unwrap_or(origin));
                let realm = self.guarded.gate.realm.as_deref().unwrap_or(&here);
                return Some(challenge(&request.path, token.is_some(), realm));
            }
        }
        None
    }

    /// `origin` is this registry's own `http://address`; `body`: of a manifest that is put.
    pub fn answer(&mut self, request: &Request, body: Vec<u8>, origin: &str) -> Answer {
        let target = Target::of(&request.path);
        if matches!(target, Target::Token) {
            return self.issue_token(request);
        }
        if let Some(refusal) = self.refusal(request, origin) {
            return refusal;
        }
        if let Some(written) = self.write(request, body) {
            return written;
        }
        if request.method != "GET" && request.method != "HEAD" {
            return Answer::error(405, "UNSUPPORTED", "this registry is read-only");
        }
        match target {
            Target::Ping => Answer::text(200, "application/json", "{}"),
            Target::Manifest { repository, reference } => self.manifest(repository, reference),
            Target::Blob { digest } if self.storage.is_some() => self.redirect(digest),
            Target::Blob { digest } => self.blob(digest, request.range.as_deref()),
            Target::Token | Target::Other => Answer::error(404, "NOT_FOUND", "no such page"),
        }
        .with("Docker-Distribution-Api-Version", "registry/2.0")
    }

    /// To where the blob is, with a signature that counts there.
    fn redirect(&self, digest: &str) -> Answer {
        let Some((origin, storage)) = &self.storage else { return Answer::error(404, "BLOB_UNKNOWN", "") };
        let mut storage = storage.lock();
        storage.signatures_given += 1;
        let signature = format!("scripted-signature-{}", storage.signatures_given);
        storage.signatures.get_or_insert_default().insert(signature.clone());
        let query = format!("X-Amz-Expires=600&X-Amz-Signature={signature}");
        Answer::text(307, "text/html", "<a href=\"elsewhere\">Temporary Redirect</a>.")
            .with("Location", format!("{origin}/v2/storage/blobs/{digest}?{query}"))
    }

    fn manifest(&mut self, repository: &str, reference: &str) -> Answer {
        let Some(manifests) = self.manifests.get(repository) else {
            return Answer::error(404, "NAME_UNKNOWN", "repository name not known to registry");
        };
        let tag = (repository.to_owned(), reference.to_owned());
        if let Some(next) = self.moving.get_mut(&tag) {
            next.rotate_left(1);
            self.tags.insert(tag.clone(), next[0].clone());
        }
        let digest = self.tags.get(&tag).map_or(reference, String::as_str);
        match manifests.get(digest) {
            Some(manifest) => Answer::whole(200, Content::Held(manifest.bytes.clone()))
                .with("Content-Type", &manifest.media_type)
                .with("Docker-Content-Digest", digest),
            None => Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        }
    }

    fn blob(&self, digest: &str, range: Option<&str>) -> Answer {
        let Some(content) = self.blobs.get(digest) else {
            return Answer::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
        };
        let size = content.size();
        let mut answer = Answer { pace: self.pace, ..Answer::whole(200, content.clone()) };
        match range.map(|range| single_range(range, size)) {
            None => {}
            Some(Some(range)) => {
                answer.status = 206;
                answer.set("Content-Range", format!("bytes {}-{}/{size}", range.start, range.end - 1));
                answer.length = Some(range.end - range.start);
                answer.range = range;
            }
            Some(None) => {
                answer.status = 416;
                answer.set("Content-Range", format!("bytes */{size}"));
                answer.length = Some(0);
                answer.range = 0..0;
            }
        }
        answer
            .with("Content-Type", "application/octet-stream")
            .with("Accept-Ranges", "bytes")
            .with("Docker-Content-Digest", digest)
    }

    fn issue_token(&mut self, request: &Request) -> Answer {
        let token = format!("scripted-token-{}", self.tokens_issued + 1);
        let answer = self.guarded.answer(request, &token);
        if answer.status == 200 {
            self.tokens_issued += 1;
            if let Some(other) = &self.tokens_for {
                other.lock().tokens.get_or_insert_default().insert(token.clone());
            }
            if let Some(tokens) = &mut self.tokens {
                tokens.insert(token);
            }
        }
        answer
    }
}

fn challenge(path: &str, had_token: bool, realm: &str) -> Answer {
    let mut value = format!("Bearer realm=\"{realm}\",service=\"scripted-registry\"");
    let repository = path
        .strip_prefix("/v2/")
        .and_then(|rest| rest.rsplit_once("/manifests/").or_else(|| rest.rsplit_once("/blobs/")));
    if let Some((repository, _)) = repository {
        value.push_str(&format!(",scope=\"repository:{repository}:pull\""));
    }
    if had_token {
        value.push_str(",error=\"invalid_token\"");
    }
    Answer::error(401, "UNAUTHORIZED", "authentication required").with("WWW-Authenticate", value)
}

/// None for what cannot be satisfied, and for several ranges at once, which zot answers with 416 too.
fn single_range(header: &str, size: u64) -> Option<Range<u64>> {
    let (start, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (start, last) {
        ("", last) => size.saturating_sub(last.parse().ok()?)..size,
        (start, "") => start.parse().ok()?..size,
        (start, last) => start.parse().ok()?..size.min(last.parse::<u64>().ok()?.checked_add(1)?),
    };
    (range.start < range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_writes_them() {
        assert_eq!(single_range("bytes=0-0", 10), Some(0..1));
        assert_eq!(single_range("bytes=4-99", 10), Some(4..10));
        assert_eq!(single_range("bytes=4-", 10), Some(4..10));
        assert_eq!(single_range("bytes=-3", 10), Some(7..10));
        assert_eq!(single_range("bytes=10-11", 10), None);
        assert_eq!(single_range("bytes=0-1,3-4", 10), None);
        assert_eq!(single_range("lines=0-1", 10), None);
        assert_eq!(single_range("bytes=3-2", 10), None);
    }
}
