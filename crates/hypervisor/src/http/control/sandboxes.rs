//! `/me/sandboxes*` and `/admin/sandboxes*`.

use std::sync::Arc;

use axum::Router;

use crate::app::App;

/// The routes of this resource.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
}
