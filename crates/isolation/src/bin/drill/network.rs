//! Drills on sockets. No packet leaves: a wall answers at `socket` or `connect`.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::attempt::{Outcome, address, call, number};
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
        name: "rare_socket_families",
        attempt: |_| rare_families(),
    },
    Drill {
        name: "rare_socket_protocols",
        attempt: |_| rare_protocols(),
    },
    Drill {
        name: "rare_socket_pairs",
        attempt: |_| {
            let pair = [0_i32; 2];
            Outcome::all(
                [libc::AF_INET, libc::AF_NETLINK, libc::AF_TIPC].map(|family| {
                    let arguments = [family as usize, 1, 0, address(&pair), 0, 0];
                    let outcome = Outcome::refusal(call(libc::SYS_socketpair, arguments));
                    (format!("family {family}"), outcome)
                }),
            )
        },
    },
    Drill {
        name: "host_loopback_v6",
        attempt: |context| match context.loopback_port {
            Some(port) => connect(([0, 0, 0, 0, 0, 0, 0, 1], port).into()),
            None => Outcome::Denied("no port was named".to_owned()),
        },
    },
    Drill {
        name: "host_loopback_mapped",
        attempt: |context| match context.loopback_port {
            Some(port) => connect(([0, 0, 0, 0, 0, 0xffff, 0x7f00, 1], port).into()),
            None => Outcome::Denied("no port was named".to_owned()),
        },
    },
    Drill {
        name: "host_interfaces",
        attempt: |_| host_interfaces(),
    },
    Drill {
        name: "name_resolution",
        attempt: |_| name_resolution(),
    },
    Drill {
        name: "interface_configured",
        attempt: |_| interface_up(),
    },
    Drill {
        name: "metadata_address",
        attempt: |_| {
            Outcome::all(
                [
                    SocketAddr::from(([169, 254, 169, 254], 80)),
                    ([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 80).into(),
                    ([0, 0, 0, 0, 0, 0xffff, 0xa9fe, 0xa9fe], 80).into(),
                    ([168, 63, 129, 16], 80).into(),
                    ([100, 100, 100, 200], 80).into(),
                ]
                .map(|address| (address.to_string(), connect(address))),
            )
        },
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

/// All families but Unix, IPv4 and IPv6.
fn rare_families() -> Outcome {
    let wanted = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];
    let families = (0..64).filter(|family| !wanted.contains(family));
    Outcome::all(families.flat_map(|family| {
        [
            libc::SOCK_STREAM,
            libc::SOCK_DGRAM,
            libc::SOCK_RAW,
            libc::SOCK_SEQPACKET,
        ]
        .map(|kind| {
            (
                format!("family {family} type {kind}"),
                socket(family, kind, 0),
            )
        })
    }))
}

/// Over IP there is TCP and UDP; all other protocols are kernel code for nobody.
fn rare_protocols() -> Outcome {
    let kinds = [
        (libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        (libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        (libc::SOCK_STREAM, libc::IPPROTO_DCCP),
        (libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP),
        (libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
        (libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        (libc::SOCK_RAW, libc::IPPROTO_RAW),
        (10, 0),
    ];
    Outcome::all(
        [libc::AF_INET, libc::AF_INET6]
            .into_iter()
            .flat_map(|family| {
                kinds.map(|(kind, protocol)| {
                    let what = format!("family {family} type {kind} protocol {protocol}");
                    (what, socket(family, kind, protocol))
                })
            }),
    )
}

/// A network namespace of its own has nothing but loopback.
fn host_interfaces() -> Outcome {
    let text = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let foreign = text
        .lines()
        .skip(2)
        .filter_map(|line| line.split(':').next())
        .find(|name| name.trim() != "lo");
    foreign.map_or_else(
        || Outcome::Denied("loopback alone".to_owned()),
        |name| Outcome::Open(format!("{} is visible", name.trim())),
    )
}

/// Names of the world have no way in, and so no way out as a channel for data.
fn name_resolution() -> Outcome {
    Outcome::all(
        ["example.com:80", "metadata.google.internal:80"]
            .map(|name| (name.to_owned(), Outcome::any_error(name.to_socket_addrs()))),
    )
}

/// Configuring an interface takes a capability over the network namespace.
fn interface_up() -> Outcome {
    let outcome = UdpSocket::bind("127.0.0.1:0").map(|socket| {
        // `struct ifreq`: name, then flags (IFF_UP and IFF_RUNNING, which it has already).
        let mut request = [0_u8; 40];
        for (to, from) in request
            .iter_mut()
            .zip(*b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x41")
        {
            *to = from;
        }
        let set = libc::SIOCSIFFLAGS as usize;
        let arguments = [number(&socket), set, address(&request), 0, 0, 0];
        Outcome::any_error(call(libc::SYS_ioctl, arguments))
    });
    outcome.unwrap_or_else(|error| Outcome::Denied(error.to_string()))
}

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
