//! The body of an answer: as long as it should be, or cut, or stalled.

use std::convert::Infallible;
use std::fmt;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::Sleep;

use super::content::Content;
use super::request::Record;

/// Bytes a frame.
const FRAME: u64 = 64 << 10;
/// Time for the connection to send what it holds before it is cut.
const FLUSH: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The answer ends as HTTP says.
    Complete,
    /// The connection closes.
    Cut,
    /// Nothing more comes.
    Stall,
}

pub(crate) struct ScriptedBody {
    content: Content,
    at: u64,
    end: u64,
    ending: Ending,
    record: Arc<Record>,
    flush: Option<Pin<Box<Sleep>>>,
    /// Before each frame.
    pace: Option<Duration>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl ScriptedBody {
    pub fn new(content: Content, range: std::ops::Range<u64>, ending: Ending, record: Arc<Record>) -> Self {
        Self { content, at: range.start, end: range.end, ending, record, flush: None, pace: None, pause: None }
    }

    pub fn paced(self, pace: Option<Duration>) -> Self {
        Self { pace, ..self }
    }
}

/// Makes hyper close the connection.
#[derive(Debug)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut as the script says")
    }
}

impl std::error::Error for Cut {}

impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// No size hint: a wrong `Content-Length` must reach the wire as the script wrote it.
impl Body for ScriptedBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.at < self.end {
            if let Some(pace) = self.pace {
                let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(pace)));
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            let next = self.end.min(self.at + FRAME);
            let bytes = self.content.read(self.at..next);
            self.record.sent.fetch_add(next - self.at, Ordering::AcqRel);
            self.at = next;
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match self.ending {
            Ending::Complete => Poll::Ready(None),
            Ending::Stall => Poll::Pending,
            Ending::Cut => {
                let flush = self.flush.get_or_insert_with(|| Box::pin(tokio::time::sleep(FLUSH)));
                flush.as_mut().poll(context).map(|()| Some(Err(Cut)))
            }
        }
    }
}
