//! Origins, and whose host a request is for (arch §2).

use std::fmt;

use types::{Role, UserName};
use url::Url;

use super::ConfigError;
use super::preview::PreviewTemplate;
use super::raw::RawOrigins;

/// A scheme, a host and a port, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// Parses `http://host[:port]` or `https://host[:port]`.
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, ConfigError> {
        let valid = "an origin such as https://choir.example.com or http://localhost:9090";
        let refuse = |problem: &str| ConfigError::value(key, text, problem, valid);
        let url = Url::parse(text).map_err(|error| refuse(&error.to_string()))?;
        let secure = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(refuse("it is neither http nor https")),
        };
        let Some(url::Host::Domain(host)) = url.host() else {
            return Err(refuse(
                "its host is an address, and passkeys need a host name",
            ));
        };
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("it has a path, a query or a fragment"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("it has a user name or a password"));
        }
        let port = url
            .port_or_known_default()
            .unwrap_or(if secure { 443 } else { 80 });
        Ok(Self {
            secure,
            host: host.to_owned(),
            port,
        })
    }

    /// Whether it is `https`.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.secure
    }

    /// Its host, lower case, without the port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its scheme.
    #[must_use]
    pub const fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// Whether an `Origin` header names exactly this origin.
    #[must_use]
    pub fn is(&self, header: &str) -> bool {
        self.to_string() == header
    }

    pub(super) fn with_host(&self, host: String) -> Self {
        Self {
            secure: self.secure,
            host,
            port: self.port,
        }
    }
}

impl fmt::Display for Origin {
    /// As browsers serialise it: the scheme's own port is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.host)?;
        if self.port == if self.secure { 443 } else { 80 } {
            Ok(())
        } else {
            write!(f, ":{}", self.port)
        }
    }
}

/// An origin with `{user}` in the first label of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginTemplate {
    sample: Origin,
    prefix: String,
    /// Begins with a dot.
    suffix: String,
}

/// Stands for the user while a template is parsed as a URL; not a valid user name.
const PLACEHOLDER: &str = "0user0";

impl OriginTemplate {
    fn parse(key: &str, text: &str) -> Result<Self, ConfigError> {
        let valid = "a template such as https://{user}.run.example.com";
        let refuse = |problem: &str| ConfigError::value(key, text, problem, valid);
        if text.matches("{user}").count() != 1 {
            return Err(refuse("it does not contain {user} exactly once"));
        }
        let sample = Origin::parse(key, &text.replace("{user}", PLACEHOLDER))?;
        let Some((prefix, suffix)) = sample.host.split_once(PLACEHOLDER) else {
            return Err(refuse("{user} does not stand in the host"));
        };
        if prefix.contains('.') || !suffix.starts_with('.') || suffix.len() < 2 {
            return Err(refuse("{user} does not end the first label of the host"));
        }
        let (prefix, suffix) = (prefix.to_owned(), suffix.to_owned());
        Ok(Self {
            sample,
            prefix,
            suffix,
        })
    }

    /// The origin of one user.
    #[must_use]
    pub fn of(&self, user: &UserName) -> Origin {
        self.sample
            .with_host(format!("{}{user}{}", self.prefix, self.suffix))
    }

    fn user(&self, host: &str, port: u16) -> Option<UserName> {
        if port != self.sample.port {
            return None;
        }
        host.strip_prefix(self.prefix.as_str())?
            .strip_suffix(self.suffix.as_str())?
            .parse()
            .ok()
    }
}

/// Where runtimes are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeOrigins {
    /// Two origins per user: browsers keep users and roles apart.
    PerUser {
        /// `/` is `live`, `/dev/*` is `dev`.
        live: OriginTemplate,
        /// `/` is `dev`.
        dev: OriginTemplate,
    },
    /// One origin for everybody, told apart by the runtime session alone. Two users in one
    /// browser profile are then not protected from each other's stored scripts.
    SingleHost {
        /// The origin.
        origin: Origin,
    },
}

/// Whose host a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostMatch {
    /// The control origin.
    Control,
    /// A user's runtime origin; the role is the one at its root. The user may not exist.
    Runtime {
        /// The user that the host names.
        user: UserName,
        /// `live`, or `dev` at the dev origin.
        role: Role,
    },
    /// The one runtime origin of everybody; the session says who.
    SingleHost,
    /// A port of a user's workbench. The user may not exist.
    Preview {
        /// The user that the host names.
        user: UserName,
        /// Whose workbench of the two.
        role: Role,
        /// The port, 1 to 65535.
        port: u16,
    },
}

/// All origins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins {
    /// The control origin.
    pub control: Origin,
    /// Where runtimes are served.
    pub runtime: RuntimeOrigins,
    /// Where ports of workbenches are served; `None` where they are not.
    pub preview: Option<PreviewTemplate>,
    /// Whether `/dev/*` redirects to the dev origin.
    pub redirect_dev_prefix: bool,
}

impl Origins {
    /// Validates the section. `port` is the public listener's, for the defaults.
    pub(super) fn build(raw: &RawOrigins, port: u16) -> Result<Self, ConfigError> {
        let control_text = raw
            .control
            .clone()
            .unwrap_or_else(|| format!("http://localhost:{port}"));
        let control = Origin::parse("origins.control", &control_text)?;
        if !control.secure && !is_localhost(&control.host) {
            return Err(ConfigError::value(
                "origins.control",
                &control_text,
                "browsers offer passkeys only over https, or on localhost",
                "https://choir.example.com",
            ));
        }
        let runtime = Self::build_runtime(raw, &control)?;
        let preview = Self::build_preview(raw, &runtime)?;
        let origins = Self {
            control,
            runtime,
            preview,
            redirect_dev_prefix: raw.redirect_dev_prefix,
        };
        origins.check_separation()?;
        Ok(origins)
    }

    fn build_runtime(raw: &RawOrigins, control: &Origin) -> Result<RuntimeOrigins, ConfigError> {
        if raw.runtime.as_deref() == Some("single_host") {
            let Some(text) = &raw.single_host else {
                return Err(ConfigError::value(
                    "origins.single_host",
                    "",
                    "origins.runtime = \"single_host\" needs it",
                    "the origin that serves everybody's runtime, such as https://choir-run.example.com",
                ));
            };
            let origin = Origin::parse("origins.single_host", text)?;
            return Ok(RuntimeOrigins::SingleHost { origin });
        }
        if let Some(text) = &raw.single_host {
            return Err(ConfigError::value(
                "origins.single_host",
                text,
                "it is used only with origins.runtime = \"single_host\"",
                "to leave it out",
            ));
        }
        let default = |prefix: &str| {
            format!(
                "{}://{prefix}{{user}}.localhost:{}",
                control.scheme(),
                control.port
            )
        };
        let live_text = match &raw.runtime {
            Some(text) => text.clone(),
            None if is_localhost(&control.host) => default(""),
            None => {
                return Err(ConfigError::value(
                    "origins.runtime",
                    "",
                    "it has a default only when origins.control is on localhost",
                    "a template such as https://{user}.run.example.com, or single_host",
                ));
            }
        };
        let live = OriginTemplate::parse("origins.runtime", &live_text)?;
        let dev_text = raw
            .dev
            .clone()
            .unwrap_or_else(|| live_text.replace("{user}", "dev--{user}"));
        let dev = OriginTemplate::parse("origins.dev", &dev_text)?;
        if dev.sample.host == live.sample.host {
            return Err(ConfigError::value(
                "origins.dev",
                &dev_text,
                "it is the same as origins.runtime",
                "another host, such as https://dev--{user}.run.example.com",
            ));
        }
        Ok(RuntimeOrigins::PerUser { live, dev })
    }

    fn build_preview(
        raw: &RawOrigins,
        runtime: &RuntimeOrigins,
    ) -> Result<Option<PreviewTemplate>, ConfigError> {
        let key = "origins.preview";
        let RuntimeOrigins::PerUser { live, dev } = runtime else {
            return match raw.preview.as_deref() {
                None | Some("off") => Ok(None),
                Some(text) => Err(ConfigError::value(
                    key,
                    text,
                    "each port is an origin of its own, which needs wildcard names, and origins.runtime = \"single_host\" does without them",
                    "to leave it out, or off",
                )),
            };
        };
        let text = match raw.preview.as_deref() {
            Some("off") => return Ok(None),
            Some(text) => text.to_owned(),
            None => match PreviewTemplate::beside(&live.sample) {
                Some(text) => text,
                None => return Ok(None),
            },
        };
        let preview = PreviewTemplate::parse(key, &text)?;
        for (other, template) in [("origins.runtime", live), ("origins.dev", dev)] {
            // A name that a user can have; the placeholder of templates is none.
            let host = template.sample.host.replace(PLACEHOLDER, "user");
            if preview.read(&host, template.sample.port).is_some() {
                return Err(ConfigError::value(
                    key,
                    text,
                    format!("a host of {other} could be one of its"),
                    "another domain, or another template there",
                ));
            }
        }
        Ok(Some(preview))
    }

    /// A runtime host is never the control host nor beneath it: a page there could claim
    /// the control plane's rpId (WebAuthn §5.1.2). `localhost` is exempt, because there is no
    /// other name without DNS: Chromium lets a page at `alice.localhost` ask for a passkey of
    /// `localhost`. Its answer is refused at sign-in, where only the exact origin counts.
    fn check_separation(&self) -> Result<(), ConfigError> {
        let runtime: Vec<(&str, &Origin)> = match &self.runtime {
            RuntimeOrigins::PerUser { live, dev } => {
                vec![
                    ("origins.runtime", &live.sample),
                    ("origins.dev", &dev.sample),
                ]
            }
            RuntimeOrigins::SingleHost { origin } => vec![("origins.single_host", origin)],
        };
        let preview = self.preview.iter().map(|preview| {
            let shown = preview.text();
            ("origins.preview", preview.sample(), shown)
        });
        let runtime = runtime.into_iter().map(|(key, origin)| {
            let shown = origin.to_string().replace(PLACEHOLDER, "{user}");
            (key, origin, shown)
        });
        for (key, origin, shown) in runtime.chain(preview) {
            let beneath = origin.host.ends_with(&format!(".{}", self.control.host));
            if origin.host == self.control.host || (beneath && self.control.host != "localhost") {
                return Err(ConfigError::value(
                    key,
                    shown,
                    format!(
                        "it lies at or beneath the control host {}, whose passkeys a sandbox's page could then ask for",
                        self.control.host
                    ),
                    "a host that is no subdomain of the control host, best of a domain of its own",
                ));
            }
            if origin.secure != self.control.secure {
                return Err(ConfigError::value(
                    key,
                    shown,
                    "its scheme is not that of origins.control",
                    format!("an origin with {}://", self.control.scheme()),
                ));
            }
        }
        Ok(())
    }

    /// Whose host an authority (`host[:port]`, as in `Host` or `:authority`) is.
    #[must_use]
    pub fn match_host(&self, authority: &str) -> Option<HostMatch> {
        let default_port = if self.control.secure { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (authority, default_port),
        };
        let host = host.to_ascii_lowercase();
        if host == self.control.host && port == self.control.port {
            return Some(HostMatch::Control);
        }
        let preview = self.preview.as_ref();
        if let Some((user, role, port)) = preview.and_then(|preview| preview.read(&host, port)) {
            return Some(HostMatch::Preview { user, role, port });
        }
        match &self.runtime {
            RuntimeOrigins::PerUser { live, dev } => {
                // A user name has no `--`, so the order does not matter with the default
                // templates; dev first keeps that so for templates that nest.
                if let Some(user) = dev.user(&host, port) {
                    return Some(HostMatch::Runtime {
                        user,
                        role: Role::Dev,
                    });
                }
                live.user(&host, port).map(|user| HostMatch::Runtime {
                    user,
                    role: Role::Live,
                })
            }
            RuntimeOrigins::SingleHost { origin } => {
                (host == origin.host && port == origin.port).then_some(HostMatch::SingleHost)
            }
        }
    }

    /// The names that control plane and runtimes are served under, for egress to keep away
    /// from: a sandbox reaches the control plane through its channel only (arch §1).
    #[must_use]
    pub fn own_names(&self) -> gateway::egress::OwnNames {
        let own = gateway::egress::OwnNames::default().with(&self.control.host);
        match &self.runtime {
            RuntimeOrigins::PerUser { live, dev } => own
                .with_beneath(live.suffix.trim_start_matches('.'))
                .with_beneath(dev.suffix.trim_start_matches('.')),
            RuntimeOrigins::SingleHost { origin } => own.with(&origin.host),
        }
    }

    /// The origin at which a user's role is served; `dev` under a single host lives
    /// beneath `/dev/` of it.
    #[must_use]
    pub fn runtime_origin(&self, user: &UserName, role: Role) -> Origin {
        match (&self.runtime, role) {
            (RuntimeOrigins::PerUser { live, .. }, Role::Live) => live.of(user),
            (RuntimeOrigins::PerUser { dev, .. }, Role::Dev) => dev.of(user),
            (RuntimeOrigins::SingleHost { origin }, _) => origin.clone(),
        }
    }

    /// The origin at which a port of a user's workbench is served.
    #[must_use]
    pub fn preview_origin(&self, user: &UserName, role: Role, port: u16) -> Option<Origin> {
        let preview = self.preview.as_ref()?;
        (port > 0).then(|| preview.of(user, role, port))
    }

    /// Why ports have no origin of their own here, for people.
    #[must_use]
    pub const fn why_no_preview(&self) -> Option<&'static str> {
        match (&self.preview, &self.runtime) {
            (Some(_), _) => None,
            (None, RuntimeOrigins::SingleHost { .. }) => Some(
                "this installation serves everybody at one host, and a port needs a host name of its own; \
                 `choir port forward` works",
            ),
            (None, RuntimeOrigins::PerUser { .. }) => {
                Some("this installation has origins.preview = \"off\"; `choir port forward` works")
            }
        }
    }

    /// The URL at which a browser opens a user's role.
    #[must_use]
    pub fn runtime_url(&self, user: &UserName, role: Role) -> String {
        let path = match (&self.runtime, role) {
            (RuntimeOrigins::SingleHost { .. }, Role::Dev) => "/dev/",
            _ => "/",
        };
        format!("{}{path}", self.runtime_origin(user, role))
    }
}

fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}
