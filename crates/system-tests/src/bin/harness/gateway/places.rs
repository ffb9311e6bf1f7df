//! Who is called: the upstream itself, our gateway, and others in front of it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use system_tests::processes::Process;
use system_tests::{Account, Installation, channel, installation, wait};
use tokio::net::TcpStream;
use types::Role;

use super::client::Stream;
use crate::load::Running;

/// Clock ticks of `/proc/PID/stat` in a second (`USER_HZ`).
const TICKS: u64 = 100;

/// Where somebody listens.
#[derive(Debug)]
enum Address {
    Unix(PathBuf),
    Tcp(u16),
}

/// Somebody who answers model calls.
pub(super) struct Place {
    pub(super) name: &'static str,
    address: Address,
    path: &'static str,
    authorization: String,
    /// Its first process; its descendants count as well.
    process: Process,
    _running: Option<Running>,
}

impl Place {
    /// The gateway, as the sandbox of an account reaches it: over its channel.
    pub(super) async fn gateway(
        installation: &Installation,
        account: &Account,
        hypervisor: Process,
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
            authorization: format!("Bearer {token}"),
            process: hypervisor,
            _running: None,
        }
    }

    /// A call as it goes over the wire.
    pub(super) fn request(&self, streamed: bool) -> Vec<u8> {
        let stream = if streamed {
            r#","stream":true,"stream_options":{"include_usage":true}"#
        } else {
            ""
        };
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":"What does the fox say?"}}],"model":"bench","max_tokens":64{stream}}}"#
        );
        format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.path,
            self.authorization,
            body.len()
        )
        .into_bytes()
    }

    pub(super) async fn connect(&self) -> Box<dyn Stream> {
        match &self.address {
            Address::Unix(path) => Box::new(channel::connect(path).await),
            Address::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))
                    .await
                    .expect("somebody listens");
                stream.set_nodelay(true).expect("TCP_NODELAY");
                Box::new(stream)
            }
        }
    }

    /// Processor time so far, of all its processes.
    pub(super) fn ticks(&self) -> Duration {
        let mut all = vec![self.process];
        // The hypervisor's descendants are sandboxes, which take no part in it.
        if self.name != "gateway" {
            all.extend(self.process.descendants());
        }
        let ticks: u64 = all
            .into_iter()
            .filter_map(|process| Some(process.usage()?.cpu_ticks))
            .sum();
        Duration::from_millis(ticks * 1000 / TICKS)
    }
}

/// The upstream of everybody.
pub(super) struct Upstream {
    port: u16,
    running: Running,
}

impl Upstream {
    pub(super) fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("our own path"))
            .arg("upstream")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the upstream starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("a line");
        Self {
            port: line.trim().parse().expect("a port"),
            running: Running(child),
        }
    }

    /// A hypervisor's configuration with it as the provider, and every bound on.
    pub(super) fn config(&self) -> String {
        format!(
            "[gateway.sandbox]\nrequests_per_minute = 1000000\ntokens_per_minute = 1000000000000\nconcurrent = 512\n\
             daily_budget = 100000.0\nmonthly_budget = 1000000.0\n\
             [gateway.user]\nrequests_per_minute = 1000000\ndaily_budget = 100000.0\n\
             [[providers]]\nname = \"bench\"\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:{}/v1\"\n\
             models = [\"bench\"]\nprices = {{ bench = {{ input = 0.1, output = 0.2 }} }}\n\
             addresses = \"private_network_too\"\n",
            self.port
        )
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
            authorization: "Bearer none".to_owned(),
            process: Process::of(pid).expect("it runs"),
            _running: running,
        }
    }

    /// nginx on a Unix socket, as the gateway is, with as many workers as cores.
    pub(super) fn nginx(&self, scratch: &Path) -> Place {
        let dir = scratch.join("nginx");
        fs::create_dir(&dir).expect("a directory");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        let socket = dir.join("nginx.sock");
        let root = system_tests::identity::caller_is_root();
        let user = if root { "user root;" } else { "" };
        let config = format!(
            "{user} daemon off; worker_processes auto; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n\
               access_log {dir}/access.log;\n\
               client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
               uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
               keepalive_requests 1000000000;\n\
               upstream model {{ server 127.0.0.1:{port}; keepalive 128; keepalive_requests 1000000000; }}\n\
               server {{ listen unix:{socket}; location / {{\n\
                 proxy_pass http://model; proxy_http_version 1.1; proxy_buffering off;\n\
                 proxy_set_header Connection \"\"; }} }}\n\
             }}\n",
            dir = dir.display(),
            socket = socket.display(),
            port = self.port,
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, config).expect("a file");
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .unwrap_or("nginx");
        let child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx starts");
        wait::until_blocking("nginx", || socket.exists().then_some(()));
        self.behind("nginx", Address::Unix(socket), Some(Running(child)))
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
        let child = Command::new("litellm")
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            eprintln!("LiteLLM is not installed (no `litellm` on PATH); it is left out");
            return None;
        };
        wait::until_blocking("LiteLLM", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Some(self.behind("litellm", Address::Tcp(port), Some(Running(child))))
    }
}
