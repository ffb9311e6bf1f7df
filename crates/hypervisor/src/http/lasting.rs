//! Streams that outlast their request's look at a session: they end when the session or
//! token behind them does.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
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
    response.map(|body| {
        let guard = token.clone().drop_guard();
        let frames = futures_util::stream::unfold((body, token, guard), |(mut body, token, guard)| async move {
            let frame: Result<Frame<bytes::Bytes>, gateway::BoxError> = tokio::select! {
                biased;
                () = token.cancelled() => Err("what this stream was opened with has ended".into()),
                frame = body.frame() => frame?.map_err(Into::into),
            };
            Some((frame, (body, token, guard)))
        });
        Body::new(StreamBody::new(frames))
    })
}
