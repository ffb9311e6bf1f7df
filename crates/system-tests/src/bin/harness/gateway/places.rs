//! Who is called: the upstream itself, our gateway, and others in front of it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use gateway::LocalSocket;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use system_tests::certificates::Authority;
use system_tests::processes::Process;
use system_tests::{Account, Installation, channel, installation, wait};
use tempfile::NamedTempFile;
use tokio::net::TcpStream;
use types::Role;

use super::client::Stream;
use crate::nginx::{self, Running};

/// Clock ticks of `/proc/PID/stat` in a second (`USER_HZ`).
const TICKS: u64 = 100;

/// What is shown to the upstream and to peers; LiteLLM does not start without one.
const MASTER_KEY: &str = "sk-bench-0123456789abcdef0123456789abcdef";

/// Portkey changes the headers of the reply that `fetch` gave it, which Node.js refuses for a
/// stream: without this, each of its streams is a 500.
const PORTKEY_FETCH: &str = "const plain = globalThis.fetch;\n\
     globalThis.fetch = async (...call) => {\n\
       const reply = await plain(...call);\n\
       return new Response(reply.body, { status: reply.status, headers: new Headers(reply.headers) });\n\
     };\n";

/// Where somebody listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(u16),
}

impl Address {
    pub(super) async fn connect(&self) -> Box<dyn Stream> {
        match self {
            Self::Unix(path) => {
                let stream = channel::connect(path).await.into_std();
                Box::new(stream.and_then(LocalSocket::new).expect("a socket"))
            }
            Self::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))
                    .await
                    .expect("somebody listens");
                stream.set_nodelay(true).expect("TCP_NODELAY");
                Box::new(stream)
            }
        }
    }
}

/// Somebody who answers model calls.
pub(super) struct Place {
    pub(super) name: &'static str,
    pub(super) address: Address,
    path: &'static str,
    model: &'static str,
    authorization: String,
    /// Further header lines of a request, each with its end.
    headers: String,
    /// The request of a page, where no model is called.
    page: Option<String>,
    /// Its first process; its descendants count as well.
    process: Process,
    /// Another caller of the same, of whom it knows.
    pub(super) second: Option<Box<Self>>,
    _running: Option<Running>,
}

impl Place {
    /// The gateway, as the sandbox of an account reaches it: over its channel.
    pub(super) async fn gateway(
        installation: &Installation,
        account: &Account,
        upstream: &Upstream,
    ) -> Self {
        let view = account.sandbox(Role::Live).await;
        let start = view["start_id"].as_str().expect("a start");
        let run = installation.data_dir().join("run").join(start);
        let environment: Value = account
            .runtime(Role::Live, "GET", "/hostile/listing?environment", None)
            .await
            .expect(200)
            .json();
        let token = environment["CHOIR_PROVIDER_GATEWAY_TOKEN"]
            .as_str()
            .expect("a token");
        Self {
            name: "gateway",
            address: Address::Unix(run.join("channel/channel.sock")),
            path: "/v1/chat/completions",
            model: upstream.model,
            authorization: format!("Bearer {token}"),
            headers: String::new(),
            page: None,
            process: installation.process(),
            second: None,
            _running: None,
        }
    }

    /// The sandbox of an account behind the proxy, as its browser reaches it.
    pub(super) fn proxied(installation: &Installation, account: &Account) -> Self {
        let host = account.host(Role::Live);
        Self {
            name: "proxy",
            address: Address::Tcp(installation.port()),
            path: "",
            model: "",
            authorization: String::new(),
            headers: String::new(),
            page: Some(format!(
                "GET /bench HTTP/1.1\r\nHost: {host}:{}\r\nCookie: {}\r\n\r\n",
                installation.port(),
                account.client.cookies(&host)
            )),
            process: installation.process(),
            second: None,
            _running: None,
        }
    }

    /// A call as it goes over the wire.
    pub(super) fn request(&self, streamed: bool) -> String {
        if let Some(page) = &self.page {
            return page.clone();
        }
        let stream = if streamed {
            r#","stream":true,"stream_options":{"include_usage":true}"#
        } else {
            ""
        };
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"What does the fox say?"}}],"model":"{}","max_tokens":64{stream}}}"#,
            self.model
        );
        format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Type: application/json\r\n{}Content-Length: {}\r\n\r\n{body}",
            self.path,
            self.authorization,
            self.headers,
            body.len()
        )
    }

    /// Whether it answers with streams as well.
    pub(super) const fn streams(&self) -> bool {
        self.page.is_none()
    }

    fn processes(&self) -> Vec<Process> {
        let mut all = vec![self.process];
        // The hypervisor's descendants are sandboxes, which take no part in it.
        if self.name != "gateway" {
            all.extend(self.process.descendants());
        }
        all
    }

    /// Resident memory of all its processes; what they share counts for each.
    pub(super) fn rss_mib(&self) -> f64 {
        let kib = |process: Process| {
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).ok()?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let all: f64 = self.processes().into_iter().filter_map(kib).sum();
        (all / 102.4).round() / 10.0
    }

    /// Processor time so far, of all its processes.
    pub(super) fn ticks(&self) -> Duration {
        let ticks: u64 = self
            .processes()
            .into_iter()
            .filter_map(|process| Some(process.usage()?.cpu_ticks))
            .sum();
        Duration::from_millis(ticks * 1000 / TICKS)
    }
}

/// A model provider in a process of its own.
pub(super) struct Upstream {
    /// Its only model, and its name as a provider.
    model: &'static str,
    port: u16,
    running: Running,
    /// Who vouches for its certificate, when it speaks TLS.
    authority: Option<PathBuf>,
    /// The platform key: with one, every byte of a reply is searched for it.
    key: NamedTempFile,
}

impl Upstream {
    /// Starts one; over TLS with a certificate for `localhost`.
    pub(super) fn start(model: &'static str, tls: Option<&Authority>) -> Self {
        let mut key = NamedTempFile::new().expect("a file");
        writeln!(key, "{MASTER_KEY}").expect("a file");
        let mut child = Command::new(std::env::current_exe().expect("our own path"))
            .arg("upstream")
            .args(tls.into_iter().flat_map(|tls| [tls.chain(), tls.key()]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the upstream starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("a line");
        Self {
            model,
            port: line.trim().parse().expect("a port"),
            running: Running(child),
            authority: tls.map(Authority::authority),
            key,
        }
    }

    /// A hypervisor's configuration with these as providers, and every bound on, each above
    /// what the load comes to.
    pub(super) fn config(all: &[&Self]) -> String {
        let bounds = "requests_per_minute = 1000000\ntokens_per_minute = 1000000000000\nconcurrent = 1024\n\
                      daily_budget = 100000.0\nmonthly_budget = 1000000.0\n";
        let mut config = format!("[gateway.sandbox]\n{bounds}[gateway.user]\n{bounds}");
        for Self {
            model,
            port,
            authority,
            key,
            ..
        } in all
        {
            let key = key.path();
            let base = match authority {
                None => format!("base_url = \"http://127.0.0.1:{port}/v1\""),
                Some(file) => {
                    format!("base_url = \"https://localhost:{port}/v1\"\nca_file = {file:?}")
                }
            };
            config += &format!(
                "[[providers]]\nname = \"{model}\"\nkind = \"openai\"\n{base}\n\
                 key_file = {key:?}\nmodels = [\"{model}\"]\nprices = {{ {model} = {{ input = 0.1, output = 0.2 }} }}\n\
                 addresses = \"private_network_too\"\n[providers.limits]\n{bounds}"
            );
        }
        config
    }

    /// Called without anybody in between.
    pub(super) fn place(&self) -> Place {
        self.behind("upstream", Address::Tcp(self.port), None)
    }

    fn behind(&self, name: &'static str, address: Address, running: Option<Running>) -> Place {
        let pid = running.as_ref().unwrap_or(&self.running).0.id();
        Place {
            name,
            address,
            path: "/v1/chat/completions",
            model: self.model,
            authorization: format!("Bearer {MASTER_KEY}"),
            headers: String::new(),
            page: None,
            process: Process::of(pid).expect("it runs"),
            second: None,
            _running: running,
        }
    }

    /// nginx on Unix sockets, as the gateway is, with as many workers as cores: in front of
    /// this upstream, and in front of another one for a neighbour.
    pub(super) fn nginx(&self, other: &Self, scratch: &Path) -> (Place, Place) {
        let dir = nginx::directory(scratch, "nginx");
        let socket = |of: &Self| dir.join(format!("{}.sock", of.model));
        let server = |of: &Self| {
            format!(
                "upstream {model} {{ server 127.0.0.1:{port}; keepalive 128; keepalive_requests 1000000000; }}\n\
                 server {{ listen unix:{socket}; location / {{\n\
                   proxy_pass http://{model}; proxy_http_version 1.1; proxy_buffering off;\n\
                   proxy_set_header Connection \"\"; }} }}\n",
                model = of.model,
                port = of.port,
                socket = socket(of).display(),
            )
        };
        nginx::configure(&dir, &format!("{}{}", server(self), server(other)));
        let running = nginx::start(&dir).expect("nginx is installed");
        wait::until_blocking("nginx", || {
            (socket(self).exists() && socket(other).exists()).then_some(())
        });
        let place = self.behind("nginx", Address::Unix(socket(self)), Some(running));
        let mut neighbour = other.behind("nginx", Address::Unix(socket(other)), None);
        neighbour.process = place.process;
        (place, neighbour)
    }

    /// LiteLLM's proxy, when it is installed.
    pub(super) fn litellm(&self, scratch: &Path) -> Option<Place> {
        let file = scratch.join("litellm.yaml");
        let config = format!(
            "model_list:\n  - model_name: bench\n    litellm_params:\n      model: openai/bench\n      \
             api_base: http://127.0.0.1:{}/v1\n      api_key: none\n",
            self.port
        );
        fs::write(&file, config).expect("a file");
        let port = installation::free_port();
        let mut command = Command::new("litellm");
        command
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .arg("--config")
            .arg(&file)
            .env("LITELLM_MASTER_KEY", MASTER_KEY)
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
        let Some(running) = peer(&mut command, port) else {
            eprintln!(
                "LiteLLM is left out: no `litellm` on PATH that starts (pip install 'litellm[proxy]')"
            );
            return None;
        };
        Some(self.behind("litellm", Address::Tcp(port), Some(running)))
    }

    /// Portkey's gateway, when it is installed.
    pub(super) fn portkey(&self, scratch: &Path) -> Option<Place> {
        let how = "npm install @portkey-ai/gateway, and PORTKEY_GATEWAY = its directory";
        let Some(dir) = std::env::var_os("PORTKEY_GATEWAY").map(PathBuf::from) else {
            eprintln!("Portkey is left out: {how}");
            return None;
        };
        let before = scratch.join("portkey.mjs");
        fs::write(&before, PORTKEY_FETCH).expect("a file");
        let port = installation::free_port();
        let mut command = Command::new("node");
        command
            .arg("--import")
            .arg(&before)
            .arg(dir.join("build/start-server.js"))
            .args([&format!("--port={port}"), "--headless"]);
        let Some(running) = peer(&mut command, port) else {
            eprintln!("Portkey is left out: `node` or it does not start ({how})");
            return None;
        };
        let mut place = self.behind("portkey", Address::Tcp(port), Some(running));
        place.headers = format!(
            "x-portkey-provider: openai\r\nx-portkey-custom-host: http://127.0.0.1:{}/v1\r\n",
            self.port
        );
        Some(place)
    }
}

/// A peer, once it listens. `None` when it ends before that, or is not there at all.
fn peer(command: &mut Command, port: u16) -> Option<Running> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let listens = wait::until_blocking("a peer", || {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(true);
        }
        matches!(child.try_wait(), Ok(Some(_))).then_some(false)
    });
    listens.then_some(Running(child))
}
