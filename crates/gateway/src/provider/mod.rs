//! Model providers as upstreams.
//!
//! The caller's credentials stop here and the provider's own key is set; the path is joined
//! so that it never leaves the base URL; a request is whole before it goes up, so that it can
//! be read, bounded and sent again; replies stream; no redirect is followed.

mod form;
mod headers;
mod key;
mod path;
mod reply;
mod scrub;
mod shape;
mod tls;
mod usage;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Version};
use tokio_util::sync::CancellationToken;
use types::SandboxId;

use crate::body::UpstreamBody;
use crate::upstream::{Answer, Target, Terms, Upstream};
use crate::{Activity, ForwardError, Limits, Refusal, RequestBody};

pub use form::{Form, FormError};
pub use headers::PassedHeaders;
pub use key::{ProviderKey, ProviderKeyError};
pub use reply::{Outcome, ReplyBody, ReplyEnd};
use scrub::Scrubber;
pub use shape::{MAX_MODEL, Shape, ShapeError};
pub use usage::{Usage, UsageMeter};

/// How a provider wants its key, and whose dialect it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// `Authorization: Bearer KEY`; `/chat/completions` and the like.
    OpenAi,
    /// `x-api-key: KEY` and `anthropic-version`; `/v1/messages`.
    Anthropic,
    /// `x-goog-api-key: KEY`; the model stands in the path.
    Gemini,
    /// `Authorization: Bearer KEY`; the model stands in the path.
    Bedrock,
}

/// Which certificates a provider's TLS is verified with.
#[derive(Debug, Clone, Default)]
pub enum TrustRoots {
    /// Mozilla's, as compiled in.
    #[default]
    WebPki,
    /// Only those in this PEM file.
    File(PathBuf),
}

/// Everything to know about a provider.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Its name in the gateway's paths and in log lines.
    pub name: String,
    /// Its dialect.
    pub kind: ProviderKind,
    /// Its base URL, `https://api.openai.com/v1`. Plain HTTP only with loopback, or without
    /// a key.
    pub base_url: String,
    /// Its key; none for a local one.
    pub key: Option<ProviderKey>,
    /// Request headers of the caller's that go up.
    pub headers_up: PassedHeaders,
    /// Response headers that come down.
    pub headers_down: PassedHeaders,
    /// Whether it may have a private, loopback or link-local address.
    pub private_addresses: bool,
    /// Longest whole reply, streams included; unbounded when absent.
    pub whole_reply: Option<Duration>,
    /// Whom to trust.
    pub roots: TrustRoots,
    /// Its bounds; [`Limits::provider`] is a good start.
    pub limits: Limits,
}

/// A provider that cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum ProviderConfigError {
    /// The base URL.
    #[error("base URL {url:?}: {problem}")]
    BaseUrl {
        /// As configured.
        url: String,
        /// What is wrong and what would be right.
        problem: &'static str,
    },
    /// The file with the trust roots.
    #[error("trust roots {path:?}: {problem}")]
    Roots {
        /// As configured.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The TLS library has no usable protocol version.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// One provider: its TLS configuration and its connections. Cheap to clone.
#[derive(Clone)]
pub struct Provider {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    kind: ProviderKind,
    base: path::BasePath,
    host: HeaderValue,
    /// Exchanged when its file changes; held for one copy, never across an await.
    key: RwLock<Option<ProviderKey>>,
    headers_up: PassedHeaders,
    headers_down: PassedHeaders,
    whole_reply: Option<Duration>,
    upstream: Upstream,
}

impl Provider {
    /// Checks the configuration and loads the trust roots. Has to be called within a Tokio
    /// runtime.
    ///
    /// # Errors
    /// [`ProviderConfigError`] names what is wrong.
    pub fn new(config: ProviderConfig) -> Result<Self, ProviderConfigError> {
        let base = path::parse_base(&config.base_url, config.key.is_some()).map_err(|problem| {
            ProviderConfigError::BaseUrl {
                url: config.base_url.clone(),
                problem,
            }
        })?;
        let address = tls::address(&base, &config.roots, config.private_addresses)?;
        let upstream = Upstream::new(
            Target::Provider(address),
            CancellationToken::new(),
            config.limits,
        );
        Ok(Self {
            inner: Arc::new(Inner {
                name: config.name,
                kind: config.kind,
                base: base.path,
                host: base.authority,
                key: RwLock::new(config.key),
                headers_up: config.headers_up,
                headers_down: config.headers_down,
                whole_reply: config.whole_reply,
                upstream,
            }),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its dialect.
    #[must_use]
    pub fn kind(&self) -> ProviderKind {
        self.inner.kind
    }

    /// Takes another key for the calls to come; those under way end with the one before.
    pub fn set_key(&self, key: Option<ProviderKey>) {
        *self
            .inner
            .key
            .write()
            .unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// What goes on with it; when it was last called is not noted.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        self.inner.upstream.activity()
    }

    /// Sends one request. `rest` is what
    /// follows `/provider/v1/{name}` in the path exactly as it arrived, still percent-encoded,
    /// with or without its leading slash; the query comes from the head. `caller` is who calls,
    /// where it is a sandbox. `cancel` ends with the caller's right to call (its start, its
    /// token) and cuts the exchange at once.
    ///
    /// Of the caller's headers only an allowlist goes up; its `Authorization`, `x-api-key`,
    /// cookies and forwarding headers never do. No redirect is followed.
    ///
    /// # Errors
    /// [`ForwardError`]; a path that would leave the base URL is refused.
    pub async fn send(
        &self,
        head: &Parts,
        body: &Bytes,
        rest: &str,
        caller: Option<SandboxId>,
        cancel: &CancellationToken,
    ) -> Result<Response<ReplyBody>, ForwardError> {
        let inner = &*self.inner;
        let method = &head.method;
        if method == Method::CONNECT || method == Method::TRACE {
            return Err(ForwardError::Refused(Refusal::Method));
        }
        let limit = inner.upstream.limits().max_request_body;
        if body.len() as u64 > limit {
            return Err(ForwardError::TooLarge { limit });
        }
        let uri = inner
            .base
            .join(rest, head.uri.query())
            .map_err(ForwardError::Refused)?;
        let key = self.key();
        let headers = headers::request(
            &head.headers,
            inner.kind,
            &inner.host,
            key.as_ref(),
            body.len(),
            &inner.headers_up,
        )
        .map_err(ForwardError::Refused)?;
        let body = UpstreamBody::new(RequestBody::from(body.clone()), limit);
        let mut up = Box::new(Request::new(body));
        *up.method_mut() = method.clone();
        *up.uri_mut() = uri;
        *up.headers_mut() = headers;
        let Answer { response, lease } = inner
            .upstream
            .exchange(
                up,
                Terms {
                    cancel: Some(cancel.clone()),
                    caller,
                    // Nobody asks when a provider was last of use.
                    counts: false,
                    upgrade: false,
                },
            )
            .await?;

        let (mut parts, incoming) = response.into_parts();
        let bad = |reason| {
            Err(ForwardError::BadResponse {
                reason,
                source: None,
            })
        };
        if parts.status.is_redirection() {
            return bad("it redirects, and redirects are not followed; check the base URL");
        }
        let plain = |coding: &HeaderValue| coding == "identity";
        if !parts.headers.get_all(CONTENT_ENCODING).iter().all(plain) {
            return bad("it is compressed, which was not asked for");
        }
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        headers::clean_response(&mut parts.headers, key.as_ref(), &inner.headers_down);
        let event_stream = parts
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let body = lease.into_body(&parts.headers, incoming).await;
        let idle = inner.upstream.limits().response_idle;
        // A model's own events come as base64 there.
        let scrubber = Scrubber::new(key, inner.kind == ProviderKind::Bedrock);
        let body = ReplyBody::new(body, event_stream, scrubber, idle, inner.whole_reply);
        Ok(Response::from_parts(parts, body))
    }

    fn key(&self) -> Option<ProviderKey> {
        self.inner
            .key
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("name", &self.inner.name)
            .field("kind", &self.inner.kind)
            .field("upstream", &self.inner.upstream)
            .finish_non_exhaustive()
    }
}
