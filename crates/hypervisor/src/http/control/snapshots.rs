//! `/me/sandboxes/{role}/snapshots*`, `/me/sandboxes/clone`, and the same for admins.
//!
//! What takes its time answers with one JSON document a line (`types::CopyUpdate`): progress
//! as it changes, and at last `done` or `failed`. It goes on when the client goes away.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use tokio::sync::{oneshot, watch};
use types::{CopyOutcome, CopyProgress, CopyUpdate, SnapshotId, SnapshotView, SnapshotsView};

use super::extract::{Json, id};
use super::route::{Access, Route};
use super::sandboxes::{role, user};
use crate::actor::{Actor, Scope};
use crate::app::App;
use crate::error::Error;
use crate::http::problem;
use crate::services::sandboxes::Whose;
use crate::services::sandboxes::snapshots::{Begun, Change};

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    let own = Access::User(Scope::Sandboxes);
    vec![
        Route::post("/me/sandboxes/clone", own, clone_live),
        Route::get("/me/sandboxes/{role}/snapshots", own, list),
        Route::post("/me/sandboxes/{role}/snapshots", own, take),
        Route::post("/me/sandboxes/{role}/snapshots/cancel", own, cancel),
        Route::post("/me/sandboxes/{role}/snapshots/{id}/restore", own, restore),
        Route::patch("/me/sandboxes/{role}/snapshots/{id}", own, change),
        Route::delete("/me/sandboxes/{role}/snapshots/{id}", own, delete),
        Route::post("/admin/sandboxes/{user}/clone", Access::Admin, clone_of),
        Route::get(
            "/admin/sandboxes/{user}/{role}/snapshots",
            Access::Admin,
            list_of,
        ),
        Route::post(
            "/admin/sandboxes/{user}/{role}/snapshots",
            Access::Admin,
            take_of,
        ),
        Route::post(
            "/admin/sandboxes/{user}/{role}/snapshots/cancel",
            Access::Admin,
            cancel_of,
        ),
        Route::post(
            "/admin/sandboxes/{user}/{role}/snapshots/{id}/restore",
            Access::Admin,
            restore_of,
        ),
        Route::patch(
            "/admin/sandboxes/{user}/{role}/snapshots/{id}",
            Access::Admin,
            change_of,
        ),
        Route::delete(
            "/admin/sandboxes/{user}/{role}/snapshots/{id}",
            Access::Admin,
            delete_of,
        ),
    ]
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TakeRequest {
    #[serde(default)]
    name: Option<String>,
}

fn snapshot(text: &str) -> Result<SnapshotId, Error> {
    id("snapshot", text)
}

async fn list(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
) -> Result<axum::Json<SnapshotsView>, Error> {
    let listed = app.sandboxes.snapshots(&actor, Whose::Own, role(&of)?);
    listed.await.map(axum::Json)
}

async fn list_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((owner, of)): Path<(String, String)>,
) -> Result<axum::Json<SnapshotsView>, Error> {
    let owner = user(&owner)?;
    let listed = app
        .sandboxes
        .snapshots(&actor, Whose::Of(&owner), role(&of)?);
    listed.await.map(axum::Json)
}

async fn take(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
    Json(asked): Json<TakeRequest>,
) -> Result<Response, Error> {
    let begun = app
        .sandboxes
        .snapshot(&actor, Whose::Own, role(&of)?, asked.name);
    begun.await.map(|begun| answer(begun, &actor))
}

async fn take_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((owner, of)): Path<(String, String)>,
    Json(asked): Json<TakeRequest>,
) -> Result<Response, Error> {
    let owner = user(&owner)?;
    let begun = app
        .sandboxes
        .snapshot(&actor, Whose::Of(&owner), role(&of)?, asked.name);
    begun.await.map(|begun| answer(begun, &actor))
}

async fn restore(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((of, id)): Path<(String, String)>,
) -> Result<Response, Error> {
    let begun = app
        .sandboxes
        .restore(&actor, Whose::Own, role(&of)?, snapshot(&id)?);
    begun.await.map(|begun| answer(begun, &actor))
}

async fn restore_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((owner, of, id)): Path<(String, String, String)>,
) -> Result<Response, Error> {
    let owner = user(&owner)?;
    let begun = app
        .sandboxes
        .restore(&actor, Whose::Of(&owner), role(&of)?, snapshot(&id)?);
    begun.await.map(|begun| answer(begun, &actor))
}

async fn clone_live(State(app): State<Arc<App>>, actor: Actor) -> Result<Response, Error> {
    let begun = app.sandboxes.clone_live(&actor, Whose::Own);
    begun.await.map(|begun| answer(begun, &actor))
}

async fn clone_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(owner): Path<String>,
) -> Result<Response, Error> {
    let owner = user(&owner)?;
    let begun = app.sandboxes.clone_live(&actor, Whose::Of(&owner));
    begun.await.map(|begun| answer(begun, &actor))
}

async fn change(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((of, id)): Path<(String, String)>,
    Json(change): Json<Change>,
) -> Result<axum::Json<SnapshotView>, Error> {
    let changed =
        app.sandboxes
            .change_snapshot(&actor, Whose::Own, role(&of)?, snapshot(&id)?, change);
    changed.await.map(axum::Json)
}

async fn change_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((owner, of, id)): Path<(String, String, String)>,
    Json(change): Json<Change>,
) -> Result<axum::Json<SnapshotView>, Error> {
    let (owner, role, id) = (user(&owner)?, role(&of)?, snapshot(&id)?);
    let whose = Whose::Of(&owner);
    let changed = app
        .sandboxes
        .change_snapshot(&actor, whose, role, id, change);
    changed.await.map(axum::Json)
}

async fn delete(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((of, id)): Path<(String, String)>,
) -> Result<StatusCode, Error> {
    let deleted = app
        .sandboxes
        .delete_snapshot(&actor, Whose::Own, role(&of)?, snapshot(&id)?);
    deleted.await.map(|()| StatusCode::NO_CONTENT)
}

async fn delete_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((owner, of, id)): Path<(String, String, String)>,
) -> Result<StatusCode, Error> {
    let (owner, role, id) = (user(&owner)?, role(&of)?, snapshot(&id)?);
    let deleted = app
        .sandboxes
        .delete_snapshot(&actor, Whose::Of(&owner), role, id);
    deleted.await.map(|()| StatusCode::NO_CONTENT)
}

async fn cancel(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(of): Path<String>,
) -> Result<StatusCode, Error> {
    let cancelled = app
        .sandboxes
        .cancel_copying(&actor, Whose::Own, role(&of)?)
        .await?;
    nothing_to_cancel(cancelled)
}

async fn cancel_of(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path((owner, of)): Path<(String, String)>,
) -> Result<StatusCode, Error> {
    let owner = user(&owner)?;
    let cancelled = app
        .sandboxes
        .cancel_copying(&actor, Whose::Of(&owner), role(&of)?)
        .await?;
    nothing_to_cancel(cancelled)
}

fn nothing_to_cancel(cancelled: bool) -> Result<StatusCode, Error> {
    if cancelled {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::conflict("nothing is being copied"))
    }
}

/// What follows the copying, until it is done.
struct Following {
    progress: watch::Receiver<CopyProgress>,
    outcome: oneshot::Receiver<Result<CopyOutcome, Error>>,
    request: types::RequestId,
    first: bool,
}

fn answer(begun: Begun, actor: &Actor) -> Response {
    let following = Following {
        progress: begun.progress,
        outcome: begun.outcome,
        request: actor.request_id,
        first: true,
    };
    let lines = futures_util::stream::unfold(Some(following), next_line);
    let mut response = Body::from_stream(lines).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies in front would otherwise wait for more.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

async fn next_line(
    following: Option<Following>,
) -> Option<(Result<Bytes, Infallible>, Option<Following>)> {
    let mut following = following?;
    if std::mem::take(&mut following.first) {
        let update = CopyUpdate::Progress(following.progress.borrow_and_update().clone());
        return Some((Ok(line(&update)), Some(following)));
    }
    tokio::select! {
        biased;
        outcome = &mut following.outcome => {
            let outcome = outcome.unwrap_or_else(|_| {
                Err(Error::internal("the copying ended without a word"))
            });
            let update = match outcome {
                Ok(outcome) => CopyUpdate::Done(Box::new(outcome)),
                Err(error) => {
                    CopyUpdate::Failed(Box::new(problem::describe(&error, Some(following.request))))
                }
            };
            Some((Ok(line(&update)), None))
        }
        Ok(()) = following.progress.changed() => {
            let update = CopyUpdate::Progress(following.progress.borrow_and_update().clone());
            Some((Ok(line(&update)), Some(following)))
        }
    }
}

fn line(update: &CopyUpdate) -> Bytes {
    // Plain data: it always serializes.
    let mut line = serde_json::to_vec(update).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
