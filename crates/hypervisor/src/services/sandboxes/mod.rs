//! Sandboxes: lifecycle, routes, swap (arch §4).

mod capacity;
mod crashes;
mod environment;
mod explain;
pub(crate) mod follow;
mod idle;
pub(crate) mod limits;
pub(crate) mod notices;
mod owners;
mod plane;
pub(crate) mod snapshots;
mod swap;
#[cfg(test)]
mod swap_tests;
pub(crate) mod symptoms;
mod table;
mod telemetry;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod tokens;
mod trial;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gateway::websocket::CloseNotice;
use policy::Action;
use runtime::{Fleet, FleetOptions, Instance, NamespaceDriver, SandboxRuntime, StartError, Status};
use tokio::sync::{OwnedRwLockReadGuard, broadcast};
use tokio_util::sync::CancellationToken;
use types::{Role, SandboxId, SandboxNotice, SandboxState, SandboxView, UserId, UserName};

use crate::actor::{Actor, User};
use crate::app::App;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::Error;
use crate::http::channel::lanes::Lanes;
use crate::http::metrics::Metrics;
use crate::services::audit::{Audit, Entry};
use crate::services::authorize;
use crate::services::ports::Tunnels;
use crate::services::provider::{Providers, ProvidersError};
use crate::store::{RouteRow, Store};
pub(crate) use environment::{Identity, of_runner, of_runner_gateway, of_runner_network};
pub(crate) use plane::Plane;

/// The sandboxes of this hypervisor.
pub struct Sandboxes {
    plane: Arc<Plane>,
    fleet: Fleet,
    /// The swap on trial of each user, by the generation it made, with what ends the watch
    /// over it. Held for a look-up.
    trials: Mutex<HashMap<UserId, (u64, CancellationToken)>>,
    idle: idle::Idle,
    followers: follow::Followers,
}

impl std::fmt::Debug for Sandboxes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandboxes").finish_non_exhaustive()
    }
}

/// Whose sandboxes somebody acts on.
#[derive(Debug, Clone, Copy)]
pub enum Whose<'a> {
    /// Their own.
    Own,
    /// Anybody's, as an admin.
    Of(&'a UserName),
}

impl Sandboxes {
    /// Composes the service; nothing runs yet.
    ///
    /// # Errors
    /// A provider's key cannot be read, or this program does not know where it lies.
    pub async fn new(
        config: &Config,
        store: &Store,
        audit: &Audit,
        clock: &Clock,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Error> {
        let supervisor = plane::Binaries::find(config)?.supervisor;
        let driver = Arc::new(NamespaceDriver::new(
            supervisor,
            config.data_dir.join("run"),
            &config.data_dir.join("cgroups.json"),
        ));
        Self::with_driver(config, store, audit, clock, metrics, driver).await
    }

    /// The same over any driver.
    async fn with_driver(
        config: &Config,
        store: &Store,
        audit: &Audit,
        clock: &Clock,
        metrics: &Arc<Metrics>,
        driver: Arc<dyn SandboxRuntime>,
    ) -> Result<Self, Error> {
        let providers = Providers::open(config, store, clock.clone(), Arc::clone(metrics)).await?;
        let plane = Arc::new(Plane {
            config: Arc::new(config.clone()),
            store: store.clone(),
            audit: audit.clone(),
            clock: clock.clone(),
            metrics: Arc::clone(metrics),
            providers,
            routes: table::RouteTable::default(),
            owners: owners::Owners::default(),
            lanes: Lanes::begin().map_err(Error::internal)?,
            tokens: tokens::Tokens::new(config.gateway.token_lifetime),
            notices: notices::Notices::new(clock.clone(), Arc::clone(metrics)),
            networks: crate::services::egress::Networks::new(config),
            upstreams: gateway::Upstreams::new(),
            forwarder: gateway::Forwarder::new(),
            random: crypto::OsRandom::new(),
            binaries: plane::Binaries::find(config)?,
            tunnels: Tunnels::default(),
            symptoms: symptoms::Symptoms::default(),
            began: Instant::now(),
            changes: broadcast::Sender::new(plane::CHANGES_BACKLOG),
            places: capacity::places(config.sandbox.limits.running_per_host),
            copies: Arc::default(),
            closing: CancellationToken::new(),
        });
        let host = Arc::new(plane::Asked(Arc::clone(&plane)));
        let fleet = Fleet::new(driver, host, FleetOptions::default());
        Ok(Self {
            plane,
            fleet,
            trials: Mutex::default(),
            idle: idle::Idle::default(),
            followers: follow::Followers::default(),
        })
    }

    /// Takes what a reload can take of another configuration: the providers and the bounds of
    /// model calls.
    ///
    /// # Errors
    /// A key file or a section that cannot be used; nothing has changed then.
    pub fn reload_config(&self, config: &Config) -> Result<(), ProvidersError> {
        self.plane.providers.reload(config)?;
        self.plane.tokens.live_for(config.gateway.token_lifetime);
        Ok(())
    }

    /// The providers of model calls.
    pub fn providers(&self) -> &Providers {
        &self.plane.providers
    }

    /// Cuts what is still being called through channels, and waits until every call is in the
    /// usage table. Nothing is called any more afterwards.
    pub async fn close_calls(&self) {
        self.plane.closing.cancel();
        self.plane.providers.settle().await;
    }

    pub(crate) fn plane(&self) -> &Arc<Plane> {
        &self.plane
    }

    /// A user's two sandboxes, `live` first.
    ///
    /// # Errors
    /// The actor may not, or the database failed.
    pub async fn list(&self, actor: &Actor) -> Result<Vec<SandboxView>, Error> {
        let (owner, route) = self
            .authorize(actor, Whose::Own, Role::Live, Action::ViewSandbox)
            .await?;
        Ok(self.views(&route, &owner.name))
    }

    /// What a user should know about one of their sandboxes, the latest first.
    ///
    /// # Errors
    /// The actor may not, or the database failed.
    pub async fn notices(
        &self,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
    ) -> Result<Vec<SandboxNotice>, Error> {
        let (_, route) = self
            .authorize(actor, whose, role, Action::ViewSandbox)
            .await?;
        Ok(self.plane.notices.of(route.sandbox(role), role))
    }

    /// Everybody's sandboxes, by user.
    ///
    /// # Errors
    /// The actor is no admin, or the database failed.
    pub async fn list_all(&self, actor: &Actor) -> Result<Vec<SandboxView>, Error> {
        actor.require_admin()?;
        let users = self.plane.store.users().await?;
        let mut views = Vec::with_capacity(users.len() * 2);
        for user in users {
            let route = self.plane.route(user.id).await?;
            views.extend(self.views(&route, &user.name));
        }
        Ok(views)
    }

    /// Starts a sandbox, joins the start under way, or does nothing when it runs.
    ///
    /// # Errors
    /// The actor may not; it could not be started; the ledger cannot take the record.
    pub async fn start(
        &self,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
    ) -> Result<SandboxView, Error> {
        let (owner, route) = self
            .authorize(actor, whose, role, Action::StartSandbox)
            .await?;
        let sandbox = route.sandbox(role);
        self.record(actor, "sandbox.start", sandbox, &owner, role)
            .await?;
        self.begin(sandbox).await?;
        Ok(self.view(&route, &owner.name, role))
    }

    /// Stops a sandbox and everything in it.
    ///
    /// # Errors
    /// The actor may not; the ledger cannot take the record.
    pub async fn stop(
        &self,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
    ) -> Result<SandboxView, Error> {
        let (owner, route) = self
            .authorize(actor, whose, role, Action::StopSandbox)
            .await?;
        let sandbox = route.sandbox(role);
        self.record(actor, "sandbox.stop", sandbox, &owner, role)
            .await?;
        self.end_trial(&route, role, "live was stopped on purpose")
            .await;
        self.idle.forget(sandbox);
        self.fleet.stop(sandbox).await;
        Ok(self.view(&route, &owner.name, role))
    }

    /// Stops a sandbox and starts it again.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub async fn restart(
        &self,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
    ) -> Result<SandboxView, Error> {
        let (owner, route) = self
            .authorize(actor, whose, role, Action::RestartSandbox)
            .await?;
        let sandbox = route.sandbox(role);
        self.record(actor, "sandbox.restart", sandbox, &owner, role)
            .await?;
        // Before it is stopped: one that cannot be started now goes on.
        let in_place = self.plane.copies.start(sandbox).await?;
        self.end_trial(&route, role, "live was restarted on purpose")
            .await;
        self.fleet.stop(sandbox).await;
        self.begin_in_place(sandbox, in_place).await?;
        Ok(self.view(&route, &owner.name, role))
    }

    /// An account has changed in the database: nothing goes on by what it was before.
    pub(crate) fn owner_changed(&self, user: UserId) {
        self.plane.owners.changed(user);
    }

    /// Stops both sandboxes of a user, because the account was disabled. What goes on through
    /// them is cut at once.
    ///
    /// # Errors
    /// The database failed.
    pub(crate) async fn stop_of(&self, user: UserId) -> Result<(), Error> {
        let route = self.plane.route(user).await?;
        self.end_trial(&route, Role::Live, "the account was disabled")
            .await;
        let stop = async |role| {
            let sandbox = route.sandbox(role);
            self.idle.forget(sandbox);
            self.fleet.stop(sandbox).await;
        };
        tokio::join!(stop(Role::Live), stop(Role::Dev));
        Ok(())
    }

    /// Closes the WebSockets of a user's sessions that have ended; their others stay open.
    pub(crate) fn cut_off(&self, user: UserId, ended: &dyn Fn(u128) -> bool) {
        if let Some(route) = self.plane.routes.of_user(user) {
            let notice = CloseNotice::new(CloseNotice::GOING_AWAY, "the session has ended");
            self.close_with(&route, &|tag| ended(tag.session), &notice, Duration::ZERO);
        }
    }

    /// The running start that serves a role of the actor's own, for commands and logs.
    ///
    /// # Errors
    /// The actor may not, or it does not run: neither wakes a sandbox (arch §4).
    pub(crate) async fn running_own(
        &self,
        actor: &Actor,
        action: Action,
        role: Role,
    ) -> Result<Arc<Instance>, Error> {
        let (_, route) = self.authorize(actor, Whose::Own, role, action).await?;
        self.running(route.sandbox(role))
            .ok_or(Error::SandboxNotRunning)
    }

    /// The running start of a sandbox.
    #[must_use]
    pub fn running(&self, sandbox: SandboxId) -> Option<Arc<Instance>> {
        self.fleet.running(sandbox)
    }

    /// Where a sandbox stands.
    #[must_use]
    pub fn status(&self, sandbox: SandboxId) -> Status {
        self.fleet.status(sandbox)
    }

    /// Starts a stopped sandbox because its owner opened its page; the page waits (arch §4).
    /// One that failed is left alone: that takes an explicit start. One whose files are being
    /// copied or replaced is left alone until that is done: the page says so and asks again.
    ///
    /// # Errors
    /// There is no room for one more; the ledger cannot take the record.
    pub(crate) async fn wake(
        self: &Arc<Self>,
        actor: &Actor,
        route: &RouteRow,
        role: Role,
    ) -> Result<(), Error> {
        let sandbox = route.sandbox(role);
        if self.fleet.status(sandbox).state != SandboxState::Stopped {
            return Ok(());
        }
        let Some(in_place) = self.plane.copies.start_now(sandbox) else {
            return Ok(());
        };
        let entry =
            Entry::allowed("sandbox.wake", sandbox.to_string()).in_sandbox(sandbox, Some(role));
        self.plane.audit.record(actor, entry).await?;
        // Before the page is shown, which says so when there is no room.
        self.fleet.begin(sandbox).map_err(not_started)?;
        let sandboxes = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = sandboxes.begin_in_place(sandbox, in_place).await {
                tracing::warn!(%sandbox, %error, "the sandbox did not wake");
            }
        });
        Ok(())
    }

    /// What keeps a sandbox from being started for now, for people.
    pub(crate) fn copied(&self, sandbox: SandboxId) -> Option<String> {
        self.plane.copies.in_the_way(sandbox)
    }

    /// Makes a failed sandbox one that the next navigation wakes.
    pub(crate) async fn clear_failure(&self, sandbox: SandboxId) {
        if self.fleet.status(sandbox).state == SandboxState::Failed {
            self.fleet.stop(sandbox).await;
        }
    }

    /// Stops everything, when the installation itself ends (`up`, `stop --all`). Returns
    /// those that did not stop `within` the time; they are left as they are.
    pub async fn stop_all(&self, within: Duration) -> Vec<SandboxId> {
        self.end_trials("the installation was stopped").await;
        self.fleet.stop_all(within).await
    }

    async fn begin(&self, sandbox: SandboxId) -> Result<Arc<Instance>, Error> {
        if let Some(instance) = self.fleet.running(sandbox) {
            // Somebody wants it: it is not idle. One that is being stopped for that already
            // does not run any more, and is started again.
            self.plane
                .upstream(&instance)?
                .activity()
                .touch(Instant::now());
            if let Some(instance) = self.fleet.running(sandbox) {
                return Ok(instance);
            }
        }
        let in_place = self.plane.copies.start(sandbox).await?;
        self.begin_in_place(sandbox, in_place).await
    }

    /// Starts a sandbox whose files stay where they are meanwhile: they are not replaced while
    /// it starts, and it does not start while they are.
    async fn begin_in_place(
        &self,
        sandbox: SandboxId,
        _in_place: OwnedRwLockReadGuard<()>,
    ) -> Result<Arc<Instance>, Error> {
        let joined = matches!(
            self.fleet.status(sandbox).state,
            SandboxState::Running | SandboxState::Starting
        );
        let began = Instant::now();
        self.idle.forget(sandbox);
        let started = self.fleet.start(sandbox).await;
        if !joined {
            self.plane.metrics.start(started.is_ok(), began.elapsed());
        }
        started.map_err(not_started)
    }

    /// Whose sandbox it is, once the policy has agreed.
    async fn authorize(
        &self,
        actor: &Actor,
        whose: Whose<'_>,
        role: Role,
        action: Action,
    ) -> Result<(User, RouteRow), Error> {
        let owner = match whose {
            Whose::Own => actor.user()?.clone(),
            Whose::Of(name) => {
                // Before the look-up: whether a user exists is for admins to know.
                actor.require_admin()?;
                let row = self
                    .plane
                    .store
                    .user_by_name(name)
                    .await?
                    .ok_or(Error::NotFound("user"))?;
                let begins = matches!(action, Action::StartSandbox | Action::RestartSandbox);
                if begins && row.disabled.is_some() {
                    return Err(plane::disabled(&row.name));
                }
                User {
                    id: row.id,
                    name: row.name,
                    is_admin: row.is_admin,
                }
            }
        };
        let route = self.plane.route(owner.id).await?;
        authorize::on_sandbox(actor, action, route.sandbox(role), owner.id)?;
        Ok((owner, route))
    }

    async fn record(
        &self,
        actor: &Actor,
        action: &'static str,
        sandbox: SandboxId,
        owner: &User,
        role: Role,
    ) -> Result<(), Error> {
        let entry = Entry::allowed(action, sandbox.to_string())
            .about_user(owner.id, &owner.name)
            .in_sandbox(sandbox, Some(role));
        self.plane.audit.record(actor, entry).await
    }

    fn views(&self, route: &RouteRow, owner: &UserName) -> Vec<SandboxView> {
        Role::ALL
            .into_iter()
            .map(|role| self.view(route, owner, role))
            .collect()
    }

    fn view(&self, route: &RouteRow, owner: &UserName, role: Role) -> SandboxView {
        let id = route.sandbox(role);
        let status = self.fleet.status(id);
        let stopped = status.state == SandboxState::Stopped;
        SandboxView {
            id,
            user: owner.clone(),
            role,
            state: status.state,
            reason: status
                .error
                .as_ref()
                .map(|error| error.message.clone())
                .or_else(|| self.idle.reason(id).filter(|_| stopped)),
            hint: status.error.as_ref().and_then(|error| error.hint.clone()),
            log: status.error.map(|error| error.log).unwrap_or_default(),
            start_id: status.instance.as_ref().map(|instance| instance.start_id),
            started_at: status.instance.map(|instance| instance.started_at.clone()),
            generation: route.generation,
            network: self.plane.networks.effective(id),
            url: self.plane.config.origins.runtime_url(owner, role),
        }
    }

    /// Brings the gauges up to date before a scrape.
    pub fn observe(&self) {
        let plane = &self.plane;
        let websockets = plane
            .routes
            .sandboxes()
            .into_iter()
            .filter_map(|sandbox| self.fleet.running(sandbox))
            .filter_map(|instance| plane.upstreams.get(instance.start_id))
            .map(|upstream| upstream.activity().open_websockets())
            .sum();
        plane.metrics.observe(
            websockets,
            |state| self.fleet.count(state),
            plane.began.elapsed(),
        );
    }
}

/// A start's failure as an answer.
fn not_started(error: StartError) -> Error {
    let StartError {
        code,
        message,
        hint,
        ..
    } = error;
    match code.as_str() {
        capacity::HOST_FULL => Error::HostFull { message, hint },
        capacity::TOO_MANY_RUNNING => Error::TooManyRunning { message, hint },
        _ => Error::SandboxFailed { message, hint },
    }
}

/// Takes over what outlived an earlier hypervisor and begins to serve channels.
///
/// # Errors
/// The database failed.
pub async fn start(app: &Arc<App>) -> Result<(), Error> {
    for route in app.store.routes().await? {
        app.sandboxes.plane.routes.publish(route);
    }
    app.sandboxes.recall_failures().await?;
    // Before any command is taken back: without its rules the list is too short, never too long.
    let plane = app.sandboxes.plane();
    plane.networks.publish(&app.config, &app.store).await?;
    let settled = app.sandboxes.reconcile_snapshots().await?;
    let adopted = app.sandboxes.fleet.adopt().await;
    if adopted > 0 {
        tracing::info!(adopted, "took over sandboxes that were running");
        let plane = &app.sandboxes.plane;
        for sandbox in plane.routes.sandboxes() {
            if let Some(instance) = app.sandboxes.fleet.running(sandbox) {
                // From here on its idleness is counted.
                plane.upstream(&instance)?;
            }
        }
    }
    // Of one that was killed between disabling an account and stopping its sandboxes.
    for user in app.store.users().await? {
        if user.disabled.is_some() {
            app.sandboxes.stop_of(user.id).await?;
        }
    }
    idle::watch(app);
    app.sandboxes.finish_reconciling(settled);
    app.sandboxes.resume_trials().await
}
