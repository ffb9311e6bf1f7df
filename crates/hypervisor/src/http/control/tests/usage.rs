//! What model calls took, over HTTP: each way to add it up, and whose.

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use types::{RequestId, SandboxId, UserId};

use super::world::{DAY_MS, ORIGIN, Person, World, actor};
use crate::store::CallRow;

struct Told {
    world: World,
    alice: Person,
    bob: Person,
    /// Of alice and of bob.
    sandboxes: [SandboxId; 2],
}

/// Two people with calls of today and yesterday; alice is the administrator.
async fn told() -> Told {
    let world = World::new().await;
    let alice = world.person("alice", true, "sandboxes admin").await;
    let bob = world.person("bob", false, "sandboxes").await;
    let now = world.app.clock.now_ms();
    let sandboxes = [SandboxId::generate(), SandboxId::generate()];
    let id = async |person| actor(&world, person).await.user.unwrap().id;
    let (of_alice, of_bob) = (id(&alice).await, id(&bob).await);
    let call = |user: UserId, sandbox, provider: &str, model: &str, days: i64, ok| CallRow {
        request_id: RequestId::generate(),
        at: now - days * DAY_MS,
        sandbox_id: sandbox,
        user_id: user,
        provider: provider.to_owned(),
        model: model.to_owned(),
        status: if ok { 200 } else { 500 },
        outcome: "complete",
        latency_ms: 10,
        first_byte_ms: Some(5),
        input_tokens: 100,
        output_tokens: 10,
        cached_tokens: 40,
        estimated: false,
        cost: 1_000_000_000,
        ok,
    };
    let calls = [
        call(of_alice, sandboxes[0], "acme", "large", 0, true),
        call(of_alice, sandboxes[0], "acme", "small", 1, false),
        call(of_bob, sandboxes[1], "other", "secret-model", 0, true),
        call(of_bob, sandboxes[1], "other", "secret-model", 40, true),
    ];
    world.app.store.record_calls(&calls, false).await.unwrap();
    Told {
        world,
        alice,
        bob,
        sandboxes,
    }
}

impl Told {
    async fn ask(&self, who: &Person, path: &str) -> (StatusCode, Value) {
        let headers = [("cookie", who.cookie.as_str()), ("origin", ORIGIN)];
        let (status, _, body): (_, HeaderMap, _) = self.world.get(path, &headers).await;
        (status, body)
    }

    /// What a list says under a key, with its calls.
    async fn rows(&self, who: &Person, path: &str, key: &str) -> Vec<(String, u64)> {
        let (status, body) = self.ask(who, path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        let rows = body["usage"].as_array().unwrap();
        let mut rows: Vec<_> = rows
            .iter()
            .map(|row| {
                let name = row[key]
                    .as_str()
                    .unwrap_or_else(|| panic!("{key} in {row}"));
                (name.to_owned(), row["calls"].as_u64().unwrap())
            })
            .collect();
        rows.sort();
        rows
    }
}

fn rows(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
    let mut rows: Vec<_> = expected
        .iter()
        .map(|(name, calls)| ((*name).to_owned(), *calls))
        .collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn ones_own_usage_is_added_up_in_every_way_and_is_ones_own() {
    let told = told().await;
    let [sandbox, _] = told.sandboxes.map(|id| id.to_string());
    let day = |days: i64| {
        let at = told.world.app.clock.now_ms() - days * DAY_MS;
        let at = jiff::Timestamp::from_millisecond(at).unwrap();
        at.strftime("%Y-%m-%d").to_string()
    };
    for (by, key, expected) in [
        ("model", "model", rows(&[("large", 1), ("small", 1)])),
        ("provider", "provider", rows(&[("acme", 2)])),
        ("sandbox", "sandbox", rows(&[(sandbox.as_str(), 2)])),
        (
            "day",
            "day",
            rows(&[(day(1).as_str(), 1), (day(0).as_str(), 1)]),
        ),
    ] {
        let path = format!("/me/usage?by={by}");
        assert_eq!(told.rows(&told.alice, &path, key).await, expected, "{by}");
        let (_, body) = told.ask(&told.alice, &path).await;
        let text = body.to_string();
        assert!(
            !text.contains("secret-model") && !text.contains("other"),
            "{text}"
        );
    }
    // Without a word it is by model, and of a month: bob's older call is not in it.
    assert_eq!(
        told.rows(&told.bob, "/me/usage", "model").await,
        rows(&[("secret-model", 1)])
    );
    let year = told.rows(&told.bob, "/me/usage?days=365", "model").await;
    assert_eq!(year, rows(&[("secret-model", 2)]));
    let (_, body) = told.ask(&told.alice, "/me/usage?by=provider").await;
    let row = &body["usage"][0];
    assert_eq!(row["failures"], 1);
    assert_eq!(
        (&row["input_tokens"], &row["output_tokens"]),
        (&json!(200), &json!(20))
    );
    assert_eq!(
        (&row["cached_tokens"], &row["cost_usd"]),
        (&json!(80), &json!(2.0))
    );
}

#[tokio::test]
async fn everybodys_usage_is_for_admins_and_names_people() {
    let told = told().await;
    let [of_alice, of_bob] = told.sandboxes.map(|id| id.to_string());
    for (by, key, expected) in [
        ("user", "user", rows(&[("alice", 2), ("bob", 1)])),
        (
            "model",
            "model",
            rows(&[("large", 1), ("small", 1), ("secret-model", 1)]),
        ),
        ("provider", "provider", rows(&[("acme", 2), ("other", 1)])),
        (
            "sandbox",
            "sandbox",
            rows(&[(of_alice.as_str(), 2), (of_bob.as_str(), 1)]),
        ),
    ] {
        let path = format!("/admin/usage?by={by}");
        assert_eq!(told.rows(&told.alice, &path, key).await, expected, "{by}");
        let (status, body) = told.ask(&told.bob, &path).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
        assert_eq!(body["code"], "forbidden", "{body}");
        assert!(body.get("usage").is_none(), "{body}");
    }
    let days = told
        .rows(&told.alice, "/admin/usage?by=day&days=1", "day")
        .await;
    assert_eq!(
        days.iter().map(|(_, calls)| *calls).collect::<Vec<_>>(),
        [2]
    );
}

#[tokio::test]
async fn a_question_about_usage_that_cannot_be_is_refused_and_says_what_can() {
    let told = told().await;
    for question in [
        "by=user",
        "by=",
        "by=DAY",
        "days=0",
        "days=3661",
        "days=x",
        "of=bob",
    ] {
        let (status, body) = told
            .ask(&told.alice, &format!("/me/usage?{question}"))
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{question}: {body}");
        assert!(body.get("usage").is_none(), "{question}: {body}");
    }
    let (_, body) = told.ask(&told.alice, "/me/usage?by=person").await;
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains("model, day, sandbox, provider"), "{detail}");
}
