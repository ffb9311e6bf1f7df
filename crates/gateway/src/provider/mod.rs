//! Model providers as upstreams.

use std::path::PathBuf;

use http::{HeaderValue, Request, Response};
use tokio_util::sync::CancellationToken;

use crate::{ForwardError, Limits, RequestBody, ResponseBody};

/// How a provider wants its key, and whose dialect it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// `Authorization: Bearer KEY`; `/chat/completions` and the like.
    OpenAi,
    /// `x-api-key: KEY` and `anthropic-version`; `/v1/messages`.
    Anthropic,
}

/// A provider's key. It has no `Display` and no revealing `Debug`.
#[derive(Clone)]
pub struct ProviderKey(HeaderValue);

/// A key that cannot stand in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the provider key is empty or has characters that cannot stand in a header")]
pub struct ProviderKeyError;

impl ProviderKey {
    /// Takes a key as it stands in its file; surrounding white space is cut off.
    ///
    /// # Errors
    /// When nothing is left, or when a character is not visible ASCII.
    pub fn new(key: &str) -> Result<Self, ProviderKeyError> {
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ProviderKeyError);
        }
        let mut value = HeaderValue::from_str(key).map_err(|_| ProviderKeyError)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl std::fmt::Debug for ProviderKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProviderKey(…)")
    }
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
    /// Its base URL, `https://api.openai.com/v1`.
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
}

/// One provider: its TLS configuration and its connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Provider {
    config: std::sync::Arc<ProviderConfig>,
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
    /// Checks the configuration and loads the trust roots.
    ///
    /// # Errors
    /// [`ProviderConfigError`] names what is wrong.
    pub fn new(config: ProviderConfig) -> Result<Self, ProviderConfigError> {
        Ok(Self {
            config: std::sync::Arc::new(config),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
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
        let _ = (request, rest, cancel);
        Err(ForwardError::Ended)
    }
}
