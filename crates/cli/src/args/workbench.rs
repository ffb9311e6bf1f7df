//! Arguments of what concerns a sandbox's workbench: services and ports.

use clap::{Args, Subcommand};
use types::{NetworkMode, Role};

use super::{Of, network, role, variable};

/// `choir service …`.
#[derive(Debug, Subcommand)]
pub enum Service {
    /// List services, those that ended lately included.
    #[command(after_help = "Examples:\n  choir service list\n  choir service list dev --json")]
    List {
        /// Which sandbox.
        #[command(flatten)]
        of: Of,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Start a command that goes on by itself.
    #[command(
        after_help = "It runs until it ends, is stopped, or its sandbox stops; a restart of the hypervisor leaves it\n\
running. A server in it is reached with `choir port open` or `choir port forward`.\n\n\
Examples:\n  choir service start -- python3 -m http.server 3000\n  \
choir service start --role dev --name web --cwd app -- npm run dev"
    )]
    Start(StartService),
    /// Stop a service and everything it started.
    #[command(
        after_help = "It is asked to end, and killed when it has not after five seconds.\n\n\
Examples:\n  choir service stop web\n  choir service stop 5c01d3f2 --role dev --kill"
    )]
    Stop {
        /// Its name, or its id as `list` shows it.
        #[arg(value_name = "SERVICE")]
        service: String,
        /// live or dev.
        #[arg(long, default_value = "live", value_parser = role)]
        role: Role,
        /// Kills it at once.
        #[arg(long)]
        kill: bool,
    },
    /// Print what a service writes.
    #[command(
        after_help = "Examples:\n  choir service logs web\n  choir service logs -f web --role dev"
    )]
    Logs {
        /// Its name, or its id as `list` shows it.
        #[arg(value_name = "SERVICE")]
        service: String,
        /// live or dev.
        #[arg(long, default_value = "live", value_parser = role)]
        role: Role,
        /// Keeps printing what is added.
        #[arg(short, long)]
        follow: bool,
    },
}

/// `choir service start`.
#[derive(Debug, Args)]
pub struct StartService {
    /// live or dev.
    #[arg(long, default_value = "live", value_parser = role)]
    pub role: Role,
    /// What to call it; by default its program's name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Working directory beneath /workspace.
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Adds a variable to its environment.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// What it may reach: none, allowlist or open. The installation says what it is by default.
    #[arg(long, value_name = "MODE", value_parser = network)]
    pub network: Option<NetworkMode>,
    /// Grants it a capability, such as provider:call.
    #[arg(long = "grant", value_name = "CAPABILITY")]
    pub capabilities: Vec<String>,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

/// `choir port …`.
#[derive(Debug, Subcommand)]
pub enum Port {
    /// List the ports on which a sandbox's commands listen.
    #[command(after_help = "Examples:\n  choir port list\n  choir port list dev --json")]
    List {
        /// Which sandbox.
        #[command(flatten)]
        of: Of,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Reach a sandbox's ports under ports of this machine.
    #[command(
        after_help = "Listens on 127.0.0.1 only, until Ctrl-C. Every connection goes through the control plane with\n\
this machine's token, whatever it speaks. Whoever can connect to the local port reaches the\n\
server without a token.\n\n\
Examples:\n  choir port forward 3000\n  choir port forward 5432:15432 --role dev\n  \
choir port forward 3000:0 8080"
    )]
    Forward {
        /// A port of the sandbox, and where to listen here if it is another; 0 is any free one.
        #[arg(required = true, value_name = "PORT[:LOCAL]", value_parser = forward)]
        ports: Vec<Forward>,
        /// live or dev.
        #[arg(long, default_value = "live", value_parser = role)]
        role: Role,
        /// Prints one line of JSON for each port once it listens.
        #[arg(long)]
        json: bool,
    },
    /// Open a port in the browser, at an address of its own.
    #[command(
        after_help = "Examples:\n  choir port open 3000\n  choir port open 5173 --role dev --print"
    )]
    Open {
        /// The port.
        #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// live or dev.
        #[arg(long, default_value = "live", value_parser = role)]
        role: Role,
        /// Only prints the address.
        #[arg(long, conflicts_with = "json")]
        print: bool,
        /// Prints JSON, and opens nothing.
        #[arg(long)]
        json: bool,
    },
}

/// One port to forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// In the sandbox, at least 1.
    pub port: u16,
    /// Here; 0 is any free one.
    pub local: u16,
}

fn forward(text: &str) -> Result<Forward, String> {
    let number = |text: &str| text.parse::<u16>().ok();
    let (port, local) = match text.split_once(':') {
        Some((port, local)) => (number(port), number(local)),
        None => (number(text), number(text)),
    };
    match (port, local) {
        (Some(port), Some(local)) if port > 0 => Ok(Forward { port, local }),
        _ => Err("expected PORT or PORT:LOCAL, such as 3000 or 3000:8080".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Forward, forward};

    #[test]
    fn a_forward_names_one_port_or_two() {
        let port = |port, local| Ok(Forward { port, local });
        assert_eq!(forward("3000"), port(3000, 3000));
        assert_eq!(forward("3000:8080"), port(3000, 8080));
        assert_eq!(forward("3000:0"), port(3000, 0));
        for text in ["", "0", "0:1", "x", "1:", ":1", "65536", "1:2:3", "-1"] {
            assert!(forward(text).is_err(), "{text}");
        }
    }
}
