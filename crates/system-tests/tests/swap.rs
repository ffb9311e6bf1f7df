//! A swap under open desktops, in Chromium, and what must stop it.

use serde_json::{Value, json};
use system_tests::account::parameter;
use system_tests::installation::free_port;
use system_tests::{Account, Installation, Setup, browser};
use types::Role;

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_moves_both_open_desktops() {
    let installation = Setup::default().start().await;
    let (live, dev) = (
        installation.runtime("alice"),
        installation.runtime("dev--alice"),
    );
    moves_both(&installation, &live, &dev).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_moves_both_desktops_of_the_one_host_for_everybody() {
    let port = free_port();
    let one = format!("http://choir-run.localhost:{port}");
    let config = format!("[origins]\nruntime = \"single_host\"\nsingle_host = \"{one}\"\n");
    let installation = Setup::default().port(port).config(&config).start().await;
    moves_both(&installation, &one, &format!("{one}/dev")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_moves_a_desktop_that_was_opened_under_the_redirected_prefix() {
    let config = "[origins]\nredirect_dev_prefix = true\n";
    let installation = Setup::default().config(config).start().await;
    let live = installation.runtime("alice");
    let seen = moves_both(&installation, &live, &format!("{live}/dev")).await;
    let dev = installation.runtime("dev--alice");
    assert_eq!(seen["pages"]["dev"], format!("{dev}/"), "{seen:#}");
    assert_eq!(seen["pages"]["live"], format!("{live}/"), "{seen:#}");
}

/// Opens both desktops in Chromium, swaps, and demands that both are moved.
async fn moves_both(installation: &Installation, live: &str, dev: &str) -> Value {
    let input = json!({
        "control": installation.control(),
        "live": live,
        "dev": dev,
        "setup": parameter(installation.link(), "setup"),
        "user": "alice",
    });
    let seen = browser::run("swap.mjs", &input).await;
    assert_eq!(seen["swap"]["status"], 200, "{seen:#}");
    let id = |when: &str, role: &str| seen[when][role]["sandbox_id"].clone();
    assert_ne!(id("before", "live"), id("before", "dev"), "{seen:#}");
    assert_eq!(id("after", "live"), id("before", "dev"), "{seen:#}");
    assert_eq!(id("after", "dev"), id("before", "live"), "{seen:#}");
    assert_eq!(seen["after"]["live"]["role"], "live", "{seen:#}");
    assert_eq!(seen["after"]["dev"]["role"], "dev", "{seen:#}");
    for role in ["live", "dev"] {
        assert_eq!(seen["closed"][role]["code"], 1012, "{seen:#}");
        let reason: Value =
            serde_json::from_str(seen["closed"][role]["reason"].as_str().unwrap()).unwrap();
        assert_eq!(
            reason["generation"], seen["swap"]["body"]["generation"],
            "{seen:#}"
        );
        assert!(seen["loads"][role].as_u64() > Some(0), "{seen:#}");
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_survives_a_restart_and_a_second_one_takes_it_back() {
    let mut installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.start(Role::Dev).await;
    let (live, dev) = (
        alice.sandbox(Role::Live).await["id"].clone(),
        alice.sandbox(Role::Dev).await["id"].clone(),
    );
    let swapped = alice
        .control("POST", "/me/sandboxes/swap", None)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&swapped["live"], &swapped["dev"], &swapped["generation"]),
        (&dev, &live, &json!(1))
    );
    installation.end(rustix::process::Signal::TERM);
    installation.spawn().await;
    assert_eq!(alice.sandbox(Role::Live).await["id"], dev);
    assert_eq!(alice.sandbox(Role::Live).await["generation"], 1);
    alice.start(Role::Live).await;
    alice.start(Role::Dev).await;
    let back = alice
        .control("POST", "/me/sandboxes/swap", None)
        .await
        .expect(200)
        .json();
    assert_eq!((&back["live"], &back["generation"]), (&live, &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_does_not_answer_is_not_swapped_in() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    alice.start(Role::Dev).await;
    let before = alice.sandbox(Role::Live).await["id"].clone();
    let dir = alice.start_dir(&installation, Role::Dev).await;
    std::fs::remove_file(dir.join("app/app.sock")).unwrap();
    let refused = alice.control("POST", "/me/sandboxes/swap", None).await;
    assert!(
        matches!(refused.status, 409 | 503),
        "{} {}",
        refused.status,
        refused.text()
    );
    assert_eq!(refused.code(), "unhealthy_target", "{}", refused.text());
    assert_eq!(alice.sandbox(Role::Live).await["id"], before);
    assert_eq!(alice.sandbox(Role::Live).await["generation"], 0);
}
