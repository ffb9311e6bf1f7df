//! Preview origins: a port of the workbench in the browser, behind the same gate as the
//! runtime origin (arch §2).

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use gateway::{
    ConnectError, ForwardError, HeaderRules, PortError, RequestBody, Scheme, ServiceWorkers,
};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request};
use policy::Action;
use types::Role;

use super::{RuntimeSession, Visit, browser, pages, paths, proxy};
use crate::error::Error;
use crate::http::Facts;
use crate::http::lasting::CutBody;
use crate::services::authorize;
use crate::services::ports::{Ports, nothing_listens};
use crate::store::RouteRow;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl Visit {
    /// Answers a request on the origin of a port.
    pub(super) async fn preview(
        &self,
        port: u16,
        head: Parts,
        body: Body,
    ) -> Result<Response, Error> {
        // All other paths are the server's own, `/login` included.
        if let Some(rest) = paths::reserved(head.uri.path()) {
            return self.reserved(rest, &head).await;
        }
        let Some(session) = self.session(&head.headers).await? else {
            return self.sign_in(&head);
        };
        let route = self.app.sandboxes.plane().route(session.user.id).await?;
        let mut response = self
            .port(&session, &route, port, head, body)
            .await
            .unwrap_or_else(|error| self.problem(&error));
        response.extensions_mut().insert(Facts {
            user: Some(session.user.name.to_string()),
            role: Some(self.root),
            sandbox: Some(route.sandbox(self.root)),
            owner: Some("sandbox"),
        });
        Ok(response)
    }

    async fn port(
        &self,
        session: &RuntimeSession,
        route: &RouteRow,
        port: u16,
        head: Parts,
        body: Body,
    ) -> Result<Response, Error> {
        let role = self.root;
        let websocket = self.check_origin(&head)?;
        let sandbox = route.sandbox(role);
        authorize::on_sandbox(
            &self.actor(session),
            Action::UsePort,
            sandbox,
            session.user.id,
        )?;
        let Some(instance) = self.app.sandboxes.running(sandbox) else {
            return self
                .not_running(session, route, role, websocket, &head)
                .await;
        };
        let plane = self.app.sandboxes.plane();
        let ports = Ports::new(plane, &instance);
        let upstream = ports.upstream(port)?;
        let rules = HeaderRules {
            scheme: if self.origin.is_secure() {
                Scheme::Https
            } else {
                Scheme::Http
            },
            host: HeaderValue::from_str(&self.authority()).map_err(Error::internal)?,
            client: self.client.address,
            prefix: None,
            set: vec![(
                REQUEST_ID,
                HeaderValue::from_str(&self.request_id().to_string()).map_err(Error::internal)?,
            )],
            // An origin of its own: what it registers reaches nobody else.
            service_workers: ServiceWorkers::Allow,
            counts_as_activity: true,
        };
        let page = !websocket && browser::is_navigation(&head.method, &head.headers);
        let request = Request::from_parts(head, RequestBody::new(body));
        let tag = proxy::tag(session, route);
        let forwarded = plane
            .forwarder
            .forward_tagged(request, &upstream, &rules, tag)
            .await;
        let error = match forwarded {
            Ok(response) => {
                if websocket {
                    self.look_again(session, route).await?;
                }
                return Ok(response
                    .map(|body| Body::new(CutBody::new(body, session.ended.clone())))
                    .into_response());
            }
            Err(error) => error,
        };
        if !page {
            return Err(refusal(&error, port, role));
        }
        // People are shown what does listen; without the list the page is shorter.
        let listed = ports.view(&session.user.name, role).await.ok();
        let listed = listed.map(|listed| listed.ports).unwrap_or_default();
        let error = refusal(&error, port, role);
        Ok(pages::no_server(port, role, &error, &listed))
    }
}

/// A failed exchange in the words of the caller's problem.
fn refusal(error: &ForwardError, port: u16, role: Role) -> Error {
    match error {
        ForwardError::Unreachable(ConnectError::Port(PortError::NothingListens)) => {
            Error::BadGateway(nothing_listens(port, role))
        }
        ForwardError::Unreachable(ConnectError::Port(PortError::Reserved)) => {
            Error::forbidden(format!("port {port}: {}", PortError::Reserved))
        }
        ForwardError::Unreachable(ConnectError::Port(PortError::NotAccepted)) => {
            Error::GatewayTimeout(format!("port {port} of {role}: {}", PortError::NotAccepted))
        }
        ForwardError::Unreachable(ConnectError::Port(busy @ PortError::Busy)) => {
            Error::Unavailable(busy.to_string())
        }
        ForwardError::Unreachable(ConnectError::Port(PortError::Failed(_))) => {
            tracing::debug!(%error, "a port could not be reached");
            Error::BadGateway(format!("port {port} of {role} cannot be reached"))
        }
        ForwardError::BadResponse { .. } | ForwardError::Closed(_) => Error::BadGateway(format!(
            "what listens on port {port} of {role} does not answer as a web server does"
        )),
        other => proxy::refusal(other),
    }
}
