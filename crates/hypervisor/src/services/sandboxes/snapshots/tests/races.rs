//! Copies next to starts, swaps, and each other; and what a copy leaves when its end fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use types::{CopyKind, Role, SandboxId, SandboxState, SnapshotReason, SwapOutcome, SwapRequest};

use super::super::super::Whose;
use super::super::copies::Copies;
use super::super::{Change, files};
use super::{World, mark, state};
use crate::error::Error;
use crate::services::sandboxes::testing::Installation;
use crate::store::{SnapshotRow, Standing};

#[tokio::test]
async fn one_copy_at_a_time_and_no_start_meanwhile() {
    let copies: Arc<Copies> = Arc::default();
    let (one, other) = (SandboxId::generate(), SandboxId::generate());
    let claim = copies
        .claim(&[one, other], CopyKind::Clone, Role::Dev)
        .unwrap();
    let refused = copies.claim(&[other], CopyKind::Restore, Role::Live);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("a clone of this sandbox")
    );
    drop(claim);
    drop(
        copies
            .claim(&[other], CopyKind::Restore, Role::Live)
            .unwrap(),
    );
    let held = copies.hold(one).await;
    let mut start = std::pin::pin!(copies.start_after(one));
    assert!(futures_util::poll!(start.as_mut()).is_pending());
    assert!(copies.start_now(one).is_none());
    assert!(copies.start_now(other).is_some());
    drop(held);
    assert!(futures_util::poll!(start).is_ready());
}

#[test]
fn what_is_being_replaced_keeps_its_role_and_what_changes_it_is_not_replaced() {
    let copies: Arc<Copies> = Arc::default();
    let pair = [SandboxId::generate(), SandboxId::generate()];
    for kind in [CopyKind::Clone, CopyKind::Restore] {
        let claim = copies.claim(&pair[..1], kind, Role::Dev).unwrap();
        assert_eq!(copies.swap(pair).unwrap_err().kind(), kind);
        drop(claim);
    }
    // A snapshot follows its sandbox.
    let claim = copies.claim(&pair, CopyKind::Snapshot, Role::Dev).unwrap();
    let (one, two) = (copies.swap(pair).unwrap(), copies.swap(pair).unwrap());
    drop((claim, one));
    let refused = copies.claim(&pair[1..], CopyKind::Restore, Role::Live);
    assert!(refused.unwrap_err().to_string().contains("swapped"));
    drop(two);
    copies
        .claim(&pair[1..], CopyKind::Restore, Role::Live)
        .unwrap();
}

#[tokio::test]
async fn neither_a_visit_nor_an_order_starts_what_is_being_copied() {
    let world = World::new().await;
    let installation = &world.installation;
    let (actor, sandboxes) = (installation.actor(), &installation.app.sandboxes);
    let route = sandboxes.plane().route(installation.user.id).await.unwrap();
    let copies = &sandboxes.plane().copies;
    let claim = copies.claim(&[world.sandbox], CopyKind::Restore, Role::Live);
    let held = copies.hold(world.sandbox).await;

    sandboxes.wake(&actor, &route, Role::Live).await.unwrap();
    let starting = sandboxes.start(&actor, Whose::Own, Role::Live);
    let Err(Error::Unavailable(words)) = starting.await else {
        panic!("it was started");
    };
    assert!(words.contains("a restore of this sandbox"), "{words}");
    assert_eq!(
        sandboxes.copied(world.sandbox).as_deref(),
        Some("a restore of this sandbox is under way")
    );
    assert_eq!(sandboxes.status(world.sandbox).state, SandboxState::Stopped);
    assert_eq!(installation.driver.starts(world.sandbox), 0);

    drop((held, claim));
    assert_eq!(sandboxes.copied(world.sandbox), None);
    sandboxes.wake(&actor, &route, Role::Live).await.unwrap();
    while sandboxes.status(world.sandbox).state != SandboxState::Running {
        tokio::task::yield_now().await;
    }
}

/// Of a restart nothing is left stopped that cannot be started again.
#[tokio::test]
async fn a_restart_that_has_to_wait_for_a_copy_stops_nothing() {
    let world = World::new().await;
    let (actor, sandboxes) = (
        world.installation.actor(),
        &world.installation.app.sandboxes,
    );
    let before = sandboxes
        .start(&actor, Whose::Own, Role::Live)
        .await
        .unwrap();
    let held = sandboxes.plane().copies.hold(world.sandbox).await;
    let refused = sandboxes.restart(&actor, Whose::Own, Role::Live).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    let now = sandboxes.running(world.sandbox).unwrap();
    assert_eq!(Some(now.start_id), before.start_id);
    drop(held);
}

#[tokio::test]
async fn a_swap_waits_for_no_clone_and_is_refused() {
    let world = World::new().await;
    let (actor, sandboxes) = (
        world.installation.actor(),
        &world.installation.app.sandboxes,
    );
    for role in Role::ALL {
        sandboxes.start(&actor, Whose::Own, role).await.unwrap();
    }
    let seen = sandboxes.plane().route(world.installation.user.id).await;
    let seen = seen.unwrap();
    let claim = sandboxes
        .plane()
        .copies
        .claim(&[seen.dev, seen.live], CopyKind::Clone, Role::Dev)
        .unwrap();
    let swap = || sandboxes.swap(&actor, Whose::Own, SwapRequest::default());
    let Err(Error::Conflict(words)) = swap().await else {
        panic!("they were swapped");
    };
    assert!(words.starts_with("a clone of one of the two"), "{words}");
    sandboxes.unchanged(&seen).await.unwrap();
    drop(claim);
    swap().await.unwrap();
    // What was authorized by the roles before is not done by those after.
    let refused = sandboxes.unchanged(&seen).await;
    assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
}

#[tokio::test]
async fn a_swap_that_is_taken_back_cancels_a_restore() {
    let world = World::new().await;
    let (actor, sandboxes) = (
        world.installation.actor(),
        &world.installation.app.sandboxes,
    );
    for role in Role::ALL {
        sandboxes.start(&actor, Whose::Own, role).await.unwrap();
    }
    let rollback = SwapRequest { rollback: true };
    let swapped = sandboxes.swap(&actor, Whose::Own, rollback).await.unwrap();
    let claim = sandboxes
        .plane()
        .copies
        .claim(&[swapped.live], CopyKind::Restore, Role::Live)
        .unwrap();
    let outcome = async || {
        let status = sandboxes.last_swap(&actor, Whose::Own).await;
        status.unwrap().unwrap().outcome
    };
    world.installation.driver.crash(swapped.live);
    claim.cancelled().cancelled().await;
    assert_eq!(outcome().await, SwapOutcome::OnTrial);
    drop(claim);
    while outcome().await == SwapOutcome::OnTrial {
        tokio::task::yield_now().await;
    }
    assert_eq!(outcome().await, SwapOutcome::RolledBack);
}

#[tokio::test]
async fn a_snapshot_is_not_changed_while_it_may_go() {
    let world = World::new().await;
    let row = world.row(Standing::Ready);
    world.put(&row, "kept").await;
    let (actor, sandboxes) = (
        world.installation.actor(),
        &world.installation.app.sandboxes,
    );
    let known_good = Change {
        name: None,
        known_good: Some(true),
    };
    let change =
        || sandboxes.change_snapshot(&actor, Whose::Own, Role::Live, row.id, known_good.clone());
    let claim = sandboxes
        .plane()
        .copies
        .claim(&[world.sandbox], CopyKind::Snapshot, Role::Live)
        .unwrap();
    let refused = change().await;
    assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
    // Whoever has the claim removes it, and it stays removed.
    let plane = sandboxes.plane();
    plane.remove_snapshot(row.clone()).await.unwrap();
    drop(claim);
    let refused = change().await;
    assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
    let rows = world.installation.app.store.snapshots(world.sandbox).await;
    assert_eq!(rows.unwrap(), Vec::new());
}

/// A row of this size and age.
fn sized(world: &World, reason: SnapshotReason, created_at: i64, bytes: u64) -> SnapshotRow {
    SnapshotRow {
        reason,
        created_at,
        bytes,
        ..world.row(Standing::Ready)
    }
}

const BOUNDED: &str = "[sandbox.snapshots]\nmax_count = 4\nmax_bytes = 1048576\n";

#[tokio::test]
async fn too_many_bytes_go_from_the_oldest_but_not_the_way_back() {
    use SnapshotReason::{BeforeClone, BeforeRestore, Manual};
    let world = World::with(BOUNDED).await;
    let plane = world.installation.app.sandboxes.plane();
    let manual = sized(&world, Manual, 1, 300_000);
    let oldest = sized(&world, BeforeRestore, 2, 600_000);
    let older = sized(&world, BeforeClone, 3, 400_000);
    let latest = sized(&world, BeforeRestore, 4, 700_000);
    for row in [&manual, &oldest, &older, &latest] {
        world.put(row, "kept").await;
    }
    plane.prune(world.sandbox).await;
    let rows = async || {
        let rows = plane.store.snapshots(world.sandbox).await.unwrap();
        rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(rows().await, [manual.id, latest.id]);
    assert!(!world.state_of(&oldest).exists() && !world.state_of(&older).exists());
    // The latest alone may be more than the bound; with the next it goes.
    let next = sized(&world, BeforeRestore, 5, 2_000_000);
    world.put(&next, "kept").await;
    plane.prune(world.sandbox).await;
    assert_eq!(rows().await, [manual.id, next.id]);
}

#[tokio::test]
async fn what_goes_by_itself_is_kept_for_good_only_where_there_is_room() {
    use SnapshotReason::{BeforeRestore, Manual};
    let world = World::with(BOUNDED).await;
    let (actor, sandboxes) = (
        world.installation.actor(),
        &world.installation.app.sandboxes,
    );
    world.put(&sized(&world, Manual, 1, 900_000), "kept").await;
    let (small, large) = (
        sized(&world, BeforeRestore, 2, 100_000),
        sized(&world, BeforeRestore, 3, 200_000),
    );
    let keep = async |row: &SnapshotRow| {
        world.put(row, "kept").await;
        let change = Change {
            name: None,
            known_good: Some(true),
        };
        sandboxes
            .change_snapshot(&actor, Whose::Own, Role::Live, row.id, change)
            .await
    };
    let refused = keep(&large).await;
    assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
    assert!(keep(&small).await.unwrap().known_good);
    // And by number.
    for at in 4..6 {
        world.put(&sized(&world, Manual, at, 1), "kept").await;
    }
    let refused = keep(&sized(&world, BeforeRestore, 7, 1)).await;
    let words = refused.unwrap_err().to_string();
    assert!(words.contains("4 snapshots"), "{words}");
}

#[tokio::test]
async fn a_restore_that_is_done_is_a_success_though_older_ones_cannot_be_removed() {
    let world = World::with(BOUNDED).await;
    let (actor, sandboxes) = (
        world.installation.actor(),
        &world.installation.app.sandboxes,
    );
    let kept = sized(&world, SnapshotReason::Manual, 1, 4);
    world.put(&kept, "kept").await;
    // No directory: it cannot be removed as one.
    let stubborn = async |created_at, bytes| {
        let row = sized(&world, SnapshotReason::BeforeRestore, created_at, bytes);
        world.put(&row, "stubborn").await;
        std::fs::remove_dir_all(world.state_of(&row)).unwrap();
        std::fs::write(world.state_of(&row), "").unwrap();
    };
    let restore = async || {
        let begun = sandboxes
            .restore(&actor, Whose::Own, Role::Live, kept.id)
            .await
            .unwrap();
        begun.outcome.await.unwrap().unwrap()
    };
    // Too many bytes, which is seen afterwards.
    stubborn(2, 2_000_000).await;
    assert_eq!(restore().await.kind, CopyKind::Restore);
    assert_eq!(world.present(), "kept");
    // Too many, which is seen before.
    for created_at in [3, 4] {
        stubborn(created_at, 1).await;
    }
    assert_eq!(restore().await.kind, CopyKind::Restore);
}

#[tokio::test]
async fn what_fails_after_the_exchange_makes_no_failure_of_it() {
    let world = World::new().await;
    let sandboxes = &world.installation.app.sandboxes;
    let present = world.dir.join("state");
    let mut row = world.row(Standing::Replacing);
    row.replaces = Some(files::inode(&present).unwrap());
    world.put(&row, "restored").await;
    // The manifest cannot be written.
    let snapshot = world.state_of(&row).parent().unwrap().to_owned();
    std::fs::create_dir(snapshot.join("manifest.json.new")).unwrap();
    sandboxes.put_in_place(&mut row, &present).await.unwrap();
    assert_eq!(world.present(), "restored");
    let rows = world.installation.app.store.snapshots(world.sandbox).await;
    assert_eq!(rows.unwrap()[0].standing, Standing::Ready);
    assert_eq!(mark(&world.state_of(&row)), "present");
    // Where nothing was exchanged it is one.
    let mut row = world.row(Standing::Replacing);
    row.replaces = Some(files::inode(&present).unwrap());
    assert!(sandboxes.put_in_place(&mut row, &present).await.is_err());
    state(&world.dir.join("other"), "other", None);
    assert_eq!(world.present(), "restored");
}

/// What stands still for a copy is not idle: stopped, it would take the copy with it.
#[tokio::test]
async fn what_is_being_copied_is_not_stopped_for_idleness() {
    let installation = Installation::new("").await;
    let sandbox = installation.start(Role::Live).await.id;
    let sandboxes = &installation.app.sandboxes;
    let limit = Duration::from_secs(60);
    let began = Instant::now();
    let copies = &sandboxes.plane().copies;
    let claim = copies.claim(&[sandbox], CopyKind::Snapshot, Role::Live);
    sandboxes.stop_idle(limit, began + 3 * limit).await;
    assert_eq!(sandboxes.status(sandbox).state, SandboxState::Running);
    drop(claim.unwrap());
    // It is idle from the end of the copy on.
    let end = began + 4 * limit;
    sandboxes
        .stop_idle(limit, end - Duration::from_secs(1))
        .await;
    assert_eq!(sandboxes.status(sandbox).state, SandboxState::Running);
    sandboxes
        .stop_idle(limit, end + Duration::from_secs(1))
        .await;
    assert_eq!(sandboxes.status(sandbox).state, SandboxState::Stopped);
}
