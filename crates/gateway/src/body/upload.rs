//! The request body as the upstream connection pulls it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{BoxError, RequestBody};
use crate::headers::clean_trailers;

/// How far a request body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UploadState {
    /// On its way.
    Sending,
    /// Complete.
    Done,
    /// Larger than its bound.
    TooLarge,
    /// Its sender went away or broke HTTP.
    ClientGone,
}

/// What the sender of a request knows about its body, which the connection has taken.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    bytes: AtomicU64,
    state: AtomicU8,
}

impl Upload {
    /// Changes whenever something moved.
    pub(crate) fn progress(&self) -> (u64, u8) {
        (
            self.bytes.load(Ordering::Relaxed),
            self.state.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn state(&self) -> UploadState {
        match self.state.load(Ordering::Relaxed) {
            0 => UploadState::Sending,
            1 => UploadState::Done,
            2 => UploadState::TooLarge,
            _ => UploadState::ClientGone,
        }
    }

    fn set(&self, state: UploadState) {
        let state = match state {
            UploadState::Sending => 0,
            UploadState::Done => 1,
            UploadState::TooLarge => 2,
            UploadState::ClientGone => 3,
        };
        self.state.store(state, Ordering::Relaxed);
    }
}

/// A request body with its bound.
pub(crate) struct UpstreamBody {
    inner: RequestBody,
    upload: Option<Arc<Upload>>,
    left: u64,
}

/// The body is larger than its bound.
#[derive(Debug, thiserror::Error)]
#[error("the request body is too large")]
struct TooLarge;

impl UpstreamBody {
    /// Wraps `inner`, which may have `limit` bytes. An empty body needs no watching.
    pub(crate) fn new(inner: RequestBody, limit: u64) -> Self {
        let upload = (!inner.is_end_stream()).then(Arc::default);
        Self {
            inner,
            upload,
            left: limit,
        }
    }

    /// To watch it from outside; `None` when there is no body.
    pub(crate) fn upload(&self) -> Option<Arc<Upload>> {
        self.upload.clone()
    }

    fn note(&self, state: UploadState) {
        if let Some(upload) = &self.upload {
            upload.set(state);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            None => {
                self.note(UploadState::Done);
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                self.note(UploadState::ClientGone);
                return Poll::Ready(Some(Err(error)));
            }
            Some(Ok(frame)) => frame,
        };
        let frame = match frame.into_data() {
            Ok(data) => {
                let length = data.len() as u64;
                let Some(left) = self.left.checked_sub(length) else {
                    self.note(UploadState::TooLarge);
                    return Poll::Ready(Some(Err(TooLarge.into())));
                };
                self.left = left;
                if let Some(upload) = &self.upload {
                    upload.bytes.fetch_add(length, Ordering::Relaxed);
                }
                Frame::data(data)
            }
            Err(frame) => match frame.into_trailers() {
                Ok(mut trailers) => {
                    clean_trailers(&mut trailers);
                    Frame::trailers(trailers)
                }
                Err(frame) => frame,
            },
        };
        if self.inner.is_end_stream() {
            self.note(UploadState::Done);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
