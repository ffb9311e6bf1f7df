//! `choir login`: pairs this machine through the browser, in the manner of RFC 8628.

use std::fmt;
use std::time::Duration;

use crypto::{SecretText, Token, TokenKind};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use types::UserName;
use url::Url;

use super::{Me, Target};
use crate::Error;
use crate::client::Client;
use crate::context::Context;
use crate::credentials::{Credential, Credentials, read_token};
use crate::output::printable;
use crate::server::Server;

/// A server may ask for slower polling, not for faster than this.
const FASTEST: Duration = Duration::from_millis(200);
/// Nor for slower than this.
const SLOWEST: Duration = Duration::from_secs(30);
/// A pairing is given up after this, whatever the server says.
const LONGEST: Duration = Duration::from_secs(1800);

#[derive(Serialize)]
struct Start {
    client_name: String,
}

#[derive(Deserialize)]
struct Started {
    device_code: String,
    user_code: String,
    verification_url: String,
    expires_in: u64,
    interval: u64,
}

#[derive(Serialize)]
struct Poll<'a> {
    device_code: &'a str,
}

#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer {
    Pending,
    Denied,
    Expired,
    Approved {
        token: String,
        user: UserName,
        #[serde(default)]
        scopes: Vec<String>,
        #[serde(default)]
        expires_at: Option<String>,
    },
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

pub(super) async fn run(
    target: &Target,
    no_browser: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    let mut credentials = Credentials::load(context.config_dir.as_deref())?;
    let server = target.server(Some(&credentials))?;
    let (credential, scopes) = match &target.token_file {
        Some(path) => {
            let token = read_token(path, context.io.stdin.as_mut())?;
            let me: Me = Client::new(server.clone(), Some(&token))?
                .get("/auth/me")
                .await?;
            (
                Credential::new(&token, me.name.to_string(), None),
                Vec::new(),
            )
        }
        None => pair(&server, no_browser, context).await?,
    };
    let user = credential.user.clone();
    let expires_at = credential.expires_at.clone();
    credentials.put(&server, credential)?;
    let mut text = format!("Signed in to {server} as {user}.\n");
    if !scopes.is_empty() {
        text.push_str(&format!(
            "This machine may: {}.\n",
            printable(&scopes.join(", "))
        ));
    }
    if let Some(expires_at) = expires_at {
        text.push_str(&format!("The token ends on {}.\n", printable(&expires_at)));
    }
    context.io.print(&text)?;
    Ok(0)
}

async fn pair(
    server: &Server,
    no_browser: bool,
    context: &mut Context,
) -> Result<(Credential, Vec<String>), Error> {
    let client = Client::new(server.clone(), None)?;
    let start = Start {
        client_name: format!("choir on {}", context.machine),
    };
    let started: Started = client.post("/auth/cli/start", &start).await?;
    let device_code = SecretText::new(started.device_code);
    let url = verification(server, &started.verification_url)?;
    context.io.complain(&format!(
        "Open this link, compare the code, and approve this machine:\n\n    {url}\n    code: {}\n\n",
        printable(&started.user_code)
    ))?;
    if !no_browser && context.browser.as_ref().is_some_and(|open| open(&url)) {
        context.io.complain("A browser was opened.\n")?;
    }
    context
        .io
        .complain("Waiting for the approval; Ctrl-C gives up.\n")?;
    let interval = Duration::from_secs(started.interval).clamp(FASTEST, SLOWEST);
    let end = Instant::now() + Duration::from_secs(started.expires_in).min(LONGEST);
    loop {
        let poll = Poll {
            device_code: device_code.expose(),
        };
        match client.post("/auth/cli/poll", &poll).await? {
            Answer::Approved {
                token,
                user,
                scopes,
                expires_at,
            } => {
                let token = SecretText::new(token);
                let token =
                    Token::parse_kind(TokenKind::Api, token.expose()).map_err(Error::Token)?;
                return Ok((
                    Credential::new(&token, user.to_string(), expires_at),
                    scopes,
                ));
            }
            Answer::Denied => return Err(Error::Pairing("the pairing was refused in the browser")),
            Answer::Expired => return Err(Error::Pairing("the pairing was not approved in time")),
            Answer::Pending if Instant::now() >= end => {
                return Err(Error::Pairing("the pairing was not approved in time"));
            }
            Answer::Pending => {}
        }
        sleep(interval).await;
    }
}

/// The link, if it leads to the server that was asked: another one would let a person approve
/// something else than they see here.
fn verification(server: &Server, link: &str) -> Result<Url, Error> {
    let url = Url::parse(link).ok();
    match url {
        Some(url) if url.origin() == server.at("/").origin() => Ok(url),
        other => Err(Error::Elsewhere {
            server: server.clone(),
            named: printable(
                &other.map_or_else(|| link.to_owned(), |url| url.origin().ascii_serialization()),
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::verification;
    use crate::server::Server;

    #[test]
    fn a_link_to_somewhere_else_is_not_followed() {
        let server = Server::default();
        assert!(verification(&server, "http://localhost:9090/console/pair?code=X").is_ok());
        for url in [
            "http://localhost:9091/console/pair",
            "https://evil.example/",
            "javascript:alert(1)",
            "x",
        ] {
            assert!(verification(&server, url).is_err(), "{url}");
        }
    }
}
