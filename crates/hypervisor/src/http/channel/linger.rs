//! A refusal reaches a client that is in the middle of sending its body only when what it
//! sends is taken off the line: otherwise the connection is reset, and the client sees that
//! instead of the answer (RFC 9112 §9.6; seen with Node's `fetch`).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;

/// Most bytes that are thrown away for one refusal.
const MAX_BYTES: u64 = 128 << 20;

/// Longest time for it.
const WITHIN: Duration = Duration::from_secs(10);

/// A request body that is handed back when it is dropped before its end.
struct Lent<B: HttpBody> {
    body: Option<B>,
    back: Option<oneshot::Sender<B>>,
}

/// What is left of a body when whoever had it is done with it.
pub(super) struct Rest<B>(Option<oneshot::Receiver<B>>);

/// Lends a body out.
pub(super) fn lend<B>(body: B) -> (Body, Rest<B>)
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<axum::BoxError>,
{
    if body.is_end_stream() {
        return (Body::empty(), Rest(None));
    }
    let (back, rest) = oneshot::channel();
    let lent = Lent {
        body: Some(body),
        back: Some(back),
    };
    (Body::new(lent), Rest(Some(rest)))
}

impl<B: HttpBody<Data = Bytes> + Unpin> Rest<B> {
    /// Reads what is left and throws it away, within bounds. Nothing happens when the whole
    /// body was read, or is still being read.
    pub(super) async fn throw_away(self) {
        let left = self.0.and_then(|mut rest| rest.try_recv().ok());
        let Some(mut body) = left else { return };
        let all = async {
            let mut left = MAX_BYTES;
            while let Some(Ok(frame)) = body.frame().await {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                let Some(still) = left.checked_sub(bytes) else {
                    return;
                };
                left = still;
            }
        };
        // Too much or too slow: the connection is closed, as it would have been at once.
        let _ = tokio::time::timeout(WITHIN, all).await;
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Lent<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.back = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(HttpBody::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl<B: HttpBody> Drop for Lent<B> {
    fn drop(&mut self) {
        if let (Some(back), Some(body)) = (self.back.take(), self.body.take())
            && !body.is_end_stream()
        {
            // Nobody waits for it when the connection itself is gone.
            let _ = back.send(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::{StreamExt as _, stream};

    use super::*;

    /// `count` pieces of a MiB, and how many of them were read.
    fn pieces(count: usize) -> (Body, Arc<AtomicUsize>) {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let pieces = stream::iter(0..count).map(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Bytes::from_static(&[0; 1 << 20]))
        });
        (Body::from_stream(pieces), read)
    }

    #[tokio::test]
    async fn what_was_left_of_a_body_is_read_up_to_a_bound() {
        for (there, taken) in [(5, 5), (1000, 130)] {
            let (body, read) = pieces(there);
            let (mut lent, rest) = lend(body);
            assert!(lent.frame().await.unwrap().is_ok());
            drop(lent);
            rest.throw_away().await;
            assert_eq!(read.load(Ordering::Relaxed), taken);
        }
    }

    #[tokio::test]
    async fn a_body_that_is_still_being_read_is_left_alone() {
        let (body, read) = pieces(5);
        let (lent, rest) = lend(body);
        rest.throw_away().await;
        assert_eq!(read.load(Ordering::Relaxed), 0);
        assert_eq!(lent.collect().await.unwrap().to_bytes().len(), 5 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stalls_is_not_waited_for_long() {
        let stalled = stream::pending::<Result<Bytes, Infallible>>();
        let (lent, rest) = lend(Body::from_stream(stalled));
        drop(lent);
        let began = tokio::time::Instant::now();
        rest.throw_away().await;
        assert_eq!(began.elapsed(), WITHIN);
    }
}
