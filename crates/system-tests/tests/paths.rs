//! Who answers which path: every row of the architecture's table (section 3).

use serde_json::Value;
use system_tests::http::Ask;
use system_tests::{Account, Client, Installation, Response, Setup};
use types::Role;

const LIVE: &str = "alice.localhost";
const DEV: &str = "dev--alice.localhost";

async fn get(client: &Client, host: &str, target: &str) -> Response {
    client.send(Ask::new("GET", host, target)).await
}

async fn navigate(client: &Client, host: &str, target: &str) -> Response {
    client
        .send(Ask::new("GET", host, target).navigation())
        .await
}

fn html(answer: &Response) -> bool {
    answer.status == 200 && answer.header("content-type").starts_with("text/html")
}

fn redirects_to(answer: &Response, beginning: &str) -> bool {
    matches!(answer.status, 302 | 303 | 307) && answer.header("location").starts_with(beginning)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_origin_answers_its_own_paths_and_no_others() {
    let installation = Setup::default()
        .config("[listen]\nmetrics_address = \"127.0.0.1:0\"")
        .start()
        .await;
    let nobody = installation.client();
    for page in ["/login", "/register", "/recovery"] {
        let answer = get(&nobody, "localhost", page).await;
        assert!(
            html(&answer),
            "{page}: {} {:?}",
            answer.status,
            answer.headers
        );
        assert!(
            answer
                .header("content-security-policy")
                .contains("frame-ancestors 'none'"),
            "{page}"
        );
        assert_eq!(
            answer.header("cross-origin-opener-policy"),
            "same-origin",
            "{page}"
        );
    }
    for open in ["/healthz", "/readyz"] {
        assert_eq!(get(&nobody, "localhost", open).await.status, 200, "{open}");
    }
    // Metrics have a listener of their own.
    assert_eq!(get(&nobody, "localhost", "/metrics").await.status, 404);

    let same_origin =
        |target: &str| Ask::new("GET", "localhost", target).same_origin(&installation.control());
    for private in [
        "/auth/me",
        "/me/sandboxes",
        "/me/tokens",
        "/admin/users",
        "/admin/sandboxes",
    ] {
        let answer = nobody.send(same_origin(private)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "unauthenticated"),
            "{private}"
        );
    }
    for page in ["/", "/console"] {
        let answer = navigate(&nobody, "localhost", page).await;
        assert!(
            redirects_to(&answer, "/login"),
            "{page}: {} {:?}",
            answer.status,
            answer.headers
        );
    }

    let alice = Account::admin(&installation, "alice").await;
    assert!(
        alice
            .control("GET", "/auth/me", None)
            .await
            .expect(200)
            .text()
            .contains("\"alice\"")
    );
    let home = navigate(&alice.client, "localhost", "/").await;
    assert!(
        redirects_to(&home, &installation.runtime("alice")),
        "{} {:?}",
        home.status,
        home.headers
    );
    assert!(html(
        &navigate(&alice.client, "localhost", "/console").await
    ));
    for private in ["/me/sandboxes", "/admin/users", "/admin/sandboxes"] {
        alice.control("GET", private, None).await.expect(200);
    }
    // Nothing of a sandbox is served here.
    for path in [
        "/dev/",
        "/api/info",
        "/ws",
        "/provider/v1",
        "/commands",
        "/broker/v1/x",
    ] {
        assert_eq!(alice.control("GET", path, None).await.status, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_nobodys_is_misdirected() {
    let installation = Setup::default().start().await;
    let client = installation.client();
    for host in [
        "example.com",
        "127.0.0.1",
        "localhost.example.com",
        "a.b.localhost",
        "admin.localhost",
    ] {
        let answer = get(&client, host, "/").await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (421, "misdirected_request"),
            "{host}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_origin_belongs_to_the_sandbox_but_for_what_is_reserved() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = Account::admin(&installation, "alice").await;

    // Without a session: a navigation is sent to sign in, a call is told.
    let nobody = installation.client();
    for host in [LIVE, DEV] {
        let page = navigate(&nobody, host, "/some/page").await;
        assert!(
            redirects_to(&page, &format!("{}/", installation.control())),
            "{:?}",
            page.headers
        );
        let call = get(&nobody, host, "/api/info").await;
        assert_eq!(
            (call.status, call.code().as_str()),
            (401, "unauthenticated")
        );
        assert_eq!(
            nobody
                .websocket(host, "/ws", Some(&installation.runtime("alice")))
                .await
                .err(),
            Some(401)
        );
        for page in ["/login", "/register", "/recovery"] {
            let answer = get(&nobody, host, page).await;
            assert!(
                redirects_to(&answer, &format!("{}{page}", installation.control())),
                "{page}"
            );
        }
    }

    alice.start(Role::Live).await;
    alice.start(Role::Dev).await;
    alice.enter(Role::Live).await;
    alice.enter(Role::Dev).await;

    // (host, target, role that answers, target as the sandbox sees it)
    let rows = [
        (LIVE, "/echo", "live", "/echo"),
        (LIVE, "/echo?a=b%2Fc&d", "live", "/echo?a=b%2Fc&d"),
        (LIVE, "/auth/me", "live", "/auth/me"),
        (LIVE, "/me/sandboxes", "live", "/me/sandboxes"),
        (LIVE, "/admin/users", "live", "/admin/users"),
        (LIVE, "/console", "live", "/console"),
        (LIVE, "/healthz", "live", "/healthz"),
        (LIVE, "/device", "live", "/device"),
        (LIVE, "/dev/echo", "dev", "/echo"),
        (LIVE, "/dev/dev/echo", "dev", "/dev/echo"),
        (LIVE, "/dev/auth/me", "dev", "/auth/me"),
        (DEV, "/echo", "dev", "/echo"),
        (DEV, "/dev/echo", "dev", "/dev/echo"),
        (DEV, "/me/sandboxes", "dev", "/me/sandboxes"),
    ];
    for (host, target, role, seen) in rows {
        let answer = get(&alice.client, host, target).await.expect(200).json();
        assert_eq!(
            (answer["role"].as_str(), answer["target"].as_str()),
            (Some(role), Some(seen)),
            "{host}{target}"
        );
        let prefix = header(&answer, "x-forwarded-prefix");
        assert_eq!(
            prefix.as_deref(),
            (host == LIVE && role == "dev").then_some("/dev"),
            "{host}{target}"
        );
    }
    let slash = get(&alice.client, LIVE, "/dev").await;
    assert_eq!((slash.status, slash.header("location")), (308, "/dev/"));

    // The only reserved prefix, and it is not the sandbox's.
    for target in ["/.choir/nothing", "/.choir/"] {
        let answer = get(&alice.client, LIVE, target).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "not_found"),
            "{target}"
        );
    }

    // Somebody else's session opens nothing.
    let bob = Account::invited(&installation, &alice, "bob").await;
    for (name, value) in alice
        .client
        .cookies("localhost")
        .split("; ")
        .filter_map(|pair| pair.split_once('='))
    {
        bob.client.set_cookie(LIVE, name, value);
    }
    assert_eq!(get(&bob.client, LIVE, "/echo").await.status, 401);
    bob.start(Role::Live).await;
    bob.enter(Role::Live).await;
    for pair in bob.client.cookies("bob.localhost").split("; ") {
        let (name, value) = pair.split_once('=').unwrap();
        bob.client.set_cookie(LIVE, name, value);
    }
    assert_eq!(get(&bob.client, LIVE, "/echo").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_sees_neither_cookies_nor_forged_headers() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = entered(&installation).await;
    let forged = Ask::new("POST", LIVE, "/echo")
        .header("origin", &installation.runtime("alice"))
        .header("authorization", "Bearer choirpat_something")
        .header("x-choir-role", "dev")
        .header("x-choir-user", "root")
        .header("x-forwarded-for", "10.0.0.1")
        .header("x-forwarded-host", "evil.example")
        .header("forwarded", "for=10.0.0.1")
        .header("connection", "x-listed")
        .header("x-listed", "dropped")
        .header("x-own", "kept")
        .header("te", "trailers, deflate")
        .bytes("a body");
    alice.client.set_cookie(LIVE, "own", "kept");
    let seen = alice.client.send(forged).await.expect(200).json();
    assert_eq!(seen["body"], "a body");
    assert_eq!(header(&seen, "x-choir-role").as_deref(), Some("live"));
    assert_eq!(header(&seen, "x-choir-user").as_deref(), Some("alice"));
    assert_eq!(
        header(&seen, "x-choir-control-origin"),
        Some(installation.control())
    );
    assert_eq!(
        header(&seen, "x-forwarded-for").as_deref(),
        Some("127.0.0.1")
    );
    assert_eq!(header(&seen, "x-own").as_deref(), Some("kept"));
    assert_eq!(header(&seen, "cookie").as_deref(), Some("own=kept"));
    for gone in ["authorization", "forwarded", "x-listed"] {
        assert_eq!(header(&seen, gone), None, "{gone}");
    }
    assert!(!seen.to_string().contains("evil.example"), "{seen}");
    for pair in ["choir_runtime=", "choir_session=", "choirses_"] {
        assert!(!seen.to_string().contains(pair), "{pair} in {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_can_set_only_cookies_of_its_own_origin() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = entered(&installation).await;
    let answer = get(&alice.client, LIVE, "/hostile/cookies")
        .await
        .expect(200);
    let set: Vec<&str> = answer
        .headers
        .get_all("set-cookie")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    assert_eq!(set.len(), 1, "{set:?}");
    assert!(set[0].starts_with("own=fine"), "{set:?}");
    // Beneath /dev the sandbox's root is /dev/, for cookies and redirects too.
    alice.start(Role::Dev).await;
    let prefixed = get(&alice.client, LIVE, "/dev/hostile/cookies")
        .await
        .expect(200);
    assert!(
        prefixed
            .header("set-cookie")
            .to_ascii_lowercase()
            .contains("path=/dev/app"),
        "{:?}",
        prefixed.headers
    );
    let moved = get(&alice.client, LIVE, "/dev/hostile/location").await;
    assert_eq!(moved.header("location"), "/dev/elsewhere");
    // A worker served under /dev could control live.
    let worker = Ask::new("GET", LIVE, "/dev/hostile/sw.js").header("service-worker", "script");
    assert!(alice.client.send(worker).await.status >= 400);
    let allowed = get(&alice.client, LIVE, "/hostile/sw.js").await.expect(200);
    assert_eq!(allowed.header("service-worker-allowed"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_the_same_gate_and_an_origin_check() {
    let installation = Setup::default().hostile_guest().start().await;
    let alice = entered(&installation).await;
    let own = installation.runtime("alice");
    assert!(
        alice
            .client
            .websocket(LIVE, "/ws", Some(&own))
            .await
            .is_ok()
    );
    for foreign in [
        Some(installation.control()),
        Some(installation.runtime("dev--alice")),
        Some("http://evil.example".into()),
        Some("null".into()),
        None,
    ] {
        let answer = alice
            .client
            .websocket(LIVE, "/ws", foreign.as_deref())
            .await;
        assert_eq!(answer.err(), Some(403), "{foreign:?}");
    }
}

/// Alice with a running `live` and its cookie.
async fn entered(installation: &Installation) -> Account {
    let alice = Account::admin(installation, "alice").await;
    alice.start(Role::Live).await;
    alice.enter(Role::Live).await;
    alice
}

fn header(echo: &Value, name: &str) -> Option<String> {
    let headers = echo["headers"].as_array()?;
    headers
        .iter()
        .find(|pair| pair[0] == name)
        .and_then(|pair| Some(pair[1].as_str()?.to_owned()))
}
