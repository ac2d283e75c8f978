//! What an answer, or none, means to the user.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use reqwest::header::{DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::retry::Failure;
use super::targets::Refused;
use super::traffic::Traffic;
use super::transport;
use crate::error::{Error, ErrorKind};
use crate::oci::Descriptor;

/// Longer than any deadline; a clock cannot tell times that are too far away.
const MOST_PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

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
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Error::new(ErrorKind::Denied, object, format!("the proxy refuses: {status}")).hint(transport::proxy_hint())
        }
        _ => Error::new(ErrorKind::Protocol, object, format!("the registry answers {status}"))
            .hint("tell the registry's operator"),
    };
    if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
        let error = Error { kind: ErrorKind::Unreachable, ..error }.hint("try again later");
        Failure::Passing { error, not_before: retry_after(answer.headers(), SystemTime::now()) }
    } else {
        Failure::Final(error)
    }
}

/// RFC 9110, section 10.2.3: seconds, or a date, which is read by the clock of the server where it tells that.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let wish = text(RETRY_AFTER)?;
    if let Ok(seconds) = wish.parse() {
        return Some(Duration::from_secs(seconds).min(MOST_PATIENCE));
    }
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let now = text(DATE).and_then(date).unwrap_or(now);
    Some(date(wish)?.duration_since(now).unwrap_or_default().min(MOST_PATIENCE))
}

/// Errors below HTTP may pass, but for an address that was refused.
pub(super) fn transport_failure(object: &str, error: &reqwest::Error) -> Failure {
    match transport::causes(error).find_map(|cause| cause.downcast_ref::<Refused>()) {
        Some(refused) => Failure::Final(Error::new(ErrorKind::Protocol, object, refused)),
        None => transport::failure(object, error),
    }
}

/// A body that is shorter than was announced, or than the blob.
pub(super) fn ended_early(blob: &Descriptor) -> Failure {
    let error = Error::new(ErrorKind::Unreachable, &blob.digest, "the answer ended too early");
    Failure::Passing { error, not_before: None }
}

/// A whole body that must not be larger than `limit` bytes.
pub(super) async fn body_up_to(
    answer: Response,
    limit: u64,
    object: &str,
    traffic: &Traffic,
) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| transport_failure(object, &error))?;
        traffic.received(piece.len()).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_ask_for_patience_in_seconds_or_until_a_date() {
        let ask = |text: &'static str, date: Option<&'static str>| {
            let mut headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            headers.extend(date.map(|date| (DATE, HeaderValue::from_static(date))));
            let now = httpdate::parse_http_date("Fri, 31 Dec 1999 23:59:00 GMT").unwrap();
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(ask("120", None), Some(120));
        assert_eq!(ask("18446744073709551615", None), Some(7 * 24 * 3600));
        assert_eq!(ask("Fri, 31 Dec 9999 23:59:59 GMT", None), Some(7 * 24 * 3600));
        assert_eq!(ask("Fri, 31 Dec 1999 23:59:59 GMT", None), Some(59));
        assert_eq!(ask("Fri, 31 Dec 1999 23:59:59 GMT", Some("Fri, 31 Dec 1999 23:59:57 GMT")), Some(2));
        assert_eq!(ask("Thu, 31 Dec 1998 23:59:59 GMT", None), Some(0));
        for text in ["soon", "-1", "1.5", ""] {
            assert_eq!(ask(text, None), None, "{text}");
        }
    }
}
