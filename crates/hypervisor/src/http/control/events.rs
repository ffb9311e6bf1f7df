//! `GET /me/events`: the caller's sandboxes, swaps and notices as server-sent events.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};

use super::route::{Access, Route};
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::error::Error;
use crate::http::lasting::{bound, lasting};
use crate::services::sandboxes::follow::Follower;

/// A comment after this much silence shows both ends that the other is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// First words: how long a browser waits before it asks again after a loss, in milliseconds.
const FIRST: &str = "retry: 2000\n\n";

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    vec![Route::get(
        "/me/events",
        Access::User(Scope::Sandboxes),
        events,
    )]
}

async fn events(State(app): State<Arc<App>>, actor: Actor) -> Result<Response, Error> {
    let follower = app.sandboxes.follow(&actor).await?;
    let pieces = futures_util::stream::unfold(Some((follower, true)), piece);
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    Ok(bound(response, lasting(&app, &actor, &app.draining)))
}

type Following = Option<(Follower, bool)>;

/// The next event, or a comment; an error ends the stream, and the browser asks again.
async fn piece(following: Following) -> Option<(Result<Bytes, Error>, Following)> {
    let (mut follower, first) = following?;
    let text = match tokio::time::timeout(KEEP_ALIVE, follower.next()).await {
        Err(_) => ":\n\n".to_owned(),
        Ok(Err(error)) => return Some((Err(error), None)),
        Ok(Ok(snapshot)) => {
            // JSON has no line breaks of its own.
            let json = serde_json::to_string(&snapshot).unwrap_or_default();
            let first = if first { FIRST } else { "" };
            format!("{first}event: state\ndata: {json}\n\n")
        }
    };
    Some((Ok(Bytes::from(text)), Some((follower, false))))
}
