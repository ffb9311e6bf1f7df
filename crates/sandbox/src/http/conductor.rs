//! The agent over HTTP.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use types::{ErrorCode, RunId};
use utoipa::{IntoParams, ToSchema};

use super::problem::{ApiError, JsonBody, Params, id};
use crate::agent::{ConductorError, MAX_RUNS, Task};
use crate::app::App;
use crate::store::{Event, MAX_PAGE, Run};

/// Runs of a listing where the client does not say how many.
const DEFAULT_LIMIT: u32 = 50;

/// A run that was started.
#[derive(Debug, Serialize, ToSchema)]
pub struct Started {
    /// The run.
    #[schema(value_type = String, format = "uuid")]
    pub run_id: RunId,
}

/// Which runs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RunQuery {
    /// At most this many, 1 to 1000; 50 when absent.
    pub limit: Option<u32>,
    /// Only runs that began before this one.
    pub before: Option<String>,
}

/// Runs, the latest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct Runs {
    /// The runs.
    pub runs: Vec<Run>,
}

/// A run with its transcript.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunDetail {
    /// The run.
    pub run: Run,
    /// Its events in order, at most 1000; `/logs/events?run_id=` has the rest.
    pub events: Vec<Event>,
}

impl From<ConductorError> for ApiError {
    fn from(error: ConductorError) -> Self {
        match error {
            ConductorError::Task(_) | ConductorError::Model { .. } => {
                Self::bad_request(error.to_string())
            }
            ConductorError::Format { .. } => Self::bad_request(error.to_string()).with_hint(
                "the operator can offer Gemini and Bedrock by their OpenAI-compatible addresses, with kind = \"openai\"",
            ),
            ConductorError::NoModel => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Unavailable,
                error.to_string(),
            )
            .with_hint("ask the operator to configure a provider in the hypervisor"),
            ConductorError::Busy => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                ErrorCode::RateLimited,
                error.to_string(),
            )
            .with_hint(format!(
                "at most {MAX_RUNS} runs work at a time; wait or cancel one"
            )),
            ConductorError::NotRunning => {
                Self::new(StatusCode::CONFLICT, ErrorCode::Conflict, error.to_string())
            }
            ConductorError::Channel(error) => error.into(),
            ConductorError::Store(error) => error.into(),
        }
    }
}

/// Starts a run of the agent.
#[utoipa::path(
    post, operation_id = "executeTask", path = "/conductor/execute", tag = "conductor", request_body = Task,
    responses(
        (status = 202, body = Started), (status = 400, body = super::ProblemSchema),
        (status = 429, body = super::ProblemSchema), (status = 503, body = super::ProblemSchema),
    ),
)]
pub async fn execute(
    State(app): State<App>,
    JsonBody(task): JsonBody<Task>,
) -> Result<Response, ApiError> {
    let run_id = app.conductor.start(task).await?;
    Ok((StatusCode::ACCEPTED, Json(Started { run_id })).into_response())
}

/// Runs, the latest first.
#[utoipa::path(
    get, operation_id = "listRuns", path = "/conductor/runs", tag = "conductor", params(RunQuery),
    responses((status = 200, body = Runs)),
)]
pub async fn list(
    State(app): State<App>,
    Params(query): Params<RunQuery>,
) -> Result<Json<Runs>, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_PAGE);
    let before = query
        .before
        .as_deref()
        .map(|text| id(text, "run"))
        .transpose()?;
    Ok(Json(Runs {
        runs: app.store.runs(limit, before).await?,
    }))
}

/// A run and its transcript.
#[utoipa::path(
    get, operation_id = "getRun", path = "/conductor/runs/{id}", tag = "conductor",
    params(("id" = String, Path, description = "The run")),
    responses((status = 200, body = RunDetail), (status = 404, body = super::ProblemSchema)),
)]
pub async fn show(
    State(app): State<App>,
    Path(text): Path<String>,
) -> Result<Json<RunDetail>, ApiError> {
    let run_id: RunId = id(&text, "run")?;
    let run = app.store.run(run_id).await?;
    let run = run.ok_or_else(|| ApiError::not_found("there is no such run"))?;
    let events = app.store.page(0, MAX_PAGE, None, Some(run_id)).await?;
    Ok(Json(RunDetail { run, events }))
}

/// Cancels a run: its command is killed and its model call is dropped.
#[utoipa::path(
    post, operation_id = "cancelRun", path = "/conductor/runs/{id}/cancel", tag = "conductor",
    params(("id" = String, Path, description = "The run")),
    responses(
        (status = 202, body = Started), (status = 404, body = super::ProblemSchema),
        (status = 409, body = super::ProblemSchema),
    ),
)]
pub async fn cancel(
    State(app): State<App>,
    Path(text): Path<String>,
) -> Result<Response, ApiError> {
    let run_id: RunId = id(&text, "run")?;
    if app.store.run(run_id).await?.is_none() {
        return Err(ApiError::not_found("there is no such run"));
    }
    app.conductor.cancel(run_id)?;
    Ok((StatusCode::ACCEPTED, Json(Started { run_id })).into_response())
}
