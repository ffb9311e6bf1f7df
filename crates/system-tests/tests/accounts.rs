//! Registering, signing in and out, and recovering: in Chromium, and against the wire.

use serde_json::json;
use system_tests::account::{parameter, post};
use system_tests::passkey::Passkey;
use system_tests::{Account, Setup, browser};

#[tokio::test(flavor = "multi_thread")]
async fn a_person_registers_signs_in_and_recovers_in_a_browser() {
    let installation = Setup::default().start().await;
    let input = json!({
        "control": installation.control(),
        "live": installation.runtime("alice"),
        "link": installation.link(),
        "user": "alice",
    });
    let seen = browser::run("sign-in.mjs", &input).await;
    assert_eq!(seen["codes"].as_array().map(Vec::len), Some(10), "{seen:#}");
    assert_eq!(seen["linkInAddressBar"], false, "{seen:#}");
    assert_eq!(seen["linkWorksOnce"], true, "{seen:#}");
    assert_eq!(
        seen["home"],
        format!("{}/", installation.runtime("alice")),
        "{seen:#}"
    );
    assert_eq!(
        (&seen["desktop"]["user"], &seen["desktop"]["role"]),
        (&json!("alice"), &json!("live")),
        "{seen:#}"
    );
    assert_eq!(seen["afterLogout"]["status"], 401, "{seen:#}");
    assert_eq!(seen["afterLogin"]["status"], 200, "{seen:#}");
    let refused =
        seen["foreign"] == "SecurityError" || matches!(seen["foreign"].as_u64(), Some(400..500));
    assert!(refused, "{seen:#}");
    assert_eq!(seen["afterForeign"]["status"], 401, "{seen:#}");
    assert_eq!(seen["afterRecovery"]["status"], 200, "{seen:#}");
    assert_eq!(
        (&seen["passkeys"], &seen["codesLeft"]),
        (&json!(1), &json!(9)),
        "{seen:#}"
    );
    assert_eq!(seen["codeAgain"], "refused", "{seen:#}");
    assert_eq!(seen["complaints"], json!([]), "{seen:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passkey_of_another_origin_or_relying_party_signs_nobody_in() {
    let installation = Setup::default().start().await;
    let control = installation.control();
    let mut alice = Account::admin(&installation, "alice").await;
    assert_eq!(alice.sign_in().await.status, 200);

    for origin in [
        installation.runtime("alice"),
        "http://localhost:1".to_owned(),
        "https://localhost.evil.example".to_owned(),
    ] {
        alice.passkey.origin = origin.clone();
        let answer = alice.sign_in().await;
        assert!(
            (400..500).contains(&answer.status),
            "{origin}: {}",
            answer.status
        );
    }
    alice.passkey.origin = control.clone();
    for rp_id in ["alice.localhost", "evil.example"] {
        alice.passkey.rp_id = rp_id.to_owned();
        let answer = alice.sign_in().await;
        assert!(
            (400..500).contains(&answer.status),
            "{rp_id}: {}",
            answer.status
        );
    }
    alice.passkey.rp_id = "localhost".to_owned();
    assert_eq!(alice.sign_in().await.status, 200);

    // A passkey that nobody registered.
    let started = post(
        &alice.client,
        &control,
        "/auth/login/start",
        &json!({ "name": "alice" }),
    )
    .await
    .expect(200)
    .json();
    let options = json!({ "publicKey": {
        "challenge": started["options"]["publicKey"]["challenge"],
        "rp": { "id": "localhost" },
        "user": { "id": "AAAA" },
    }});
    let (mut stranger, _) = Passkey::create(&control, &options);
    let credential = stranger.sign(&started["options"]);
    let finish = json!({ "ceremony": started["ceremony"], "credential": credential });
    let client = installation.client();
    let refused = post(&client, &control, "/auth/login/finish", &finish).await;
    assert!((400..500).contains(&refused.status), "{}", refused.status);
    assert_eq!(client.cookies("localhost"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_ceremony_is_good_once() {
    let installation = Setup::default().start().await;
    let control = installation.control();
    let mut alice = Account::admin(&installation, "alice").await;
    let started = post(
        &alice.client,
        &control,
        "/auth/login/start",
        &json!({ "name": "alice" }),
    )
    .await
    .expect(200)
    .json();
    let credential = alice.passkey.sign(&started["options"]);
    let finish = json!({ "ceremony": started["ceremony"], "credential": credential });
    assert_eq!(
        post(&alice.client, &control, "/auth/login/finish", &finish)
            .await
            .status,
        200
    );
    let thief = installation.client();
    let again = post(&thief, &control, "/auth/login/finish", &finish).await;
    assert!((400..500).contains(&again.status), "{}", again.status);
    assert_eq!(thief.cookies("localhost"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_is_closed_without_a_link_and_a_link_works_once() {
    let installation = Setup::default().start().await;
    let control = installation.control();
    let client = installation.client();
    let start = |body| {
        let (client, control) = (&client, &control);
        async move {
            post(client, control, "/auth/register/start", &body)
                .await
                .status
        }
    };
    let refused = |status| matches!(status, 401 | 403);
    assert!(refused(start(json!({ "name": "mallory" })).await));
    assert!(refused(
        start(json!({ "name": "mallory", "setup": "choirset_guess" })).await
    ));
    let setup = parameter(installation.link(), "setup").unwrap();
    let alice = Account::admin(&installation, "alice").await;
    assert!(refused(
        start(json!({ "name": "mallory", "setup": setup })).await
    ));
    // An invitation makes one ordinary user.
    let bob = Account::invited(&installation, &alice, "bob").await;
    assert_eq!(bob.control("GET", "/admin/users", None).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_where_it_is_revoked() {
    let installation = Setup::default().start().await;
    let mut alice = Account::admin(&installation, "alice").await;
    let first = alice.client.cookies("localhost");
    alice.sign_in().await.expect(200);
    assert_ne!(
        first,
        alice.client.cookies("localhost"),
        "a session is new at each sign-in"
    );
    alice
        .control("DELETE", "/me/sessions", None)
        .await
        .expect(200);
    let old = installation.client();
    let (name, value) = first.split_once('=').unwrap();
    old.set_cookie("localhost", name, value);
    let ask = system_tests::http::Ask::new("GET", "localhost", "/auth/me")
        .same_origin(&installation.control());
    assert_eq!(old.send(ask).await.status, 401);
    alice.control("GET", "/auth/me", None).await.expect(200);
}
