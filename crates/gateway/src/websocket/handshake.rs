//! The upgrade itself (RFC 6455 §4).

use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{Method, Request, Version};

use crate::Refusal;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE_TOKEN: HeaderValue = HeaderValue::from_static("Upgrade");

/// Whether a request asks for a WebSocket. Any other upgrade (`h2c` above all) is not
/// passed on: its fields are dropped with the hop-by-hop ones and it stays plain HTTP.
pub(crate) fn wants_websocket<B>(request: &Request<B>) -> Result<bool, Refusal> {
    let headers = request.headers();
    if !headers.contains_key(UPGRADE) {
        return Ok(false);
    }
    let upgrades = has_token(headers, &CONNECTION, "upgrade");
    let websocket = has_token(headers, &UPGRADE, "websocket");
    if !upgrades || !websocket {
        return Ok(false);
    }
    let only_one_protocol = headers.get_all(UPGRADE).iter().count() == 1
        && headers
            .get(UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let well_formed = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && only_one_protocol
        && headers.get_all(SEC_WEBSOCKET_KEY).iter().count() == 1
        && headers
            .get(SEC_WEBSOCKET_VERSION)
            .is_some_and(|version| version == "13");
    if well_formed {
        Ok(true)
    } else {
        Err(Refusal::Upgrade)
    }
}

/// Puts the upgrade back into headers that were cleaned of everything hop-by-hop.
pub(crate) fn prepare(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, UPGRADE_TOKEN);
    headers.insert(UPGRADE, WEBSOCKET);
}

/// Whether a `101` is one for the WebSocket that was asked for.
pub(crate) fn check_answer(headers: &HeaderMap) -> bool {
    has_token(headers, &CONNECTION, "upgrade")
        && headers
            .get(UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && headers.contains_key(http::header::SEC_WEBSOCKET_ACCEPT)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder();
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    const GOOD: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
    ];

    #[test]
    fn only_a_complete_websocket_upgrade_is_one() {
        assert_eq!(wants_websocket(&request(&GOOD)), Ok(true));
        assert_eq!(
            wants_websocket(&request(&[("connection", "upgrade"), ("upgrade", "h2c")])),
            Ok(false)
        );
        assert_eq!(wants_websocket(&request(&GOOD[1..])), Ok(false));
        for missing in 2..GOOD.len() {
            let mut fields = GOOD.to_vec();
            fields.remove(missing);
            assert_eq!(wants_websocket(&request(&fields)), Err(Refusal::Upgrade));
        }
        let mut two = GOOD.to_vec();
        two[1].1 = "h2c, websocket";
        assert_eq!(wants_websocket(&request(&two)), Err(Refusal::Upgrade));
        let mut post = request(&GOOD);
        *post.method_mut() = Method::POST;
        assert_eq!(wants_websocket(&post), Err(Refusal::Upgrade));
    }
}
