//! The public listener: whose host is it, and who answers (arch §2, §3).

pub(crate) mod channel;
pub mod client;
pub(crate) mod commands;
pub mod control;
mod failures;
pub(crate) mod lasting;
mod listener;
pub mod metrics;
pub(crate) mod ports;
pub mod problem;
pub mod runtime;
#[cfg(test)]
mod tests;
mod websocket;

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Method, Request, header};
use types::{Role, SandboxId};

use crate::app::App;
use crate::config::HostMatch;
use crate::error::Error;
pub use client::Client;
pub use listener::{ListenError, Listener};

/// Longest `Host` that is looked at: a DNS name and a port.
const MAX_AUTHORITY: usize = 260;

/// What the log says about a request beyond its line; whoever answers puts it into the
/// response's extensions.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The user on whose behalf.
    pub user: Option<String>,
    /// The role that was served.
    pub role: Option<Role>,
    /// The sandbox that answered.
    pub sandbox: Option<SandboxId>,
    /// Who owns the route: `hypervisor` or `sandbox` (arch §3).
    pub owner: Option<&'static str>,
}

/// Answers one request of the public listener.
pub async fn dispatch(
    app: Arc<App>,
    control: axum::Router,
    client: Client,
    mut request: Request<Body>,
) -> Response {
    let began = Instant::now();
    let request_id = client.request_id;
    let method = request.method().clone();
    // The query is never logged: it may hold a set-up link or a hand-over code.
    let path = request.uri().path().to_owned();
    let address = client.address;
    let mut host_text = String::new();
    request.extensions_mut().insert(client);
    let answer = async {
        match authority(&request) {
            Err(error) => error.into_response(),
            Ok(authority) => {
                host_text.clone_from(&authority);
                match app.config.origins.match_host(&authority) {
                    None => Error::MisdirectedRequest.into_response(),
                    Some(HostMatch::Control) => control::handle(control, request).await,
                    Some(host) => runtime::handle(Arc::clone(&app), host, request).await,
                }
            }
        }
    };
    let response = problem::with_request_id(request_id, answer).await;
    let facts = response
        .extensions()
        .get::<Facts>()
        .cloned()
        .unwrap_or_default();
    let owner = facts.owner.unwrap_or("hypervisor");
    app.metrics
        .request(owner, facts.role, response.status(), began.elapsed());
    tracing::info!(
        %request_id,
        %method,
        host = host_text,
        path,
        status = response.status().as_u16(),
        duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        user = facts.user.as_deref().unwrap_or("-"),
        role = facts.role.map_or("-", Role::as_str),
        sandbox = facts.sandbox.map(|id| id.to_string()).as_deref().unwrap_or("-"),
        owner,
        %address,
        "request"
    );
    response
}

/// The authority that a request is for. `Host` and the target's own authority have to
/// agree: a proxy in front and we would otherwise see two different hosts (RFC 9112 §3.2.2).
fn authority(request: &Request<Body>) -> Result<String, Error> {
    if request.method() == Method::CONNECT {
        return Err(Error::MethodNotAllowed);
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let from_header = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(
            host.to_str()
                .map_err(|_| Error::bad_request("the Host header is not text"))?,
        ),
        (Some(_), Some(_)) => return Err(Error::bad_request("there is more than one Host header")),
    };
    let from_target = request.uri().authority().map(http::uri::Authority::as_str);
    let authority = match (from_header, from_target) {
        (Some(host), Some(target)) if !host.eq_ignore_ascii_case(target) => {
            return Err(Error::bad_request(
                "the request's target and its Host header name different hosts",
            ));
        }
        (Some(host), _) => host,
        (None, Some(target)) => target,
        (None, None) => return Err(Error::bad_request("there is no Host header")),
    };
    if authority.len() > MAX_AUTHORITY {
        return Err(Error::MisdirectedRequest);
    }
    Ok(authority.to_ascii_lowercase())
}
