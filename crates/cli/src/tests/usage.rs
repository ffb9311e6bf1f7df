use insta::assert_snapshot;
use serde_json::json;

use super::Person;
use super::server::Plane;

#[tokio::test]
async fn usage_is_added_up_and_has_a_total() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let row = |model: &str, calls: u64, cost: f64| {
        json!({"provider": "openai", "model": model, "calls": calls, "failures": 1,
               "input_tokens": 1200, "output_tokens": 80, "cached_tokens": 1000, "cost_usd": cost})
    };
    plane.answer(
        "GET /me/usage?by=model&days=30",
        json!({"usage": [row("gpt-x", 12, 0.5), row("gpt-y", 1, 0.01234)]}),
    );
    let ended = person.run(&plane, "usage").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    MODEL         CALLS  FAILED  INPUT  CACHED  OUTPUT  COST
    openai/gpt-x  12     1       1200   1000    80      $0.5000
    openai/gpt-y  1      1       1200   1000    80      $0.0123
    total         13     2       2400   2000    160     $0.5123
    --- stderr
    ");
    plane.answer("GET /admin/usage?by=user&days=7", json!({"usage": []}));
    let ended = person.run(&plane, "usage --all --by user --days 7").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    No model calls in the last 7 days.
    --- stderr
    ");
}

#[tokio::test]
async fn a_provider_is_tested_and_what_is_wrong_is_said() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    plane.answer(
        "POST /admin/providers/openai/test",
        json!({"results": [{"provider": "openai", "host": "api.openai.com", "model": "gpt-x",
            "ok": false, "message": "it refuses the key (status 401)", "status": 401,
            "hint": "put a valid key into the provider's key_file", "latency_ms": 120}]}),
    );
    let ended = person.run(&plane, "provider test openai").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 1
    --- stdout
    FAILED  openai at api.openai.com with gpt-x: it refuses the key (status 401) (120 ms)
            hint: put a valid key into the provider's key_file
    --- stderr
    ");
    plane.answer(
        "GET /admin/providers",
        json!({"providers": [{"name": "openai", "kind": "openai", "models": ["gpt-x", "gpt-y"],
            "upstreams": [{"base_url": "https://api.openai.com/v1", "key": true, "up": false}],
            "open_calls": 3}]}),
    );
    let ended = person.run(&plane, "provider list").await;
    assert_snapshot!(ended.show(&plane), @r"
    exit code 0
    --- stdout
    NAME    KIND    MODELS        UPSTREAMS                                           OPEN
    openai  openai  gpt-x, gpt-y  https://api.openai.com/v1 (resting after failures)  3
    --- stderr
    ");
}

#[tokio::test]
async fn usage_names_what_it_is_added_up_by() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let row = json!({"day": "2026-11-28", "user": "bob", "sandbox": "019a-live", "provider": "openai",
        "model": "gpt-x", "calls": 3, "failures": 0, "input_tokens": 10, "output_tokens": 2,
        "cached_tokens": 0, "cost_usd": 0.25});
    for (by, title, name) in [
        ("day", "DAY", "2026-11-28"),
        ("sandbox", "SANDBOX", "019a-live of bob"),
        ("model", "MODEL", "openai/gpt-x"),
        ("provider", "PROVIDER", "openai"),
        ("user", "USER", "bob"),
    ] {
        plane.answer(
            &format!("GET /admin/usage?by={by}&days=30"),
            json!({ "usage": [row] }),
        );
        let ended = person.run(&plane, &format!("usage --all --by {by}")).await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let lines: Vec<&str> = ended.stdout.lines().collect();
        assert!(lines[0].starts_with(title), "{}", ended.stdout);
        assert!(lines[1].starts_with(name), "{}", ended.stdout);
        assert_eq!(lines.len(), 2, "one row needs no total: {}", ended.stdout);
    }
    let ended = person.run(&plane, "usage --by fortnight").await;
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("fortnight"), "{}", ended.stderr);
}
