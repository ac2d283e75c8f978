//! Uploads of blobs (distribution specification, "Pushing blobs"): in chunks, so that they go on at the byte that the
//! registry has, or in one request where it cannot do that.

mod bytes;

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::time::timeout;

use super::answer::header;
use super::client::Registry;
use super::retry::{Failure, Retry};
use crate::blob::BlobSource;
use crate::cache::KeptUpload;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Descriptor;
use bytes::Bytes;

/// Bytes of a request. Distribution 2 forgets an upload when a request breaks off, others have what arrived.
const CHUNK: u64 = 16 << 20;
/// A blob of no more is sent whole: a request costs the registry a sync of its disk, and two round trips.
const WHOLE: u64 = 2 * CHUNK;
/// An upload that the registry has lost begins again, so often altogether.
const BEGINNINGS: u32 = 4;
/// Bytes a second at which a registry puts a blob in its place, at least.
const STORING: u64 = 50_000_000;
const CHUNK_MIN_LENGTH: &str = "oci-chunk-min-length";

/// Told how many bytes of the blob are on their way or there.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// What the registry has of an upload.
struct Session {
    url: Url,
    offset: u64,
}

/// Why a session ends without success.
enum Ended {
    Final(Error),
    /// The registry does not know it any more, or cannot say how much it has.
    Lost(Error),
    /// It takes no chunks.
    NoChunks(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

struct Upload<'a> {
    registry: &'a Registry,
    blob: &'a Descriptor,
    bytes: Arc<Bytes>,
    kept: Option<KeptUpload>,
    chunk: u64,
    stop: &'a AtomicBool,
}

impl Registry {
    /// Sends a blob, and checks its digest while it is read, unless the source `is_checked`. `kept`: where the upload
    /// is written down, so that the next process goes on with it. `stop`: to end behind the chunk that is on its way.
    pub async fn upload(
        &self,
        blob: &Descriptor,
        source: &Arc<dyn BlobSource>,
        is_checked: bool,
        kept: Option<KeptUpload>,
        stop: &AtomicBool,
        progress: &Progress,
    ) -> Result<()> {
        let bytes = Arc::new(Bytes::new(blob, source, is_checked, progress));
        let mut upload = Upload { registry: self, blob, bytes, kept, chunk: CHUNK, stop };
        upload.send().await.map_err(|error| self.explained(error))
    }
}

impl Upload<'_> {
    async fn send(&mut self) -> Result<()> {
        let mut whole = self.blob.size <= WHOLE;
        let mut session = if whole { None } else { self.kept_session().await? };
        let mut beginnings = 0;
        loop {
            let current = match session.take() {
                Some(session) => session,
                None => {
                    beginnings += 1;
                    self.begin().await?
                }
            };
            self.bytes.moved_to(current.offset);
            let sent = match whole || self.chunk >= self.blob.size {
                true => self.send_whole(&current).await,
                false => self.send_chunks(current).await,
            };
            match sent {
                Ok(()) => break,
                Err(Ended::Final(error)) => {
                    if error.kind == ErrorKind::Corrupt {
                        self.keep(None).await;
                    }
                    return Err(error);
                }
                Err(Ended::Lost(error)) if beginnings >= BEGINNINGS => return Err(error),
                Err(Ended::Lost(error)) => {
                    tracing::warn!("{error}; the registry cannot go on with this upload: it begins again");
                }
                Err(Ended::NoChunks(error)) => {
                    tracing::warn!("{error}; the registry takes no chunks: the blob is sent in one request");
                    whole = true;
                }
            }
        }
        self.keep(None).await;
        Ok(())
    }

    fn object(&self) -> &str {
        self.blob.digest.as_str()
    }

    async fn begin(&mut self) -> Result<Session> {
        let registry = self.registry;
        let scope = registry.push();
        let (answer, from) = registry
            .write(Method::POST, "blobs/uploads/", HeaderMap::new(), None, &scope, self.blob.digest.as_str())
            .await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(registry.refusal(answer, self.object()).await);
        }
        let least = answer.headers().get(CHUNK_MIN_LENGTH).and_then(|least| least.to_str().ok()?.parse().ok());
        self.chunk = CHUNK.max(least.unwrap_or(0));
        Ok(Session { url: registry.location(&answer, &from, self.object())?, offset: 0 })
    }

    /// What another process has begun, if the registry still has it.
    async fn kept_session(&self) -> Result<Option<Session>> {
        let Some(kept) = &self.kept else { return Ok(None) };
        let Some(url) = kept.load().await.and_then(|address| address.parse::<Url>().ok()) else { return Ok(None) };
        let origin = self.registry.origin();
        if origin.web.targets.check(&url, origin.base()).is_err() {
            return Ok(None);
        }
        let session = Session { url, offset: 0 };
        let mut status = self.status(&session).await;
        if matches!(&status, Err(Ended::Final(error)) if error.is_of_the_network()) {
            // An outage says nothing about the upload: the registry is asked once more when it answers anything at all.
            self.registry.blob_exists(&self.blob.digest).await?;
            status = self.status(&session).await;
        }
        match status {
            Ok(session) => {
                tracing::info!("{}: going on at byte {} of {}", self.object(), session.offset, self.blob.size);
                Ok(Some(session))
            }
            // The file stays, locked: the next session is written over this one.
            Err(Ended::Final(error) | Ended::Lost(error) | Ended::NoChunks(error)) => {
                tracing::warn!("{error}; the registry cannot go on with what was sent before: it begins again");
                Ok(None)
            }
        }
    }

    /// `None`: there is nothing to go on with.
    async fn keep(&self, session: Option<&Session>) {
        match (&self.kept, session) {
            (Some(kept), Some(session)) => kept.store(session.url.as_str()).await,
            (Some(kept), None) => kept.remove().await,
            (None, _) => {}
        }
    }

    async fn send_chunks(&self, mut session: Session) -> Result<(), Ended> {
        self.keep(Some(&session)).await;
        let mut retry: Option<Retry> = None;
        while session.offset < self.blob.size {
            if self.stop.load(Ordering::Relaxed) {
                let error = Error::new(ErrorKind::Io, self.object(), "interrupted");
                return Err(Ended::Final(error.hint("push again: it goes on from here")));
            }
            let end = session.offset.saturating_add(self.chunk).min(self.blob.size);
            let failure = match self.patch(&session, end).await {
                Ok(next) if next.offset > session.offset => {
                    retry = None;
                    session = next;
                    self.keep(Some(&session)).await;
                    continue;
                }
                Ok(_) => {
                    let error = Error::new(ErrorKind::Protocol, self.object(), "the registry keeps nothing of a chunk");
                    return Err(if session.offset == 0 { Ended::NoChunks(error) } else { Ended::Lost(error) });
                }
                Err(failure) => failure?,
            };
            let retry = retry.get_or_insert_with(|| Retry::within(self.registry.timeout));
            retry.pause(failure, &self.registry.back).await?;
            self.registry.traffic.retry();
            session = self.status(&session).await?;
            self.bytes.moved_to(session.offset);
        }
        self.finish(&session, 0).await
    }

    /// One chunk. An error inside the other ends the session.
    async fn patch(&self, session: &Session, end: u64) -> Result<Session, Result<Failure, Ended>> {
        let range = session.offset..end;
        let last = end.saturating_sub(1);
        let mut headers = self.headers(&range).map_err(Ok)?;
        headers.insert(CONTENT_RANGE, header(&format!("{}-{last}", range.start)).map_err(Ok)?);
        let (answer, from) = self.body(Method::PATCH, &session.url, headers, &range).await?;
        let status = answer.status();
        if status.is_success() {
            let url = self.registry.location(&answer, &from, self.object()).map_err(|error| Err(error.into()))?;
            let offset = offset_of(&answer).unwrap_or(end);
            return match offset > end {
                true => Err(Err(Ended::Lost(self.disagreement(offset)))),
                false => Ok(Session { url, offset }),
            };
        }
        let error = self.registry.refusal(answer, self.object()).await;
        Err(match status {
            StatusCode::RANGE_NOT_SATISFIABLE if session.offset > 0 => Ok(Failure::Passing { error, not_before: None }),
            StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED
            | StatusCode::RANGE_NOT_SATISFIABLE
            | StatusCode::NOT_FOUND
                if session.offset == 0 =>
            {
                Err(Ended::NoChunks(error))
            }
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::GONE => Err(Ended::Lost(error)),
            _ => Err(Ended::Final(error)),
        })
    }

    /// How much of it the registry has.
    async fn status(&self, session: &Session) -> Result<Session, Ended> {
        let scope = self.registry.push();
        let (answer, from) = self
            .registry
            .write(Method::GET, session.url.as_str(), HeaderMap::new(), None, &scope, self.object())
            .await?;
        match answer.status() {
            StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::ACCEPTED => {
                let unknown = || {
                    let cause = "the registry does not say how much of the upload it has";
                    Ended::Lost(Error::new(ErrorKind::Protocol, self.object(), cause))
                };
                let offset = offset_of(&answer).ok_or_else(unknown)?;
                if offset > self.blob.size {
                    return Err(Ended::Lost(self.disagreement(offset)));
                }
                // It need not be named again.
                let url = self.registry.location(&answer, &from, self.object()).unwrap_or_else(|_| session.url.clone());
                Ok(Session { url, offset })
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Ended::Final(self.registry.refusal(answer, self.object()).await))
            }
            _ => Err(Ended::Lost(self.registry.refusal(answer, self.object()).await)),
        }
    }

    fn disagreement(&self, offset: u64) -> Error {
        let cause = format!("the registry says that it has {offset} bytes, which is more than were sent");
        Error::new(ErrorKind::Protocol, self.object(), cause)
    }

    async fn send_whole(&self, session: &Session) -> Result<(), Ended> {
        self.finish(session, self.blob.size).await
    }

    /// Closes the upload, with so many bytes of it in the last request.
    async fn finish(&self, session: &Session, rest: u64) -> Result<(), Ended> {
        let range = self.blob.size.saturating_sub(rest)..self.blob.size;
        let mut url = session.url.clone();
        url.query_pairs_mut().append_pair("digest", self.object());
        if range.is_empty() {
            self.bytes.check(range.start).await?;
        }
        let headers = self.headers(&range).map_err(Failure::into_error)?;
        let mut retry = Retry::within(self.registry.timeout);
        loop {
            let failure = match self.body(Method::PUT, &url, headers.clone(), &range).await {
                Ok((answer, _)) if answer.status().is_success() => return Ok(()),
                Ok((answer, _)) => {
                    let status = answer.status();
                    let error = self.registry.refusal(answer, self.object()).await;
                    let lost = [400, 404, 410, 416].contains(&status.as_u16());
                    return Err(if lost { Ended::Lost(error) } else { Ended::Final(error) });
                }
                Err(failure) => failure?,
            };
            let Failure::Passing { error, .. } = &failure else { return Err(Ended::Final(failure.into_error())) };
            let lost = Ended::Lost(error.clone());
            retry.pause(failure, &self.registry.back).await?;
            self.registry.traffic.retry();
            // The answer may be all that was lost.
            if self.registry.blob_exists(&self.blob.digest).await? {
                return Ok(());
            }
            if rest > 0 {
                return Err(lost);
            }
        }
    }

    fn headers(&self, range: &Range<u64>) -> Result<HeaderMap, Failure> {
        let length = range.end.saturating_sub(range.start);
        let octets = HeaderValue::from_static("application/octet-stream");
        Ok(HeaderMap::from_iter([(CONTENT_TYPE, octets), (CONTENT_LENGTH, header(&length.to_string())?)]))
    }

    /// One request with this range as its body. It may take as long as bytes move.
    async fn body(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        range: &Range<u64>,
    ) -> Result<(Response, Url), Result<Failure, Ended>> {
        self.bytes.hash_up_to(range.start).await.map_err(|error| Err(error.into()))?;
        let registry = self.registry;
        let scope = registry.push();
        let make = || self.bytes.body(range.clone());
        let request = registry.origin().request(method, url.as_str(), headers, Some(&make), &scope, self.object());
        let mut request = pin!(request);
        let storing = Duration::from_secs(self.blob.size / STORING);
        loop {
            let before = self.bytes.pieces();
            match timeout(registry.timeout.saturating_add(storing), &mut request).await {
                Ok(Ok((answer, from))) => {
                    // Before the registry says that of two digests one is wrong.
                    if self.bytes.is_read() {
                        self.bytes.check(range.end).await.map_err(|error| Err(error.into()))?;
                    }
                    let answer = registry.passing(answer, self.object()).await.map_err(Ok)?;
                    return Ok((answer, from));
                }
                Ok(Err(failure)) => {
                    let read = self.bytes.failure();
                    return Err(match read {
                        Some(error) => Err(error.into()),
                        None => Ok(failure),
                    });
                }
                Err(_) if self.bytes.pieces() != before => {}
                Err(_) => {
                    let within = humantime::format_duration(registry.timeout);
                    let error =
                        Error::new(ErrorKind::TimedOut, self.object(), format!("nothing moved within {within}"));
                    let error = error.hint("check the network, or give more time with --timeout");
                    return Err(Ok(Failure::Passing { error, not_before: None }));
                }
            }
        }
    }
}

/// `Range: 0-LAST`. What registries say of an empty upload is `0-0`, which one of a single byte has, too.
fn offset_of(answer: &Response) -> Option<u64> {
    let range = answer.headers().get(RANGE)?.to_str().ok()?;
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let last: u64 = range.strip_prefix("0-")?.trim().parse().ok()?;
    if last == 0 { Some(0) } else { last.checked_add(1) }
}
