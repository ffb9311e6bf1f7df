//! Streams that outlast their request's look at a session: they end when the session or
//! token behind them does.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use types::UserId;

use crate::actor::{Actor, Via};
use crate::app::App;

/// A token that is cancelled with `parent`, and as soon as what the actor came through has
/// been ended. The watch over it ends when the caller cancels it.
pub(crate) fn lasting(
    app: &Arc<App>,
    actor: &Actor,
    parent: &CancellationToken,
) -> CancellationToken {
    let token = parent.child_token();
    let Some(user) = actor.user.as_ref().map(|user| user.id) else {
        return token;
    };
    let (app, via, watched) = (Arc::clone(app), actor.via.clone(), token.clone());
    let mut ended = app.ended.subscribe();
    tokio::spawn(async move {
        loop {
            let somebody = tokio::select! {
                () = watched.cancelled() => return,
                somebody = ended.recv() => somebody,
            };
            let concerned = match somebody {
                Ok(named) => named == user,
                Err(RecvError::Lagged(_)) => true,
                Err(RecvError::Closed) => return,
            };
            if concerned && !still_valid(&app, user, &via).await {
                return watched.cancel();
            }
        }
    });
    token
}

async fn still_valid(app: &App, user: UserId, via: &Via) -> bool {
    let now = app.clock.now_ms();
    let valid = match via {
        Via::Session(id) | Via::RecoverySession(id) | Via::RuntimeSession(id) => {
            app.store.session_lives(*id, now).await
        }
        Via::ApiToken { id, .. } => {
            let tokens = app.store.tokens(user).await;
            tokens.map(|tokens| {
                tokens
                    .iter()
                    .any(|token| token.id == *id && token.expires_at > now)
            })
        }
        Via::Channel { .. } | Via::Internal | Via::Nothing => Ok(true),
    };
    // A database that cannot be asked cuts the stream: nobody vouches for it any more.
    valid.unwrap_or(false)
}

/// A response whose body breaks off when `token` is cancelled, and cancels it at its end.
pub(crate) fn bound(response: Response, token: CancellationToken) -> Response {
    let guard = token.clone().drop_guard();
    holding(
        response.map(|body| Body::new(CutBody::new(body, token))),
        guard,
    )
}

/// A response that holds on to something until its body has ended.
pub(crate) fn holding<T: Send + Unpin + 'static>(response: Response, held: T) -> Response {
    response.map(|body| Body::new(HeldBody { body, _held: held }))
}

struct HeldBody<T> {
    body: Body,
    _held: T,
}

impl<T: Unpin> http_body::Body for HeldBody<T> {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that breaks off when what it was opened with ends.
pub(crate) struct CutBody<B> {
    inner: B,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<B> CutBody<B> {
    pub(crate) fn new(inner: B, ended: CancellationToken) -> Self {
        Self {
            inner,
            ended: Box::pin(ended.cancelled_owned()),
        }
    }
}

impl<B> http_body::Body for CutBody<B>
where
    B: http_body::Body + Unpin,
    B::Error: Into<gateway::BoxError>,
{
    type Data = B::Data;
    type Error = gateway::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, gateway::BoxError>>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(
                "what this stream was opened with has ended".into()
            )));
        }
        Pin::new(&mut self.inner).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
