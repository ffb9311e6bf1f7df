//! Lifecycle and swap over guests in this process.

use std::time::{Duration, Instant};

use types::{NoticeKind, Role, SandboxState, SwapRequest};

use super::Whose;
use super::testing::{Installation, NOW, add_user};
use crate::actor::Actor;
use crate::error::Error;
use crate::services::provider::limits::Amount;

#[tokio::test]
async fn concurrent_starts_of_a_role_join_one_start() {
    let installation = Installation::new("").await;
    let actor = installation.actor();
    let sandboxes = &installation.app.sandboxes;
    let one = || sandboxes.start(&actor, Whose::Own, Role::Live);
    let (a, b, c) = tokio::join!(one(), one(), one());
    let ids = [a, b, c].map(|view| view.unwrap().start_id.unwrap());
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(
        installation
            .driver
            .starts(installation.sandbox(Role::Live).await),
        1
    );
}

#[tokio::test]
async fn stop_and_restart_make_a_new_start() {
    let installation = Installation::new("").await;
    let actor = installation.actor();
    let sandboxes = &installation.app.sandboxes;
    let first = installation.start(Role::Dev).await;
    let stopped = sandboxes.stop(&actor, Whose::Own, Role::Dev).await.unwrap();
    assert_eq!(stopped.state, SandboxState::Stopped);
    let again = sandboxes
        .restart(&actor, Whose::Own, Role::Dev)
        .await
        .unwrap();
    assert_eq!(again.state, SandboxState::Running);
    assert_ne!(first.start_id, again.start_id);
}

#[tokio::test]
async fn swap_exchanges_the_roles_and_keeps_the_starts() {
    let installation = Installation::new("").await;
    let actor = installation.actor();
    let sandboxes = &installation.app.sandboxes;
    let live = installation.start(Role::Live).await;
    let dev = installation.start(Role::Dev).await;
    let swapped = sandboxes
        .swap(&actor, Whose::Own, SwapRequest::default())
        .await
        .unwrap();
    assert_eq!(
        (swapped.live, swapped.dev, swapped.generation),
        (dev.id, live.id, 1)
    );
    let within = (swapped.took_ms + 1) * 1000;
    assert!((1..=within).contains(&swapped.flip_us), "{swapped:?}");
    let after = sandboxes.list(&actor).await.unwrap();
    assert_eq!(after[0].start_id, dev.start_id);
    // The pointer is on the disk, not only in memory.
    let row = installation
        .app
        .store
        .route(installation.user.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.live, row.generation), (dev.id, 1));
    // Back again.
    let back = sandboxes
        .swap(&actor, Whose::Own, SwapRequest::default())
        .await
        .unwrap();
    assert_eq!((back.live, back.generation), (live.id, 2));
}

#[tokio::test]
async fn an_unhealthy_target_is_not_swapped_in() {
    let installation = Installation::new("").await;
    let actor = installation.actor();
    let sandboxes = &installation.app.sandboxes;
    let refused = sandboxes
        .swap(&actor, Whose::Own, SwapRequest::default())
        .await;
    assert!(
        matches!(refused, Err(Error::UnhealthyTarget(_))),
        "{refused:?}"
    );
    installation.start(Role::Dev).await;
    let dev = installation.sandbox(Role::Dev).await;
    installation.driver.hang(dev);
    let refused = sandboxes
        .swap(&actor, Whose::Own, SwapRequest::default())
        .await;
    assert!(
        matches!(refused, Err(Error::UnhealthyTarget(_))),
        "{refused:?}"
    );
    assert_eq!(installation.sandbox(Role::Dev).await, dev);
}

#[tokio::test]
async fn only_an_admin_reaches_other_peoples_sandboxes() {
    let installation = Installation::new("").await;
    let actor = installation.actor();
    let name = "alice".parse().unwrap();
    let refused = installation
        .app
        .sandboxes
        .start(&actor, Whose::Of(&name), Role::Live)
        .await;
    assert!(matches!(refused, Err(Error::Forbidden(_))), "{refused:?}");
    let missing = "nobody".parse().unwrap();
    let refused = installation
        .app
        .sandboxes
        .stop(&actor, Whose::Of(&missing), Role::Live)
        .await;
    assert!(
        matches!(refused, Err(Error::Forbidden(_))),
        "whether the user exists is not told: {refused:?}"
    );
}

#[tokio::test]
async fn a_full_host_refuses_in_words_and_changes_nothing() {
    let installation = Installation::new("sandbox.limits.running_per_host = 2").await;
    let sandboxes = &installation.app.sandboxes;
    let bob = Actor {
        user: Some(add_user(&installation.app, "bob").await),
        ..installation.actor()
    };
    let alice = installation.actor();
    for role in Role::ALL {
        installation.start(role).await;
    }
    let refused = sandboxes.start(&bob, Whose::Own, Role::Live).await;
    let Err(error @ Error::HostFull { .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(error.to_string(), "this host is full: 2 of 2 sandboxes run");
    assert!(!error.hint().unwrap().contains("alice"));
    let states: Vec<_> = sandboxes.list(&bob).await.unwrap();
    assert!(
        states
            .iter()
            .all(|view| view.state == SandboxState::Stopped)
    );
    // One that runs already is no new one, and one that stops makes room.
    installation.start(Role::Live).await;
    sandboxes
        .restart(&alice, Whose::Own, Role::Live)
        .await
        .unwrap();
    sandboxes.stop(&alice, Whose::Own, Role::Dev).await.unwrap();
    sandboxes.start(&bob, Whose::Own, Role::Live).await.unwrap();
}

#[tokio::test]
async fn a_user_may_run_so_many_and_is_told_which_to_stop() {
    let installation = Installation::new("sandbox.limits.running_per_user = 1").await;
    let sandboxes = &installation.app.sandboxes;
    let alice = installation.actor();
    let both = tokio::join!(
        sandboxes.start(&alice, Whose::Own, Role::Dev),
        sandboxes.start(&alice, Whose::Own, Role::Live)
    );
    let errors: Vec<Error> = [both.0.err(), both.1.err()].into_iter().flatten().collect();
    let [error @ Error::TooManyRunning { .. }] = errors.as_slice() else {
        panic!("{errors:?}")
    };
    let hint = error.hint().unwrap();
    assert!(
        hint == "stop it first: choir sandbox stop dev"
            || hint == "stop it first: choir sandbox stop live",
        "{hint}"
    );
}

#[tokio::test]
async fn what_nobody_uses_is_stopped_with_a_record_and_says_why() {
    let installation = Installation::new("").await;
    let sandboxes = &installation.app.sandboxes;
    let alice = installation.actor();
    let limit = Duration::from_secs(1800);
    let state = async || sandboxes.list(&alice).await.unwrap()[0].clone();
    installation.start(Role::Live).await;
    let began = Instant::now();
    sandboxes.stop_idle(limit, began + limit / 2).await;
    assert_eq!(state().await.state, SandboxState::Running);
    // A model call that is open is work, however long it takes.
    let sandbox = installation.sandbox(Role::Live).await;
    let providers = &sandboxes.plane().providers;
    let caller = providers.caller(sandbox, installation.user.id, None);
    let call = caller.admit(Amount::default(), NOW).unwrap();
    sandboxes.stop_idle(limit, began + 3 * limit).await;
    assert_eq!(state().await.state, SandboxState::Running);
    drop(call);
    sandboxes
        .stop_idle(limit, began + 4 * limit - Duration::from_secs(1))
        .await;
    assert_eq!(
        state().await.state,
        SandboxState::Running,
        "it was at work until then"
    );
    sandboxes
        .stop_idle(limit, began + 4 * limit + Duration::from_secs(1))
        .await;
    let view = state().await;
    assert_eq!(view.state, SandboxState::Stopped);
    assert_eq!(
        view.reason.as_deref(),
        Some("it was stopped after 30 min without activity")
    );
    let mut admin = installation.actor();
    admin.user.as_mut().unwrap().is_admin = true;
    let entries = installation.app.audit.tail(&admin, 20).await.unwrap();
    assert!(
        entries
            .iter()
            .any(|entry| entry.record.action == "sandbox.idle_stop")
    );
    let again = installation.start(Role::Live).await;
    assert_eq!(again.reason, None);
}

/// Most model calls are over before anybody looks.
#[tokio::test]
async fn a_model_call_between_two_looks_keeps_a_sandbox_awake() {
    let installation = Installation::new("").await;
    let sandbox = installation.start(Role::Live).await.id;
    let sandboxes = &installation.app.sandboxes;
    let limit = Duration::from_secs(1800);
    let began = Instant::now();
    let providers = &sandboxes.plane().providers;
    for look in 1..=3 {
        let caller = providers.caller(sandbox, installation.user.id, None);
        drop(caller.admit(Amount::default(), NOW).unwrap());
        sandboxes.stop_idle(limit, began + look * limit).await;
        let state = sandboxes.status(sandbox).state;
        assert_eq!(state, SandboxState::Running, "look {look}");
    }
    let second = Duration::from_secs(1);
    sandboxes.stop_idle(limit, began + 4 * limit - second).await;
    assert_eq!(sandboxes.status(sandbox).state, SandboxState::Running);
    sandboxes.stop_idle(limit, began + 4 * limit + second).await;
    assert_eq!(sandboxes.status(sandbox).state, SandboxState::Stopped);
}

#[tokio::test]
async fn a_crash_loop_is_kept_noticed_and_recalled_by_the_next_hypervisor() {
    let installation = Installation::new("").await;
    let sandboxes = &installation.app.sandboxes;
    let alice = installation.actor();
    installation.start(Role::Live).await;
    let sandbox = installation.sandbox(Role::Live).await;
    let mut state = sandboxes.fleet.subscribe(sandbox);
    for _ in 0..5 {
        let running = state
            .wait_for(|state| matches!(state, runtime::State::Running(_)))
            .await
            .unwrap()
            .clone();
        installation.driver.crash(sandbox);
        state
            .wait_for(|now| match (now, &running) {
                (runtime::State::Running(now), runtime::State::Running(before)) => {
                    now.start_id != before.start_id
                }
                (now, _) => !matches!(now, runtime::State::Running(_)),
            })
            .await
            .unwrap();
    }
    state
        .wait_for(|state| matches!(state, runtime::State::Failed(_)))
        .await
        .unwrap();
    let view = sandboxes.list(&alice).await.unwrap()[0].clone();
    assert!(
        view.reason.as_deref().unwrap().contains("5 times in a row"),
        "{view:?}"
    );
    let notices = sandboxes.plane().notices.of(sandbox, Role::Live);
    assert_eq!(notices[0].kind, NoticeKind::Crash);
    assert_eq!(notices[0].count, 5);
    // A later hypervisor on the same database.
    let later = installation.again().await;
    later.recall_failures().await.unwrap();
    let recalled = later.status(sandbox);
    assert_eq!(recalled.state, SandboxState::Failed);
    assert!(recalled.error.unwrap().message.contains("5 times in a row"));
    // An order forgets it.
    later.stop(&alice, Whose::Own, Role::Live).await.unwrap();
    assert_eq!(installation.app.store.failures().await.unwrap(), Vec::new());
}

/// What its owner needs most when they come back and find it given up.
#[tokio::test]
async fn the_last_log_lines_of_what_was_given_up_outlive_the_hypervisor() {
    let installation = Installation::new("").await;
    let sandbox = installation.sandbox(Role::Live).await;
    let mut error = runtime::StartError::new("crash_loop", "it ended; its last words: two");
    error.log = vec!["one".to_owned(), "two".to_owned()];
    let crash = runtime::Crashed {
        crashes: 5,
        error: error.clone(),
        restarts_in: None,
    };
    let sandboxes = &installation.app.sandboxes;
    sandboxes.plane().crashed(sandbox, crash).await;
    let later = installation.again().await;
    later.recall_failures().await.unwrap();
    assert_eq!(later.status(sandbox).error, Some(error));
}

/// Writing the record takes a moment, in which somebody may come.
#[tokio::test]
async fn what_somebody_came_back_to_meanwhile_is_not_stopped() {
    let installation = Installation::new("").await;
    let sandboxes = &installation.app.sandboxes;
    let alice = installation.actor();
    let started = sandboxes.start(&alice, Whose::Own, Role::Live).await;
    let sandbox = started.unwrap().id;
    let instance = sandboxes.running(sandbox).unwrap();
    let limit = Duration::from_secs(60);
    sandboxes.stop_one_idle(&instance, limit, || false).await;
    assert_eq!(sandboxes.status(sandbox).state, SandboxState::Running);
    sandboxes.stop_one_idle(&instance, limit, || true).await;
    assert_eq!(sandboxes.status(sandbox).state, SandboxState::Stopped);
}

/// What was looked at for idleness may be another start by the time it is stopped, and an order
/// to start it shows that somebody wants it.
#[tokio::test]
async fn what_somebody_starts_anew_or_asks_for_meanwhile_is_not_idle() {
    let installation = Installation::new("").await;
    let sandboxes = &installation.app.sandboxes;
    let alice = installation.actor();
    let start = async || installation.start(Role::Live).await;
    let sandbox = start().await.id;
    let first = sandboxes.running(sandbox).unwrap();
    let limit = Duration::from_secs(60);
    sandboxes
        .restart(&alice, Whose::Own, Role::Live)
        .await
        .unwrap();
    sandboxes.stop_one_idle(&first, limit, || true).await;
    assert_eq!(sandboxes.status(sandbox).state, SandboxState::Running);
    let second = sandboxes.running(sandbox).unwrap();
    let upstream = sandboxes.plane().upstream(&second).unwrap();
    let before = upstream.activity().last();
    tokio::time::timeout(Duration::from_secs(10), async {
        while upstream.activity().last() == before {
            assert_eq!(start().await.start_id, Some(second.start_id));
        }
    })
    .await
    .expect("a start is activity");
}
