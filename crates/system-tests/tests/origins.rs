//! A page served by a sandbox, in the browser of a signed-in user.

use serde_json::{Value, json};
use system_tests::account::parameter;
use system_tests::{Installation, Setup, browser};

const READS: &[&str] = &[
    "/me/sandboxes",
    "/me/tokens",
    "/admin/users",
    "/auth/me",
    "/console",
];
const WRITES: &[&str] = &[
    "/me/sandboxes/live/stop",
    "/me/tokens",
    "/admin/invites",
    "/auth/logout",
    "/me/recovery-codes",
];
const SOCKETS: &[&str] = &[
    "/me/sandboxes/live/commands/00000000-0000-7000-8000-000000000000/stream",
    "/admin/audit?follow=true",
];

/// Runs the whole attack in the browser and checks what came of it.
async fn demand_isolation(
    installation: &Installation,
    control: &str,
    live: &str,
    dev: &str,
    more: Value,
) -> Value {
    let mut input = json!({
        "control": control,
        "live": live,
        "dev": dev,
        "setup": parameter(installation.link(), "setup").expect("a set-up link"),
        "user": "alice",
        "reads": READS,
        "writes": WRITES,
        "sockets": SOCKETS,
    });
    for (key, value) in more.as_object().expect("an object") {
        input[key] = value.clone();
    }
    let seen = browser::run("isolation.mjs", &input).await;

    // The attacks ran at all, and the person's own page may do what they may not.
    assert_eq!(seen["own"]["status"], 200, "{seen:#}");
    for role in ["live", "dev"] {
        assert_eq!(seen["roles"][role]["title"], role, "{seen:#}");
        let attempts = seen["roles"][role]["attempts"]
            .as_object()
            .expect("attempts");
        assert_eq!(
            attempts.len(),
            READS.len() * 3 + WRITES.len() * 4 + SOCKETS.len()
        );
        for (attempt, outcome) in attempts {
            let outcome = outcome.as_str().expect("an outcome");
            assert!(
                !outcome.starts_with("read "),
                "{role}: {attempt}: {outcome}"
            );
            assert!(
                !outcome.starts_with("wrote "),
                "{role}: {attempt}: {outcome}"
            );
            assert_ne!(outcome, "opened", "{role}: {attempt}");
        }
        assert!(
            attempts.values().any(|outcome| outcome == "sent"),
            "{role}: no request left the browser"
        );
        assert!(
            attempts.values().any(|outcome| outcome == "submitted"),
            "{role}: no form left the browser"
        );
        assert_eq!(
            seen["roles"][role]["cookies"], "",
            "{role}: a page can read a cookie of ours"
        );
    }
    assert_eq!(seen["roles"]["prefix"]["title"], "dev", "{seen:#}");
    let worker = seen["roles"]["prefix"]["worker"]
        .as_str()
        .expect("an outcome");
    assert!(
        worker.starts_with("refused"),
        "a worker of dev would control live: {worker}"
    );

    // Nothing happened: still signed in, no token, no invitation, nothing stopped.
    let after = &seen["after"];
    assert_eq!(after["me"], 200, "{after:#}");
    assert_eq!(after["tokens"]["tokens"], json!([]), "{after:#}");
    assert_eq!(after["invites"]["invites"], json!([]), "{after:#}");
    assert_eq!(after["codes"]["remaining"], 10, "{after:#}");
    for sandbox in after["sandboxes"]["sandboxes"]
        .as_array()
        .expect("sandboxes")
    {
        assert_eq!(sandbox["state"], "running", "{after:#}");
    }
    for cookie in seen["cookies"].as_array().expect("cookies") {
        assert_eq!(cookie["httpOnly"], true, "{cookie}");
        assert!(
            !cookie["domain"]
                .as_str()
                .expect("a domain")
                .starts_with('.'),
            "{cookie}"
        );
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_sandbox_cannot_use_the_control_plane() {
    let installation = Setup::default().hostile_guest().start().await;
    let (live, dev) = (
        installation.runtime("alice"),
        installation.runtime("dev--alice"),
    );
    demand_isolation(
        &installation,
        &installation.control(),
        &live,
        &dev,
        json!({}),
    )
    .await;
}

/// The hard case: control plane and sandboxes are sibling subdomains, so the browser takes
/// them for one site and sends `SameSite` cookies along.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_sandbox_on_the_same_site_cannot_use_the_control_plane() {
    let certificates =
        system_tests::certificates::Authority::new(&["control.choir.test", "*.run.choir.test"]);
    let port = system_tests::installation::free_port();
    let control = format!("https://control.choir.test:{port}");
    let installation = Setup::default()
        .hostile_guest()
        .port(port)
        .config(&format!(
            "[listen.tls]\ncert_file = {:?}\nkey_file = {:?}\n[origins]\ncontrol = {control:?}\n\
             runtime = \"https://{{user}}.run.choir.test:{port}\"\ndev = \"https://dev--{{user}}.run.choir.test:{port}\"",
            certificates.chain(),
            certificates.key(),
        ))
        .start()
        .await;
    let (live, dev) = (
        format!("https://alice.run.choir.test:{port}"),
        format!("https://dev--alice.run.choir.test:{port}"),
    );
    let more = json!({
        "args": ["--host-resolver-rules=MAP *.choir.test 127.0.0.1"],
        "authority": certificates.authority(),
    });
    let seen = demand_isolation(&installation, &control, &live, &dev, more).await;
    // The relying party is no parent of the runtime hosts, so their pages cannot name it.
    for role in ["live", "dev"] {
        assert_eq!(seen["roles"][role]["passkey"], "SecurityError", "{seen:#}");
    }
    for cookie in seen["cookies"].as_array().expect("cookies") {
        assert_eq!(cookie["secure"], true, "{cookie}");
        assert!(
            cookie["name"]
                .as_str()
                .expect("a name")
                .starts_with("__Host-"),
            "{cookie}"
        );
    }
}
