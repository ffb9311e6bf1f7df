//! The composition root: what every handler and service reaches for.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::error::Error;
use crate::services::audit::Audit;
use crate::services::sandboxes::Sandboxes;
use crate::store::Store;

/// Everything that lives as long as the process. Shared as `Arc<App>`.
#[derive(Debug)]
pub struct App {
    /// The configuration.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// The ledger.
    pub audit: Audit,
    /// The time.
    pub clock: Clock,
    /// Sandboxes: lifecycle, routes, channels.
    pub sandboxes: Sandboxes,
    /// Cancelled when the process begins to drain.
    pub draining: CancellationToken,
}

impl App {
    /// Opens what is in the data directory and composes the services. Nothing is served yet.
    ///
    /// # Errors
    /// The data directory, the database or the ledger cannot be used.
    pub async fn open(config: Config, clock: Clock) -> Result<Arc<Self>, Error> {
        let store = Store::open(&config.data_dir.join("hypervisor.db")).await?;
        let audit = Audit::open(&config.data_dir.join("audit"), clock.clone())?;
        let sandboxes = Sandboxes::new(&config);
        Ok(Arc::new(Self {
            config,
            store,
            audit,
            clock,
            sandboxes,
            draining: CancellationToken::new(),
        }))
    }
}
