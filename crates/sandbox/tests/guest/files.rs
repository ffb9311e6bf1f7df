//! The files API, the desktop and what every answer carries.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use rustix::fs::{RenameFlags, renameat_with};
use serde_json::json;

use crate::harness::Guest;

async fn put(
    guest: &Guest,
    path: &str,
    body: &str,
    header: Option<(&str, &str)>,
) -> Response<Bytes> {
    let mut request = Request::put(format!("/api/files/content?path={path}")).header("host", "x");
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    guest
        .client
        .send(request.body(Bytes::from(body.to_owned())).unwrap())
        .await
}

async fn read(guest: &Guest, path: &str) -> Response<Bytes> {
    let request = Request::get(path)
        .header("host", "x")
        .body(Bytes::new())
        .unwrap();
    guest.client.send(request).await
}

#[tokio::test]
async fn writes_are_conditional_when_asked() {
    let guest = Guest::start("openai").await;
    let created = put(&guest, "a.txt", "one", Some(("if-none-match", "*"))).await;
    assert_eq!(created.status(), 201);
    let first = created.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(
        put(&guest, "a.txt", "two", Some(("if-none-match", "*")))
            .await
            .status(),
        412
    );
    let second = put(&guest, "a.txt", "two", Some(("if-match", &first))).await;
    assert_eq!(second.status(), 200);
    assert_eq!(
        put(&guest, "a.txt", "three", Some(("if-match", &first)))
            .await
            .status(),
        412
    );
    assert_eq!(
        put(&guest, "none.txt", "x", Some(("if-match", &first)))
            .await
            .status(),
        412
    );
    let got = read(&guest, "/api/files/content?path=a.txt").await;
    assert_eq!(
        (got.body().as_ref(), &got.headers()["etag"]),
        (b"two".as_slice(), &second.headers()["etag"])
    );
    assert_eq!(got.headers()["content-type"], "application/octet-stream");
    // A change by a command is a new version.
    fs::write(guest.workspace().join("a.txt"), "changed outside").unwrap();
    let known = second.headers()["etag"].to_str().unwrap();
    assert_eq!(
        put(&guest, "a.txt", "three", Some(("if-match", known)))
            .await
            .status(),
        412
    );
    assert_eq!(
        fs::read_dir(guest.workspace()).unwrap().count(),
        1,
        "nothing is left behind"
    );
}

#[tokio::test]
async fn makes_moves_lists_and_removes() {
    let guest = Guest::start("openai").await;
    let client = &guest.client;
    assert_eq!(
        client
            .post("/api/files/dir", json!({"path": "a/b/c"}))
            .await
            .0,
        201
    );
    assert_eq!(
        client
            .post("/api/files/dir", json!({"path": "a/b"}))
            .await
            .0,
        409
    );
    assert_eq!(put(&guest, "a/b/c/x", "1", None).await.status(), 201);
    assert_eq!(put(&guest, "y", "22", None).await.status(), 201);
    assert_eq!(put(&guest, "no/such/z", "1", None).await.status(), 404);
    assert_eq!(
        client
            .post("/api/files/move", json!({"from": "y", "to": "a/b/c/x"}))
            .await
            .0,
        409
    );
    assert_eq!(
        client
            .post("/api/files/move", json!({"from": "y", "to": "a/y"}))
            .await
            .0,
        200
    );
    let (_, listing) = client.get("/api/files?path=a").await;
    let entries: Vec<_> = listing["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (&e["name"], &e["type"]))
        .collect();
    assert_eq!(
        entries,
        [(&json!("b"), &json!("dir")), (&json!("y"), &json!("file"))]
    );
    assert_eq!(listing["entries"][1]["size"], 2);
    assert_eq!(
        client.json("DELETE", "/api/files?path=a", None).await.0,
        204
    );
    assert_eq!(
        client.json("DELETE", "/api/files?path=a", None).await.0,
        404
    );
    assert_eq!(client.json("DELETE", "/api/files?path=", None).await.0, 400);
    let (_, events) = client.get("/logs/events?kind=file.changed").await;
    let operations: Vec<_> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["data"]["op"].clone())
        .collect();
    assert_eq!(
        operations,
        [
            "directory_created",
            "created",
            "created",
            "moved",
            "removed"
        ]
    );
}

#[tokio::test]
async fn nothing_leads_out_of_the_workspace() {
    let guest = Guest::start("openai").await;
    let outside = guest.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let workspace = guest.workspace();
    symlink(&outside, workspace.join("absolute")).unwrap();
    symlink("../outside", workspace.join("relative")).unwrap();
    symlink("../outside/secret", workspace.join("file")).unwrap();
    fs::write(workspace.join("mine"), "mine").unwrap();
    let client = &guest.client;
    for path in [
        "../outside/secret",
        "absolute/secret",
        "relative/secret",
        "file",
        "x/../../outside/secret",
        "%2e%2e/outside/secret",
        "relative/../outside/secret",
    ] {
        let got = read(&guest, &format!("/api/files/content?path={path}")).await;
        assert_eq!(got.status(), 404, "{path}");
        assert_eq!(
            client.get(&format!("/api/files?path={path}")).await.0,
            404,
            "{path}"
        );
    }
    assert_eq!(client.get("/api/files?path=/etc").await.0, 400);
    assert_eq!(client.get("/api/files?path=relative").await.0, 404);
    assert_eq!(
        put(&guest, "relative/planted", "x", None).await.status(),
        404
    );
    assert_eq!(
        put(&guest, "../outside/planted", "x", None).await.status(),
        404
    );
    assert_eq!(put(&guest, "file", "x", None).await.status(), 409);
    assert_eq!(
        client
            .post("/api/files/dir", json!({"path": "relative/planted"}))
            .await
            .0,
        404
    );
    assert_eq!(
        client
            .post(
                "/api/files/move",
                json!({"from": "mine", "to": "relative/m"})
            )
            .await
            .0,
        404
    );
    assert_eq!(
        client
            .post(
                "/api/files/move",
                json!({"from": "relative/secret", "to": "s"})
            )
            .await
            .0,
        404
    );
    assert_eq!(
        client
            .json("DELETE", "/api/files?path=relative/secret", None)
            .await
            .0,
        404
    );
    // Removing the link removes the link.
    assert_eq!(
        client
            .json("DELETE", "/api/files?path=absolute", None)
            .await
            .0,
        204
    );
    assert_eq!(
        fs::read_to_string(outside.join("secret")).unwrap(),
        "secret"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_swapped_for_a_link_in_a_race_leads_nowhere() {
    let guest = Guest::start("openai").await;
    let outside = guest.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("x"), "outside").unwrap();
    let workspace = guest.workspace();
    fs::create_dir(workspace.join("d")).unwrap();
    fs::write(workspace.join("d/x"), "inside").unwrap();
    symlink(&outside, workspace.join("link")).unwrap();
    static STOP: AtomicBool = AtomicBool::new(false);
    let racing = File::open(&workspace).unwrap();
    let racer = std::thread::spawn(move || {
        while !STOP.load(Ordering::Relaxed) {
            renameat_with(&racing, "d", &racing, "link", RenameFlags::EXCHANGE).unwrap();
        }
    });
    // Until the race was seen to be won and lost often enough.
    let (mut inside, mut refused) = (0, 0);
    for n in 0..20_000 {
        if inside > 50 && refused > 50 {
            break;
        }
        let got = read(&guest, "/api/files/content?path=d/x").await;
        match got.status().as_u16() {
            200 => {
                assert_eq!(got.body(), "inside");
                inside += 1;
            }
            status => {
                assert_eq!(status, 404);
                refused += 1;
            }
        }
        let name = format!("d/new{n}");
        let wrote = put(&guest, &name, "inside", None).await;
        assert!([201, 404].contains(&wrote.status().as_u16()), "{wrote:?}");
        let directory = json!({"path": format!("d/dir{n}")});
        guest.client.post("/api/files/dir", directory).await;
        let moved = json!({"from": "d/x", "to": "d/y"});
        guest.client.post("/api/files/move", moved).await;
        let back = json!({"from": "d/y", "to": "d/x"});
        while guest.client.post("/api/files/move", back.clone()).await.0 == 404
            && guest.client.get("/api/files/content?path=d/x").await.0 != 200
        {}
        let path = format!("/api/files?path=d/new{n}");
        guest.client.json("DELETE", &path, None).await;
    }
    STOP.store(true, Ordering::Relaxed);
    racer.join().unwrap();
    assert!(inside > 50 && refused > 50, "{inside} {refused}");
    let left: Vec<_> = fs::read_dir(&outside)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["x"]);
    assert_eq!(fs::read_to_string(outside.join("x")).unwrap(), "outside");
}

#[tokio::test]
async fn content_is_bounded() {
    let guest = Guest::start("openai").await;
    let limit = 16 * 1024 * 1024;
    assert_eq!(
        put(&guest, "big", &"x".repeat(limit), None).await.status(),
        201
    );
    assert_eq!(
        put(&guest, "bigger", &"x".repeat(limit + 1), None)
            .await
            .status(),
        413
    );
    fs::write(guest.workspace().join("grown"), vec![0; limit + 1]).unwrap();
    assert_eq!(
        read(&guest, "/api/files/content?path=grown").await.status(),
        413
    );
    let (status, problem) = guest
        .client
        .post("/api/memory", json!({"text": "x".repeat(200_000)}))
        .await;
    assert_eq!((status, &problem["code"]), (413, &json!("too_large")));
}

#[tokio::test]
async fn every_answer_carries_the_security_headers() {
    let guest = Guest::start("openai").await;
    for path in [
        "/",
        "/health",
        "/no/such/thing",
        "/api/files/content?path=none",
    ] {
        let got = read(&guest, path).await;
        let policy = got.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("script-src 'self';") && policy.contains("frame-ancestors 'none'"));
        assert_eq!(got.headers()["x-content-type-options"], "nosniff", "{path}");
    }
    let page = read(&guest, "/").await;
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let etag = page.headers()["etag"].clone();
    let again = Request::get("/")
        .header("host", "x")
        .header("if-none-match", etag);
    assert_eq!(
        guest
            .client
            .send(again.body(Bytes::new()).unwrap())
            .await
            .status(),
        304
    );
    let request = Request::get("/none")
        .header("host", "x")
        .header("x-request-id", "r-17");
    let got = guest.client.send(request.body(Bytes::new()).unwrap()).await;
    let problem: serde_json::Value = serde_json::from_slice(got.body()).unwrap();
    assert_eq!(problem["request_id"], "r-17");
    let (status, problem) = guest.client.json("PATCH", "/health", None).await;
    assert_eq!(
        (status, &problem["code"]),
        (405, &json!("method_not_allowed"))
    );
}

#[tokio::test]
async fn info_believes_what_the_proxy_says_of_this_request() {
    let guest = Guest::start("openai").await;
    let request = Request::get("/api/info")
        .header("host", "x")
        .header("x-choir-role", "dev")
        .header("x-choir-generation", "7")
        .header("x-choir-control-origin", "http://localhost:9090");
    let got = guest.client.send(request.body(Bytes::new()).unwrap()).await;
    let info: serde_json::Value = serde_json::from_slice(got.body()).unwrap();
    assert_eq!(
        (&info["role"], &info["user"], &info["generation"]),
        (&json!("dev"), &json!("alice"), &json!(7))
    );
    assert_eq!(info["control_origin"], "http://localhost:9090");
    assert_eq!(
        info["models"]["default"],
        json!({"provider": "test", "model": "m"})
    );
}

#[test]
fn the_desktop_has_the_current_openapi_document() {
    let written = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../desktop/openapi.json"
    ))
    .unwrap();
    let current = sandbox::http::openapi::text().unwrap();
    assert!(
        written == current,
        "run `sandbox openapi > desktop/openapi.json`"
    );
}
