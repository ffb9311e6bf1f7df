//! The OpenAPI document; the desktop generates its types from it.

use axum::Json;
use utoipa::OpenApi;

/// The document.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "ChoirOS guest runtime",
        description = "What a sandbox serves on its runtime origin. Errors are problem documents (RFC 9457)."
    ),
    paths(
        super::info::health,
        super::info::info,
        super::events::list,
        super::events::stream,
        super::live::connect,
        super::conductor::execute,
        super::conductor::list,
        super::conductor::show,
        super::conductor::cancel,
        super::files::list,
        super::files::read,
        super::files::write,
        super::files::create_directory,
        super::files::rename,
        super::files::remove,
        super::terminals::open,
        super::terminals::list,
        super::terminals::close,
        super::terminals::connect,
        super::services::list,
        super::services::start,
        super::services::stop,
        super::services::kill,
        super::memory::remember,
        super::memory::recall,
        super::memory::forget,
    ),
    components(schemas(super::live::ClientMessage, super::live::ServerMessage))
)]
pub struct ApiDoc;

/// The document as JSON text, pretty-printed, with a newline at its end.
///
/// # Errors
/// When it does not serialize, which a test rules out.
pub fn text() -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&ApiDoc::openapi()).map(|text| text + "\n")
}

/// Serves the document.
pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(ApiDoc::openapi())
}
