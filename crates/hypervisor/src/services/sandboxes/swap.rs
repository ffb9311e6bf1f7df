//! Swap: the roles of a user's two sandboxes change places (arch §4).
//!
//! The order is what makes it safe: the target proves its health, the ledger takes the
//! record, the pointer is on the disk, the pointer is published, stale WebSockets are closed,
//! the new `live` is on trial. A crash after any of these steps leaves what a restart
//! understands: routes are read from the disk, and so are trials.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crypto::Random;
use gateway::websocket::{CloseNotice, SocketTag};
use policy::Action;
use runtime::Instance;
use types::{Role, SandboxId, SwapOutcome, SwapRequest, SwapStatus, SwapView};

use super::trial::Trial;
use super::{Sandboxes, Whose, plane};
use crate::actor::{Actor, User};
use crate::clock::{millis, rfc3339};
use crate::error::Error;
use crate::services::audit::Entry;
use crate::services::health::{self, Fault, Unhealthy};
use crate::store::{RouteRow, SwapRow};

/// After a swap the WebSockets of both roles close within this time, each at its own
/// moment, so that their clients do not come back all at once (arch §4).
pub(crate) const CLOSE_WINDOW: Duration = Duration::from_millis(1500);

/// What a swap came to.
struct Swapped {
    route: RouteRow,
    /// From the order to write the pointer until it was served.
    flip: Duration,
    /// Until when it is on trial, Unix milliseconds.
    grace_until: Option<i64>,
}

impl Sandboxes {
    /// Exchanges `live` and `dev`, once `dev` has proved its health.
    ///
    /// The swap goes on when the caller goes away: between the pointer on the disk and the
    /// published one nothing may stop it.
    ///
    /// # Errors
    /// The actor may not; `dev` is not healthy; somebody else swapped at the same time; the
    /// ledger cannot take the record. Then nothing has changed.
    pub async fn swap(
        self: &Arc<Self>,
        actor: &Actor,
        whose: Whose<'_>,
        request: SwapRequest,
    ) -> Result<SwapView, Error> {
        let began = Instant::now();
        let (owner, route) = self
            .authorize(actor, whose, Role::Dev, Action::SwapSandboxes)
            .await?;
        let (sandboxes, actor) = (Arc::clone(self), actor.clone());
        let swapping =
            tokio::spawn(async move { sandboxes.try_swap(&actor, &owner, &route, request).await });
        let swapped = swapping.await.map_err(Error::internal)?;
        self.plane.metrics.swap(swapped.is_ok());
        let Swapped {
            route,
            flip,
            grace_until,
        } = swapped?;
        Ok(SwapView {
            generation: route.generation,
            live: route.live,
            dev: route.dev,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            flip_us: u64::try_from(flip.as_micros()).unwrap_or(u64::MAX),
            grace_until: grace_until.map(rfc3339),
        })
    }

    async fn try_swap(
        self: &Arc<Self>,
        actor: &Actor,
        owner: &User,
        seen: &RouteRow,
        request: SwapRequest,
    ) -> Result<Swapped, Error> {
        let _swapping = self
            .plane
            .copies
            .swap([seen.live, seen.dev])
            .map_err(|copy| {
                Error::conflict(format!(
                    "a {} of one of the two is under way, and what it replaces must stay what it is; wait for it, or cancel it",
                    copy.kind().as_str()
                ))
            })?;
        let proved = match self.prove(seen.dev).await {
            Ok(instance) => instance,
            Err(unhealthy) => {
                let entry =
                    Entry::denied("sandbox.swap", seen.dev.to_string(), unhealthy.to_string())
                        .about_user(owner.id, &owner.name)
                        .in_sandbox(seen.dev, Some(Role::Dev));
                self.plane.audit.record(actor, entry).await?;
                return Err(Error::UnhealthyTarget(unhealthy.to_string()));
            }
        };
        let entry = Entry::allowed("sandbox.swap", seen.dev.to_string())
            .about_user(owner.id, &owner.name)
            .in_sandbox(seen.dev, Some(Role::Dev))
            .with("generation", (seen.generation + 1).to_string());
        self.plane.audit.record(actor, entry).await?;
        let now = self.plane.clock.now_ms();
        let grace_until = request
            .rollback
            .then(|| now.saturating_add(millis(self.plane.config.sandbox.swap.grace)));
        let flipping = Instant::now();
        let swapped = self.plane.store.swap_route(seen, now, grace_until).await;
        let route = match swapped {
            Ok(Some(route)) => route,
            // What is on the disk counts, also when it is not known whether our change is.
            Ok(None) => {
                self.reload(seen).await;
                return Err(Error::conflict(
                    "somebody else swapped at the same moment; look and try again",
                ));
            }
            Err(error) => {
                self.reload(seen).await;
                return Err(error.into());
            }
        };
        let flip = self.switch(&route, false).duration_since(flipping);
        match grace_until {
            Some(until) => self.begin_trial(route, Trial::Proved(proved), until),
            None => drop(self.forget_trial(&route)),
        }
        Ok(Swapped {
            route,
            flip,
            grace_until,
        })
    }

    /// Serves by a route that is on the disk, and closes what belongs to the one before.
    /// Returns since when it is served.
    pub(super) fn switch(&self, route: &RouteRow, taken_back: bool) -> Instant {
        // From here on every new request is routed by it.
        self.plane.routes.publish(*route);
        let served = Instant::now();
        self.close_stale(route, taken_back);
        self.plane.changed(route.user_id);
        served
    }

    async fn reload(&self, seen: &RouteRow) {
        match self.plane.store.route(seen.user_id).await {
            Ok(Some(route)) if route.generation > seen.generation => {
                self.switch(&route, false);
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "a route cannot be read again"),
        }
    }

    /// Closes the WebSockets of both roles that were opened by an older route than this one,
    /// with the generation that made them stale. Those that came later stay.
    pub(crate) fn close_stale(&self, route: &RouteRow, taken_back: bool) {
        let taken_back = if taken_back {
            ",\"rolled_back\":true"
        } else {
            ""
        };
        let notice = CloseNotice::new(
            CloseNotice::SERVICE_RESTART,
            format!("{{\"generation\":{}{taken_back}}}", route.generation),
        );
        let generation = route.generation;
        self.close_with(
            route,
            &|tag| tag.generation < generation,
            &notice,
            CLOSE_WINDOW,
        );
    }

    pub(super) fn close_with(
        &self,
        route: &RouteRow,
        concerned: &dyn Fn(&SocketTag) -> bool,
        notice: &CloseNotice,
        window: Duration,
    ) {
        for role in Role::ALL {
            let mut seed = [0_u8; 8];
            // Without randomness the moments are spread all the same, only predictably.
            let _ = self.plane.random.fill(&mut seed);
            let Some(instance) = self.fleet.running(route.sandbox(role)) else {
                continue;
            };
            let seed = u64::from_le_bytes(seed);
            if let Some(app) = self.plane.upstreams.get(instance.start_id) {
                let closed = app.close_websockets_of(concerned, notice, window, seed);
                if !closed.is_empty() {
                    let clients = closed.into_iter().map(|tag| tag.session);
                    let sandbox = route.sandbox(role);
                    self.plane.symptoms.sockets_closed(sandbox, clients);
                }
            }
            for port in self.plane.upstreams.ports(instance.start_id) {
                port.close_websockets_of(concerned, notice, window, seed);
            }
        }
    }

    /// The start of a sandbox that has just proved its health, or what it failed at.
    pub(super) async fn prove(&self, target: SandboxId) -> Result<Arc<Instance>, Unhealthy> {
        let instance = self
            .fleet
            .running(target)
            .ok_or_else(|| Unhealthy::process(Fault::NotRunning))?;
        let unreachable = |error: Error| Unhealthy::process(Fault::Broken(error.to_string()));
        let upstream = self.plane.upstream(&instance).map_err(unreachable)?;
        let socket = plane::app_socket(&instance).map_err(unreachable)?;
        if let Err(unhealthy) =
            health::ready_for_swap(&self.plane.forwarder, &upstream, &socket).await
        {
            return Err(unhealthy.with_last_log(instance.last_log_line().await));
        }
        // What was examined is what will be served.
        match self.fleet.running(target) {
            Some(now) if Arc::ptr_eq(&now, &instance) => Ok(instance),
            Some(_) => Err(Unhealthy::process(Fault::Restarted)),
            None => Err(Unhealthy::process(Fault::NotRunning)),
        }
    }

    /// The last swap of a user's sandboxes and what became of it.
    ///
    /// # Errors
    /// The actor may not, or the database failed.
    pub async fn last_swap(
        &self,
        actor: &Actor,
        whose: Whose<'_>,
    ) -> Result<Option<SwapStatus>, Error> {
        let (owner, _) = self
            .authorize(actor, whose, Role::Live, Action::ViewSandbox)
            .await?;
        let now = self.plane.clock.now_ms();
        let row = self.plane.store.swap(owner.id).await?;
        Ok(row.map(|row| status(row, now)))
    }
}

fn status(row: SwapRow, now: i64) -> SwapStatus {
    let grace_until = row
        .grace_until
        .filter(|_| row.outcome == SwapOutcome::OnTrial);
    SwapStatus {
        generation: row.generation,
        swapped_at: rfc3339(row.swapped_at),
        outcome: row.outcome,
        grace_until: grace_until.map(rfc3339),
        grace_left_ms: grace_until
            .map(|until| u64::try_from(until.saturating_sub(now)).unwrap_or_default()),
        reason: row.reason,
    }
}
