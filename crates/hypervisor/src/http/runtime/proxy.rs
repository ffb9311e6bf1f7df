//! The proxy: from a signed-in request to the sandbox that has the role (arch §2).

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use gateway::websocket::SocketTag;
use gateway::{HeaderRules, RequestBody, Scheme, ServiceWorkers};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use types::Role;

use super::contact::Contact;
use super::{RuntimeSession, Visit, browser};
use crate::error::Error;
use crate::http::lasting::CutBody;
use crate::store::RouteRow;

pub(super) const ROLE: HeaderName = HeaderName::from_static("x-choir-role");
const USER: HeaderName = HeaderName::from_static("x-choir-user");
pub(super) const GENERATION: HeaderName = HeaderName::from_static("x-choir-generation");
const CONTROL_ORIGIN: HeaderName = HeaderName::from_static("x-choir-control-origin");
const LIVE_ORIGIN: HeaderName = HeaderName::from_static("x-choir-live-origin");
const DEV_ORIGIN: HeaderName = HeaderName::from_static("x-choir-dev-origin");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl Visit {
    /// Serves a request of the origin's own user from the sandbox in a role.
    pub(super) async fn sandbox(
        &self,
        session: &RuntimeSession,
        route: &RouteRow,
        role: Role,
        prefixed: bool,
        head: Parts,
        body: Body,
    ) -> Result<Response, Error> {
        let websocket = self.check_origin(&head)?;
        let Some(instance) = self.app.sandboxes.running(route.sandbox(role)) else {
            return self
                .not_running(session, route, role, websocket, &head)
                .await;
        };
        let plane = self.app.sandboxes.plane();
        let contact = Contact::new(plane, route, role, &head, websocket)?;
        let upstream = plane.upstream(&instance)?;
        let rules = self.rules(session, route, role, prefixed)?;
        let tag = tag(session, route);
        if websocket {
            contact.socket(plane, &upstream, tag);
        }
        let forwarded = plane
            .forwarder
            .forward_tagged(
                Request::from_parts(head, RequestBody::new(body)),
                &upstream,
                &rules,
                tag,
            )
            .await;
        let mut response = forwarded.map_err(|error| refusal(&error))?;
        if websocket {
            self.look_again(session, route).await?;
        }
        contact.answered(plane, &mut response);
        Ok(response
            .map(|body| Body::new(CutBody::new(body, session.ended.clone())))
            .into_response())
    }

    /// What may have happened while a WebSocket was being opened, and must cut it.
    pub(super) async fn look_again(
        &self,
        session: &RuntimeSession,
        route: &RouteRow,
    ) -> Result<(), Error> {
        let now = self.app.sandboxes.plane().route(session.user.id).await?;
        if now.generation != route.generation {
            // A swap was published; it must not stay on what has become the other role.
            self.app.sandboxes.close_stale(&now, false);
        }
        if session.ended.is_cancelled() {
            // The same for a session that was ended meanwhile.
            let ended = tag(session, route).session;
            self.app
                .sandboxes
                .cut_off(session.user.id, &|session| session == ended);
        }
        Ok(())
    }

    /// Refuses what pages of other origins ask for; tells whether it is a WebSocket.
    pub(super) fn check_origin(&self, head: &Parts) -> Result<bool, Error> {
        let websocket = browser::is_websocket(&head.headers);
        let own_origin = self.origin.to_string();
        if websocket {
            let origin = head.headers.get(http::header::ORIGIN);
            if origin.is_none_or(|origin| origin.as_bytes() != own_origin.as_bytes()) {
                return Err(Error::CrossOrigin(
                    "this WebSocket was opened by a page of another origin",
                ));
            }
        } else if !browser::is_own(&head.method, &head.headers, &own_origin) {
            return Err(Error::CrossOrigin(
                "this request was made by a page of another origin",
            ));
        }
        Ok(websocket)
    }

    fn rules(
        &self,
        session: &RuntimeSession,
        route: &RouteRow,
        role: Role,
        prefixed: bool,
    ) -> Result<HeaderRules, Error> {
        let told = &session.told;
        let value = |text: String| HeaderValue::from_str(&text).map_err(Error::internal);
        Ok(HeaderRules {
            scheme: if self.origin.is_secure() {
                Scheme::Https
            } else {
                Scheme::Http
            },
            host: value(self.authority())?,
            client: self.client.address,
            prefix: prefixed.then_some("/dev"),
            set: vec![
                (ROLE, HeaderValue::from_static(role.as_str())),
                (USER, told.user.clone()),
                (GENERATION, HeaderValue::from(route.generation)),
                (CONTROL_ORIGIN, told.control_origin.clone()),
                (LIVE_ORIGIN, told.live_origin.clone()),
                (DEV_ORIGIN, told.dev_origin.clone()),
                (REQUEST_ID, value(self.request_id().to_string())?),
            ],
            service_workers: if prefixed {
                ServiceWorkers::Refuse
            } else {
                ServiceWorkers::Allow
            },
            counts_as_activity: true,
        })
    }
}

/// By what a WebSocket is found again when its session ends or its role moves.
pub(super) fn tag(session: &RuntimeSession, route: &RouteRow) -> SocketTag {
    SocketTag {
        session: session.id.as_uuid().as_u128(),
        generation: route.generation,
    }
}

/// A failed exchange in the words of the caller's problem.
pub(super) fn refusal(error: &gateway::ForwardError) -> Error {
    use gateway::ForwardError as Failure;
    match error {
        Failure::Ended => Error::SandboxNotRunning,
        Failure::Refused(refusal) => match error.status() {
            StatusCode::METHOD_NOT_ALLOWED => Error::MethodNotAllowed,
            StatusCode::FORBIDDEN => Error::forbidden(refusal.to_string()),
            _ => Error::bad_request(refusal.to_string()),
        },
        Failure::TooLarge { .. } => Error::TooLarge(error.to_string()),
        Failure::UploadStalled(_) | Failure::ClientGone => Error::bad_request(error.to_string()),
        Failure::Busy => Error::Unavailable(error.to_string()),
        Failure::FirstByteTimeout(_) => Error::GatewayTimeout(format!("the sandbox: {error}")),
        Failure::Unreachable(gateway::ConnectError::Timeout(_)) => {
            Error::GatewayTimeout("the sandbox did not accept a connection in time".to_owned())
        }
        Failure::Unreachable(_) | Failure::Closed(_) | Failure::BadResponse { .. } => {
            tracing::debug!(%error, "a sandbox did not answer as it should");
            Error::BadGateway(format!("the sandbox: {error}"))
        }
    }
}
