//! The pages of the control origin. They hold nothing private: what they show they fetch.

use std::sync::{Arc, LazyLock};

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use types::Role;

use super::gate::redirect;
use super::route::{Access, Route};
use crate::actor::Actor;
use crate::app::App;
use crate::error::Error;

/// A file that the pages load.
struct Asset {
    name: &'static str,
    kind: &'static str,
    content: &'static str,
}

const JS: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// Everything that the pages load.
const ASSETS: &[Asset] = &[
    Asset {
        name: "theme.css",
        kind: CSS,
        content: include_str!("../../../../../desktop/src/theme.css"),
    },
    Asset {
        name: "page.css",
        kind: CSS,
        content: include_str!("../../pages/page.css"),
    },
    Asset {
        name: "api.js",
        kind: JS,
        content: include_str!("../../pages/api.js"),
    },
    Asset {
        name: "codes.js",
        kind: JS,
        content: include_str!("../../pages/codes.js"),
    },
    Asset {
        name: "dom.js",
        kind: JS,
        content: include_str!("../../pages/dom.js"),
    },
    Asset {
        name: "login.js",
        kind: JS,
        content: include_str!("../../pages/login.js"),
    },
    Asset {
        name: "register.js",
        kind: JS,
        content: include_str!("../../pages/register.js"),
    },
    Asset {
        name: "recovery.js",
        kind: JS,
        content: include_str!("../../pages/recovery.js"),
    },
    Asset {
        name: "console.js",
        kind: JS,
        content: include_str!("../../pages/console.js"),
    },
    Asset {
        name: "sandboxes.js",
        kind: JS,
        content: include_str!("../../pages/sandboxes.js"),
    },
    Asset {
        name: "network.js",
        kind: JS,
        content: include_str!("../../pages/network.js"),
    },
    Asset {
        name: "snapshots.js",
        kind: JS,
        content: include_str!("../../pages/snapshots.js"),
    },
    Asset {
        name: "workbench.js",
        kind: JS,
        content: include_str!("../../pages/workbench.js"),
    },
    Asset {
        name: "explain.js",
        kind: JS,
        content: include_str!("../../pages/explain.js"),
    },
    Asset {
        name: "notices.js",
        kind: JS,
        content: include_str!("../../pages/notices.js"),
    },
    Asset {
        name: "follow.js",
        kind: JS,
        content: include_str!("../../pages/follow.js"),
    },
    Asset {
        name: "swap.js",
        kind: JS,
        content: include_str!("../../pages/swap.js"),
    },
    Asset {
        name: "account.js",
        kind: JS,
        content: include_str!("../../pages/account.js"),
    },
    Asset {
        name: "admin.js",
        kind: JS,
        content: include_str!("../../pages/admin.js"),
    },
    Asset {
        name: "pair.js",
        kind: JS,
        content: include_str!("../../pages/pair.js"),
    },
    Asset {
        name: "theme.js",
        kind: JS,
        content: include_str!("../../../../../desktop/public/theme.js"),
    },
    Asset {
        name: "mark.svg",
        kind: "image/svg+xml",
        content: include_str!("../../../../../desktop/public/mark.svg"),
    },
];

const HTML: &str = "text/html; charset=utf-8";

/// The routes of the pages.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/healthz", Access::Public, healthz),
        Route::get("/readyz", Access::Public, readyz),
        Route::get("/", Access::Page, home),
        Route::get("/login", Access::Public, || {
            page(include_str!("../../pages/login.html"))
        }),
        Route::get("/register", Access::Public, || {
            page(include_str!("../../pages/register.html"))
        }),
        Route::get("/recovery", Access::Public, || {
            page(include_str!("../../pages/recovery.html"))
        }),
        Route::get("/console", Access::Page, || {
            page(include_str!("../../pages/console.html"))
        }),
        Route::get("/console/pair", Access::Page, || {
            page(include_str!("../../pages/pair.html"))
        }),
        Route::get("/favicon.ico", Access::Public, || async {
            redirect("/assets/mark.svg")
        }),
        Route::get("/assets/{name}", Access::Public, asset),
    ]
}

/// The process answers.
async fn healthz() -> &'static str {
    "ok\n"
}

/// The process can do its work: database and ledger answer.
async fn readyz(State(app): State<Arc<App>>) -> Response {
    if let Err(error) = app.store.ping().await {
        tracing::warn!(%error, "not ready");
        return Error::Unavailable("the database does not answer".to_owned()).into_response();
    }
    if !app.audit.is_healthy() {
        return Error::Unavailable("the audit log cannot take records".to_owned()).into_response();
    }
    "ready\n".into_response()
}

async fn page(content: &'static str) -> Response {
    (
        [(header::CONTENT_TYPE, HeaderValue::from_static(HTML))],
        content,
    )
        .into_response()
}

/// The way home is the user's own runtime (arch §3).
async fn home(State(app): State<Arc<App>>, actor: Actor) -> Result<Response, Error> {
    Ok(redirect(
        &app.config
            .origins
            .runtime_url(&actor.user()?.name, Role::Live),
    ))
}

/// Names for the versions of the files, made once.
static ETAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    ASSETS
        .iter()
        .map(|asset| format!("\"{}\"", crypto::sha256(asset.content.as_bytes())))
        .collect()
});

async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Error> {
    let found = ASSETS
        .iter()
        .zip(ETAGS.iter())
        .find(|(asset, _)| asset.name == name);
    let (asset, etag) = found.ok_or(Error::NotFound("file"))?;
    let mut response = if headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| known.as_bytes() == etag.as_bytes())
    {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        (
            [(header::CONTENT_TYPE, HeaderValue::from_static(asset.kind))],
            asset.content,
        )
            .into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(header::ETAG, etag);
    }
    Ok(response)
}
