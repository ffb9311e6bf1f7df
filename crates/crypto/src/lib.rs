//! Secrets, tokens, recovery codes and hashing. No async, no I/O but the system's random source.
//!
//! What holds a secret here has no `Display`, no `Serialize` and a `Debug` that tells the
//! kind only; it is wiped when it is dropped; reading it is spelled `expose()` (style 9).

mod code;
mod digest;
mod hex;
mod random;
mod redact;
mod secret;
mod token;

pub use code::{CodeError, HumanCode, PairingCode, RecoveryCode};
pub use digest::{Digest, Hasher, ParseDigestError, sha256};
pub use random::{OsRandom, Random, RandomError};
pub use redact::redact_tokens;
pub use secret::SecretText;
pub use token::{Token, TokenError, TokenHash, TokenKind};
