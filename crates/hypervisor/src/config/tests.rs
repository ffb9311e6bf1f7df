//! What the configuration takes and what it refuses.

use std::collections::BTreeMap;

use super::{Config, ConfigError, HostMatch, ModelCheck, ProviderKind, RawConfig};
use types::Role;

fn build(toml: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("choir.toml");
    std::fs::write(&path, toml).unwrap();
    Config::build(RawConfig::read(Some(&path), Vec::new())?)
}

fn refusal(toml: &str) -> String {
    build(toml).unwrap_err().to_string()
}

#[test]
fn nothing_at_all_fits_localhost() {
    let config = Config::build(RawConfig::read(None, Vec::new()).unwrap()).unwrap();
    assert_eq!(config.origins.control.to_string(), "http://localhost:9090");
    let alice = "alice".parse().unwrap();
    assert_eq!(
        config.origins.runtime_url(&alice, Role::Live),
        "http://alice.localhost:9090/"
    );
    assert_eq!(
        config.origins.runtime_url(&alice, Role::Dev),
        "http://dev--alice.localhost:9090/"
    );
    assert_eq!(config.providers[0].kind, ProviderKind::Demo);
}

#[test]
fn unknown_keys_are_refused_by_name() {
    assert!(refusal("listen.adress = \"x\"").contains("adress"));
    assert!(refusal("nonsense = 1").contains("nonsense"));
}

#[test]
fn a_refusal_names_key_value_and_what_would_be_valid() {
    let text = refusal("listen.address = \"localhost\"");
    assert!(
        text.contains("listen.address")
            && text.contains("localhost")
            && text.contains("127.0.0.1:9090"),
        "{text}"
    );
    let text = refusal("auth.session_idle = \"soon\"");
    assert!(
        text.contains("auth.session_idle") && text.contains("soon") && text.contains("12h"),
        "{text}"
    );
    assert!(refusal("auth.registration = \"maybe\"").contains("closed or open"));
    assert!(refusal("listen.address = 7").contains("listen.address"));
}

#[test]
fn a_value_of_another_type_is_refused_in_the_words_of_the_file() {
    for (toml, words) in [
        ("listen = 3", "expected a table in `listen`"),
        (
            "sandbox.swap = \"on\"",
            "expected a table in `sandbox.swap`",
        ),
        (
            "sandbox.limits.running_per_host = true",
            "a whole number or \"auto\"",
        ),
        (
            "[[providers]]\nname = \"x\"\npaths = [1]",
            "\"[METHOD] PATH\" or a table",
        ),
    ] {
        let text = refusal(toml);
        assert!(text.contains(words) && !text.contains("Raw"), "{text}");
    }
}

#[test]
fn variables_override_the_file() {
    let variables = [
        ("CHOIR_LISTEN__ADDRESS", "127.0.0.1:8080"),
        ("CHOIR_LISTEN__TRUSTED_PROXIES", "[\"10.0.0.0/8\"]"),
        ("CHOIR_ORIGINS__REDIRECT_DEV_PREFIX", "true"),
        ("CHOIR_SANDBOX_ID", "belongs to the contract of a sandbox"),
        ("HOME", "/root"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::build(RawConfig::read(None, variables).unwrap()).unwrap();
    assert_eq!(config.listen.address.port(), 8080);
    assert_eq!(config.listen.trusted_proxies.len(), 1);
    assert!(config.origins.redirect_dev_prefix);
    let unknown = [("CHOIR_LISTEN__PORT".to_owned(), "1".to_owned())];
    assert!(
        RawConfig::read(None, unknown)
            .unwrap_err()
            .to_string()
            .contains("port")
    );
}

#[test]
fn no_runtime_host_lies_beneath_the_passkeys_of_the_control_host() {
    let text = refusal(
        "origins.control = \"https://example.com\"\norigins.runtime = \"https://{user}.example.com\"",
    );
    assert!(
        text.contains("origins.runtime") && text.contains("example.com"),
        "{text}"
    );
    let text = refusal(
        "origins.control = \"https://choir.example.com\"\norigins.runtime = \"single_host\"\norigins.single_host = \"https://run.choir.example.com\"",
    );
    assert!(text.contains("origins.single_host"), "{text}");
    build("origins.control = \"https://choir.example.com\"\norigins.runtime = \"https://{user}.run.example.com\"").unwrap();
}

#[test]
fn plain_http_is_for_localhost_only() {
    assert!(refusal("origins.control = \"http://choir.example.com\"").contains("https"));
    assert!(refusal("origins.control = \"http://127.0.0.1:9090\"").contains("host name"));
}

#[test]
fn every_host_is_somebodys_or_nobodys() {
    let config = build("").unwrap();
    let host = |text: &str| config.origins.match_host(text);
    let runtime = |user: &str, role| {
        Some(HostMatch::Runtime {
            user: user.parse().unwrap(),
            role,
        })
    };
    assert_eq!(host("localhost:9090"), Some(HostMatch::Control));
    assert_eq!(host("LocalHost:9090"), Some(HostMatch::Control));
    assert_eq!(host("alice.localhost:9090"), runtime("alice", Role::Live));
    assert_eq!(
        host("dev--alice.localhost:9090"),
        runtime("alice", Role::Dev)
    );
    for nobody in [
        "localhost",
        "127.0.0.1:9090",
        "a.b.localhost:9090",
        "localhost:9091",
        "x--alice.localhost:9090",
        "",
        ":9090",
        "localhost:",
        "evil.com",
    ] {
        assert_eq!(host(nobody), None, "{nobody}");
    }
}

#[test]
fn one_host_for_everybody_has_to_be_spelled_out() {
    let config = build(
        "origins.control = \"https://choir.example.com\"\norigins.runtime = \"single_host\"\norigins.single_host = \"https://choir-run.example.com\"",
    )
    .unwrap();
    assert_eq!(
        config.origins.match_host("choir-run.example.com"),
        Some(HostMatch::SingleHost)
    );
    assert_eq!(
        config
            .origins
            .runtime_url(&"alice".parse().unwrap(), Role::Dev),
        "https://choir-run.example.com/dev/"
    );
    assert!(refusal("origins.runtime = \"single_host\"").contains("origins.single_host"));
    assert!(refusal("origins.single_host = \"http://x.localhost\"").contains("only with"));
}

#[test]
fn the_default_provider_comes_first() {
    let config = build(
        "[[providers]]\nname = \"a\"\nkind = \"openai\"\nbase_url = \"https://api.example.com/v1\"\nmodels = [\"m\"]\n\
         [[providers]]\nname = \"b\"\nkind = \"anthropic\"\nbase_url = \"https://api.example.com\"\nmodels = [\"n\", \"o\"]\ndefault = \"o\"\n",
    )
    .unwrap();
    let names: Vec<&str> = config.providers.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["b", "a"]);
    assert_eq!(config.default_provider().unwrap().default_model, "o");
    assert!(
        refusal("[[providers]]\nname = \"a\"\nkind = \"openai\"\nmodels = [\"m\"]")
            .contains("providers.base_url")
    );
    assert!(refusal("[[providers]]\nname = \"a\"\nkind = \"openai\"\nbase_url = \"https://user:pw@x/\"\nmodels = [\"m\"]").contains("key_file"));
}

/// A provider with one model, and more of its section.
fn provider(more: &str) -> String {
    format!(
        "[[providers]]\nname = \"a\"\nkind = \"openai\"\nbase_url = \"https://api.example.com/v1\"\n\
         models = [\"m\"]\n{more}\n"
    )
}

#[test]
fn a_slip_in_a_price_does_not_switch_a_budget_off() {
    let price = |model: &str| {
        provider(&format!(
            "prices = {{ {model} = {{ input = 1.0, output = 2.0 }} }}"
        ))
    };
    let text = refusal(&price("n"));
    assert!(
        text.contains("providers.prices")
            && text.contains("\"n\"")
            && text.contains("prices for: m"),
        "{text}"
    );
    for budget in [
        "[gateway.sandbox]\ndaily_budget = 1.0",
        "[gateway.user]\nmonthly_budget = 1.0",
        "[providers.limits]\ndaily_budget = 1.0",
    ] {
        let text = refusal(&format!("{}{budget}", provider("")));
        assert!(
            text.contains("providers.prices") && text.contains("\"m\"") && text.contains("0.0"),
            "{text}"
        );
        build(&format!("{}{budget}", price("m"))).unwrap();
    }
    build(&provider("")).unwrap();
    // What is put into a cache costs more than what is only read.
    let price = |more: &str| {
        let prices = format!("prices = {{ m = {{ input = 4.0, output = 20.0{more} }} }}");
        let price = build(&provider(&prices)).unwrap().providers[0].prices["m"];
        [price.cached_input, price.cache_write, price.cache_write_1h].map(|price| price / 1_000_000)
    };
    assert_eq!(price(""), [4000, 5000, 8000]);
    assert_eq!(
        price(", cached_input = 0.4, cache_write = 9.0"),
        [400, 9000, 9000]
    );
    assert_eq!(price(", cache_write_1h = 7.0"), [4000, 5000, 7000]);
    // The demo costs nothing.
    build("[gateway.user]\ndaily_budget = 1.0").unwrap();
}

#[test]
fn what_is_no_amount_of_money_is_refused_by_name() {
    for wrong in ["-1.0", "nan", "inf", "1e10", "1e300"] {
        for price in [
            "input",
            "output",
            "cached_input",
            "cache_write",
            "cache_write_1h",
            "call",
        ] {
            let mut prices = BTreeMap::from([("input", "1.0"), ("output", "1.0")]);
            prices.insert(price, wrong);
            let prices: Vec<_> = prices
                .iter()
                .map(|(name, price)| format!("{name} = {price}"))
                .collect();
            let text = refusal(&provider(&format!(
                "prices = {{ m = {{ {} }} }}",
                prices.join(", ")
            )));
            assert!(
                text.contains(&format!("providers.prices.m.{price}")) && text.len() < 200,
                "{text}"
            );
        }
        for budget in ["daily_budget", "monthly_budget"] {
            let text = refusal(&format!("[gateway.user]\n{budget} = {wrong}"));
            assert!(text.contains(budget), "{text}");
        }
    }
}

#[test]
fn what_says_who_is_charged_or_who_asks_never_passes() {
    for name in [
        "Authorization",
        "api-key",
        "cookie",
        "x-forwarded-host",
        "X-Real-IP",
        "via",
        "forwarded",
        "openai-organization",
        "openai-project",
        "x-goog-user-project",
        "x-amz-date",
        "accept-encoding",
        "user-agent",
        "proxy-authorization",
        "x-choir-role",
        "no name",
    ] {
        for key in [
            "headers_up",
            "headers_down",
            "only_headers_up",
            "only_headers_down",
        ] {
            let text = refusal(&provider(&format!("{key} = [{name:?}]")));
            assert!(text.contains(key) && text.contains(name), "{text}");
        }
    }
    build(&provider("headers_up = [\"x-request-tag\"]")).unwrap();
    build(&provider(
        "only_headers_up = []\nonly_headers_down = [\"request-id\"]",
    ))
    .unwrap();
    let both = "headers_up = [\"x-tag\"]\nonly_headers_up = [\"accept\"]";
    let text = refusal(&provider(both));
    assert!(
        text.contains("only_headers_up") && text.contains("one of the two"),
        "{text}"
    );
    for name in [
        "key",
        "Access_Token",
        "X-Amz-Signature",
        "x-goog-api-key",
        "",
        "a&b",
    ] {
        let text = refusal(&provider(&format!("query = [{name:?}]")));
        assert!(text.contains("providers.query"), "{text}");
    }
    build(&provider("query = [\"expand\", \"$top\"]")).unwrap();
}

#[test]
fn a_path_says_its_method_and_what_becomes_of_its_model() {
    let of = |paths: &str| {
        build(&provider(&format!("paths = [{paths}]")))
            .unwrap()
            .providers[0]
            .paths
            .clone()
    };
    let paths =
        of("\"files/*\", \"DELETE files/*\", { path = \"POST files\", model = \"unchecked\" }");
    let shown: Vec<_> = paths
        .iter()
        .map(|path| {
            (
                path.method.as_ref().map(http::Method::as_str),
                path.pattern.as_str(),
                path.model,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            (None, "files/*", ModelCheck::Named),
            (Some("DELETE"), "files/*", ModelCheck::Named),
            (Some("POST"), "files", ModelCheck::Unchecked),
        ]
    );
    for bad in [
        "\"/files\"",
        "\"../x\"",
        "\"CONNECT x\"",
        "\"post x\"",
        "\"a b c\"",
        "{ path = \"x\", model = \"free\" }",
    ] {
        let text = refusal(&provider(&format!("paths = [{bad}]")));
        assert!(text.contains("providers.paths"), "{text}");
    }
    assert!(refusal(&provider("routing = \"yes\"")).contains("past_the_model_list"));
}

#[test]
fn as_many_connections_as_calls_may_be_open() {
    let of = |more: &str| build(&provider(more)).unwrap().providers[0].connections;
    assert_eq!(of(""), 256);
    assert_eq!(of("limits = { concurrent = 1000 }"), 1000);
    assert_eq!(of("connections = 7\nlimits = { concurrent = 1000 }"), 7);
    assert!(refusal(&provider("connections = 0")).contains("providers.connections"));
}

#[test]
fn the_example_shows_what_holds_without_a_file() {
    let example = build(include_str!("../../choir.example.toml")).unwrap();
    let default = Config::build(RawConfig::default()).unwrap();
    assert_eq!(format!("{example:?}"), format!("{default:?}"));
}

#[test]
fn the_provider_of_the_example_is_one_that_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["anthropic.key", "provider-ca.pem"] {
        std::fs::write(dir.path().join(file), "x").unwrap();
    }
    let (_, section) = include_str!("../../choir.example.toml")
        .split_once("# [[providers]]\n")
        .unwrap();
    let (section, _) = section.split_once("\n[log]").unwrap();
    let keys: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.split(' ').nth(1) == Some("="))
        // Stands in place of base_url and key_file.
        .filter(|line| !line.starts_with("upstreams"))
        .collect();
    assert!(keys.len() > 20, "{keys:?}");
    let one = keys
        .join("\n")
        .replace("/etc/choir", dir.path().to_str().unwrap());
    let other = "name = \"anthropic-2\"\nkind = \"anthropic\"\nbase_url = \"https://b.example\"\n\
                 models = [\"claude-sonnet-4-5\"]";
    build(&format!("[[providers]]\n{one}\n[[providers]]\n{other}\n")).unwrap();
}

#[test]
fn ports_have_origins_beside_the_runtime_or_say_why_not() {
    let alice = "alice".parse().unwrap();
    let of = |text: &str| {
        let origins = build(text).unwrap().origins;
        let origin = origins.preview_origin(&alice, Role::Dev, 3000);
        (origin.map(|origin| origin.to_string()), origins)
    };
    let (default, origins) = of("");
    assert_eq!(
        default.as_deref(),
        Some("http://3000--dev--alice.localhost:9090")
    );
    assert_eq!(
        origins.match_host("3000--alice.localhost:9090"),
        Some(HostMatch::Preview {
            user: alice.clone(),
            role: Role::Live,
            port: 3000
        })
    );
    let public = "origins.control = \"https://choir.example.com\"\norigins.runtime = \"https://{user}.run.example.com\"";
    assert_eq!(
        of(public).0.as_deref(),
        Some("https://3000--dev--alice.run.example.com")
    );
    let (off, origins) = of("origins.preview = \"off\"");
    assert_eq!(off, None);
    assert!(
        origins
            .why_no_preview()
            .unwrap()
            .contains("choir port forward")
    );
    assert_eq!(origins.match_host("3000--alice.localhost:9090"), None);
    let single = "origins.control = \"https://choir.example.com\"\norigins.runtime = \"single_host\"\norigins.single_host = \"https://choir-run.example.com\"";
    assert!(of(single).1.why_no_preview().unwrap().contains("one host"));
    for (more, word) in [
        (
            "origins.preview = \"http://{user}--{port}.localhost:9090\"",
            "{port}--{user}",
        ),
        (
            "origins.preview = \"https://{port}--{user}.localhost:9090\"",
            "scheme",
        ),
        (
            "origins.dev = \"http://3000--{user}.localhost:9090\"",
            "origins.dev",
        ),
    ] {
        let text = refusal(more);
        assert!(
            text.contains("origins.preview") && text.contains(word),
            "{text}"
        );
    }
    assert!(
        refusal(&format!(
            "{single}\norigins.preview = \"https://{{port}}--{{user}}.example.com\""
        ))
        .contains("wildcard")
    );
    assert!(
        refusal(&format!(
            "{public}\norigins.preview = \"https://{{port}}--{{user}}.choir.example.com\""
        ))
        .contains("control host")
    );
}

#[test]
fn network_modes_and_rules_are_refused_by_key_and_value() {
    for (toml, words) in [
        (
            "[network]\nmax = \"all\"",
            ["network.max", "allowlist or open"],
        ),
        (
            "[network]\ndefault = \"open\"",
            ["network.default", "wider than network.max"],
        ),
        ("[network]\nallow = [\"*.com\"]", ["network.allow", "*.com"]),
        (
            "[network]\nallow = [\"10.0.0.1\"]",
            ["network.allow", "an address"],
        ),
        (
            "[network]\nconnections = 0",
            ["network.connections", "1 to 4096"],
        ),
    ] {
        let refusal = refusal(toml);
        assert!(words.iter().all(|word| refusal.contains(word)), "{refusal}");
    }
    let config = build("[network]\nmax = \"open\"\nallow = [\"*.Crates.io.\"]").unwrap();
    assert_eq!(config.network.allow[0].to_string(), "*.crates.io");
}

#[test]
fn a_collector_is_told_nothing_unless_it_is_named_and_its_credential_is_in_a_file() {
    let config = Config::build(RawConfig::read(None, Vec::new()).unwrap()).unwrap();
    assert!(config.otlp.is_none());
    for endpoint in [
        "collector:4318",
        "grpc://collector:4317",
        "https://user:secret@collector",
        "https://collector/?token=secret",
    ] {
        let text = refusal(&format!("telemetry.otlp.endpoint = {endpoint:?}"));
        assert!(
            text.contains("telemetry.otlp.endpoint") && text.contains("headers_file"),
            "{text}"
        );
    }
    let file = "[telemetry.otlp]\nendpoint = \"https://c\"\nheaders_file = \"/no/such\"";
    assert!(refusal(file).contains("telemetry.otlp.headers_file"));
}
