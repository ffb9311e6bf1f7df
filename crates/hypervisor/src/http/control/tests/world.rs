//! A control plane in a temporary directory, and people who use it.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use crypto::{Token, TokenKind};
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;
use types::{PasskeyId, SandboxId, SessionId, TokenId, UserId};

use crate::actor::Actor;
use crate::app::App;
use crate::clock::Clock;
use crate::config::{Config, RawConfig};
use crate::http::Client;
use crate::http::control::router;
use crate::store::{
    Entitlement, NewPasskey, NewSession, NewToken, NewUser, Registration, SessionKind,
};

pub(super) const ORIGIN: &str = "http://localhost:9090";
pub(super) const DAY_MS: i64 = 24 * 3600 * 1000;

pub(super) struct World {
    pub(super) app: Arc<App>,
    pub(super) router: Router,
    _dir: TempDir,
}

/// Somebody with an account, a session and a token.
pub(super) struct Person {
    pub(super) cookie: String,
    pub(super) token: String,
    pub(super) session: SessionId,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with("").await
    }

    pub(super) async fn with(toml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("choir.toml");
        std::fs::write(&file, toml).unwrap();
        let mut raw = RawConfig::read(Some(&file), Vec::new()).unwrap();
        raw.data_dir = Some(dir.path().join("data"));
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let app = App::open(Config::build(raw).unwrap(), Clock::system())
            .await
            .unwrap();
        let router = router(&app);
        Self {
            app,
            router,
            _dir: dir,
        }
    }

    pub(super) async fn person(&self, name: &str, is_admin: bool, scopes: &str) -> Person {
        let session_token = Token::generate(TokenKind::Session, &self.app.random).unwrap();
        let api_token = Token::generate(TokenKind::Api, &self.app.random).unwrap();
        let now = self.app.clock.now_ms();
        let user = UserId::generate();
        let session = SessionId::generate();
        let registration = Registration {
            user: NewUser {
                id: user,
                name: name.parse().unwrap(),
                is_admin,
                live: SandboxId::generate(),
                dev: SandboxId::generate(),
                host_uid_base: 2_000_000_000,
                now,
            },
            passkey: NewPasskey {
                id: PasskeyId::generate(),
                name: "Laptop".to_owned(),
                credential_id: user.to_string(),
                credential: "{}".to_owned(),
            },
            codes: Vec::new(),
            session: NewSession {
                id: session,
                user_id: user,
                kind: SessionKind::Control,
                parent: None,
                token_hash: session_token.hash().to_string(),
                host: "localhost".to_owned(),
                user_agent: String::new(),
                address: String::new(),
                now,
                expires_at: now + DAY_MS,
            },
            entitlement: Entitlement::Open,
        };
        assert!(self.app.store.register(&registration).await.unwrap());
        let token = NewToken {
            id: TokenId::generate(),
            user_id: user,
            name: "script".to_owned(),
            token_hash: api_token.hash().to_string(),
            scopes: scopes.to_owned(),
            now,
            expires_at: now + DAY_MS,
        };
        self.app.store.add_token(&token).await.unwrap();
        Person {
            cookie: format!("choir_session={}", session_token.expose()),
            token: format!("Bearer {}", api_token.expose()),
            session,
        }
    }

    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> (StatusCode, HeaderMap, Value) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            None => Body::empty(),
            Some(json) => {
                request = request.header("content-type", "application/json");
                Body::from(json.to_string())
            }
        };
        let mut request = request.body(body).unwrap();
        let peer: IpAddr = "127.0.0.1".parse().unwrap();
        request
            .extensions_mut()
            .insert(Client::new(peer, &HeaderMap::new(), &[]));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (
            head.status,
            head.headers,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }

    pub(super) async fn get(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap, Value) {
        self.ask(Method::GET, path, headers, None).await
    }
}

/// Who a person's session stands for.
pub(super) async fn actor(world: &World, person: &Person) -> Actor {
    let token = Token::parse(person.cookie.split('=').nth(1).unwrap()).unwrap();
    let row = crate::services::sessions::find(&world.app, &token, "localhost")
        .await
        .unwrap()
        .unwrap();
    let (user, via) = crate::services::sessions::identity(row);
    Actor {
        user: Some(user),
        via,
        ..Actor::anonymous(types::RequestId::generate(), None)
    }
}
