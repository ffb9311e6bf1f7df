//! Runtime origins: sign-in by hand-over, whose session opens what, and what the guest sees.

use axum::body::{Body, to_bytes};
use axum::response::Response;
use http::{HeaderMap, Request, StatusCode, header};
use serde_json::Value;
use types::{RequestId, Role};

use super::handle;
use crate::actor::{Actor, Via};
use crate::http::Client;
use crate::services::handover::{self, CODE_LIFETIME};
use crate::services::sandboxes::Whose;
use crate::services::sandboxes::testing::{Installation, NOW, add_session, add_user};
use crate::services::sessions;
use crate::store::SessionKind;

const ALICE: &str = "alice.localhost:9090";
const DEV: &str = "dev--alice.localhost:9090";
const NAVIGATION: &[(&str, &str)] = &[
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-dest", "document"),
];

async fn ask(
    installation: &Installation,
    method: &str,
    host: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Response {
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).unwrap();
    let address = "127.0.0.1".parse().unwrap();
    request.extensions_mut().insert(Client {
        request_id: RequestId::generate(),
        address,
    });
    let host = installation.app.config.origins.match_host(host).unwrap();
    handle(installation.app.clone(), host, request).await
}

async fn get(
    installation: &Installation,
    host: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Response {
    ask(installation, "GET", host, target, headers).await
}

async fn status(
    installation: &Installation,
    host: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> StatusCode {
    get(installation, host, target, headers).await.status()
}

async fn json(response: Response) -> Value {
    serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap()
}

fn location(response: &Response) -> String {
    response.headers()[header::LOCATION]
        .to_str()
        .unwrap()
        .to_owned()
}

/// `name=value` of the cookie that a response sets.
fn set_cookie(headers: &HeaderMap, name: &str) -> String {
    let mut all = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .map(|value| value.to_str().unwrap());
    let found = all
        .find(|value| value.starts_with(&format!("{name}=")))
        .unwrap();
    found.split(';').next().unwrap().to_owned()
}

fn parameter(url: &str, name: &str) -> String {
    let url = url::Url::parse(url).unwrap();
    url.query_pairs()
        .find(|(have, _)| have == name)
        .unwrap()
        .1
        .into_owned()
}

/// Goes through the whole hand-over; returns the runtime cookie and where it led.
async fn sign_in(installation: &Installation, host: &str, target: &str) -> (String, String) {
    let first = get(installation, host, target, NAVIGATION).await;
    assert_eq!(first.status(), StatusCode::FOUND);
    let state = set_cookie(first.headers(), "choir_state");
    let enter = issue(installation, &location(&first)).await.unwrap();
    let path = enter.split_once("9090").unwrap().1.to_owned();
    let entered = get(installation, host, &path, &[("cookie", &state)]).await;
    assert_eq!(entered.status(), StatusCode::SEE_OTHER);
    (
        set_cookie(entered.headers(), "choir_runtime"),
        location(&entered),
    )
}

/// What `/auth/handover` of the control origin does with a redirect from a runtime origin.
async fn issue(installation: &Installation, url: &str) -> Result<String, crate::error::Error> {
    assert!(
        url.starts_with("http://localhost:9090/auth/handover?"),
        "{url}"
    );
    let (host, binding, next) = (
        parameter(url, "host"),
        parameter(url, "state"),
        parameter(url, "next"),
    );
    let asked = handover::Asked {
        host: &host,
        binding: &binding,
        next: &next,
    };
    handover::issue(&installation.app, &installation.actor(), asked).await
}

#[tokio::test]
async fn a_navigation_is_handed_over_and_comes_back_signed_in() {
    let installation = Installation::new("").await;
    installation.start(Role::Live).await;
    let (cookie, next) = sign_in(&installation, ALICE, "/files?path=a%20b&x=1").await;
    assert_eq!(next, "/files?path=a%20b&x=1");
    let answer = get(&installation, ALICE, "/files", &[("cookie", &cookie)]).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn without_a_session_a_program_gets_401_and_a_websocket_too() {
    let installation = Installation::new("").await;
    let api = get(&installation, ALICE, "/api/info", &[]).await;
    assert_eq!(api.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        api.headers()[header::CONTENT_TYPE],
        "application/problem+json"
    );
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("accept", "text/html"),
    ];
    assert_eq!(
        status(&installation, ALICE, "/ws", &upgrade).await,
        StatusCode::UNAUTHORIZED
    );
    // A user that does not exist looks the same.
    assert_eq!(
        status(&installation, "nobody.localhost:9090", "/api/info", &[]).await,
        StatusCode::UNAUTHORIZED
    );
    let page = get(&installation, "nobody.localhost:9090", "/", NAVIGATION).await;
    assert_eq!(page.status(), StatusCode::FOUND);
    assert!(matches!(
        issue(&installation, &location(&page)).await,
        Err(crate::error::Error::NotFound(_))
    ));
}

#[tokio::test]
async fn a_code_is_good_once_for_a_minute_for_the_browser_and_host_that_asked() {
    let installation = Installation::new("").await;
    let first = get(&installation, ALICE, "/", NAVIGATION).await;
    let state = set_cookie(first.headers(), "choir_state");
    let code = || async {
        let enter = issue(&installation, &location(&first)).await.unwrap();
        enter.split_once("9090").unwrap().1.to_owned()
    };
    let enter = |host: &'static str, path: String, state: String| {
        let installation = &installation;
        async move { status(installation, host, &path, &[("cookie", &state)]).await }
    };
    let used = code().await;
    assert_eq!(
        enter(ALICE, used.clone(), state.clone()).await,
        StatusCode::SEE_OTHER
    );
    assert_eq!(
        enter(ALICE, used, state.clone()).await,
        StatusCode::FORBIDDEN,
        "used"
    );

    assert_eq!(
        enter(DEV, code().await, state.clone()).await,
        StatusCode::FORBIDDEN,
        "another host"
    );

    let other = get(&installation, ALICE, "/", NAVIGATION).await;
    let other = set_cookie(other.headers(), "choir_state");
    assert_eq!(
        enter(ALICE, code().await, other).await,
        StatusCode::FORBIDDEN,
        "another browser"
    );

    assert_eq!(
        enter(ALICE, code().await, "a=b".into()).await,
        StatusCode::FORBIDDEN,
        "no state at all"
    );

    let late = code().await;
    installation.app.clock.advance(CODE_LIFETIME);
    assert_eq!(
        enter(ALICE, late, state).await,
        StatusCode::FORBIDDEN,
        "too late"
    );
}

#[tokio::test]
async fn a_cookie_kept_back_on_a_cross_site_navigation_is_asked_for_again() {
    let installation = Installation::new("").await;
    let first = get(&installation, ALICE, "/", NAVIGATION).await;
    let enter = issue(&installation, &location(&first)).await.unwrap();
    let path = enter.split_once("9090").unwrap().1;
    let page = get(
        &installation,
        ALICE,
        path,
        &[("sec-fetch-site", "cross-site")],
    )
    .await;
    assert_eq!(page.status(), StatusCode::OK);
    let html = String::from_utf8(
        to_bytes(page.into_body(), usize::MAX)
            .await
            .unwrap()
            .to_vec(),
    )
    .unwrap();
    assert!(
        html.contains("http-equiv=\"refresh\"") && html.contains("again=1"),
        "{html}"
    );
    // The code is still good, and the second time there is no third.
    let state = set_cookie(first.headers(), "choir_state");
    let again = format!("{path}&again=1");
    let without = get(
        &installation,
        ALICE,
        &again,
        &[("sec-fetch-site", "cross-site")],
    )
    .await;
    assert_eq!(without.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        status(&installation, ALICE, &again, &[("cookie", &state)]).await,
        StatusCode::SEE_OTHER
    );
}

#[tokio::test]
async fn anybody_elses_session_is_no_session() {
    let installation = Installation::new("").await;
    installation.start(Role::Live).await;
    let bob = add_user(&installation.app, "bob").await;
    let (control, _) = add_session(
        &installation.app,
        &bob,
        SessionKind::Control,
        None,
        "localhost",
    )
    .await;
    // Even one that was made for this very host.
    let (_, token) = add_session(
        &installation.app,
        &bob,
        SessionKind::Runtime,
        Some(control),
        "alice.localhost",
    )
    .await;
    let cookie = format!("choir_runtime={}", token.expose());
    assert_eq!(
        status(&installation, ALICE, "/api/info", &[("cookie", &cookie)]).await,
        StatusCode::UNAUTHORIZED
    );
    // Nor does a control session open a runtime, nor live's cookie dev.
    let (_, token) = add_session(
        &installation.app,
        &installation.user,
        SessionKind::Control,
        None,
        "alice.localhost",
    )
    .await;
    let cookie = format!("choir_runtime={}", token.expose());
    assert_eq!(
        status(&installation, ALICE, "/api/info", &[("cookie", &cookie)]).await,
        StatusCode::UNAUTHORIZED
    );
    let (cookie, _) = sign_in(&installation, ALICE, "/").await;
    assert_eq!(
        status(&installation, DEV, "/api/info", &[("cookie", &cookie)]).await,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn a_runtime_session_ends_with_the_session_behind_it() {
    let installation = Installation::new("").await;
    installation.start(Role::Live).await;
    let (cookie, _) = sign_in(&installation, ALICE, "/").await;
    assert_eq!(
        status(&installation, ALICE, "/", &[("cookie", &cookie)]).await,
        StatusCode::OK
    );
    let actor = Actor {
        via: Via::Session(installation.session),
        ..installation.actor()
    };
    sessions::logout(&installation.app, &actor).await.unwrap();
    assert_eq!(
        status(&installation, ALICE, "/", &[("cookie", &cookie)]).await,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn each_path_reaches_its_role_and_carries_who_it_is() {
    let installation = Installation::new("").await;
    for role in Role::ALL {
        installation.start(role).await;
    }
    let (cookie, _) = sign_in(&installation, ALICE, "/").await;
    let cookies = format!("a=b; {cookie}");
    let spoofed = [
        ("cookie", cookies.as_str()),
        ("authorization", "Bearer x"),
        ("x-choir-role", "dev"),
        ("x-choir-user", "root"),
        ("x-forwarded-for", "1.2.3.4"),
    ];
    let seen = json(get(&installation, ALICE, "/auth/me?x=1", &spoofed).await).await;
    assert_eq!(
        seen["sandbox"],
        installation.sandbox(Role::Live).await.to_string()
    );
    assert_eq!(seen["target"], "/auth/me?x=1");
    let headers = &seen["headers"];
    assert_eq!(headers["x-choir-role"], "live");
    assert_eq!(headers["x-choir-user"], "alice");
    assert_eq!(headers["x-choir-generation"], "0");
    assert_eq!(headers["x-choir-control-origin"], "http://localhost:9090");
    assert_eq!(
        headers["x-choir-dev-origin"],
        "http://dev--alice.localhost:9090"
    );
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(headers["cookie"], "a=b");
    assert!(headers["authorization"].is_null());

    let seen = json(get(&installation, ALICE, "/dev/api/x?y", &[("cookie", &cookie)]).await).await;
    assert_eq!(
        seen["sandbox"],
        installation.sandbox(Role::Dev).await.to_string()
    );
    assert_eq!(seen["target"], "/api/x?y");
    assert_eq!(seen["headers"]["x-forwarded-prefix"], "/dev");
    assert_eq!(seen["headers"]["x-choir-role"], "dev");

    let (cookie, _) = sign_in(&installation, DEV, "/").await;
    let seen = json(get(&installation, DEV, "/dev/x", &[("cookie", &cookie)]).await).await;
    assert_eq!(
        seen["sandbox"],
        installation.sandbox(Role::Dev).await.to_string()
    );
    assert_eq!(seen["target"], "/dev/x");
}

#[tokio::test]
async fn a_swap_turns_the_next_request() {
    let installation = Installation::new("").await;
    for role in Role::ALL {
        installation.start(role).await;
    }
    let dev = installation.sandbox(Role::Dev).await;
    let (cookie, _) = sign_in(&installation, ALICE, "/").await;
    installation
        .app
        .sandboxes
        .swap(
            &installation.actor(),
            Whose::Own,
            types::SwapRequest::default(),
        )
        .await
        .unwrap();
    let seen = json(get(&installation, ALICE, "/", &[("cookie", &cookie)]).await).await;
    assert_eq!(seen["sandbox"], dev.to_string());
    assert_eq!(seen["headers"]["x-choir-role"], "live");
    assert_eq!(seen["headers"]["x-choir-generation"], "1");
}

#[tokio::test]
async fn an_answer_says_whose_it_is_and_the_guest_cannot_say_otherwise() {
    let installation = Installation::new("").await;
    installation.start(Role::Live).await;
    let (cookie, _) = sign_in(&installation, ALICE, "/").await;
    let answer = get(&installation, ALICE, "/liar", &[("cookie", &cookie)]).await;
    assert_eq!(answer.headers()["x-choir-role"], "live");
    assert_eq!(answer.headers()["x-choir-generation"], "0");
    assert_eq!(
        answer
            .headers()
            .get_all("x-choir-generation")
            .iter()
            .count(),
        1
    );
}

#[tokio::test]
async fn the_end_of_one_session_leaves_the_others_alone() {
    let installation = Installation::new("").await;
    let app = &installation.app;
    app.sandboxes
        .start(&installation.actor(), Whose::Own, Role::Live)
        .await
        .unwrap();
    let (first, _) = sign_in(&installation, ALICE, "/").await;
    let (second, _) = sign_in(&installation, ALICE, "/").await;
    for cookie in [&first, &second] {
        let seen = get(&installation, ALICE, "/x", &[("cookie", cookie)]).await;
        assert_eq!(seen.status(), StatusCode::OK);
    }
    let sessions = app.store.sessions(installation.user.id, NOW).await.unwrap();
    let mut runtime: Vec<_> = sessions
        .iter()
        .filter(|session| session.kind == SessionKind::Runtime)
        .map(|session| session.id)
        .collect();
    runtime.sort_unstable();
    assert_eq!(runtime.len(), 2);
    // The ids are ordered by time: the first one made ends.
    let ended = tokens_of(&installation, &[&first, &second]).await;
    app.store
        .remove_session(installation.user.id, runtime[0])
        .await
        .unwrap();
    app.sessions_ended(installation.user.id).await;
    assert!(ended[0].is_cancelled());
    assert!(!ended[1].is_cancelled(), "another session was cut too");
}

/// What cuts the streams of these cookies' sessions.
async fn tokens_of(
    installation: &Installation,
    cookies: &[&String],
) -> Vec<tokio_util::sync::CancellationToken> {
    let mut tokens = Vec::new();
    for cookie in cookies {
        let value = cookie.split_once('=').unwrap().1;
        let host = "alice.localhost";
        let found = installation
            .app
            .runtime_sessions
            .find(&installation.app, value, host)
            .await
            .unwrap();
        tokens.push(found.unwrap().ended.clone());
    }
    tokens
}

#[tokio::test]
async fn pages_of_other_origins_can_link_and_nothing_else() {
    let installation = Installation::new("").await;
    installation.start(Role::Live).await;
    let (cookie, _) = sign_in(&installation, ALICE, "/").await;
    let sibling = [
        ("cookie", cookie.as_str()),
        ("origin", "http://dev--alice.localhost:9090"),
        ("sec-fetch-site", "same-site"),
    ];
    assert_eq!(
        ask(&installation, "POST", ALICE, "/api/x", &sibling)
            .await
            .status(),
        StatusCode::FORBIDDEN
    );
    let upgrade = [
        ("cookie", cookie.as_str()),
        ("origin", "http://dev--alice.localhost:9090"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
    ];
    assert_eq!(
        status(&installation, ALICE, "/ws", &upgrade).await,
        StatusCode::FORBIDDEN
    );
    let no_origin = [
        ("cookie", cookie.as_str()),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
    ];
    assert_eq!(
        status(&installation, ALICE, "/ws", &no_origin).await,
        StatusCode::FORBIDDEN
    );
    let link = [
        ("cookie", cookie.as_str()),
        ("sec-fetch-site", "cross-site"),
        NAVIGATION[0],
        NAVIGATION[1],
    ];
    assert_eq!(
        status(&installation, ALICE, "/", &link).await,
        StatusCode::OK
    );
}

#[tokio::test]
async fn only_a_navigation_wakes_a_stopped_sandbox() {
    let installation = Installation::new("").await;
    let (cookie, _) = sign_in(&installation, ALICE, "/").await;
    let live = installation.sandbox(Role::Live).await;
    let api = get(&installation, ALICE, "/api/info", &[("cookie", &cookie)]).await;
    assert_eq!(api.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(api.headers().contains_key(header::RETRY_AFTER));
    let upgrade = [
        ("cookie", cookie.as_str()),
        ("origin", "http://alice.localhost:9090"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
    ];
    assert_eq!(
        status(&installation, ALICE, "/ws", &upgrade).await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(installation.driver.starts(live), 0);

    let page = get(
        &installation,
        ALICE,
        "/",
        &[("cookie", cookie.as_str()), NAVIGATION[0], NAVIGATION[1]],
    )
    .await;
    assert_eq!(page.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        page.headers()[header::CONTENT_TYPE],
        "text/html; charset=utf-8"
    );
    // The page polls until it runs.
    loop {
        let status = json(
            get(
                &installation,
                ALICE,
                "/.choir/status",
                &[("cookie", &cookie)],
            )
            .await,
        )
        .await;
        if status["state"] == "running" {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(
        status(&installation, ALICE, "/", &[("cookie", &cookie)]).await,
        StatusCode::OK
    );
}

#[tokio::test]
async fn reserved_and_redirected_paths() {
    let installation = Installation::new("").await;
    let to = |target: &'static str| {
        let installation = &installation;
        async move { location(&get(installation, ALICE, target, &[]).await) }
    };
    assert_eq!(to("/login").await, "http://localhost:9090/login");
    assert_eq!(to("/dev?x=1").await, "/dev/?x=1");
    assert_eq!(
        status(&installation, ALICE, "/.choir/nothing", &[]).await,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        status(&installation, ALICE, "/.choir/start", &[]).await,
        StatusCode::METHOD_NOT_ALLOWED
    );
    let redirecting = Installation::new("origins.redirect_dev_prefix = true").await;
    let answer = get(&redirecting, ALICE, "/dev/a?b", NAVIGATION).await;
    assert_eq!(location(&answer), "http://dev--alice.localhost:9090/a?b");
}

#[tokio::test]
async fn one_host_for_everybody_tells_users_apart_by_their_session() {
    let installation = Installation::new(
        "origins.control = \"http://localhost:9090\"\norigins.runtime = \"single_host\"\norigins.single_host = \"http://run.localhost:9090\"",
    )
    .await;
    installation.start(Role::Dev).await;
    let (cookie, _) = sign_in(&installation, "run.localhost:9090", "/").await;
    let seen = json(
        get(
            &installation,
            "run.localhost:9090",
            "/dev/x",
            &[("cookie", &cookie)],
        )
        .await,
    )
    .await;
    assert_eq!(
        seen["sandbox"],
        installation.sandbox(Role::Dev).await.to_string()
    );
    assert_eq!(
        seen["headers"]["x-choir-dev-origin"],
        "http://run.localhost:9090/dev"
    );
}
