//! What to do about a wall that cannot be built.

use super::WallError;
use super::facts::{Container, Facts};
use crate::protocol::Refusal;

/// A refusal that names the wall, the cause if this machine tells it, and the remedy.
pub(crate) fn refusal(error: &WallError) -> Refusal {
    let refusal = Refusal::new(
        "wall_missing",
        format!("the sandbox was not started: {error}"),
    );
    let hint = explain(error, &Facts::read()).unwrap_or_else(|| {
        "run `hypervisor doctor` to see which wall this machine cannot build".to_owned()
    });
    refusal.with_hint(hint)
}

/// The likeliest cause, with its remedy, as this machine's settings tell it; for `doctor`,
/// which cannot send anybody elsewhere.
pub(crate) fn remedy(error: &WallError) -> String {
    remedy_on(error, &Facts::read())
}

/// The same for any machine.
fn remedy_on(error: &WallError, facts: &Facts) -> String {
    explain(error, facts).unwrap_or_else(|| {
        let kernel = facts
            .kernel
            .map(|(major, minor)| format!(" (this is {major}.{minor})"))
            .unwrap_or_default();
        format!(
            "no setting of this machine tells why: boot a kernel of Linux 5.15 or later{kernel} \
             with CONFIG_NAMESPACES, CONFIG_USER_NS and CONFIG_SECCOMP_FILTER, outside of \
             containers and sandboxes, and look at `dmesg` for what refused it"
        )
    })
}

/// Why Landlock may be missing here.
pub(crate) fn landlock() -> String {
    landlock_on(&Facts::read())
}

/// The same for any machine.
fn explain(error: &WallError, facts: &Facts) -> Option<String> {
    let step = error.step.as_str();
    if step.contains("Landlock") {
        return Some(landlock_on(facts));
    }
    if step.contains("seccomp") {
        let within = if facts.container.is_some() {
            "; in a container its own profile may forbid it (--security-opt seccomp=unconfined)"
        } else {
            ""
        };
        return Some(format!(
            "seccomp filters are missing or forbidden: boot a kernel with CONFIG_SECCOMP_FILTER{within}"
        ));
    }
    if step.starts_with("find /dev/") {
        return Some(
            "this machine lacks a device that every program expects; a container gets them with \
             --device, or run on the host"
                .to_owned(),
        );
    }
    if step.starts_with("find") {
        return Some("the path does not exist on the host; check the configuration".to_owned());
    }
    if let (Some(path), Some(libc::ENOENT)) = (step.strip_prefix("clone "), error.errno) {
        return Some(format!(
            "there is no {path} here: sandboxes are shown the programs of the system that they run \
             on, so run it on one that has them, as the base image of a distribution has"
        ));
    }
    if step.contains("new proc") && facts.container.is_some() {
        return Some(
            "this container hides parts of /proc, so no new /proc may be mounted in it: run the \
             container with an unmasked /proc (podman: --security-opt unmask=ALL; docker: \
             --security-opt systempaths=unconfined), or run on the host"
                .to_owned(),
        );
    }
    if step.contains("new proc") && facts.covered_proc {
        return Some(
            "something is mounted over parts of /proc, so no new /proc may be mounted here: in a \
             container run it with an unmasked /proc (Kubernetes: securityContext.procMount: \
             Unmasked); in a systemd unit take ProtectKernelTunables= and ProtectKernelLogs= out"
                .to_owned(),
        );
    }
    if step.contains("namespace") || step.starts_with("map the") || is_refusal(error) {
        return namespaces(error, facts);
    }
    None
}

/// Whether the kernel said that this process may not, or that there are too many already.
fn is_refusal(error: &WallError) -> bool {
    matches!(
        error.errno,
        Some(libc::EPERM | libc::EACCES | libc::ENOSPC | libc::EUSERS)
    )
}

fn namespaces(error: &WallError, facts: &Facts) -> Option<String> {
    if facts.max_user_namespaces == Some(0) {
        let whose = if facts.nested {
            " in the sandbox or container that this runs in (bwrap --disable-userns does that); \
             run it outside, or"
        } else {
            ":"
        };
        return Some(format!(
            "user namespaces are switched off (user.max_user_namespaces=0){whose} run `sysctl -w \
             user.max_user_namespaces=15000` and keep it in /etc/sysctl.d"
        ));
    }
    if let (Some(libc::ENOSPC | libc::EUSERS), Some(most)) =
        (error.errno, facts.max_user_namespaces)
    {
        return Some(format!(
            "all {most} user namespaces that this user may have are taken \
             (user.max_user_namespaces={most}), or 32 lie within each other: raise it with `sysctl \
             -w user.max_user_namespaces={}`, or stop sandboxes",
            most.saturating_mul(2)
        ));
    }
    if facts.unprivileged_clone == Some(false) && !facts.root {
        return Some(
            "user namespaces are for root only (kernel.unprivileged_userns_clone=0): \
             run `sysctl -w kernel.unprivileged_userns_clone=1`, or run the hypervisor as root"
                .to_owned(),
        );
    }
    if facts.apparmor_restricts && !facts.root {
        let confined = facts
            .apparmor_profile
            .as_deref()
            .map(|name| format!("; this runs under the profile {name}"))
            .unwrap_or_default();
        return Some(format!(
            "AppArmor restricts user namespaces (Ubuntu 23.10 and later){confined}: give the \
             supervisor a profile that contains `userns,`, or run \
             `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
        ));
    }
    let options = match facts.container? {
        Container::Docker => {
            "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
             --security-opt systempaths=unconfined"
        }
        Container::Podman => {
            "podman run --security-opt seccomp=unconfined --security-opt unmask=ALL"
        }
        Container::Other => "seccomp and masked paths off",
    };
    Some(format!(
        "this is a container whose own profile forbids namespaces: allow them ({options}), or run \
         on the host"
    ))
}

fn landlock_on(facts: &Facts) -> String {
    let why = match (&facts.lsm, facts.kernel) {
        (_, Some(kernel)) if kernel < (5, 13) => format!(
            "this kernel ({}.{}) is older than 5.13, the first with Landlock: boot a newer one",
            kernel.0, kernel.1
        ),
        (Some(list), _) if !list.split(',').any(|one| one == "landlock") => format!(
            "Landlock is not among the security modules that run ({list}): add it in front with \
             the kernel parameter lsm=landlock,{list}"
        ),
        (_, Some(kernel)) if kernel < (6, 12) => format!(
            "this kernel ({}.{}) has Landlock without its scopes, which come with 6.12: boot a \
             newer one",
            kernel.0, kernel.1
        ),
        _ => "Landlock is missing or too old".to_owned(),
    };
    let needs = if facts.container.is_some() {
        "In a container its seccomp profile may forbid Landlock's calls as well"
    } else {
        "It needs Linux 5.13 (6.12 for its scopes) built with CONFIG_SECURITY_LANDLOCK and \
         `landlock` in the list of the kernel parameter lsm="
    };
    format!(
        "{why}. {needs}. Where its scopes alone are missing, sandbox.accept_missing = \
         [\"landlock_scopes\"] goes without them"
    )
}

#[cfg(test)]
#[path = "hints_tests.rs"]
mod tests;
