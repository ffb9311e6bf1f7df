//! The session cookie of the control origin (arch §2): host-only, HttpOnly, `SameSite=Lax`,
//! and `__Host-` with `Secure` over https.

use std::time::Duration;

use crypto::{Token, TokenKind};
use http::{HeaderMap, HeaderValue, header};

use crate::error::Error;

/// The name of the cookie.
#[must_use]
pub const fn name(secure: bool) -> &'static str {
    if secure {
        "__Host-choir_session"
    } else {
        "choir_session"
    }
}

/// The session token that a browser presents. `None` when there is none, or when there is
/// more than one: then somebody tries to plant one.
#[must_use]
pub fn session(headers: &HeaderMap, secure: bool) -> Option<Token> {
    let wanted = name(secure);
    let mut values = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, _)| *name == wanted)
        .map(|(_, value)| value);
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    Token::parse_kind(TokenKind::Session, value).ok()
}

/// `Set-Cookie` for a new session.
///
/// # Errors
/// Never in practice: tokens are plain ASCII.
pub fn set(token: &Token, lifetime: Duration, secure: bool) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(&render(token.expose(), lifetime.as_secs(), secure))
        .map_err(Error::internal)?;
    value.set_sensitive(true);
    Ok(value)
}

/// `Set-Cookie` that takes the cookie away.
///
/// # Errors
/// Never in practice.
pub fn clear(secure: bool) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(&render("", 0, secure)).map_err(Error::internal)
}

fn render(value: &str, max_age: u64, secure: bool) -> String {
    let secure_attribute = if secure { "; Secure" } else { "" };
    format!(
        "{}={value}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=Lax{secure_attribute}",
        name(secure)
    )
}

#[cfg(test)]
mod tests {
    use super::{session, set};
    use crypto::{OsRandom, Token, TokenKind};
    use http::HeaderMap;
    use std::time::Duration;

    fn headers(cookies: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append("cookie", cookie.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_planted_second_cookie_signs_out_and_a_foreign_token_is_none() {
        let token = Token::generate(TokenKind::Session, &OsRandom::new()).unwrap();
        let own = format!("a=b; choir_session={}", token.expose());
        assert!(session(&headers(&[&own]), false).is_some());
        assert!(session(&headers(&[&own]), true).is_none());
        assert!(session(&headers(&[&own, &own]), false).is_none());
        let runtime = Token::generate(TokenKind::Runtime, &OsRandom::new()).unwrap();
        let stolen = format!("choir_session={}", runtime.expose());
        assert!(session(&headers(&[&stolen]), false).is_none());
    }

    #[test]
    fn over_https_the_cookie_belongs_to_this_host_alone() {
        let token = Token::generate(TokenKind::Session, &OsRandom::new()).unwrap();
        let value = set(&token, Duration::from_secs(60), true).unwrap();
        let text = value.to_str().unwrap();
        assert!(text.starts_with("__Host-choir_session=choirses_"));
        for attribute in [
            "; Path=/;",
            "; HttpOnly",
            "; Secure",
            "; SameSite=Lax",
            "; Max-Age=60;",
        ] {
            assert!(text.contains(attribute), "{text}");
        }
        assert!(!text.contains("Domain"));
        assert!(!format!("{value:?}").contains("choirses_"));
    }
}
