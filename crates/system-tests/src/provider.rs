//! The double of model providers, as a process of its own (`src/bin/provider`).

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::Binaries;
use crate::http::{Ask, Client};
use crate::wait::until;

/// The double, running.
#[derive(Debug)]
pub struct Provider {
    child: Child,
    port: u16,
    keys: TempDir,
}

impl Provider {
    /// The key that it demands: what only it and the hypervisor know.
    pub const KEY: &str = "sk-canary-sdk-9d1f4b7a2c6e";

    /// Starts it.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(binaries: &Binaries) -> Self {
        let keys = tempfile::tempdir().expect("a directory");
        fs::write(keys.path().join("provider.key"), Self::KEY).expect("a key file");
        let mut child = Command::new(binaries.program("provider"))
            .arg(Self::KEY)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the provider starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        Self {
            child,
            port: line.trim().parse().expect("a port"),
            keys,
        }
    }

    /// The configuration of a hypervisor that has it as `openai` and as `anthropic`.
    #[must_use]
    pub fn config(&self) -> String {
        let port = self.port;
        let key_file = self.keys.path().join("provider.key");
        format!(
            "[[providers]]\nname = \"openai\"\nkind = \"openai\"\n\
             base_url = \"http://127.0.0.1:{port}/v1\"\nkey_file = {key_file:?}\n\
             models = [\"gpt-double\"]\naliases = {{ fast = \"gpt-double\" }}\n\
             prices = {{ gpt-double = {{ input = 1.0, output = 2.0 }} }}\n\
             addresses = \"private_network_too\"\nretries = 1\n\
             [[providers]]\nname = \"anthropic\"\nkind = \"anthropic\"\n\
             base_url = \"http://127.0.0.1:{port}/anthropic\"\nkey_file = {key_file:?}\n\
             models = [\"claude-double\"]\n\
             addresses = \"private_network_too\"\nretries = 1\n"
        )
    }

    /// What it was sent so far.
    ///
    /// # Panics
    /// It does not answer.
    pub async fn seen(&self) -> Vec<Value> {
        let answer = Client::new(self.port)
            .send(Ask::new("GET", "localhost", "/seen"))
            .await;
        let seen = answer.expect(200).json();
        seen.as_array().expect("a list").clone()
    }

    /// Waits until a call with this text has ended in this way, or goes on (`None`).
    ///
    /// # Panics
    /// It does not.
    pub async fn wait(&self, text: &str, end: Option<&str>) {
        until(text, async || {
            let seen = self.seen().await;
            let one = seen.iter().find(|one| one["text"] == text)?;
            (one["end"].as_str() == end).then_some(())
        })
        .await;
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
