//! One place where a provider's API lives: its connections, its key, its health.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use gateway::Limits;
use gateway::provider as upstream;

use super::ProvidersError;
use crate::config::{Addresses, Provider, ProviderKind, ProviderUpstream};

/// Largest key file, in bytes.
const MAX_KEY_FILE: u64 = 16 << 10;

/// Failures in a row after which a place is left alone for a while.
const FAILURES: u32 = 3;

/// The first pause of a place that fails; doubles with each further failure, up to the last.
const PAUSE_MS: i64 = 2_000;
const MAX_PAUSE_MS: i64 = 60_000;

/// One place.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) upstream: upstream::Provider,
    pub(super) weight: u32,
    key: Option<KeyFile>,
    failures: AtomicU32,
    /// Not before this moment again, Unix milliseconds.
    rests_until: AtomicI64,
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
                ..Limits::provider()
            },
        });
        Ok(Self {
            upstream: built.map_err(|source| ProvidersError::Config {
                provider: name.clone(),
                source,
            })?,
            weight: config.weight,
            key: config.key_file.clone().map(|path| KeyFile {
                path,
                seen: Mutex::new(stamp),
            }),
            failures: AtomicU32::new(0),
            rests_until: AtomicI64::new(0),
        })
    }

    /// Whether it may be tried.
    pub(super) fn is_up(&self, now_ms: i64) -> bool {
        self.rests_until.load(Ordering::Relaxed) <= now_ms
    }

    /// It answered.
    pub(super) fn succeeded(&self) {
        if self.failures.swap(0, Ordering::Relaxed) > 0 {
            self.rests_until.store(0, Ordering::Relaxed);
        }
    }

    /// It did not.
    pub(super) fn failed(&self, now_ms: i64) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(more) = failures.checked_sub(FAILURES) {
            let pause = PAUSE_MS.saturating_mul(1 << more.min(16)).min(MAX_PAUSE_MS);
            self.rests_until.store(now_ms + pause, Ordering::Relaxed);
        }
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
