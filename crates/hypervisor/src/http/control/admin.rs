//! `/admin/*`: invitations, accounts and the audit log.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use types::UserView;

use super::extract::{Json, id};
use super::route::{Access, Route};
use super::sandboxes::user;
use crate::actor::{Actor, Via};
use crate::app::App;
use crate::error::Error;
use crate::services::accounts::{self, DisableRequest};
use crate::services::invites::{self, InviteRequest};

/// Records that a page of the audit log has when it asks for no number.
const DEFAULT_TAIL: usize = 100;

/// Records read at once while somebody follows.
const BATCH: usize = 500;

/// How long a follower goes without being asked whether its session still lives.
const RECHECK: Duration = Duration::from_secs(30);

/// The routes of this resource.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/admin/invites", Access::Admin, list_invites),
        Route::post("/admin/invites", Access::Admin, create_invite),
        Route::delete("/admin/invites/{id}", Access::Admin, withdraw_invite),
        Route::get("/admin/users", Access::Admin, list_users),
        Route::post("/admin/users/{user}/disable", Access::Admin, disable_user),
        Route::post("/admin/users/{user}/enable", Access::Admin, enable_user),
        Route::get("/admin/audit", Access::Admin, tail_audit),
        Route::get("/admin/audit/verify", Access::Admin, verify_audit),
    ]
}

async fn list_invites(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<Value>, Error> {
    Ok(axum::Json(
        json!({ "invites": invites::list(&app, &actor).await? }),
    ))
}

async fn create_invite(
    State(app): State<Arc<App>>,
    actor: Actor,
    Json(request): Json<InviteRequest>,
) -> Result<Response, Error> {
    let (url, view) = invites::create(&app, &actor, &request).await?;
    Ok((
        StatusCode::CREATED,
        axum::Json(json!({ "url": url, "invite": view })),
    )
        .into_response())
}

async fn withdraw_invite(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(invite): Path<String>,
) -> Result<StatusCode, Error> {
    invites::withdraw(&app, &actor, id("invitation", &invite)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list_users(State(app): State<Arc<App>>, actor: Actor) -> Result<axum::Json<Value>, Error> {
    Ok(axum::Json(
        json!({ "users": accounts::list(&app, &actor).await? }),
    ))
}

async fn disable_user(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<axum::Json<UserView>, Error> {
    let request = if body.is_empty() {
        DisableRequest::default()
    } else {
        serde_json::from_slice(&body).map_err(|error| Error::bad_request(error.to_string()))?
    };
    accounts::disable(&app, &actor, &user(&name)?, &request)
        .await
        .map(axum::Json)
}

async fn enable_user(
    State(app): State<Arc<App>>,
    actor: Actor,
    Path(name): Path<String>,
) -> Result<axum::Json<UserView>, Error> {
    accounts::enable(&app, &actor, &user(&name)?)
        .await
        .map(axum::Json)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TailQuery {
    tail: Option<usize>,
    #[serde(default)]
    follow: Option<String>,
}

/// The last records as `application/x-ndjson`; with `follow` the ones to come, too.
async fn tail_audit(
    State(app): State<Arc<App>>,
    actor: Actor,
    Query(query): Query<TailQuery>,
) -> Result<Response, Error> {
    let entries = app
        .audit
        .tail(&actor, query.tail.unwrap_or(DEFAULT_TAIL))
        .await?;
    let follow = query
        .follow
        .is_some_and(|value| !matches!(value.as_str(), "0" | "false"));
    let lines = lines(&entries)?;
    let body = if follow {
        let next = entries.last().map_or(1, |entry| entry.seq + 1);
        follow_audit(app, actor, lines, next)
    } else {
        Body::from(lines)
    };
    let kind = HeaderValue::from_static("application/x-ndjson");
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}

fn lines(entries: &[ledger::Entry]) -> Result<Bytes, Error> {
    let mut lines = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut lines, entry).map_err(Error::internal)?;
        lines.push(b'\n');
    }
    Ok(lines.into())
}

fn follow_audit(app: Arc<App>, actor: Actor, first: Bytes, next: u64) -> Body {
    let head = app.audit.head();
    let begin = (app, actor, head, next, Some(first));
    Body::from_stream(stream::try_unfold(
        begin,
        |(app, actor, mut head, mut next, first)| async move {
            if let Some(first) = first {
                return Ok::<_, Error>(Some((first, (app, actor, head, next, None))));
            }
            loop {
                let entries = app.audit.since(&actor, next, BATCH).await?;
                if let Some(last) = entries.last() {
                    next = last.seq + 1;
                    return Ok(Some((lines(&entries)?, (app, actor, head, next, None))));
                }
                tokio::select! {
                    () = app.draining.cancelled() => return Ok(None),
                    () = tokio::time::sleep(RECHECK) => {}
                    changed = head.changed() => if changed.is_err() { return Ok(None) },
                }
                if !still_valid(&app, &actor).await? {
                    return Ok(None);
                }
            }
        },
    ))
}

/// A stream ends with what opened it.
async fn still_valid(app: &App, actor: &Actor) -> Result<bool, Error> {
    let now = app.clock.now_ms();
    match &actor.via {
        Via::Session(id) => Ok(app.store.session_lives(*id, now).await?),
        Via::ApiToken { id, .. } => Ok(app.store.token_lives(*id, now).await?),
        _ => Ok(false),
    }
}

/// Verifies the whole audit log.
async fn verify_audit(
    State(app): State<Arc<App>>,
    actor: Actor,
) -> Result<axum::Json<ledger::Report>, Error> {
    app.audit.verify(&actor).await.map(axum::Json)
}
