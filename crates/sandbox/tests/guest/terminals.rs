//! Terminals: opened over the channel, passed through to the client.

use serde_json::json;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use types::CommandId;

use crate::harness::Guest;

#[tokio::test]
async fn a_terminal_is_opened_used_listed_and_ended() {
    let guest = Guest::start("openai").await;
    let (status, opened) = guest
        .client
        .post("/api/terminals", json!({"cols": 80, "rows": 24}))
        .await;
    assert_eq!(status, 201);
    let id = opened["id"].as_str().unwrap();
    {
        let state = guest.double.state.lock().unwrap();
        let command = &state.commands[0];
        assert_eq!(command.capabilities, ["provider:call"]);
        assert_eq!(
            command.terminal.map(|size| (size.cols, size.rows)),
            Some((80, 24))
        );
        assert!(command.detach && command.argv[1] == "-l");
    }
    let (_, listed) = guest.client.get("/api/terminals").await;
    assert_eq!(
        (
            &listed["terminals"][0]["id"],
            &listed["terminals"][0]["state"]
        ),
        (&opened["id"], &json!("running"))
    );

    let mut live = guest
        .client
        .websocket(&format!("/ws/terminal/{id}?from=42"))
        .await;
    assert_eq!(live.next().await, json!({"type": "attached", "offset": 42}));
    live.send(Message::binary("echo é\n".as_bytes().to_vec()))
        .await;
    assert_eq!(live.message().await.into_data(), "echo é\n".as_bytes());
    let resize = r#"{"type":"resize","cols":100,"rows":30}"#;
    live.send(Message::text(resize)).await;
    assert_eq!(live.message().await, Message::text(resize));
    live.send(Message::binary(b"exit\n".to_vec())).await;
    assert_eq!(live.next().await["type"], "exited");
    // Whoever types on meets no socket that is gone, and so reads the rest.
    live.send(Message::binary(b"x".to_vec())).await;
    assert!(live.closed().await.is_some());

    assert_eq!(
        guest
            .client
            .json("DELETE", &format!("/api/terminals/{id}"), None)
            .await
            .0,
        204
    );
    let killed = guest.double.state.lock().unwrap().killed.clone();
    assert_eq!(killed, [id.parse::<CommandId>().unwrap()]);
    // Its end is recorded once, though two ways of ending it met.
    let mut live = guest.client.live(0).await;
    while live.next().await["event"]["kind"] != "terminal.closed" {}
    let (_, page) = guest.client.get("/logs/events").await;
    let kinds: Vec<_> = page["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["kind"].clone())
        .collect();
    assert_eq!(kinds, ["terminal.opened", "terminal.closed"]);
}

#[tokio::test]
async fn a_terminal_that_is_not_there_is_not_found() {
    let guest = Guest::start("openai").await;
    let stream = tokio::net::UnixStream::connect(&guest.client.path)
        .await
        .unwrap();
    let path = format!("ws://x/ws/terminal/{}", CommandId::generate());
    let error = client_async(path, stream).await.unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    let (status, _) = guest
        .client
        .get(&format!("/ws/terminal/{}", CommandId::generate()))
        .await;
    assert_eq!(status, 404);
    for size in [
        json!({"cols": 0, "rows": 24}),
        json!({"cols": 80, "rows": 5000}),
    ] {
        assert_eq!(guest.client.post("/api/terminals", size).await.0, 400);
    }
}
