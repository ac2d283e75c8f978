//! An answer before it is sent: right at first, then as the script wants it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Response, Version};

use super::body::{Ending, ScriptedBody};
use super::content::Content;
use super::request::Record;

pub(crate) struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// The whole of the object, of which `range` is sent.
    pub content: Content,
    pub range: Range<u64>,
    /// What `Content-Length` says; none: a chunked body.
    pub length: Option<u64>,
    pub ending: Ending,
    /// Before each 64 KiB of the body.
    pub pace: Option<Duration>,
    pub version: Version,
}

impl Answer {
    pub fn whole(status: u16, content: Content) -> Self {
        let size = content.size();
        Self {
            status,
            headers: Vec::new(),
            content,
            range: 0..size,
            length: Some(size),
            ending: Ending::Complete,
            pace: None,
            version: Version::HTTP_11,
        }
    }

    pub fn text(status: u16, media_type: &str, body: impl Into<Bytes>) -> Self {
        Self::whole(status, Content::Held(body.into())).with("Content-Type", media_type)
    }

    /// An error as the distribution specification writes it.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
        Self::text(status, "application/json", body)
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.into()));
    }

    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    }

    /// Sends other bytes instead.
    pub fn replace(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.range = 0..bytes.len() as u64;
        self.length = Some(self.range.end);
        self.content = Content::Held(bytes);
    }

    pub fn into_response(self, record: Arc<Record>) -> Response<ScriptedBody> {
        record.status.store(self.status, Ordering::Release);
        let mut response = Response::builder().status(self.status).version(self.version);
        for (name, value) in &self.headers {
            response = response.header(name.as_str(), value.as_str());
        }
        if let Some(length) = self.length {
            response = response.header("Content-Length", length);
        }
        response
            .body(ScriptedBody::new(self.content, self.range, self.ending, record).paced(self.pace))
            .unwrap_or_else(|error| panic!("the script asks for a header that HTTP cannot send: {error}"))
    }
}
