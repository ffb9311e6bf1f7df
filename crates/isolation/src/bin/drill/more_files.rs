//! Drills on paths that lead elsewhere: links, races, other processes' directories, programs
//! with the set-user-ID bit.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::attempt::{Outcome, call};
use crate::{Context, Drill};

/// Turns of the race; each is a few microseconds.
const TURNS: usize = 20_000;

/// Directories that guest, runners and the host share.
const SHARED: &[&str] = &["/workspace", "/home/choir", "/tmp"];

pub(crate) const DRILLS: &[Drill] = &[
    Drill {
        name: "link_out_of_a_shared_directory",
        attempt: link_out,
    },
    Drill {
        name: "link_raced_out_of_a_shared_directory",
        attempt: race_out,
    },
    Drill {
        name: "hard_link_to_a_foreign_file",
        attempt: |_| hard_link(),
    },
    Drill {
        name: "hard_link_to_the_channel",
        attempt: |_| {
            Outcome::any_error(fs::hard_link(
                "/run/choir/channel/channel.sock",
                "/workspace/choir-drill.sock",
            ))
        },
    },
    Drill {
        name: "path_above_the_root",
        attempt: above_the_root,
    },
    Drill {
        name: "path_through_descriptors",
        attempt: through_descriptors,
    },
    Drill {
        name: "init_environment",
        attempt: |_| Outcome::any_error(read_some("/proc/1/environ")),
    },
    Drill {
        name: "init_descriptors",
        attempt: |_| Outcome::any_error(fs::read_dir("/proc/1/fd").and_then(first)),
    },
    Drill {
        name: "init_working_directory",
        attempt: |_| Outcome::any_error(fs::read_dir("/proc/1/cwd/").and_then(first)),
    },
    Drill {
        name: "init_maps",
        attempt: |_| Outcome::any_error(read_some("/proc/1/maps")),
    },
    Drill {
        name: "supervisor_binary_through_init",
        attempt: |_| Outcome::any_error(OpenOptions::new().write(true).open("/proc/1/exe")),
    },
    Drill {
        name: "writable_proc_files",
        attempt: |_| writable_proc_files(),
    },
    Drill {
        name: "kernel_memory_and_addresses",
        attempt: |_| kernel_files(),
    },
    Drill {
        name: "kernel_file_systems",
        attempt: |_| kernel_file_systems(),
    },
    Drill {
        name: "host_shared_memory",
        attempt: |_| shared_memory(),
    },
    Drill {
        name: "foreign_terminals",
        attempt: |_| foreign_terminals(),
    },
    Drill {
        name: "foreign_owner",
        attempt: |_| foreign_owner(),
    },
    Drill {
        name: "set_user_id_program",
        attempt: |_| set_user_id_program(),
    },
    Drill {
        name: "host_set_user_id_programs",
        attempt: |_| host_programs(),
    },
    Drill {
        name: "writable_and_executable_root",
        attempt: |_| {
            Outcome::all(
                ["/usr/bin/env", "/bin/sh", "/etc/passwd", "/etc/ld.so.cache"].map(|path| {
                    let opened = OpenOptions::new().write(true).open(path);
                    (path.to_owned(), Outcome::any_error(opened))
                }),
            )
        },
    },
];

fn read_some(path: &str) -> io::Result<()> {
    let mut byte = [0; 1];
    match io::Read::read(&mut File::open(path)?, &mut byte)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn first(mut entries: fs::ReadDir) -> io::Result<fs::DirEntry> {
    entries
        .next()
        .unwrap_or(Err(io::ErrorKind::NotFound.into()))
}

/// A link to a path of the host leads to the sandbox's own view, where it does not exist.
fn link_out(context: &Context) -> Outcome {
    Outcome::all(context.forbidden.iter().flat_map(|path| {
        SHARED.iter().map(move |shared| {
            let link = Path::new(shared).join("choir-drill-link");
            let _ = fs::remove_file(&link);
            let seen = symlink(path, &link).and_then(|()| fs::metadata(&link));
            let _ = fs::remove_file(&link);
            (link.display().to_string(), Outcome::any_error(seen))
        })
    }))
}

/// One thread exchanges a directory for a link to the host's path again and again while this one
/// opens through it.
fn race_out(context: &Context) -> Outcome {
    let Some(target) = context.forbidden.first() else {
        return Outcome::Denied("no path was named".to_owned());
    };
    match try_race(target) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Open(format!("the race could not be run: {error}")),
    }
}

fn try_race(target: &Path) -> io::Result<Outcome> {
    let base = PathBuf::from(format!("/tmp/choir-drill-race-{}", std::process::id()));
    let name = target.file_name().unwrap_or_default();
    let parent = target.parent().unwrap_or(target);
    fs::create_dir_all(base.join("shown"))?;
    symlink(parent, base.join("link"))?;
    let over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    base.join("shown"),
                    rustix::fs::CWD,
                    base.join("link"),
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        });
        let wanted = base.join("shown").join(name);
        let through = (0..TURNS).find(|_| fs::symlink_metadata(&wanted).is_ok());
        over.store(true, Ordering::Relaxed);
        match through {
            Some(turn) => Outcome::Open(format!("through in turn {turn}")),
            None => Outcome::Denied(format!("not in {TURNS} turns")),
        }
    });
    let _ = fs::remove_dir_all(&base);
    Ok(outcome)
}

/// A hard link would give a file of the host a second name that is ours to replace.
fn hard_link() -> Outcome {
    Outcome::all(
        ["/usr/bin/env", "/etc/passwd", "/choir/bin/sandbox"].map(|path| {
            let link = "/workspace/choir-drill-hard";
            let outcome = Outcome::any_error(fs::hard_link(path, link));
            let _ = fs::remove_file(link);
            (path.to_owned(), outcome)
        }),
    )
}

fn above_the_root(context: &Context) -> Outcome {
    Outcome::all(context.forbidden.iter().map(|path| {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let path = Path::new("/workspace/../../../../..").join(inside);
        let seen = path.symlink_metadata();
        (path.display().to_string(), Outcome::any_error(seen))
    }))
}

/// Standard streams are pipes or a terminal: neither is a directory to go on from.
fn through_descriptors(context: &Context) -> Outcome {
    let paths = context.forbidden.iter().flat_map(|path| {
        (0..16).map(move |fd| {
            let inside = path.strip_prefix("/").unwrap_or(path);
            PathBuf::from(format!("/proc/self/fd/{fd}")).join(inside)
        })
    });
    Outcome::all(paths.map(|path| {
        let seen = path.symlink_metadata();
        (path.display().to_string(), Outcome::any_error(seen))
    }))
}

fn writable_proc_files() -> Outcome {
    const FILES: &[&str] = &[
        "/proc/self/oom_score_adj",
        "/proc/self/setgroups",
        "/proc/self/gid_map",
        "/proc/self/loginuid",
        "/proc/self/timens_offsets",
        "/proc/self/clear_refs",
        "/proc/self/attr/current",
        "/proc/self/mem",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/kernel/randomize_va_space",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/net/core/somaxconn",
    ];
    Outcome::all(FILES.iter().map(|path| {
        let opened = OpenOptions::new().write(true).open(path);
        ((*path).to_owned(), Outcome::any_error(opened))
    }))
}

fn kernel_files() -> Outcome {
    const FILES: &[&str] = &[
        "/proc/kmsg",
        "/proc/kallsyms",
        "/proc/timer_list",
        "/proc/vmallocinfo",
        "/proc/kpagecount",
        "/proc/kpageflags",
        "/proc/slabinfo",
        "/proc/key-users",
        "/proc/latency_stats",
    ];
    Outcome::all(
        FILES
            .iter()
            .map(|path| ((*path).to_owned(), Outcome::any_error(read_some(path)))),
    )
}

fn kernel_file_systems() -> Outcome {
    const DIRS: &[&str] = &[
        "/sys/kernel/debug",
        "/sys/kernel/tracing",
        "/sys/kernel/security",
        "/sys/fs/bpf",
        "/sys/fs/cgroup",
        "/sys/firmware",
        "/dev/mqueue",
        "/dev/hugepages",
        "/boot",
        "/var/lib/docker",
        "/lost+found",
    ];
    Outcome::all(DIRS.iter().map(|path| {
        let opened = fs::read_dir(path).and_then(first);
        ((*path).to_owned(), Outcome::any_error(opened))
    }))
}

/// System V objects are the ipc namespace's: there is none in a fresh one.
fn shared_memory() -> Outcome {
    Outcome::all(["shm", "sem", "msg"].map(|kind| {
        let outcome = match fs::read_to_string(format!("/proc/sysvipc/{kind}")) {
            Ok(text) if text.lines().count() > 1 => Outcome::Open(format!("{text:?}")),
            Ok(_) => Outcome::Denied("none".to_owned()),
            Err(error) => Outcome::Denied(error.to_string()),
        };
        (kind.to_owned(), outcome)
    }))
}

/// At most the own terminal and the multiplexer.
fn foreign_terminals() -> Outcome {
    let names: Vec<String> = fs::read_dir("/dev/pts")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "ptmx" && name != "0")
        .collect();
    if names.is_empty() {
        Outcome::Denied("none".to_owned())
    } else {
        Outcome::Open(format!("{names:?}"))
    }
}

fn foreign_owner() -> Outcome {
    let file = "/tmp/choir-drill-owner";
    let outcome = Outcome::all([0, 65_534].map(|id| {
        let given =
            File::create(file).and_then(|_| std::os::unix::fs::chown(file, Some(id), Some(id)));
        (format!("to {id}"), Outcome::any_error(given))
    }));
    let _ = fs::remove_file(file);
    outcome
}

/// A program of one's own with the set-user-ID bit runs as what it was before: with the same
/// identity and without capabilities.
fn set_user_id_program() -> Outcome {
    Outcome::all(["/workspace", "/tmp"].map(|dir| {
        let path = Path::new(dir).join("choir-drill-setuid");
        let outcome =
            try_set_user_id(&path).unwrap_or_else(|error| Outcome::any_error::<()>(Err(error)));
        let _ = fs::remove_file(&path);
        (dir.to_owned(), outcome)
    }))
}

fn try_set_user_id(path: &Path) -> io::Result<Outcome> {
    fs::copy("/usr/bin/env", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o6755))?;
    let output = std::process::Command::new(path)
        .args(["cat", "/proc/self/status"])
        .output()?;
    Ok(judge_status(&String::from_utf8_lossy(&output.stdout)))
}

/// Programs of the host that carry the bit, with a question that they answer to everybody.
fn host_programs() -> Outcome {
    let nosuid = |path: &str| -> Outcome {
        match rustix::fs::statvfs(path) {
            Ok(found) if found.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID) => {
                Outcome::Denied("nosuid".to_owned())
            }
            Ok(_) => Outcome::Open("mounted without nosuid".to_owned()),
            Err(error) => Outcome::Denied(error.to_string()),
        }
    };
    Outcome::all(
        [
            "/usr/bin/su",
            "/usr/bin/passwd",
            "/usr/bin/mount",
            "/usr/bin/newuidmap",
        ]
        .map(|path| (path.to_owned(), nosuid(path))),
    )
}

fn judge_status(status: &str) -> Outcome {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let id = call(libc::SYS_getuid, [0; 6])
        .unwrap_or_default()
        .to_string();
    let same_id = field("Uid").is_some_and(|ids| ids.split_whitespace().all(|one| one == id));
    let none = field("CapEff").is_some_and(|set| set.bytes().all(|digit| digit == b'0'));
    if same_id && none {
        Outcome::Denied("nothing gained".to_owned())
    } else {
        Outcome::Open(format!("{:?} {:?}", field("Uid"), field("CapEff")))
    }
}
