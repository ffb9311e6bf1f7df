//! What happens when the sandbox does not run: a navigation wakes it and waits on a page, an
//! API call is told to come back, a WebSocket is refused (arch §4).

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use types::{Role, SandboxState};

use super::{RuntimeSession, Visit, browser, pages, paths, redirect};
use crate::error::Error;
use crate::services::audit::Entry;
use crate::store::RouteRow;

impl Visit {
    pub(super) async fn not_running(
        &self,
        session: &RuntimeSession,
        route: &RouteRow,
        role: Role,
        websocket: bool,
        head: &Parts,
    ) -> Result<Response, Error> {
        if websocket || !browser::is_navigation(&head.method, &head.headers) {
            return Err(Error::SandboxNotRunning);
        }
        let next = head
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let woken = self
            .app
            .sandboxes
            .wake(&self.actor(session), route, role)
            .await;
        match woken {
            Err(error @ (Error::HostFull { .. } | Error::TooManyRunning { .. })) => {
                return Ok(pages::full(role, &error, paths::safe_next(next)));
            }
            other => other?,
        }
        let sandbox = route.sandbox(role);
        let copied = self.app.sandboxes.copied(sandbox);
        let status = self.app.sandboxes.status(sandbox);
        let copied = copied.as_deref();
        Ok(pages::wait(role, &status, copied, paths::safe_next(next)))
    }

    /// `/.choir/status?role=…`, which the wait page polls.
    pub(super) async fn status(&self, head: &Parts) -> Result<Response, Error> {
        let session = self.own_session(head).await?;
        let role = self.role_of(head.uri.query().unwrap_or_default())?;
        let route = self.app.sandboxes.plane().route(session.user.id).await?;
        let sandbox = route.sandbox(role);
        let copied = self.app.sandboxes.copied(sandbox);
        let status = self.app.sandboxes.status(sandbox);
        let mut response = Json(json!({
            "role": role,
            "state": status.state,
            "copied": copied,
            "reason": status.error.as_ref().map(|error| &error.message),
            "hint": status.error.as_ref().and_then(|error| error.hint.as_ref()),
            "generation": route.generation,
        }))
        .into_response();
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// `POST /.choir/start`: the button of the page that shows a failure.
    pub(super) async fn start(&self, head: &Parts) -> Result<Response, Error> {
        let session = self.own_session(head).await?;
        let query = head.uri.query().unwrap_or_default();
        let role = self.role_of(query)?;
        let next = url::form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name == "next")
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default();
        let route = self.app.sandboxes.plane().route(session.user.id).await?;
        let sandbox = route.sandbox(role);
        if self.app.sandboxes.status(sandbox).state == SandboxState::Failed {
            let entry = Entry::allowed("sandbox.clear_failure", sandbox.to_string())
                .in_sandbox(sandbox, Some(role));
            self.app.audit.record(&self.actor(&session), entry).await?;
            self.app.sandboxes.clear_failure(sandbox).await;
        }
        // Opening the page again wakes it.
        redirect(StatusCode::SEE_OTHER, paths::safe_next(&next))
    }

    async fn own_session(&self, head: &Parts) -> Result<std::sync::Arc<RuntimeSession>, Error> {
        if !browser::is_own(&head.method, &head.headers, &self.origin.to_string()) {
            return Err(Error::CrossOrigin(
                "this request was made by a page of another origin",
            ));
        }
        self.session(&head.headers)
            .await?
            .ok_or(Error::Unauthenticated)
    }

    fn role_of(&self, query: &str) -> Result<Role, Error> {
        let asked = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "role");
        match asked {
            None => Ok(self.root),
            // The origin of `dev` shows nothing of `live`.
            Some((_, role)) => match role.parse() {
                Ok(role) if self.root == Role::Live || role == Role::Dev => Ok(role),
                _ => Err(Error::bad_request("role is live or dev")),
            },
        }
    }
}
