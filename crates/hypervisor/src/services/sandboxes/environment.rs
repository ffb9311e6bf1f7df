//! The environment contract (arch §5): everything starts empty, and this is what is put in.

use types::{NetworkMode, Role, SandboxId, UserId};

use crate::config::{Config, ProviderKind};

/// Where the guest finds the gateway: its relay on loopback.
const GUEST_GATEWAY: &str = "http://127.0.0.1:9090";

/// The same for a runner, whose relay has a port of its own.
const RUNNER_GATEWAY: &str = "http://127.0.0.1:{port}";

/// Programs in the owner's own `HOME` that come before all others, `codex` to begin with
/// (`docs/agents.md`).
const OWN_PROGRAMS: &str = "/home/choir/.choir/bin";

/// What programs connect to themselves: the workbench's own loopback.
const NOT_PROXIED: &str = "localhost,127.0.0.1,::1";

/// Whose environment it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) sandbox: SandboxId,
    pub(crate) user: UserId,
    /// The role at start; informative only.
    pub(crate) role: Role,
}

type Variables = Vec<(String, String)>;

/// The guest's whole environment. Holds the gateway token: never log it.
pub(crate) fn of_guest(config: &Config, identity: Identity, token: &str) -> Variables {
    let mut variables = shared(config, identity);
    variables.push(network_disabled());
    let fixed = [
        ("DATABASE_URL", "sqlite:///var/lib/choir/events.db"),
        ("SQLX_OFFLINE", "true"),
        ("RUST_LOG", "info"),
    ];
    variables.extend(fixed.map(|(name, value)| (name.to_owned(), value.to_owned())));
    variables.extend(gateway(config, GUEST_GATEWAY));
    variables.extend(tokens(config, token));
    variables
}

/// A runner's environment without what was asked for with the command.
pub(crate) fn of_runner(config: &Config, identity: Identity, network: NetworkMode) -> Variables {
    let mut variables = shared(config, identity);
    if let Some((_, path)) = variables.iter_mut().find(|(name, _)| name == "PATH") {
        *path = format!("{OWN_PROGRAMS}:{path}");
    }
    if network == NetworkMode::None {
        variables.push(network_disabled());
    }
    variables
}

/// What a runner with a network mode has besides: the usual variables by which programs find
/// a proxy, both spellings of each because there is no agreement. The proxy is the relay of
/// the runner's channel; it asks for no credentials.
pub(crate) fn of_runner_network() -> Variables {
    let proxied = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"]
        .map(|name| (name.to_owned(), RUNNER_GATEWAY.to_owned()));
    let fixed = [
        ("NO_PROXY", NOT_PROXIED),
        ("no_proxy", NOT_PROXIED),
        // Node's own `fetch` looks at the variables above only when told so (22.21, 24).
        ("NODE_USE_ENV_PROXY", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    proxied.into_iter().chain(fixed).collect()
}

/// What a runner with `provider:call` has besides; `{port}` is put in by its supervisor.
pub(crate) fn of_runner_gateway(config: &Config, token: &str) -> Variables {
    let mut variables: Variables = gateway(config, RUNNER_GATEWAY).collect();
    variables.extend(tokens(config, token));
    variables
}

fn shared(config: &Config, identity: Identity) -> Variables {
    let pairs = [
        ("PATH", config.sandbox.path.clone()),
        ("HOME", "/home/choir".to_owned()),
        ("USER", "choir".to_owned()),
        ("SHELL", "/bin/bash".to_owned()),
        ("TERM", "xterm-256color".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("CHOIR_SANDBOX_ID", identity.sandbox.to_string()),
        ("CHOIR_SANDBOX_USER_ID", identity.user.to_string()),
        ("CHOIR_SANDBOX_ROLE", identity.role.to_string()),
    ];
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// There is no network but loopback; Codex and its like ask for this variable (arch §5).
fn network_disabled() -> (String, String) {
    ("CODEX_SANDBOX_NETWORK_DISABLED".to_owned(), "1".to_owned())
}

fn gateway<'a>(config: &'a Config, origin: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
    let base = (
        "CHOIR_PROVIDER_GATEWAY_BASE_URL".to_owned(),
        format!("{origin}/provider/v1"),
    );
    let stock = stock_sdks(config)
        .map(move |(vendor, path)| (format!("{vendor}_BASE_URL"), format!("{origin}{path}")));
    std::iter::once(base).chain(stock)
}

fn tokens<'a>(config: &'a Config, token: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
    let ours = ("CHOIR_PROVIDER_GATEWAY_TOKEN".to_owned(), token.to_owned());
    let stock =
        stock_sdks(config).map(move |(vendor, _)| (format!("{vendor}_API_KEY"), token.to_owned()));
    std::iter::once(ours).chain(stock)
}

/// Vendors whose stock SDKs are pointed at the gateway, with the path that each expects its
/// API at. Empty unless `sandbox.sdk_env` is on; a vendor whose format no provider speaks is
/// left out.
fn stock_sdks(config: &Config) -> impl Iterator<Item = (&'static str, &'static str)> {
    let speaks = |kinds: &[ProviderKind]| {
        let mut providers = config.providers.iter();
        config.sandbox.sdk_env && providers.any(|provider| kinds.contains(&provider.kind))
    };
    let vendors = [
        (
            ("OPENAI", "/v1"),
            speaks(&[ProviderKind::OpenAi, ProviderKind::Demo]),
        ),
        (("ANTHROPIC", ""), speaks(&[ProviderKind::Anthropic])),
    ];
    vendors
        .into_iter()
        .filter_map(|(vendor, spoken)| spoken.then_some(vendor))
}

#[cfg(test)]
mod tests {
    use super::{Identity, of_guest, of_runner, of_runner_gateway, of_runner_network};
    use crate::config::{Config, RawConfig};
    use types::{NetworkMode, Role, SandboxId, UserId, keyless};

    fn identity() -> Identity {
        Identity {
            sandbox: SandboxId::generate(),
            user: UserId::generate(),
            role: Role::Dev,
        }
    }

    fn config(sdk_env: bool) -> Config {
        let variables = [("CHOIR_SANDBOX__SDK_ENV".to_owned(), sdk_env.to_string())];
        Config::build(RawConfig::read(None, variables).unwrap()).unwrap()
    }

    #[test]
    fn a_guest_gets_exactly_the_contract() {
        let token = format!("choirgw_{}", "a".repeat(50));
        let env = of_guest(&config(false), identity(), &token);
        let mut names: Vec<&str> = env.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "CHOIR_PROVIDER_GATEWAY_BASE_URL",
                "CHOIR_PROVIDER_GATEWAY_TOKEN",
                "CHOIR_SANDBOX_ID",
                "CHOIR_SANDBOX_ROLE",
                "CHOIR_SANDBOX_USER_ID",
                "CODEX_SANDBOX_NETWORK_DISABLED",
                "DATABASE_URL",
                "HOME",
                "LANG",
                "PATH",
                "RUST_LOG",
                "SHELL",
                "SQLX_OFFLINE",
                "TERM",
                "USER",
            ]
        );
        assert!(
            env.iter()
                .all(|(name, value)| keyless::credential(name, value).is_none())
        );
    }

    #[test]
    fn a_runner_has_a_token_only_with_the_grant() {
        let plain = of_runner(&config(true), identity(), NetworkMode::None);
        assert!(plain.iter().all(|(name, value)| !name.contains("TOKEN")
            && !name.contains("KEY")
            && !value.contains("choirgw_")));
        let granted = of_runner_gateway(&config(false), "choirgw_x");
        assert!(granted.contains(&(
            "CHOIR_PROVIDER_GATEWAY_BASE_URL".into(),
            "http://127.0.0.1:{port}/provider/v1".into()
        )));
        assert!(granted.contains(&("CHOIR_PROVIDER_GATEWAY_TOKEN".into(), "choirgw_x".into())));
    }

    #[test]
    fn a_runner_is_told_that_it_has_no_network_exactly_when_it_has_none() {
        let told = |network| {
            of_runner(&config(false), identity(), network)
                .iter()
                .any(|(name, _)| name == "CODEX_SANDBOX_NETWORK_DISABLED")
        };
        assert!(told(NetworkMode::None));
        assert!(!told(NetworkMode::Allowlist) && !told(NetworkMode::Open));
        let proxy = of_runner_network();
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"] {
            let value = "http://127.0.0.1:{port}".to_owned();
            assert!(
                proxy.contains(&(name.to_owned(), value)),
                "no token, no user"
            );
        }
        assert!(
            proxy
                .iter()
                .all(|(name, value)| keyless::credential(name, value).is_none())
        );
    }

    #[test]
    fn stock_sdks_are_pointed_at_the_gateway_only_when_asked() {
        let env = of_guest(&config(true), identity(), "choirgw_x");
        assert!(env.contains(&("OPENAI_BASE_URL".into(), "http://127.0.0.1:9090/v1".into())));
        assert!(env.contains(&("OPENAI_API_KEY".into(), "choirgw_x".into())));
        assert!(
            !env.iter().any(|(name, _)| name.starts_with("ANTHROPIC")),
            "no provider speaks its format"
        );
    }
}
