//! WebAuthn ceremonies under way. Their state stays here, bounded and short-lived, and the
//! browser holds only an unguessable name for it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use types::{SessionId, UserId, UserName};
use uuid::Uuid;
use webauthn_rs::prelude::{DiscoverableAuthentication, PasskeyRegistration};

use crate::clock::{Clock, millis};
use crate::error::Error;
use crate::store::Entitlement;

/// How long a person may take with their authenticator.
pub const CEREMONY_LIFETIME: Duration = Duration::from_secs(300);

/// Ceremonies at the same time; beyond that the oldest gives way.
const MAX_CEREMONIES: usize = 8192;

/// What a ceremony is for.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// A new account.
    Register {
        /// The account's future id; it is in the passkey as the user handle.
        user: UserId,
        /// Its future name.
        name: UserName,
        /// What lets it happen.
        entitlement: Entitlement,
    },
    /// A further passkey of an account.
    Add {
        /// The account.
        user: UserId,
    },
    /// The passkey that ends a recovery.
    Recover {
        /// The account.
        user: UserId,
        /// The recovery session.
        session: SessionId,
    },
}

/// A ceremony under way.
#[derive(Debug, Clone)]
pub enum Ceremony {
    /// A passkey is being made.
    Create {
        /// What it is for.
        purpose: Purpose,
        /// What the answer is checked against.
        state: Box<PasskeyRegistration>,
    },
    /// Somebody is signing in.
    SignIn {
        /// The account that was named, and whether one was.
        named: Named,
        /// What the answer is checked against.
        state: Box<DiscoverableAuthentication>,
    },
}

/// Whom a sign-in is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// Nobody was named; the passkey says who.
    Nobody,
    /// An account was named.
    Account(UserId),
    /// A name was given that no account has. Goes on as if it had, and ends refused.
    Stranger,
}

/// All ceremonies under way.
#[derive(Debug)]
pub struct Ceremonies {
    clock: Clock,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    by_id: HashMap<Uuid, (i64, Ceremony)>,
    /// In the order of their ends, because all live equally long.
    order: VecDeque<(i64, Uuid)>,
}

impl Ceremonies {
    /// None under way.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            pending: Mutex::default(),
        }
    }

    /// Keeps a ceremony and names it.
    pub fn begin(&self, ceremony: Ceremony) -> Uuid {
        let id = Uuid::new_v4();
        let now = self.clock.now_ms();
        let ends = now.saturating_add(millis(CEREMONY_LIFETIME));
        let mut pending = self.lock();
        while let Some((oldest_ends, oldest)) = pending.order.front().copied() {
            if oldest_ends > now && pending.order.len() < MAX_CEREMONIES {
                break;
            }
            pending.order.pop_front();
            pending.by_id.remove(&oldest);
        }
        pending.order.push_back((ends, id));
        pending.by_id.insert(id, (ends, ceremony));
        id
    }

    /// Takes a ceremony out; each can be finished once.
    ///
    /// # Errors
    /// There is none of this name, or it took too long.
    pub fn take(&self, id: Uuid) -> Result<Ceremony, Error> {
        let now = self.clock.now_ms();
        match self.lock().by_id.remove(&id) {
            Some((ends, ceremony)) if ends > now => Ok(ceremony),
            _ => Err(Error::conflict(
                "this took too long or was done already; begin again",
            )),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        // Both collections are valid after every statement.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use webauthn_rs::prelude::{Url, WebauthnBuilder};

    use super::{CEREMONY_LIFETIME, Ceremonies, Ceremony, MAX_CEREMONIES, Named};
    use crate::clock::Clock;

    fn sign_in() -> Ceremony {
        let url = Url::parse("http://localhost:9090").unwrap();
        let webauthn = WebauthnBuilder::new("localhost", &url)
            .unwrap()
            .build()
            .unwrap();
        let (_, state) = webauthn.start_discoverable_authentication().unwrap();
        Ceremony::SignIn {
            named: Named::Nobody,
            state: Box::new(state),
        }
    }

    #[test]
    fn a_ceremony_is_taken_out_once_and_not_after_its_end() {
        let clock = Clock::fixed(0);
        let ceremonies = Ceremonies::new(clock.clone());
        let (one, two) = (ceremonies.begin(sign_in()), ceremonies.begin(sign_in()));
        assert!(ceremonies.take(one).is_ok());
        assert!(ceremonies.take(one).is_err());
        clock.advance(CEREMONY_LIFETIME);
        assert!(ceremonies.take(two).is_err());
    }

    #[test]
    fn the_oldest_gives_way_and_memory_stays_bounded() {
        let clock = Clock::fixed(0);
        let ceremonies = Ceremonies::new(clock.clone());
        let ceremony = sign_in();
        let first = ceremonies.begin(ceremony.clone());
        let last = (0..MAX_CEREMONIES)
            .map(|_| ceremonies.begin(ceremony.clone()))
            .last()
            .unwrap();
        assert!(ceremonies.take(first).is_err());
        assert!(ceremonies.take(last).is_ok());
        clock.advance(CEREMONY_LIFETIME);
        ceremonies.begin(ceremony);
        assert_eq!(ceremonies.lock().by_id.len(), 1);
        assert_eq!(ceremonies.lock().order.len(), 1);
    }
}
