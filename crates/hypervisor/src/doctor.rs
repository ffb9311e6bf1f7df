//! `hypervisor doctor`: whether this machine and this configuration can run sandboxes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use runtime::Check;
use runtime::cgroups::{CPU_REMEDY, Tree};
use runtime::spec::OptionalWall;
use serde::Serialize;

use crate::config::Config;
use crate::data_dir::{DataDir, DataDirError};

/// What was found.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// Whether nothing mandatory is missing.
    pub ok: bool,
    /// Each thing that was looked at.
    pub checks: Vec<Check>,
}

/// Looks at everything. Builds each wall once in a child process, so call it while this
/// process has a single thread.
#[must_use]
pub fn examine(config: &Config) -> Findings {
    let mut checks = vec![data_dir(&config.data_dir), port(config)];
    for program in ["supervisor", "sandbox"] {
        checks.push(binary(config, program));
    }
    checks.extend(
        config
            .providers
            .iter()
            .flat_map(|one| one.upstreams.iter().map(move |upstream| (one, upstream)))
            .map(|(one, upstream)| {
                let readable = upstream
                    .key_file
                    .as_ref()
                    .is_none_or(|file| std::fs::File::open(file).is_ok());
                let detail = match &upstream.key_file {
                    Some(file) if readable => {
                        format!("its key file {} can be read", file.display())
                    }
                    Some(file) => format!("its key file {} cannot be read", file.display()),
                    None => "it has no key file".to_owned(),
                };
                let remedy = "give this user read access to the file";
                check(
                    &format!("provider {}", one.name),
                    readable,
                    false,
                    detail,
                    remedy,
                )
            }),
    );
    checks.extend(runtime::probe(&config.sandbox.accept_missing));
    checks.extend(cgroups(config));
    checks.push(inotify(
        config.sandbox.limits.inotify_instances,
        config.sandbox.limits.running_per_user,
        std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances")
            .ok()
            .and_then(|text| text.trim().parse().ok()),
    ));
    Findings {
        ok: checks.iter().all(|check| check.ok || !check.mandatory),
        checks,
    }
}

/// The findings for people.
#[must_use]
pub fn describe(findings: &Findings) -> String {
    let mut text = String::new();
    for check in &findings.checks {
        let mark = match (check.ok, check.mandatory) {
            (true, _) => "ok     ",
            (false, true) => "MISSING",
            (false, false) => "absent ",
        };
        text.push_str(&format!("{mark}  {}: {}\n", check.name, check.detail));
        if let (false, Some(remedy)) = (check.ok, &check.remedy) {
            text.push_str(&format!("         hint: {remedy}\n"));
        }
    }
    text
}

fn check(name: &str, ok: bool, mandatory: bool, detail: String, remedy: &str) -> Check {
    let remedy = (!ok).then(|| remedy.to_owned());
    Check {
        name: name.to_owned(),
        ok,
        mandatory,
        accept: None,
        detail,
        remedy,
    }
}

/// The check of [`cgroups`] that `cargo xtask up` looks for.
pub const CGROUP_LIMITS: &str = "cgroup limits";

/// Tries what the hypervisor does at its start: a tree of its own beneath its own group.
fn cgroups(config: &Config) -> Vec<Check> {
    let accepted = |wall| config.sandbox.accept_missing.contains(&wall);
    let without = |wall, name: &str, hint: &str| {
        let go_on = if accepted(wall) {
            format!("sandbox.accept_missing names {name}, so sandboxes start without")
        } else {
            format!("or go without: sandbox.accept_missing = [\"{name}\"]")
        };
        format!("{hint}; {go_on}")
    };
    match Tree::open(&format!("doctor-{}", std::process::id())) {
        Ok(tree) => {
            let version = tree.version();
            let limits = check(
                CGROUP_LIMITS,
                true,
                true,
                format!("memory and processes, by cgroups version {version}"),
                "",
            );
            let remedy = without(OptionalWall::CgroupCpu, "cgroup_cpu", CPU_REMEDY);
            let cpu = check(
                "cgroup processor time",
                tree.has_cpu(),
                !accepted(OptionalWall::CgroupCpu),
                "the cpu controller".to_owned(),
                &remedy,
            );
            vec![limits, cpu]
        }
        Err(error) => {
            let mut detail = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                detail = format!("{detail}: {source}");
            }
            let remedy = without(OptionalWall::CgroupLimits, "cgroup_limits", error.hint());
            vec![check(
                CGROUP_LIMITS,
                false,
                !accepted(OptionalWall::CgroupLimits),
                detail,
                &remedy,
            )]
        }
    }
}

/// Whether the sandboxes that one user may run leave each other the inotify instances that
/// each may have: they are one user of the host, whose instances the kernel counts together.
fn inotify(of_tree: u64, sandboxes: u32, given: Option<u64>) -> Check {
    // Of the guest, and of all commands together.
    let wanted = of_tree
        .saturating_mul(2)
        .saturating_mul(u64::from(sandboxes));
    let ok = given.is_some_and(|given| given >= wanted);
    let given = given.map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string());
    let remedy = format!(
        "run `sysctl -w fs.inotify.max_user_instances={}` and keep it in /etc/sysctl.d, or set \
         sandbox.limits.inotify_instances lower; without, sandboxes of one user of the host can \
         take them from each other",
        wanted.next_power_of_two()
    );
    check(
        "inotify instances",
        ok,
        false,
        format!(
            "{given} per user of the host, and {sandboxes} sandboxes of one user may take {wanted}"
        ),
        &remedy,
    )
}

fn data_dir(path: &Path) -> Check {
    let (ok, detail) = match DataDir::lock(path) {
        Ok(_) => (true, format!("{} can be used", path.display())),
        Err(DataDirError::Locked { .. }) => (
            true,
            format!("{} is used by a running hypervisor", path.display()),
        ),
        Err(error @ DataDirError::Unusable { .. }) => {
            let why = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            (false, format!("{} cannot be used: {why}", path.display()))
        }
    };
    check(
        "data directory",
        ok,
        true,
        detail,
        "let this user write there, or set data_dir",
    )
}

fn port(config: &Config) -> Check {
    let address = config.listen.address;
    match TcpListener::bind(address) {
        Ok(_) => check(
            "public listener",
            true,
            true,
            format!("{address} is free"),
            "",
        ),
        Err(error) => {
            let running = matches!(
                DataDir::lock(&config.data_dir),
                Err(DataDirError::Locked { .. })
            );
            let detail = if running {
                format!("{address} is in use, and a hypervisor runs on this data directory")
            } else {
                format!("{address} cannot be used: {error}")
            };
            check(
                "public listener",
                running,
                true,
                detail,
                "stop what uses the port, or set listen.address",
            )
        }
    }
}

fn binary(config: &Config, program: &str) -> Check {
    let path = binaries_dir(config).join(program);
    let ok = path.is_file();
    let detail = format!(
        "{} {}",
        path.display(),
        if ok { "is there" } else { "is not there" }
    );
    check(
        &format!("program {program}"),
        ok,
        true,
        detail,
        "install it next to the hypervisor, or set sandbox.binaries_dir",
    )
}

/// Where the other programs lie: next to this one, unless the configuration says otherwise.
fn binaries_dir(config: &Config) -> PathBuf {
    let beside = || {
        std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(Path::to_owned))
    };
    config
        .sandbox
        .binaries_dir
        .clone()
        .or_else(beside)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::inotify;

    #[test]
    fn too_few_inotify_instances_for_a_users_sandboxes_name_the_setting_and_its_value() {
        let few = inotify(48, 2, Some(128));
        assert!(!few.ok && !few.mandatory);
        let remedy = few.remedy.unwrap();
        assert!(
            remedy.contains("fs.inotify.max_user_instances=256"),
            "{remedy}"
        );
        assert!(inotify(48, 2, Some(256)).ok);
        assert!(!inotify(48, 2, None).ok);
    }
}
