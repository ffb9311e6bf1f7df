//! The state machine against a driver whose facts the test decides.

mod property;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isolation::spec::{DiskLimits, GuestSpec, Nonce, Rlimits, SandboxSpec, TreeLimits};
use tokio::sync::oneshot;
use types::{CommandExit, SandboxId, SandboxState, StartId};

use super::{Crashed, Fleet, FleetOptions, Host};
use crate::control::Control;
use crate::driver::{Adopted, BoxFuture, SandboxRuntime, StartError, StartRequest, Started};
use crate::instance::Instance;

/// A driver without processes. Each start hands out a sender that ends its guest.
struct Double {
    starts: AtomicUsize,
    stops: AtomicUsize,
    refuse: AtomicBool,
    /// Guests can be started again where they crashed, and how many were.
    restartable: AtomicBool,
    restarts: AtomicUsize,
    guests: Mutex<Vec<oneshot::Sender<CommandExit>>>,
    /// The sandbox that is found again.
    adopts: Mutex<SandboxId>,
    /// It was started just now.
    young: AtomicBool,
    /// It runs and cannot be taken over.
    unreached: AtomicBool,
    /// What is to be taken down does not end.
    stuck: AtomicBool,
}

impl Default for Double {
    fn default() -> Self {
        Self {
            starts: AtomicUsize::default(),
            stops: AtomicUsize::default(),
            refuse: AtomicBool::default(),
            restartable: AtomicBool::default(),
            restarts: AtomicUsize::default(),
            guests: Mutex::default(),
            adopts: Mutex::new(SandboxId::generate()),
            young: AtomicBool::default(),
            unreached: AtomicBool::default(),
            stuck: AtomicBool::default(),
        }
    }
}

impl Double {
    fn started(&self) -> Started {
        let (end, ended) = oneshot::channel();
        self.guests.lock().unwrap().push(end);
        let dir = tempfile::tempdir().unwrap();
        Started {
            control: Control::new(PathBuf::from("/nonexistent"), Nonce::new(String::new())),
            app_dir: OwnedFd::from(std::fs::File::open("/").unwrap()),
            channel: UnixListener::bind(dir.path().join("channel.sock")).unwrap(),
            exited: Box::pin(async move { ended.await.unwrap_or_default() }),
            events: tokio::sync::broadcast::Sender::new(1),
            host_record: String::new(),
        }
    }

    /// Ends the guest of the latest start.
    fn crash(&self) {
        let end = self.guests.lock().unwrap().pop().unwrap();
        end.send(CommandExit {
            code: Some(1),
            ..CommandExit::default()
        })
        .unwrap();
    }
}

impl SandboxRuntime for Double {
    fn start(&self, _request: StartRequest) -> BoxFuture<'_, Result<Started, StartError>> {
        Box::pin(async {
            self.starts.fetch_add(1, Ordering::SeqCst);
            if self.refuse.load(Ordering::SeqCst) {
                return Err(
                    StartError::new("wall_missing", "no user namespaces").with_hint("allow them")
                );
            }
            Ok(self.started())
        })
    }

    fn restart(
        &self,
        _start: StartId,
        _control: Control,
    ) -> BoxFuture<'_, Result<Started, StartError>> {
        Box::pin(async {
            if !self.restartable.load(Ordering::SeqCst) {
                return Err(StartError::new("supervisor", "it went away"));
            }
            self.restarts.fetch_add(1, Ordering::SeqCst);
            Ok(self.started())
        })
    }

    fn stop(
        &self,
        _start: StartId,
        _control: Control,
        _grace_ms: u64,
    ) -> BoxFuture<'_, Result<(), StartError>> {
        let stuck = self.stuck.load(Ordering::SeqCst);
        Box::pin(async move {
            if stuck {
                return Err(StartError::new("does_not_end", "it hangs"));
            }
            self.stops.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    }

    fn adopt(&self) -> BoxFuture<'_, Vec<Adopted>> {
        let started_at = if self.young.load(Ordering::SeqCst) {
            jiff::Timestamp::now().to_string()
        } else {
            "2026-01-01T00:00:00Z".to_owned()
        };
        Box::pin(async {
            vec![Adopted {
                sandbox_id: *self.adopts.lock().unwrap(),
                start_id: StartId::generate(),
                started_at,
                control: Control::new(PathBuf::from("/nonexistent"), Nonce::new(String::new())),
                started: if self.unreached.load(Ordering::SeqCst) {
                    Err(StartError::new("not_taken_over", "it does not answer"))
                } else {
                    Ok(self.started())
                },
            }]
        })
    }
}

/// A host whose guests are healthy when the test says so.
struct Plane {
    healthy: AtomicBool,
    /// Whether a crashed guest may come back in its start.
    restartable: AtomicBool,
    /// Sandboxes that may run at the same time.
    places: AtomicUsize,
    /// Crashes as an earlier or a later hypervisor finds them.
    kept: Mutex<HashMap<SandboxId, u32>>,
    /// What follows each crash.
    pauses: Mutex<Vec<Option<Duration>>>,
}

impl Host for Plane {
    fn prepare(
        &self,
        sandbox: SandboxId,
        start: StartId,
    ) -> BoxFuture<'_, Result<StartRequest, StartError>> {
        Box::pin(async move {
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
        self.restartable.load(Ordering::SeqCst)
    }

    fn healthy(&self, _instance: Arc<Instance>) -> BoxFuture<'_, Result<(), String>> {
        let healthy = self.healthy.load(Ordering::SeqCst);
        Box::pin(async move {
            if healthy {
                Ok(())
            } else {
                Err("refused".to_owned())
            }
        })
    }

    fn room(&self, _sandbox: SandboxId, occupied: &[SandboxId]) -> Result<(), StartError> {
        if occupied.len() < self.places.load(Ordering::SeqCst) {
            Ok(())
        } else {
            Err(StartError::new("full", "no room"))
        }
    }

    fn crashed(&self, sandbox: SandboxId, crash: Crashed) -> BoxFuture<'_, ()> {
        self.kept.lock().unwrap().insert(sandbox, crash.crashes);
        self.pauses.lock().unwrap().push(crash.restarts_in);
        Box::pin(async {})
    }

    fn settled(&self, sandbox: SandboxId) -> BoxFuture<'_, ()> {
        self.kept.lock().unwrap().remove(&sandbox);
        Box::pin(async {})
    }

    fn crashes(&self, sandbox: SandboxId) -> BoxFuture<'_, u32> {
        let crashes = self.kept.lock().unwrap().get(&sandbox).copied();
        Box::pin(async move { crashes.unwrap_or(0) })
    }
}

fn spec(sandbox_id: SandboxId, start_id: StartId) -> SandboxSpec {
    SandboxSpec {
        sandbox_id,
        start_id,
        nonce: Nonce::new("ab".repeat(16)),
        hostname: "test".to_owned(),
        host_ids: None,
        run_dir: PathBuf::from("/nonexistent"),
        workspace: PathBuf::from("/nonexistent"),
        home: PathBuf::from("/nonexistent"),
        data: PathBuf::from("/nonexistent"),
        guest_binary: PathBuf::from("/nonexistent"),
        extra_mounts: Vec::new(),
        path_additions: Vec::new(),
        desktop_override: None,
        guest: GuestSpec {
            argv: Vec::new(),
            env: Vec::new(),
            cwd: "/".to_owned(),
        },
        rlimits: Rlimits::default(),
        limits: TreeLimits::default(),
        cgroup: None,
        disk: DiskLimits::default(),
        accept_missing: Vec::new(),
        log_bytes: 0,
    }
}

struct Bench {
    driver: Arc<Double>,
    host: Arc<Plane>,
    fleet: Fleet,
    sandbox: SandboxId,
}

fn bench() -> Bench {
    let driver = Arc::new(Double::default());
    let host = Arc::new(Plane {
        healthy: AtomicBool::new(true),
        restartable: AtomicBool::new(true),
        places: AtomicUsize::new(usize::MAX),
        kept: Mutex::default(),
        pauses: Mutex::default(),
    });
    let options = FleetOptions {
        healthy_within: Duration::from_secs(2),
        restart_backoff: Duration::from_millis(1),
        ..FleetOptions::default()
    };
    let fleet = Fleet::new(driver.clone(), host.clone(), options);
    Bench {
        driver,
        host,
        fleet,
        sandbox: SandboxId::generate(),
    }
}

async fn reached(bench: &Bench, wanted: SandboxState) {
    let mut state = bench.fleet.subscribe(bench.sandbox);
    state
        .wait_for(|state| state.status().state == wanted)
        .await
        .unwrap();
}

#[tokio::test]
async fn concurrent_starts_join_one_start() {
    let bench = bench();
    let starts = (0..20).map(|_| {
        let fleet = bench.fleet.clone();
        let sandbox = bench.sandbox;
        tokio::spawn(async move { fleet.start(sandbox).await.unwrap().start_id })
    });
    let mut ids = Vec::new();
    for start in starts {
        ids.push(start.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(bench.driver.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refused_start_is_failed_with_its_reason_and_can_be_tried_again() {
    let bench = bench();
    bench.driver.refuse.store(true, Ordering::SeqCst);
    let error = bench.fleet.start(bench.sandbox).await.unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("allow them"));
    assert_eq!(
        bench.fleet.status(bench.sandbox).state,
        SandboxState::Failed
    );
    bench.driver.refuse.store(false, Ordering::SeqCst);
    bench.fleet.start(bench.sandbox).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_guest_is_taken_down() {
    let bench = bench();
    bench.host.healthy.store(false, Ordering::SeqCst);
    let error = bench.fleet.start(bench.sandbox).await.unwrap_err();
    assert_eq!(error.code, "unhealthy");
    assert!(error.message.contains("refused"));
    assert_eq!(bench.driver.stops.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_stop_gives_up_a_start_under_way_and_leaves_nothing() {
    let bench = bench();
    bench.host.healthy.store(false, Ordering::SeqCst);
    let fleet = bench.fleet.clone();
    let sandbox = bench.sandbox;
    let start = tokio::spawn(async move { fleet.start(sandbox).await });
    reached(&bench, SandboxState::Starting).await;
    bench.fleet.stop(bench.sandbox).await;
    assert_eq!(start.await.unwrap().unwrap_err().code, "stopped");
    assert_eq!(
        bench.fleet.status(bench.sandbox).state,
        SandboxState::Stopped
    );
    assert_eq!(
        bench.driver.starts.load(Ordering::SeqCst),
        bench.driver.stops.load(Ordering::SeqCst)
    );
}

#[tokio::test]
async fn stopping_ends_the_instance_before_anything_else() {
    let bench = bench();
    let instance = bench.fleet.start(bench.sandbox).await.unwrap();
    assert!(!instance.ended().is_cancelled());
    bench.fleet.stop(bench.sandbox).await;
    assert!(instance.ended().is_cancelled() && instance.start_ended().is_cancelled());
    assert!(bench.fleet.running(bench.sandbox).is_none());
}

#[tokio::test]
async fn what_is_to_keep_a_start_going_is_noted_before_its_stop_is_ordered_or_not_at_all() {
    let bench = bench();
    let instance = bench.fleet.start(bench.sandbox).await.unwrap();
    assert!(!bench.fleet.stop_if(&instance, || false).await);
    assert_eq!(instance.unless_stopping(|| "noted"), Some("noted"));
    // Somebody comes in the middle of the decision.
    let mut late = None;
    let still = || {
        let instance = Arc::clone(&instance);
        late = Some(std::thread::spawn(move || instance.unless_stopping(|| ())));
        true
    };
    assert!(bench.fleet.stop_if(&instance, still).await);
    assert_eq!(late.unwrap().join().unwrap(), None);
    let next = bench.fleet.start(bench.sandbox).await.unwrap();
    assert_eq!(next.unless_stopping(|| ()), Some(()));
    bench.fleet.stop(bench.sandbox).await;
    assert_eq!(next.unless_stopping(|| ()), None);
}

/// Nobody is told of a start that the order before theirs is ending.
#[tokio::test]
async fn a_start_that_is_ordered_after_a_stop_is_another_one() {
    let bench = bench();
    let first = bench.fleet.start(bench.sandbox).await.unwrap();
    let (fleet, sandbox) = (&bench.fleet, bench.sandbox);
    let ((), again) = tokio::join!(fleet.stop(sandbox), fleet.start(sandbox));
    assert_ne!(again.unwrap().start_id, first.start_id);
    let present = fleet.running(sandbox).unwrap();
    let (stopped, again) = tokio::join!(fleet.stop_if(&present, || true), fleet.start(sandbox));
    assert!(stopped);
    assert_ne!(again.unwrap().start_id, present.start_id);
}

#[tokio::test]
async fn a_stop_that_is_meant_for_one_start_leaves_the_next_alone() {
    let bench = bench();
    let first = bench.fleet.start(bench.sandbox).await.unwrap();
    assert!(!bench.fleet.stop_if(&first, || false).await);
    assert!(bench.fleet.running(bench.sandbox).is_some());
    bench.fleet.stop(bench.sandbox).await;
    assert!(!bench.fleet.stop_if(&first, || true).await);
    let second = bench.fleet.start(bench.sandbox).await.unwrap();
    assert!(!bench.fleet.stop_if(&first, || true).await);
    assert!(!second.ended().is_cancelled());
    assert!(bench.fleet.stop_if(&second, || true).await);
    assert!(second.ended().is_cancelled());
    assert_eq!(bench.driver.stops.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_crashed_guest_starts_again_in_the_same_start_where_that_is_possible() {
    let bench = bench();
    bench.driver.restartable.store(true, Ordering::SeqCst);
    let first = bench.fleet.start(bench.sandbox).await.unwrap();
    let mut state = bench.fleet.subscribe(bench.sandbox);
    bench.driver.crash();
    let again = state
        .wait_for(|state| {
            let now = state.status().instance;
            now.is_some_and(|now| !Arc::ptr_eq(&now, &first))
        })
        .await
        .unwrap()
        .status()
        .instance
        .unwrap();
    // The commands of the start go on; what was tied to the guest that crashed is cut.
    assert_eq!(again.start_id, first.start_id);
    assert!(first.ended().is_cancelled() && !again.ended().is_cancelled());
    assert!(!first.start_ended().is_cancelled(), "its runners go on");
    let counts = || {
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        let driver = &bench.driver;
        (
            count(&driver.starts),
            count(&driver.restarts),
            count(&driver.stops),
        )
    };
    assert_eq!(counts(), (1, 1, 0));
    // One that does not get healthy there gets a new start, which leaves nothing either.
    bench.host.healthy.store(false, Ordering::SeqCst);
    bench.driver.crash();
    reached(&bench, SandboxState::Failed).await;
    assert_eq!(counts(), (2, 2, 2));
    assert!(first.start_ended().is_cancelled() && again.ended().is_cancelled());
    bench.host.healthy.store(true, Ordering::SeqCst);
    // A stop in the pause takes down what the crash left.
    let last = bench.fleet.start(bench.sandbox).await.unwrap();
    bench.driver.crash();
    reached(&bench, SandboxState::Starting).await;
    assert!(last.ended().is_cancelled() && !last.start_ended().is_cancelled());
    bench.fleet.stop(bench.sandbox).await;
    assert_eq!(counts(), (3, 2, 3));
    assert!(last.start_ended().is_cancelled());
    // Where the host says that it may not come back there, a new start takes its place.
    bench.host.restartable.store(false, Ordering::SeqCst);
    let last = bench.fleet.start(bench.sandbox).await.unwrap();
    bench.driver.crash();
    reached(&bench, SandboxState::Starting).await;
    reached(&bench, SandboxState::Running).await;
    assert_eq!(counts(), (5, 2, 4));
    assert!(last.start_ended().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_crash_restarts_and_a_crash_loop_fails() {
    let bench = bench();
    let first = bench.fleet.start(bench.sandbox).await.unwrap();
    let mut state = bench.fleet.subscribe(bench.sandbox);
    for _ in 0..4 {
        let before = bench.fleet.running(bench.sandbox).unwrap().start_id;
        bench.driver.crash();
        state
            .wait_for(|state| {
                state
                    .status()
                    .instance
                    .is_some_and(|now| now.start_id != before)
            })
            .await
            .unwrap();
    }
    assert!(first.ended().is_cancelled());
    bench.driver.crash();
    reached(&bench, SandboxState::Failed).await;
    let error = bench.fleet.status(bench.sandbox).error.unwrap();
    assert_eq!(error.code, "crash_loop");
    assert_eq!(
        bench.driver.starts.load(Ordering::SeqCst),
        bench.driver.stops.load(Ordering::SeqCst)
    );
}

/// Each pause is twice the one before, also for a guest that dies before its first health.
#[tokio::test(start_paused = true)]
async fn pauses_between_restarts_double() {
    for healthy in [true, false] {
        let bench = bench();
        bench.host.healthy.store(healthy, Ordering::SeqCst);
        bench.fleet.begin(bench.sandbox).unwrap();
        let mut crashes = 0;
        while bench.fleet.status(bench.sandbox).state != SandboxState::Failed {
            let guest = bench.driver.guests.lock().unwrap().pop();
            if let Some(end) = guest {
                // Its first health, where it has one.
                while healthy && bench.fleet.running(bench.sandbox).is_none() {
                    tokio::task::yield_now().await;
                }
                end.send(CommandExit::default()).unwrap();
                crashes += 1;
            }
            tokio::time::sleep(Duration::from_micros(50)).await;
        }
        assert_eq!(crashes, 5);
        let pauses = bench.host.pauses.lock().unwrap().clone();
        let millis = |n| Some(Duration::from_millis(n));
        let doubled = [millis(1), millis(2), millis(4), millis(8), None];
        assert_eq!(pauses, doubled, "healthy: {healthy}");
        let error = bench.fleet.status(bench.sandbox).error.unwrap();
        assert_eq!(error.code, "crash_loop");
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        assert_eq!(count(&bench.driver.starts), count(&bench.driver.stops));
        assert_eq!(count(&bench.driver.starts), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_dies_at_first_and_then_does_not_is_started() {
    let bench = bench();
    bench.host.healthy.store(false, Ordering::SeqCst);
    let (fleet, sandbox) = (bench.fleet.clone(), bench.sandbox);
    let start = tokio::spawn(async move { fleet.start(sandbox).await });
    while bench.driver.guests.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    bench.driver.crash();
    bench.host.healthy.store(true, Ordering::SeqCst);
    start.await.unwrap().unwrap();
    assert_eq!(bench.driver.starts.load(Ordering::SeqCst), 2);
    assert_eq!(bench.host.kept.lock().unwrap()[&sandbox], 1);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_lived_long_is_not_in_a_crash_loop() {
    let bench = bench();
    bench.fleet.start(bench.sandbox).await.unwrap();
    let mut state = bench.fleet.subscribe(bench.sandbox);
    for _ in 0..8 {
        let before = bench.fleet.running(bench.sandbox).unwrap().start_id;
        tokio::time::advance(Duration::from_secs(61)).await;
        bench.driver.crash();
        state
            .wait_for(|state| {
                state
                    .status()
                    .instance
                    .is_some_and(|now| now.start_id != before)
            })
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn an_adopted_sandbox_runs_and_can_be_stopped() {
    let bench = bench();
    assert_eq!(bench.fleet.adopt().await, 1);
    assert_eq!(bench.fleet.count(SandboxState::Running), 1);
    assert_eq!(bench.fleet.stop_all(Duration::from_secs(5)).await, []);
    assert_eq!(bench.fleet.count(SandboxState::Stopped), 1);
    assert_eq!(bench.driver.stops.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_does_not_end_is_not_stopped_and_nothing_is_started_beside_it() {
    let bench = bench();
    let starts = || bench.driver.starts.load(Ordering::SeqCst);
    let status = || bench.fleet.status(bench.sandbox);
    bench.fleet.start(bench.sandbox).await.unwrap();
    bench.driver.stuck.store(true, Ordering::SeqCst);
    bench.fleet.stop(bench.sandbox).await;
    assert_eq!(status().state, SandboxState::Failed);
    assert_eq!(status().error.unwrap().code, "does_not_end");
    let refused = bench.fleet.start(bench.sandbox).await.unwrap_err();
    assert_eq!((refused.code.as_str(), starts()), ("does_not_end", 1));
    let left = bench.fleet.stop_all(Duration::from_secs(5)).await;
    assert_eq!(left, [bench.sandbox]);
    // Once it is gone, a stop or a start finds that out.
    bench.driver.stuck.store(false, Ordering::SeqCst);
    bench.fleet.stop(bench.sandbox).await;
    assert_eq!(status().state, SandboxState::Stopped);
    bench.fleet.start(bench.sandbox).await.unwrap();
    assert_eq!(starts(), 2);
}

#[tokio::test]
async fn what_cannot_be_taken_over_is_failed_in_words_until_an_order_ends_it() {
    let bench = bench();
    bench.driver.unreached.store(true, Ordering::SeqCst);
    bench.fleet.adopt().await;
    let adopted = *bench.driver.adopts.lock().unwrap();
    let status = bench.fleet.status(adopted);
    assert_eq!(status.state, SandboxState::Failed);
    assert_eq!(status.error.unwrap().code, "not_taken_over");
    let stops = || bench.driver.stops.load(Ordering::SeqCst);
    assert_eq!(stops(), 0);
    bench.fleet.start(adopted).await.unwrap();
    assert_eq!(
        (stops(), bench.driver.starts.load(Ordering::SeqCst)),
        (1, 1)
    );
}

#[tokio::test]
async fn concurrent_starts_never_take_more_places_than_there_are() {
    let bench = bench();
    bench.host.places.store(3, Ordering::SeqCst);
    let starts = (0..20).map(|_| {
        let fleet = bench.fleet.clone();
        tokio::spawn(async move { fleet.start(SandboxId::generate()).await })
    });
    let (mut began, mut refused) = (0, 0);
    for start in starts.collect::<Vec<_>>() {
        match start.await.unwrap() {
            Ok(_) => began += 1,
            Err(error) => {
                assert_eq!(error.code, "full");
                refused += 1;
            }
        }
    }
    assert_eq!((began, refused), (3, 17));
    assert_eq!(bench.fleet.count(SandboxState::Running), 3);
    assert_eq!(
        bench.fleet.count(SandboxState::Failed),
        0,
        "a refusal changes nothing"
    );
}

#[tokio::test]
async fn what_was_taken_over_takes_a_place() {
    let bench = bench();
    bench.host.places.store(1, Ordering::SeqCst);
    bench.fleet.adopt().await;
    assert_eq!(
        bench.fleet.start(bench.sandbox).await.unwrap_err().code,
        "full"
    );
    assert_eq!(bench.fleet.stop_all(Duration::from_secs(5)).await, []);
    bench.fleet.start(bench.sandbox).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn crashes_are_counted_across_a_restart_of_the_host() {
    let bench = bench();
    bench.driver.young.store(true, Ordering::SeqCst);
    let adopted = *bench.driver.adopts.lock().unwrap();
    bench.host.kept.lock().unwrap().insert(adopted, 4);
    bench.fleet.adopt().await;
    bench.driver.crash();
    let mut state = bench.fleet.subscribe(adopted);
    state
        .wait_for(|state| state.status().state == SandboxState::Failed)
        .await
        .unwrap();
    assert_eq!(bench.driver.starts.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_before_its_first_health_has_to_prove_it_when_taken_over() {
    let bench = bench();
    bench.driver.young.store(true, Ordering::SeqCst);
    bench.host.healthy.store(false, Ordering::SeqCst);
    bench.fleet.adopt().await;
    let adopted = *bench.driver.adopts.lock().unwrap();
    assert_eq!(bench.fleet.status(adopted).state, SandboxState::Starting);
    let mut state = bench.fleet.subscribe(adopted);
    state
        .wait_for(|state| state.status().state == SandboxState::Failed)
        .await
        .unwrap();
    assert_eq!(bench.driver.stops.load(Ordering::SeqCst), 1);
}
