//! The arguments, as clap reads them. Each command has examples.

pub mod snapshots;
mod workbench;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use types::{NetworkMode, Role, UserName};

pub use workbench::{Forward, Port, Service, StartService};

/// The command line of ChoirOS: sign in, manage your sandboxes, run commands in them.
#[derive(Debug, Parser)]
#[command(
    name = "choir",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage; `choir run` passes on its command's code.\n\n\
Examples:\n  choir login\n  choir sandbox list\n  choir run -- cargo test\n  choir sandbox swap"
)]
pub struct Arguments {
    /// The control plane; by default $CHOIR_SERVER, the one signed in to last, or
    /// http://localhost:9090.
    #[arg(long, global = true, help_heading = "Connection", value_name = "URL")]
    pub server: Option<String>,
    /// Reads the API token from this file, or from standard input if it is `-`; by default
    /// from $CHOIR_TOKEN_FILE, or from where `choir login` keeps it.
    #[arg(long, global = true, help_heading = "Connection", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sign in by approving this machine in the browser.
    #[command(
        after_help = "Prints a code and a link. Compare the code in the browser, choose what this machine may\n\
do, and approve. The token is kept in $XDG_CONFIG_HOME/choir/credentials.toml, for its owner\n\
only. With --token-file a token made in the console is kept instead.\n\n\
Examples:\n  choir login\n  choir login --server https://choir.example.com\n  \
choir login --token-file - < token.txt"
    )]
    Login {
        /// Does not try to open a browser.
        #[arg(long)]
        no_browser: bool,
    },
    /// Sign out: revoke this machine's token and forget it.
    #[command(after_help = "Example:\n  choir logout")]
    Logout,
    /// Show who is signed in.
    #[command(after_help = "Examples:\n  choir whoami\n  choir whoami --json")]
    Whoami {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// List, start, stop, restart and swap sandboxes, and read their logs.
    #[command(
        subcommand,
        after_help = "Examples:\n  choir sandbox list\n  choir sandbox restart dev\n  choir sandbox swap\n  \
choir sandbox logs -f dev"
    )]
    Sandbox(Sandbox),
    /// Run a command in a sandbox.
    #[command(
        after_help = "Output appears as it comes. Ctrl-C interrupts the command, a second Ctrl-C kills it. What is\n\
piped in becomes its standard input: text of at most 1 MiB.\n\n\
A limit that it met is named at its end; what it may have without asking, the operator decides.\n\n\
Exit codes: the command's; 124 when its time ran out, 127 when it could not be started, 128 plus\n\
the signal's number when a signal ended it, 1 when something else failed.\n\n\
Examples:\n  choir run -- cargo test\n  choir run --role dev --cwd app --timeout 60 -- npm test\n  choir run --network allowlist -- cargo fetch\n  \
choir run --memory 512M --cpus 1 --processes 64 -- make\n  \
echo 'print(6 * 7)' | choir run -- python3 -\n  choir run --tty -- bash"
    )]
    Run(Run),
    /// List, start, follow and stop services: commands that go on by themselves.
    #[command(
        subcommand,
        after_help = "Examples:\n  choir service start -- python3 -m http.server 3000\n  choir service list\n  \
choir service logs -f python3\n  choir service stop python3"
    )]
    Service(Service),
    /// List, open and forward the ports on which a sandbox's commands listen.
    #[command(
        subcommand,
        after_help = "Examples:\n  choir port list\n  choir port open 3000\n  choir port forward 3000:8080 --role dev"
    )]
    Port(Port),
    /// Show and change what commands may reach, and see what was refused.
    #[command(
        subcommand,
        after_help = "A command gets a network mode with `choir run --network`: none, allowlist (names that the\n\
rules allow) or open (every public address). Rules are for administrators to change.\n\n\
Examples:\n  choir network rules\n  choir network allow '*.crates.io'\n  choir network denials"
    )]
    Network(Network),
    /// Show what model calls took, in tokens and in money.
    #[command(
        after_help = "Money is counted by the prices in the hypervisor's configuration.\n\n\
Examples:\n  choir usage\n  choir usage --by day --days 7\n  choir usage --all --by user --json"
    )]
    Usage(Usage),
    /// List, test and add model providers; for admins.
    #[command(
        subcommand,
        after_help = "Examples:\n  choir provider list\n  choir provider test anthropic\n  \
choir provider add ollama --kind openai --base-url http://127.0.0.1:11434/v1 \\\n      \
--model llama3 --private-network --config /etc/choir/choir.toml"
    )]
    Provider(Provider),
    /// List accounts, disable and enable them; for admins.
    #[command(
        subcommand,
        after_help = "Examples:\n  choir user list\n  choir user disable bob --note \"laptop stolen\"\n  \
choir user enable bob"
    )]
    User(User),
    /// Read and verify the audit log.
    #[command(
        subcommand,
        after_help = "Examples:\n  choir audit tail -n 20\n  choir audit verify --dir /var/lib/choir/audit"
    )]
    Audit(Audit),
    /// Open a sandbox in the browser, or print its address.
    #[command(
        after_help = "Examples:\n  choir open\n  choir open dev\n  choir open --print | xargs curl -I"
    )]
    Open {
        /// Which.
        #[command(flatten)]
        of: Of,
        /// Only prints the address.
        #[arg(long)]
        print: bool,
    },
    /// Check whether this machine can run sandboxes.
    #[command(
        after_help = "Asks `hypervisor doctor`, which is found next to this program.\n\n\
Examples:\n  choir doctor\n  choir doctor --json"
    )]
    Doctor {
        /// The hypervisor's configuration file.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a script that completes this command line in a shell.
    #[command(
        after_help = "Examples:\n  choir completions bash > /etc/bash_completion.d/choir\n  \
choir completions fish > ~/.config/fish/completions/choir.fish"
    )]
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// `choir sandbox …`.
#[derive(Debug, Subcommand)]
pub enum Sandbox {
    /// List your sandboxes.
    #[command(after_help = "Examples:\n  choir sandbox list\n  choir sandbox list --all --json")]
    List {
        /// Everybody's; for admins.
        #[arg(long)]
        all: bool,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Start a sandbox and wait until it is healthy.
    #[command(
        after_help = "Examples:\n  choir sandbox start\n  choir sandbox start dev --user bob"
    )]
    Start(One),
    /// Stop a sandbox and every command in it.
    #[command(
        after_help = "Examples:\n  choir sandbox stop dev\n  choir sandbox stop live --user bob"
    )]
    Stop(One),
    /// Stop a sandbox and start it again.
    #[command(after_help = "Example:\n  choir sandbox restart dev")]
    Restart(One),
    /// Make dev live and live dev, once dev has proved healthy.
    #[command(
        after_help = "For a while the new live is on trial: if it crashes or stops answering and the old one is\n\
healthy, the swap is taken back by itself. A second swap takes the first one back by hand.\n\n\
Exit code with --wait: 0 when the swap stands, 1 when the new live failed.\n\n\
Examples:\n  choir sandbox swap\n  choir sandbox swap --wait\n  choir sandbox swap --user bob --json"
    )]
    Swap(Swap),
    /// Take a snapshot of a sandbox's files; it goes on meanwhile.
    #[command(
        after_help = "The sandbox stands still only while the last changes are copied, so its databases are whole.\n\
Ctrl-C cancels.\n\n\
Examples:\n  choir sandbox snapshot\n  choir sandbox snapshot dev --name \"before the upgrade\"\n  \
choir sandbox snapshot --known-good --json"
    )]
    Snapshot(snapshots::Snapshot),
    /// List, mark, rename and delete snapshots.
    #[command(
        subcommand,
        after_help = "Examples:\n  choir sandbox snapshots list\n  choir sandbox snapshots mark 8f3c21aa90b1"
    )]
    Snapshots(snapshots::Snapshots),
    /// Put a snapshot in the place of a sandbox's files.
    #[command(
        after_help = "What is there now is kept as a snapshot itself. A running sandbox is stopped for a moment and\n\
started again. Without an id it is the latest snapshot that is marked as known good.\n\n\
Examples:\n  choir sandbox restore\n  choir sandbox restore 8f3c21aa90b1\n  \
choir sandbox restore \"before the upgrade\" --role dev --yes"
    )]
    Restore(snapshots::Restore),
    /// Make dev a copy of live.
    #[command(
        after_help = "live goes on meanwhile. What dev was is kept as a snapshot of dev.\n\n\
Examples:\n  choir sandbox clone\n  choir sandbox clone --yes --json"
    )]
    Clone(snapshots::Clone),
    /// Say in plain words what a sandbox may do, and why something was denied.
    #[command(
        after_help = "Examples:\n  choir sandbox explain\n  choir sandbox explain dev --json"
    )]
    Explain {
        /// Which.
        #[command(flatten)]
        of: Of,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print what a sandbox's guest runtime logs.
    #[command(after_help = "Examples:\n  choir sandbox logs\n  choir sandbox logs -f dev")]
    Logs {
        /// Which.
        #[command(flatten)]
        of: Of,
        /// Keeps printing what is added.
        #[arg(short, long)]
        follow: bool,
    },
}

/// A role, as an argument or as an option, so that `--role` works wherever there is one.
#[derive(Debug, Args)]
pub struct Of {
    /// live or dev; live by default.
    #[arg(value_parser = role, value_name = "ROLE")]
    argument: Option<Role>,
    /// The same.
    #[arg(long = "role", value_parser = role, value_name = "ROLE", hide = true, conflicts_with = "argument")]
    option: Option<Role>,
}

impl Of {
    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.argument.or(self.option).unwrap_or(Role::Live)
    }
}

/// `choir sandbox swap`.
#[derive(Debug, Args)]
pub struct Swap {
    /// Somebody else's; for admins.
    #[arg(long, value_name = "NAME", value_parser = user)]
    pub user: Option<UserName>,
    /// Leaves the new live in place, whatever happens to it.
    #[arg(long)]
    pub no_rollback: bool,
    /// Waits until the swap stands or was taken back.
    #[arg(long)]
    pub wait: bool,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// One sandbox.
#[derive(Debug, Args)]
pub struct One {
    /// Which.
    #[command(flatten)]
    pub of: Of,
    /// Somebody else's; for admins.
    #[arg(long, value_name = "NAME", value_parser = user)]
    pub user: Option<UserName>,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// `choir run`.
#[derive(Debug, Args)]
pub struct Run {
    /// live or dev.
    #[arg(long, default_value = "live", value_parser = role)]
    pub role: Role,
    /// Working directory beneath /workspace.
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Kills it after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub timeout: Option<u64>,
    /// Holds it to this much memory, such as 512M; ends it where it needs more.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Holds it to this many cores, such as 0.5.
    #[arg(long, value_name = "CORES", value_parser = cores)]
    pub cpus: Option<u32>,
    /// Holds it to this many processes and threads.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub processes: Option<u32>,
    /// Adds a variable to its environment.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Grants it a capability, such as provider:call.
    #[arg(long = "grant", value_name = "CAPABILITY")]
    pub capabilities: Vec<String>,
    /// What it may reach: none, allowlist or open. The installation says what it is by default.
    #[arg(long, value_name = "MODE", value_parser = network)]
    pub network: Option<NetworkMode>,
    /// Runs it in a terminal, this one: for shells, editors and whatever asks questions.
    #[arg(short, long, conflicts_with = "no_stdin")]
    pub tty: bool,
    /// Gives it no standard input, whatever this program's is.
    #[arg(short = 'n', long)]
    pub no_stdin: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

/// `choir network …`.
#[derive(Debug, Subcommand)]
pub enum Network {
    /// List the allowlist, and the modes that commands may have.
    #[command(after_help = "Examples:\n  choir network rules\n  choir network rules --json")]
    Rules {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Add a rule to the allowlist; for administrators.
    #[command(
        after_help = "A rule is a name, or *.name for everything beneath it, and optionally a port; without one\n\
it is good for 443 and 80.\n\n\
Examples:\n  choir network allow crates.io\n  choir network allow '*.crates.io' --note 'cargo'\n  \
choir network allow git.example.com:8443"
    )]
    Allow {
        /// The rule.
        rule: String,
        /// What it is for.
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take a rule off the allowlist and close what only it allowed; for administrators.
    #[command(
        after_help = "Examples:\n  choir network deny crates.io\n  choir network deny '*.crates.io'"
    )]
    Deny {
        /// The rule, as `choir network rules` writes it.
        rule: String,
    },
    /// List the connections of your commands that were refused, and what would allow them.
    #[command(
        after_help = "Examples:\n  choir network denials\n  choir network denials --role dev --json"
    )]
    Denials {
        /// live or dev; both by default.
        #[arg(long, value_parser = role)]
        role: Option<Role>,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `choir usage`.
#[derive(Debug, Args)]
pub struct Usage {
    /// What to add up by.
    #[arg(long, value_enum, default_value = "model")]
    pub by: UsageBy,
    /// Days up to today.
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3660))]
    pub days: u32,
    /// Everybody's; for admins.
    #[arg(long)]
    pub all: bool,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// What usage is added up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum UsageBy {
    /// Provider and model.
    Model,
    /// Day (UTC).
    Day,
    /// Sandbox.
    Sandbox,
    /// Provider.
    Provider,
    /// User, with --all.
    User,
}

impl UsageBy {
    /// As the server names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Day => "day",
            Self::Sandbox => "sandbox",
            Self::Provider => "provider",
            Self::User => "user",
        }
    }

    /// The title of its column.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Model => "MODEL",
            Self::Day => "DAY",
            Self::Sandbox => "SANDBOX",
            Self::Provider => "PROVIDER",
            Self::User => "USER",
        }
    }
}

/// `choir provider …`.
#[derive(Debug, Subcommand)]
pub enum Provider {
    /// List the configured providers.
    #[command(after_help = "Examples:\n  choir provider list\n  choir provider list --json")]
    List {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make one real call and say what is wrong, if something is.
    #[command(
        after_help = "The call costs what a call of one word costs. Exit code 1 when it failed.\n\n\
Examples:\n  choir provider test anthropic\n  choir provider test openai --model gpt-4o-mini --json"
    )]
    Test {
        /// Which.
        #[arg(value_name = "NAME")]
        name: String,
        /// A model other than its default one.
        #[arg(long)]
        model: Option<String>,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Add a provider to the configuration of the hypervisor on this machine.
    #[command(
        after_help = "The result is checked with `hypervisor check-config` before it replaces the file.\n\n\
Examples:\n  choir provider add anthropic --kind anthropic --base-url https://api.anthropic.com \\\n      \
--model claude-sonnet-4-5 --key-file - --config /etc/choir/choir.toml < key.txt"
    )]
    Add(AddProvider),
}

/// `choir user …`.
#[derive(Debug, Subcommand)]
pub enum User {
    /// List the accounts.
    #[command(after_help = "Examples:\n  choir user list\n  choir user list --json")]
    List {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Disable an account: cut off whatever goes on in its name, and let nobody sign in as it.
    #[command(
        after_help = "Ends its sessions, API tokens and open invitations and stops its sandboxes; model calls and\n\
network connections under way are cut at once. Files, passkeys and recovery codes stay.\n\n\
Example:\n  choir user disable bob --note \"laptop stolen\""
    )]
    Disable {
        /// Whose.
        #[arg(value_name = "NAME")]
        name: UserName,
        /// Why, for other administrators.
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Enable an account again: its owner may sign in; nothing is started.
    #[command(after_help = "Example:\n  choir user enable bob")]
    Enable {
        /// Whose.
        #[arg(value_name = "NAME")]
        name: UserName,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `choir provider add`.
#[derive(Debug, Args)]
pub struct AddProvider {
    /// Its name in the gateway's paths: a-z, 0-9 and -.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// openai (which vLLM and Ollama speak too), anthropic, gemini or bedrock.
    #[arg(long)]
    pub kind: String,
    /// Where its API lives.
    #[arg(long, value_name = "URL")]
    pub base_url: String,
    /// A file with its key; `-` keeps the key that is piped in next to the configuration.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// A model that may be named; repeat it for more. The first is its default.
    #[arg(long = "model", required = true, value_name = "MODEL")]
    pub models: Vec<String>,
    /// Allows private and loopback addresses: for a model server of your own.
    #[arg(long)]
    pub private_network: bool,
    /// Makes it the provider of runs that name none.
    #[arg(long)]
    pub default: bool,
    /// The hypervisor's configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/choir/choir.toml")]
    pub config: PathBuf,
}

/// `choir audit …`.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Print the last records.
    #[command(
        after_help = "Examples:\n  choir audit tail\n  choir audit tail -n 100 --json\n  choir audit tail -f\n  \
choir audit tail --dir /var/lib/choir/audit"
    )]
    Tail {
        /// How many.
        #[arg(short = 'n', long = "lines", default_value_t = 10, value_name = "N",
              value_parser = clap::value_parser!(u64).range(0..=10_000))]
        count: u64,
        /// Keeps printing what is added.
        #[arg(short, long)]
        follow: bool,
        /// Reads the log's files in this directory instead of asking the server.
        #[arg(long, value_name = "DIR", conflicts_with = "follow")]
        dir: Option<PathBuf>,
        /// Prints one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Verify the whole log and name the first record that was tampered with.
    #[command(
        after_help = "With --dir the files are verified without the hypervisor, by this program alone.\n\n\
Examples:\n  choir audit verify\n  choir audit verify --dir /var/lib/choir/audit --json"
    )]
    Verify {
        /// Verifies the log's files in this directory instead of asking the server.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
}

fn role(text: &str) -> Result<Role, String> {
    text.parse()
        .map_err(|error: types::ParseRoleError| error.to_string())
}

fn network(text: &str) -> Result<NetworkMode, String> {
    text.parse()
        .map_err(|error: types::ParseNetworkModeError| error.to_string())
}

fn user(text: &str) -> Result<UserName, String> {
    text.parse()
        .map_err(|error: types::UserNameError| error.to_string())
}

fn size(text: &str) -> Result<u64, String> {
    types::parse_bytes(text)
        .ok_or_else(|| "expected a size, such as 512M, 2G or a number of bytes".to_owned())
}

/// Cores as thousandths of one.
fn cores(text: &str) -> Result<u32, String> {
    let cores: f64 = text
        .parse()
        .ok()
        .filter(|cores| (0.01..=1024.0).contains(cores))
        .ok_or_else(|| "expected a number of cores from 0.01 to 1024, such as 1.5".to_owned())?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 10 and 1,024,000"
    )]
    Ok((cores * 1000.0).round() as u32)
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}
