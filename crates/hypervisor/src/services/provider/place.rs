//! One place where a provider's API lives: its connections, its key, its health.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use gateway::Limits;
use gateway::provider as upstream;

use super::ProvidersError;
use crate::clock::millis;
use crate::config::{Addresses, Provider, ProviderKind, ProviderUpstream};

/// Largest key file, in bytes.
const MAX_KEY_FILE: u64 = 16 << 10;

/// Failures in a row after which a place is left alone for a while.
const FAILURES: u32 = 3;

/// The first pause of a place that fails; doubles with each further failure, up to the last.
const PAUSE_MS: i64 = 2_000;
const MAX_PAUSE_MS: i64 = 60_000;

/// How long a place rests that has reached a limit and does not say for how long, and the
/// longest that it may say.
const LIMITED: Duration = Duration::from_secs(1);
const MAX_LIMITED: Duration = Duration::from_secs(10 * 60);

/// One place.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) upstream: upstream::Provider,
    pub(super) weight: u32,
    /// For the log.
    host: String,
    key: Option<KeyFile>,
    failures: AtomicU32,
    /// Not before this moment again, Unix milliseconds: it failed, or refused its key.
    rests_until: AtomicI64,
    /// The same, because it is at a limit of its own. Calls that had begun before may well
    /// succeed, which says nothing about that.
    limited_until: AtomicI64,
}

/// A key's file, and what it looked like when it was read.
#[derive(Debug)]
struct KeyFile {
    path: PathBuf,
    seen: Mutex<Option<Stamp>>,
}

/// Changes whenever a file is replaced or rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            inode: metadata.ino(),
        })
    }
}

impl Place {
    /// Reads the key and prepares connections; connects to nothing yet.
    pub(super) fn new(
        provider: &Provider,
        config: &ProviderUpstream,
        max_request: u64,
    ) -> Result<Self, ProvidersError> {
        let name = &provider.name;
        let mut stamp = None;
        let key = match &config.key_file {
            None => None,
            Some(path) => {
                stamp = Stamp::of(path).ok();
                Some(read_key(name, path)?)
            }
        };
        let kind = match provider.kind {
            ProviderKind::OpenAi | ProviderKind::Demo => upstream::ProviderKind::OpenAi,
            ProviderKind::Anthropic => upstream::ProviderKind::Anthropic,
            ProviderKind::Gemini => upstream::ProviderKind::Gemini,
            ProviderKind::Bedrock => upstream::ProviderKind::Bedrock,
        };
        let timeouts = provider.timeouts;
        let built = upstream::Provider::new(upstream::ProviderConfig {
            name: name.clone(),
            kind,
            base_url: config.base_url.to_string(),
            key,
            headers_up: provider.headers_up.clone(),
            headers_down: provider.headers_down.clone(),
            private_addresses: provider.addresses == Addresses::PrivateNetworkToo,
            whole_reply: timeouts.whole,
            roots: match &provider.ca_file {
                Some(file) => upstream::TrustRoots::File(file.clone()),
                None => upstream::TrustRoots::WebPki,
            },
            limits: Limits {
                connect: timeouts.connect,
                first_byte: timeouts.first_byte,
                response_idle: timeouts.idle,
                max_request_body: max_request,
                max_exchanges: provider.connections,
                max_waiting: provider.connections,
                ..Limits::provider()
            },
        });
        Ok(Self {
            upstream: built.map_err(|source| ProvidersError::Config {
                provider: name.clone(),
                source,
            })?,
            weight: config.weight,
            host: config.base_url.host_str().unwrap_or_default().to_owned(),
            key: config.key_file.clone().map(|path| KeyFile {
                path,
                seen: Mutex::new(stamp),
            }),
            failures: AtomicU32::new(0),
            rests_until: AtomicI64::new(0),
            limited_until: AtomicI64::new(0),
        })
    }

    /// Whether it may be tried.
    pub(super) fn is_up(&self, now_ms: i64) -> bool {
        self.rests_until.load(Ordering::Relaxed) <= now_ms
            && self.limited_until.load(Ordering::Relaxed) <= now_ms
    }

    /// It answered.
    pub(super) fn succeeded(&self) {
        // Looked at first: calls side by side are not to write to one word.
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.rests_until.load(Ordering::Relaxed) > 0 {
            self.rests_until.store(0, Ordering::Relaxed);
        }
    }

    /// It did not.
    pub(super) fn failed(&self, now_ms: i64) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(more) = failures.checked_sub(FAILURES) {
            let pause = PAUSE_MS.saturating_mul(1 << more.min(16)).min(MAX_PAUSE_MS);
            self.rests_until.store(now_ms + pause, Ordering::Relaxed);
            tracing::warn!(
                provider = self.upstream.name(),
                host = self.host,
                failures,
                pause_ms = pause,
                "a place of the provider fails and is left alone for a while"
            );
        }
    }

    /// It does not take its key, or the account has no credit.
    pub(super) fn refuses_key(&self, status: u16, now_ms: i64) {
        self.rests_until
            .store(now_ms + MAX_PAUSE_MS, Ordering::Relaxed);
        tracing::error!(
            provider = self.upstream.name(),
            host = self.host,
            key_file = self.key.as_ref().map(|key| key.path.display().to_string()),
            status,
            "the provider refuses its key; put a valid one into its file"
        );
    }

    /// It is at a limit of its own, and asks to be left alone for this long.
    pub(super) fn is_limited(&self, asked: Option<Duration>, now_ms: i64) {
        let pause = asked.unwrap_or(LIMITED).min(MAX_LIMITED);
        self.limited_until
            .fetch_max(now_ms + millis(pause), Ordering::Relaxed);
    }

    /// Takes the key again if its file has changed. A file that is gone or holds no key
    /// leaves the one before in use, and the log says so each time it changes.
    pub(super) fn refresh_key(&self) {
        let Some(file) = &self.key else { return };
        let now = Stamp::of(&file.path).ok();
        {
            let mut seen = file.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == now {
                return;
            }
            *seen = now;
        }
        let name = self.upstream.name();
        match read_key(name, &file.path) {
            Ok(key) => {
                self.upstream.set_key(Some(key));
                self.succeeded();
                self.limited_until.store(0, Ordering::Relaxed);
                tracing::info!(provider = name, "took the provider's new key");
            }
            Err(error) => {
                tracing::error!(provider = name, %error, "the provider's key file changed and is of no use; the key before stays in use");
            }
        }
    }
}

fn read_key(provider: &str, path: &Path) -> Result<upstream::ProviderKey, ProvidersError> {
    let unreadable = |source| ProvidersError::KeyFile {
        provider: provider.to_owned(),
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_KEY_FILE {
        return Err(unreadable(std::io::Error::other(
            "it is too large for a key",
        )));
    }
    let text = crypto::SecretText::new(std::fs::read_to_string(path).map_err(unreadable)?);
    upstream::ProviderKey::new(text.expose()).map_err(|source| ProvidersError::Key {
        provider: provider.to_owned(),
        path: path.to_owned(),
        source,
    })
}
