//! What happens to headers on the way to a sandbox's app and back.

mod cookie;
mod fields;
mod location;
mod request;
mod response;

use std::net::IpAddr;

use http::{HeaderName, HeaderValue};

pub(crate) use fields::{check_framing, drop_hop_by_hop};
pub(crate) use request::{clean_request, forwarded_uri, is_service_worker_script};
pub(crate) use response::{clean_response, clean_trailers};

/// The scheme that the browser used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP, on loopback.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// As it stands in URLs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Whether a request for a service-worker script (`Service-Worker: script`) is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceWorkers {
    /// It is; the script's scope is its own origin's.
    Allow,
    /// It is not: under `/dev` a worker could take over `live` (arch §2).
    Refuse,
}

/// How the proxy treats the headers of one request and of its response (arch §2).
///
/// Always, whatever is set here: hop-by-hop and `Connection`-listed fields are dropped in
/// both directions. From the request go `Forwarded`, `X-Forwarded-*`, `X-Choir-*`,
/// `X-Real-IP`, `Authorization`, `Proxy-Authorization` and our own cookies; from the
/// response go `Set-Cookie` with a `Domain` attribute, without a name or with one of our
/// names, `Service-Worker-Allowed`, `X-Choir-*`, and what would reach beyond the runtime
/// origin (`Alt-Svc`, `Clear-Site-Data`, `Strict-Transport-Security`).
#[derive(Debug, Clone)]
pub struct HeaderRules {
    /// The scheme of the runtime origin, for `X-Forwarded-Proto` and `Location`.
    pub scheme: Scheme,
    /// The authority of the runtime origin as the browser wrote it (`alice.localhost:9090`),
    /// for `Host`, `X-Forwarded-Host` and `Location`.
    pub host: HeaderValue,
    /// The client's address, for `X-Forwarded-For`.
    pub client: IpAddr,
    /// The path prefix that is taken off the request (`/dev`) and put back into `Location`
    /// and cookie paths; sent as `X-Forwarded-Prefix`. Without a trailing slash.
    pub prefix: Option<&'static str>,
    /// Fields to set, over anything the client sent: `X-Choir-*`, `X-Request-Id`.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// What to do with service-worker scripts.
    pub service_workers: ServiceWorkers,
    /// Whether this request counts as [`crate::Activity`]; a health check does not.
    pub counts_as_activity: bool,
}
