//! The control origin from the outside, without a browser. Ceremonies with a real
//! authenticator are in `system-tests`.

mod providers;
mod usage;
mod world;

use axum::body::Body;
use crypto::{Token, TokenKind};
use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt;
use types::{InviteId, SessionId, UserId};

use super::route::{Access, table};
use crate::actor::Actor;
use crate::store::{NewSession, SessionKind};
use world::{DAY_MS, ORIGIN, World, actor};

#[tokio::test]
async fn nothing_but_the_listed_exemptions_answers_a_stranger() {
    let world = World::new().await;
    for route in table() {
        let path = route
            .path
            .replace("{role}", "live")
            .replace("{user}", "alice")
            .replace("{id}", &UserId::generate().to_string());
        let (status, headers, body) = world
            .ask(
                route.method.clone(),
                &path,
                &[("origin", ORIGIN)],
                Some(json!({})),
            )
            .await;
        let what = format!("{} {}", route.method, route.path);
        match route.access {
            Access::Public | Access::Program => {
                assert_ne!(status, StatusCode::UNAUTHORIZED, "{what}");
            }
            Access::Page => {
                assert_eq!(status, StatusCode::SEE_OTHER, "{what}");
                assert!(
                    headers[header::LOCATION]
                        .to_str()
                        .unwrap()
                        .starts_with("/login?next="),
                    "{what}"
                );
            }
            _ => {
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}");
                assert_eq!(body["code"], "unauthenticated", "{what}");
            }
        }
    }
}

#[tokio::test]
async fn no_admin_route_answers_somebody_who_is_no_admin() {
    let world = World::new().await;
    let bob = world
        .person("bob", false, "account sandboxes commands admin")
        .await;
    for route in table()
        .into_iter()
        .filter(|route| route.access == Access::Admin)
    {
        let path = route
            .path
            .replace("{role}", "live")
            .replace("{user}", "bob")
            .replace("{id}", &InviteId::generate().to_string());
        for who in [
            &[("origin", ORIGIN), ("cookie", bob.cookie.as_str())][..],
            &[("authorization", bob.token.as_str())][..],
        ] {
            let (status, _, body) = world
                .ask(route.method.clone(), &path, who, Some(json!({})))
                .await;
            assert_eq!(
                (status, &body["code"]),
                (StatusCode::FORBIDDEN, &json!("forbidden")),
                "{} {}",
                route.method,
                route.path
            );
        }
    }
}

#[tokio::test]
async fn a_token_opens_what_its_scopes_say() {
    let world = World::new().await;
    let alice = world.person("alice", true, "sandboxes").await;
    let with = [("authorization", alice.token.as_str())];
    assert_eq!(world.get("/auth/me", &with).await.0, StatusCode::OK);
    assert_eq!(world.get("/me/sandboxes", &with).await.0, StatusCode::OK);
    assert_eq!(
        world.get("/me/passkeys", &with).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        world.get("/admin/users", &with).await.0,
        StatusCode::FORBIDDEN
    );
    let (status, _, _) = world
        .ask(
            Method::POST,
            "/me/tokens",
            &with,
            Some(json!({"name": "x", "scopes": ["admin"]})),
        )
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let forged = [("authorization", "Bearer choirpat_nonsense")];
    assert_eq!(
        world.get("/auth/me", &forged).await.0,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn another_origin_gets_nothing_with_the_users_cookie() {
    let world = World::new().await;
    let alice = world.person("alice", true, "account").await;
    let cookie = ("cookie", alice.cookie.as_str());
    let foreign: &[&[(&str, &str)]] = &[
        &[],
        &[("origin", "http://alice.localhost:9090")],
        &[("origin", "null")],
        &[("origin", "https://localhost:9090")],
        &[("origin", "http://localhost:9091")],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "none")],
        &[("origin", ORIGIN), ("sec-fetch-site", "same-site")],
        &[
            ("origin", "http://evil.example"),
            ("sec-fetch-site", "same-origin"),
        ],
        &[("referer", "http://localhost:9090/console")],
    ];
    for headers in foreign {
        let headers = [&[cookie], *headers].concat();
        for (method, path) in [
            (Method::GET, "/auth/me"),
            (Method::GET, "/me/passkeys"),
            (Method::POST, "/auth/logout"),
            (Method::POST, "/me/sandboxes/swap"),
            (Method::GET, "/admin/users"),
            (Method::GET, "/admin/audit"),
        ] {
            let (status, answer, body) = world.ask(method, path, &headers, Some(json!({}))).await;
            assert_eq!(
                (status, &body["code"]),
                (StatusCode::FORBIDDEN, &json!("cross_origin")),
                "{path} {headers:?}"
            );
            assert!(!answer.contains_key("access-control-allow-origin"));
        }
    }
    for headers in [[("origin", ORIGIN)], [("sec-fetch-site", "same-origin")]] {
        assert_eq!(
            world
                .get("/auth/me", &[&[cookie], &headers[..]].concat())
                .await
                .0,
            StatusCode::OK
        );
    }
    assert!(
        world
            .app
            .store
            .session_lives(alice.session, world.app.clock.now_ms())
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn a_token_beside_a_cookie_is_refused() {
    let world = World::new().await;
    let alice = world.person("alice", false, "account").await;
    let both = [
        ("authorization", alice.token.as_str()),
        ("cookie", alice.cookie.as_str()),
        ("origin", ORIGIN),
    ];
    assert_eq!(world.get("/auth/me", &both).await.0, StatusCode::FORBIDDEN);
    let unrelated = [("authorization", alice.token.as_str()), ("cookie", "a=b")];
    assert_eq!(
        world.get("/auth/me", &unrelated).await.0,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test]
async fn every_answer_carries_the_headers_that_keep_others_out() {
    let world = World::new().await;
    for path in [
        "/login",
        "/register",
        "/recovery",
        "/nothing",
        "/auth/me",
        "/assets/page.css",
        "/healthz",
    ] {
        let (_, headers, _) = world.get(path, &[]).await;
        let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(
            policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"),
            "{path}"
        );
        assert_eq!(
            headers["cross-origin-opener-policy"], "same-origin",
            "{path}"
        );
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert!(headers.contains_key(header::CACHE_CONTROL), "{path}");
    }
    let (_, headers, _) = world.get("/auth/me", &[]).await;
    assert_eq!(headers[header::CACHE_CONTROL], "no-store");
}

#[tokio::test]
async fn pages_load_only_files_that_are_served() {
    let world = World::new().await;
    let alice = world.person("alice", false, "account").await;
    for path in [
        "/login",
        "/register",
        "/recovery",
        "/console",
        "/console/pair",
    ] {
        let request = Request::builder()
            .uri(path)
            .header("cookie", &alice.cookie)
            .body(Body::empty())
            .unwrap();
        let response = world.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        let html = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(
            !html.contains("style=") && !html.contains("onclick"),
            "{path}"
        );
        for part in html.split("\"/assets/").skip(1) {
            let name = part.split('"').next().unwrap();
            let (status, headers, _) = world.get(&format!("/assets/{name}"), &[]).await;
            assert_eq!(status, StatusCode::OK, "{name}");
            let etag = headers[header::ETAG].to_str().unwrap().to_owned();
            let (again, _, _) = world
                .get(&format!("/assets/{name}"), &[("if-none-match", &etag)])
                .await;
            assert_eq!(again, StatusCode::NOT_MODIFIED, "{name}");
        }
    }
}

#[tokio::test]
async fn registration_needs_a_link_that_works_once() {
    let world = World::new().await;
    let origin = [("origin", ORIGIN)];
    let start = |body: Value| world.ask(Method::POST, "/auth/register/start", &origin, Some(body));
    let (status, _, body) = start(json!({"name": "alice"})).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::UNAUTHORIZED, &json!("unauthenticated"))
    );
    let link = crate::services::auth::setup_link(&world.app)
        .await
        .unwrap()
        .unwrap();
    let token = link.split("setup=").nth(1).unwrap().to_owned();
    let (status, _, body) = start(json!({"name": "alice", "setup": token})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["options"]["publicKey"]["rp"]["id"], "localhost");
    assert_eq!(
        body["options"]["publicKey"]["authenticatorSelection"]["userVerification"],
        "required"
    );
    // A new link at the next start makes the old one void.
    crate::services::auth::setup_link(&world.app)
        .await
        .unwrap()
        .unwrap();
    let (status, _, _) = start(json!({"name": "alice", "setup": token})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    world.person("root-user", true, "account").await;
    assert!(
        crate::services::auth::setup_link(&world.app)
            .await
            .unwrap()
            .is_none()
    );
    let (status, _, body) = start(json!({"name": "Not A Name", "setup": token})).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::BAD_REQUEST, &json!("bad_request"))
    );
}

#[tokio::test]
async fn nobody_learns_which_accounts_exist() {
    let world = World::new().await;
    world.person("alice", false, "account").await;
    let origin = [("origin", ORIGIN)];
    let start = |name: &'static str| {
        world.ask(
            Method::POST,
            "/auth/login/start",
            &origin,
            Some(json!({ "name": name })),
        )
    };
    let (_, _, one) = start("nobody").await;
    let (_, _, again) = start("nobody").await;
    let credentials = |body: &Value| body["options"]["publicKey"]["allowCredentials"].clone();
    assert_eq!(credentials(&one), credentials(&again));
    assert_eq!(credentials(&one).as_array().unwrap().len(), 1);
    assert_ne!(
        one["options"]["publicKey"]["challenge"],
        again["options"]["publicKey"]["challenge"]
    );
    let recover = |name: &'static str| {
        world.ask(
            Method::POST,
            "/auth/recovery",
            &origin,
            Some(json!({"name": name, "code": "0000-0000-0000-0000"})),
        )
    };
    let (known, unknown) = (recover("alice").await, recover("nobody").await);
    assert_eq!(known.0, unknown.0);
    assert_eq!(known.2["detail"], unknown.2["detail"]);
}

#[tokio::test]
async fn guesses_are_limited_and_the_answer_says_when_to_come_back() {
    let world = World::with("auth.attempts_per_address = 3").await;
    let origin = [("origin", ORIGIN)];
    let guess = json!({"name": "alice", "code": "0000-0000-0000-0000"});
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let (status, headers, _) = world
            .ask(Method::POST, "/auth/recovery", &origin, Some(guess.clone()))
            .await;
        assert_eq!(
            headers.contains_key(header::RETRY_AFTER),
            status == StatusCode::TOO_MANY_REQUESTS
        );
        statuses.push(status.as_u16());
    }
    assert_eq!(statuses, [401, 401, 401, 429]);
}

#[tokio::test]
async fn pairing_gives_a_token_once_and_only_after_approval() {
    let world = World::new().await;
    let alice = world.person("alice", false, "account").await;
    let browser = [("cookie", alice.cookie.as_str()), ("origin", ORIGIN)];
    let (status, _, started) = world
        .ask(
            Method::POST,
            "/auth/cli/start",
            &[],
            Some(json!({"client_name": "choir on laptop"})),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let device = json!({ "device_code": started["device_code"] });
    let poll = || world.ask(Method::POST, "/auth/cli/poll", &[], Some(device.clone()));
    assert_eq!(poll().await.2["status"], "pending");
    let code = started["user_code"].as_str().unwrap().to_lowercase();
    let (status, _, shown) = world
        .ask(
            Method::POST,
            "/auth/cli/lookup",
            &browser,
            Some(json!({ "user_code": code })),
        )
        .await;
    assert_eq!(
        (status, &shown["client_name"]),
        (StatusCode::OK, &json!("choir on laptop"))
    );
    let approve = |scope: &'static str| json!({ "user_code": started["user_code"], "approve": true, "scopes": [scope] });
    let (status, _, _) = world
        .ask(
            Method::POST,
            "/auth/cli/approve",
            &browser,
            Some(approve("admin")),
        )
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, _, _) = world
        .ask(
            Method::POST,
            "/auth/cli/approve",
            &browser,
            Some(approve("sandboxes")),
        )
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (_, _, answer) = poll().await;
    assert_eq!(
        (&answer["status"], &answer["user"]),
        (&json!("approved"), &json!("alice"))
    );
    assert_eq!(poll().await.2["status"], "expired");
    let bearer = format!("Bearer {}", answer["token"].as_str().unwrap());
    let with = [("authorization", bearer.as_str())];
    let (_, _, me) = world.get("/auth/me", &with).await;
    assert_eq!(me["via"], "token");
    let own = format!("/me/tokens/{}", me["token_id"].as_str().unwrap());
    assert_eq!(
        world.ask(Method::DELETE, &own, &with, None).await.0,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        world.get("/auth/me", &with).await.0,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn a_browser_of_another_origin_cannot_use_what_is_for_programs() {
    let world = World::new().await;
    let body = Some(json!({}));
    for headers in [
        [("origin", "http://evil.example")],
        [("cookie", "a=b")],
        [("sec-fetch-site", "cross-site")],
    ] {
        let (status, _, _) = world
            .ask(Method::POST, "/auth/cli/start", &headers, body.clone())
            .await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{headers:?}");
    }
}

#[tokio::test]
async fn signing_out_and_revoking_end_a_session_at_once() {
    let world = World::new().await;
    let (alice, bob) = (
        world.person("alice", false, "account").await,
        world.person("bob", false, "account").await,
    );
    let as_alice = [("cookie", alice.cookie.as_str()), ("origin", ORIGIN)];
    let as_bob = [("cookie", bob.cookie.as_str()), ("origin", ORIGIN)];
    let foreign = format!("/me/sessions/{}", bob.session);
    assert_eq!(
        world.ask(Method::DELETE, &foreign, &as_alice, None).await.0,
        StatusCode::NOT_FOUND
    );
    let (_, _, listed) = world.get("/me/sessions", &as_alice).await;
    assert_eq!(listed["sessions"][0]["current"], true);
    let (status, headers, _) = world
        .ask(Method::POST, "/auth/logout", &as_alice, None)
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert!(
        headers[header::SET_COOKIE]
            .to_str()
            .unwrap()
            .contains("Max-Age=0")
    );
    assert_eq!(
        world.get("/auth/me", &as_alice).await.0,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(world.get("/auth/me", &as_bob).await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_last_passkey_cannot_be_revoked() {
    let world = World::new().await;
    let alice = world.person("alice", false, "account").await;
    let browser = [("cookie", alice.cookie.as_str()), ("origin", ORIGIN)];
    let (_, _, listed) = world.get("/me/passkeys", &browser).await;
    let path = format!(
        "/me/passkeys/{}",
        listed["passkeys"][0]["id"].as_str().unwrap()
    );
    let (status, _, body) = world.ask(Method::DELETE, &path, &browser, None).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::CONFLICT, &json!("conflict"))
    );
    let (status, _, _) = world
        .ask(
            Method::PATCH,
            &path,
            &browser,
            Some(json!({"name": "Desk"})),
        )
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn what_is_done_stands_in_the_audit_log() {
    let world = World::new().await;
    let alice = world.person("alice", true, "admin").await;
    let browser = [("cookie", alice.cookie.as_str()), ("origin", ORIGIN)];
    let (status, _, made) = world
        .ask(
            Method::POST,
            "/admin/invites",
            &browser,
            Some(json!({"note": "Bob"})),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let link = made["url"].as_str().unwrap();
    assert!(link.starts_with("http://localhost:9090/register?invite=choirinv_"));
    let entries = world
        .app
        .audit
        .tail(
            &Actor {
                ..actor(&world, &alice).await
            },
            10,
        )
        .await
        .unwrap();
    let entry = serde_json::to_value(entries.last().unwrap()).unwrap();
    assert_eq!(
        (&entry["action"], &entry["outcome"]),
        (&json!("invite.create"), &json!("allowed"))
    );
    assert_eq!(entry["actor"]["name"], "alice");
    let secret = link.split("invite=").nth(1).unwrap();
    assert!(!serde_json::to_string(&entries).unwrap().contains(secret));
    let (_, _, report) = world
        .get(
            "/admin/audit/verify",
            &[("authorization", alice.token.as_str())],
        )
        .await;
    assert_eq!(report["ok"], true);
}

#[tokio::test]
async fn a_session_ends_when_it_is_not_used_and_belongs_to_its_host() {
    let world = World::with("auth.session_idle = \"1h\"").await;
    let alice = world.person("alice", false, "account").await;
    let token = Token::parse(alice.cookie.split('=').nth(1).unwrap()).unwrap();
    let find = |host: &'static str| crate::services::sessions::find(&world.app, &token, host);
    assert!(find("localhost").await.unwrap().is_some());
    assert!(find("alice.localhost").await.unwrap().is_none());
    let two_hours_ago = world.app.clock.now_ms() - 2 * 3600 * 1000;
    world
        .app
        .store
        .touch_session(alice.session, two_hours_ago)
        .await
        .unwrap();
    assert!(find("localhost").await.unwrap().is_none());
}

#[tokio::test]
async fn after_recovery_nothing_opens_before_the_decision() {
    let world = World::new().await;
    let alice = world.person("alice", true, "account").await;
    let owner = actor(&world, &alice).await.user.unwrap();
    let token = Token::generate(TokenKind::Session, &world.app.random).unwrap();
    let now = world.app.clock.now_ms();
    let session = NewSession {
        id: SessionId::generate(),
        user_id: owner.id,
        kind: SessionKind::Recovery,
        parent: None,
        token_hash: token.hash().to_string(),
        host: "localhost".to_owned(),
        user_agent: String::new(),
        address: String::new(),
        now,
        expires_at: now + DAY_MS,
    };
    world.app.store.add_session(&session).await.unwrap();
    let cookie = format!("choir_session={}", token.expose());
    let browser = [("cookie", cookie.as_str()), ("origin", ORIGIN)];
    for route in table() {
        let path = route
            .path
            .replace("{role}", "live")
            .replace("{user}", "alice")
            .replace("{id}", &UserId::generate().to_string());
        let (status, headers, _) = world
            .ask(route.method.clone(), &path, &browser, Some(json!({})))
            .await;
        let what = format!("{} {}", route.method, route.path);
        match route.access {
            Access::Public | Access::Program | Access::Recovery => {}
            Access::Page => assert_eq!(headers[header::LOCATION], "/recovery", "{what}"),
            Access::Anyone if route.path == "/auth/me" => {
                assert_eq!(status, StatusCode::OK, "{what}");
            }
            _ => assert_eq!(status, StatusCode::FORBIDDEN, "{what}"),
        }
        if route.path == "/auth/logout" {
            world
                .app
                .store
                .add_session(&NewSession {
                    id: SessionId::generate(),
                    ..session.clone()
                })
                .await
                .unwrap();
        }
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_or_no_json_is_refused() {
    let world = World::new().await;
    let large = json!({ "name": "a".repeat(100_000) });
    let (status, _, body) = world
        .ask(
            Method::POST,
            "/auth/login/start",
            &[("origin", ORIGIN)],
            Some(large),
        )
        .await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::PAYLOAD_TOO_LARGE, &json!("too_large"))
    );
    let (status, _, _) = world
        .ask(
            Method::POST,
            "/auth/login/start",
            &[("origin", ORIGIN), ("content-type", "text/plain")],
            None,
        )
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _, body) = world.ask(Method::PUT, "/auth/me", &[], None).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::METHOD_NOT_ALLOWED, &json!("method_not_allowed"))
    );
}

#[tokio::test]
async fn what_the_ledger_cannot_record_does_not_happen() {
    let world = World::new().await;
    let alice = world.person("alice", true, "admin").await;
    let browser = [("cookie", alice.cookie.as_str()), ("origin", ORIGIN)];
    std::fs::remove_file(world.app.config.data_dir.join("audit/segment-00000001.log")).unwrap();
    for (method, path, body) in [
        (Method::POST, "/admin/invites", json!({"note": "Bob"})),
        (
            Method::POST,
            "/me/tokens",
            json!({"name": "x", "scopes": ["account"]}),
        ),
        (Method::POST, "/auth/logout", json!({})),
    ] {
        let (status, _, body) = world.ask(method, path, &browser, Some(body)).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::SERVICE_UNAVAILABLE, &json!("audit_unavailable")),
            "{path}"
        );
    }
    assert!(world.app.store.invites().await.unwrap().is_empty());
    assert_eq!(world.get("/auth/me", &browser).await.0, StatusCode::OK);
    assert_eq!(
        world.get("/readyz", &[]).await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
}
