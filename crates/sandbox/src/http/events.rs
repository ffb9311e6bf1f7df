//! Reading the event store over HTTP.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use types::RunId;
use utoipa::{IntoParams, ToSchema};

use super::problem::{ApiError, Params, id};
use crate::app::App;
use crate::store::{Event, MAX_PAGE, StoreError};

/// Events of a listing where the client does not say how many.
const DEFAULT_LIMIT: u32 = 200;
/// Events read at once while streaming all of them.
const STREAM_PAGE: u32 = 32;

/// Which events to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Only events after this position.
    #[serde(default)]
    pub since_seq: i64,
    /// At most this many, 1 to 1000; 200 when absent.
    pub limit: Option<u32>,
    /// Only events of this kind.
    pub kind: Option<String>,
    /// Only events of this run.
    pub run_id: Option<String>,
}

/// Where to begin.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// Only events after this position.
    #[serde(default)]
    pub since_seq: i64,
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventPage {
    /// The events in order.
    pub events: Vec<Event>,
    /// What to send as `since_seq` for the next page.
    pub next_seq: i64,
}

/// A page of events in order.
#[utoipa::path(
    get, operation_id = "listEvents", path = "/logs/events", tag = "events", params(EventQuery),
    responses((status = 200, body = EventPage), (status = 400, body = super::ProblemSchema)),
)]
pub async fn list(
    State(app): State<App>,
    Params(query): Params<EventQuery>,
) -> Result<Json<EventPage>, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_PAGE);
    let run_id: Option<RunId> = query
        .run_id
        .as_deref()
        .map(|text| id(text, "run"))
        .transpose()?;
    let events = app
        .store
        .page(query.since_seq, limit, query.kind.as_deref(), run_id)
        .await?;
    let next_seq = events.last().map_or(query.since_seq, |event| event.seq);
    Ok(Json(EventPage { events, next_seq }))
}

/// All events that are stored now, one JSON document a line.
#[utoipa::path(
    get, operation_id = "streamEvents", path = "/logs/events.jsonl", tag = "events", params(StreamQuery),
    responses((status = 200, body = Event, content_type = "application/x-ndjson")),
)]
pub async fn stream(
    State(app): State<App>,
    Params(query): Params<StreamQuery>,
) -> Result<Response, ApiError> {
    let end = app.store.head().await?;
    let pages = stream::try_unfold(query.since_seq, move |cursor| {
        let store = app.store.clone();
        async move {
            if cursor >= end {
                return Ok(None);
            }
            let events = store.page(cursor, STREAM_PAGE, None, None).await?;
            let mut lines = Vec::new();
            let mut next = cursor;
            for event in events.iter().filter(|event| event.seq <= end) {
                serde_json::to_writer(&mut lines, event)
                    .map_err(|error| StoreError::Corrupt(error.to_string()))?;
                lines.push(b'\n');
                next = event.seq;
            }
            let done = next == cursor;
            Ok::<_, StoreError>((!done).then(|| (Bytes::from(lines), next)))
        }
    });
    Ok((
        [(CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(pages),
    )
        .into_response())
}
