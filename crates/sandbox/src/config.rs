//! What the guest runtime is told at start, made into valid types once (arch §5).

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use secrecy::SecretString;
use types::keyless;

/// Where the guest runtime finds its sockets and files.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Socket on which the desktop and its APIs are served.
    #[arg(long, default_value = "/run/choir/app/app.sock")]
    pub app_socket: PathBuf,
    /// Socket of the channel to the hypervisor.
    #[arg(long, default_value = "/run/choir/channel/channel.sock")]
    pub channel_socket: PathBuf,
    /// Directory that the files API and the agent's file tools are confined to.
    #[arg(long, default_value = "/workspace")]
    pub workspace: PathBuf,
    /// The event store, as a `sqlite:` URL or a path.
    #[arg(
        long,
        env = "DATABASE_URL",
        default_value = "sqlite:///var/lib/choir/events.db"
    )]
    pub database: String,
    /// Also serve on this TCP port of the loopback address (0 chooses one).
    #[arg(long, env = "PORT")]
    pub port: Option<u16>,
}

/// Why the guest runtime does not start. None of the texts holds a value of a variable
/// that could be a credential.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A provider credential is in the environment (arch §5).
    #[error(
        "the variable {name} holds a provider credential (recognised by its {by}); a sandbox \
         never holds one. Remove {name} from the sandbox's environment and give the key to \
         the hypervisor's provider configuration instead"
    )]
    Credential {
        /// The variable.
        name: String,
        /// How it was recognised.
        by: &'static str,
    },
    /// A variable that has to be there is not.
    #[error("the variable {0} is missing; the hypervisor sets it when it starts a sandbox")]
    Missing(&'static str),
    /// The gateway token does not look like one.
    #[error("the variable CHOIR_PROVIDER_GATEWAY_TOKEN does not hold a gateway token (choirgw_…)")]
    TokenShape,
    /// The gateway's address is not one that the relay can serve.
    #[error(
        "CHOIR_PROVIDER_GATEWAY_BASE_URL is {0:?}; expected http://127.0.0.1:PORT/PATH, a \
         loopback address that the relay can listen on"
    )]
    BaseUrl(String),
    /// The database is not SQLite in a file.
    #[error("the database is {0:?}; expected sqlite:///absolute/path or a path")]
    Database(String),
}

/// Valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Socket that is served.
    pub app_socket: PathBuf,
    /// Socket of the channel.
    pub channel_socket: PathBuf,
    /// Root of everything that the APIs may touch.
    pub workspace: PathBuf,
    /// The event store's file.
    pub database: PathBuf,
    /// TCP port to serve on as well.
    pub port: Option<u16>,
    /// Where programs in the sandbox expect the gateway; relayed to the channel.
    pub relay: SocketAddr,
    /// Path under which the channel serves providers, such as `/provider/v1`.
    pub provider_path: String,
    /// The gateway token of this start.
    pub token: SecretString,
    /// Informative identity.
    pub identity: Identity,
}

/// Who the sandbox is, for people; nothing is decided by it (arch §5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// `CHOIR_SANDBOX_ID`.
    pub sandbox_id: String,
    /// `CHOIR_SANDBOX_USER_ID`.
    pub user: String,
    /// `CHOIR_SANDBOX_ROLE`, the role at start; a request carries the present one.
    pub role: String,
}

const BASE_URL: &str = "CHOIR_PROVIDER_GATEWAY_BASE_URL";
const TOKEN: &str = "CHOIR_PROVIDER_GATEWAY_TOKEN";

/// Refuses an environment that holds a provider credential.
///
/// # Errors
/// [`ConfigError::Credential`] for the first such variable in alphabetical order.
pub fn refuse_credentials(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(), ConfigError> {
    let found = environment
        .into_iter()
        .filter_map(|(name, value)| {
            let name = name.to_string_lossy().into_owned();
            keyless::credential(&name, &value.to_string_lossy()).map(|reason| (name, reason))
        })
        .min_by(|(one, _), (other, _)| one.cmp(other));
    match found {
        None => Ok(()),
        Some((name, reason)) => Err(ConfigError::Credential {
            name,
            by: match reason {
                keyless::Reason::Name => "name",
                keyless::Reason::Shape => "shape",
            },
        }),
    }
}

impl Config {
    /// Reads the options and the `CHOIR_*` variables through `variable`.
    ///
    /// # Errors
    /// When a variable is missing or cannot be used; the error names it.
    pub fn new(
        options: Options,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let base_url = variable(BASE_URL).ok_or(ConfigError::Missing(BASE_URL))?;
        let (relay, provider_path) =
            parse_base_url(&base_url).ok_or_else(|| ConfigError::BaseUrl(base_url.clone()))?;
        let token = variable(TOKEN).ok_or(ConfigError::Missing(TOKEN))?;
        if !keyless::is_gateway_token_shaped(&token) {
            return Err(ConfigError::TokenShape);
        }
        let informative = |name: &str| variable(name).unwrap_or_default();
        Ok(Self {
            database: parse_database(&options.database)
                .ok_or_else(|| ConfigError::Database(options.database.clone()))?,
            app_socket: options.app_socket,
            channel_socket: options.channel_socket,
            workspace: options.workspace,
            port: options.port,
            relay,
            provider_path,
            token: token.into(),
            identity: Identity {
                sandbox_id: informative("CHOIR_SANDBOX_ID"),
                user: informative("CHOIR_SANDBOX_USER_ID"),
                role: informative("CHOIR_SANDBOX_ROLE"),
            },
        })
    }
}

fn parse_base_url(text: &str) -> Option<(SocketAddr, String)> {
    let uri: http::Uri = text.parse().ok()?;
    if uri.scheme() != Some(&http::uri::Scheme::HTTP) || uri.query().is_some() {
        return None;
    }
    let host = match uri.host()? {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host.trim_matches(['[', ']']).parse().ok()?,
    };
    if !host.is_loopback() {
        return None;
    }
    let path = uri.path().trim_end_matches('/');
    Some((
        SocketAddr::new(host, uri.port_u16().unwrap_or(80)),
        path.to_owned(),
    ))
}

fn parse_database(text: &str) -> Option<PathBuf> {
    let path = match text.strip_prefix("sqlite:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None if text.contains("://") => return None,
        None => text,
    };
    // No query: the pragmas are ours.
    (!path.is_empty() && !path.contains('?') && path != ":memory:").then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{ConfigError, parse_base_url, parse_database, refuse_credentials};

    #[test]
    fn names_the_credential_and_never_its_value() {
        let environment = [
            ("PATH", "/bin"),
            ("ZAI_API_KEY", "zz-secret"),
            ("GROQ_API_KEY", "s3"),
        ]
        .map(|(name, value)| (name.into(), value.into()));
        let error = refuse_credentials(environment).unwrap_err();
        assert_eq!(
            error,
            ConfigError::Credential {
                name: "GROQ_API_KEY".into(),
                by: "name"
            }
        );
        assert!(!error.to_string().contains("s3"));
    }

    #[test]
    fn relays_only_on_loopback() {
        let (address, path) = parse_base_url("http://127.0.0.1:9090/provider/v1").unwrap();
        assert_eq!(
            (address.to_string().as_str(), path.as_str()),
            ("127.0.0.1:9090", "/provider/v1")
        );
        assert!(parse_base_url("http://[::1]:9/p").is_some());
        for bad in [
            "http://10.0.0.1:9090/",
            "https://127.0.0.1/",
            "http://example.org/",
            "127.0.0.1",
        ] {
            assert!(parse_base_url(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn takes_a_sqlite_url_or_a_path() {
        let path = Path::new("/var/lib/choir/events.db");
        assert_eq!(
            parse_database("sqlite:///var/lib/choir/events.db").as_deref(),
            Some(path)
        );
        assert_eq!(
            parse_database("/var/lib/choir/events.db").as_deref(),
            Some(path)
        );
        for bad in [
            "postgres://x/y",
            "sqlite::memory:",
            "sqlite:///a?mode=ro",
            "",
        ] {
            assert!(parse_database(bad).is_none(), "{bad}");
        }
    }
}
