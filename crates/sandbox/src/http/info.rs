//! Health, and what the desktop shows about the sandbox.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use serde::Serialize;
use utoipa::ToSchema;

use crate::agent::Providers;
use crate::app::App;

/// How long the desktop waits for the list of models at most.
const PROVIDERS_TIMEOUT: Duration = Duration::from_secs(3);

/// The answer of `/health`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`: the process answers and its store can be read.
    pub status: &'static str,
    /// Version of the guest runtime.
    pub version: &'static str,
    /// The sandbox.
    pub sandbox_id: String,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
}

/// What the desktop shows about the sandbox.
#[derive(Debug, Serialize, ToSchema)]
pub struct Info {
    /// The owner's name.
    pub user: String,
    /// The role in which this request reached the sandbox: `live` or `dev`.
    pub role: String,
    /// The sandbox.
    pub sandbox_id: String,
    /// Number of swaps so far.
    pub generation: u64,
    /// Origin of the control plane, empty when the request did not come through it.
    pub control_origin: String,
    /// Origin that serves the `live` role.
    pub live_origin: String,
    /// Origin that serves the `dev` role.
    pub dev_origin: String,
    /// Version of the guest runtime.
    pub version: &'static str,
    /// The models that the agent can use; empty while the gateway does not answer.
    pub models: Providers,
}

/// Whether the guest runtime works.
#[utoipa::path(get, operation_id = "getHealth", path = "/health", tag = "runtime", responses((status = 200, body = Health)))]
pub async fn health(State(app): State<App>) -> Result<Json<Health>, super::ApiError> {
    app.store.head().await?;
    Ok(Json(Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        sandbox_id: app.identity.sandbox_id.clone(),
        uptime_seconds: app.started.elapsed().as_secs(),
    }))
}

/// Who and where this sandbox is, and what it can use.
#[utoipa::path(get, operation_id = "getInfo", path = "/api/info", tag = "runtime", responses((status = 200, body = Info)))]
pub async fn info(State(app): State<App>, headers: HeaderMap) -> Json<Info> {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let or = |text: String, other: &str| {
        if text.is_empty() {
            other.to_owned()
        } else {
            text
        }
    };
    let models = match tokio::time::timeout(PROVIDERS_TIMEOUT, app.channel.providers()).await {
        Ok(Ok(models)) => models,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the gateway's models are not known");
            Providers::default()
        }
        Err(_) => Providers::default(),
    };
    Json(Info {
        user: or(header("x-choir-user"), &app.identity.user),
        role: or(header("x-choir-role"), &app.identity.role),
        sandbox_id: app.identity.sandbox_id.clone(),
        generation: header("x-choir-generation").parse().unwrap_or_default(),
        control_origin: header("x-choir-control-origin"),
        live_origin: header("x-choir-live-origin"),
        dev_origin: header("x-choir-dev-origin"),
        version: env!("CARGO_PKG_VERSION"),
        models,
    })
}
