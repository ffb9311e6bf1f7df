//! Bytes between a runner and what it connected to.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::denial::Denial;
use super::hello::{self, Hello, HelloError, MAX_HELLO};
use super::name::Host;
use super::traffic::{Counted, End, Ended};
use super::{Access, Egress, Permit};
use crate::last_words::copy_both;

/// A fatal `access_denied` alert (RFC 8446 §6.2), so that a TLS client says more than that
/// the connection broke.
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

impl Egress {
    /// Carries a tunnel until it ends. Nothing that the other side sends reaches the runner,
    /// and nothing of the runner's the other side, before the first bytes are found right.
    pub async fn tunnel<C>(&self, mut client: C, upstream: TcpStream, mut permit: Permit) -> Ended
    where
        C: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let (mut upstream, traffic) = Counted::new(upstream);
        let (access, target) = (permit.caller.access, permit.target.clone());
        let carry = async {
            if access == Access::Allowlist {
                let first = timeout(self.limits.hello, first_bytes(&mut client)).await;
                let error = match first {
                    Err(_) => return End::Idle,
                    Ok(Err(FirstBytes::Gone)) => return End::Closed,
                    Ok(Ok((name, bytes))) if target.host == Host::Name(name.clone()) => {
                        if upstream.write_all(&bytes).await.is_err() {
                            return End::Closed;
                        }
                        None
                    }
                    Ok(Ok((named, _))) => Some(Denial::OtherName {
                        target: target.clone(),
                        named,
                    }),
                    Ok(Err(FirstBytes::Wrong(error))) => Some(Denial::Hello {
                        target: target.clone(),
                        error,
                    }),
                };
                if let Some(denial) = error {
                    // It may be gone already.
                    let _ = timeout(self.limits.hello, client.write_all(&ACCESS_DENIED)).await;
                    return End::Denied(denial);
                }
            }
            tokio::select! {
                // A side that breaks off is no fault of ours.
                _ = copy_both(client, upstream) => End::Closed,
                () = traffic.silence(self.limits.idle) => End::Idle,
            }
        };
        let end = tokio::select! {
            biased;
            end = permit.ended() => end,
            end = carry => end,
        };
        traffic.ended(end)
    }
}

enum FirstBytes {
    Gone,
    Wrong(HelloError),
}

/// Reads exactly as long as it takes to know the name.
async fn first_bytes<C: AsyncRead + Unpin>(
    client: &mut C,
) -> Result<(super::DomainName, Vec<u8>), FirstBytes> {
    let mut bytes = Vec::with_capacity(2048);
    let mut needed = 1;
    loop {
        while bytes.len() < needed {
            let room = (MAX_HELLO - bytes.len()).max(1) as u64;
            match (&mut *client).take(room).read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return Err(FirstBytes::Gone),
                Ok(_) => {}
            }
        }
        match hello::inspect(&bytes).map_err(FirstBytes::Wrong)? {
            Hello::Names(name) => return Ok((name, bytes)),
            Hello::Partial(more) => needed = more.max(bytes.len() + 1),
        }
    }
}
