//! Runtime origins: hand-over, wait page, and the proxy to the sandbox (arch §2, §3).

mod browser;
mod contact;
mod entrance;
mod pages;
pub(crate) mod paths;
mod preview;
mod proxy;
mod sessions;
#[cfg(test)]
mod tests;
mod wait;

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use types::{RequestId, Role, UserName};

use super::{Client, Facts, problem};
use crate::actor::{Actor, Via};
use crate::app::App;
use crate::config::{HostMatch, Origin, RuntimeOrigins};
use crate::error::Error;
use paths::Owner;
pub(crate) use sessions::RuntimeSession;
pub use sessions::RuntimeSessions;

/// One request on a runtime origin, before anybody is known.
struct Visit {
    app: Arc<App>,
    client: Client,
    /// The user whose origin it is; `None` on the host that serves everybody.
    owner: Option<UserName>,
    /// What is at the root.
    root: Role,
    /// This origin.
    origin: Origin,
    /// The port that it is the origin of, when it is that of a port.
    port: Option<u16>,
}

/// Answers a request on a runtime origin.
pub async fn handle(app: Arc<App>, host: HostMatch, request: Request<Body>) -> Response {
    let Some(client) = request.extensions().get::<Client>().copied() else {
        return Error::internal("a request without a client").into_response();
    };
    let visit = match host {
        HostMatch::Runtime { user, role } => {
            let origin = app.config.origins.runtime_origin(&user, role);
            Visit {
                app,
                client,
                owner: Some(user),
                root: role,
                origin,
                port: None,
            }
        }
        HostMatch::Preview { user, role, port } => {
            let Some(origin) = app.config.origins.preview_origin(&user, role, port) else {
                return problem::response(&Error::MisdirectedRequest, Some(client.request_id));
            };
            Visit {
                app,
                client,
                owner: Some(user),
                root: role,
                origin,
                port: Some(port),
            }
        }
        HostMatch::SingleHost => match &app.config.origins.runtime {
            RuntimeOrigins::SingleHost { origin } => {
                let origin = origin.clone();
                Visit {
                    app,
                    client,
                    owner: None,
                    root: Role::Live,
                    origin,
                    port: None,
                }
            }
            RuntimeOrigins::PerUser { .. } => {
                return problem::response(&Error::MisdirectedRequest, Some(client.request_id));
            }
        },
        HostMatch::Control => {
            return problem::response(&Error::MisdirectedRequest, Some(client.request_id));
        }
    };
    let (head, body) = request.into_parts();
    match visit.answer(head, body).await {
        Ok(response) => response,
        Err(error) => visit.problem(&error),
    }
}

impl Visit {
    async fn answer(&self, head: Parts, body: Body) -> Result<Response, Error> {
        if let Some(port) = self.port {
            return self.preview(port, head, body).await;
        }
        match paths::owner(self.root, head.uri.path()) {
            Owner::Control(page) => redirect(
                StatusCode::FOUND,
                &format!("{}{page}", self.app.config.origins.control),
            ),
            Owner::Choir(rest) => self.reserved(rest, &head).await,
            Owner::DevSlash => {
                let query = head
                    .uri
                    .query()
                    .map(|query| format!("?{query}"))
                    .unwrap_or_default();
                redirect(StatusCode::PERMANENT_REDIRECT, &format!("/dev/{query}"))
            }
            Owner::Sandbox {
                role,
                path,
                prefixed,
            } => {
                if prefixed && self.app.config.origins.redirect_dev_prefix && self.owner.is_some() {
                    return self.to_dev_origin(path, head.uri.query());
                }
                let Some(session) = self.session(&head.headers).await? else {
                    return self.sign_in(&head);
                };
                let user = session.user.name.to_string();
                let route = self.app.sandboxes.plane().route(session.user.id).await?;
                let mut response = self
                    .sandbox(&session, &route, role, prefixed, head, body)
                    .await
                    .unwrap_or_else(|error| self.problem(&error));
                response.extensions_mut().insert(Facts {
                    user: Some(user),
                    role: Some(role),
                    sandbox: Some(route.sandbox(role)),
                    owner: Some("sandbox"),
                });
                Ok(response)
            }
        }
    }

    /// What is at `/.choir/`.
    async fn reserved(&self, rest: &str, head: &Parts) -> Result<Response, Error> {
        let reading = matches!(head.method, Method::GET | Method::HEAD);
        match rest {
            // Not HEAD: it would use the code up and show nothing for it.
            "enter" if head.method == Method::GET => self.enter(head).await,
            "theme.css" if reading => Ok(pages::stylesheet()),
            "wait.js" if reading => Ok(pages::script()),
            "status" if reading => self.status(head).await,
            "start" if head.method == Method::POST => self.start(head).await,
            "enter" | "theme.css" | "wait.js" | "status" | "start" => Err(Error::MethodNotAllowed),
            _ => Err(Error::NotFound("page")),
        }
    }

    /// The session that a request shows, if it is good here: for this host, and of the user
    /// whose origin it is. Anybody else's counts as none.
    async fn session(&self, headers: &HeaderMap) -> Result<Option<Arc<RuntimeSession>>, Error> {
        let Some(cookie) =
            browser::cookie(headers, browser::SESSION_COOKIE, self.origin.is_secure())
        else {
            return Ok(None);
        };
        let found = self
            .app
            .runtime_sessions
            .find(&self.app, cookie, self.origin.host())
            .await?;
        Ok(found.filter(|session| {
            self.owner
                .as_ref()
                .is_none_or(|owner| *owner == session.user.name)
        }))
    }

    fn actor(&self, session: &RuntimeSession) -> Actor {
        Actor {
            user: Some(session.user.clone()),
            via: Via::RuntimeSession(session.id),
            request_id: self.client.request_id,
            address: Some(self.client.address),
        }
    }

    fn to_dev_origin(&self, path: &str, query: Option<&str>) -> Result<Response, Error> {
        let Some(owner) = &self.owner else {
            return Err(Error::NotFound("page"));
        };
        let origin = self.app.config.origins.runtime_origin(owner, Role::Dev);
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        redirect(
            StatusCode::TEMPORARY_REDIRECT,
            &format!("{origin}{path}{query}"),
        )
    }

    fn problem(&self, error: &Error) -> Response {
        problem::response(error, Some(self.request_id()))
    }

    const fn request_id(&self) -> RequestId {
        self.client.request_id
    }
}

/// A redirect that nobody keeps and that tells the next page nothing.
fn redirect(status: StatusCode, location: &str) -> Result<Response, Error> {
    let mut response = status.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::LOCATION,
        HeaderValue::from_str(location).map_err(Error::internal)?,
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    Ok(response)
}
