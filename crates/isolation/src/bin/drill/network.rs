//! Drills on sockets. No packet leaves: a wall answers at `socket` or `connect`.

use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::attempt::{Outcome, call};
use crate::{Context, Drill};

/// Long enough for a connection that works, short enough for one that hangs.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "raw_socket",
        attempt: |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
    },
    Drill {
        name: "raw6_socket",
        attempt: |_| socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
    },
    Drill {
        name: "packet_socket",
        attempt: |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0),
    },
    Drill {
        name: "netlink_socket",
        attempt: |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0),
    },
    Drill {
        name: "vsock_socket",
        attempt: |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
    },
    Drill {
        name: "alg_socket",
        attempt: |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
    },
    Drill {
        name: "bluetooth_socket",
        attempt: |_| socket(libc::AF_BLUETOOTH, libc::SOCK_RAW, 0),
    },
    Drill {
        name: "xdp_socket",
        attempt: |_| socket(44, libc::SOCK_RAW, 0),
    },
    Drill {
        name: "host_abstract_socket",
        attempt: host_abstract_socket,
    },
    Drill {
        name: "host_loopback",
        attempt: host_loopback,
    },
    Drill {
        name: "metadata_address",
        attempt: |_| connect(([169, 254, 169, 254], 80).into()),
    },
    Drill {
        name: "outside_address",
        attempt: |_| connect(([192, 0, 2, 1], 443).into()),
    },
    Drill {
        name: "outside_dns",
        attempt: |_| outside_dns(),
    },
];

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> Outcome {
    let arguments = [family as usize, kind as usize, protocol as usize, 0, 0, 0];
    Outcome::refusal(call(libc::SYS_socket, arguments))
}

fn host_abstract_socket(context: &Context) -> Outcome {
    let Some(name) = &context.abstract_socket else {
        return Outcome::Denied("no socket was named".to_owned());
    };
    Outcome::any_error(
        std::os::unix::net::SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixStream::connect_addr(&address)),
    )
}

fn host_loopback(context: &Context) -> Outcome {
    let Some(port) = context.loopback_port else {
        return Outcome::Denied("no port was named".to_owned());
    };
    connect(([127, 0, 0, 1], port).into())
}

fn connect(address: SocketAddr) -> Outcome {
    Outcome::any_error(TcpStream::connect_timeout(&address, CONNECT_WITHIN))
}

/// Connecting a UDP socket sends nothing; it asks whether there is a way.
fn outside_dns() -> Outcome {
    let result: io::Result<()> = UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| socket.connect(SocketAddr::from(([192, 0, 2, 1], 53))));
    Outcome::any_error(result)
}
