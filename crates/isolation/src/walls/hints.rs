//! What to do about a wall that cannot be built.

use std::fs;
use std::path::Path;

use super::WallError;
use crate::protocol::Refusal;

/// A refusal that names the wall, the cause if this machine tells it, and the remedy.
pub(crate) fn refusal(error: &WallError) -> Refusal {
    let refusal = Refusal::new(
        "wall_missing",
        format!("the sandbox was not started: {error}"),
    );
    match cause(error) {
        Some(hint) => refusal.with_hint(hint),
        None => {
            refusal.with_hint("run `hypervisor doctor` to see which wall this machine cannot build")
        }
    }
}

/// The likeliest cause, with its remedy.
pub(crate) fn cause(error: &WallError) -> Option<String> {
    if error.step.contains("Landlock") {
        return Some(landlock().to_owned());
    }
    if error.step.starts_with("find") {
        return Some("the path does not exist on the host; check the configuration".to_owned());
    }
    if error.step.contains("new proc") && container() {
        return Some(
            "this container hides parts of /proc, so no new /proc may be mounted in it: run the \
             container with an unmasked /proc (podman: --security-opt unmask=ALL; docker: \
             --security-opt systempaths=unconfined), or run on the host"
                .to_owned(),
        );
    }
    user_namespaces()
}

/// Why user namespaces may be refused, if this machine's settings say so.
pub(crate) fn user_namespaces() -> Option<String> {
    let is =
        |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return Some(
            "user namespaces are switched off (user.max_user_namespaces=0): \
             run `sysctl -w user.max_user_namespaces=15000` and keep it in /etc/sysctl.d"
                .to_owned(),
        );
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return Some(
            "user namespaces are for root only (kernel.unprivileged_userns_clone=0): \
             run `sysctl -w kernel.unprivileged_userns_clone=1`, or run the hypervisor as root"
                .to_owned(),
        );
    }
    if is(
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
    ) {
        return Some(
            "AppArmor restricts user namespaces (Ubuntu 23.10 and later): give the supervisor a \
             profile that contains `userns,`, or run \
             `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
                .to_owned(),
        );
    }
    container().then(|| {
        "this is a container whose own profile forbids namespaces: allow them (podman: \
         --security-opt seccomp=unconfined --security-opt unmask=ALL; docker: the same with \
         systempaths=unconfined), or run on the host"
            .to_owned()
    })
}

/// Why Landlock may be missing.
pub(crate) const fn landlock() -> &'static str {
    "Landlock is missing or too old: it needs Linux 5.13 (6.12 for its scopes) built with \
     CONFIG_SECURITY_LANDLOCK and `landlock` in the list of the kernel parameter lsm="
}

fn container() -> bool {
    Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists()
}
