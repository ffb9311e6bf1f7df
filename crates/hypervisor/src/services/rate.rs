//! Rate limits on every auth endpoint, per address and per account.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};

use crate::config::Auth;
use crate::error::Error;

/// Keys are hashed into this many buckets, so that nobody can make the tables grow. Two
/// strangers that share a bucket share its quota; the hash is keyed per process, so nobody
/// can choose whom to share with.
const BUCKETS: u64 = 1 << 16;

/// What is limited; each has quotas of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attempt {
    /// `/auth/register/*`
    Register,
    /// `/auth/login/*`
    Login,
    /// `/auth/recovery*`
    Recovery,
    /// `/auth/cli/start`
    PairingStart,
    /// `/auth/cli/poll`, which a command calls every few seconds
    PairingPoll,
    /// `/auth/cli/approve` and its look-up
    PairingDecision,
}

impl Attempt {
    /// Polling is expected; guessing a recovery code or a pairing code is not.
    const fn weight(self) -> NonZeroU32 {
        let weight = match self {
            Self::PairingPoll => 1,
            Self::Register | Self::Login | Self::PairingStart => 2,
            Self::Recovery | Self::PairingDecision => 4,
        };
        match NonZeroU32::new(weight) {
            Some(weight) => weight,
            None => NonZeroU32::MIN,
        }
    }
}

/// The limits of this process.
#[derive(Debug)]
pub struct RateLimits {
    by_address: DefaultKeyedRateLimiter<u64>,
    by_account: DefaultKeyedRateLimiter<u64>,
    hasher: RandomState,
    clock: DefaultClock,
}

impl RateLimits {
    /// Limits as configured. A quota of `n` attempts a minute is one of `4 n` units, of
    /// which a poll takes one, a sign-in two, and a guess four.
    #[must_use]
    pub fn new(auth: &Auth) -> Self {
        let quota = |per_minute: u32| {
            let units = NonZeroU32::new(per_minute.saturating_mul(4)).unwrap_or(NonZeroU32::MIN);
            // At least one guess, whatever the configuration.
            Quota::per_minute(units.max(Attempt::Recovery.weight()))
        };
        Self {
            by_address: DefaultKeyedRateLimiter::dashmap(quota(auth.attempts_per_address)),
            by_account: DefaultKeyedRateLimiter::dashmap(quota(auth.attempts_per_account)),
            hasher: RandomState::new(),
            clock: DefaultClock::default(),
        }
    }

    /// Counts an attempt from an address. IPv6 addresses count by their /64, which is what
    /// one customer gets.
    ///
    /// # Errors
    /// [`Error::RateLimited`] with the time to wait.
    pub fn address(&self, attempt: Attempt, address: IpAddr) -> Result<(), Error> {
        let network = match address.to_canonical() {
            IpAddr::V4(address) => u64::from(u32::from(address)),
            IpAddr::V6(address) => u64::try_from(u128::from(address) >> 64).unwrap_or_default(),
        };
        self.count(&self.by_address, attempt, (address.is_ipv4(), network))
    }

    /// Counts an attempt on an account, whether or not there is such an account.
    ///
    /// # Errors
    /// [`Error::RateLimited`] with the time to wait.
    pub fn account(&self, attempt: Attempt, account: &str) -> Result<(), Error> {
        self.count(&self.by_account, attempt, account)
    }

    fn count(
        &self,
        limiter: &DefaultKeyedRateLimiter<u64>,
        attempt: Attempt,
        key: impl Hash,
    ) -> Result<(), Error> {
        let bucket = self.hasher.hash_one((attempt, key)) % BUCKETS;
        match limiter.check_key_n(&bucket, attempt.weight()) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(Error::RateLimited {
                retry_after: until.wait_time_from(self.clock.now()),
            }),
            Err(_) => Err(Error::RateLimited {
                retry_after: Duration::from_secs(60),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Attempt, RateLimits};
    use crate::config::{Config, RawConfig};
    use crate::error::Error;

    fn limits() -> RateLimits {
        let mut config = Config::build(RawConfig::default()).unwrap();
        config.auth.attempts_per_address = 3;
        config.auth.attempts_per_account = 2;
        RateLimits::new(&config.auth)
    }

    #[test]
    fn the_fourth_guess_from_one_address_has_to_wait_and_others_do_not() {
        let limits = limits();
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..3 {
            limits.address(Attempt::Recovery, one).unwrap();
        }
        let refused = limits.address(Attempt::Recovery, one).unwrap_err();
        assert!(matches!(refused, Error::RateLimited { retry_after } if !retry_after.is_zero()));
        limits.address(Attempt::Recovery, other).unwrap();
        limits.address(Attempt::Login, one).unwrap();
    }

    #[test]
    fn an_account_is_limited_over_all_addresses_and_a_64_counts_as_one() {
        let limits = limits();
        limits.account(Attempt::Recovery, "alice").unwrap();
        limits.account(Attempt::Recovery, "alice").unwrap();
        assert!(limits.account(Attempt::Recovery, "alice").is_err());
        limits.account(Attempt::Recovery, "bob").unwrap();
        for at in 0..3 {
            limits
                .address(
                    Attempt::Recovery,
                    format!("2001:db8::{at}").parse().unwrap(),
                )
                .unwrap();
        }
        assert!(
            limits
                .address(Attempt::Recovery, "2001:db8::ffff".parse().unwrap())
                .is_err()
        );
    }
}
