//! Ranges of blobs: each answer is checked here, and a broken body goes on at the byte where it broke.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, HeaderMap, RANGE};
use reqwest::{Response, StatusCode};
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::answer::{ended_early, header, status_failure, transport_failure};
use super::bandwidth::Awaited;
use super::client::Registry;
use super::connections::Leave;
use super::endpoint::Endpoint;
use super::retry::{Failure, Retry};
use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest};

/// What takes this part of the timeout comes soon: a read has half of it, and is not alone.
const SOON: u32 = 8;
/// Bytes taken at once from a download that serves others, too.
const PIECE: u64 = 1 << 20;
/// Bytes that must come in the time of a read, where much is asked for at once.
const WORTH_A_READ: u64 = 16 << 10;
/// What comes slowly, because many share a slow link, may take so many times the timeout: who waits for it has failed by
/// then, and finds it when trying again. All would begin again, and again be too late, otherwise.
const LONGEST_FETCH: u32 = 4;
/// Room that is made for an answer before it comes.
const ROOM: u64 = 16 << 20;

impl BlobSource for Registry {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        self.read_range(blob, range).boxed()
    }

    fn stream<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxStream<'a, Result<Bytes>> {
        let next = |(reading, turn): (Option<Reading<'a>>, Option<SemaphorePermit<'a>>)| async {
            let mut reading = reading.filter(|reading| !reading.rest.is_empty())?;
            let turn = match turn {
                Some(turn) => turn,
                // It has a connection to itself for long: those behind it wait without an end.
                None => self.bit_by_bit.acquire().await.ok()?,
            };
            reading.renew();
            let next = reading.next(PIECE).await;
            let goes_on = next.is_ok();
            Some((next, (goes_on.then_some(reading), Some(turn))))
        };
        stream::unfold((Some(Reading::new(self, blob, range)), None), next).boxed()
    }

    fn long_answers(&self) -> usize {
        self.most_long_answers
    }

    fn soon(&self) -> u64 {
        self.pace.bytes_in(self.timeout / SOON)
    }
}

impl Registry {
    async fn read_range(&self, blob: &Descriptor, range: Range<u64>) -> Result<Bytes> {
        let object = blob.digest.as_str();
        let length = range.end.saturating_sub(range.start);
        if length == 0 {
            return Ok(Bytes::new());
        }
        if range.end > blob.size {
            return Err(Error::new(ErrorKind::Corrupt, object, "a range behind the blob's end was asked for"));
        }
        let mut reading = Reading::new(self, blob, range);
        let mut received = BytesMut::with_capacity(length.min(ROOM) as usize);
        let last_renewal = Instant::now() + self.timeout * (LONGEST_FETCH - 1);
        while !reading.rest.is_empty() {
            if Instant::now() < last_renewal {
                reading.renew();
            }
            received.extend_from_slice(&reading.next(length).await?);
        }
        Ok(received.freeze())
    }

    /// One attempt: from a download under way, which gives `wanted` at once, or by a request of its own for all of `range`.
    async fn attempt<'a>(
        &'a self,
        endpoint: &Endpoint,
        blob: &Descriptor,
        range: &Range<u64>,
        wanted: &Range<u64>,
    ) -> Result<Given<'a>, Failure> {
        let mut given = self.downloads.read(blob, wanted).await;
        if given.is_none() {
            if let Some(answer) = self.ask(endpoint, blob, range, wanted).await? {
                return Ok(Given::Answer(answer));
            }
            given = self.downloads.read(blob, wanted).await;
        }
        given.ok_or_else(|| ended_early(blob))?.map(Given::Bytes)
    }

    /// Asks for a range. `None`: the registry gives nothing but the whole blob, which is under way now for who wants `wanted`.
    async fn ask<'a>(
        &'a self,
        endpoint: &Endpoint,
        blob: &Descriptor,
        range: &Range<u64>,
        wanted: &Range<u64>,
    ) -> Result<Option<Answer<'a>>, Failure> {
        let object = blob.digest.as_str();
        // Who takes an answer bit by bit is not in line with those who want it at once: it may be open for long.
        let length = if wanted == range { range.end.saturating_sub(range.start) } else { 0 };
        let leave = self.connections.acquire(&blob.digest, length);
        let leave = match endpoint.dead(&blob.digest) {
            // Not behind those who wait for a dead host; the registry may send us to another one by now.
            Some(dead) => leave.now_or_never().ok_or(Failure::Dead(dead))?,
            None => self.room(leave).await,
        };
        let awaited = self.pace.awaited();
        let headers =
            HeaderMap::from_iter([(RANGE, header(&format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))?)]);
        let answer = endpoint.blob(&blob.digest, headers).await?;
        check_answer(&answer, blob, range)?;
        if answer.status() == StatusCode::OK && *range != (0..blob.size) {
            if self.require_ranges {
                return Err(Failure::Final(
                    Error::new(ErrorKind::Unsupported, object, "the registry does not support range requests")
                        .hint("go without --require-ranges, ask for them at its operator, or mount a copy: `oras copy --to-oci-layout` and oci:DIRECTORY"),
                ));
            }
            self.downloads.start(blob, wanted, answer, leave, &self.traffic);
            return Ok(None);
        }
        let (body, left) = (answer.bytes_stream().boxed(), range.end.saturating_sub(range.start));
        Ok(Some(Answer { registry: self, blob: blob.clone(), body, left, leave, _awaited: awaited }))
    }
}

/// The answer to a request for a range, while it comes.
struct Answer<'a> {
    registry: &'a Registry,
    blob: Descriptor,
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    /// Bytes that are still to come.
    left: u64,
    leave: Leave,
    _awaited: Awaited<'a>,
}

impl Answer<'_> {
    /// The next bytes of it.
    async fn next(&mut self) -> Result<Bytes, Failure> {
        let piece = match self.body.next().await {
            Some(piece) => piece.map_err(|error| transport_failure(self.blob.digest.as_str(), &error))?,
            None => return Err(ended_early(&self.blob)),
        };
        self.registry.traffic.received(piece.len()).await;
        self.registry.pace.received(piece.len());
        self.leave.received(piece.len());
        let piece = piece.slice(..piece.len().min(usize::try_from(self.left).unwrap_or(usize::MAX)));
        self.left = self.left.saturating_sub(piece.len() as u64);
        Ok(piece)
    }
}

/// What an attempt brought.
enum Given<'a> {
    Answer(Answer<'a>),
    Bytes(Bytes),
}

/// A range that is asked for again at the byte where an answer broke.
struct Reading<'a> {
    registry: &'a Registry,
    blob: &'a Descriptor,
    /// What has not come yet.
    rest: Range<u64>,
    retry: Retry,
    answer: Option<(&'a Endpoint, Answer<'a>)>,
    /// The endpoint that gives the answer has until then.
    limit: Instant,
    renew_from: u64,
}

impl<'a> Reading<'a> {
    fn new(registry: &'a Registry, blob: &'a Descriptor, range: Range<u64>) -> Self {
        let retry = Retry::within(registry.timeout);
        let limit = retry.deadline();
        Self { registry, blob, renew_from: range.start, rest: range, retry, answer: None, limit }
    }

    /// What comes next has the time of a read of its own, unless next to nothing came in that of the last one.
    fn renew(&mut self) {
        if self.rest.start < self.renew_from {
            return;
        }
        self.renew_from = self.rest.start.saturating_add(WORTH_A_READ);
        self.retry = Retry::within(self.registry.timeout);
        if let Some((endpoint, _)) = &self.answer {
            self.limit = self.registry.limit(endpoint, self.retry.deadline());
        }
    }

    /// The next bytes. `at_once`: so many are taken of a download that serves others, too.
    async fn next(&mut self, at_once: u64) -> Result<Bytes> {
        loop {
            let came = match &mut self.answer {
                Some((_, answer)) => timeout_at(self.limit, answer.next()).await,
                None => match self.begin(at_once).await? {
                    Some(bytes) => Ok(Ok(bytes)),
                    None => continue,
                },
            };
            let failure = match came {
                Ok(Ok(bytes)) => {
                    self.rest.start = self.rest.start.saturating_add(bytes.len() as u64);
                    self.answer = self.answer.take().filter(|_| !self.rest.is_empty());
                    return Ok(bytes);
                }
                Ok(Err(failure)) => failure,
                Err(_) => self.late()?,
            };
            if let Some((endpoint, _)) = self.answer.take() {
                let failure = self.registry.failed(endpoint, Some(&self.blob.digest), failure);
                if self.registry.is_origin(endpoint) {
                    self.pause(failure).await?;
                }
            }
        }
    }

    /// One attempt at each endpoint, until one succeeds. `None`: there is an answer now, or it is time for the next attempts.
    async fn begin(&mut self, at_once: u64) -> Result<Option<Bytes>> {
        let Self { registry, blob, .. } = *self;
        let wanted = self.rest.start..self.rest.end.min(self.rest.start.saturating_add(at_once));
        let mut failed = None;
        for endpoint in registry.endpoints(Some(&blob.digest)) {
            self.limit = registry.limit(endpoint, self.retry.deadline());
            let attempt = registry.attempt(endpoint, blob, &self.rest, &wanted);
            let failure = match timeout_at(self.limit, attempt).await {
                Ok(Ok(Given::Bytes(bytes))) => return Ok(Some(bytes)),
                Ok(Ok(Given::Answer(answer))) => {
                    self.answer = Some((endpoint, answer));
                    return Ok(None);
                }
                Ok(Err(failure)) => failure,
                Err(_) => self.late()?,
            };
            failed = Some(registry.failed(endpoint, Some(&blob.digest), failure));
        }
        match failed {
            Some(failure) => self.pause(failure).await.map(|()| None),
            None => Err(self.retry.timed_out(blob.digest.as_str())),
        }
    }

    /// An endpoint took too long: the end of all, or only of its own time.
    fn late(&self) -> Result<Failure> {
        let error = self.retry.timed_out(self.blob.digest.as_str());
        if self.limit >= self.retry.deadline() {
            self.registry.exhausted();
            return Err(error);
        }
        Ok(error.into())
    }

    async fn pause(&mut self, failure: Failure) -> Result<()> {
        if let Err(error) = self.retry.pause(failure, &self.registry.back).await {
            if error.is_of_the_network() {
                self.registry.exhausted();
            }
            return Err(error);
        }
        self.registry.traffic.retry();
        Ok(())
    }
}

/// RFC 9110, sections 14 and 15.3.7, as strict as integrity needs it: this range of this blob and nothing else.
pub(super) fn check_answer(answer: &Response, blob: &Descriptor, wanted: &Range<u64>) -> Result<(), Failure> {
    let object = blob.digest.as_str();
    let wrong = |cause: String| {
        Failure::Odd(
            Error::new(ErrorKind::Protocol, object, cause).hint("a proxy or cache before the registry may be broken"),
        )
    };
    if let Some(encoding) = answer.headers().get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        return Err(wrong(format!("the registry compresses its answer ({encoding:?}) though it was told not to")));
    }
    let said = answer.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
    if let Some(other) = said.and_then(|digest| digest.parse::<Digest>().ok()).filter(|digest| *digest != blob.digest) {
        return Err(wrong(format!("the registry answers with another blob, {other}")));
    }
    let length = wanted.end.saturating_sub(wanted.start);
    match answer.status() {
        StatusCode::PARTIAL_CONTENT => {
            let given = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or("");
            if !is_content_range(given, wanted, blob.size) {
                let last = wanted.end.saturating_sub(1);
                return Err(wrong(format!(
                    "asked for bytes {}-{last}/{}, the registry answers with `{given}`",
                    wanted.start, blob.size
                )));
            }
            match answer.content_length() {
                Some(given) if given != length => {
                    Err(wrong(format!("asked for {length} bytes, the registry announces {given}")))
                }
                _ => Ok(()),
            }
        }
        // No ranges: the whole blob.
        StatusCode::OK => match answer.content_length() {
            Some(given) if given != blob.size => {
                Err(wrong(format!("the blob has {} bytes, the registry announces {given}", blob.size)))
            }
            _ => Ok(()),
        },
        StatusCode::RANGE_NOT_SATISFIABLE => {
            Err(wrong(format!("the registry's blob is shorter than the {} bytes of the manifest", blob.size)))
        }
        _ => Err(status_failure(object, answer)),
    }
}

/// `bytes FIRST-LAST/SIZE`, where the size may be `*`.
fn is_content_range(text: &str, wanted: &Range<u64>, size: u64) -> bool {
    let parse = || {
        let (range, total) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = if total == "*" { size } else { total.parse().ok()? };
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?.checked_add(1)?, total))
    };
    parse() == Some((wanted.start, wanted.end, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_content_range_will_do() {
        let is = |text| is_content_range(text, &(10..20), 100);
        assert!(is("bytes 10-19/100") && is("bytes 10-19/*"));
        for text in [
            "",
            "bytes 10-19",
            "bytes 10-20/100",
            "bytes 0-19/100",
            "bytes 10-19/99",
            "bytes */100",
            "items 10-19/100",
            "bytes 10-18446744073709551615/100",
            "bytes -9-19/100",
        ] {
            assert!(!is(text), "{text}");
        }
    }
}
