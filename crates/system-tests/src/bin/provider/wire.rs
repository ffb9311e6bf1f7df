//! Replies on the wire.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

use crate::Ending;
use crate::plan::Act;

/// What every answer says it cost: tokens read, of these from a cache, and written.
pub(crate) const INPUT: u64 = 11;
pub(crate) const CACHED: u64 = 4;
pub(crate) const OUTPUT: u64 = 7;

/// Between two pieces of a slow stream.
const PACE: Duration = Duration::from_millis(20);

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A whole reply.
pub(crate) fn full(status: StatusCode, document: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(document.to_string()));
    let mut response = Response::new(
        body.map_err(|never: Infallible| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// A stream of events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    frames: Vec<Bytes>,
    /// Repeated without end where the others leave off.
    forever: Option<Bytes>,
    breaks: bool,
}

/// Bytes of a piece of a stream that is cut without regard to what is in it.
const ODD: usize = 7;

impl Events {
    /// The same bytes, cut at other places than between two events.
    pub(crate) fn cut_at_odd_places(mut self) -> Self {
        let whole = self.frames.concat();
        self.frames = whole.chunks(ODD).map(Bytes::copy_from_slice).collect();
        self
    }

    /// One event without a name.
    pub(crate) fn data(&mut self, data: &str) {
        self.frames.push(Bytes::from(format!("data: {data}\n\n")));
    }

    /// One event whose name is its type, as the newer APIs have it.
    pub(crate) fn typed(&mut self, event: &Value) {
        let name = event["type"].as_str().unwrap_or_default();
        self.frames
            .push(Bytes::from(format!("event: {name}\ndata: {event}\n\n")));
    }

    /// Makes of a stream that just had its first pieces what the act wants.
    pub(crate) fn go_on(&mut self, act: &Act) -> bool {
        match act {
            Act::Slow => self.forever = self.frames.last().cloned(),
            Act::Break => self.breaks = true,
            _ => return true,
        }
        false
    }

    /// As a response; `ending` is told how it ended.
    pub(crate) fn respond(self, ending: Ending) -> Response<Body> {
        let state = (
            self.frames.into_iter(),
            self.forever,
            self.breaks,
            Some(ending),
        );
        let body = stream::unfold(
            state,
            |(mut frames, forever, breaks, mut ending)| async move {
                if let Some(frame) = frames.next() {
                    return Some((Ok(Frame::data(frame)), (frames, forever, breaks, ending)));
                }
                if let Some(frame) = forever.clone() {
                    tokio::time::sleep(PACE).await;
                    return Some((Ok(Frame::data(frame)), (frames, forever, breaks, ending)));
                }
                ending.take()?.whole();
                if breaks {
                    // What was said so far is to arrive before the end.
                    tokio::time::sleep(PACE).await;
                    let broken = io::Error::from(io::ErrorKind::ConnectionReset);
                    return Some((Err(broken), (frames, None, false, None)));
                }
                None
            },
        );
        let mut response = Response::new(StreamBody::new(body).boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }
}

/// A text in pieces, as a model says it.
pub(crate) fn pieces(text: &str) -> Vec<&str> {
    text.split_inclusive(' ').collect()
}
