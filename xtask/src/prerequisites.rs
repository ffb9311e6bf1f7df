//! What has to be on the machine, and how it gets there.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// The oldest Node that the desktop builds with: what Debian 12 and Ubuntu 24.04 ship.
const NODE_AT_LEAST: u32 = 18;

/// One thing that has to be there.
struct Prerequisite {
    /// What it is, for people.
    what: &'static str,
    /// Programs of which one is enough.
    programs: &'static [&'static str],
    /// Packages of Debian and Ubuntu.
    debian: &'static [&'static str],
    /// Package of nixpkgs.
    nix: &'static str,
}

const BUILD: &[Prerequisite] = &[
    Prerequisite {
        what: "a C compiler (for SQLite and AWS-LC)",
        programs: &["cc"],
        debian: &["gcc", "libc6-dev"],
        nix: "gcc",
    },
    Prerequisite {
        what: "make (for jemalloc)",
        programs: &["make"],
        debian: &["make"],
        nix: "gnumake",
    },
    Prerequisite {
        what: "Node.js",
        programs: &["node"],
        debian: &["nodejs"],
        nix: "nodejs",
    },
    Prerequisite {
        what: "npm",
        programs: &["npm"],
        debian: &["npm"],
        nix: "nodejs",
    },
];

/// AWS-LC brings ready-made bindings and a build of its own for these; elsewhere it needs CMake.
const WITHOUT_CMAKE: &[&str] = &["x86_64", "aarch64"];

const CMAKE: Prerequisite = Prerequisite {
    what: "CMake (for AWS-LC)",
    programs: &["cmake"],
    debian: &["cmake"],
    nix: "cmake",
};

const CHROMIUM: Prerequisite = Prerequisite {
    what: "Chromium (the browser that tests drive)",
    programs: &["chromium", "chromium-browser", "google-chrome"],
    debian: &["chromium"],
    nix: "chromium",
};

const OPENSSL: Prerequisite = Prerequisite {
    what: "openssl (certificates of tests and of what the hypervisor is trained with)",
    programs: &["openssl"],
    debian: &["openssl"],
    nix: "openssl",
};

const TEST: &[Prerequisite] = &[
    CHROMIUM,
    Prerequisite {
        what: "Python (what tests run inside sandboxes)",
        programs: &["python3"],
        debian: &["python3"],
        nix: "python3",
    },
    Prerequisite {
        what: "pip (for the SDKs that tests run inside sandboxes)",
        programs: &["pip3", "pip"],
        debian: &["python3-pip"],
        nix: "python3Packages.pip",
    },
    OPENSSL,
    Prerequisite {
        what: "certutil (to make the browser trust them)",
        programs: &["certutil"],
        debian: &["libnss3-tools"],
        nix: "nss.tools",
    },
    Prerequisite {
        what: "Podman (to run a sandbox in a container)",
        programs: &["podman"],
        debian: &["podman", "uidmap"],
        nix: "podman",
    },
    Prerequisite {
        what: "runc (what Podman runs containers with in tests)",
        programs: &["runc"],
        debian: &["runc"],
        nix: "runc",
    },
    Prerequisite {
        what: "curl (what the runbooks ask with)",
        programs: &["curl"],
        debian: &["curl"],
        nix: "curl",
    },
    Prerequisite {
        what: "mkfs.btrfs (a file system on which copies share blocks)",
        programs: &["mkfs.btrfs"],
        debian: &["btrfs-progs"],
        nix: "btrfs-progs",
    },
    Prerequisite {
        what: "setpriv (to test as an ordinary user)",
        programs: &["setpriv"],
        debian: &["util-linux"],
        nix: "util-linux",
    },
];

const BENCH: &[Prerequisite] = &[
    OPENSSL,
    Prerequisite {
        what: "nginx (to compare with)",
        programs: &["nginx"],
        debian: &["nginx-light"],
        nix: "nginx",
    },
    Prerequisite {
        what: "wrk (the load)",
        programs: &["wrk"],
        debian: &["wrk"],
        nix: "wrk",
    },
    Prerequisite {
        what: "bubblewrap (to compare with)",
        programs: &["bwrap"],
        debian: &["bubblewrap"],
        nix: "bubblewrap",
    },
    Prerequisite {
        what: "crun (to compare with)",
        programs: &["crun"],
        debian: &["crun"],
        nix: "crun",
    },
];

/// What a command needs beyond Rust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To build.
    Build,
    /// To build what is installed.
    Dist,
    /// To test.
    Test,
    /// To measure.
    Bench,
    /// To take pictures.
    Screens,
}

/// Makes sure that everything for a purpose is there; installs it through apt where that
/// needs no question, and otherwise says what to type.
pub(crate) fn ensure(purpose: Purpose, again: &str) -> Result<()> {
    let mut missing = missing(purpose);
    if missing.is_empty() {
        return check_node();
    }
    for one in &missing {
        eprintln!("missing: {}", one.what);
    }
    if is_nixos() {
        let mut packages: Vec<&str> = missing.iter().map(|one| one.nix).collect();
        packages.sort_unstable();
        packages.dedup();
        bail!(
            "type this:\n\n    nix-shell -p {} --run '{again}'\n",
            packages.join(" ")
        );
    }
    let mut packages: Vec<&str> = missing.iter().flat_map(|one| one.debian).copied().collect();
    packages.sort_unstable();
    packages.dedup();
    let by_hand = format!(
        "apt-get update && apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    if process::find(&["apt-get"]).is_none() {
        bail!(
            "install what is missing with this system's package manager; on Debian and Ubuntu it is:\n\n    sudo sh -c '{by_hand}'\n"
        );
    }
    let root = rustix::process::geteuid().is_root();
    if !root && !process::succeeds(Command::new("sudo").args(["-n", "true"])) {
        bail!("type this, and then `{again}` again:\n\n    sudo sh -c '{by_hand}'\n");
    }
    eprintln!("installing: {}", packages.join(" "));
    process::run(&mut apt(root, &["update", "-q"]))?;
    let mut install = apt(root, &["install", "-y", "-q", "--no-install-recommends"]);
    process::run(install.args(&packages))?;
    missing = self::missing(purpose);
    if let Some(still) = missing.first() {
        bail!("{} is still missing after `{by_hand}`", still.what);
    }
    check_node()
}

fn missing(purpose: Purpose) -> Vec<&'static Prerequisite> {
    let mut all: Vec<&Prerequisite> = BUILD.iter().collect();
    if !WITHOUT_CMAKE.contains(&std::env::consts::ARCH) {
        all.push(&CMAKE);
    }
    match purpose {
        Purpose::Build => {}
        Purpose::Dist => all.push(&OPENSSL),
        Purpose::Test => all.extend(TEST),
        Purpose::Bench => all.extend(BENCH),
        Purpose::Screens => all.push(&CHROMIUM),
    }
    all.retain(|one| process::find(one.programs).is_none());
    all
}

fn apt(root: bool, arguments: &[&str]) -> Command {
    let mut command = if root {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "env"]);
        sudo
    };
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get"])
        .args(arguments);
    command
}

fn is_nixos() -> bool {
    Path::new("/etc/NIXOS").exists()
        || fs::read_to_string("/etc/os-release")
            .is_ok_and(|text| text.lines().any(|line| line == "ID=nixos"))
}

fn check_node() -> Result<()> {
    let version = process::output(Command::new("node").arg("--version"))?;
    match node_major(&version) {
        Some(major) if major >= NODE_AT_LEAST => Ok(()),
        _ => bail!(
            "Node.js is {}, and the desktop needs {NODE_AT_LEAST} or newer",
            version.trim()
        ),
    }
}

fn node_major(version: &str) -> Option<u32> {
    version
        .trim()
        .strip_prefix('v')?
        .split('.')
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::node_major;

    #[test]
    fn reads_the_major_version_of_node() {
        assert_eq!(node_major("v20.20.2\n"), Some(20));
        assert_eq!(node_major("v18.19.0"), Some(18));
        assert_eq!(node_major("20"), None);
    }
}
