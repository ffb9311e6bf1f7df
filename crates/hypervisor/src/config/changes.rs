//! What of a changed configuration a running process takes, and what waits for a restart.

/// What a reload takes. Everything else is read once.
const RELOADED: [&str; 2] = ["providers", "gateway"];

/// The keys that say something else than at the start, or are there only now or only then, and
/// that no reload takes: `listen.address`, in order.
#[must_use]
pub fn wait_for_restart(at_start: &toml::Table, now: &toml::Table) -> Vec<String> {
    let mut keys = Vec::new();
    for (name, before, after) in pairs(at_start, now) {
        if !RELOADED.contains(&name) {
            compare(name.to_owned(), before, after, &mut keys);
        }
    }
    keys.sort();
    keys
}

type Pair<'a> = (&'a str, Option<&'a toml::Value>, Option<&'a toml::Value>);

/// The values of each key in both tables.
fn pairs<'a>(before: &'a toml::Table, after: &'a toml::Table) -> impl Iterator<Item = Pair<'a>> {
    let only_after = after.iter().filter(|(name, _)| !before.contains_key(*name));
    before
        .iter()
        .map(|(name, value)| (name.as_str(), Some(value), after.get(name)))
        .chain(only_after.map(|(name, value)| (name.as_str(), None, Some(value))))
}

/// The depth is that of the configuration, which has no key deeper than a few tables.
fn compare(
    key: String,
    before: Option<&toml::Value>,
    after: Option<&toml::Value>,
    keys: &mut Vec<String>,
) {
    if before == after {
        return;
    }
    let empty = toml::Table::new();
    let table = |value: Option<&'_ toml::Value>| value.is_some_and(toml::Value::is_table);
    if !(table(before) || table(after)) {
        keys.push(key);
        return;
    }
    let before = before.and_then(toml::Value::as_table).unwrap_or(&empty);
    let after = after.and_then(toml::Value::as_table).unwrap_or(&empty);
    for (name, before, after) in pairs(before, after) {
        compare(format!("{key}.{name}"), before, after, keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(before: &str, after: &str) -> Vec<String> {
        wait_for_restart(&before.parse().unwrap(), &after.parse().unwrap())
    }

    #[test]
    fn what_a_reload_does_not_take_is_named_key_by_key() {
        let before = "drain = \"30s\"\n[listen]\naddress = \"127.0.0.1:1\"\n[log]\nlevel = \"info\"\n\
                      [sandbox.limits]\ncommands = 3\nprocesses = 9\n";
        assert!(waiting(before, before).is_empty());
        let after = "drain = \"10s\"\n[listen]\naddress = \"127.0.0.1:1\"\ntrusted_proxies = []\n\
                     [sandbox.limits]\ncommands = 4\nprocesses = 9\n\
                     [telemetry.otlp]\nendpoint = \"https://c.example\"\n";
        assert_eq!(
            waiting(before, after),
            [
                "drain",
                "listen.trusted_proxies",
                "log.level",
                "sandbox.limits.commands",
                "telemetry.otlp.endpoint",
            ]
        );
    }

    #[test]
    fn what_a_reload_takes_waits_for_nothing() {
        let after = "[gateway]\nmax_request_bytes = 1048576\n[gateway.user]\nconcurrent = 1\n\
                     [[providers]]\nname = \"acme\"\n";
        assert!(waiting("", after).is_empty());
        assert!(waiting(after, "").is_empty());
    }
}
