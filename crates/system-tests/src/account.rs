//! A person with an account, without a browser.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use types::{Role, SandboxState};

use crate::http::{Ask, Client, Response};
use crate::installation::Installation;
use crate::passkey::Passkey;
use crate::wait::until;

/// Somebody who is signed in.
pub struct Account {
    /// Their name.
    pub name: String,
    /// Their cookies.
    pub client: Client,
    /// Their passkey.
    pub passkey: Passkey,
    /// What registration said; holds the recovery codes.
    pub registered: Value,
    control: String,
}

impl Account {
    /// Registers the first admin over the set-up link.
    ///
    /// # Panics
    /// It is refused.
    pub async fn admin(installation: &Installation, name: &str) -> Self {
        let setup = parameter(installation.link(), "setup").expect("a set-up link");
        Self::register(installation, json!({ "name": name, "setup": setup })).await
    }

    /// Registers over an invitation that `admin` makes.
    ///
    /// # Panics
    /// It is refused.
    pub async fn invited(installation: &Installation, admin: &Self, name: &str) -> Self {
        let made = admin
            .control("POST", "/admin/invites", Some(json!({})))
            .await;
        assert!(matches!(made.status, 200 | 201), "{}", made.text());
        let body = made.json();
        let link = body["url"]
            .as_str()
            .or(body["link"].as_str())
            .expect("an invite link")
            .to_owned();
        let invite = parameter(&link, "invite").expect("an invitation");
        Self::register(installation, json!({ "name": name, "invite": invite })).await
    }

    /// Registers with this body of `/auth/register/start`.
    ///
    /// # Panics
    /// It is refused.
    pub async fn register(installation: &Installation, body: Value) -> Self {
        let client = installation.client();
        let control = installation.control();
        let name = body["name"].as_str().expect("a name").to_owned();
        let started = post(&client, &control, "/auth/register/start", &body)
            .await
            .expect(200)
            .json();
        let (passkey, credential) = Passkey::create(&control, &started["options"]);
        let finish = json!({ "ceremony": started["ceremony"], "credential": credential });
        let finished = post(&client, &control, "/auth/register/finish", &finish).await;
        assert!(matches!(finished.status, 200 | 201), "{}", finished.text());
        Self {
            name,
            client,
            passkey,
            registered: finished.json(),
            control,
        }
    }

    /// Signs in again; the cookies are replaced.
    pub async fn sign_in(&mut self) -> Response {
        let started = post(
            &self.client,
            &self.control,
            "/auth/login/start",
            &json!({ "name": self.name }),
        )
        .await
        .expect(200)
        .json();
        let credential = self.passkey.sign(&started["options"]);
        let finish = json!({ "ceremony": started["ceremony"], "credential": credential });
        post(&self.client, &self.control, "/auth/login/finish", &finish).await
    }

    /// A call on the control origin, as its own pages make it.
    pub async fn control(&self, method: &str, target: &str, body: Option<Value>) -> Response {
        let mut ask = Ask::new(method, "localhost", target).same_origin(&self.control);
        if let Some(body) = body {
            ask = ask.json(&body);
        }
        self.client.send(ask).await
    }

    /// The host of a role's runtime origin.
    #[must_use]
    pub fn host(&self, role: Role) -> String {
        match role {
            Role::Live => format!("{}.localhost", self.name),
            Role::Dev => format!("dev--{}.localhost", self.name),
        }
    }

    /// The origin of a role.
    #[must_use]
    pub fn origin(&self, role: Role) -> String {
        format!("http://{}:{}", self.host(role), self.client.port())
    }

    /// Starts a sandbox and waits until it is healthy.
    ///
    /// # Panics
    /// It fails.
    pub async fn start(&self, role: Role) {
        let answer = self
            .control("POST", &format!("/me/sandboxes/{role}/start"), None)
            .await;
        assert!(
            (200..300).contains(&answer.status),
            "{} {}",
            answer.status,
            answer.text()
        );
        until("a running sandbox", async || {
            let view = self.sandbox(role).await;
            assert_ne!(view["state"], SandboxState::Failed.as_str(), "{view}");
            (view["state"] == SandboxState::Running.as_str()).then_some(())
        })
        .await;
    }

    /// Stops a sandbox and waits until it is gone.
    ///
    /// # Panics
    /// It does not stop.
    pub async fn stop(&self, role: Role) {
        let answer = self
            .control("POST", &format!("/me/sandboxes/{role}/stop"), None)
            .await;
        assert!(
            (200..300).contains(&answer.status),
            "{} {}",
            answer.status,
            answer.text()
        );
        until("a stopped sandbox", async || {
            (self.sandbox(role).await["state"] == SandboxState::Stopped.as_str()).then_some(())
        })
        .await;
    }

    /// One sandbox as `/me/sandboxes` lists it.
    ///
    /// # Panics
    /// It is not listed.
    pub async fn sandbox(&self, role: Role) -> Value {
        let listing = self
            .control("GET", "/me/sandboxes", None)
            .await
            .expect(200)
            .json();
        let list = listing["sandboxes"].as_array().expect("a list");
        list.iter()
            .find(|one| one["role"] == role.as_str())
            .expect("both roles are listed")
            .clone()
    }

    /// The directory of a running sandbox's start.
    ///
    /// # Panics
    /// It does not run.
    pub async fn start_dir(&self, installation: &Installation, role: Role) -> PathBuf {
        let sandbox = self.sandbox(role).await;
        let start = sandbox["start_id"].as_str().expect("it runs");
        installation.data_dir().join("run").join(start)
    }

    /// The gateway token of a hostile guest, which tells it to whoever has entered.
    ///
    /// # Panics
    /// It has none.
    pub async fn hostile_token(&self, role: Role) -> String {
        let listing = "/hostile/listing?environment";
        let environment = self.runtime(role, "GET", listing, None).await.expect(200);
        let token = environment.json()["CHOIR_PROVIDER_GATEWAY_TOKEN"].clone();
        token.as_str().expect("a token").to_owned()
    }

    /// Follows the hand-over to a runtime origin until its cookie is in the jar.
    ///
    /// # Panics
    /// It does not lead there.
    pub async fn enter(&self, role: Role) {
        self.enter_host(&self.host(role)).await;
    }

    /// The same for any host that has sessions of its own.
    ///
    /// # Panics
    /// It does not lead there.
    pub async fn enter_host(&self, host: &str) {
        self.enter_host_at(host, 200).await;
    }

    /// The same where the page behind the hand-over answers with this status.
    ///
    /// # Panics
    /// It does not lead there.
    pub async fn enter_host_at(&self, host: &str, status: u16) -> Response {
        let mut next = (host.to_owned(), "/".to_owned());
        for _ in 0..10 {
            let answer = self
                .client
                .send(Ask::new("GET", &next.0, &next.1).navigation())
                .await;
            if !self.client.cookies(host).is_empty() && next.0 == host && answer.status == status {
                return answer;
            }
            next = match answer.header("location") {
                "" => interstitial(&next.0, &answer),
                location => resolve(&next.0, location),
            };
        }
        panic!("the hand-over to {host} does not end");
    }

    /// Runs a command in a sandbox and returns its exit code and its whole output.
    ///
    /// # Panics
    /// It is refused.
    pub async fn command(&self, role: Role, request: &Value) -> (Option<i64>, String) {
        let target = format!("/me/sandboxes/{role}/commands");
        let answer = self
            .control("POST", &target, Some(request.clone()))
            .await
            .expect(200)
            .text();
        let events: Vec<Value> = answer
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect();
        let output: Vec<u8> = events
            .iter()
            .filter_map(|event| STANDARD.decode(event["data"].as_str()?).ok())
            .flatten()
            .collect();
        let last = events.last().expect("an end");
        assert_eq!(last["type"], "exited", "{answer}");
        (
            last["code"].as_i64(),
            String::from_utf8_lossy(&output).into_owned(),
        )
    }

    /// A call on a runtime origin, as its own pages make it.
    pub async fn runtime(
        &self,
        role: Role,
        method: &str,
        target: &str,
        body: Option<Value>,
    ) -> Response {
        let mut ask = Ask::new(method, &self.host(role), target).same_origin(&self.origin(role));
        if let Some(body) = body {
            ask = ask.json(&body);
        }
        self.client.send(ask).await
    }
}

/// A POST of the control origin's own pages.
pub async fn post(client: &Client, control: &str, target: &str, body: &Value) -> Response {
    client
        .send(
            Ask::new("POST", "localhost", target)
                .same_origin(control)
                .json(body),
        )
        .await
}

/// A parameter of a URL's query or fragment.
#[must_use]
pub fn parameter(url: &str, name: &str) -> Option<String> {
    let (_, query) = url.split_once(['?', '#'])?;
    query
        .split(['&', '#'])
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        .map(str::to_owned)
}

fn resolve(host: &str, location: &str) -> (String, String) {
    let Some((_, rest)) = location.split_once("://") else {
        return (host.to_owned(), location.to_owned());
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    (host.to_owned(), path.to_owned())
}

/// A page that goes on by itself: by `<meta http-equiv="refresh" content="0;url=…">`.
fn interstitial(host: &str, answer: &Response) -> (String, String) {
    let text = answer.text();
    let Some(target) = text
        .split("url=")
        .nth(1)
        .and_then(|rest| rest.split(['"', '\'']).find(|part| !part.is_empty()))
    else {
        panic!("{host} leads nowhere: {} {text}", answer.status);
    };
    resolve(host, &target.replace("&amp;", "&"))
}

#[cfg(test)]
mod tests {
    use super::{parameter, resolve};

    #[test]
    fn takes_links_apart() {
        let link = "http://localhost:9090/register?setup=choirset_x";
        assert_eq!(parameter(link, "setup").as_deref(), Some("choirset_x"));
        assert_eq!(parameter(link, "invite"), None);
        assert_eq!(
            resolve("a.localhost", "/x?y"),
            ("a.localhost".into(), "/x?y".into())
        );
        assert_eq!(
            resolve("a", "http://b.localhost:1/x"),
            ("b.localhost".into(), "/x".into())
        );
        assert_eq!(
            resolve("a", "http://b.localhost:1"),
            ("b.localhost".into(), "/".into())
        );
    }
}
