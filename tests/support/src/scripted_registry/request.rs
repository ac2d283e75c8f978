//! What a registry remembers of a request.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

/// What a request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `/v2/`
    Ping,
    /// A manifest, by tag or digest.
    Manifest,
    /// A blob that is the config of a manifest known here.
    Config,
    /// Any other blob.
    Blob,
    /// An upload of a blob.
    Upload,
    /// `/token`
    Token,
    /// Anything else, such as referrers and tags.
    Other,
}

/// One request, as it came and as it was answered.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it asked for.
    pub kind: Kind,
    /// Such as `GET`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// What stood behind the question mark.
    pub query: Option<String>,
    /// In their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The `Range` header as it was written.
    pub range: Option<String>,
    /// Of a request to the token service.
    pub body: String,
    /// Bytes of the body of an upload or manifest.
    pub received: u64,
    /// 0 while there is no answer.
    pub status: u16,
    /// Bytes of the answer's body that were handed to the connection.
    pub sent: u64,
}

impl Request {
    /// The first header of this name, in whatever case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The range asked for, if it is a single one with both ends.
    pub fn byte_range(&self) -> Option<Range<u64>> {
        let (start, last) = self.range.as_deref()?.strip_prefix("bytes=")?.split_once('-')?;
        Some(start.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?)
    }

    /// The digest, for a blob's request.
    pub fn digest(&self) -> Option<&str> {
        self.path.rsplit_once("/blobs/").map(|(_, digest)| digest)
    }
}

/// A request whose answer is still under way.
#[derive(Debug)]
pub(crate) struct Record {
    pub request: Request,
    pub status: AtomicU16,
    pub sent: AtomicU64,
    received: AtomicU64,
}

impl Record {
    pub fn new(request: Request) -> Arc<Self> {
        Arc::new(Self { request, status: AtomicU16::new(0), sent: AtomicU64::new(0), received: AtomicU64::new(0) })
    }

    pub fn receive(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::AcqRel);
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    pub fn snapshot(&self) -> Request {
        Request {
            status: self.status.load(Ordering::Acquire),
            sent: self.sent.load(Ordering::Acquire),
            received: self.received(),
            ..self.request.clone()
        }
    }
}
