//! What a channel serves, decided on the request target as it was sent. Anything that two
//! parties could read differently is nothing that a channel serves (arch §1).

use http::{Method, Uri};
use types::CommandId;

use crate::config::ProviderKind;

/// What is asked for on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `GET /provider/v1`
    Providers,
    /// `/provider/v1/{provider}/{*rest}`
    Provider { name: String, rest: String },
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/{model}`, still percent-encoded.
    Model(String),
    /// One of the paths that stock clients use, by the API it belongs to and what it is
    /// below a base URL of that API.
    Stock {
        kind: ProviderKind,
        rest: &'static str,
    },
    /// `POST /token/renew`
    Renew,
    /// `/commands`
    Commands,
    /// `/commands/{id}`
    Command(CommandId),
    /// `POST /commands/{id}/signal`
    Signal(CommandId),
    /// `GET /commands/{id}/stream`
    Stream(CommandId),
    /// `GET /ports`
    Ports,
    /// `CONNECT`: a tunnel to the outside.
    Connect,
    /// `GET http://…`: plain HTTP to the outside.
    Forward,
}

impl Route {
    /// Whether a runner's channel serves it (arch §1: only the routes it was granted).
    pub(crate) fn for_runner(&self) -> bool {
        matches!(
            self,
            Self::Providers
                | Self::Provider { .. }
                | Self::Models
                | Self::Model(_)
                | Self::Stock { .. }
        )
    }

    /// Whether it leads out of the host, which the channel alone authorises (arch §3).
    pub(crate) fn is_egress(&self) -> bool {
        matches!(self, Self::Connect | Self::Forward)
    }

    /// The pattern, for logs and metrics; holds nothing that the caller chose.
    pub(crate) fn pattern(&self) -> &'static str {
        match self {
            Self::Providers => "/provider/v1",
            Self::Provider { .. } => "/provider/v1/{provider}",
            Self::Models => "/v1/models",
            Self::Model(_) => "/v1/models/{model}",
            Self::Stock { .. } => "/v1",
            Self::Renew => "/token/renew",
            Self::Commands => "/commands",
            Self::Command(_) => "/commands/{id}",
            Self::Signal(_) => "/commands/{id}/signal",
            Self::Stream(_) => "/commands/{id}/stream",
            Self::Ports => "/ports",
            Self::Connect => "CONNECT",
            Self::Forward => "http://",
        }
    }
}

/// The route, or `None` for everything that a channel does not serve.
pub(crate) fn route(method: &Method, uri: &Uri) -> Option<Route> {
    if method == Method::CONNECT {
        return Some(Route::Connect);
    }
    // An absolute target names a host, and a channel has none: it leads out or nowhere.
    if uri.scheme() == Some(&http::uri::Scheme::HTTP) && uri.host().is_some_and(|h| !h.is_empty()) {
        return Some(Route::Forward);
    }
    if uri.scheme().is_some() || uri.authority().is_some() {
        return None;
    }
    let path = uri.path();
    if !is_plain(path) {
        return None;
    }
    let mut segments = path.strip_prefix('/')?.split('/');
    let route = match (segments.next()?, segments.next()) {
        ("provider", Some("v1")) => provider(path)?,
        ("v1", Some(_)) => stock(path)?,
        ("token", Some("renew")) if segments.next().is_none() => Route::Renew,
        ("ports", None) => Route::Ports,
        ("commands", None) => Route::Commands,
        ("commands", Some(id)) => {
            let id = id.parse().ok()?;
            match (segments.next(), segments.next()) {
                (None, _) => Route::Command(id),
                (Some("signal"), None) => Route::Signal(id),
                (Some("stream"), None) => Route::Stream(id),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(route)
}

/// What stock SDKs call with this channel as their base URL.
fn stock(path: &str) -> Option<Route> {
    let (kind, rest) = match path {
        "/v1/models" => return Some(Route::Models),
        "/v1/chat/completions" => (ProviderKind::OpenAi, "chat/completions"),
        "/v1/responses" => (ProviderKind::OpenAi, "responses"),
        "/v1/embeddings" => (ProviderKind::OpenAi, "embeddings"),
        // Only of providers that have them in `providers.paths`.
        "/v1/audio/speech" => (ProviderKind::OpenAi, "audio/speech"),
        "/v1/audio/transcriptions" => (ProviderKind::OpenAi, "audio/transcriptions"),
        "/v1/audio/translations" => (ProviderKind::OpenAi, "audio/translations"),
        "/v1/images/edits" => (ProviderKind::OpenAi, "images/edits"),
        "/v1/images/generations" => (ProviderKind::OpenAi, "images/generations"),
        "/v1/messages" => (ProviderKind::Anthropic, "v1/messages"),
        "/v1/messages/count_tokens" => (ProviderKind::Anthropic, "v1/messages/count_tokens"),
        path => {
            return path
                .strip_prefix("/v1/models/")
                .map(|m| Route::Model(m.to_owned()));
        }
    };
    Some(Route::Stock { kind, rest })
}

fn provider(path: &str) -> Option<Route> {
    let below = path.strip_prefix("/provider/v1")?;
    if below.is_empty() {
        return Some(Route::Providers);
    }
    let (name, rest) = below.strip_prefix('/')?.split_once('/')?;
    let named = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (named && !rest.is_empty()).then(|| Route::Provider {
        name: name.to_owned(),
        rest: rest.to_owned(),
    })
}

/// Whether the clients of model providers call a path, whatever is served there: its refusals
/// are to be readable for them.
pub(crate) fn is_for_models(path: &str) -> bool {
    path.starts_with("/v1/") || path.starts_with("/provider/v1/")
}

/// No empty or dot segment, no backslash, and no encoding of a character that could make
/// one (`%2f`, `%5c`, `%2e`, `%25`, control characters) once somebody decodes it.
fn is_plain(path: &str) -> bool {
    let segments_ok = path
        .strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(|s| !matches!(s, "" | "." | "..")));
    if !segments_ok || path.contains('\\') {
        return false;
    }
    path.match_indices('%').all(|(at, _)| {
        let code = path
            .get(at + 1..at + 3)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        code.is_some_and(|c| c > b' ' && c < 0x7f && !matches!(c, b'/' | b'\\' | b'.' | b'%'))
    })
}

#[cfg(test)]
mod tests {
    use super::{Route, route};
    use http::{Method, Uri};

    fn get(target: &str) -> Option<String> {
        let uri: Uri = target.parse().ok()?;
        route(&Method::GET, &uri).map(|route| format!("{route:?}"))
    }

    #[test]
    fn serves_exactly_its_routes() {
        let id = "0198f3a0-0000-7000-8000-000000000001";
        assert_eq!(get("/provider/v1").unwrap(), "Providers");
        assert_eq!(
            get("/provider/v1/demo/chat/completions?x=1").unwrap(),
            "Provider { name: \"demo\", rest: \"chat/completions\" }"
        );
        assert_eq!(get("/token/renew").unwrap(), "Renew");
        assert_eq!(get("/ports").unwrap(), "Ports");
        assert_eq!(get("/ports/3000"), None);
        assert_eq!(get("/commands").unwrap(), "Commands");
        assert!(
            get(&format!("/commands/{id}"))
                .unwrap()
                .starts_with("Command(")
        );
        assert!(
            get(&format!("/commands/{id}/signal"))
                .unwrap()
                .starts_with("Signal(")
        );
        assert!(
            get(&format!("/commands/{id}/stream?from=3"))
                .unwrap()
                .starts_with("Stream(")
        );
        assert!(get("/provider/v1/p/v1/models%3Alist").is_some());
    }

    #[test]
    fn never_leads_to_the_control_plane_however_it_is_written() {
        let served: Vec<_> = [
            "/me/sandboxes",
            "/admin/sandboxes",
            "/auth/me",
            "/login",
            "/",
            "//me/sandboxes",
            "/provider/v1/../../me/sandboxes",
            "/provider/v1/demo/../../../me",
            "/provider/v1/demo/..%2f..%2fme",
            "/provider/v1/demo/%2e%2e/me",
            "/provider/v1/demo/%252e%252e/me",
            "/provider/v1/demo/a%5cb",
            "/provider/v1/demo/a%00b",
            "/provider/v1/demo/a%0d%0ab",
            "/provider/v1/demo/a%zz",
            "/provider/v1/demo/a%2",
            "/provider/v1//chat",
            "/provider/v1/demo//chat",
            "/provider/v1/demo/./chat",
            "/provider/v1/demo/",
            "/provider/v1/demo",
            "/provider/v1/",
            "/provider/v2/demo/x",
            "/commands/",
            "/commands/not-an-id",
            "/commands/../me",
            "/commands%2f..%2fme",
            "/%63ommands",
            "/token/renew/",
            "https://localhost/commands",
            "ftp://localhost/commands",
            "http:///commands",
            "*",
        ]
        .into_iter()
        .filter(|target| get(target).is_some())
        .collect();
        assert_eq!(served, Vec::<&str>::new());
    }

    #[test]
    fn a_runner_gets_models_and_nothing_else() {
        let open: Vec<_> = [
            "/provider/v1",
            "/provider/v1/demo/x",
            "/commands",
            "/token/renew",
        ]
        .into_iter()
        .filter(|target| {
            route(&Method::GET, &target.parse().unwrap())
                .unwrap()
                .for_runner()
        })
        .collect();
        assert_eq!(open, ["/provider/v1", "/provider/v1/demo/x"]);
        assert!(!Route::Connect.for_runner());
        // An absolute target is never one of our own paths, whatever host it names.
        for target in [
            "http://localhost/commands",
            "http://localhost:9090/me/sandboxes",
        ] {
            let route = route(&Method::GET, &target.parse().unwrap()).unwrap();
            assert_eq!(route, Route::Forward);
            assert!(route.is_egress() && !route.for_runner());
        }
    }
}
