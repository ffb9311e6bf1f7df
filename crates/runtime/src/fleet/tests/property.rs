//! The state machine against a model: random orders, crashes, and the end of the whole
//! process at any await, which dropping its runtime is.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isolation::spec::Nonce;
use tokio::sync::watch;
use types::{CommandExit, SandboxId, SandboxState, StartId};

use super::{Fleet, FleetOptions, Host, spec};
use crate::control::Control;
use crate::driver::{Adopted, BoxFuture, SandboxRuntime, StartError, StartRequest, Started};
use crate::fleet::Crashed;
use crate::instance::Instance;

const SEQUENCES: u64 = 120;
const STEPS: u64 = 10;
const SANDBOXES: usize = 4;
const PLACES: usize = 3;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// What stands on the machine, whoever keeps it.
#[derive(Default)]
struct Machine {
    standing: Mutex<BTreeMap<StartId, Standing>>,
    /// Crashes as they are kept across restarts.
    crashes: Mutex<HashMap<SandboxId, u32>>,
    random: Mutex<Option<Random>>,
}

struct Standing {
    sandbox: SandboxId,
    started_at: String,
    /// True once the guest has died.
    dead: watch::Sender<bool>,
    /// Its supervisor was told to take it down.
    stopping: bool,
    healthy: bool,
}

impl Machine {
    /// A pause in which everything can end.
    async fn pause(&self) {
        let millis = match &mut *self.random.lock().unwrap() {
            Some(random) => random.below(15),
            None => 0,
        };
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    fn chance(&self, one_in: u64) -> bool {
        self.random
            .lock()
            .unwrap()
            .as_mut()
            .is_some_and(|random| random.below(one_in) == 0)
    }

    fn started(&self, start: StartId) -> Started {
        let standing = self.standing.lock().unwrap();
        let mut dead = standing[&start].dead.subscribe();
        let dir = tempfile::tempdir().unwrap();
        Started {
            control: Control::new(PathBuf::from("/nonexistent"), Nonce::new(String::new())),
            app_dir: OwnedFd::from(std::fs::File::open("/").unwrap()),
            channel: UnixListener::bind(dir.path().join("channel.sock")).unwrap(),
            exited: Box::pin(async move {
                if dead.wait_for(|dead| *dead).await.is_err() {
                    std::future::pending::<()>().await;
                }
                CommandExit::default()
            }),
            host_record: String::new(),
            events: tokio::sync::broadcast::Sender::new(1),
        }
    }

    /// Ends the guest of a sandbox, if it has one.
    fn crash(&self, sandbox: SandboxId) {
        for standing in self.standing.lock().unwrap().values() {
            if standing.sandbox == sandbox {
                standing.dead.send_replace(true);
            }
        }
    }
}

struct Driver(Arc<Machine>);

impl SandboxRuntime for Driver {
    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<Started, StartError>> {
        Box::pin(async move {
            self.0.pause().await;
            if self.0.chance(12) {
                return Err(StartError::new("wall_missing", "refused"));
            }
            let (start, sandbox) = (request.spec.start_id, request.spec.sandbox_id);
            let standing = Standing {
                sandbox,
                started_at: jiff::Timestamp::now().to_string(),
                dead: watch::Sender::new(false),
                stopping: false,
                healthy: !self.0.chance(8),
            };
            {
                let mut all = self.0.standing.lock().unwrap();
                assert!(
                    all.values().all(|other| other.sandbox != sandbox),
                    "a second start of one sandbox"
                );
                all.insert(start, standing);
            }
            self.0.pause().await;
            Ok(self.0.started(start))
        })
    }

    fn restart(
        &self,
        start: StartId,
        _control: Control,
    ) -> BoxFuture<'_, Result<Started, StartError>> {
        Box::pin(async move {
            self.0.pause().await;
            if self.0.chance(2) {
                return Err(StartError::new("supervisor", "it went away"));
            }
            match self.0.standing.lock().unwrap().get(&start) {
                Some(standing) => standing.dead.send_replace(false),
                None => return Err(StartError::new("supervisor", "it is gone")),
            };
            self.0.pause().await;
            Ok(self.0.started(start))
        })
    }

    fn stop(
        &self,
        start: StartId,
        _control: Control,
        _grace_ms: u64,
    ) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async move {
            if let Some(standing) = self.0.standing.lock().unwrap().get_mut(&start) {
                standing.stopping = true;
            }
            self.0.pause().await;
            self.0.standing.lock().unwrap().remove(&start);
            self.0.pause().await;
            Ok(())
        })
    }

    fn adopt(&self) -> BoxFuture<'_, Vec<Adopted>> {
        Box::pin(async move {
            let found: Vec<(StartId, SandboxId, String)> = {
                let mut all = self.0.standing.lock().unwrap();
                // What was being taken down is seen through.
                all.retain(|_, standing| !standing.stopping);
                all.iter()
                    .map(|(start, one)| (*start, one.sandbox, one.started_at.clone()))
                    .collect()
            };
            found
                .into_iter()
                .map(|(start_id, sandbox_id, started_at)| Adopted {
                    sandbox_id,
                    start_id,
                    started_at,
                    control: Control::new(PathBuf::from("/nonexistent"), Nonce::new(String::new())),
                    started: Ok(self.0.started(start_id)),
                })
                .collect()
        })
    }
}

struct Plane(Arc<Machine>);

impl Host for Plane {
    fn prepare(
        &self,
        sandbox: SandboxId,
        start: StartId,
    ) -> BoxFuture<'_, Result<StartRequest, StartError>> {
        Box::pin(async move {
            self.0.pause().await;
            Ok(StartRequest {
                spec: spec(sandbox, start),
                host_record: String::new(),
            })
        })
    }

    fn serve_channel(&self, _instance: Arc<Instance>, _listener: UnixListener) {}

    fn adopted(&self, _instance: Arc<Instance>) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn restartable(&self, _instance: &Instance) -> bool {
        true
    }

    fn healthy(&self, instance: Arc<Instance>) -> BoxFuture<'_, Result<(), String>> {
        let healthy = self
            .0
            .standing
            .lock()
            .unwrap()
            .get(&instance.start_id)
            .is_some_and(|standing| standing.healthy && !*standing.dead.borrow());
        Box::pin(async move {
            if healthy {
                Ok(())
            } else {
                Err("no answer".to_owned())
            }
        })
    }

    fn room(&self, _sandbox: SandboxId, occupied: &[SandboxId]) -> Result<(), StartError> {
        if occupied.len() < PLACES {
            Ok(())
        } else {
            Err(StartError::new("full", "no room"))
        }
    }

    fn crashed(&self, sandbox: SandboxId, crash: Crashed) -> BoxFuture<'_, ()> {
        self.0
            .crashes
            .lock()
            .unwrap()
            .insert(sandbox, crash.crashes);
        Box::pin(self.0.pause())
    }

    fn settled(&self, sandbox: SandboxId) -> BoxFuture<'_, ()> {
        self.0.crashes.lock().unwrap().remove(&sandbox);
        Box::pin(async {})
    }

    fn crashes(&self, sandbox: SandboxId) -> BoxFuture<'_, u32> {
        let kept = self.0.crashes.lock().unwrap().get(&sandbox).copied();
        Box::pin(async move { kept.unwrap_or(0) })
    }
}

#[derive(Debug, Clone, Copy)]
enum Order {
    Start(usize),
    Stop(usize),
    /// Stops the start that runs now, if it still does a moment later.
    StopIf(usize),
    Crash(usize),
}

impl Order {
    fn random(random: &mut Random) -> Self {
        let which = usize::try_from(random.below(SANDBOXES as u64)).unwrap();
        match random.below(8) {
            0..=3 => Self::Start(which),
            4 => Self::Stop(which),
            5 => Self::StopIf(which),
            _ => Self::Crash(which),
        }
    }
}

#[test]
fn no_order_crash_or_end_doubles_loses_or_orphans_a_start() {
    for seed in 0..SEQUENCES {
        let mut random = Random(seed);
        let machine = Arc::new(Machine::default());
        *machine.random.lock().unwrap() = Some(Random(seed ^ 0xfeed));
        let ids: Vec<SandboxId> = (0..SANDBOXES).map(|_| SandboxId::generate()).collect();
        let mut trace = Vec::new();
        for _ in 0..STEPS {
            let orders: Vec<Order> = (0..1 + random.below(5))
                .map(|_| Order::random(&mut random))
                .collect();
            let ends_after = (random.below(3) == 0).then(|| random.below(60));
            trace.push((orders.clone(), ends_after));
            // One life of the hypervisor: dropping the runtime ends it wherever it stands.
            let life = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            life.block_on(live(&machine, &ids, &orders, ends_after, &trace, seed));
        }
    }
}

async fn live(
    machine: &Arc<Machine>,
    ids: &[SandboxId],
    orders: &[Order],
    ends_after: Option<u64>,
    trace: &[(Vec<Order>, Option<u64>)],
    seed: u64,
) {
    let options = FleetOptions {
        healthy_within: Duration::from_secs(2),
        restart_backoff: Duration::from_millis(1),
        ..FleetOptions::default()
    };
    let fleet = Fleet::new(
        Arc::new(Driver(Arc::clone(machine))),
        Arc::new(Plane(Arc::clone(machine))),
        options,
    );
    let what = || format!("seed {seed}: {trace:?}");
    fleet.adopt().await;
    let mut under_way = tokio::task::JoinSet::new();
    for order in orders.iter().copied() {
        let (fleet, machine) = (fleet.clone(), Arc::clone(machine));
        let ids = ids.to_vec();
        under_way.spawn(async move {
            machine.pause().await;
            match order {
                Order::Start(which) => {
                    if let Ok(instance) = fleet.start(ids[which]).await {
                        assert_eq!(instance.sandbox_id, ids[which]);
                    }
                }
                Order::Stop(which) => fleet.stop(ids[which]).await,
                Order::StopIf(which) => {
                    if let Some(instance) = fleet.running(ids[which]) {
                        machine.pause().await;
                        let stopped = fleet.stop_if(&instance, || true).await;
                        assert!(!stopped || instance.start_ended().is_cancelled());
                    }
                }
                Order::Crash(which) => machine.crash(ids[which]),
            }
        });
    }
    if let Some(millis) = ends_after {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        return;
    }
    while let Some(done) = under_way.join_next().await {
        assert!(done.is_ok(), "{}", what());
    }
    // Time passes by itself here; nothing takes longer than a crash loop.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let mut running = 0;
    for id in ids {
        let status = fleet.status(*id);
        let standing: Vec<StartId> = machine
            .standing
            .lock()
            .unwrap()
            .iter()
            .filter(|(_, one)| one.sandbox == *id)
            .map(|(start, _)| *start)
            .collect();
        match status.state {
            SandboxState::Running => {
                running += 1;
                let instance = status.instance.unwrap();
                assert_eq!(standing, [instance.start_id], "{}", what());
                assert!(!instance.ended().is_cancelled(), "{}", what());
            }
            SandboxState::Stopped | SandboxState::Failed => {
                assert_eq!(standing, [], "{:?} {}", status.state, what());
            }
            SandboxState::Starting | SandboxState::Stopping => {
                panic!("{:?} lasts: {}", status.state, what());
            }
        }
    }
    assert!(running <= PLACES, "{}", what());
}
