//! Memory over HTTP.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::{ApiError, JsonBody, Params};
use crate::app::App;
use crate::memory::{self, MAX_RECALLED, Memory};

/// Memories of an answer where the client does not say how many.
const DEFAULT_LIMIT: u32 = 20;

/// Something to remember.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMemory {
    /// The text, at most 8 KiB.
    pub text: String,
    /// At most 16 words to find it by.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// What to recall.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RecallQuery {
    /// Words, any of which have to match; the latest memories when absent.
    #[serde(default)]
    pub q: String,
    /// Only memories with this tag.
    pub tag: Option<String>,
    /// At most this many, 1 to 100; 20 when absent.
    pub limit: Option<u32>,
}

/// Memories, best first.
#[derive(Debug, Serialize, ToSchema)]
pub struct Memories {
    /// The memories.
    pub memories: Vec<Memory>,
}

/// Remembers a text.
#[utoipa::path(
    post, operation_id = "remember", path = "/api/memory", tag = "memory", request_body = NewMemory,
    responses((status = 201, body = Memory), (status = 400, body = super::ProblemSchema)),
)]
pub async fn remember(
    State(app): State<App>,
    JsonBody(new): JsonBody<NewMemory>,
) -> Result<Response, ApiError> {
    let memory = memory::remember(&app.store, &new.text, &new.tags, None).await?;
    Ok((StatusCode::CREATED, Json(memory)).into_response())
}

/// Recalls memories.
#[utoipa::path(
    get, operation_id = "recall", path = "/api/memory", tag = "memory", params(RecallQuery),
    responses((status = 200, body = Memories)),
)]
pub async fn recall(
    State(app): State<App>,
    Params(query): Params<RecallQuery>,
) -> Result<Json<Memories>, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_RECALLED);
    let memories = memory::recall(&app.store, &query.q, query.tag.as_deref(), limit).await?;
    Ok(Json(Memories { memories }))
}

/// Forgets a memory: its text is gone from the memory and its index.
#[utoipa::path(
    delete, operation_id = "forget", path = "/api/memory/{id}", tag = "memory",
    params(("id" = String, Path, description = "The memory")),
    responses((status = 204), (status = 404, body = super::ProblemSchema)),
)]
pub async fn forget(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    memory::forget(&app.store, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
