//! What goes wrong, to which requests, and how often.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::answer::Answer;
use super::body::Ending;
use super::request::{Kind, Request};

/// For `times`: until the faults are cleared.
pub const ALWAYS: u32 = u32::MAX;

/// A wrong answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Another status with these headers and this body.
    Status(u16, Vec<(String, String)>, String),
    /// 200 with the whole blob, whatever range was asked for.
    IgnoreRange,
    /// `Content-Range` tells of a range one byte further on; the bytes are those asked for.
    WrongContentRange,
    /// 206 without `Content-Range`.
    ContentRangeMissing,
    /// `Content-Range` with a total that is one too large.
    WrongTotal,
    /// An honest 206, but of the first half of the range only (RFC 9110, section 15.3.7 allows it).
    ShorterRange,
    /// `Content-Length` promises everything, half of it comes, the connection closes.
    ShortBody,
    /// The connection closes after that many bytes of the body.
    CutAfter(u64),
    /// 512 bytes more than were asked for, and `Content-Length` says so.
    ExtraBody,
    /// No `Content-Length`: the body comes chunked.
    NoLength,
    /// The connection closes without an answer.
    HangUp,
    /// The connection closes after that many bytes of what is sent.
    CutUploadAfter(u64),
    /// Nothing more is taken of what is sent after that many bytes; the connection stays.
    StallUploadAfter(u64),
    /// No answer; the connection stays until the registry ends.
    Stall,
    /// Nothing more after that many bytes of the body; the connection stays.
    StallAfter(u64),
    /// The right answer, later. Joins with another fault.
    Delay(Duration),
    /// The byte in the middle of the body is another.
    WrongBytes,
    /// 307 to this address.
    Redirect(String),
    /// 200 with a web page, as a captive portal answers.
    GarbageBody,
    /// Another `Content-Type`.
    ContentType(String),
    /// One more header, whose name and value these are.
    Header(&'static str, &'static str),
    /// `Docker-Content-Digest` of something else.
    WrongDigestHeader,
    /// Without the header of this name.
    WithoutHeader(&'static str),
    /// HTTP/1.0: the body ends with the connection.
    Http10,
    /// So long before each 64 KiB of the body.
    Trickle(Duration),
    /// A compressed body, unless the client wants `identity`; what ranges mean then nobody knows.
    CompressUnlessIdentity,
    /// Several ranges at once, or one that goes past the end: 416, with the length of something else.
    StrictRanges,
}

impl Fault {
    /// A bare status, with an empty body.
    pub fn status(status: u16) -> Self {
        Self::Status(status, Vec::new(), String::new())
    }

    pub(super) fn apply(&self, answer: &mut Answer, request: &Request) {
        let (start, end) = (answer.range.start, answer.range.end);
        match self {
            Self::Status(status, headers, body) => {
                *answer = Answer::text(*status, "text/plain", body.clone());
                for (name, value) in headers {
                    answer.set(name, value);
                }
            }
            Self::Redirect(to) => *answer = Answer::text(307, "text/plain", "").with("Location", to),
            Self::GarbageBody => {
                *answer = Answer::text(200, "text/html", "<html><body>Please log in to this network</body></html>");
            }
            Self::IgnoreRange => {
                answer.remove("Content-Range");
                if answer.status == 206 || answer.status == 416 {
                    answer.status = 200;
                }
                answer.range = 0..answer.content.size();
                answer.length = Some(answer.range.end);
            }
            Self::WrongContentRange => content_range(answer, start + 1..end + 1, answer.content.size()),
            Self::ContentRangeMissing => answer.remove("Content-Range"),
            Self::WrongTotal => content_range(answer, start..end, answer.content.size() + 1),
            Self::ShorterRange => {
                answer.range.end = start + (end - start).div_ceil(2);
                answer.length = Some(answer.range.end - start);
                content_range(answer, answer.range.clone(), answer.content.size());
            }
            Self::ShortBody => {
                answer.range.end = start + (end - start) / 2;
                answer.ending = Ending::Cut;
            }
            Self::CutAfter(bytes) => {
                answer.range.end = end.min(start.saturating_add(*bytes));
                answer.ending = Ending::Cut;
            }
            Self::StallAfter(bytes) => {
                answer.range.end = end.min(start.saturating_add(*bytes));
                answer.ending = Ending::Stall;
            }
            Self::ExtraBody => {
                let mut bytes = answer.content.read(start..end).to_vec();
                bytes.extend([b'+'; 512]);
                answer.replace(bytes);
            }
            Self::NoLength => answer.length = None,
            Self::WrongBytes => {
                let mut bytes = answer.content.read(start..end).to_vec();
                let middle = bytes.len() / 2;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= 0x5a;
                }
                answer.replace(bytes);
            }
            Self::ContentType(media_type) => answer.set("Content-Type", media_type),
            Self::Header(name, value) => answer.set(name, *value),
            Self::WrongDigestHeader => {
                answer.set("Docker-Content-Digest", crate::sha256(b"something else"));
            }
            Self::WithoutHeader(name) => answer.remove(name),
            Self::Http10 => {
                answer.version = hyper::Version::HTTP_10;
                answer.length = None;
            }
            Self::Trickle(pace) => answer.pace = Some(*pace),
            Self::CompressUnlessIdentity => {
                if request.header("accept-encoding") != Some("identity") {
                    answer.set("Content-Encoding", "gzip");
                    answer.replace(&b"\x1f\x8b not what was asked for"[..]);
                }
            }
            Self::StrictRanges => {
                let size = answer.content.size();
                let within = request.byte_range().is_none_or(|range| range.end <= size);
                if request.range.is_some() && !(within && request.byte_range().is_some()) {
                    *answer = Answer::error(416, "RANGE_INVALID", "invalid range").with("Content-Range", "bytes */1");
                }
            }
            // These change when and whether the answer comes, not what it says.
            Self::Delay(_) | Self::Stall | Self::HangUp | Self::CutUploadAfter(_) | Self::StallUploadAfter(_) => {}
        }
    }
}

/// Leaves answers alone that are not to a range.
fn content_range(answer: &mut Answer, range: Range<u64>, total: u64) {
    if answer.status == 206 {
        answer.set("Content-Range", format!("bytes {}-{}/{total}", range.start, range.end.saturating_sub(1)));
    }
}

/// Which requests a fault is for: all conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    kinds: Option<Vec<Kind>>,
    method: Option<String>,
    path: Option<String>,
    header: Option<&'static str>,
    range: Option<Range<u64>>,
    touches: Option<Range<u64>>,
    nth: Option<u32>,
}

impl Matcher {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Every request of this kind.
    pub fn kind(kind: Kind) -> Self {
        Self { kinds: Some(vec![kind]), ..Self::default() }
    }

    /// Every blob that is no config.
    pub fn blobs() -> Self {
        Self::kind(Kind::Blob)
    }

    /// The blob or config with this digest.
    pub fn blob(digest: &str) -> Self {
        Self::path(&format!("/blobs/{digest}"))
    }

    /// Every manifest.
    pub fn manifests() -> Self {
        Self::kind(Kind::Manifest)
    }

    /// Paths that hold this text.
    pub fn path(part: &str) -> Self {
        Self { path: Some(part.to_owned()), ..Self::default() }
    }

    /// `GET` or `HEAD`.
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Requests that come with this header.
    pub fn with_header(mut self, name: &'static str) -> Self {
        self.header = Some(name);
        self
    }

    /// Requests of exactly this byte range.
    pub fn range(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }

    /// Requests that hold at least one byte of this range; a request without a range holds all.
    pub fn touching(mut self, range: Range<u64>) -> Self {
        self.touches = Some(range);
        self
    }

    /// Only the nth of the requests that fit otherwise, counted from 1 when the fault is set.
    pub fn nth(mut self, nth: u32) -> Self {
        self.nth = Some(nth);
        self
    }

    fn fits(&self, request: &Request) -> bool {
        let range = request.byte_range();
        self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&request.kind))
            && self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.path.as_ref().is_none_or(|part| request.path.contains(part.as_str()))
            && self.header.is_none_or(|name| request.header(name).is_some())
            && self.range.as_ref().is_none_or(|wanted| range.as_ref() == Some(wanted))
            && self.touches.as_ref().is_none_or(|wanted| match (&range, &request.range) {
                (Some(range), _) => range.start < wanted.end && wanted.start < range.end,
                (None, Some(_)) => false,
                (None, None) => true,
            })
    }
}

/// Tells whether a fault came to pass: a test whose fault was never met proves nothing.
#[derive(Debug, Clone)]
pub struct Script {
    met: Arc<AtomicU32>,
}

impl Script {
    /// How many requests met the fault so far.
    pub fn met(&self) -> u32 {
        self.met.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
pub(super) struct Planned {
    matcher: Matcher,
    fault: Fault,
    left: u32,
    seen: u32,
    met: Arc<AtomicU32>,
}

impl Planned {
    pub fn new(matcher: Matcher, fault: Fault, times: u32) -> (Self, Script) {
        let met = Arc::new(AtomicU32::new(0));
        let script = Script { met: Arc::clone(&met) };
        (Self { matcher, fault, left: times, seen: 0, met }, script)
    }
}

/// The faults for this request: all delays, and the first of the others.
pub(super) fn choose(planned: &mut [Planned], request: &Request) -> Vec<Fault> {
    let mut chosen: Vec<Fault> = Vec::new();
    for plan in planned {
        if plan.left == 0 || !plan.matcher.fits(request) {
            continue;
        }
        plan.seen += 1;
        let delay = matches!(plan.fault, Fault::Delay(_));
        if plan.matcher.nth.is_some_and(|nth| nth != plan.seen)
            || (!delay && chosen.iter().any(|other| !matches!(other, Fault::Delay(_))))
        {
            continue;
        }
        if plan.left != ALWAYS {
            plan.left -= 1;
        }
        plan.met.fetch_add(1, Ordering::AcqRel);
        chosen.push(plan.fault.clone());
    }
    chosen
}
