//! The forwarding engine.

use std::time::Duration;

use http::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio_util::task::TaskTracker;

use crate::body::UpstreamBody;
use crate::headers::{
    check_framing, clean_request, clean_response, forwarded_uri, is_service_worker_script,
};
use crate::upstream::{Answer, Lease, Terms};
use crate::websocket::{SocketTag, Tunnel, TunnelEnds, check_answer, prepare, wants_websocket};
use crate::{
    ForwardError, HeaderRules, Refusal, RequestBody, ResponseBody, ServiceWorkers, Upstream,
};

/// Longest wait for both ends to let go of HTTP after a `101`.
const UPGRADE_WAIT: Duration = Duration::from_secs(10);

/// Forwards requests to upstreams.
#[derive(Debug, Default, Clone)]
pub struct Forwarder {
    tunnels: TaskTracker,
}

impl Forwarder {
    /// A forwarder; one per process is enough.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forwards one request and returns the response as soon as its head is there.
    ///
    /// A WebSocket upgrade is carried out too: the response is the `101`, and the bytes are
    /// then copied by a task of its own until either end closes or the start ends. The
    /// caller has authenticated the request and checked `Origin` before (arch §2).
    ///
    /// Dropping the future or the response body closes the upstream connection.
    ///
    /// # Errors
    /// [`ForwardError`]; its `code` and `status` are for the problem document.
    pub async fn forward(
        &self,
        request: Request<RequestBody>,
        upstream: &Upstream,
        rules: &HeaderRules,
    ) -> Result<Response<ResponseBody>, ForwardError> {
        self.forward_tagged(request, upstream, rules, SocketTag::default())
            .await
    }

    /// The same; a WebSocket is registered under `tag`, for
    /// [`Upstream::close_websockets_of`].
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub async fn forward_tagged(
        &self,
        mut request: Request<RequestBody>,
        upstream: &Upstream,
        rules: &HeaderRules,
        tag: SocketTag,
    ) -> Result<Response<ResponseBody>, ForwardError> {
        let websocket = check_request(&request, rules).map_err(ForwardError::Refused)?;
        let client = websocket.then(|| hyper::upgrade::on(&mut request));
        let registration = match &client {
            Some(_) => {
                let registered = upstream.websockets().register(tag);
                Some(registered.ok_or(ForwardError::Busy)?)
            }
            None => None,
        };

        let (mut parts, body) = request.into_parts();
        parts.extensions.clear();
        parts.version = Version::HTTP_11;
        parts.uri = forwarded_uri(parts.uri, rules.prefix).map_err(ForwardError::Refused)?;
        clean_request(&mut parts.headers, rules)
            .map_err(|_| ForwardError::Refused(Refusal::Headers))?;
        if websocket {
            prepare(&mut parts.headers);
        }
        let body = UpstreamBody::new(body, upstream.limits().max_request_body);
        let request = Box::new(Request::from_parts(parts, body));

        let Answer { response, lease } = upstream
            // A handshake is no activity: what comes back by itself would keep itself awake.
            .exchange(
                request,
                Terms {
                    counts: rules.counts_as_activity && !websocket,
                    upgrade: websocket,
                    ..Terms::default()
                },
            )
            .await?;
        let (mut parts, incoming) = response.into_parts();
        parts.version = Version::HTTP_11;
        let switched = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        let acceptable = !switched || check_answer(&parts.headers);
        clean_response(&mut parts.headers, rules).map_err(|error| bad_response(error.0))?;
        if !switched {
            parts.extensions.clear();
            let body = lease.into_body(&parts.headers, incoming).await;
            return Ok(Response::from_parts(parts, body));
        }
        if !acceptable {
            return Err(bad_response(
                "it switches to something that is no WebSocket",
            ));
        }

        parts.extensions.clear();
        prepare(&mut parts.headers);
        if let (Some(client), Some(registration)) = (client, registration) {
            let tunnel = Tunnel {
                upstream: upstream.clone(),
                registration,
                counts: rules.counts_as_activity,
            };
            self.tunnels.spawn(carry(client, lease, tunnel));
        }
        Ok(Response::from_parts(parts, ResponseBody::empty()))
    }

    /// Waits until no WebSocket is open any more; for a graceful end of the process.
    pub async fn drained(&self) {
        self.tunnels.close();
        self.tunnels.wait().await;
    }
}

/// Refuses what is not forwarded; tells whether it is a WebSocket.
fn check_request(request: &Request<RequestBody>, rules: &HeaderRules) -> Result<bool, Refusal> {
    let method = request.method();
    if method == Method::CONNECT || method == Method::TRACE {
        return Err(Refusal::Method);
    }
    check_framing(request.headers()).map_err(|_| Refusal::Headers)?;
    if rules.service_workers == ServiceWorkers::Refuse
        && is_service_worker_script(request.headers())
    {
        return Err(Refusal::ServiceWorker);
    }
    wants_websocket(request)
}

const fn bad_response(reason: &'static str) -> ForwardError {
    ForwardError::BadResponse {
        reason,
        source: None,
    }
}

/// Takes both connections over from HTTP and copies.
async fn carry(client: hyper::upgrade::OnUpgrade, lease: Lease, tunnel: Tunnel) {
    let ended = tunnel.upstream.ended().clone();
    let handed_over = async { tokio::join!(client, lease.into_upgraded()) };
    let (client, (app, early)) = tokio::select! {
        biased;
        () = ended.cancelled() => return,
        both = tokio::time::timeout(UPGRADE_WAIT, handed_over) => match both {
            Ok((Ok(client), app)) => (client, app),
            Ok((Err(error), _)) => {
                tracing::debug!(%error, "a WebSocket upgrade came to nothing");
                return;
            }
            Err(_) => {
                tracing::debug!("a WebSocket upgrade was not completed in time");
                return;
            }
        },
    };
    let client = TokioIo::new(client);
    tunnel.run(TunnelEnds { client, app, early }).await;
}
