//! Model providers as upstreams.
//!
//! The caller's credentials stop here and the provider's own key is set; the path is joined
//! so that it never leaves the base URL; bodies stream both ways; no redirect is followed.

mod headers;
mod key;
mod model;
mod path;
mod tls;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, Version};
use tokio_util::sync::CancellationToken;

use crate::body::UpstreamBody;
use crate::headers::check_framing;
use crate::upstream::{Answer, Target, Upstream};
use crate::{Activity, ForwardError, Limits, Refusal, RequestBody, ResponseBody};

pub use key::{ProviderKey, ProviderKeyError};
pub(crate) use model::ModelScanner;

/// How a provider wants its key, and whose dialect it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// `Authorization: Bearer KEY`; `/chat/completions` and the like.
    OpenAi,
    /// `x-api-key: KEY` and `anthropic-version`; `/v1/messages`.
    Anthropic,
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
    key: Option<ProviderKey>,
    upstream: Upstream,
}

/// A provider's reply.
#[derive(Debug)]
pub struct ProviderReply {
    /// The response, its headers cleaned.
    pub response: Response<ResponseBody>,
    /// The `model` of the request's JSON body, as far as it was seen; for log lines.
    pub model: Option<String>,
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
        let address = tls::address(&base, &config.roots)?;
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
                key: config.key,
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

    /// What happens with it at the moment.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        self.inner.upstream.activity()
    }

    /// Sends one request. `rest` is what follows `/provider/v1/{name}` in the path exactly
    /// as it arrived, still percent-encoded, with or without its leading slash; the query
    /// comes from `request`. `cancel` ends with the caller's right to call (its start, its
    /// token) and cuts the exchange at once.
    ///
    /// Of the caller's headers only an allowlist goes up; its `Authorization`, `x-api-key`,
    /// cookies and forwarding headers never do. No redirect is followed.
    ///
    /// # Errors
    /// [`ForwardError`]; a path that would leave the base URL is refused.
    pub async fn send(
        &self,
        request: Request<RequestBody>,
        rest: &str,
        cancel: &CancellationToken,
    ) -> Result<ProviderReply, ForwardError> {
        let inner = &*self.inner;
        let (mut parts, body) = request.into_parts();
        if parts.method == Method::CONNECT || parts.method == Method::TRACE {
            return Err(ForwardError::Refused(Refusal::Method));
        }
        check_framing(&parts.headers).map_err(|_| ForwardError::Refused(Refusal::Headers))?;
        parts.uri = inner
            .base
            .join(rest, parts.uri.query())
            .map_err(ForwardError::Refused)?;
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        parts.headers =
            headers::request(&parts.headers, inner.kind, &inner.host, inner.key.as_ref())
                .map_err(ForwardError::Refused)?;

        let scanner = ModelScanner::new();
        let model = scanner.model();
        let limit = inner.upstream.limits().max_request_body;
        let body = UpstreamBody::new(body, limit, Some(scanner));
        let Answer { response, lease } = inner
            .upstream
            .exchange(
                Request::from_parts(parts, body),
                Some(cancel.clone()),
                true,
                false,
            )
            .await?;

        let (mut parts, incoming) = response.into_parts();
        if parts.status.is_redirection() {
            return Err(ForwardError::BadResponse {
                reason: "it redirects, and redirects are not followed; check the base URL",
                source: None,
            });
        }
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        headers::clean_response(&mut parts.headers, inner.key.as_ref());
        let body = lease.into_body(&parts.headers, incoming).await;
        Ok(ProviderReply {
            response: Response::from_parts(parts, body),
            model: model.get(),
        })
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
