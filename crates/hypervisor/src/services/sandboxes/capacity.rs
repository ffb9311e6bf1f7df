//! How many sandboxes may run at the same time, and what is said when no more may.

use runtime::StartError;
use types::{Role, SandboxId};

use super::Plane;
use crate::config::Places;

/// Code of a [`StartError`]: the host is full.
pub(super) const HOST_FULL: &str = "host_full";

/// Code of a [`StartError`]: the user has as many as one may have.
pub(super) const TOO_MANY_RUNNING: &str = "too_many_running";

/// Memory of the host for each place under `running_per_host = "auto"`, in bytes. An idle
/// sandbox takes a few MiB; one in which a compiler runs takes what its limits let it.
const MEMORY_PER_PLACE: u64 = 128 << 20;

/// Places there are under `auto` however little memory there is.
const LEAST_PLACES: u64 = 8;

/// The number that a configuration means on this host.
pub(super) fn places(configured: Places) -> usize {
    match configured {
        Places::Number(number) => usize::try_from(number).unwrap_or(usize::MAX),
        Places::Auto => {
            let memory =
                memory_total(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default());
            usize::try_from((memory / MEMORY_PER_PLACE).max(LEAST_PLACES)).unwrap_or(usize::MAX)
        }
    }
}

/// The memory of the host, in bytes; 0 when it is not known.
fn memory_total(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024))
}

impl Plane {
    /// Whether one more may run beside the occupied ones.
    pub(super) fn room(
        &self,
        sandbox: SandboxId,
        occupied: &[SandboxId],
    ) -> Result<(), StartError> {
        let limits = &self.config.sandbox.limits;
        if let Some(route) = self.routes.of_sandbox(sandbox) {
            let own: Vec<Role> = occupied
                .iter()
                .filter_map(|other| route.role_of(*other))
                .collect();
            let most = usize::try_from(limits.running_per_user).unwrap_or(usize::MAX);
            if own.len() >= most {
                let (message, hint) = too_many(limits.running_per_user, &own);
                return Err(StartError::new(TOO_MANY_RUNNING, message).with_hint(hint));
            }
        }
        if occupied.len() >= self.places {
            // Whose they are is for admins to know.
            return Err(StartError::new(
                HOST_FULL,
                format!(
                    "this host is full: {} of {} sandboxes run",
                    occupied.len(),
                    self.places
                ),
            )
            .with_hint(
                "stop one that you do not need, wait until an idle one is stopped, or ask an administrator (choir sandbox list --all; sandbox.limits.running_per_host)",
            ));
        }
        Ok(())
    }
}

/// What is said to a user of whom these run already.
fn too_many(most: u32, running: &[Role]) -> (String, String) {
    let may = match most {
        1 => "one of your sandboxes may run at a time".to_owned(),
        most => format!("{most} of your sandboxes may run at the same time"),
    };
    match running {
        [role] => (
            format!("{may}, and {role} does"),
            format!("stop it first: choir sandbox stop {role}"),
        ),
        roles => {
            let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
            let names = names.join(" and ");
            (
                format!("{may}, and {names} do"),
                "stop one of them first: choir sandbox stop".to_owned(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{memory_total, places, too_many};
    use crate::config::Places;

    #[test]
    fn places_follow_the_memory_of_the_host() {
        assert_eq!(
            memory_total("MemTotal:       24587992 kB\nMemFree: 1 kB"),
            24_587_992 * 1024
        );
        assert_eq!(memory_total(""), 0);
        assert_eq!(places(Places::Number(3)), 3);
        assert!(places(Places::Auto) >= 8);
    }

    #[test]
    fn a_user_at_the_limit_is_told_it_in_plain_words() {
        use types::Role::{Dev, Live};
        let said = |most, running| {
            let (message, hint) = too_many(most, running);
            format!("{message}; {hint}")
        };
        assert_eq!(
            said(1, &[Dev]),
            "one of your sandboxes may run at a time, and dev does; stop it first: choir sandbox stop dev"
        );
        assert_eq!(
            said(2, &[Live, Dev]),
            "2 of your sandboxes may run at the same time, and live and dev do; stop one of them first: choir sandbox stop"
        );
    }
}
