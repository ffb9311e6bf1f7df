//! The event store over HTTP and WebSocket.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Guest, PATIENCE};
use sandbox::store::NewEvent;

#[tokio::test]
async fn the_live_relay_resumes_without_gap_or_repetition() {
    const WRITERS: i64 = 4;
    const EACH: i64 = 150;
    let guest = Guest::start("openai").await;
    for writer in 0..WRITERS {
        let store = guest.app.store.clone();
        tokio::spawn(async move {
            for n in 0..EACH {
                let data = json!({"writer": writer, "n": n});
                store
                    .append(NewEvent::new("test.written", data))
                    .await
                    .unwrap();
            }
        });
    }
    // Connects, reads some, is cut off, comes back with its cursor.
    let mut seen = Vec::new();
    let mut cursor = 0;
    let mut patience = [3, 50, 1, 400, 20].into_iter().cycle();
    while cursor < WRITERS * EACH {
        let mut live = guest.client.live(cursor).await;
        for _ in 0..patience.next().unwrap() {
            let message = live.next().await;
            if message["type"] == "event" {
                cursor = message["event"]["seq"].as_i64().unwrap();
                seen.push(message["event"].clone());
            }
            if cursor >= WRITERS * EACH {
                break;
            }
        }
    }
    let positions: Vec<_> = seen
        .iter()
        .map(|event| event["seq"].as_i64().unwrap())
        .collect();
    assert_eq!(positions, (1..=WRITERS * EACH).collect::<Vec<_>>());
    // What was relayed is what is stored.
    let (_, page) = guest.client.get("/logs/events?limit=1000").await;
    assert_eq!(page["events"].as_array().unwrap(), &seen);
    assert_eq!(page["next_seq"], WRITERS * EACH);
    // Each writer's events stand in the order in which it wrote them.
    for writer in 0..WRITERS {
        let order: Vec<_> = seen
            .iter()
            .filter(|event| event["data"]["writer"] == writer)
            .map(|event| event["data"]["n"].as_i64().unwrap())
            .collect();
        assert_eq!(order, (0..EACH).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn says_when_a_client_is_caught_up_and_when_its_cursor_is_of_another_store() {
    let guest = Guest::start("openai").await;
    let store = &guest.app.store;
    store
        .append(NewEvent::new("test.written", json!({})))
        .await
        .unwrap();
    let mut live = guest.client.live(99).await;
    assert_eq!(live.next().await, json!({"type": "caught_up", "seq": 1}));
    store
        .append(NewEvent::new("test.written", json!({})))
        .await
        .unwrap();
    assert_eq!(live.next().await["event"]["seq"], 2);
}

#[tokio::test]
async fn a_client_that_does_not_say_hello_is_sent_away() {
    let guest = Guest::start("openai").await;
    for bad in ["{}", "hello", r#"{"type":"hello"}"#] {
        let mut live = guest.client.websocket("/ws").await;
        live.send(Message::text(bad)).await;
        assert_eq!(u16::from(live.closed().await.unwrap().code), 1008);
    }
    // Larger than any hello.
    let mut live = guest.client.websocket("/ws").await;
    live.send(Message::text("x".repeat(10_000))).await;
    let end = tokio::time::timeout(PATIENCE, futures_util::StreamExt::next(&mut live.socket))
        .await
        .unwrap();
    assert!(!matches!(end, Some(Ok(Message::Text(_)))), "{end:?}");
}

#[tokio::test]
async fn lists_filters_and_streams() {
    let guest = Guest::start("openai").await;
    for n in 0..100 {
        let kind = if n % 10 == 0 {
            "test.tenth"
        } else {
            "test.other"
        };
        guest
            .app
            .store
            .append(NewEvent::new(kind, json!({"n": n})))
            .await
            .unwrap();
    }
    let (_, page) = guest
        .client
        .get("/logs/events?kind=test.tenth&since_seq=11&limit=3")
        .await;
    let found: Vec<_> = page["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["seq"].clone())
        .collect();
    assert_eq!(found, [21, 31, 41]);
    let request = http::Request::get("/logs/events.jsonl?since_seq=1").header("host", "x");
    let response = guest
        .client
        .send(request.body(bytes::Bytes::new()).unwrap())
        .await;
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let text = String::from_utf8(response.body().to_vec()).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (lines.len(), &lines[0]["seq"], &lines[98]["seq"]),
        (99, &json!(2), &json!(100))
    );
    for bad in ["/logs/events?since_seq=x", "/logs/events?limit=-1"] {
        assert_eq!(guest.client.get(bad).await.0, 400);
    }
}
