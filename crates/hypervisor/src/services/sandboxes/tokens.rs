//! Gateway tokens: the second factor on a channel (arch §1, §5).
//!
//! A token is minted for one start of a sandbox, or for one runner, and is valid on that
//! one's channel only. Of the token itself nothing is kept but its hash.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crypto::{Random, RandomError, Token, TokenHash, TokenKind};
use types::SandboxId;

use crate::clock::{Clock, millis};

/// Longest text that is looked at as a token; a real one has 56 characters.
const MAX_TEXT: usize = 128;

/// Why a request on a channel has no valid token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// None was sent, or something that is no bearer token.
    Missing,
    /// Not a gateway token: cut off, mistyped, or of another kind.
    Malformed,
    /// A valid token of another channel.
    Foreign(SandboxId),
    /// This channel's own, and its time is over.
    Expired,
    /// Nobody's: revoked, or made up.
    Unknown,
}

impl Misuse {
    /// For metrics and the ledger.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Foreign(_) => "foreign",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }

    /// What to do about it, for whoever wrote the program inside.
    pub(crate) const fn advice(self) -> &'static str {
        match self {
            Self::Missing => {
                "send the gateway token of this channel with every request: `Authorization: Bearer $CHOIR_PROVIDER_GATEWAY_TOKEN`, or as the API key of a stock SDK"
            }
            Self::Malformed => {
                "this is not a gateway token; send the whole value of CHOIR_PROVIDER_GATEWAY_TOKEN as the bearer token"
            }
            Self::Foreign(_) => {
                "this gateway token belongs to another channel; send the CHOIR_PROVIDER_GATEWAY_TOKEN of this process's own environment"
            }
            Self::Expired => {
                "this gateway token has expired because it was not renewed with POST /token/renew; restart the sandbox to get a new one"
            }
            Self::Unknown => {
                "this gateway token is not valid any more; restart the sandbox to get a new one"
            }
        }
    }
}

/// The token that one channel asks for.
pub(crate) struct Slot {
    hash: TokenHash,
    /// From a renewal to the end.
    lifetime: Duration,
    /// By [`Clock::awake_ms`]: nobody can renew it while the machine is suspended, and nobody
    /// can use it. `i64::MAX` for a runner's, which ends with its runner.
    expires_at: AtomicI64,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

impl Slot {
    /// Extends the life of a guest's token, which the caller has just shown.
    pub(crate) fn renew(&self, now: i64) {
        self.expires_at
            .fetch_max(now.saturating_add(millis(self.lifetime)), Ordering::Relaxed);
    }

    /// How long the token is good for after a renewal.
    pub(crate) const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Waits until the token has lapsed; a runner's never does.
    pub(crate) async fn lapsed(&self, clock: &Clock) {
        loop {
            let left = self
                .expires_at
                .load(Ordering::Relaxed)
                .saturating_sub(clock.awake_ms());
            let Ok(left @ 1..) = u64::try_from(left) else {
                return;
            };
            tokio::time::sleep(Duration::from_millis(left).min(self.lifetime)).await;
        }
    }
}

/// The tokens of all channels, to tell a foreign token from an invented one.
pub(crate) struct Tokens {
    /// Of a guest's token, after its last renewal, in milliseconds.
    lifetime_ms: AtomicU64,
    /// Held for one look-up, never across an await. As many entries as channels.
    live: RwLock<HashMap<TokenHash, SandboxId>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// Tokens of guests that die `lifetime` after their last renewal.
    pub(crate) fn new(lifetime: Duration) -> Self {
        let tokens = Self {
            lifetime_ms: AtomicU64::default(),
            live: RwLock::default(),
        };
        tokens.live_for(lifetime);
        tokens
    }

    /// Gives another lifetime to the tokens to come; those that are there keep theirs.
    pub(crate) fn live_for(&self, lifetime: Duration) {
        let millis = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        self.lifetime_ms.store(millis, Ordering::Relaxed);
    }

    fn lifetime(&self) -> Duration {
        Duration::from_millis(self.lifetime_ms.load(Ordering::Relaxed))
    }

    /// A fresh token.
    pub(crate) fn mint(random: &dyn Random) -> Result<Token, RandomError> {
        Token::generate(TokenKind::Gateway, random)
    }

    /// The slot of a guest's channel, valid from `now`. Also for a start that is taken over
    /// from an earlier hypervisor, of which only the hash is known.
    pub(crate) fn guest(&self, sandbox: SandboxId, hash: TokenHash, now: i64) -> Arc<Slot> {
        self.admit(sandbox, hash, now.saturating_add(millis(self.lifetime())))
    }

    /// The slot of a guest's channel whose token lapsed under an earlier hypervisor: it stays
    /// dead.
    pub(crate) fn lapsed(&self, sandbox: SandboxId, hash: TokenHash) -> Arc<Slot> {
        self.admit(sandbox, hash, i64::MIN)
    }

    /// The slot of a runner's channel.
    pub(crate) fn runner(&self, sandbox: SandboxId, hash: TokenHash) -> Arc<Slot> {
        self.admit(sandbox, hash, i64::MAX)
    }

    fn admit(&self, sandbox: SandboxId, hash: TokenHash, expires_at: i64) -> Arc<Slot> {
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(hash, sandbox);
        Arc::new(Slot {
            hash,
            lifetime: self.lifetime(),
            expires_at: AtomicI64::new(expires_at),
        })
    }

    /// Ends a token at once.
    pub(crate) fn revoke(&self, slot: &Slot) {
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&slot.hash);
        slot.expires_at.store(i64::MIN, Ordering::Relaxed);
    }

    /// Checks the token that a request on the channel of `slot` shows.
    pub(crate) fn check(&self, slot: &Slot, shown: Option<&str>, now: i64) -> Result<(), Misuse> {
        let text = shown.ok_or(Misuse::Missing)?;
        if text.len() > MAX_TEXT {
            return Err(Misuse::Malformed);
        }
        let shown = Token::hash_of(text);
        if shown == slot.hash {
            let valid = slot.expires_at.load(Ordering::Relaxed) > now;
            return if valid { Ok(()) } else { Err(Misuse::Expired) };
        }
        Token::parse_kind(TokenKind::Gateway, text).map_err(|_| Misuse::Malformed)?;
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        Err(live
            .get(&shown)
            .map_or(Misuse::Unknown, |owner| Misuse::Foreign(*owner)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Misuse, Tokens};

    use crate::clock::millis;
    use crypto::{OsRandom, Token, TokenKind};
    use types::SandboxId;

    const LIFETIME: Duration = Duration::from_secs(900);

    #[test]
    fn a_token_is_good_on_its_own_channel_until_it_lapses() {
        let tokens = Tokens::new(LIFETIME);
        let random = OsRandom::new();
        let (a, b) = (SandboxId::generate(), SandboxId::generate());
        let (token_a, token_b) = (
            Tokens::mint(&random).unwrap(),
            Tokens::mint(&random).unwrap(),
        );
        let (slot_a, slot_b) = (
            tokens.guest(a, token_a.hash(), 0),
            tokens.runner(b, token_b.hash()),
        );
        let header = |token: &Token| token.expose().to_owned();
        let check = |slot, header: &str, now| tokens.check(slot, Some(header), now);

        assert_eq!(check(&slot_a, &header(&token_a), 1), Ok(()));
        assert_eq!(check(&slot_b, &header(&token_b), i64::MAX - 1), Ok(()));
        assert_eq!(
            check(&slot_a, &header(&token_b), 1),
            Err(Misuse::Foreign(b))
        );
        assert_eq!(
            check(&slot_b, &header(&token_a), 1),
            Err(Misuse::Foreign(a))
        );

        let end = millis(LIFETIME);
        assert_eq!(check(&slot_a, &header(&token_a), end), Err(Misuse::Expired));
        slot_a.renew(end - 1);
        assert_eq!(check(&slot_a, &header(&token_a), end), Ok(()));

        let again = tokens.lapsed(a, token_a.hash());
        assert_eq!(check(&again, &header(&token_a), 1), Err(Misuse::Expired));

        tokens.revoke(&slot_a);
        assert_eq!(check(&slot_a, &header(&token_a), end), Err(Misuse::Expired));
        assert_eq!(check(&slot_b, &header(&token_a), end), Err(Misuse::Unknown));
    }

    #[test]
    fn another_lifetime_is_that_of_the_tokens_to_come() {
        let tokens = Tokens::new(LIFETIME);
        let before = tokens.guest(
            SandboxId::generate(),
            crypto::TokenHash::from_bytes([1; 32]),
            0,
        );
        tokens.live_for(LIFETIME / 2);
        let after = tokens.guest(
            SandboxId::generate(),
            crypto::TokenHash::from_bytes([2; 32]),
            0,
        );
        assert_eq!(before.lifetime(), LIFETIME);
        assert_eq!(after.lifetime(), LIFETIME / 2);
    }

    #[test]
    fn what_is_no_gateway_token_is_told_apart() {
        let tokens = Tokens::new(LIFETIME);
        let random = OsRandom::new();
        let token = Tokens::mint(&random).unwrap();
        let slot = tokens.guest(SandboxId::generate(), token.hash(), 0);
        assert_eq!(tokens.check(&slot, None, 0), Err(Misuse::Missing));
        let cut = &token.expose()[..40];
        assert_eq!(tokens.check(&slot, Some(cut), 0), Err(Misuse::Malformed));
        let api = Token::generate(TokenKind::Api, &random).unwrap();
        assert_eq!(
            tokens.check(&slot, Some(api.expose()), 0),
            Err(Misuse::Malformed)
        );
        let made_up = Tokens::mint(&random).unwrap();
        assert_eq!(
            tokens.check(&slot, Some(made_up.expose()), 0),
            Err(Misuse::Unknown)
        );
    }
}
