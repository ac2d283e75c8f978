//! Ranges of blobs: each answer is checked here, and a broken body goes on at the byte where it broke.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, HeaderMap, RANGE};
use reqwest::{Response, StatusCode};
use tokio::time::timeout_at;

use super::answer::{header, status_failure, transport_failure};
use super::client::Registry;
use super::endpoint::Endpoint;
use super::retry::{Failure, Retry};
use crate::blob::BlobSource;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest};

/// What takes this part of the timeout comes soon: a read has half of it, and is not alone.
const SOON: u32 = 8;

impl BlobSource for Registry {
    fn read<'a>(&'a self, blob: &'a Descriptor, range: Range<u64>) -> BoxFuture<'a, Result<Bytes>> {
        self.read_range(blob, range).boxed()
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
        let mut retry = Retry::within(self.timeout);
        let mut received = BytesMut::new();
        loop {
            let mut failed = None;
            for endpoint in self.endpoints(Some(&blob.digest)) {
                let limit = self.limit(endpoint, retry.deadline());
                let failure = match timeout_at(limit, self.attempt(endpoint, blob, &range, &mut received)).await {
                    Ok(Ok(())) => return Ok(received.freeze()),
                    Ok(Err(failure)) => failure,
                    Err(_) if limit >= retry.deadline() => {
                        self.exhausted();
                        return Err(retry.timed_out(object));
                    }
                    Err(_) => retry.timed_out(object).into(),
                };
                failed = Some(self.failed(endpoint, Some(&blob.digest), failure));
            }
            let Some(failure) = failed else { return Err(retry.timed_out(object)) };
            if let Err(error) = retry.pause(failure, &self.back).await {
                if error.is_of_the_network() {
                    self.exhausted();
                }
                return Err(error);
            }
            self.traffic.retry();
        }
    }

    /// One attempt: from a download under way, or by a request of its own.
    async fn attempt(
        &self,
        endpoint: &Endpoint,
        blob: &Descriptor,
        wanted: &Range<u64>,
        received: &mut BytesMut,
    ) -> Result<(), Failure> {
        let mut streamed = self.streams.read(blob, wanted).await;
        if streamed.is_none() {
            if self.receive(endpoint, blob, wanted, received).await? == Received::Range {
                return Ok(());
            }
            streamed = self.streams.read(blob, wanted).await;
        }
        let early = || Failure::Passing { error: ended_early(blob), not_before: None };
        let bytes = streamed.ok_or_else(early)??;
        received.clear();
        received.extend_from_slice(&bytes);
        Ok(())
    }

    /// One request: adds to `received` what is missing of `wanted`.
    async fn receive(
        &self,
        endpoint: &Endpoint,
        blob: &Descriptor,
        wanted: &Range<u64>,
        received: &mut BytesMut,
    ) -> Result<Received, Failure> {
        let object = blob.digest.as_str();
        let rest = wanted.start.saturating_add(received.len() as u64)..wanted.end;
        let leave = self.connections.acquire(&blob.digest, rest.end.saturating_sub(rest.start));
        let connection = match endpoint.dead(&blob.digest) {
            // Not behind those who wait for a dead host; the registry may send us to another one by now.
            Some(dead) => leave.now_or_never().ok_or(Failure::Dead(dead))?,
            None => leave.await,
        };
        let _awaited = self.pace.awaited();
        let headers =
            HeaderMap::from_iter([(RANGE, header(&format!("bytes={}-{}", rest.start, rest.end.saturating_sub(1)))?)]);
        let answer = endpoint.blob(&blob.digest, headers).await?;
        check_answer(&answer, blob, &rest)?;
        if answer.status() == StatusCode::OK && rest != (0..blob.size) {
            if self.require_ranges {
                return Err(Failure::Final(
                    Error::new(ErrorKind::Unsupported, object, "the registry does not support range requests")
                        .hint("go without --require-ranges, ask for them at its operator, or mount a copy: `oras copy --to-oci-layout` and oci:DIRECTORY"),
                ));
            }
            self.streams.start(blob, wanted, answer, &self.traffic).await;
            return Ok(Received::Stream);
        }
        let length = wanted.end.saturating_sub(wanted.start) as usize;
        received.reserve(length.saturating_sub(received.len()));
        let mut body = answer.bytes_stream();
        while received.len() < length {
            let piece = match body.next().await {
                Some(piece) => piece.map_err(|error| transport_failure(object, &error))?,
                None => return Err(Failure::Passing { error: ended_early(blob), not_before: None }),
            };
            self.traffic.received(piece.len()).await;
            self.pace.received(piece.len());
            connection.received(piece.len());
            let missing = length.saturating_sub(received.len());
            received.extend_from_slice(piece.get(..missing).unwrap_or(&piece));
        }
        Ok(Received::Range)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    /// What was asked for.
    Range,
    /// The whole blob comes, and others wait for it as well.
    Stream,
}

fn ended_early(blob: &Descriptor) -> Error {
    Error::new(ErrorKind::Unreachable, &blob.digest, "the answer ended too early")
}

/// RFC 9110, sections 14 and 15.3.7, as strict as integrity needs it: this range of this blob and nothing else.
fn check_answer(answer: &Response, blob: &Descriptor, wanted: &Range<u64>) -> Result<(), Failure> {
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
