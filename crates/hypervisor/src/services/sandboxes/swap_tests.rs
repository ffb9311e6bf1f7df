//! Swaps on trial, and what must not stop a swap halfway, over guests in this process.

use std::time::Duration;

use http::StatusCode;
use types::{NoticeKind, Role, SandboxId, SwapOutcome, SwapRequest, SwapStatus};

use super::Whose;
use super::testing::Installation;

/// Looks come quickly; time does not pass unless a test says so.
const CONFIG: &str = "[sandbox.swap]\ngrace = \"30s\"\nprobe_interval = \"1s\"\n";

async fn both_running() -> Installation {
    let installation = Installation::new(CONFIG).await;
    for role in Role::ALL {
        installation.start(role).await;
    }
    installation
}

async fn swap(installation: &Installation, rollback: bool) -> (SandboxId, SandboxId) {
    let swapped = installation
        .app
        .sandboxes
        .swap(&installation.actor(), Whose::Own, SwapRequest { rollback })
        .await
        .unwrap();
    assert_eq!(swapped.grace_until.is_some(), rollback);
    (swapped.live, swapped.dev)
}

async fn last(installation: &Installation) -> SwapStatus {
    installation
        .app
        .sandboxes
        .last_swap(&installation.actor(), Whose::Own)
        .await
        .unwrap()
        .unwrap()
}

/// The status of the last swap once its trial is over.
async fn settled(installation: &Installation) -> SwapStatus {
    let over = async {
        loop {
            let status = last(installation).await;
            if status.outcome != SwapOutcome::OnTrial {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), over)
        .await
        .expect("the trial ends")
}

/// Waits until this sandbox is served as `live`: the pointer is on the disk a moment before.
async fn serves(installation: &Installation, live: SandboxId) {
    let served = async {
        while installation.sandbox(Role::Live).await != live {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), served)
        .await
        .expect("it is served");
}

/// What the ledger has about rollbacks: action and outcome.
async fn rollbacks(installation: &Installation) -> Vec<(String, String)> {
    let text = |record: &serde_json::Value, key: &str| record[key].as_str().unwrap().to_owned();
    records(installation)
        .await
        .iter()
        .filter(|record| record["action"] == "sandbox.rollback")
        .map(|record| (text(record, "action"), text(record, "outcome")))
        .collect()
}

async fn records(installation: &Installation) -> Vec<serde_json::Value> {
    let mut admin = installation.actor();
    admin.user.as_mut().unwrap().is_admin = true;
    let tail = installation.app.audit.tail(&admin, 100).await.unwrap();
    tail.iter()
        .map(|entry| serde_json::to_value(entry).unwrap())
        .collect()
}

#[tokio::test]
async fn a_new_live_that_crashes_is_taken_back_once() {
    let installation = both_running().await;
    let (new, old) = swap(&installation, true).await;
    assert_eq!(last(&installation).await.outcome, SwapOutcome::OnTrial);
    assert!(last(&installation).await.grace_left_ms > Some(0));
    installation.driver.crash(new);
    let status = settled(&installation).await;
    assert_eq!(status.outcome, SwapOutcome::RolledBack, "{status:?}");
    assert!(status.reason.unwrap().contains("crashed"));
    let route = installation
        .app
        .store
        .route(installation.user.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((route.live, route.dev, route.generation), (old, new, 2));
    serves(&installation, old).await;
    let notices = installation
        .app
        .sandboxes
        .plane()
        .notices
        .of(new, Role::Dev);
    assert!(
        notices
            .iter()
            .any(|notice| notice.kind == NoticeKind::RolledBack),
        "{notices:?}"
    );
    assert_eq!(
        rollbacks(&installation).await,
        [("sandbox.rollback".to_owned(), "allowed".to_owned())]
    );
    // The one that is live again is not on trial: what it does now is no swap's fault.
    installation.driver.crash(old);
    assert!(!installation.app.sandboxes.forget_trial(&route));
    assert_eq!(
        settled(&installation).await.outcome,
        SwapOutcome::RolledBack
    );
}

#[tokio::test]
async fn a_new_live_that_stops_answering_is_taken_back() {
    let installation = both_running().await;
    let (new, old) = swap(&installation, true).await;
    installation
        .driver
        .ail(new, StatusCode::INTERNAL_SERVER_ERROR, u32::MAX);
    let status = settled(&installation).await;
    assert_eq!(status.outcome, SwapOutcome::RolledBack);
    let reason = status.reason.unwrap();
    assert!(
        reason.contains("GET /health was answered with 500"),
        "{reason}"
    );
    serves(&installation, old).await;
}

#[tokio::test]
async fn one_bad_answer_alone_takes_nothing_back() {
    let installation = both_running().await;
    let (new, _) = swap(&installation, true).await;
    installation
        .driver
        .ail(new, StatusCode::SERVICE_UNAVAILABLE, 1);
    let looked = async {
        while installation.driver.ails(new) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), looked)
        .await
        .expect("it is looked at");
    installation.app.clock.advance(Duration::from_secs(31));
    assert_eq!(settled(&installation).await.outcome, SwapOutcome::Kept);
    assert_eq!(installation.sandbox(Role::Live).await, new);
}

#[tokio::test]
async fn when_both_are_broken_everything_stays_and_says_so() {
    let installation = both_running().await;
    let (new, old) = swap(&installation, true).await;
    installation
        .driver
        .ail(old, StatusCode::INTERNAL_SERVER_ERROR, u32::MAX);
    installation.driver.crash(new);
    let status = settled(&installation).await;
    assert_eq!(status.outcome, SwapOutcome::Stayed);
    let reason = status.reason.unwrap();
    assert!(reason.contains("the old live cannot take over"), "{reason}");
    assert_eq!(installation.sandbox(Role::Live).await, new);
    assert_eq!(
        rollbacks(&installation).await,
        [("sandbox.rollback".to_owned(), "denied".to_owned())]
    );
}

#[tokio::test]
async fn a_swap_stands_when_its_grace_is_over() {
    let installation = both_running().await;
    let (new, _) = swap(&installation, true).await;
    installation.app.clock.advance(Duration::from_secs(31));
    let status = settled(&installation).await;
    assert_eq!((status.outcome, status.reason), (SwapOutcome::Kept, None));
    installation.driver.crash(new);
    assert_eq!(installation.sandbox(Role::Live).await, new);
}

#[tokio::test]
async fn stopping_or_restarting_the_new_live_is_no_failure() {
    let installation = both_running().await;
    let (new, _) = swap(&installation, true).await;
    installation
        .app
        .sandboxes
        .restart(&installation.actor(), Whose::Own, Role::Live)
        .await
        .unwrap();
    let status = settled(&installation).await;
    assert_eq!(status.outcome, SwapOutcome::Kept);
    assert!(status.reason.unwrap().contains("restarted on purpose"));
    // Also when it is the lifecycle that stops it, as it does with what idles.
    let (newer, _) = swap(&installation, true).await;
    assert_ne!(newer, new);
    installation.app.sandboxes.fleet.stop(newer).await;
    let status = settled(&installation).await;
    assert_eq!(status.outcome, SwapOutcome::Kept);
    assert!(status.reason.unwrap().contains("stopped on purpose"));
    assert_eq!(installation.sandbox(Role::Live).await, newer);
}

#[tokio::test]
async fn without_rollback_a_crash_changes_nothing() {
    let installation = both_running().await;
    let (new, _) = swap(&installation, false).await;
    assert_eq!(last(&installation).await.outcome, SwapOutcome::Kept);
    installation.driver.crash(new);
    assert!(
        installation
            .app
            .store
            .swaps_on_trial()
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(installation.sandbox(Role::Live).await, new);
}

#[tokio::test]
async fn a_trial_goes_on_after_a_restart_of_the_hypervisor() {
    let installation = both_running().await;
    let (new, old) = swap(&installation, true).await;
    let route = installation
        .app
        .sandboxes
        .plane()
        .routes
        .of_user(installation.user.id)
        .unwrap();
    // As a kill of the hypervisor would: the watch is gone, its row is not.
    assert!(installation.app.sandboxes.forget_trial(&route));
    assert_eq!(last(&installation).await.outcome, SwapOutcome::OnTrial);
    installation.app.sandboxes.fleet.stop(new).await;
    installation.app.sandboxes.resume_trials().await.unwrap();
    let status = settled(&installation).await;
    assert_eq!(status.outcome, SwapOutcome::RolledBack, "{status:?}");
    serves(&installation, old).await;
}

/// Cut between a crash and the restart after it, or before its first health, the new `live` is
/// taken over as one that starts. That is no failure yet.
#[tokio::test]
async fn a_live_that_is_still_starting_when_the_hypervisor_comes_back_is_waited_for() {
    let installation = both_running().await;
    let (new, _) = swap(&installation, true).await;
    let sandboxes = &installation.app.sandboxes;
    let route = sandboxes.plane().routes.of_user(installation.user.id);
    assert!(sandboxes.forget_trial(&route.unwrap()));
    sandboxes.fleet.stop(new).await;
    installation.driver.hold_starts(true);
    sandboxes.fleet.begin(new).unwrap();
    sandboxes.resume_trials().await.unwrap();
    // Time for several looks.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(last(&installation).await.outcome, SwapOutcome::OnTrial);
    installation.driver.hold_starts(false);
    let mut state = sandboxes.fleet.subscribe(new);
    state
        .wait_for(|state| matches!(state, runtime::State::Running(_)))
        .await
        .unwrap();
    assert_eq!(last(&installation).await.outcome, SwapOutcome::OnTrial);
    assert_eq!(installation.sandbox(Role::Live).await, new);
    // It is watched from then on.
    installation.driver.crash(new);
    assert_eq!(
        settled(&installation).await.outcome,
        SwapOutcome::RolledBack
    );
}

#[tokio::test]
async fn a_swap_goes_on_when_its_caller_goes_away() {
    let installation = both_running().await;
    let dev = installation.sandbox(Role::Dev).await;
    let actor = installation.actor();
    let mut asked = Box::pin(installation.app.sandboxes.swap(
        &actor,
        Whose::Own,
        SwapRequest::default(),
    ));
    // Gone as soon as the ledger has the record, before or after the pointer is on the disk.
    loop {
        assert!(futures_util::poll!(&mut asked).is_pending());
        let records = records(&installation).await;
        if records
            .iter()
            .any(|record| record["action"] == "sandbox.swap")
        {
            break;
        }
    }
    drop(asked);
    serves(&installation, dev).await;
}

#[tokio::test]
async fn of_two_swaps_at_once_one_is_told_so_and_none_is_lost() {
    let installation = both_running().await;
    let actor = installation.actor();
    let one = || {
        installation
            .app
            .sandboxes
            .swap(&actor, Whose::Own, SwapRequest::default())
    };
    let (a, b) = tokio::join!(one(), one());
    let done = [&a, &b].iter().filter(|swapped| swapped.is_ok()).count();
    let row = installation
        .app
        .store
        .route(installation.user.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.generation, u64::try_from(done).unwrap(), "{a:?} {b:?}");
    assert!(done >= 1);
    assert_eq!(installation.sandbox(Role::Live).await, row.live);
}
