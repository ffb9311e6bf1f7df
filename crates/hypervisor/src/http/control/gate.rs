//! What every request on the control origin passes before its handler: same origin, rate
//! limit, who it is, and whether they may (arch §2).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use types::RequestId;

use super::cookie;
use super::route::Access;
use crate::actor::{Actor, User, Via};
use crate::app::App;
use crate::error::Error;
use crate::http::{Client, Facts};
use crate::services::rate::Attempt;
use crate::services::{sessions, tokens};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What a route demands.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) app: Arc<App>,
    pub(super) access: Access,
    pub(super) limit: Option<Attempt>,
}

/// Lets a request through to its handler, with its [`Actor`] among the extensions.
pub(super) async fn gate(State(gate): State<Gate>, request: Request<Body>, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let admitted = admit(&gate, &head).await;
    let mut request = Request::from_parts(head, body);
    let actor = match admitted {
        Ok(actor) => actor,
        Err(Error::Unauthenticated) if gate.access == Access::Page => {
            return to_login(request.uri(), request.headers());
        }
        Err(error) => return error.into_response(),
    };
    if gate.access == Access::Page && matches!(actor.via, Via::RecoverySession(_)) {
        // Whoever came by a recovery code has something to decide first.
        return redirect("/recovery");
    }
    let user = actor.user.as_ref().map(|user| user.name.to_string());
    request.extensions_mut().insert(actor);
    let mut response = next.run(request).await;
    if response.extensions().get::<Facts>().is_none() {
        response.extensions_mut().insert(Facts {
            user,
            ..Facts::default()
        });
    }
    response
}

async fn admit(gate: &Gate, request: &http::request::Parts) -> Result<Actor, Error> {
    let headers = &request.headers;
    let bearer = bearer(headers)?;
    let has_cookie = headers.contains_key(header::COOKIE);
    if bearer.is_some() && has_cookie {
        return Err(Error::CrossOrigin(
            "a request brings either a token or a cookie, not both",
        ));
    }
    let reads_public = matches!(gate.access, Access::Public | Access::Page)
        && matches!(request.method, Method::GET | Method::HEAD);
    if gate.access == Access::Program {
        check_program(&gate.app, headers)?;
    } else if bearer.is_none() && !reads_public {
        check_same_origin(&gate.app, headers)?;
    }
    let client = request.extensions.get::<Client>().copied();
    let address = client.map(|client| client.address);
    if let (Some(attempt), Some(address)) = (gate.limit, address) {
        gate.app.rate.address(attempt, address)?;
    }
    let request_id = client.map_or_else(RequestId::generate, |client| client.request_id);
    let mut actor = Actor::anonymous(request_id, address);
    if let Some((user, via)) = identify(&gate.app, headers, bearer).await? {
        actor.user = Some(user);
        actor.via = via;
    } else if bearer.is_some() {
        return Err(Error::Unauthenticated);
    }
    authorize(gate.access, &actor)?;
    Ok(actor)
}

fn authorize(access: Access, actor: &Actor) -> Result<(), Error> {
    match access {
        Access::Public | Access::Program => Ok(()),
        Access::Anyone => actor.user().map(|_| ()),
        Access::Page => match &actor.via {
            // Sent on to `/recovery` by the gate.
            Via::Session(_) | Via::RecoverySession(_) => Ok(()),
            _ => Err(Error::Unauthenticated),
        },
        Access::User(scope) => actor.allow(scope).map(|_| ()),
        Access::Session => actor.require_session().map(|_| ()),
        Access::Admin => actor.require_admin().map(|_| ()),
        Access::Recovery => match &actor.via {
            Via::RecoverySession(_) => Ok(()),
            _ => Err(Error::Unauthenticated),
        },
    }
}

async fn identify(
    app: &App,
    headers: &HeaderMap,
    bearer: Option<&str>,
) -> Result<Option<(User, Via)>, Error> {
    if let Some(token) = bearer {
        return tokens::find(app, token).await;
    }
    let Some(token) = cookie::session(headers, app.config.origins.control.is_secure()) else {
        return Ok(None);
    };
    let row = sessions::find(app, &token, app.config.origins.control.host()).await?;
    Ok(row.map(sessions::identity))
}

/// The token of `Authorization: Bearer`, if there is that header.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(Error::bad_request(
            "Authorization is not of the form: Bearer TOKEN",
        )),
    }
}

/// The rule of arch §2: what changes state or is private comes from our own pages. Both
/// headers are set by the browser and cannot be set by a page; one has to be there, and
/// none may speak of another origin.
fn check_same_origin(app: &App, headers: &HeaderMap) -> Result<(), Error> {
    let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    let origin_fits =
        origin.map(|origin| app.config.origins.control.to_string().as_bytes() == origin);
    let site_fits = site.map(|site| site == b"same-origin");
    match (origin_fits, site_fits) {
        (Some(false), _) | (_, Some(false)) => Err(Error::CrossOrigin(
            "this may only be asked for by the control plane's own pages",
        )),
        (None, None) => Err(Error::CrossOrigin(
            "neither Origin nor Sec-Fetch-Site says that this comes from the control plane's own pages",
        )),
        _ => Ok(()),
    }
}

/// For programs that have no session yet: nothing of a browser's may come along, unless it
/// is our own page's.
fn check_program(app: &App, headers: &HeaderMap) -> Result<(), Error> {
    if headers.contains_key(header::COOKIE) {
        return Err(Error::CrossOrigin("this is for programs, without cookies"));
    }
    if headers.contains_key(header::ORIGIN) || headers.contains_key(SEC_FETCH_SITE) {
        return check_same_origin(app, headers);
    }
    Ok(())
}

fn to_login(uri: &Uri, headers: &HeaderMap) -> Response {
    let wanted = uri
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    // A navigation that another site began may come without the cookie that the browser
    // holds. A page of ours asks once more; that request is same-origin (arch §2).
    let cross_site = headers
        .get(SEC_FETCH_SITE)
        .is_some_and(|site| site == "cross-site");
    let first = !uri
        .query()
        .is_some_and(|query| query.split('&').any(|pair| pair == "again=1"));
    if cross_site && first {
        let sign = if uri.query().is_some() { '&' } else { '?' };
        return interstitial(&format!("{wanted}{sign}again=1"));
    }
    let mut encoded = url::form_urlencoded::Serializer::new(String::new());
    encoded.append_pair("next", wanted);
    redirect(&format!("/login?{}", encoded.finish()))
}

/// A page that goes on to a path of this origin by itself.
fn interstitial(target: &str) -> Response {
    let target: String = target
        .chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '"' => "&quot;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            other => other.to_string(),
        })
        .collect();
    axum::response::Html(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"refresh\" content=\"0;url={target}\"><title>ChoirOS: signing in</title>\
         <link rel=\"stylesheet\" href=\"/assets/theme.css\"></head>\
         <body><p><a href=\"{target}\">Go on</a></p></body></html>"
    ))
    .into_response()
}

/// A redirect that no cache keeps.
pub(super) fn redirect(location: &str) -> Response {
    let mut response = StatusCode::SEE_OTHER.into_response();
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
