//! Drills on files: what must not be reachable, and what must not be writable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::attempt::Outcome;
use crate::{Context, Drill};

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "write_core_pattern",
        attempt: |_| write("/proc/sys/kernel/core_pattern"),
    },
    Drill {
        name: "write_proc_sys",
        attempt: |_| write("/proc/sys/kernel/domainname"),
    },
    Drill {
        name: "write_ip_forward",
        attempt: |_| write("/proc/sys/net/ipv4/ip_forward"),
    },
    Drill {
        name: "write_modprobe",
        attempt: |_| write("/proc/sys/kernel/modprobe"),
    },
    Drill {
        name: "write_sysrq",
        attempt: |_| write("/proc/sysrq-trigger"),
    },
    Drill {
        name: "write_release_agent",
        attempt: |_| write("/sys/fs/cgroup/release_agent"),
    },
    Drill {
        name: "write_uevent_helper",
        attempt: |_| write("/sys/kernel/uevent_helper"),
    },
    Drill {
        name: "read_sys",
        attempt: |_| read("/sys/kernel/uevent_seqnum"),
    },
    Drill {
        name: "read_kcore",
        attempt: |_| read("/proc/kcore"),
    },
    Drill {
        name: "read_keys",
        attempt: |_| has_content("/proc/keys"),
    },
    Drill {
        name: "write_own_binary",
        attempt: |_| write("/proc/self/exe"),
    },
    Drill {
        name: "write_guest_binary",
        attempt: |_| write("/choir/bin/sandbox"),
    },
    Drill {
        name: "write_init_memory",
        attempt: |_| write("/proc/1/mem"),
    },
    Drill {
        name: "read_init_memory",
        attempt: |_| read("/proc/1/mem"),
    },
    Drill {
        name: "write_uid_map",
        attempt: |_| write_text("/proc/self/uid_map", "0 0 1"),
    },
    Drill {
        name: "create_in_root",
        attempt: |_| create("/choir-drill"),
    },
    Drill {
        name: "create_in_usr",
        attempt: |_| create("/usr/choir-drill"),
    },
    Drill {
        name: "create_in_etc",
        attempt: |_| create("/etc/choir-drill"),
    },
    Drill {
        name: "create_in_channel",
        attempt: |_| create("/run/choir/channel/choir-drill"),
    },
    Drill {
        name: "bind_in_channel",
        attempt: |_| bind("/run/choir/channel/other.sock"),
    },
    Drill {
        name: "rename_channel",
        attempt: |_| rename("/run/choir/channel"),
    },
    Drill {
        name: "host_paths",
        attempt: forbidden_paths,
    },
    Drill {
        name: "host_paths_through_init",
        attempt: forbidden_through_init,
    },
    Drill {
        name: "host_homes",
        attempt: |_| host_homes(),
    },
    Drill {
        name: "device_nodes",
        attempt: |_| device_nodes(),
    },
    Drill {
        name: "engine_sockets",
        attempt: |_| engine_sockets(),
    },
    Drill {
        name: "setuid_mounts",
        attempt: |_| setuid_mounts(),
    },
];

fn read(path: &str) -> Outcome {
    let mut byte = [0; 1];
    Outcome::any_error(File::open(path).and_then(|mut file| {
        let read = io::Read::read(&mut file, &mut byte)?;
        if read == 0 {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Ok(())
        }
    }))
}

/// A masked file may be there, but it must be empty.
fn has_content(path: &str) -> Outcome {
    match std::fs::read(path) {
        Ok(content) if content.is_empty() => Outcome::Denied("empty".to_owned()),
        other => Outcome::any_error(other),
    }
}

fn write(path: &str) -> Outcome {
    Outcome::any_error(OpenOptions::new().write(true).open(path))
}

fn write_text(path: &str, text: &str) -> Outcome {
    Outcome::any_error(std::fs::write(path, text))
}

fn create(path: &str) -> Outcome {
    let outcome = Outcome::any_error(OpenOptions::new().write(true).create_new(true).open(path));
    if !outcome.is_denied() {
        let _ = std::fs::remove_file(path);
    }
    outcome
}

fn bind(path: &str) -> Outcome {
    Outcome::any_error(UnixListener::bind(path))
}

fn rename(path: &str) -> Outcome {
    let away = format!("{path}-drill");
    let result = std::fs::rename(path, &away);
    if result.is_ok() {
        let _ = std::fs::rename(&away, path);
    }
    Outcome::any_error(result)
}

fn forbidden_paths(context: &Context) -> Outcome {
    Outcome::all(context.forbidden.iter().map(|path| {
        (
            path.display().to_string(),
            Outcome::any_error(path.symlink_metadata()),
        )
    }))
}

/// The same paths through the root of pid 1, which must be this sandbox's own init.
fn forbidden_through_init(context: &Context) -> Outcome {
    Outcome::all(context.forbidden.iter().map(|path| {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let path = Path::new("/proc/1/root").join(inside);
        (
            path.display().to_string(),
            Outcome::any_error(path.symlink_metadata()),
        )
    }))
}

/// `/home` holds our own user's home alone, and `/root` is not there.
fn host_homes() -> Outcome {
    let foreign = std::fs::read_dir("/home")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path != Path::new("/home/choir"));
    if let Some(path) = foreign {
        return Outcome::Open(format!("{} is visible", path.display()));
    }
    Outcome::any_error(std::fs::read_dir("/root"))
}

fn device_nodes() -> Outcome {
    const FORBIDDEN: &[&str] = &[
        "/dev/mem",
        "/dev/kmem",
        "/dev/kmsg",
        "/dev/kvm",
        "/dev/fuse",
        "/dev/sda",
        "/dev/vda",
        "/dev/loop-control",
        "/dev/net/tun",
        "/dev/mapper/control",
        "/dev/uinput",
        "/dev/tty0",
        "/dev/vsock",
        "/dev/vhost-net",
    ];
    Outcome::all(
        FORBIDDEN
            .iter()
            .map(|path| ((*path).to_owned(), Outcome::any_error(File::open(path)))),
    )
}

fn engine_sockets() -> Outcome {
    const SOCKETS: &[&str] = &[
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/podman/podman.sock",
        "/run/containerd/containerd.sock",
        "/run/crio/crio.sock",
        "/run/systemd/private",
        "/run/dbus/system_bus_socket",
        "/run/choir/control.sock",
    ];
    Outcome::all(SOCKETS.iter().map(|path| {
        (
            (*path).to_owned(),
            Outcome::any_error(UnixStream::connect(path)),
        )
    }))
}

/// A set-uid program of the host gains nothing here.
fn setuid_mounts() -> Outcome {
    Outcome::all(["/", "/usr", "/workspace", "/tmp"].map(|path| {
        let outcome = match rustix::fs::statvfs(path) {
            Ok(stat) if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID) => {
                Outcome::Denied("nosuid".to_owned())
            }
            Ok(_) => Outcome::Open("mounted without nosuid".to_owned()),
            Err(error) => Outcome::Denied(error.to_string()),
        };
        (path.to_owned(), outcome)
    }))
}
