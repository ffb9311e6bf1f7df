//! What proxy, channels and lifecycle share, and the answers that the fleet wants from the
//! control plane.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crypto::{OsRandom, Random, Token, TokenHash};
use gateway::{AppSocket, Forwarder, Limits, Upstream, Upstreams};
use runtime::spec::{Bind, GUEST_BINARY, GuestSpec, HostIds, Nonce, SandboxSpec, WORKSPACE};
use runtime::{BoxFuture, Crashed, Host, Instance, StartError, StartRequest};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use types::{NoticeKind, Role, SandboxId, StartId, UserId, UserName};

use super::environment::{self, Identity};
use super::limits::EffectiveLimits;
use super::notices::Notices;
use super::owners::Owners;
use super::snapshots::copies::Copies;
use super::symptoms::Symptoms;
use super::table::RouteTable;
use super::telemetry;
use super::tokens::{Slot, Tokens};
use crate::actor::{Actor, Grant, User};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::Error;
use crate::http::channel;
use crate::http::channel::lanes::Lanes;
use crate::http::metrics::Metrics;
use crate::services::audit::{Audit, Entry};
use crate::services::commands;
use crate::services::egress::Networks;
use crate::services::health;
use crate::services::ports::Tunnels;
use crate::services::provider::Providers;
use crate::store::{RouteRow, Store};

/// The directory of a sandbox that holds workspace, home and data: one name, so that all
/// three can be replaced in one step.
pub(crate) const STATE: &str = "state";

/// Bytes of guest output that its supervisor keeps.
const LOG_BYTES: u64 = 1 << 20;

/// What proxy, channels and lifecycle share.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Store,
    pub(crate) audit: Audit,
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) providers: Providers,
    pub(crate) routes: RouteTable,
    pub(crate) owners: Owners,
    pub(crate) tokens: Tokens,
    /// Where the connections of channels are worked on.
    pub(crate) lanes: Lanes,
    pub(crate) notices: Notices,
    pub(crate) networks: Networks,
    pub(crate) upstreams: Upstreams,
    pub(crate) forwarder: Forwarder,
    pub(crate) random: OsRandom,
    pub(crate) binaries: Binaries,
    /// Tunnels to ports of workbenches.
    pub(crate) tunnels: Tunnels,
    /// Signs that pages and runtimes do not fit together.
    pub(crate) symptoms: Symptoms,
    pub(crate) began: Instant,
    /// Names users whose routes, swaps or notices have changed, for those who follow.
    pub(crate) changes: broadcast::Sender<UserId>,
    /// Sandboxes that may run at the same time.
    pub(crate) places: usize,
    /// Copying that is under way.
    pub(crate) copies: Arc<Copies>,
    /// Cancelled when no model is called any more, because the process is about to end.
    pub(crate) closing: CancellationToken,
}

/// The programs that belong to this one.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    pub(crate) supervisor: PathBuf,
    pub(crate) sandbox: PathBuf,
}

impl Binaries {
    /// Next to this program, unless the configuration says otherwise.
    pub(crate) fn find(config: &Config) -> Result<Self, Error> {
        let dir = match &config.sandbox.binaries_dir {
            Some(dir) => dir.clone(),
            None => {
                let own = std::env::current_exe().map_err(Error::internal)?;
                let mut dir = own.parent().map(PathBuf::from).unwrap_or_default();
                // Test programs of cargo lie one directory below the others.
                if dir.ends_with("deps") {
                    dir.pop();
                }
                dir
            }
        };
        Ok(Self {
            supervisor: dir.join("supervisor"),
            sandbox: dir.join("sandbox"),
        })
    }
}

/// What a later hypervisor has to know to take a start over. Lies in a file: hashes only.
#[derive(Serialize, Deserialize)]
struct HostRecord {
    token_hash: TokenHash,
}

/// Changes that a slow follower may lag behind by; then it looks at everything again.
pub(super) const CHANGES_BACKLOG: usize = 64;

impl Plane {
    /// Tells followers that a user's routes, swaps or notices have changed.
    pub(crate) fn changed(&self, user: UserId) {
        // An error means that nobody follows.
        let _ = self.changes.send(user);
    }

    /// The role that a sandbox has now, if its route was published.
    pub(super) fn role_of(&self, sandbox: SandboxId) -> Option<Role> {
        self.routes.of_sandbox(sandbox)?.role_of(sandbox)
    }

    /// The route of a user, from memory or from the database.
    ///
    /// # Errors
    /// The database failed, or the user is gone.
    pub(crate) async fn route(&self, user: UserId) -> Result<RouteRow, Error> {
        if let Some(route) = self.routes.of_user(user) {
            return Ok(route);
        }
        let route = self
            .store
            .route(user)
            .await?
            .ok_or(Error::NotFound("sandbox"))?;
        self.routes.publish(route);
        Ok(route)
    }

    /// The upstream of a start; every request of a start shares one.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn upstream(&self, instance: &Instance) -> Result<Upstream, Error> {
        if let Some(upstream) = self.upstreams.get(instance.start_id) {
            return Ok(upstream);
        }
        let socket = app_socket(instance)?;
        let (start, ended) = (instance.start_id, instance.ended().clone());
        Ok(self
            .upstreams
            .get_or_insert(start, || Upstream::app(start, socket, ended, Limits::app())))
    }

    /// The right of a channel to call models: it ends with the channel, and before the process
    /// does, so that what was used until then is written down.
    pub(crate) fn right(&self, channel: &CancellationToken) -> CancellationToken {
        let right = channel.child_token();
        let (ends, closing) = (right.clone(), self.closing.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = closing.cancelled() => ends.cancel(),
                () = ends.cancelled() => {}
            }
        });
        right
    }

    /// Who acts through a channel of this sandbox: its owner, and the role it has now.
    ///
    /// # Errors
    /// The database failed, or the owner is gone or disabled.
    pub(crate) async fn owner(&self, sandbox: SandboxId) -> Result<(User, Role), Error> {
        let route = match self.routes.of_sandbox(sandbox) {
            Some(route) => route,
            None => {
                let row = self
                    .store
                    .sandbox(sandbox)
                    .await?
                    .ok_or(Error::NotFound("sandbox"))?;
                self.route(row.user_id).await?
            }
        };
        let user = self.owners.get(&self.store, route.user_id).await?;
        let role = route.role_of(sandbox).ok_or(Error::NotFound("sandbox"))?;
        Ok((user, role))
    }

    async fn prepare(&self, sandbox: SandboxId, start: StartId) -> Result<StartRequest, Error> {
        let row = self
            .store
            .sandbox(sandbox)
            .await?
            .ok_or(Error::NotFound("sandbox"))?;
        let (owner, role) = self.owner(sandbox).await?;
        let entry = Entry::allowed("sandbox.begin", sandbox.to_string())
            .about_user(owner.id, &owner.name)
            .in_sandbox(sandbox, Some(role))
            .with("start", start.to_string());
        self.audit.record(&Actor::internal(), entry).await?;
        let token = Tokens::mint(&self.random).map_err(Error::internal)?;
        let record = HostRecord {
            token_hash: token.hash(),
        };
        let host_record = serde_json::to_string(&record).map_err(Error::internal)?;
        let identity = Identity {
            sandbox,
            user: owner.id,
            role,
        };
        let host_ids = rustix::process::geteuid().is_root().then_some(HostIds {
            uid: row.host_uid,
            gid: row.host_uid,
        });
        // Not the role: a swap changes that, and a host name stays.
        let hostname = owner.name.to_string();
        let spec = self.spec(identity, start, hostname, host_ids, &token)?;
        Ok(StartRequest { spec, host_record })
    }

    fn spec(
        &self,
        identity: Identity,
        start: StartId,
        hostname: String,
        host_ids: Option<HostIds>,
        token: &Token,
    ) -> Result<SandboxSpec, Error> {
        let config = &self.config.sandbox;
        let limits = EffectiveLimits::of(config);
        let data_dir = &self.config.data_dir;
        let own = self.sandbox_dir(identity.sandbox).join(STATE);
        let extra_mounts = config
            .mounts
            .iter()
            .map(|mount| Bind {
                source: mount.source.clone(),
                target: mount.target.clone(),
            })
            .collect();
        Ok(SandboxSpec {
            sandbox_id: identity.sandbox,
            start_id: start,
            nonce: self.nonce()?,
            hostname,
            host_ids,
            run_dir: data_dir.join("run").join(start.to_string()),
            workspace: own.join("workspace"),
            home: own.join("home"),
            data: own.join("data"),
            guest_binary: self.binaries.sandbox.clone(),
            extra_mounts,
            path_additions: Vec::new(),
            desktop_override: None,
            guest: GuestSpec {
                argv: vec![GUEST_BINARY.to_owned()],
                env: environment::of_guest(&self.config, identity, token.expose()),
                cwd: WORKSPACE.to_owned(),
            },
            rlimits: limits.of_processes(),
            limits: limits.of_trees(identity.user),
            cgroup: None,
            disk: limits.of_disk(),
            accept_missing: config.accept_missing.clone(),
            log_bytes: LOG_BYTES,
        })
    }

    /// Where everything of a sandbox lies: its present state, and its snapshots.
    pub(crate) fn sandbox_dir(&self, sandbox: SandboxId) -> PathBuf {
        let all = self.config.data_dir.join("sandboxes");
        all.join(sandbox.to_string())
    }

    /// A file that is there when the guest's token of a start has lapsed; it goes with the start.
    fn lapse_file(&self, instance: &Instance) -> PathBuf {
        let run = self.config.data_dir.join("run");
        run.join(instance.start_id.to_string()).join("lapsed")
    }

    /// Whether the guest's token of a start has lapsed; also when that cannot be told.
    fn has_lapsed(&self, instance: &Instance) -> bool {
        self.lapse_file(instance).try_exists().unwrap_or(true)
    }

    fn nonce(&self) -> Result<Nonce, Error> {
        let mut bytes = [0_u8; 32];
        self.random.fill(&mut bytes).map_err(Error::internal)?;
        Ok(Nonce::new(
            bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        ))
    }
}

/// Keeps it when the token of a guest lapses, so that it stays dead in the same start under
/// the next hypervisor, and tells the owner.
fn watch_lapse(plane: Arc<Plane>, instance: Arc<Instance>, slot: Arc<Slot>) {
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = instance.ended().cancelled() => return,
            () = slot.lapsed(&plane.clock) => {}
        }
        let file = plane.lapse_file(&instance);
        if let Err(error) = tokio::fs::write(file, "").await {
            tracing::error!(start = %instance.start_id, %error, "the lapse of a token could not be kept");
        }
        plane.notices.note(
            instance.sandbox_id,
            NoticeKind::Other,
            "token",
            "The runtime did not renew its gateway token in time: its model calls and commands \
             were cut, and new ones are refused.",
            Some("restart the sandbox: choir sandbox restart"),
        );
    });
}

/// Nothing runs for a disabled account.
pub(super) fn disabled(owner: &UserName) -> Error {
    Error::Conflict(format!(
        "the account {owner} is disabled; an administrator has to enable it first"
    ))
}

/// The socket of a start's app, under a name that the sandbox controls.
///
/// # Errors
/// No descriptor is left.
pub(crate) fn app_socket(instance: &Instance) -> Result<AppSocket, Error> {
    instance
        .app_dir()
        .try_clone_to_owned()
        .map(AppSocket::new)
        .map_err(Error::internal)
}

/// Answers the fleet's questions.
pub(super) struct Asked(pub(super) Arc<Plane>);

impl Host for Asked {
    fn prepare(
        &self,
        sandbox: SandboxId,
        start: StartId,
    ) -> BoxFuture<'_, Result<StartRequest, StartError>> {
        Box::pin(async move {
            self.0.prepare(sandbox, start).await.map_err(|error| {
                let hint = error.hint();
                let error = StartError::new("not_prepared", error.to_string());
                match hint {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                }
            })
        })
    }

    fn serve_channel(&self, instance: Arc<Instance>, listener: UnixListener) {
        // A record that cannot be read leaves a channel on which no token is valid.
        let hash = serde_json::from_str::<HostRecord>(instance.host_record()).map_or_else(
            |_| TokenHash::from_bytes([0; 32]),
            |record| record.token_hash,
        );
        let (plane, sandbox) = (&self.0, instance.sandbox_id);
        let slot = if plane.has_lapsed(&instance) {
            plane.tokens.lapsed(sandbox, hash)
        } else {
            plane.tokens.guest(sandbox, hash, plane.clock.awake_ms())
        };
        telemetry::follow(Arc::clone(plane), &instance);
        watch_lapse(Arc::clone(plane), Arc::clone(&instance), Arc::clone(&slot));
        let ended = instance.ended().clone();
        let peer = channel::Peer {
            instance,
            command: None,
            grant: Grant::default(),
            network: None,
            slot,
            ended,
        };
        channel::serve(Arc::clone(&self.0), peer, listener);
    }

    fn adopted(&self, instance: Arc<Instance>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            commands::take_over(&self.0, &instance).await;
            commands::end_orphans(&self.0, &instance).await;
        })
    }

    fn restartable(&self, instance: &Instance) -> bool {
        // The environment of its guest holds a token that is dead.
        !self.0.has_lapsed(instance)
    }

    fn healthy(&self, instance: Arc<Instance>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let upstream = self
                .0
                .upstream(&instance)
                .map_err(|error| error.to_string())?;
            health::health(&self.0.forwarder, &upstream)
                .await
                .map_err(|error| error.to_string())
        })
    }

    fn room(&self, sandbox: SandboxId, occupied: &[SandboxId]) -> Result<(), StartError> {
        self.0.room(sandbox, occupied)
    }

    fn crashed(&self, sandbox: SandboxId, crash: Crashed) -> BoxFuture<'_, ()> {
        Box::pin(self.0.crashed(sandbox, crash))
    }

    fn settled(&self, sandbox: SandboxId) -> BoxFuture<'_, ()> {
        Box::pin(self.0.crashes_settled(sandbox))
    }

    fn crashes(&self, sandbox: SandboxId) -> BoxFuture<'_, u32> {
        Box::pin(self.0.crashes_kept(sandbox))
    }
}
