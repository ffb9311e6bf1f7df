//! Lifecycle and swap over guests in this process.

use types::{Role, SandboxState, SwapRequest};

use super::Whose;
use super::testing::Installation;
use crate::error::Error;

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
    let first = sandboxes
        .start(&actor, Whose::Own, Role::Dev)
        .await
        .unwrap();
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
    let live = sandboxes
        .start(&actor, Whose::Own, Role::Live)
        .await
        .unwrap();
    let dev = sandboxes
        .start(&actor, Whose::Own, Role::Dev)
        .await
        .unwrap();
    let swapped = sandboxes
        .swap(&actor, Whose::Own, SwapRequest::default())
        .await
        .unwrap();
    assert_eq!(
        (swapped.live, swapped.dev, swapped.generation),
        (dev.id, live.id, 1)
    );
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
    sandboxes
        .start(&actor, Whose::Own, Role::Dev)
        .await
        .unwrap();
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
