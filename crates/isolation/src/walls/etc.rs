//! The few files of `/etc` that programs look for, written anew for each sandbox.

use std::path::{Path, PathBuf};

use crate::spec::{HOME, INNER_ID, INNER_USER};

/// Files and directories of the host's `/etc` that are shown as they are: how to load
/// libraries, whom to trust in TLS, which alternative is chosen, which time zone it is.
/// None holds a secret; what is missing on a host is left out.
pub(crate) const SHOWN: &[&str] = &[
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/pki/ca-trust",
    "/etc/pki/tls",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
];

/// Directories of `/etc` whose name begins like this are shown too: Java keeps its
/// configuration there and does not start without.
pub(crate) const SHOWN_PREFIX: &str = "java-";

/// Symbolic links of the host that are reproduced when they are links there: the release
/// file, and the directory that NixOS keeps its `/etc` in.
pub(crate) const LINKS: &[&str] = &["/etc/os-release", "/etc/static", "/etc/mtab"];

/// What is written.
pub(crate) fn files(hostname: &str) -> Vec<(PathBuf, String)> {
    let shell = if Path::new("/bin/bash").exists() {
        "/bin/bash"
    } else {
        "/bin/sh"
    };
    let file = |name: &str, text: String| (Path::new("/etc").join(name), text);
    vec![
        file(
            "passwd",
            format!(
                "root:x:0:0:root:/:/usr/sbin/nologin\n\
                 {INNER_USER}:x:{INNER_ID}:{INNER_ID}:ChoirOS:{HOME}:{shell}\n\
                 nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
            ),
        ),
        file(
            "group",
            format!("root:x:0:\n{INNER_USER}:x:{INNER_ID}:\nnogroup:x:65534:\n"),
        ),
        file(
            "hosts",
            format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback\n"),
        ),
        file("hostname", format!("{hostname}\n")),
        file(
            "nsswitch.conf",
            "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n\
             networks: files\nprotocols: files\nservices: files\n"
                .into(),
        ),
        file(
            "resolv.conf",
            "# A sandbox has loopback only; names resolve by /etc/hosts.\n".into(),
        ),
    ]
}
