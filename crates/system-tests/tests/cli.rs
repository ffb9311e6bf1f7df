//! `choir`, from a token to exit codes.

use std::process::Output;

use serde_json::{Value, json};
use system_tests::{Account, Installation, Setup};
use types::Role;

struct Shell<'a> {
    installation: &'a Installation,
    token_file: std::path::PathBuf,
}

impl Shell<'_> {
    async fn of<'a>(
        installation: &'a Installation,
        account: &Account,
        scopes: &[&str],
    ) -> Shell<'a> {
        let body = json!({ "name": "shell", "scopes": scopes });
        let made = account
            .control("POST", "/me/tokens", Some(body))
            .await
            .expect(201)
            .json();
        let token_file = installation
            .scratch()
            .join(format!("token-{}", account.name));
        std::fs::write(&token_file, made["token"].as_str().unwrap()).unwrap();
        Shell {
            installation,
            token_file,
        }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::from(self.installation.choir());
        command
            .arg("--server")
            .arg(self.installation.control())
            .arg("--token-file")
            .arg(&self.token_file)
            .args(arguments);
        system_tests::wait::within(&arguments.join(" "), command.output())
            .await
            .unwrap()
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments).await;
        assert_eq!(
            output.status.code(),
            Some(0),
            "{arguments:?}: {}",
            said(&output)
        );
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", said(&output)))
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_manages_sandboxes_and_runs_commands() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    let shell = Shell::of(
        &installation,
        &alice,
        &["sandboxes", "commands", "account", "admin"],
    )
    .await;

    assert_eq!(
        shell.run(&["sandbox", "start", "live"]).await.status.code(),
        Some(0)
    );
    assert_eq!(
        shell.run(&["sandbox", "start", "dev"]).await.status.code(),
        Some(0)
    );
    let listing = shell.json(&["sandbox", "list", "--json"]).await;
    let list = listing["sandboxes"]
        .as_array()
        .or_else(|| listing.as_array())
        .unwrap();
    assert_eq!(list.len(), 2, "{listing:#}");
    assert!(
        list.iter().all(|one| one["state"] == "running"),
        "{listing:#}"
    );

    // Output, exit codes and signals come through.
    let echo = shell.run(&["run", "--", "echo", "hello"]).await;
    assert_eq!(
        (echo.status.code(), &*echo.stdout),
        (Some(0), &b"hello\n"[..]),
        "{}",
        said(&echo)
    );
    let streams = shell
        .run(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])
        .await;
    assert_eq!(streams.status.code(), Some(7), "{}", said(&streams));
    assert_eq!(
        (&*streams.stdout, &*streams.stderr),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(
        shell
            .run(&["run", "--", "sh", "-c", "kill -9 $$"])
            .await
            .status
            .code(),
        Some(128 + 9)
    );
    assert_eq!(
        shell
            .run(&["run", "--", "no-such-program-anywhere"])
            .await
            .status
            .code(),
        Some(127)
    );
    assert_eq!(
        shell
            .run(&["run", "--timeout", "1", "--", "sleep", "30"])
            .await
            .status
            .code(),
        Some(124)
    );
    let whoami = shell
        .run(&[
            "run",
            "--role",
            "dev",
            "--",
            "sh",
            "-c",
            "echo $PWD; id -u; echo $HOME",
        ])
        .await;
    assert_eq!(
        String::from_utf8_lossy(&whoami.stdout),
        "/workspace\n1000\n/home/choir\n",
        "{}",
        said(&whoami)
    );

    // A swap, seen in the listing.
    let before = alice.sandbox(Role::Live).await["id"].clone();
    assert_eq!(shell.run(&["sandbox", "swap"]).await.status.code(), Some(0));
    assert_eq!(alice.sandbox(Role::Dev).await["id"], before);

    // The log knows of all this and is whole.
    let verified = shell.run(&["audit", "verify"]).await;
    assert_eq!(verified.status.code(), Some(0), "{}", said(&verified));
    let tail = said(&shell.run(&["audit", "tail", "-n", "100"]).await);
    for action in ["auth.register", "swap", "command"] {
        assert!(tail.contains(action), "{action} is not in the log: {tail}");
    }
    assert_eq!(
        shell.run(&["sandbox", "stop", "live"]).await.status.code(),
        Some(0)
    );
    assert_eq!(alice.sandbox(Role::Live).await["state"], "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_says_what_is_wrong_and_what_to_do() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    let shell = Shell::of(&installation, &alice, &["sandboxes"]).await;
    let refused = shell.run(&["run", "--", "true"]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).to_lowercase().contains("scope") || said(&refused).contains("commands"),
        "{}",
        said(&refused)
    );

    std::fs::write(&shell.token_file, "choirpat_nonsense").unwrap();
    let unknown = shell.run(&["sandbox", "list"]).await;
    assert_ne!(unknown.status.code(), Some(0));
    assert!(said(&unknown).contains("hint:"), "{}", said(&unknown));
    assert_eq!(
        shell.run(&["sandbox", "frobnicate"]).await.status.code(),
        Some(2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_changed_byte_of_the_log_is_found() {
    let mut installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    installation.end(rustix::process::Signal::TERM);
    let dir = installation.data_dir().join("audit");
    let verify = || {
        installation
            .choir()
            .args(["audit", "verify", "--dir"])
            .arg(&dir)
            .output()
            .unwrap()
    };
    let whole = verify();
    assert_eq!(whole.status.code(), Some(0), "{}", said(&whole));
    let segments = std::fs::read_dir(&dir).unwrap().flatten();
    let (segment, mut bytes, at) = segments
        .filter_map(|entry| {
            let bytes = std::fs::read(entry.path()).ok()?;
            let at = bytes.windows(5).position(|window| window == b"alice")?;
            Some((entry.path(), bytes, at))
        })
        .next()
        .expect("a record that names her");
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let broken = verify();
    assert_eq!(broken.status.code(), Some(1), "{}", said(&broken));
    assert!(
        said(&broken).chars().any(|c| c.is_ascii_digit()),
        "it names the record: {}",
        said(&broken)
    );
}
