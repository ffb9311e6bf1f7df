//! What an allowlist says.

use std::fmt;
use std::str::FromStr;

use super::name::{DomainName, Host, NameError, parse_port};

/// The ports of a rule that names none: HTTPS and HTTP.
pub const DEFAULT_PORTS: [u16; 2] = [443, 80];

/// Rules that one list holds at most.
pub const MAX_RULES: usize = 1000;

/// One rule: a name, or everything beneath a name, and the ports it is good for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    name: DomainName,
    beneath: bool,
    port: Option<u16>,
}

/// A text that is no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The name is none.
    #[error("{0}")]
    Name(#[from] NameError),
    /// An address where a name belongs.
    #[error("it is an address; rules are about names, and an allowlist connects to no address")]
    Address,
    /// A wildcard anywhere but as the whole first label, or over too much.
    #[error(
        "a wildcard is the whole first label over a name of two labels or more, as in *.example.com"
    )]
    Wildcard,
    /// A name without a dot.
    #[error("the name has no dot, so it is a name of the local network")]
    Bare,
}

impl Rule {
    /// The rule that allows one name at one port, written as short as it goes.
    #[must_use]
    pub fn exactly(name: &DomainName, port: u16) -> Self {
        Self {
            name: name.clone(),
            beneath: false,
            port: Some(port),
        }
    }

    /// Whether it allows a name at a port. A wildcard covers names at any depth beneath its
    /// base, and not the base itself.
    #[must_use]
    pub fn allows(&self, name: &DomainName, port: u16) -> bool {
        let named = if self.beneath {
            name.is_beneath(&self.name)
        } else {
            *name == self.name
        };
        named
            && match self.port {
                Some(only) => only == port,
                None => DEFAULT_PORTS.contains(&port),
            }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(parse_port(port)?)),
            _ => (text, None),
        };
        let (host, beneath) = match host.strip_prefix("*.") {
            Some(base) => (base, true),
            None => (host, false),
        };
        if host.contains('*') {
            return Err(RuleError::Wildcard);
        }
        let name = match Host::parse(host)? {
            Host::Name(name) => name,
            Host::Address(_) => return Err(RuleError::Address),
        };
        match (name.labels(), beneath) {
            (1, true) => Err(RuleError::Wildcard),
            (1, false) => Err(RuleError::Bare),
            _ => Ok(Self {
                name,
                beneath,
                port,
            }),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.beneath {
            f.write_str("*.")?;
        }
        self.name.fmt(f)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// A list of rules; empty ones allow nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Makes the list; beyond [`MAX_RULES`] the rest is left out, so that a list that is too
    /// long allows less and never more.
    #[must_use]
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut list: Vec<Rule> = rules.into_iter().take(MAX_RULES).collect();
        list.sort_unstable();
        list.dedup();
        Self(list)
    }

    /// The rule that allows a name at a port.
    #[must_use]
    pub fn find(&self, name: &DomainName, port: u16) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.allows(name, port))
    }

    /// The rules.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::{Rule, RuleError, Rules};
    use crate::egress::{DomainName, NameError};

    fn name(text: &str) -> DomainName {
        DomainName::from_ascii(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_rule_allows_its_names_at_its_ports() {
        type Targets = &'static [(&'static str, u16)];
        let table: [(&str, Targets, Targets); 4] = [
            (
                "crates.io",
                &[("crates.io", 443), ("crates.io", 80)],
                &[
                    ("crates.io", 22),
                    ("static.crates.io", 443),
                    ("xcrates.io", 443),
                    ("crates.io.evil.net", 443),
                ],
            ),
            (
                "*.crates.io",
                &[("static.crates.io", 443), ("a.b.crates.io", 80)],
                &[
                    ("crates.io", 443),
                    ("evilcrates.io", 443),
                    ("static.crates.io", 8443),
                ],
            ),
            (
                "Git.Example.com.:8443",
                &[("git.example.com", 8443)],
                &[("git.example.com", 443)],
            ),
            (
                "*.bücher.example:80",
                &[("a.xn--bcher-kva.example", 80)],
                &[("a.xn--bcher-kva.example", 443)],
            ),
        ];
        for (text, allowed, refused) in table {
            let rules = Rules::new([text.parse().unwrap()]);
            for (host, port) in allowed {
                assert!(
                    rules.find(&name(host), *port).is_some(),
                    "{text}: {host}:{port}"
                );
            }
            for (host, port) in refused {
                assert!(
                    rules.find(&name(host), *port).is_none(),
                    "{text}: {host}:{port}"
                );
            }
        }
        assert_eq!(Rules::default().find(&name("crates.io"), 443), None);
    }

    #[test]
    fn a_rule_is_written_as_it_is_read() {
        for text in [
            "crates.io",
            "*.crates.io",
            "crates.io:8443",
            "*.example.co.uk:80",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_would_allow_too_much_or_nothing_is_no_rule() {
        for (text, error) in [
            ("*", RuleError::Wildcard),
            ("*.com", RuleError::Wildcard),
            ("*.*.example.com", RuleError::Wildcard),
            ("a*.example.com", RuleError::Wildcard),
            ("example.*", RuleError::Wildcard),
            ("localhost", RuleError::Bare),
            ("127.0.0.1", RuleError::Address),
            ("0x7f000001", RuleError::Address),
            ("[::1]:443", RuleError::Address),
            ("*.1.2.3.4", RuleError::Address),
            ("", RuleError::Name(NameError::NotAName)),
            ("https://example.com", RuleError::Name(NameError::Port)),
            ("example.com/x", RuleError::Name(NameError::NotAName)),
            ("a_b.example.com", RuleError::Name(NameError::NotAName)),
            ("example.com:0", RuleError::Name(NameError::Port)),
            ("example.com:https", RuleError::Name(NameError::Port)),
        ] {
            assert_eq!(text.parse::<Rule>(), Err(error), "{text}");
        }
    }
}
