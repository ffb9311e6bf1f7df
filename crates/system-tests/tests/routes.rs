//! Every route of the control origin, asked for by people who may not.

use serde_json::{Value, json};
use system_tests::http::Ask;
use system_tests::{Account, Installation, Setup};

/// The route table, as the program itself lists it.
fn routes(installation: &Installation) -> Vec<(String, String, String)> {
    let output = std::process::Command::new(installation.binaries().program("hypervisor"))
        .args(["routes", "--json"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = listing
        .as_array()
        .or_else(|| listing["routes"].as_array())
        .unwrap();
    let text = |route: &Value, key: &str| route[key].as_str().unwrap().to_owned();
    list.iter()
        .map(|route| {
            (
                text(route, "method"),
                text(route, "path"),
                text(route, "access"),
            )
        })
        .collect()
}

/// A path with something plausible in each parameter.
fn filled(path: &str) -> String {
    path.replace("{role}", "live")
        .replace("{user}", "alice")
        .replace("{action}", "start")
        .replace("{name}", "nothing")
        .replace("{port}", "3000")
        .split('/')
        .map(|part| {
            if part.starts_with('{') {
                "00000000-0000-7000-8000-000000000000"
            } else {
                part
            }
        })
        .collect::<Vec<_>>()
        .join("/")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_answers_who_may_not() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    let nobody = installation.client();
    let control = installation.control();
    let routes = routes(&installation);
    assert!(routes.len() > 30, "only {} routes", routes.len());

    for (method, path, access) in &routes {
        let target = filled(path);
        let ask = || Ask::new(method, "localhost", &target).json(&json!({}));
        let who = format!("{method} {path} ({access})");
        let open = matches!(access.as_str(), "public" | "program");

        // Nobody at all, from our own page.
        let answer = nobody.send(ask().same_origin(&control)).await;
        match access.as_str() {
            "public" | "program" => assert!(
                answer.status != 403 || !answer.code().is_empty(),
                "{who}: {}",
                answer.status
            ),
            "page" => assert_eq!(
                (
                    answer.status,
                    answer.header("location").starts_with("/login")
                ),
                (303, true),
                "{who}"
            ),
            _ => assert_eq!(answer.status, 401, "{who}: {}", answer.text()),
        }

        // A token that is none.
        let answer = nobody
            .send(ask().bearer(&format!("choirpat_{}", "A".repeat(49))))
            .await;
        if !open {
            assert!(
                matches!(answer.status, 303 | 401),
                "{who} with a made-up token: {}",
                answer.status
            );
        }

        // A signed-in person, from a page of another origin.
        if !(open || access == "page") {
            for origin in [
                installation.runtime("alice"),
                "http://evil.example".to_owned(),
                "null".to_owned(),
            ] {
                let cross = ask()
                    .header("origin", &origin)
                    .header("sec-fetch-site", "same-site");
                let answer = alice.client.send(cross).await;
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (403, "cross_origin"),
                    "{who} from {origin}"
                );
            }
            let answer = alice.client.send(ask()).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (403, "cross_origin"),
                "{who} from nowhere"
            );
        }

        // A signed-in person who is no admin.
        if access == "admin" {
            let answer = bob.client.send(ask().same_origin(&control)).await;
            assert!(
                matches!(answer.status, 403 | 404),
                "{who} as no admin: {} {}",
                answer.status,
                answer.text()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_its_scope_and_nothing_else() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    let made = alice
        .control(
            "POST",
            "/me/tokens",
            Some(json!({ "name": "read", "scopes": ["sandboxes"] })),
        )
        .await
        .expect(201)
        .json();
    let token = made["token"].as_str().unwrap();
    let client = installation.client();
    let with_token =
        |method: &str, target: &str| Ask::new(method, "localhost", target).bearer(token);
    client
        .send(with_token("GET", "/me/sandboxes"))
        .await
        .expect(200);
    for (method, target) in [
        ("GET", "/me/tokens"),
        ("GET", "/admin/users"),
        ("GET", "/me/sessions"),
        ("POST", "/me/recovery-codes"),
    ] {
        let answer = client.send(with_token(method, target)).await;
        assert!(
            matches!(answer.status, 401 | 403),
            "{method} {target}: {}",
            answer.status
        );
    }
    // Not together with a cookie: that would be a browser's request.
    let both =
        with_token("GET", "/me/sandboxes").header("cookie", &alice.client.cookies("localhost"));
    assert_eq!(client.send(both).await.status, 403);
    // Revoked, it is nothing at once.
    let id = made["info"]["id"].as_str().unwrap();
    alice
        .control("DELETE", &format!("/me/tokens/{id}"), None)
        .await
        .expect(204);
    assert_eq!(
        client.send(with_token("GET", "/me/sandboxes")).await.status,
        401
    );
}
