//! The few pages that the hypervisor shows on a runtime origin. They are static text: nothing
//! in them comes from a request unescaped, and their policy allows no inline script.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use runtime::Status;
use types::{PortView, RequestId, Role, SandboxState};

use crate::error::Error;
use crate::http::problem;

/// The look that desktop, sign-in pages and console share.
const THEME: &str = include_str!("../../../../../desktop/src/theme.css");

/// Polls the state and opens the page once the sandbox runs.
const WAIT_SCRIPT: &str = r##""use strict";
(() => {
  const main = document.querySelector("main");
  const role = main.dataset.role;
  const state = document.querySelector("#state");
  const began = Date.now();
  const poll = async () => {
    try {
      const answer = await fetch(`/.choir/status?role=${role}`, { cache: "no-store" });
      if (answer.status === 401) { location.reload(); return; }
      const status = await answer.json();
      const copied = status.state === "stopped" && status.copied;
      if (status.state === "running" || status.state === "failed" || (status.state === "stopped" && !copied)) {
        location.reload();
        return;
      }
      if (copied) {
        state.textContent = copied;
        setTimeout(poll, 1000);
        return;
      }
      const seconds = Math.round((Date.now() - began) / 1000);
      state.textContent = seconds < 3 ? status.state : `${status.state} for ${seconds} s`;
    } catch {
      state.textContent = "connection lost, trying again";
    }
    setTimeout(poll, 300);
  };
  if (main.dataset.wait === "yes") setTimeout(poll, 150);
})();
"##;

const STYLE: &str = "
body{display:grid;place-items:center;min-height:100vh;margin:0;padding:16px;font-size:16px;\
background:var(--bg);color:var(--text);font-family:ui-sans-serif,system-ui,sans-serif}
main.card{max-width:440px;width:100%;padding:24px;box-sizing:border-box}
main h1{font-size:20px;margin:0 0 12px}main p{margin:0 0 12px;line-height:1.5}
main pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px}
.row{display:flex;align-items:center;gap:12px}
";

/// The page that waits for a start, or tells why there is none.
/// `copied` says what copy has to end first.
pub(super) fn wait(role: Role, status: &Status, copied: Option<&str>, next: &str) -> Response {
    let badge = format!("<span class=\"badge badge-{role}\">{role}</span>");
    let (title, body, waiting) = match (&status.state, &status.error) {
        (SandboxState::Failed, error) => {
            let reason = error
                .as_ref()
                .map(|error| error.message.as_str())
                .unwrap_or("the reason is not known");
            let hint = error
                .as_ref()
                .and_then(|error| error.hint.as_deref())
                .unwrap_or_default();
            let log = error
                .as_ref()
                .filter(|error| !error.log.is_empty())
                .map(|error| {
                    format!(
                        "<details><summary>The end of its log</summary><pre>{}</pre></details>",
                        escape(&error.log.join("\n"))
                    )
                })
                .unwrap_or_default();
            let hint = if hint.is_empty() {
                String::new()
            } else {
                format!("<p>{}</p>", escape(hint))
            };
            let action = format!(
                "/.choir/start?role={role}&amp;next={}",
                escape(&encode(next))
            );
            let body = format!(
                "<h1>{badge} could not start</h1><div class=\"notice notice-error\" role=\"alert\"><pre>{}</pre></div>{log}{hint}\
                 <form method=\"post\" action=\"{action}\"><button class=\"btn btn-primary\">Try again</button></form>",
                escape(reason)
            );
            ("could not start", body, false)
        }
        (state, _) => {
            // The start was just ordered and may not have begun.
            let state = match (state, copied) {
                (SandboxState::Stopped, Some(copied)) => escape(copied),
                (SandboxState::Stopped, None) => SandboxState::Starting.to_string(),
                (other, _) => other.to_string(),
            };
            let body = format!(
                "<h1>Starting {badge}</h1><div class=\"row\"><span class=\"spinner\" aria-hidden=\"true\"></span>\
                 <p id=\"state\" role=\"status\">{state}</p></div>\
                 <p>This page opens by itself as soon as the sandbox answers.</p>\
                 <noscript><p>Reload this page in a moment.</p></noscript>"
            );
            ("starting", body, true)
        }
    };
    let wait = if waiting { "yes" } else { "no" };
    let main = format!(
        "<main class=\"card\" data-role=\"{role}\" data-wait=\"{wait}\">{body}</main><script src=\"/.choir/wait.js\"></script>"
    );
    let mut response = page(StatusCode::SERVICE_UNAVAILABLE, title, &main, "");
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The page that says why a sandbox is not even begun. It does not reload itself: pages that
/// wait in tabs nobody looks at would take the next place that is free.
pub(super) fn full(role: Role, error: &Error, next: &str) -> Response {
    let hint = error
        .hint()
        .map(|hint| format!("<p>{}</p>", escape(&hint)))
        .unwrap_or_default();
    let main = format!(
        "<main class=\"card\" data-role=\"{role}\" data-wait=\"no\"><h1><span class=\"badge badge-{role}\">{role}</span> cannot start now</h1>\
         <div class=\"notice notice-error\" role=\"alert\"><p>{}</p></div>{hint}\
         <p><a class=\"btn btn-primary\" href=\"{}\">Try again</a></p></main>",
        escape(&error.to_string()),
        escape(next)
    );
    let mut response = page(problem::status(error.code()), "cannot start now", &main, "");
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
    response
}

/// A page of this origin that goes on to `target` (a path), so that the next request is a
/// same-origin one and carries the cookie.
pub(super) fn interstitial(target: &str) -> Response {
    let target = escape(target);
    let refresh = format!("<meta http-equiv=\"refresh\" content=\"0;url={target}\">");
    let body = format!(
        "<main class=\"card\"><h1>Signing you in</h1><p><a href=\"{target}\">Go on</a></p></main>"
    );
    page(StatusCode::OK, "signing in", &body, &refresh)
}

/// The code was not good.
pub(super) fn not_entered(request_id: RequestId) -> Response {
    let body = format!(
        "<main class=\"card\"><h1>This link does not work any more</h1>\
         <p>It can be used once, for a minute, and only in the browser that asked for it.</p>\
         <p><a class=\"btn btn-primary\" href=\"/\">Sign in again</a></p>\
         <p><small>Request {request_id}</small></p></main>"
    );
    page(StatusCode::FORBIDDEN, "link expired", &body, "")
}

/// Nothing usable listens on a port: why, what does listen, and how to change it.
pub(super) fn no_server(port: u16, role: Role, error: &Error, listed: &[PortView]) -> Response {
    let others: String = listed
        .iter()
        .filter(|other| other.listening.port != port)
        .map(|other| {
            let number = other.listening.port;
            let name = escape(other.command.as_deref().unwrap_or("a command"));
            match &other.url {
                Some(url) => {
                    let url = escape(url);
                    format!("<li><a href=\"{url}\">{number}</a> <small>{name}</small></li>")
                }
                None => format!("<li>{number} <small>{name}</small></li>"),
            }
        })
        .collect();
    let others = if others.is_empty() {
        "<p>No other port is open in this sandbox.</p>".to_owned()
    } else {
        format!("<p>These ports are open:</p><ul>{others}</ul>")
    };
    let main = format!(
        "<main class=\"card\"><h1>Port {port} of <span class=\"badge badge-{role}\">{role}</span></h1>\
         <div class=\"notice\" role=\"status\">{}</div>{others}\
         <p>A server has to listen on <code>127.0.0.1:{port}</code>, <code>0.0.0.0</code> or <code>::1</code> \
         inside the sandbox. In its terminal, or from outside:</p>\
         <pre>choir service start --role {role} -- python3 -m http.server {port}</pre>\
         <p><a class=\"btn btn-primary\" href=\"\">Try again</a></p></main>",
        escape(&sentence(&error.to_string()))
    );
    page(problem::status(error.code()), "nothing there", &main, "")
}

/// The first part of an error's text; the page says the rest better.
fn sentence(text: &str) -> String {
    let first = text.split("; ").next().unwrap_or(text);
    let mut letters = first.chars();
    letters.next().map_or_else(String::new, |letter| {
        format!("{}{}.", letter.to_uppercase(), letters.as_str())
    })
}

pub(super) fn stylesheet() -> Response {
    asset("text/css; charset=utf-8", format!("{THEME}{STYLE}"))
}

pub(super) fn script() -> Response {
    asset("text/javascript; charset=utf-8", WAIT_SCRIPT.to_owned())
}

fn asset(kind: &'static str, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=300"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn page(status: StatusCode, title: &str, body: &str, head: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">{head}\
         <title>ChoirOS: {title}</title><link rel=\"stylesheet\" href=\"/.choir/theme.css\"></head>\
         <body>{body}</body></html>"
    );
    let mut response = Response::new(Body::from(html));
    *response.status_mut() = status;
    let policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                  form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(policy),
    );
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn encode(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
