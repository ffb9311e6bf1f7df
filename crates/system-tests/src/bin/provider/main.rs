//! A model provider that is none: it speaks the wire formats of OpenAI and Anthropic to stock
//! clients, and tells what it was sent. A test starts it with the key that it demands; it
//! prints its port.
//!
//! What it does stands in the last text of the user ([`plan`]):
//!
//! | text | what happens |
//! | --- | --- |
//! | `fail STATUS [xN] [after SECONDS]` | fails, N times or always, with a `Retry-After` |
//! | `slow MARK` | pieces without end, until somebody hangs up |
//! | `silent MARK` | no answer at all, until somebody hangs up |
//! | `break MARK` | a stream that breaks off in the middle |
//! | `echo` | says the key that it was sent, in a stream that is cut at odd places |
//! | `run: COMMAND` | asks for the command in the tool that the client has for it |
//! | `tool` | asks for the first tool, in the city of Paris |
//! | anything else | says how many bytes it got, and the beginning of the text |

mod anthropic;
mod openai;
mod plan;
mod wire;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use plan::{Act, Failures};
use wire::{Body, full};

/// Requests larger than this are none of a test's.
const MAX_BODY: usize = 64 << 20;

/// How a request ended, as far as the double can see.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It was answered to the end.
    Whole,
    /// The client hung up first.
    Cut,
}

/// A request that was seen.
#[derive(Debug)]
struct Seen {
    path: String,
    headers: HeaderMap,
    model: String,
    text: String,
    bytes: usize,
    stream: bool,
    status: u16,
    /// Whether the reply says what it cost: streams of Anthropic's do so at their beginning,
    /// those of OpenAI's at their end, and of chat completions only when asked.
    usage: bool,
    end: Option<(End, u128)>,
}

impl Seen {
    fn show(&self) -> Value {
        let headers: serde_json::Map<String, Value> = self
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    String::from_utf8_lossy(value.as_bytes()).into(),
                )
            })
            .collect();
        json!({
            "path": self.path, "headers": headers, "model": self.model, "text": self.text,
            "bytes": self.bytes, "stream": self.stream, "status": self.status, "usage": self.usage,
            "end": self.end.map(|(end, _)| match end { End::Whole => "whole", End::Cut => "cut" }),
            "ended_ms": self.end.map(|(_, at)| at as u64),
        })
    }
}

/// What all connections share.
#[derive(Debug, Default)]
struct Double {
    key: String,
    seen: Mutex<Vec<Seen>>,
    failures: Failures,
}

/// Tells the end of one request, also when it is dropped.
struct Ending {
    double: Arc<Double>,
    at: usize,
    end: End,
}

impl Ending {
    fn whole(mut self) {
        self.end = End::Whole;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let mut seen = self
            .double
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = seen.get_mut(self.at) {
            one.end = Some((self.end, now_ms()));
        }
    }
}

/// Unix milliseconds.
fn now_ms() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis())
}

#[tokio::main]
async fn main() -> Result<()> {
    let key = std::env::args().nth(1).context("usage: provider KEY")?;
    let double = Arc::new(Double {
        key,
        ..Double::default()
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        let double = Arc::clone(&double);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let double = Arc::clone(&double);
                async move { Ok::<_, Infallible>(answer(&double, request).await) }
            });
            // A client that hangs up is what some tests are about.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The two families of formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    Chat,
    Responses,
    Embeddings,
    Messages,
    CountTokens,
    OpenAiModels,
    AnthropicModels,
}

fn api(method: &Method, path: &str) -> Option<Api> {
    Some(match (method.as_str(), path) {
        ("POST", "/v1/chat/completions") => Api::Chat,
        ("POST", "/v1/responses") => Api::Responses,
        ("POST", "/v1/embeddings") => Api::Embeddings,
        ("GET", "/v1/models") => Api::OpenAiModels,
        ("POST", "/anthropic/v1/messages") => Api::Messages,
        ("POST", "/anthropic/v1/messages/count_tokens") => Api::CountTokens,
        ("GET", "/anthropic/v1/models") => Api::AnthropicModels,
        _ => return None,
    })
}

impl Api {
    fn is_anthropic(self) -> bool {
        matches!(
            self,
            Self::Messages | Self::CountTokens | Self::AnthropicModels
        )
    }

    fn failed(self, status: u16, message: &str) -> Value {
        if self.is_anthropic() {
            anthropic::error(status, message)
        } else {
            openai::error(status, message)
        }
    }

    fn shows(self, headers: &HeaderMap, key: &str) -> bool {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if self.is_anthropic() {
            text("x-api-key") == Some(key)
        } else {
            text("authorization").and_then(|value| value.strip_prefix("Bearer ")) == Some(key)
        }
    }
}

async fn answer(double: &Arc<Double>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    if path == "/seen" {
        let seen = double.seen.lock().unwrap_or_else(PoisonError::into_inner);
        return full(
            StatusCode::OK,
            &seen.iter().map(Seen::show).collect::<Vec<_>>().into(),
        );
    }
    let Some(api) = api(&head.method, &path) else {
        return full(
            StatusCode::NOT_FOUND,
            &openai::error(404, &format!("no such path: {path}")),
        );
    };
    let bytes = match http_body_util::Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return full(
                StatusCode::BAD_REQUEST,
                &api.failed(400, &error.to_string()),
            );
        }
    };
    let parsed: Value = match serde_json::from_slice(&bytes) {
        Ok(parsed) => parsed,
        Err(_) if bytes.is_empty() => Value::Null,
        Err(error) => {
            return full(
                StatusCode::BAD_REQUEST,
                &api.failed(400, &error.to_string()),
            );
        }
    };
    let ask = match api {
        Api::Messages | Api::CountTokens => anthropic::ask(&parsed, bytes.len()),
        _ => openai::ask(&parsed, bytes.len()),
    };
    let authorised = api.shows(&head.headers, &double.key);
    let act = if authorised {
        plan::plan(&ask, &double.failures)
    } else {
        Act::Fail {
            status: 401,
            retry_after: None,
        }
    };
    let echoes = act == Act::Echo;
    let act = if echoes {
        Act::Say(format!("the key is {} as it was sent", double.key))
    } else {
        act
    };
    let status = if let Act::Fail { status, .. } = act {
        status
    } else {
        200
    };
    let ending = {
        let mut seen = double.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push(Seen {
            path: head.uri.to_string(),
            headers: head.headers,
            model: ask.model.clone(),
            text: ask.said().chars().take(200).collect(),
            stream: ask.stream,
            bytes: bytes.len(),
            status,
            usage: match api {
                Api::Messages => !matches!(act, Act::Fail { .. } | Act::Silent),
                Api::Chat if ask.stream && !ask.with_usage => false,
                Api::Chat | Api::Responses => matches!(act, Act::Say(_) | Act::Call { .. }),
                _ => false,
            },
            end: None,
        });
        Ending {
            double: Arc::clone(double),
            at: seen.len() - 1,
            end: End::Cut,
        }
    };
    let number = ending.at;
    let mut response = match act {
        Act::Silent => {
            // Dropped together with the connection.
            let _ending = ending;
            std::future::pending::<()>().await;
            return full(StatusCode::OK, &Value::Null);
        }
        Act::Fail {
            status,
            retry_after,
        } => {
            // A provider that repeats the key it was sent; nobody below may see it.
            let message = format!("failed with {status} as it was told (key {})", double.key);
            let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = full(code, &api.failed(status, &message));
            if let Some(seconds) = retry_after {
                response.headers_mut().insert("retry-after", seconds.into());
            }
            ending.whole();
            response
        }
        act => match api {
            Api::Chat | Api::Responses | Api::Messages if ask.stream => {
                let events = match api {
                    Api::Chat => openai::chat_stream(&ask, &act),
                    Api::Responses => openai::responses_stream(&ask, &act),
                    _ => anthropic::stream(&ask, &act),
                };
                let events = if echoes {
                    events.cut_at_odd_places()
                } else {
                    events
                };
                events.respond(ending)
            }
            other => {
                ending.whole();
                full(
                    StatusCode::OK,
                    &match other {
                        Api::Chat => openai::chat(&ask, &act),
                        Api::Responses => openai::responses(&ask, &act),
                        Api::Embeddings => openai::embeddings(&ask),
                        Api::Messages => anthropic::message(&ask, &act),
                        Api::CountTokens => json!({ "input_tokens": wire::INPUT }),
                        Api::OpenAiModels => openai::models(),
                        Api::AnthropicModels => anthropic::models(),
                    },
                )
            }
        },
    };
    // What the APIs send besides, and what must not come down.
    let headers = response.headers_mut();
    let id = format!("req_double_{number}");
    for (name, value) in [
        (
            if api.is_anthropic() {
                "request-id"
            } else {
                "x-request-id"
            },
            id.as_str(),
        ),
        ("x-ratelimit-remaining-requests", "59"),
        ("set-cookie", "__cf_bm=double"),
        ("x-key-echo", double.key.as_str()),
        // One that comes down otherwise.
        ("x-ratelimit-limit-requests", double.key.as_str()),
    ] {
        if let Ok(value) = value.parse() {
            headers.insert(http::HeaderName::from_static(name), value);
        }
    }
    response
}
