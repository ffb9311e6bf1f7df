//! Preview origins: one per user, role and port of the workbench (arch §2).
//!
//! `http://3000--alice.localhost:9090` is port 3000 of `live`, and
//! `http://3000--dev--alice.localhost:9090` that of `dev`. A user name starts with a letter
//! and has no `--`, so the first label of a host says one thing only.

use types::{Role, UserName};

use super::ConfigError;
use super::origins::Origin;

/// Stand in for port and user while a template is parsed as a URL.
const SAMPLE: (&str, &str) = ("1", "u");

/// What a template has at the beginning of its host.
const LABEL: &str = "{port}--{user}";

/// An origin whose host begins with `{port}--{user}.`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewTemplate {
    sample: Origin,
    /// Begins with a dot.
    suffix: String,
}

impl PreviewTemplate {
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, ConfigError> {
        let valid = "a template such as https://{port}--{user}.run.example.com, or off";
        let refuse = |problem: &str| ConfigError::value(key, text, problem, valid);
        if text.matches("{port}").count() != 1 || text.matches("{user}").count() != 1 {
            return Err(refuse("it does not contain {port} and {user} once each"));
        }
        let (port, user) = SAMPLE;
        let sample = Origin::parse(key, &text.replace("{port}", port).replace("{user}", user))?;
        let label = LABEL.replace("{port}", port).replace("{user}", user);
        let suffix = sample.host().strip_prefix(&label);
        match suffix {
            Some(suffix) if suffix.starts_with('.') && suffix.len() > 1 && text.contains(LABEL) => {
                Ok(Self {
                    suffix: suffix.to_owned(),
                    sample,
                })
            }
            _ => Err(refuse(
                "its host does not begin with {port}--{user} as a label of its own",
            )),
        }
    }

    /// The template that goes with a runtime template: the same but for the first label.
    pub(super) fn beside(runtime: &Origin) -> Option<String> {
        let (_, parent) = runtime.host().split_once('.')?;
        Some(runtime.with_host(format!("{LABEL}.{parent}")).to_string())
    }

    /// An origin of the template, for checks that concern all of them.
    pub(super) const fn sample(&self) -> &Origin {
        &self.sample
    }

    /// As it is written.
    pub(super) fn text(&self) -> String {
        let host = format!("{LABEL}{}", self.suffix);
        self.sample.with_host(host).to_string()
    }

    /// The origin of one port.
    #[must_use]
    pub fn of(&self, user: &UserName, role: Role, port: u16) -> Origin {
        let role = match role {
            Role::Live => "",
            Role::Dev => "dev--",
        };
        self.sample
            .with_host(format!("{port}--{role}{user}{}", self.suffix))
    }

    /// Whose port a host is.
    #[must_use]
    pub fn read(&self, host: &str, public_port: u16) -> Option<(UserName, Role, u16)> {
        if public_port != self.sample.port() {
            return None;
        }
        let label = host.strip_suffix(self.suffix.as_str())?;
        let (digits, rest) = label.split_once("--")?;
        let (role, name) = match rest.strip_prefix("dev--") {
            Some(name) => (Role::Dev, name),
            None => (Role::Live, rest),
        };
        Some((name.parse().ok()?, role, port(digits)?))
    }
}

/// A port as it is written in a host: 1 to 65535, without sign or leading zeros, so that one
/// port has one origin.
fn port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use types::Role;

    use super::PreviewTemplate;

    fn template(text: &str) -> Result<PreviewTemplate, String> {
        PreviewTemplate::parse("origins.preview", text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_host_says_one_user_one_role_and_one_port() {
        let template = template("http://{port}--{user}.localhost:9090").unwrap();
        let alice = "alice".parse().unwrap();
        for (role, port, host) in [
            (Role::Live, 3000, "3000--alice.localhost"),
            (Role::Dev, 3000, "3000--dev--alice.localhost"),
            (Role::Live, 65535, "65535--alice.localhost"),
        ] {
            assert_eq!(
                template.of(&alice, role, port).to_string(),
                format!("http://{host}:9090")
            );
            assert_eq!(template.read(host, 9090), Some((alice.clone(), role, port)));
            assert_eq!(template.read(host, 9091), None);
        }
        for host in [
            "alice.localhost",
            "dev--alice.localhost",
            "0--alice.localhost",
            "03000--alice.localhost",
            "+3000--alice.localhost",
            "65536--alice.localhost",
            "3000--.localhost",
            "3000--dev.localhost",
            "3000--dev--.localhost",
            "3000--dev--dev--alice.localhost",
            "3000--3000--alice.localhost",
            "3000--live--alice.localhost",
            "x.3000--alice.localhost",
            "3000--alice.x.localhost",
            "3000-alice.localhost",
        ] {
            assert_eq!(template.read(host, 9090), None, "{host}");
        }
    }

    #[test]
    fn a_template_begins_with_port_and_user() {
        let parsed = template("https://{port}--{user}.run.example.com").unwrap();
        assert_eq!(parsed.text(), "https://{port}--{user}.run.example.com");
        for text in [
            "https://{user}--{port}.run.example.com",
            "https://{port}-{user}.run.example.com",
            "https://x-{port}--{user}.run.example.com",
            "https://{port}--{user}",
            "https://{port}--{user}x.example.com",
            "https://{port}.{user}.example.com",
            "https://run.example.com/{port}--{user}",
            "https://{port}--{user}.example.com/x",
        ] {
            assert!(template(text).is_err(), "{text}");
        }
    }
}
