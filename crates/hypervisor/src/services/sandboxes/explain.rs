//! `choir sandbox explain`: what a sandbox may and may not do, and why something was denied.
//! Says what is in force, from the same values that enforce it.

use std::time::Duration;

use policy::Action;
use runtime::spec::OptionalWall;
use types::{
    CommandState, CommandView, ExplainedPoint, ExplainedTopic, NetworkMode, Role,
    SandboxExplanation, UserName, Verdict,
};

use super::limits::{CommandShare, EffectiveLimits, WholeShare};
use super::{Sandboxes, Whose};
use crate::actor::Actor;
use crate::config::{Config, IdleStop, ProviderKind};
use crate::error::Error;

impl Sandboxes {
    /// What a sandbox of the actor's own may do.
    ///
    /// # Errors
    /// The actor may not look at it, or the database failed.
    pub async fn explain(&self, actor: &Actor, role: Role) -> Result<SandboxExplanation, Error> {
        let (owner, route) = self
            .authorize(actor, Whose::Own, role, Action::ViewSandbox)
            .await?;
        let sandbox = route.sandbox(role);
        let state = self.status(sandbox).state;
        // What runs tells why the network is as it is. Without an answer the rest still holds.
        let (commands, counted) = match self.running(sandbox) {
            Some(instance) => (
                instance.runners().await.unwrap_or_default(),
                instance.counts_denials().await.ok(),
            ),
            None => (Vec::new(), None),
        };
        let running: Vec<CommandView> = commands
            .into_iter()
            .map(|runner| runner.view)
            .filter(|view| view.state == CommandState::Running)
            .collect();
        let network = self.plane.networks.effective(sandbox);
        Ok(SandboxExplanation {
            role,
            state,
            network,
            topics: topics(
                &self.plane.config,
                &owner.name,
                role,
                &Now {
                    network,
                    running: &running,
                    rules: self
                        .plane
                        .networks
                        .egress()
                        .rules()
                        .iter()
                        .map(ToString::to_string)
                        .collect(),
                    missing: self.fleet.missing_walls(),
                    counted,
                },
            ),
            denied: self.plane.notices.of(sandbox, role),
        })
    }
}

/// What is so at the moment, whatever the configuration says.
struct Now<'a> {
    network: NetworkMode,
    running: &'a [CommandView],
    /// The allowlist in force: of the configuration, and what administrators added.
    rules: Vec<String>,
    /// The walls that this host does not give.
    missing: Vec<OptionalWall>,
    /// Whether denied system calls are counted, where that is known.
    counted: Option<bool>,
}

fn topics(config: &Config, owner: &UserName, role: Role, now: &Now<'_>) -> Vec<ExplainedTopic> {
    vec![
        files(config),
        networks(config, now),
        commands(config, now.running),
        limits(config, &now.missing),
        reach(config, owner, role),
        agents(config),
        walls(config, now),
    ]
}

fn topic(topic: &str, title: &str, points: Vec<(Verdict, String)>) -> ExplainedTopic {
    ExplainedTopic {
        topic: topic.to_owned(),
        title: title.to_owned(),
        points: points
            .into_iter()
            .map(|(verdict, text)| ExplainedPoint { verdict, text })
            .collect(),
    }
}

fn may(text: impl Into<String>) -> (Verdict, String) {
    (Verdict::May, text.into())
}

fn may_not(text: impl Into<String>) -> (Verdict, String) {
    (Verdict::MayNot, text.into())
}

fn fact(text: impl Into<String>) -> (Verdict, String) {
    (Verdict::Fact, text.into())
}

fn files(config: &Config) -> ExplainedTopic {
    let mut points = vec![
        may("read and write /workspace and /home/choir; both stay when it stops"),
        may("read and write /tmp, in memory and gone when it stops; its commands share it"),
        fact("each command has a /dev/shm of its own"),
        may("read and run the host's programs in /usr, /bin, /lib and /sbin"),
    ];
    for mount in &config.sandbox.mounts {
        points.push(may(format!(
            "read and run what is in {}, which the administrator added",
            mount.target.display()
        )));
    }
    points.push(may_not(
        "see any other file of the host, another user's files, or those of your other sandbox",
    ));
    points.push(may_not(
        "change the host's programs: everything but /workspace, /home/choir, /tmp and /dev/shm is read-only for commands",
    ));
    topic("files", "Files", points)
}

fn networks(config: &Config, now: &Now<'_>) -> ExplainedTopic {
    let network = now.network;
    let egress = &config.network;
    let because: Vec<String> = now
        .running
        .iter()
        .filter(|view| view.network == network && network != NetworkMode::None)
        .map(|view| view.label.clone().unwrap_or_else(|| view.argv.join(" ")))
        .map(|name| name.chars().take(60).collect())
        .take(5)
        .collect();
    let reaches = match network {
        NetworkMode::None => {
            "at the moment it reaches nothing outside: no running command has a network".to_owned()
        }
        mode => format!(
            "at the moment it reaches what the mode {mode} lets through, because of the widest running command: {}",
            because.join(", ")
        ),
    };
    let mut points = vec![
        fact(reaches),
        fact(
            "commands of one sandbox share a loopback, so each can use another's way out: the widest mode counts for all",
        ),
        fact(format!(
            "a command that names no mode has {}; the widest that can be asked for is {} (choir run --network)",
            egress.default, egress.max
        )),
    ];
    if egress.max >= NetworkMode::Allowlist {
        points.push(if now.rules.is_empty() {
            fact("the allowlist is empty")
        } else {
            may(format!(
                "under allowlist, reach {}",
                bounded_list(&now.rules)
            ))
        });
        points.push(may_not(
            "reach addresses of private, loopback, link-local or metadata networks, under any mode",
        ));
        points.push(may(format!(
            "have {} connections to the outside open at once, all its commands together",
            egress.connections
        )));
    }
    points.push(may_not("reach the host's own loopback services"));
    points.push(may_not(
        "receive connections from outside; its servers are reached through the control plane only",
    ));
    topic("network", "Network", points)
}

/// The first few of a list, and how many there are besides.
fn bounded_list(all: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown = all
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn commands(config: &Config, running: &[CommandView]) -> ExplainedTopic {
    let limits = &config.sandbox.limits;
    let services = running
        .iter()
        .filter(|view| view.detach && !view.terminal)
        .count();
    let terminals = running.iter().filter(|view| view.terminal).count();
    let points = vec![
        fact(format!(
            "{} commands run, of which {services} are services and {terminals} terminals",
            running.len()
        )),
        may("run any program as an ordinary user, uid 1000"),
        may("pass anything between commands through /workspace, /tmp and loopback"),
        may_not("trace, signal or read the memory, environment or descriptors of another command"),
        fact(
            "a command ends with whoever started it; a service or a terminal goes on, also when the hypervisor restarts",
        ),
        fact(format!(
            "a command gets {} unless it asks for more, a service or terminal {}; nothing runs longer than {}",
            words(limits.command_wall),
            words(limits.command_wall_max),
            words(limits.command_wall_max)
        )),
        may_not(
            "become root: there are no set-uid programs, no capabilities, and no namespaces of its own",
        ),
    ];
    topic("commands", "Commands", points)
}

fn limits(config: &Config, missing: &[OptionalWall]) -> ExplainedTopic {
    let limits = EffectiveLimits::of(&config.sandbox);
    let idle = match config.sandbox.idle_stop {
        IdleStop::Never => "it is not stopped when nobody uses it".to_owned(),
        IdleStop::After(after) => format!(
            "it is stopped after {} without requests, runs, commands or data on open streams; opening its page starts it again",
            words(after)
        ),
    };
    let share = |share: &CommandShare| {
        format!(
            "{} of memory, {} processes and threads, {}",
            size(share.memory_bytes),
            share.processes,
            cores(share.cpu_millis)
        )
    };
    let whole = |whole: &WholeShare| {
        format!(
            "{} of memory, {} processes and threads, {}, {} on disk in {} files",
            size(whole.memory_bytes),
            whole.processes,
            cores(whole.cpu_millis),
            size(whole.disk_bytes),
            number(whole.disk_entries)
        )
    };
    let mut points = vec![
        fact(format!("each command: {}", share(&limits.command))),
        fact(format!(
            "each command: the first and the last {} of its output, files of at most {}, {} open files per process, so at most {} in all its processes",
            size(limits.command.output_bytes),
            size(limits.command.file_bytes),
            limits.open_files,
            limits.open_files.saturating_mul(limits.command.processes)
        )),
        fact(format!("the runtime itself: {}", share(&limits.guest))),
        fact(format!(
            "this sandbox as a whole: {}",
            whole(&limits.sandbox)
        )),
        fact(format!(
            "your sandboxes together: {}; {} of them may run at the same time",
            whole(&limits.user),
            config.sandbox.limits.running_per_user
        )),
        fact(format!(
            "{} commands at once, {} inotify instances and {} watches",
            limits.commands, limits.inotify_instances, limits.inotify_watches
        )),
        fact(idle),
    ];
    if limits.cgroups_may_be_missing && missing.contains(&OptionalWall::CgroupLimits) {
        points.push((
            Verdict::Warning,
            "this host gives no cgroups: limits of memory and of whole sandboxes and users are not kept (sandbox.accept_missing)".to_owned(),
        ));
    }
    topic("limits", "Limits", points)
}

fn size(number: Option<u64>) -> String {
    number.map_or_else(|| "any amount".to_owned(), bytes)
}

fn number(number: Option<u64>) -> String {
    number.map_or_else(|| "any number of".to_owned(), |number| number.to_string())
}

fn cores(millis: Option<u32>) -> String {
    match millis {
        None => "as much processor time as there is".to_owned(),
        Some(millis) => format!("{}.{:03} cores", millis / 1000, millis % 1000),
    }
}

fn reach(config: &Config, owner: &UserName, role: Role) -> ExplainedTopic {
    let origins = &config.origins;
    let mut points = vec![
        fact(format!(
            "you alone open it, signed in, at {}",
            origins.runtime_url(owner, role)
        )),
        match origins.preview_origin(owner, role, 3000) {
            Some(origin) => fact(format!(
                "a server in it has an address of its own, for port 3000 {origin}/, for you alone (choir port list)"
            )),
            None => fact(format!(
                "ports have no address in the browser: {}",
                origins.why_no_preview().unwrap_or_default()
            )),
        },
        fact(
            "an API token of yours with the scope commands runs commands in it and reaches its ports",
        ),
        fact("an administrator can start, stop and swap it, and not see or run anything in it"),
    ];
    if origins.preview.is_none()
        && matches!(
            origins.runtime,
            crate::config::RuntimeOrigins::SingleHost { .. }
        )
    {
        points.push((
            Verdict::Warning,
            "all users share one host name: two users in one browser profile are not protected from each other's stored scripts".to_owned(),
        ));
    }
    topic("reach", "Who can reach it", points)
}

fn agents(config: &Config) -> ExplainedTopic {
    let providers: Vec<String> = config
        .providers
        .iter()
        .map(|provider| match provider.kind {
            ProviderKind::Demo => format!("{} (an offline demo)", provider.name),
            _ => provider.name.clone(),
        })
        .collect();
    let sdk = if config.sandbox.sdk_env {
        may(
            "be used by stock SDKs as they are: OPENAI_BASE_URL, ANTHROPIC_BASE_URL and their keys point at the gateway",
        )
    } else {
        fact("stock SDKs are not pointed at the gateway (sandbox.sdk_env is off)")
    };
    let points = vec![
        may(format!(
            "call models of {} through the gateway: the runtime, terminals, and commands with the capability provider:call",
            providers.join(", ")
        )),
        may_not("see a provider's key; it has a token of its own that works here and ends with it"),
        sdk,
        fact(
            "Codex's own sandbox needs user namespaces, which are denied here; ~/.codex/config.toml switches it off, and these walls take its place",
        ),
    ];
    topic("agents", "Models and agents", points)
}

fn walls(config: &Config, now: &Now<'_>) -> ExplainedTopic {
    let missing = &now.missing;
    let mut points = vec![
        fact("namespaces of its own: user, mount, pid, network, IPC, host name and cgroup"),
        fact("a read-only root, and Landlock over every file"),
        fact(
            "a list of system calls, a tighter one for commands; whatever is not on it is refused",
        ),
        fact("no capabilities, and no way to new privileges"),
        may_not(
            "make namespaces, mount, load kernel code, use the kernel's keyring, BPF, performance counters or io_uring",
        ),
    ];
    if now.counted == Some(false) {
        points.push((
            Verdict::Warning,
            "denied system calls are refused and not counted on this host, so that none is listed here does not mean that there were none; `hypervisor doctor` says why".to_owned(),
        ));
    }
    for accepted in &config.sandbox.accept_missing {
        let name = match accepted {
            OptionalWall::LandlockScopes => "Landlock's scopes for abstract sockets and signals",
            OptionalWall::CgroupLimits => "limits by control groups",
            OptionalWall::CgroupCpu => "the limit of processor time",
        };
        let without = match accepted {
            OptionalWall::LandlockScopes => "commands can meet on abstract sockets",
            OptionalWall::CgroupLimits => "those of memory and of whole sandboxes are not kept",
            OptionalWall::CgroupCpu => "one sandbox can take as much of it as there is",
        };
        // Without any groups there is none for the processor either.
        let is_missing = missing.contains(accepted)
            || (*accepted == OptionalWall::CgroupCpu
                && missing.contains(&OptionalWall::CgroupLimits));
        points.push(if is_missing {
            (
                Verdict::Warning,
                format!("{name}: missing on this host, so {without} (sandbox.accept_missing)"),
            )
        } else {
            fact(format!(
                "{name}: there, although sandbox.accept_missing would go without"
            ))
        });
    }
    topic("walls", "Walls", points)
}

fn words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (number, unit) = match seconds {
        s if s >= 86_400 && s % 86_400 == 0 => (s / 86_400, "day"),
        s if s >= 3600 && s % 3600 == 0 => (s / 3600, "hour"),
        s if s >= 60 && s % 60 == 0 => (s / 60, "minute"),
        s => (s, "second"),
    };
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural}")
}

fn bytes(number: u64) -> String {
    match number {
        n if n >= 1 << 30 && n % (1 << 30) == 0 => format!("{} GiB", n >> 30),
        n if n >= 1 << 20 && n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n => format!("{n} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use types::{NetworkMode, Role, Verdict};

    use super::{Now, bytes, topics, words};
    use crate::config::{Config, RawConfig};
    use runtime::spec::OptionalWall;
    use std::time::Duration;

    fn explained(variables: &[(&str, &str)]) -> String {
        explained_at(variables, &[], &[])
    }

    fn explained_at(
        variables: &[(&str, &str)],
        rules: &[&str],
        missing: &[OptionalWall],
    ) -> String {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = Config::build(RawConfig::read(None, variables).unwrap()).unwrap();
        let alice = "alice".parse().unwrap();
        let now = Now {
            network: NetworkMode::None,
            running: &[],
            rules: rules.iter().map(ToString::to_string).collect(),
            missing: missing.to_vec(),
            counted: None,
        };
        let topics = topics(&config, &alice, Role::Dev, &now);
        topics
            .iter()
            .flat_map(|topic| &topic.points)
            .map(|point| {
                let sign = match point.verdict {
                    Verdict::May => "+",
                    Verdict::MayNot => "-",
                    Verdict::Fact => " ",
                    Verdict::Warning => "!",
                };
                format!("{sign} {}\n", point.text)
            })
            .collect()
    }

    #[test]
    fn what_the_configuration_says_is_what_is_explained() {
        let text = explained(&[]);
        assert!(
            text.contains("http://3000--dev--alice.localhost:9090/"),
            "{text}"
        );
        assert!(text.contains("+ read and write /workspace"), "{text}");
        assert!(
            text.contains("- trace, signal or read the memory"),
            "{text}"
        );
        assert!(
            text.contains("64 commands at once,") && text.contains("512 processes and threads"),
            "{text}"
        );
        assert!(text.contains("1 hour") && text.contains("4 MiB"), "{text}");
        assert!(
            !text.contains('!'),
            "nothing is given up by default: {text}"
        );
        let variables = [
            ("CHOIR_SANDBOX__ACCEPT_MISSING", "[\"landlock_scopes\"]"),
            ("CHOIR_SANDBOX__MOUNTS", "[{source=\"/etc/ssl\"}]"),
            ("CHOIR_ORIGINS__PREVIEW", "off"),
        ];
        // What holds is said, not what the configuration alone knows of.
        let text = explained_at(&variables, &["crates.io"], &[OptionalWall::LandlockScopes]);
        assert!(
            text.contains("! Landlock's scopes") && text.contains("missing on this host"),
            "{text}"
        );
        let there = explained_at(&variables, &[], &[]);
        assert!(
            !there.contains('!') && there.contains("there, although"),
            "{there}"
        );
        assert!(
            text.contains("/etc/ssl") && text.contains("crates.io"),
            "{text}"
        );
        assert!(text.contains("origins.preview"), "{text}");
    }

    #[test]
    fn sizes_and_times_are_said_in_one_unit() {
        assert_eq!(words(Duration::from_secs(3600)), "1 hour");
        assert_eq!(words(Duration::from_secs(90)), "90 seconds");
        assert_eq!(words(Duration::from_secs(172_800)), "2 days");
        assert_eq!(bytes(4 << 20), "4 MiB");
        assert_eq!(bytes(1000), "1000 bytes");
    }
}
