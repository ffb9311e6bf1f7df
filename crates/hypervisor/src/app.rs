//! The composition root: what every handler and service reaches for.

use std::collections::HashSet;
use std::sync::Arc;

use crypto::{OsRandom, Token, TokenKind};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use types::{SessionId, UserId};
use uuid::Uuid;

use crate::clock::Clock;
use crate::config::Config;
use crate::error::Error;
use crate::http::metrics::Metrics;
use crate::http::runtime::RuntimeSessions;
use crate::services::audit::Audit;
use crate::services::ceremonies::Ceremonies;
use crate::services::passkeys::RelyingParty;
use crate::services::rate::RateLimits;
use crate::services::recovery::CodeHashing;
use crate::services::sandboxes::Sandboxes;
use crate::store::Store;

/// Users whose sessions ended that a slow listener may lag behind by.
const SESSIONS_ENDED_BACKLOG: usize = 256;

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
    /// Randomness.
    pub random: OsRandom,
    /// Passkeys.
    pub relying_party: RelyingParty,
    /// WebAuthn ceremonies under way.
    pub ceremonies: Ceremonies,
    /// Recovery codes.
    pub code_hashing: CodeHashing,
    /// Rate limits of the auth endpoints.
    pub rate: RateLimits,
    /// Sandboxes: lifecycle, routes, channels.
    pub sandboxes: Arc<Sandboxes>,
    /// Sessions of runtime origins that were seen lately.
    pub runtime_sessions: RuntimeSessions,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Tells whose sessions or tokens were ended before their time. Whoever serves a long
    /// stream asks `store.session_lives` again when its user is named here, or when it lagged.
    pub ended: broadcast::Sender<UserId>,
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
        let random = OsRandom::new();
        let made = Token::generate(TokenKind::Setup, &random).map_err(Error::internal)?;
        let stand_in_key = store
            .installation_value("stand_in_key", || made.hash().to_string())
            .await?;
        let relying_party = RelyingParty::new(&config.origins, stand_in_key)?;
        let code_hashing = CodeHashing::new(&random)?;
        let rate = RateLimits::new(&config.auth);
        let ceremonies = Ceremonies::new(clock.clone());
        let metrics = Arc::new(Metrics::new());
        let sandboxes = Sandboxes::new(&config, &store, &audit, &clock, &metrics).await?;
        Ok(Arc::new(Self {
            config,
            store,
            audit,
            clock,
            random,
            relying_party,
            ceremonies,
            code_hashing,
            rate,
            sandboxes: Arc::new(sandboxes),
            runtime_sessions: RuntimeSessions::default(),
            metrics,
            ended: broadcast::Sender::new(SESSIONS_ENDED_BACKLOG),
            draining: CancellationToken::new(),
        }))
    }

    /// Cuts what goes on in the names of a user's sessions that were ended, and leaves their
    /// others alone. To be called once the database knows.
    pub async fn sessions_ended(&self, user: UserId) {
        // When the database cannot be asked, nobody vouches for any of them.
        let live: HashSet<SessionId> = match self.store.sessions(user, self.clock.now_ms()).await {
            Ok(rows) => rows.into_iter().map(|row| row.id).collect(),
            Err(error) => {
                tracing::error!(%error, %user, "sessions cannot be read; all are cut");
                HashSet::new()
            }
        };
        self.runtime_sessions
            .forget(user, &|session| !live.contains(&session));
        self.sandboxes.cut_off(user, &|session| {
            !live.contains(&SessionId::from_uuid(Uuid::from_u128(session)))
        });
        // An error means that nobody listens.
        let _ = self.ended.send(user);
    }
}
