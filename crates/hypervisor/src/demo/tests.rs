//! Transcripts: a small agent with files in memory and a scripted test command plays
//! whole conversations with the provider over its wire format.

use std::collections::BTreeMap;

use axum::body::to_bytes;
use http::Method;
use serde_json::{Value, json};

use super::respond;

/// The agent's side: a workspace in memory.
struct Workspace {
    files: BTreeMap<String, String>,
    /// What a command prints, and its exit code.
    shell: fn(&BTreeMap<String, String>, &str) -> (String, i32),
    calls: Vec<String>,
}

impl Workspace {
    fn new(
        files: &[(&str, &str)],
        shell: fn(&BTreeMap<String, String>, &str) -> (String, i32),
    ) -> Self {
        let files = files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
            .collect();
        Self {
            files,
            shell,
            calls: Vec::new(),
        }
    }

    fn call(&mut self, name: &str, arguments: &Value) -> String {
        let text = |field: &str| arguments[field].as_str().unwrap().to_owned();
        self.calls.push(name.to_owned());
        match name {
            "run_command" => {
                let (output, code) = (self.shell)(&self.files, &text("command"));
                format!("exit code: {code}\n{output}")
            }
            "read_file" => self
                .files
                .get(&text("path"))
                .cloned()
                .unwrap_or("error: no such file".into()),
            "write_file" => {
                self.files.insert(text("path"), text("content"));
                "written".into()
            }
            "patch_file" => {
                let file = self.files.get_mut(&text("path")).unwrap();
                assert_eq!(file.matches(&text("old")).count(), 1, "{arguments}");
                *file = file.replace(&text("old"), &text("new"));
                "patched".into()
            }
            "list_files" => self.files.keys().cloned().collect::<Vec<_>>().join("\n"),
            "search_files" => {
                let query = text("query");
                let mut hits = Vec::new();
                for (path, content) in &self.files {
                    for (at, line) in content
                        .lines()
                        .enumerate()
                        .filter(|(_, line)| line.contains(&query))
                    {
                        hits.push(format!("{path}:{}: {line}", at + 1));
                    }
                }
                hits.join("\n")
            }
            "remember" => "remembered".into(),
            "recall" => "you like tea".into(),
            other => panic!("unknown tool {other}"),
        }
    }

    /// Plays a run to its end and returns the final answer.
    async fn run(&mut self, prompt: &str) -> String {
        let mut messages = vec![
            json!({"role": "system", "content": "You are an agent."}),
            json!({"role": "user", "content": prompt}),
        ];
        for _ in 0..80 {
            let message = complete(&messages).await;
            let text = message["content"].as_str().unwrap();
            assert!(
                text.starts_with("Demo provider"),
                "every answer says what it is: {text}"
            );
            messages.push(message.clone());
            let Some(call) = message["tool_calls"].get(0) else {
                return text.to_owned();
            };
            let arguments =
                serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
            let result = self.call(call["function"]["name"].as_str().unwrap(), &arguments);
            messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": result}));
        }
        panic!("no end: {:?}", self.calls);
    }
}

fn request(messages: &[Value], stream: bool) -> Vec<u8> {
    let tools: Vec<_> = [
        "run_command",
        "read_file",
        "write_file",
        "patch_file",
        "list_files",
        "search_files",
        "remember",
        "recall",
    ]
    .iter()
    .map(|name| json!({"type": "function", "function": {"name": name, "parameters": {}}}))
    .collect();
    json!({
        "model": "choir-demo", "messages": messages, "tools": tools, "stream": stream,
        "stream_options": {"include_usage": true},
    })
    .to_string()
    .into_bytes()
}

async fn body_of(body: &[u8]) -> Vec<u8> {
    let response = respond(&Method::POST, "chat/completions", body, 1_700_000_000);
    assert_eq!(response.status(), 200);
    to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap()
        .to_vec()
}

/// One turn, asked both ways: the stream has to add up to the document.
async fn complete(messages: &[Value]) -> Value {
    let document: Value =
        serde_json::from_slice(&body_of(&request(messages, false)).await).unwrap();
    let mut message = document["choices"][0]["message"].clone();
    message.as_object_mut().unwrap().remove("refusal");
    let stream = String::from_utf8(body_of(&request(messages, true)).await).unwrap();
    assert_eq!(assembled(&stream), message);
    message
}

fn assembled(stream: &str) -> Value {
    let mut text = String::new();
    let mut call: Option<Value> = None;
    let mut finish = Value::Null;
    let mut usage = Value::Null;
    let events = stream.strip_suffix("data: [DONE]\n\n").unwrap();
    let events = events
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").unwrap());
    for event in events {
        let chunk: Value = serde_json::from_str(event).unwrap();
        if chunk["usage"].is_object() {
            usage = chunk["usage"].clone();
        }
        let Some(choice) = chunk["choices"].get(0) else {
            continue;
        };
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        if let Some(delta) = choice["delta"]["tool_calls"].get(0) {
            match &mut call {
                None => {
                    call = Some(
                        json!({"id": delta["id"], "type": delta["type"], "function": delta["function"]}),
                    );
                }
                Some(call) => {
                    let more = delta["function"]["arguments"].as_str().unwrap();
                    let so_far = call["function"]["arguments"].as_str().unwrap().to_owned();
                    call["function"]["arguments"] = json!(so_far + more);
                }
            }
        }
        if choice["finish_reason"].is_string() {
            finish = choice["finish_reason"].clone();
        }
    }
    assert!(usage["total_tokens"].as_u64().unwrap() > 0);
    assert_eq!(finish, if call.is_some() { "tool_calls" } else { "stop" });
    let mut message = json!({"role": "assistant", "content": text});
    if let Some(call) = call {
        message["tool_calls"] = json!([call]);
    }
    message
}

fn silent(_: &BTreeMap<String, String>, _: &str) -> (String, i32) {
    (String::new(), 0)
}

#[tokio::test]
async fn a_sequence_is_carried_out_in_order() {
    let mut workspace = Workspace::new(&[], |files, command| match command {
        "cat a.txt" => (files["a.txt"].clone(), 0),
        _ => ("not found".into(), 127),
    });
    let answer = workspace
        .run("create a.txt: hello then change \"hello\" to \"goodbye\" in a.txt then run: cat a.txt then remember: done")
        .await;
    assert_eq!(
        workspace.calls,
        ["write_file", "patch_file", "run_command", "remember"]
    );
    assert!(answer.contains("goodbye"), "{answer}");
}

#[tokio::test]
async fn a_failed_step_ends_the_sequence_and_is_told() {
    let mut workspace = Workspace::new(&[], |_, _| ("boom".into(), 3));
    let answer = workspace.run("run: false\nremember: never").await;
    assert_eq!(workspace.calls, ["run_command"]);
    assert!(
        answer.contains("failed") && answer.contains("boom") && answer.contains("1 of 2"),
        "{answer}"
    );
}

#[tokio::test]
async fn anything_else_gets_the_grammar() {
    let answer = Workspace::new(&[], silent)
        .run("write a poem about the sea")
        .await;
    assert!(
        answer.contains("write a poem") && answer.contains("run: <command>"),
        "{answer}"
    );
}

#[tokio::test]
async fn memory_is_used() {
    let answer = Workspace::new(&[], silent).run("recall tea").await;
    assert!(answer.contains("you like tea"), "{answer}");
}

#[tokio::test]
async fn mends_a_swapped_operator_in_rust() {
    const LIB: &str = "pub fn add(a: i64, b: i64) -> i64 {\n    a - b\n}\n\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn adds() {\n        assert_eq!(super::add(2, 3), 5);\n    }\n}\n";
    let mut workspace = Workspace::new(
        &[("Cargo.toml", "[package]"), ("src/lib.rs", LIB)],
        |files, command| {
            assert_eq!(command, "cargo test");
            if files["src/lib.rs"].contains("a + b") {
                return ("test result: ok. 1 passed".into(), 0);
            }
            let output = "thread 'tests::adds' (9) panicked at src/lib.rs:9:9:\nassertion `left == right` failed\n  left: -1\n right: 5\n";
            (output.into(), 101)
        },
    );
    let answer = workspace.run("fix the failing test").await;
    assert!(
        answer.contains("passes now") && answer.contains("`a + b`"),
        "{answer}"
    );
    // The arithmetic of the failed call singles out the right change at once.
    assert_eq!(
        workspace.calls,
        [
            "list_files",
            "run_command",
            "read_file",
            "patch_file",
            "run_command"
        ]
    );
}

#[tokio::test]
async fn mends_python_in_another_file_than_the_test() {
    let mut workspace = Workspace::new(
        &[
            (
                "calc.py",
                "def area(w, h):\n    return w + h\n\ndef other():\n    return 1\n",
            ),
            (
                "test_calc.py",
                "import unittest\nfrom calc import area\n\nclass T(unittest.TestCase):\n    def test_area(self):\n        self.assertEqual(area(3, 4), 12)\n",
            ),
        ],
        |files, command| {
            assert!(
                command.ends_with("PYTHONDONTWRITEBYTECODE=1 python3 -m unittest"),
                "{command}"
            );
            if files["calc.py"].contains("w * h") {
                return ("OK".into(), 0);
            }
            let output = "FAIL: test_area (test_calc.T.test_area)\nTraceback (most recent call last):\n  File \"/workspace/test_calc.py\", line 6, in test_area\n    self.assertEqual(area(3, 4), 12)\nAssertionError: 7 != 12\n";
            (output.into(), 1)
        },
    );
    let answer = workspace.run("fix the failing test").await;
    assert!(answer.contains("passes now"), "{answer}");
    assert!(
        workspace.files["calc.py"].contains("return 1\n"),
        "nothing else was changed"
    );
}

#[tokio::test]
async fn mends_several_failing_tests_that_are_reported_together() {
    let mut workspace = Workspace::new(
        &[
            (
                "calc.py",
                "def add(a, b):\n    return a - b\n\ndef greet(name):\n    return \"Hello \" + name\n",
            ),
            (
                "test_calc.py",
                "import unittest\nfrom calc import add, greet\n\nclass T(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(2, 3), 5)\n\n    def test_greet(self):\n        self.assertEqual(greet(\"Bob\"), \"Hello, Bob\")\n",
            ),
        ],
        |files, _| {
            let mut output = String::new();
            if !files["calc.py"].contains("a + b") {
                output.push_str("FAIL: test_add (test_calc.T.test_add)\n  File \"/workspace/test_calc.py\", line 6, in test_add\nAssertionError: -1 != 5\n");
            }
            if !files["calc.py"].contains("\"Hello, \" + name") {
                output.push_str("FAIL: test_greet (test_calc.T.test_greet)\n  File \"/workspace/test_calc.py\", line 9, in test_greet\nAssertionError: 'Hello Bob' != 'Hello, Bob'\n");
            }
            let code = i32::from(!output.is_empty());
            (output, code)
        },
    );
    let answer = workspace.run("fix the failing tests").await;
    assert!(
        answer.contains("passes now"),
        "{answer}\n{:?}",
        workspace.calls
    );
    assert_eq!(
        workspace
            .calls
            .iter()
            .filter(|call| *call == "patch_file")
            .count(),
        2,
        "no detours"
    );
}

#[tokio::test]
async fn mends_two_failures_of_a_shell_script_one_after_the_other() {
    let mut workspace = Workspace::new(
        &[
            (
                "calc.sh",
                "add() {\n  echo $(( $1 - $2 ))\n}\ngreet() {\n  echo \"Hello $1\"\n}\n",
            ),
            ("test.sh", ". ./calc.sh\n"),
        ],
        |files, command| {
            assert_eq!(command, "sh test.sh");
            if !files["calc.sh"].contains("$1 + $2") {
                return ("calc.sh:2: add 2 3: expected 5, got -1\n".into(), 1);
            }
            if !files["calc.sh"].contains("Hello, $1") {
                return (
                    "calc.sh:5: greet Bob: expected \"Hello, Bob\", got \"Hello Bob\"\n".into(),
                    1,
                );
            }
            ("ok\n".into(), 0)
        },
    );
    let answer = workspace
        .run("fix the failing test with `sh test.sh` then run: sh test.sh")
        .await;
    assert!(
        answer.contains("passes now") && answer.contains("Hello, $1"),
        "{answer}"
    );
}

#[tokio::test]
async fn takes_back_what_does_not_help_and_gives_up_honestly() {
    const LIB: &str = "fn total(items: &[i64]) -> i64 {\n    items.len() as i64 + 1\n}\n";
    let mut workspace = Workspace::new(&[("src/lib.rs", LIB)], |_, _| {
        (
            "panicked at src/lib.rs:2:1:\ntotal(x) failed\n  left: 1\n right: 99\n".into(),
            101,
        )
    });
    let answer = workspace.run("fix the failing test with cargo test").await;
    assert!(
        answer.contains("still fails") && answer.contains("I changed nothing"),
        "{answer}"
    );
    assert_eq!(workspace.files["src/lib.rs"], LIB);
}

#[tokio::test]
async fn leaves_a_passing_test_alone() {
    let mut workspace = Workspace::new(&[("test.sh", "true")], silent);
    assert!(
        workspace
            .run("fix the failing test")
            .await
            .contains("nothing to fix")
    );
}

#[tokio::test]
async fn refuses_what_is_not_a_chat_request_in_the_wire_format() {
    let response = respond(&Method::POST, "chat/completions", b"{", 0);
    assert_eq!(response.status(), 400);
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let error: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(error["error"]["type"], "invalid_request_error");
    assert_eq!(respond(&Method::POST, "embeddings", b"{}", 0).status(), 404);
}
