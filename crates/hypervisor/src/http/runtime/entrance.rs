//! The runtime origin's side of the hand-over.

use std::time::Duration;

use axum::response::Response;
use crypto::{Token, TokenKind};
use http::request::Parts;
use http::{StatusCode, header};
use url::form_urlencoded::Serializer;

use super::browser::{self, SESSION_COOKIE, STATE_COOKIE};
use super::{Visit, pages, paths, redirect};
use crate::actor::Actor;
use crate::error::Error;
use crate::services::handover::{self, Place};

/// A person may have to sign in, and look for the passkey, in between.
const STATE_LIFETIME: Duration = Duration::from_secs(15 * 60);

impl Visit {
    /// Nobody is signed in here: a person is sent to the control origin, a program is told.
    pub(super) fn sign_in(&self, head: &Parts) -> Result<Response, Error> {
        if browser::is_websocket(&head.headers)
            || !browser::is_navigation(&head.method, &head.headers)
        {
            return Err(Error::Unauthenticated);
        }
        let next = head
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        self.begin(head, paths::safe_next(next))
    }

    /// Sends the browser to the control origin, with a state that it holds here.
    fn begin(&self, head: &Parts, next: &str) -> Result<Response, Error> {
        let secure = self.origin.is_secure();
        // Several tabs may ask at once; they share the state that is there already.
        let held = browser::cookie(&head.headers, STATE_COOKIE, secure)
            .and_then(|text| Token::parse_kind(TokenKind::Handover, text).ok());
        let state = match held {
            Some(state) => state,
            None => handover::state(&self.app)?,
        };
        let query = Serializer::new(String::new())
            .append_pair("host", &self.authority())
            .append_pair("state", &state.hash().to_string())
            .append_pair("next", next)
            .finish();
        let control = &self.app.config.origins.control;
        let mut response = redirect(
            StatusCode::FOUND,
            &format!("{control}/auth/handover?{query}"),
        )?;
        if let Some(cookie) =
            browser::set_cookie(STATE_COOKIE, state.expose(), STATE_LIFETIME, secure)
        {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        Ok(response)
    }

    /// `/.choir/enter?code=…`: redeems a code for a session.
    pub(super) async fn enter(&self, head: &Parts) -> Result<Response, Error> {
        let secure = self.origin.is_secure();
        let query = head.uri.query().unwrap_or_default();
        let parameter = |wanted: &str| {
            url::form_urlencoded::parse(query.as_bytes())
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.into_owned())
        };
        let code = parameter("code").unwrap_or_default();
        let Some(state) = browser::cookie(&head.headers, STATE_COOKIE, secure) else {
            // The browser may have kept the cookie back because another site began this
            // navigation. A page of our own asks again; then it is same-origin.
            let again = parameter("again").is_some();
            let plausible = Token::parse_kind(TokenKind::Handover, &code).is_ok();
            if !again && plausible && browser::is_cross_site(&head.headers) {
                return Ok(pages::interstitial(&format!(
                    "/.choir/enter?code={code}&again=1"
                )));
            }
            return self.not_entered();
        };
        let actor = Actor::anonymous(self.request_id(), Some(self.client.address));
        let agent = head
            .headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok());
        let place = Place {
            host: self.origin.host(),
            port: self.port.map(|port| (self.root, port)),
        };
        let entered = handover::redeem(&self.app, &actor, place, &code, state, agent).await?;
        let Some(entered) = entered else {
            return self.not_entered();
        };
        let mut response = redirect(StatusCode::SEE_OTHER, paths::safe_next(&entered.next))?;
        for cookie in [
            browser::set_cookie(
                SESSION_COOKIE,
                entered.token.expose(),
                entered.lifetime,
                secure,
            ),
            browser::set_cookie(STATE_COOKIE, "", Duration::ZERO, secure),
        ] {
            let cookie = cookie.ok_or_else(|| Error::internal("a cookie that is no header"))?;
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        Ok(response)
    }

    /// The code was not good: too old, used, or meant for another browser. The same page for
    /// each; opening the origin again begins a new hand-over.
    fn not_entered(&self) -> Result<Response, Error> {
        Ok(pages::not_entered(self.request_id()))
    }

    /// As a browser writes it in `Host`.
    pub(super) fn authority(&self) -> String {
        let text = self.origin.to_string();
        text.split_once("://")
            .map_or(text.clone(), |(_, authority)| authority.to_owned())
    }
}
