use std::fs;
use std::os::unix::fs::MetadataExt;

use hyper::StatusCode;
use insta::assert_snapshot;
use serde_json::json;

use super::server::{Plane, problem};
use super::{Person, fresh_token};

fn started(plane: &Plane) -> serde_json::Value {
    json!({
        "device_code": "choirpair_secret", "user_code": "7K3M-9QXD",
        "verification_url": format!("{}/console/pair?code=7K3M-9QXD", plane.url()),
        "expires_in": 600, "interval": 0,
    })
}

#[tokio::test]
async fn login_pairs_through_the_browser() {
    let plane = Plane::start().await;
    plane.answer("POST /auth/cli/start", started(&plane));
    plane.answer("POST /auth/cli/poll", json!({"status": "pending"}));
    plane.answer(
        "POST /auth/cli/poll",
        json!({
            "status": "approved", "token": plane.token(), "user": "alice",
            "scopes": ["sandboxes", "commands"], "expires_at": "2027-04-01T00:00:00Z",
        }),
    );
    let mut person = Person::new();
    let ended = person.run(&plane, "login").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    Signed in to http://localhost:PORT as alice.
    This machine may: sandboxes, commands.
    The token ends on 2027-04-01T00:00:00Z.
    --- stderr
    Open this link, compare the code, and approve this machine:

        http://localhost:PORT/console/pair?code=7K3M-9QXD
        code: 7K3M-9QXD

    A browser was opened.
    Waiting for the approval; Ctrl-C gives up.
    ");
    assert_eq!(
        *person.browsed.lock().unwrap(),
        [format!("{}/console/pair?code=7K3M-9QXD", plane.url())]
    );
    let asked = plane.asked();
    assert_eq!(asked[0].body, json!({"client_name": "choir on laptop"}));
    assert_eq!(asked[1].body, json!({"device_code": "choirpair_secret"}));
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|asked| asked.bearer.is_none()));

    let file = person.home.path().join("choir/credentials.toml");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(file).unwrap().contains(plane.token()));
    // The server that was signed in to last is the default one from now on.
    let ended = person
        .run_words(["choir", "whoami"].map(Into::into).to_vec())
        .await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    alice, an admin on http://localhost:PORT
    --- stderr
    ");
    assert_eq!(plane.last().bearer.as_deref(), Some(plane.token()));
}

#[tokio::test]
async fn login_tells_when_it_was_refused() {
    let plane = Plane::start().await;
    plane.answer("POST /auth/cli/start", started(&plane));
    plane.answer("POST /auth/cli/poll", json!({"status": "denied"}));
    let mut person = Person::new();
    let ended = person.run(&plane, "login --no-browser").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    Open this link, compare the code, and approve this machine:

        http://localhost:PORT/console/pair?code=7K3M-9QXD
        code: 7K3M-9QXD

    Waiting for the approval; Ctrl-C gives up.
    error: the pairing was refused in the browser
    hint: run `choir login` again
    ");
    assert!(person.browsed.lock().unwrap().is_empty());
    assert!(!person.home.path().join("choir").exists());
}

#[tokio::test]
async fn login_does_not_send_a_person_to_another_server() {
    let plane = Plane::start().await;
    let mut elsewhere = started(&plane);
    elsewhere["verification_url"] = "https://evil.example/console/pair".into();
    plane.answer("POST /auth/cli/start", elsewhere);
    let mut person = Person::new();
    let ended = person.run(&plane, "login").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: http://localhost:PORT wants the sign-in to be approved at https://evil.example
    hint: nothing was opened; if that is the server you mean: `choir login --server https://evil.example`
    ");
    assert!(person.browsed.lock().unwrap().is_empty());
}

#[tokio::test]
async fn login_takes_a_token_from_standard_input() {
    let plane = Plane::start().await;
    let mut person = Person::new();
    person.stdin = Some(format!("  {}\n", plane.token()).into_bytes());
    let ended = person.run(&plane, "login --token-file -").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    Signed in to http://localhost:PORT as alice.
    --- stderr
    ");
    person.stdin = Some(b"choirpat_nonsense".to_vec());
    let ended = person.run(&plane, "login --token-file -").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: the given token cannot be used
    cause: the token is not complete
    hint: a token begins with choirpat_; make one in the console
    ");
    assert!(!ended.stderr.contains("nonsense"));
    let ended = person.run(&plane, "whoami --token-file /none/such").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: cannot read the token in /none/such
    cause: No such file or directory (os error 2)
    hint: check the path; without a token file the token of `choir login` is used
    ");
}

#[tokio::test]
async fn a_token_file_needs_no_sign_in() {
    let plane = Plane::start().await;
    let mut person = Person::new();
    let path = person.home.path().join("token");
    fs::write(&path, plane.token()).unwrap();
    let ended = person
        .run(
            &plane,
            &format!("whoami --json --token-file {}", path.display()),
        )
        .await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let me: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(me["name"], "alice");
}

#[tokio::test]
async fn whoever_is_not_signed_in_is_told_how() {
    let plane = Plane::start().await;
    let ended = Person::new().run(&plane, "sandbox list").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: not signed in to http://localhost:PORT
    hint: sign in with `choir login --server http://localhost:PORT`
    ");
    assert!(plane.asked().is_empty());
}

#[tokio::test]
async fn a_refused_token_is_told() {
    let plane = Plane::start().await;
    let mut person = Person::new();
    let path = person.home.path().join("token");
    fs::write(&path, fresh_token()).unwrap();
    let ended = person
        .run(&plane, &format!("whoami --token-file {}", path.display()))
        .await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: http://localhost:PORT does not accept this machine's token
    hint: sign in with `choir login --server http://localhost:PORT`
    ");
}

#[tokio::test]
async fn nobody_there_is_told_with_what_to_start() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://localhost:{}", free.local_addr().unwrap().port());
    drop(free);
    let path = person.home.path().join("token");
    fs::write(&path, plane.token()).unwrap();
    let ended = person
        .run_at(&url, &format!("whoami --token-file {}", path.display()))
        .await;
    let shown = format!(
        "exit code {}\n{}",
        ended.code,
        ended.stderr.replace(&url, "http://localhost:PORT")
    );
    assert_snapshot!(shown, @r"
    exit code 1
    error: cannot reach http://localhost:PORT
    cause: Connection refused (os error 111)
    hint: start it with `cargo xtask up`, or look at `systemctl status choir`
    ");
}

#[tokio::test]
async fn a_token_is_not_sent_in_clear_over_a_network() {
    let ended = Person::new()
        .run_at("http://choir.example.com", "whoami")
        .await;
    assert_snapshot!(format!("exit code {}\n{}", ended.code, ended.stderr), @r"
    exit code 2
    error: not an address of a control plane: http://choir.example.com
    hint: a token is sent over http to this machine only: use https, or tunnel with `ssh -L`
    ");
}

#[tokio::test]
async fn logout_revokes_and_forgets() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer(
        "DELETE /me/tokens/018f0000-0000-7000-8000-0000000000aa",
        json!(null),
    );
    let ended = person.run(&plane, "logout").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    --- stderr
    Signed out of http://localhost:PORT.
    ");
    assert_eq!(
        plane.last().line,
        "DELETE /me/tokens/018f0000-0000-7000-8000-0000000000aa"
    );
    let ended = person.run(&plane, "logout").await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("not signed in"), "{}", ended.stderr);
}

#[tokio::test]
async fn logout_forgets_the_token_also_when_the_server_cannot_revoke_it() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let ended = person.run(&plane, "logout").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    Forgot the token for http://localhost:PORT, and could not revoke it there.
    hint: revoke it in the console, under tokens
    ");
    let file = fs::read_to_string(person.home.path().join("choir/credentials.toml")).unwrap();
    assert!(!file.contains("choirpat_"));
}

#[tokio::test]
async fn a_reason_of_the_server_cannot_steer_the_terminal() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.refuse(
        "GET /me/sandboxes",
        StatusCode::FORBIDDEN,
        problem(403, "forbidden", "no\u{1b}[2J\nway"),
    );
    let ended = person.run(&plane, "sandbox list").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 1
    --- stdout
    --- stderr
    error: no�[2J way
    hint: a token with more scopes comes from `choir login`; some acts need an admin
    ");
}
