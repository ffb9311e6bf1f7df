//! Extractors of the control origin, with problems instead of plain texts.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use crate::actor::Actor;
use crate::error::Error;

/// How long a body may take.
const BODY_WITHIN: Duration = Duration::from_secs(20);

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let is_json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            return Err(Error::bad_request("the body has to be application/json"));
        }
        let read = tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, state)).await;
        let bytes = match read {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(rejection)) => return Err(rejected(&rejection)),
            Err(_) => return Err(Error::bad_request("the body did not come in time")),
        };
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            Error::bad_request(format!("the body is not what is expected here: {error}"))
        })
    }
}

fn rejected(rejection: &BytesRejection) -> Error {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Error::TooLarge("the body is larger than this takes".to_owned())
    } else {
        Error::bad_request("the body could not be read")
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        // The gate puts it there for every route of the table.
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Error::internal("a request without an actor"))
    }
}

/// Reads an id from the path. What is no id names nothing.
///
/// # Errors
/// [`Error::NotFound`].
pub fn id<T: std::str::FromStr>(what: &'static str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::NotFound(what))
}

/// What the browser says of itself.
#[must_use]
pub fn user_agent(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::USER_AGENT)
        .and_then(|value| value.to_str().ok())
}
