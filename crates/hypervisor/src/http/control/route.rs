//! The route table of the control origin. The router is built from it and from nothing else,
//! so what a route demands stands in one place and is enforced in one place (style 7).

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};
use http::Method;
use serde::Serialize;

use super::gate::{Gate, gate};
use crate::actor::Scope;
use crate::app::App;
use crate::services::rate::Attempt;

/// Largest body that a route takes unless it says otherwise, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// Who may use a route. Enforced before the handler; the service authorizes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody. What changes state has to come from our own pages.
    Public,
    /// A program that is no browser, without cookies. Gives nothing away by itself.
    Program,
    /// A page navigation with a session; without one it is redirected to `/login`.
    Page,
    /// A session, or a token with this scope.
    User(Scope),
    /// A full session in a browser; no token.
    Session,
    /// A session or token of the user, of any scope.
    Anyone,
    /// A session that a recovery code opened.
    Recovery,
    /// An admin's session, or an admin's token with the scope `admin`.
    Admin,
}

impl Access {
    /// As it stands in `hypervisor routes --json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Program => "program",
            Self::Page => "page",
            Self::User(Scope::Account) => "user:account",
            Self::User(Scope::Sandboxes) => "user:sandboxes",
            Self::User(Scope::Commands) => "user:commands",
            Self::User(Scope::Admin) | Self::Admin => "admin",
            Self::Session => "session",
            Self::Anyone => "user",
            Self::Recovery => "recovery",
        }
    }
}

/// One route.
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path, with `{parameters}`.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    limit: Option<Attempt>,
    max_body: usize,
    handler: MethodRouter<Arc<App>>,
}

/// One route as `hypervisor routes --json` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteView {
    /// Its method.
    pub method: String,
    /// Its path, with `{parameters}`.
    pub path: &'static str,
    /// Who may use it.
    pub access: &'static str,
    /// Whether attempts are limited per address.
    pub rate_limited: bool,
}

impl Route {
    fn new<H, T>(
        method: Method,
        filter: MethodFilter,
        path: &'static str,
        access: Access,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        Self {
            method,
            path,
            access,
            limit: None,
            max_body: MAX_BODY,
            handler: on(filter, handler),
        }
    }

    /// A `GET` route; answers `HEAD` too.
    pub fn get<H, T>(path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        Self::new(Method::GET, MethodFilter::GET, path, access, handler)
    }

    /// A `POST` route.
    pub fn post<H, T>(path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        Self::new(Method::POST, MethodFilter::POST, path, access, handler)
    }

    /// A `PATCH` route.
    pub fn patch<H, T>(path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        Self::new(Method::PATCH, MethodFilter::PATCH, path, access, handler)
    }

    /// A `DELETE` route.
    pub fn delete<H, T>(path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        Self::new(Method::DELETE, MethodFilter::DELETE, path, access, handler)
    }

    /// Limits attempts per address.
    #[must_use]
    pub const fn limited(mut self, attempt: Attempt) -> Self {
        self.limit = Some(attempt);
        self
    }

    /// Takes bodies of up to this many bytes.
    #[must_use]
    pub const fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    fn view(&self) -> RouteView {
        RouteView {
            method: self.method.to_string(),
            path: self.path,
            access: self.access.as_str(),
            rate_limited: self.limit.is_some(),
        }
    }
}

/// The whole table.
#[must_use]
pub fn table() -> Vec<Route> {
    let mut table = super::pages::routes();
    table.extend(super::auth::routes());
    table.extend(super::account::routes());
    table.extend(super::admin::routes());
    table.extend(super::pairing::routes());
    table.extend(super::handover::routes());
    table.extend(super::sandboxes::routes());
    table.extend(super::events::routes());
    table.extend(super::snapshots::routes());
    table.extend(super::commands::routes());
    table.extend(super::ports::routes());
    table.extend(super::network::routes());
    table.extend(super::usage::routes());
    table
}

/// The whole table, for the system test and for people.
#[must_use]
pub fn listing() -> Vec<RouteView> {
    table().iter().map(Route::view).collect()
}

/// Builds the router from the table.
pub(super) fn build(app: &Arc<App>) -> Router<Arc<App>> {
    table().into_iter().fold(Router::new(), |router, route| {
        let demand = Gate {
            app: Arc::clone(app),
            access: route.access,
            limit: route.limit,
        };
        let handler = route
            .handler
            .route_layer(from_fn_with_state(demand, gate))
            .route_layer(DefaultBodyLimit::max(route.max_body));
        router.route(route.path, handler)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Access, table};
    use http::Method;

    #[test]
    fn no_route_is_listed_twice() {
        let mut seen = HashSet::new();
        for route in table() {
            assert!(
                seen.insert((route.method.clone(), route.path)),
                "{} {}",
                route.method,
                route.path
            );
        }
    }

    /// The exemption list of the unauthorized-access test. It only shrinks (style 7).
    #[test]
    fn what_needs_no_session_is_written_down() {
        let open: Vec<String> = table()
            .into_iter()
            .filter(|route| matches!(route.access, Access::Public | Access::Program))
            .map(|route| format!("{} {}", route.method, route.path))
            .collect();
        let expected = [
            "GET /healthz",
            "GET /readyz",
            "GET /login",
            "GET /register",
            "GET /recovery",
            "GET /favicon.ico",
            "GET /assets/{name}",
            "POST /auth/register/check",
            "POST /auth/register/start",
            "POST /auth/register/finish",
            "POST /auth/login/start",
            "POST /auth/login/finish",
            "POST /auth/logout",
            "POST /auth/recovery",
            "POST /auth/cli/start",
            "POST /auth/cli/poll",
        ];
        assert_eq!(open, expected);
    }

    #[test]
    fn what_is_admins_is_under_admin_and_nothing_there_is_anybody_elses() {
        for route in table() {
            assert_eq!(
                route.path.starts_with("/admin/"),
                route.access == Access::Admin,
                "{}",
                route.path
            );
        }
    }

    #[test]
    fn auth_endpoints_that_need_no_session_are_rate_limited() {
        for route in table() {
            let open = matches!(
                route.access,
                Access::Public | Access::Program | Access::Recovery
            );
            if open
                && route.path.starts_with("/auth/")
                && route.path != "/auth/logout"
                && route.method != Method::GET
            {
                assert!(route.limit.is_some(), "{}", route.path);
            }
        }
    }
}
