//! Plain HTTP: one request, one connection.

use bytes::Bytes;
use http::header::{EXPECT, HOST, HeaderValue, VIA};
use http::uri::PathAndQuery;
use http::{Request, Response, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::traffic::{Counted, End, Ended};
use super::{Egress, Permit};
use crate::BoxError;
use crate::headers::{check_framing, drop_hop_by_hop};

/// Largest response head, and most fields in it.
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 100;

/// Who forwarded the message (RFC 9110 §7.6.3).
const OUR_VIA: HeaderValue = HeaderValue::from_static("1.1 choir");

/// Why a plain request brought no response.
#[derive(Debug, thiserror::Error)]
pub enum PlainError {
    /// The request's own headers contradict each other.
    #[error("the request is not well formed: {0}")]
    Request(&'static str),
    /// The other side sent no acceptable response.
    #[error("the server's answer is no HTTP response")]
    Response(#[source] hyper::Error),
    /// Nothing came for too long, or the right to the connection ended.
    #[error("the connection was closed before an answer came")]
    Closed,
}

impl Egress {
    /// Sends a request that came in absolute form and returns its response, whose body goes
    /// on as long as the permit does. `on_end` is told when the connection is over.
    ///
    /// The request is made anew: origin form, `Host` from the target (RFC 9112 §3.2.2), no
    /// field of the hop to us, framing by the client library.
    ///
    /// # Errors
    /// Contradicting headers, an answer that is none, or the permit ended.
    pub async fn exchange<B>(
        &self,
        mut request: Request<B>,
        upstream: TcpStream,
        mut permit: Permit,
        on_end: impl FnOnce(Ended) + Send + 'static,
    ) -> Result<Response<Incoming>, PlainError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        prepare(&mut request, &permit)?;
        let (counted, traffic) = Counted::new(upstream);
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .handshake(TokioIo::new(counted))
            .await
            .map_err(PlainError::Response)?;
        let idle = self.limits.idle;
        tokio::spawn(async move {
            // Dropping the connection breaks the body off, so that it never looks whole.
            let end = tokio::select! {
                biased;
                end = permit.ended() => end,
                _ = connection => End::Closed,
                () = traffic.silence(idle) => End::Idle,
            };
            on_end(traffic.ended(end));
        });
        let mut response = sender.send_request(request).await.map_err(|error| {
            if error.is_canceled() || error.is_closed() || error.is_incomplete_message() {
                PlainError::Closed
            } else {
                PlainError::Response(error)
            }
        })?;
        let headers = response.headers_mut();
        if drop_hop_by_hop(headers).is_err() {
            return Err(PlainError::Closed);
        }
        headers.append(VIA, OUR_VIA);
        *response.version_mut() = Version::HTTP_11;
        Ok(response)
    }
}

fn prepare<B>(request: &mut Request<B>, permit: &Permit) -> Result<(), PlainError> {
    let target = permit.target();
    let host = if target.port == 80 {
        target.host.to_string()
    } else {
        target.to_string()
    };
    let host = HeaderValue::try_from(host).map_err(|_| PlainError::Request("its host"))?;
    let path = request
        .uri()
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let headers = request.headers_mut();
    check_framing(headers).map_err(|error| PlainError::Request(error.0))?;
    drop_hop_by_hop(headers).map_err(|error| PlainError::Request(error.0))?;
    // Answered on this side, where the body is asked for.
    headers.remove(EXPECT);
    headers.insert(HOST, host);
    headers.append(VIA, OUR_VIA);
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    Ok(())
}
