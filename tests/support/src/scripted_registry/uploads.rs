//! The way up: uploads in chunks, as the distribution specification has them, and registries that can do less.

use std::collections::HashMap;
use std::pin::Pin;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};

use super::answer::Answer;
use super::content::Content;
use super::request::{Record, Request};
use super::state::{Shared, State};
use crate::sha256;

/// What a registry can do beyond whole blobs.
#[derive(Debug, Clone)]
pub struct Takes {
    /// PATCH; else 405.
    pub chunks: bool,
    /// Says how much of an upload it has; else 404, and the upload is gone.
    pub status: bool,
    /// Has what came of a request that broke off; else the upload is gone, as with distribution 2.
    pub parts: bool,
    /// `OCI-Chunk-Min-Length`.
    pub least: Option<u64>,
}

impl Default for Takes {
    fn default() -> Self {
        Self { chunks: true, status: true, parts: true, least: None }
    }
}

#[derive(Default)]
pub(super) struct Uploads {
    pub takes: Takes,
    sessions: HashMap<String, Vec<u8>>,
    begun: u32,
}

impl Uploads {
    pub fn new(takes: Takes) -> Self {
        Self { takes, ..Self::default() }
    }

    pub fn forget(&mut self) {
        self.sessions.clear();
    }
}

/// The name of an upload.
pub(super) fn session(path: &str) -> Option<&str> {
    path.rsplit_once("/blobs/uploads/").map(|(_, session)| session).filter(|session| !session.is_empty())
}

/// Takes the body up to this byte. The bytes of a manifest are given back. False: it broke off, or is at the end of
/// what it was to take.
pub(super) async fn receive(
    mut body: Incoming,
    limit: Option<u64>,
    record: &Record,
    shared: &Shared,
) -> (Vec<u8>, bool) {
    let mut rest = Vec::new();
    let session = session(&record.request.path).map(str::to_owned);
    let start = content_range(&record.request).map(|(start, _)| start);
    let mut fits = None;
    loop {
        if limit.is_some_and(|limit| record.received() >= limit) {
            break_off(shared, session.as_deref());
            return (rest, false);
        }
        let piece = match std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            None => return (rest, true),
            Some(Err(_)) => {
                break_off(shared, session.as_deref());
                return (rest, false);
            }
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        record.receive(piece.len() as u64);
        match &session {
            None => rest.extend(piece),
            Some(session) => {
                let mut state = shared.lock();
                let bytes = state.uploads.as_mut().and_then(|all| all.sessions.get_mut(session));
                if let Some(bytes) = bytes
                    && *fits.get_or_insert(start.is_none_or(|start| start == bytes.len() as u64))
                {
                    bytes.extend(piece);
                }
            }
        }
    }
}

fn break_off(shared: &Shared, session: Option<&str>) {
    let mut state = shared.lock();
    if let (Some(uploads), Some(session)) = (&mut state.uploads, session)
        && !uploads.takes.parts
    {
        uploads.sessions.remove(session);
    }
}

/// First and last byte.
fn content_range(request: &Request) -> Option<(u64, u64)> {
    let (start, last) = request.header("content-range")?.split_once('-')?;
    Some((start.parse().ok()?, last.parse().ok()?))
}

impl State {
    /// `body`: of a manifest. `None`: nothing that writes.
    pub fn write(&mut self, request: &Request, body: Vec<u8>) -> Option<Answer> {
        let uploads = self.uploads.as_mut()?;
        let (method, path) = (request.method.as_str(), request.path.as_str());
        if let Some((repository, reference)) = path.strip_prefix("/v2/")?.rsplit_once("/manifests/") {
            if method != "PUT" {
                return None;
            }
            let digest = self.take_manifest(repository, reference, body.into(), request.header("content-type"));
            return Some(Answer::text(201, "text/plain", "").with("Docker-Content-Digest", digest));
        }
        let (_, session) = path.rsplit_once("/blobs/uploads/")?;
        if method == "POST" {
            uploads.begun += 1;
            let session = format!("session-{}", uploads.begun);
            uploads.sessions.insert(session.clone(), Vec::new());
            let answer = Answer::text(202, "text/plain", "").with("Location", format!("{path}{session}?_state=secret"));
            let least = uploads.takes.least.map(|least| least.to_string());
            return Some(match least {
                Some(least) => answer.with("OCI-Chunk-Min-Length", least),
                None => answer,
            });
        }
        let unknown = Answer::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
        if method == "GET" && !uploads.takes.status {
            uploads.sessions.remove(session);
            return Some(unknown);
        }
        let Some(bytes) = uploads.sessions.get(session) else { return Some(unknown) };
        let length = bytes.len() as u64;
        let last = length.saturating_sub(1);
        let told = |status| {
            let answer = Answer::text(status, "text/plain", "").with("Range", format!("0-{last}"));
            answer.with("Location", format!("{path}?_state=secret"))
        };
        Some(match method {
            "PATCH" if !uploads.takes.chunks => Answer::error(405, "UNSUPPORTED", "no chunks here"),
            "PATCH" if content_range(request).is_some_and(|(_, last)| last + 1 != length) => {
                Answer::error(416, "RANGE_INVALID", "invalid content range")
            }
            "PATCH" => told(202),
            "GET" => told(204),
            "DELETE" => {
                uploads.sessions.remove(session);
                Answer::text(204, "text/plain", "")
            }
            "PUT" => {
                let query = request.query.as_deref().unwrap_or("");
                let digest = query.rsplit_once("digest=").map_or("", |(_, digest)| digest).replace("%3A", ":");
                let bytes = uploads.sessions.remove(session).unwrap_or_default();
                if sha256(&bytes) != digest {
                    return Some(Answer::error(
                        400,
                        "DIGEST_INVALID",
                        "provided digest did not match uploaded content",
                    ));
                }
                self.blobs.insert(digest.clone(), Content::Held(Bytes::from(bytes)));
                Answer::text(201, "text/plain", "").with("Docker-Content-Digest", digest)
            }
            _ => return None,
        })
    }
}
