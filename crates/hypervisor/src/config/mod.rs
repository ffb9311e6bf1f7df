//! Configuration: read once, validated once, typed from then on (style 2).

mod changes;
mod egress;
mod error;
mod gateway;
mod limits;
mod network;
mod origins;
mod preview;
mod providers;
mod raw;
mod sandbox;
mod sections;
mod telemetry;
#[cfg(test)]
mod tests;
mod values;

use std::path::PathBuf;
use std::time::Duration;

pub use self::gateway::{Gateway, NANO_DOLLARS, Rates};
pub use changes::wait_for_restart;
pub use egress::Egress;
pub use error::ConfigError;
pub use limits::{Limits, Share};
pub use network::Network;
pub use origins::{HostMatch, Origin, OriginTemplate, Origins, RuntimeOrigins};
pub use preview::PreviewTemplate;
pub use providers::{
    Addresses, ModelCheck, Price, Provider, ProviderKind, ProviderPath, ProviderUpstream, Routing,
    Timeouts,
};
pub use raw::RawConfig;
pub use sandbox::{IdleStop, Mount, Places, Sandbox, Swap};
pub use sections::{Auth, Listen, Log, LogFormat, Registration, TlsFiles};
pub use telemetry::Otlp;

/// Longer than a request that is under way usually takes, and than a guest's grace.
const DRAIN: Duration = Duration::from_secs(30);

/// The whole configuration, valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the persistent state lives; absolute.
    pub data_dir: PathBuf,
    /// How long the end of the process may take: first for what is under way, then, when
    /// sandboxes are to end too, once more for them.
    pub drain: Duration,
    /// Listeners.
    pub listen: Listen,
    /// Public addresses.
    pub origins: Origins,
    /// Sign-in.
    pub auth: Auth,
    /// What sandboxes get.
    pub sandbox: Sandbox,
    /// What commands may reach.
    pub network: Egress,
    /// Model providers; the first is the default one. Never empty: without any in the
    /// file this is the offline demo.
    pub providers: Vec<Provider>,
    /// Model calls.
    pub gateway: Gateway,
    /// Logs.
    pub log: Log,
    /// The collector that is told of model calls, if any.
    pub otlp: Option<Otlp>,
}

impl Config {
    /// Validates a raw configuration.
    ///
    /// # Errors
    /// The first value that cannot be, by key and value, with what would be valid.
    pub fn build(raw: RawConfig) -> Result<Self, ConfigError> {
        let listen = Listen::build(&raw.listen)?;
        let origins = Origins::build(&raw.origins, listen.address.port())?;
        if listen.tls.is_some() && !origins.control.is_secure() {
            return Err(ConfigError::value(
                "origins.control",
                &origins.control,
                "listen.tls is set, so the origin is not http",
                "an origin with https://",
            ));
        }
        let data_dir = raw
            .data_dir
            .unwrap_or_else(|| PathBuf::from("/var/lib/choir"));
        let data_dir = std::path::absolute(&data_dir).map_err(|error| {
            ConfigError::value(
                "data_dir",
                data_dir.display(),
                error.to_string(),
                "the path of a directory",
            )
        })?;
        let gateway = Gateway::build(&raw.gateway)?;
        let providers = providers::build_providers(&raw.providers)?;
        providers::check_budgets(&providers, &gateway)?;
        Ok(Self {
            data_dir,
            drain: values::duration("drain", raw.drain.as_deref(), DRAIN)?,
            listen,
            origins,
            auth: Auth::build(&raw.auth)?,
            sandbox: Sandbox::build(&raw.sandbox)?,
            network: Egress::build(&raw.network)?,
            providers,
            gateway,
            log: Log::build(&raw.log)?,
            otlp: raw.telemetry.otlp.as_ref().map(Otlp::build).transpose()?,
        })
    }

    /// The default provider and its default model.
    #[must_use]
    pub fn default_provider(&self) -> Option<&Provider> {
        self.providers.first()
    }
}
